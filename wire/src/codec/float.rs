//! The codecs whose values are floats of a fixed width.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{Codec, check_finite};
use crate::error::CodecError;

/// Values converted at a time: small enough for the first-level cache, large enough for vector code.
const CHUNK: usize = 256;

pub(super) fn encode_f32(values: &[f32], columns: usize) -> Result<Vec<u8>, CodecError> {
    check_finite(values, columns)?;
    let mut data = vec![0; values.len() * 4];
    for (bytes, value) in data.chunks_exact_mut(4).zip(values) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    Ok(data)
}

pub(super) fn encode_f16(values: &[f32], columns: usize) -> Result<Vec<u8>, CodecError> {
    check_finite(values, columns)?;
    let mut data = vec![0; values.len() * 2];
    let mut narrowed = [f16::ZERO; CHUNK];
    let mut finite = true;
    for (bytes, values) in data.chunks_mut(CHUNK * 2).zip(values.chunks(CHUNK)) {
        let narrowed = &mut narrowed[..values.len()];
        narrowed.convert_from_f32_slice(values);
        for (bytes, value) in bytes.chunks_exact_mut(2).zip(&*narrowed) {
            finite &= value.is_finite();
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }
    if finite {
        Ok(data)
    } else {
        Err(out_of_range(Codec::F16, f16::MAX.to_f32(), values, columns))
    }
}

pub(super) fn encode_bf16(values: &[f32], columns: usize) -> Result<Vec<u8>, CodecError> {
    check_finite(values, columns)?;
    let mut data = vec![0; values.len() * 2];
    let mut finite = true;
    for (bytes, value) in data.chunks_exact_mut(2).zip(values) {
        let value = bf16::from_f32(*value);
        finite &= value.is_finite();
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    if finite {
        Ok(data)
    } else {
        Err(out_of_range(
            Codec::Bf16,
            bf16::MAX.to_f32(),
            values,
            columns,
        ))
    }
}

/// Names the largest value: one beyond `max` exists, because a narrowed value was infinite.
fn out_of_range(codec: Codec, max: f32, values: &[f32], columns: usize) -> CodecError {
    let at = values
        .iter()
        .enumerate()
        .max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()))
        .map_or(0, |(at, _)| at);
    CodecError::OutOfRange {
        codec,
        row: at / columns,
        column: at % columns,
        max,
        got: values[at],
    }
}

pub(super) fn decode_f32(data: &[u8], columns: usize) -> Result<Vec<f32>, CodecError> {
    let (chunks, _) = data.as_chunks::<4>();
    checked(
        chunks
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect(),
        columns,
    )
}

pub(super) fn decode_f16(data: &[u8], columns: usize) -> Result<Vec<f32>, CodecError> {
    let (chunks, _) = data.as_chunks::<2>();
    let mut values = vec![0.0; chunks.len()];
    let mut narrow = [f16::ZERO; CHUNK];
    for (values, chunks) in values.chunks_mut(CHUNK).zip(chunks.chunks(CHUNK)) {
        let narrow = &mut narrow[..chunks.len()];
        for (value, bytes) in narrow.iter_mut().zip(chunks) {
            *value = f16::from_le_bytes(*bytes);
        }
        narrow.convert_to_f32_slice(values);
    }
    checked(values, columns)
}

pub(super) fn decode_bf16(data: &[u8], columns: usize) -> Result<Vec<f32>, CodecError> {
    let (chunks, _) = data.as_chunks::<2>();
    // bf16 is the upper half of an f32.
    let widen = |bytes: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    checked(chunks.iter().map(widen).collect(), columns)
}

fn checked(values: Vec<f32>, columns: usize) -> Result<Vec<f32>, CodecError> {
    check_finite(&values, columns)?;
    Ok(values)
}
