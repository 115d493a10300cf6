//! Compiles the kernels to one fat binary, which the library embeds.

use std::path::PathBuf;
use std::process::Command;

/// Where `cargo xtask cuda toolkit` puts the compiler, below the user's cache folder.
const TOOLKIT: &str = "headway/cuda/13.0.2/nvidia/cu13";

/// Machine code for these, and code for later ones that the driver compiles.
const TARGETS: [&str; 3] = [
    "arch=compute_80,code=[sm_80,compute_80]",
    "arch=compute_89,code=sm_89",
    "arch=compute_90,code=sm_90",
];

fn main() {
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-env-changed=NVCC");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let nvcc = nvcc();
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut command = Command::new(&nvcc);
    command.args(["-fatbin", "-O3", "-std=c++17", "--threads", "2"]);
    for target in TARGETS {
        command.args(["-gencode", target]);
    }
    command.arg("-o").arg(out.join("tail.fatbin"));
    command.arg("kernels/tail.cu");
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{} failed: {status}", nvcc.display()),
        Err(error) => panic!(
            "cannot run {}: {error}. The feature `cuda` needs the CUDA 13 compiler: run `cargo xtask cuda toolkit`, \
             or set CUDA_HOME or NVCC",
            nvcc.display()
        ),
    }
}

/// The compiler that was asked for, or the one that is there.
fn nvcc() -> PathBuf {
    if let Some(nvcc) = std::env::var_os("NVCC") {
        return nvcc.into();
    }
    if let Some(home) = std::env::var_os("CUDA_HOME") {
        return PathBuf::from(home).join("bin/nvcc");
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".cache")));
    let fetched = cache.map(|cache| cache.join(TOOLKIT));
    [fetched, Some(PathBuf::from("/usr/local/cuda"))]
        .into_iter()
        .flatten()
        .map(|home| home.join("bin/nvcc"))
        .find(|nvcc| nvcc.is_file())
        .unwrap_or_else(|| PathBuf::from("nvcc"))
}
