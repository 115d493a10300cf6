//! The digests of unchanged parts, without making the parts: the header is written by itself, and the tensors' bytes
//! go from the file through the hash, a piece at a time.
//!
//! What is hashed is bit for bit what [`write_part`](super::write_part) writes; a test compares the two for every type.

use std::io::Read as _;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::quantized::GgmlDType;
use sha2::{Digest as _, Sha256};

use super::Part;
use crate::error::LoadError;
use crate::manifest::{Artifact, format_digest};
use crate::threads::threads;
use crate::weights::{Place, Weights};

/// What one thread has in memory.
const PIECE_BYTES: usize = 1 << 20;

/// Tensors begin at multiples of this.
const ALIGNMENT_BYTES: usize = 32;

/// The format's number of a string in the metadata.
const STRING: u32 = 8;

/// Hashes `parts`, one on each thread. In the order given.
pub(super) fn native_parts(weights: &Weights, parts: &[Part]) -> Result<Vec<Artifact>, LoadError> {
    // The largest first: the one that is begun last should not be long.
    let mut order = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        let places = places(weights, *part)?;
        order.push((
            places.iter().map(|(_, _, place)| bytes(place)).sum::<u64>(),
            index,
        ));
    }
    order.sort_unstable_by_key(|(bytes, index)| (u64::MAX - bytes, *index));
    let next = AtomicUsize::new(0);
    let hashed = Mutex::new(Vec::with_capacity(parts.len()));
    let work = || {
        while let Some((_, index)) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            let artifact = native_part(weights, parts[*index]);
            if artifact.is_err() {
                // Nobody begins another one.
                next.store(order.len(), Ordering::Relaxed);
            }
            let mut hashed = hashed.lock().unwrap_or_else(PoisonError::into_inner);
            hashed.push((*index, artifact));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads().min(parts.len()) {
            scope.spawn(work);
        }
        work();
    });
    let mut hashed = hashed.into_inner().unwrap_or_else(PoisonError::into_inner);
    hashed.sort_by_key(|(index, _)| *index);
    hashed.into_iter().map(|(_, artifact)| artifact).collect()
}

/// Name, size and digest of an unchanged part, as [`write_part`](super::write_part) would give them.
///
/// # Errors
/// [`LoadError`] where a tensor cannot be read.
pub fn native_part(weights: &Weights, part: Part) -> Result<Artifact, LoadError> {
    let places = places(weights, part)?;
    let header = header(weights.config().architecture.name(), &places);
    let mut sha256 = Sha256::new();
    sha256.update(&header);
    let mut total_bytes = header.len() as u64;
    let mut piece = vec![0; PIECE_BYTES];
    for (_, _, place) in &places {
        let mut file = weights.open_at(place)?;
        let mut left_bytes = bytes(place);
        while left_bytes > 0 {
            let next = piece
                .len()
                .min(usize::try_from(left_bytes).unwrap_or(usize::MAX));
            file.read_exact(&mut piece[..next])
                .map_err(LoadError::io(place.path))?;
            sha256.update(&piece[..next]);
            left_bytes -= next as u64;
        }
        let padding = padding(bytes(place));
        sha256.update(&[0; ALIGNMENT_BYTES][..padding]);
        total_bytes += bytes(place) + padding as u64;
    }
    Ok(Artifact {
        name: part.to_string(),
        bytes: total_bytes,
        digest: format_digest(&sha256.finalize()),
    })
}

/// A tensor's name, its sizes, and where it is.
type Tensor<'a> = (String, Vec<usize>, Place<'a>);

fn places(weights: &Weights, part: Part) -> Result<Vec<Tensor<'_>>, LoadError> {
    let tensors = part.tensors(weights.config()).into_iter();
    tensors
        .map(|(name, shape)| {
            let place = weights.locate(&name, &shape)?;
            Ok((name, shape, place))
        })
        .collect()
}

fn bytes(place: &Place<'_>) -> u64 {
    place.range.end - place.range.start
}

/// Everything before the first tensor's bytes: GGUF, version 2, with the architecture as its only metadata.
fn header(architecture: &str, tensors: &[Tensor<'_>]) -> Vec<u8> {
    let mut header = Vec::new();
    let text = |header: &mut Vec<u8>, text: &str| {
        header.extend((text.len() as u64).to_le_bytes());
        header.extend(text.as_bytes());
    };
    header.extend(b"GGUF");
    header.extend(2_u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend(1_u64.to_le_bytes());
    text(&mut header, "general.architecture");
    header.extend(STRING.to_le_bytes());
    text(&mut header, architecture);
    let mut offset_bytes = 0_u64;
    for (name, shape, place) in tensors {
        text(&mut header, name);
        let rank = u32::try_from(shape.len()).unwrap_or(u32::MAX);
        header.extend(rank.to_le_bytes());
        for size in shape.iter().rev() {
            header.extend((*size as u64).to_le_bytes());
        }
        header.extend(type_number(place.dtype).to_le_bytes());
        header.extend(offset_bytes.to_le_bytes());
        offset_bytes += bytes(place) + padding(bytes(place)) as u64;
    }
    let padding = padding(header.len() as u64);
    header.resize(header.len() + padding, 0);
    header
}

/// Zeros behind so many bytes.
fn padding(bytes: u64) -> usize {
    let behind = usize::try_from(bytes % ALIGNMENT_BYTES as u64).expect("a remainder of 32");
    (ALIGNMENT_BYTES - behind) % ALIGNMENT_BYTES
}

/// The format's number of a type.
const fn type_number(dtype: GgmlDType) -> u32 {
    match dtype {
        GgmlDType::F32 => 0,
        GgmlDType::F16 => 1,
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q4_1 => 3,
        GgmlDType::Q5_0 => 6,
        GgmlDType::Q5_1 => 7,
        GgmlDType::Q8_0 => 8,
        GgmlDType::Q8_1 => 9,
        GgmlDType::Q2K => 10,
        GgmlDType::Q3K => 11,
        GgmlDType::Q4K => 12,
        GgmlDType::Q5K => 13,
        GgmlDType::Q6K => 14,
        GgmlDType::Q8K => 15,
        GgmlDType::BF16 => 30,
    }
}

#[cfg(test)]
mod tests;
