//! Opening a device.

use std::sync::Arc;

use cudarc::cublas::CudaBlas;
use cudarc::driver::sys::CUdevice_attribute;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr,
};
use cudarc::driver::{DriverError, ValidAsZeroBits};
use cudarc::nvrtc::Ptx;

use crate::calls;
use crate::error::CudaError;

/// The kernels, for every supported device. `build.rs` makes them.
const KERNELS: &[&[u8]] = &include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

const MULTIPROCESSORS: CUdevice_attribute =
    CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;

/// Hopper: the first devices on which a kernel can start before the one in front of it has ended.
const HOPPER: i32 = 9;

/// Memory that cuBLAS may use, so that it allocates none itself.
const WORKSPACE_BYTES: usize = 32 << 20;

/// An open device: its one stream, cuBLAS on it, and the kernels.
pub struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    blas: CudaBlas,
    /// In use by `blas`.
    _workspace: CudaSlice<u8>,
    modules: Vec<Arc<CudaModule>>,
    multiprocessors: u32,
    is_hopper: bool,
    overlaps: bool,
}

/// True where there is a driver with at least one device, and cuBLAS.
#[must_use]
pub fn is_present() -> bool {
    calls::has_driver()
        && calls::has_cublas()
        && CudaContext::device_count().is_ok_and(|count| count > 0)
}

impl Gpu {
    /// Opens device `ordinal`.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], [`CudaError::NoCublas`] or [`CudaError::NoDevice`] where there is none;
    /// [`CudaError::Driver`] or [`CudaError::Blas`] where it does not start.
    pub fn open(ordinal: usize) -> Result<Arc<Self>, CudaError> {
        if !calls::has_driver() {
            return Err(CudaError::NoDriver);
        }
        if !calls::has_cublas() {
            return Err(CudaError::NoCublas);
        }
        let count = usize::try_from(CudaContext::device_count()?).unwrap_or(0);
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal)?;
        calls::use_one_stream(&context);
        let stream = context.new_stream()?;
        let blas = CudaBlas::new(Arc::clone(&stream))?;
        let workspace = stream.alloc_zeros(WORKSPACE_BYTES)?;
        calls::set_up_blas(&blas, &stream, &workspace)?;
        let modules = KERNELS
            .iter()
            .map(|binary| context.load_module(Ptx::from_binary(binary.to_vec())))
            .collect::<Result<_, _>>()?;
        let (major, _minor) = context.compute_capability()?;
        let multiprocessors = context.attribute(MULTIPROCESSORS)?;
        Ok(Arc::new(Self {
            context,
            stream,
            blas,
            _workspace: workspace,
            modules,
            multiprocessors: u32::try_from(multiprocessors).unwrap_or(1),
            is_hopper: major == HOPPER,
            overlaps: major >= HOPPER,
        }))
    }

    /// The device's name, as people know it.
    ///
    /// # Errors
    /// [`CudaError::Driver`] where the driver does not say.
    pub fn name(&self) -> Result<String, CudaError> {
        Ok(self.context.name()?)
    }

    /// The device's number.
    #[must_use]
    pub fn ordinal(&self) -> usize {
        self.context.ordinal()
    }

    /// Free and all bytes of the device's memory.
    ///
    /// # Errors
    /// [`CudaError::Driver`] where the driver does not say.
    pub fn memory_bytes(&self) -> Result<(usize, usize), CudaError> {
        Ok(self.context.mem_get_info()?)
    }

    pub(crate) const fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    pub(crate) const fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// How many there are.
    pub(crate) const fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Kernels made for this generation alone run here.
    pub(crate) const fn is_hopper(&self) -> bool {
        self.is_hopper
    }

    /// A kernel may start before the one in front of it has ended.
    pub(crate) const fn overlaps(&self) -> bool {
        self.overlaps
    }

    pub(crate) const fn blas(&self) -> &CudaBlas {
        &self.blas
    }

    pub(crate) fn function(&self, name: &str) -> Result<CudaFunction, CudaError> {
        let found = self
            .modules
            .iter()
            .find_map(|module| module.load_function(name).ok());
        found.ok_or_else(|| CudaError::NoKernel {
            name: name.to_owned(),
        })
    }

    /// Zeroed memory for `len` values.
    pub(crate) fn zeros<V: DeviceRepr + ValidAsZeroBits>(
        &self,
        len: usize,
    ) -> Result<CudaSlice<V>, DriverError> {
        self.stream.alloc_zeros(len)
    }

    /// Where the memory lies on the device.
    pub(crate) fn address<V>(&self, memory: &CudaSlice<V>) -> u64 {
        memory.device_ptr(&self.stream).0
    }
}
