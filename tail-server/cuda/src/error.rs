//! What can go wrong with a device.

use cudarc::cublas::result::CublasError;
use cudarc::driver::DriverError;
use headway_model::{ForwardError, LoadError};

/// Why the device cannot be used, or did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// There is no driver.
    #[error("there is no NVIDIA driver on this machine (libcuda.so.1 is not found)")]
    NoDriver,
    /// The driver is there, and cuBLAS is not.
    #[error(
        "libcublas.so.13 is not found; install CUDA 13's cuBLAS, or name its folder in LD_LIBRARY_PATH"
    )]
    NoCublas,
    /// No such device.
    #[error("there is no device cuda:{ordinal}; this machine has {count}")]
    NoDevice {
        /// The one asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The model has a size that no kernel is made for.
    #[error("{what} is {found}; the CUDA kernels take {expected}")]
    Unsupported {
        /// The size's name.
        what: &'static str,
        /// The model's.
        found: usize,
        /// What would be right.
        expected: &'static str,
    },
    /// Only our own kernels sum in an order that no batch changes.
    #[error(
        "deterministic steps need a Hopper GPU, weights of bf16 or f16 and matrices with a multiple of 16 rows and of 8 \
         columns; without them, leave --deterministic out or use the CPU"
    )]
    NotDeterministic,
    /// The kernels built into this program lack one.
    #[error("the program was built without the kernel {name} for this device")]
    NoKernel {
        /// As in `kernels/`.
        name: String,
    },
    /// A call of the driver failed.
    #[error("the CUDA driver: {0}")]
    Driver(#[from] DriverError),
    /// A call of cuBLAS failed.
    #[error("cuBLAS: {0}")]
    Blas(#[from] CublasError),
    /// The weights cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The rows do not fit the model. Nothing has been computed or written.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// More rows than there is memory for.
    #[error("{rows} rows in a step; the device has memory for {most}")]
    Rows {
        /// The step's.
        rows: usize,
        /// As many as were asked for at the start.
        most: usize,
    },
    /// An earlier call has left the device in a state that only a new process gets out of.
    #[error("the device has failed before: {fault}")]
    Broken {
        /// What that call said.
        fault: String,
    },
}

impl CudaError {
    /// The device's own fault, after which nothing it holds can be relied on.
    pub(crate) const fn is_fault(&self) -> bool {
        matches!(self, Self::Driver(_) | Self::Blas(_))
    }
}
