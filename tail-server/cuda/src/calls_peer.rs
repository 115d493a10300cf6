//! What the compiler cannot check of the driver where two GPUs are concerned; see `calls.rs`.
#![expect(
    unsafe_code,
    reason = "copies between devices are called through a foreign interface"
)]

use cudarc::driver::sys::{
    self as driver, CUmemAccess_flags, CUmemAccessDesc, CUmemLocation, CUmemLocationType, CUresult,
};
use cudarc::driver::{CudaContext, CudaSlice, DriverError, result as driver_result};

use crate::gpu::Gpu;

/// Lets `from` reach the memory of `to` itself, where their machine has a way between them. Without one the driver
/// finds another for copies. True where it is reached.
pub(crate) fn allow_access(from: &CudaContext, to: &CudaContext) -> Result<bool, DriverError> {
    if from.cu_device() == to.cu_device() {
        return Ok(true);
    }
    let mut can_access = 0;
    // SAFETY: both devices are open, and the answer's memory outlives the call.
    unsafe {
        driver::cuDeviceCanAccessPeer(&raw mut can_access, from.cu_device(), to.cu_device())
            .result()?;
    }
    if can_access == 0 {
        return Ok(false);
    }
    from.bind_to_thread()?;
    // SAFETY: `to` is open; the context that is given access is this thread's.
    let enabled = unsafe { driver::cuCtxEnablePeerAccess(to.cu_ctx(), 0) };
    match enabled {
        CUresult::CUDA_SUCCESS | CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => {}
        CUresult::CUDA_ERROR_PEER_ACCESS_UNSUPPORTED | CUresult::CUDA_ERROR_TOO_MANY_PEERS => {
            return Ok(false);
        }
        failed => return Err(DriverError(failed)),
    }
    if to.has_async_alloc() {
        allow_pool_access(from, to)?;
    }
    Ok(true)
}

/// Memory that a device's pool has given is reached only by those whom the pool was told of.
fn allow_pool_access(from: &CudaContext, to: &CudaContext) -> Result<(), DriverError> {
    let mut pool = std::ptr::null_mut();
    let access = CUmemAccessDesc {
        location: CUmemLocation {
            type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
            id: from.cu_device(),
        },
        flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    // SAFETY: the device is open and has pools; what is read and written outlives the calls.
    unsafe {
        driver::cuDeviceGetDefaultMemPool(&raw mut pool, to.cu_device()).result()?;
        driver::cuMemPoolSetAccess(pool, &raw const access, 1).result()
    }
}

/// Starts the copy of the first `len` values on the sender's stream, from one GPU's memory to another's or its own.
/// What reads them on the other GPU has to wait for the sender's stream.
pub(crate) fn copy_across(
    (from_gpu, from): (&Gpu, &CudaSlice<f32>),
    (to_gpu, to): (&Gpu, &CudaSlice<f32>),
    len: usize,
) -> Result<(), DriverError> {
    assert!(
        len <= from.len() && len <= to.len(),
        "both have as many values"
    );
    let (source, target) = (from_gpu.address(from), to_gpu.address(to));
    let bytes = len * size_of::<f32>();
    let stream = from_gpu.stream().cu_stream();
    let (from, to) = (from_gpu.context(), to_gpu.context());
    from.bind_to_thread()?;
    // SAFETY: both memories are live and large enough; the stages own them until the streams are done, and let
    // nothing else touch the target's values before an event behind this copy.
    unsafe {
        if from.cu_ctx() == to.cu_ctx() {
            driver_result::memcpy_dtod_async(target, source, bytes, stream)
        } else {
            driver_result::memcpy_peer_async(
                to.cu_ctx(),
                target,
                from.cu_ctx(),
                source,
                bytes,
                stream,
            )
        }
    }
}
