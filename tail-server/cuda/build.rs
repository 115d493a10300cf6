//! Compiles each `kernels/*.cu` to a fat binary, which the library embeds.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// Where `cargo xtask cuda toolkit` puts the compiler, below the user's cache folder.
const TOOLKIT: &str = "headway/cuda/13.0.2/nvidia/cu13";

/// Machine code for these, and code for later ones that the driver compiles.
const TARGETS: [&str; 3] = [
    "arch=compute_80,code=[sm_80,compute_80]",
    "arch=compute_89,code=sm_89",
    HOPPER,
];
/// With the instructions that only this generation has.
const HOPPER: &str = "arch=compute_90a,code=sm_90a";

fn main() {
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-env-changed=NVCC");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    println!("cargo:rerun-if-env-changed=CUDA_COMPUTE_CAP");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut sources: Vec<PathBuf> = std::fs::read_dir("kernels")
        .expect("the kernels are beside this file")
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();

    let nvcc = nvcc();
    let mut compilers = Vec::new();
    let mut list = "[\n".to_owned();
    for source in &sources {
        let binary = out.join(source.with_extension("fatbin").file_name().expect("a file"));
        compilers.push(start(&nvcc, source, &binary));
        writeln!(
            list,
            "    include_bytes!({:?}),",
            binary.display().to_string()
        )
        .expect("text");
    }
    list.push(']');
    for (mut compiler, source) in compilers.into_iter().zip(&sources) {
        let status = compiler.wait().expect("the compiler was started");
        assert!(
            status.success(),
            "{} failed on {}: {status}",
            nvcc.display(),
            source.display()
        );
    }
    std::fs::write(out.join("kernels.rs"), list).expect("OUT_DIR can be written");
}

fn start(nvcc: &Path, source: &Path, binary: &Path) -> Child {
    let mut command = Command::new(nvcc);
    command.args(["-fatbin", "-O3", "-std=c++17"]);
    let only = std::env::var_os("CUDA_COMPUTE_CAP");
    match only.as_ref().and_then(|only| only.to_str()) {
        // One device's alone, which builds faster.
        Some(capability) => {
            let specific = if capability == "90" { "a" } else { "" };
            let target =
                format!("arch=compute_{capability}{specific},code=sm_{capability}{specific}");
            command.args(["-gencode", &target]);
        }
        None => {
            for target in TARGETS {
                command.args(["-gencode", target]);
            }
        }
    }
    command.arg("-o").arg(binary).arg(source);
    command.spawn().unwrap_or_else(|error| {
        panic!(
            "cannot run {}: {error}. The feature `cuda` needs the CUDA 13 compiler: run `cargo xtask cuda toolkit`, \
             or set CUDA_HOME or NVCC",
            nvcc.display()
        )
    })
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
