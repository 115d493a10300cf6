//! The comparisons of `cuda-check`, where there is a device.

use std::path::Path;

use headway_cuda::check::{self, Check};
use headway_cuda::{CudaError, Gpu, is_present};

#[test]
fn kernels_and_tails_agree_with_the_cpu() -> Result<(), CudaError> {
    if !is_present() {
        eprintln!("left out: there is no NVIDIA device, driver or cuBLAS on this machine");
        return Ok(());
    }
    let gpu = Gpu::open(0)?;
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny");
    let mut failed = Vec::new();
    check::all(&gpu, &models, &mut |check: &Check| {
        if !check.passed() {
            failed.push(check.to_string());
        }
    })?;
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

#[test]
fn a_machine_without_a_device_says_what_is_missing() {
    if is_present() {
        return;
    }
    let error = Gpu::open(0).err().map(|error| error.to_string());
    assert!(error.is_some_and(|error| error.contains("not found") || error.contains("no device")));
}
