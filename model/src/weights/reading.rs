//! Reading single tensors, after a fetch where only a file's header is here.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;

use super::{Files, RawTensor, Weights, dequantize, names};
use crate::error::LoadError;

/// Where a tensor's bytes are.
pub(crate) struct Place<'a> {
    /// The file.
    pub(crate) path: &'a Path,
    pub(crate) range: Range<u64>,
    pub(crate) dtype: GgmlDType,
}

/// Brings ranges of files here that are not here yet.
pub(super) type FetchRanges =
    dyn Fn(Vec<(PathBuf, Range<u64>)>) -> std::io::Result<()> + Send + Sync;

impl Weights {
    /// Files of which only the headers are here: `fetch` is called before other bytes are read.
    #[must_use]
    pub fn with_fetch(
        mut self,
        fetch: impl Fn(Vec<(PathBuf, Range<u64>)>) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.fetch = Some(Box::new(fetch));
        self
    }

    /// Reads one tensor and checks its shape.
    pub(crate) fn read(&self, name: &str, shape: &[usize]) -> Result<RawTensor, LoadError> {
        let place = self.locate(name, shape)?;
        let bytes = usize::try_from(place.range.end - place.range.start).unwrap_or(usize::MAX);
        let mut data = vec![0; bytes];
        self.open_at(&place)?
            .read_exact(&mut data)
            .map_err(LoadError::io(place.path))?;
        Ok(RawTensor {
            name: name.to_owned(),
            dtype: place.dtype,
            shape: shape.to_vec(),
            data,
        })
    }

    /// Finds one tensor and checks its shape.
    pub(crate) fn locate(&self, name: &str, shape: &[usize]) -> Result<Place<'_>, LoadError> {
        let missing = |tensor: &str| LoadError::MissingTensor {
            tensor: tensor.to_owned(),
            expected: shape.to_vec(),
        };
        match &self.files {
            Files::Gguf(files) => {
                let file = files.iter().find(|file| file.info(name).is_some());
                file.ok_or_else(|| missing(name))?.locate(name, shape)
            }
            Files::Safetensors(files) => {
                let stored = names::in_safetensors(name);
                let file = files.iter().find(|file| file.has(&stored));
                file.ok_or_else(|| missing(&stored))?.locate(&stored, shape)
            }
        }
    }

    /// The file at the tensor's first byte, after a fetch where one is needed.
    pub(crate) fn open_at(&self, place: &Place<'_>) -> Result<File, LoadError> {
        self.fetch(&[place])?;
        let mut file = File::open(place.path).map_err(LoadError::io(place.path))?;
        file.seek(SeekFrom::Start(place.range.start))
            .map_err(LoadError::io(place.path))?;
        Ok(file)
    }

    /// Brings the bytes of these tensors here, where they are not.
    pub(crate) fn fetch(&self, places: &[&Place<'_>]) -> Result<(), LoadError> {
        let Some(fetch) = &self.fetch else {
            return Ok(());
        };
        let ranges = places
            .iter()
            .map(|place| (place.path.to_owned(), place.range.clone()));
        fetch(ranges.collect()).map_err(LoadError::io(&self.path))
    }

    /// Reads a vector (a norm or a bias) as f32.
    ///
    /// # Errors
    /// [`LoadError`] where the tensor is missing, misshapen or of a type that has no f32 values.
    pub fn read_vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        dequantize(&self.read(name, &[len])?)
    }
}
