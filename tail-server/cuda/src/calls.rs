//! Every call that the compiler cannot check: kernel launches, cuBLAS, and what cudarc marks as unsafe of the
//! driver. All `unsafe` of the crate is here.
//!
//! A launch is right where its arguments are those of the kernel's declaration in `kernels/`, in their order, and
//! where the memory named is as large as the kernel's comments say. `kernels.rs` sees to the first; its callers size
//! the memory when they allocate it, and `step.rs` checks what a step says about it.
#![expect(
    unsafe_code,
    reason = "kernels and cuBLAS are called through a foreign interface"
)]

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::Arc;

use cudarc::cublas::result::CublasError;
use cudarc::cublas::sys::{
    self as cublas, cublasComputeType_t, cublasGemmAlgo_t, cublasMath_t, cublasOperation_t,
};
use cudarc::cublas::{CudaBlas, result};
use cudarc::driver::sys::{CUfunction_attribute_enum, CUtensorMapDataType};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaSlice, CudaStream, DevicePtr, DeviceRepr,
    DriverError, PinnedHostSlice, ValidAsZeroBits, result as driver_result, sys as driver,
};

use crate::chain::ChainArgs;
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;

/// The driver's library is there.
pub(crate) fn has_driver() -> bool {
    // SAFETY: it loads the driver's library, whose initialisers are made to run in any process.
    unsafe { driver::is_culib_present() }
}

/// cuBLAS's library is there.
pub(crate) fn has_cublas() -> bool {
    // SAFETY: as in `has_driver`.
    unsafe { cublas::is_culib_present() }
}

/// Turns off cudarc's events for each memory range, which order several streams.
pub(crate) fn use_one_stream(context: &CudaContext) {
    // SAFETY: all work of a `Gpu` is on one stream, in order by itself, but for the copies of `incoming.rs`, which that
    // stream waits for.
    unsafe { context.disable_event_tracking() };
}

/// Host memory that the device reads and writes itself. Zeroed.
pub(crate) fn pinned<V: DeviceRepr + ValidAsZeroBits>(
    context: &Arc<CudaContext>,
    len: usize,
) -> Result<PinnedHostSlice<V>, DriverError> {
    // SAFETY: the memory is written in full before anything reads it.
    let mut memory = unsafe { context.alloc_pinned_with_flags::<V>(len, 0)? };
    let start = memory.as_mut_ptr()?;
    // SAFETY: `len` values are at `start`, nobody else knows of them, and zero is one of the type's values.
    unsafe { std::ptr::write_bytes(start, 0, len) };
    Ok(memory)
}

/// Starts the copy of the first `len` values to the device. They stay as they are until the stream has passed it.
pub(crate) fn copy_up(
    stream: &CudaStream,
    from: &PinnedHostSlice<u32>,
    to: &mut CudaSlice<u32>,
    len: usize,
) -> Result<(), DriverError> {
    stream.context().bind_to_thread()?;
    let from = &from.as_slice()?[..len];
    let (address, _no_event) = to.slice_mut(..len).view_ptr_mut(stream);
    // SAFETY: both have `len` values; the caller keeps the host's unchanged until the copy is done.
    unsafe { driver_result::memcpy_htod_async(address, from, stream.cu_stream()) }
}

/// Starts the copy of the values in `range` to the same range on the device. They stay as they are until the stream has
/// passed it, and nothing else reads or writes the device's meanwhile.
pub(crate) fn copy_range_up(
    stream: &CudaStream,
    from: &PinnedHostSlice<f32>,
    to: &mut CudaSlice<f32>,
    range: Range<usize>,
) -> Result<(), DriverError> {
    stream.context().bind_to_thread()?;
    let from = &from.as_slice()?[range.clone()];
    let (address, _no_event) = to.slice_mut(range).view_ptr_mut(stream);
    // SAFETY: both have these values; the caller keeps them to itself until the copy is done.
    unsafe { driver_result::memcpy_htod_async(address, from, stream.cu_stream()) }
}

/// Whether all that was started is done, or has failed.
pub(crate) fn is_idle(stream: &CudaStream) -> bool {
    if stream.context().bind_to_thread().is_err() {
        return true;
    }
    // SAFETY: the stream is open.
    let state = unsafe { driver::cuStreamQuery(stream.cu_stream()) };
    state != driver::CUresult::CUDA_ERROR_NOT_READY
}

/// Copies `range` from the device to the start of `to`, and waits for all that was started before.
pub(crate) fn copy_down<V: DeviceRepr + ValidAsZeroBits>(
    stream: &CudaStream,
    from: &CudaSlice<V>,
    range: Range<usize>,
    to: &mut PinnedHostSlice<V>,
) -> Result<(), DriverError> {
    start_copy_down(stream, from, range, to)?;
    stream.synchronize()
}

/// Starts the copy of `range` from the device to the start of `to`, which nobody looks at before the stream is
/// synchronized.
pub(crate) fn start_copy_down<V: DeviceRepr + ValidAsZeroBits>(
    stream: &CudaStream,
    from: &CudaSlice<V>,
    range: Range<usize>,
    to: &mut PinnedHostSlice<V>,
) -> Result<(), DriverError> {
    stream.context().bind_to_thread()?;
    let to = &mut to.as_mut_slice()?[..range.len()];
    let (address, _no_event) = from.slice(range).view_ptr(stream);
    // SAFETY: both have as many values; `to` is pinned memory of the caller's, who leaves it alone meanwhile.
    unsafe { driver_result::memcpy_dtoh_async(to, address, stream.cu_stream()) }
}

/// Launches that were recorded, to be started together.
pub(crate) struct Graph(CudaGraph);

// SAFETY: the driver's handles of a graph may be used by any thread, one at a time; `Graphs` owns it.
unsafe impl Send for Graph {}

impl Graph {
    /// From here on, what this thread starts on the stream is recorded.
    pub(crate) fn begin(stream: &CudaStream) -> Result<(), DriverError> {
        stream.begin_capture(driver::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    }

    /// What was recorded.
    pub(crate) fn end(stream: &Arc<CudaStream>) -> Result<Self, DriverError> {
        let flags = driver::CUgraphInstantiate_flags(0);
        let graph = stream.end_capture(flags)?;
        let nothing = driver::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        graph.map(Self).ok_or(DriverError(nothing))
    }

    pub(crate) fn launch(&self) -> Result<(), DriverError> {
        self.0.launch()
    }
}

/// Gives cuBLAS its memory, and keeps all of its sums in f32.
pub(crate) fn set_up_blas(
    blas: &CudaBlas,
    stream: &CudaStream,
    workspace: &CudaSlice<u8>,
) -> Result<(), CublasError> {
    let (address, _no_event) = workspace.device_ptr(stream);
    // SAFETY: the handle is live, and `Gpu` keeps the workspace for as long as the handle.
    unsafe {
        cublas::cublasSetWorkspace_v2(*blas.handle(), address as *mut _, workspace.len())
            .result()?;
        let mode = cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        cublas::cublasSetMathMode(*blas.handle(), mode).result()
    }
}

/// `y = x Wᵀ` by cuBLAS, row-major.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlasProduct {
    /// Of x and W.
    pub(crate) dtype: Dtype,
    /// Of y: `dtype`, or f32.
    pub(crate) out: Dtype,
    /// `[rows, columns]`.
    pub(crate) x: u64,
    /// `[outputs, columns]`.
    pub(crate) weights: u64,
    /// `[rows, outputs]`.
    pub(crate) y: u64,
    /// From one row of y to the next, in values.
    pub(crate) y_stride: usize,
    pub(crate) rows: usize,
    pub(crate) outputs: usize,
    pub(crate) columns: usize,
}

impl BlasProduct {
    /// Starts the product.
    pub(crate) fn start(self, gpu: &Gpu) -> Result<(), CudaError> {
        let sizes = [self.rows, self.outputs, self.columns, self.y_stride];
        let [rows, outputs, columns, y_stride] = sizes.map(|size| {
            c_int::try_from(size).expect("sizes are bounded by ModelConfig and the step")
        });
        let (alpha, beta) = (1_f32, 0_f32);
        gpu.context().bind_to_thread()?;
        // cuBLAS is column-major: row-major [outputs, columns] is its [columns, outputs], to be transposed.
        // SAFETY: the handle is live; alpha and beta are read before the call returns; the callers' memory has the
        // sizes above, and stays until the stream has passed the product.
        unsafe {
            result::gemm_ex(
                *gpu.blas().handle(),
                cublasOperation_t::CUBLAS_OP_T,
                cublasOperation_t::CUBLAS_OP_N,
                outputs,
                rows,
                columns,
                (&raw const alpha).cast(),
                self.weights as *const _,
                self.dtype.of_cublas(),
                columns,
                self.x as *const _,
                self.dtype.of_cublas(),
                columns,
                (&raw const beta).cast(),
                self.y as *mut _,
                self.out.of_cublas(),
                y_stride,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )?;
        }
        Ok(())
    }
}

/// A tensor's place and shape, as the copy engine of a device reads it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct TensorMap(driver::CUtensorMap);

/// What a [`TensorMap`] says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Boxes<'a> {
    /// Of 16 bits.
    pub(crate) dtype: Dtype,
    /// A multiple of 16.
    pub(crate) address: u64,
    /// Of each dimension, the fastest first.
    pub(crate) sizes: &'a [u64],
    /// From one entry to the next, for each dimension but the fastest; multiples of 16.
    pub(crate) strides_bytes: &'a [u64],
    /// What one copy brings, each at most 256; 128 bytes of the fastest dimension.
    pub(crate) copied: &'a [u32],
}

impl TensorMap {
    /// Copies come swizzled, in atoms of 8 times 128 bytes; what lies outside the tensor comes as zeros.
    pub(crate) fn new(boxes: Boxes<'_>) -> Result<Self, DriverError> {
        let Boxes { sizes, copied, .. } = boxes;
        assert!(
            sizes.len() == copied.len() && sizes.len() == boxes.strides_bytes.len() + 1,
            "a size and a box for each dimension, and a stride for each but the first"
        );
        let dtype = match boxes.dtype {
            Dtype::F32 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            Dtype::F16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            Dtype::Bf16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let every_one = [1_u32; 5];
        let mut map = driver::CUtensorMap { opaque: [0; 16] };
        // SAFETY: the arrays have an entry for each dimension, and are read before the call returns; the address
        // is only written down.
        unsafe {
            driver::cuTensorMapEncodeTiled(
                &raw mut map,
                dtype,
                u32::try_from(sizes.len()).unwrap_or(u32::MAX),
                boxes.address as *mut _,
                sizes.as_ptr(),
                boxes.strides_bytes.as_ptr(),
                copied.as_ptr(),
                every_one.as_ptr(),
                driver::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                driver::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                driver::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                driver::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
            .result()?;
        }
        Ok(Self(map))
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub(crate) enum Arg<'a> {
    /// Of device memory; 0 is null.
    Address(u64),
    U32(u32),
    U64(u64),
    F32(f32),
    Map(&'a TensorMap),
    Chain(&'a ChainArgs),
}

impl Arg<'_> {
    /// Where the value lies, for as long as the argument does.
    const fn pointer(&self) -> *mut c_void {
        match self {
            Self::Address(value) | Self::U64(value) => (&raw const *value).cast_mut().cast(),
            Self::U32(value) => (&raw const *value).cast_mut().cast(),
            Self::F32(value) => (&raw const *value).cast_mut().cast(),
            Self::Map(map) => (&raw const map.0).cast_mut().cast(),
            Self::Chain(args) => (&raw const **args).cast_mut().cast(),
        }
    }
}

/// What a kernel is started with, beside its arguments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch {
    pub(crate) grid: [u32; 2],
    pub(crate) threads: u32,
    /// Dynamic shared memory, in bytes; [`allow_shared`] first where it is more than 48 KiB.
    pub(crate) shared_bytes: u32,
}

/// Lets a kernel be started with so much dynamic shared memory.
pub(crate) fn allow_shared(function: &CudaFunction, bytes: u32) -> Result<(), DriverError> {
    let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
    function.set_attribute(attribute, bytes)
}

/// Starts a kernel; does nothing for an empty grid, which the driver refuses. See the module's documentation for
/// what makes it right. Where the device can, the kernel starts before the one in front of it has ended, and waits
/// for it by itself: `kernels/overlap.cuh`.
pub(crate) fn launch(
    gpu: &Gpu,
    function: &CudaFunction,
    launch: Launch,
    args: &[Arg<'_>],
) -> Result<(), CudaError> {
    let Launch {
        grid: [x, y],
        threads,
        shared_bytes,
    } = launch;
    if x == 0 || y == 0 {
        return Ok(());
    }
    let mut params: Vec<*mut c_void> = args.iter().map(Arg::pointer).collect();
    let mut overlap = driver::CUlaunchAttribute {
        id: driver::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: driver::CUlaunchAttributeValue {
            programmaticStreamSerializationAllowed: 1,
        },
    };
    let config = driver::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: 1,
        blockDimX: threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shared_bytes,
        hStream: gpu.stream().cu_stream(),
        attrs: &raw mut overlap,
        numAttrs: u32::from(gpu.overlaps()),
    };
    gpu.context().bind_to_thread()?;
    // SAFETY: the module's documentation says what makes a launch right, and who sees to it; the driver reads
    // attributes and arguments before it returns.
    unsafe {
        driver::cuLaunchKernelEx(
            &raw const config,
            function.cu_function(),
            params.as_mut_ptr(),
            std::ptr::null_mut(),
        )
        .result()?;
    }
    Ok(())
}
