//! The values of tensors, for operations of our own.

use std::ops::Deref;

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor};

/// All values of a storage.
pub(super) fn values(storage: &CpuStorage) -> Result<&[f32]> {
    match storage {
        CpuStorage::F32(values) => Ok(values),
        other => Err(candle_core::Error::UnexpectedDType {
            msg: "training is done in f32",
            expected: DType::F32,
            got: candle_core::backend::BackendStorage::dtype(other),
        }),
    }
}

/// The values of a contiguous tensor.
pub(super) fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values(storage)?[start..end]),
        None => candle_core::bail!("{layout:?} is not contiguous"),
    }
}

/// A contiguous tensor that is being read.
pub(super) struct Reading<'a, Guard> {
    storage: Guard,
    layout: &'a Layout,
}

/// Reads a contiguous tensor.
pub(super) fn reading(tensor: &Tensor) -> Reading<'_, impl Deref<Target = Storage>> {
    let (storage, layout) = tensor.storage_and_layout();
    Reading { storage, layout }
}

impl<Guard: Deref<Target = Storage>> Reading<'_, Guard> {
    pub(super) fn values(&self) -> Result<&[f32]> {
        match &*self.storage {
            Storage::Cpu(storage) => contiguous(storage, self.layout),
            _ => candle_core::bail!("training is done on the CPU"),
        }
    }
}
