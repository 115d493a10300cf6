//! Opening a model's files and reading single tensors from them.
//!
//! Nothing but names, shapes and offsets is held: a decoder of some layers reads those layers' bytes
//! and no others. Tensors are known by their GGUF names (`blk.3.attn_q.weight`); [`names`] says what
//! they are called in safetensors checkpoints.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;
use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::quantization::Quantization;
use crate::tokenizer::Tokenizer;

mod dense;
mod gguf;
pub mod names;
mod reading;
mod safetensors;

pub(crate) use gguf::Metadata;
pub(crate) use reading::Place;

/// A tensor's bytes as they stand in the file. Shape is `[outputs, columns]` or `[columns]`.
#[derive(Clone, Debug)]
pub struct RawTensor {
    /// GGUF name.
    pub name: String,
    /// Storage type.
    pub dtype: GgmlDType,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Little-endian values or blocks.
    pub data: Vec<u8>,
}

/// The types in which weights can be held in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightDtype {
    /// As in the file; quantised weights stay quantised.
    #[default]
    Native,
    /// Everything dequantised to f32.
    F32,
    /// Everything dequantised to f16.
    F16,
    /// Everything dequantised to bf16.
    Bf16,
    /// Matrices in 8 bits (e4m3) with a scale for each output, on devices that have kernels for them; as
    /// [`WeightDtype::Native`] elsewhere.
    Fp8,
}

/// What becomes of a matrix when it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreAs {
    /// Held in this type.
    Dtype(WeightDtype),
    /// Quantised first, as a device holds its head layers.
    Quantized(Quantization),
}

impl StoreAs {
    /// `tensor`, a matrix, as it is to be held.
    pub(crate) fn apply(self, tensor: RawTensor) -> Result<RawTensor, LoadError> {
        let dtype = match self {
            Self::Quantized(quantization) => match quantization.block_type(tensor.shape[1]) {
                Some(dtype) => dtype,
                None => return Ok(tensor),
            },
            Self::Dtype(WeightDtype::Native | WeightDtype::Fp8) => return Ok(tensor),
            Self::Dtype(WeightDtype::F32) => GgmlDType::F32,
            Self::Dtype(WeightDtype::F16) => GgmlDType::F16,
            Self::Dtype(WeightDtype::Bf16) => GgmlDType::BF16,
        };
        convert(tensor, dtype)
    }
}

fn convert(tensor: RawTensor, dtype: GgmlDType) -> Result<RawTensor, LoadError> {
    if tensor.dtype == dtype {
        return Ok(tensor);
    }
    let values: usize = tensor.shape.iter().product();
    let mut data = Vec::with_capacity(values / dtype.block_size() * dtype.type_size());
    dense::convert_pieces(&tensor, dtype, |piece| {
        data.extend_from_slice(piece);
        Ok::<_, LoadError>(())
    })?;
    Ok(RawTensor {
        dtype,
        data,
        ..tensor
    })
}

impl fmt::Display for WeightDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
        })
    }
}

/// A weight type's name that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not a weight type; expected native, f32, f16, bf16 or fp8")]
pub struct UnknownDtype {
    found: String,
}

impl FromStr for WeightDtype {
    type Err = UnknownDtype;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "native" => Ok(Self::Native),
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            "fp8" => Ok(Self::Fp8),
            _ => Err(UnknownDtype {
                found: text.to_owned(),
            }),
        }
    }
}

/// The values of a tensor as f32.
pub(crate) fn dequantize(tensor: &RawTensor) -> Result<Vec<f32>, LoadError> {
    dequantize_values(
        &tensor.name,
        tensor.dtype,
        &tensor.data,
        tensor.shape.iter().product(),
    )
}

pub(crate) fn dequantize_values(
    name: &str,
    dtype: GgmlDType,
    data: &[u8],
    elements: usize,
) -> Result<Vec<f32>, LoadError> {
    match dtype.from_data(Cow::Borrowed(data)).dequantize(elements) {
        Ok(CpuStorage::F32(values)) => Ok(values),
        _ => Err(LoadError::TensorType {
            tensor: name.to_owned(),
            found: format!("{dtype:?}"),
            expected: "a type that can be dequantised".to_owned(),
        }),
    }
}

/// f32 values in another dense type, or in blocks.
pub(crate) fn from_floats(values: &[f32], dtype: GgmlDType) -> Vec<u8> {
    match dtype {
        GgmlDType::F32 => values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        GgmlDType::F16 => values
            .iter()
            .flat_map(|value| half::f16::from_f32(*value).to_le_bytes())
            .collect(),
        GgmlDType::BF16 => values
            .iter()
            .flat_map(|value| half::bf16::from_f32(*value).to_le_bytes())
            .collect(),
        blocks => {
            let mut storage = blocks.cpu_zeros(values.len());
            storage.from_float(values);
            block_bytes(storage.as_ref()).to_vec()
        }
    }
}

#[expect(
    unsafe_code,
    reason = "candle shows a quantised tensor's bytes as a pointer only"
)]
fn block_bytes(data: &dyn candle_core::quantized::QuantizedType) -> &[u8] {
    // SAFETY: candle keeps `storage_size_in_bytes` contiguous bytes at `as_ptr` for as long as `data` lives.
    unsafe { std::slice::from_raw_parts(data.as_ptr(), data.storage_size_in_bytes()) }
}

/// A model whose files are open for reading.
pub struct Weights {
    path: PathBuf,
    config: ModelConfig,
    files: Files,
    chat_template: Option<String>,
    bos_token_id: Option<u32>,
    eos_token_ids: Vec<u32>,
    /// `None`: all bytes are here.
    fetch: Option<Box<reading::FetchRanges>>,
}

enum Files {
    Gguf(Vec<gguf::GgufFile>),
    Safetensors(Vec<safetensors::SafetensorsFile>),
}

impl Weights {
    /// Opens a `.gguf` file, or a folder with `config.json`, `tokenizer.json` and `*.safetensors`.
    ///
    /// # Errors
    /// [`LoadError`] where the path is not a model, a file is damaged, or the model is of a family or
    /// of sizes that this crate does not run.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        if path.is_dir() && path.join("config.json").is_file() {
            return Self::open_safetensors(path);
        }
        if path.is_file() {
            return Self::open_gguf(path);
        }
        if !path.exists() {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(LoadError::Io {
                path: path.to_owned(),
                source,
            });
        }
        Err(LoadError::NotAModel {
            path: path.to_owned(),
        })
    }

    /// Opens the part files that a device has fetched; `config` comes from the manifest.
    ///
    /// # Errors
    /// [`LoadError`] where a file cannot be read or is damaged.
    pub fn open_parts(config: ModelConfig, files: &[PathBuf]) -> Result<Self, LoadError> {
        let path = files.first().cloned().unwrap_or_default();
        let files = files
            .iter()
            .map(|file| gguf::GgufFile::open(file))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            path,
            config,
            files: Files::Gguf(files),
            chat_template: None,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            fetch: None,
        })
    }

    /// Opens a GGUF file whose configuration stands elsewhere in its metadata than a model's.
    pub(crate) fn open_gguf_as(
        path: &Path,
        config: impl FnOnce(&Metadata) -> Result<ModelConfig, LoadError>,
    ) -> Result<(Self, Metadata), LoadError> {
        let (file, metadata) = gguf::GgufFile::open_with_metadata(path)?;
        let weights = Self {
            path: path.to_owned(),
            config: config(&metadata)?,
            files: Files::Gguf(vec![file]),
            chat_template: None,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            fetch: None,
        };
        Ok((weights, metadata))
    }

    fn open_gguf(path: &Path) -> Result<Self, LoadError> {
        let (file, metadata) = gguf::GgufFile::open_with_metadata(path)?;
        let factors = match file.info(names::ROPE_FACTORS) {
            Some(_) => Some(dequantize(&file.read(names::ROPE_FACTORS)?)?),
            None => None,
        };
        let config =
            ModelConfig::from_gguf(&metadata, file.info(names::LM_HEAD).is_some(), factors)?;
        let special = gguf::SpecialTokens::new(&metadata);
        Ok(Self {
            path: path.to_owned(),
            config,
            files: Files::Gguf(vec![file]),
            chat_template: special.chat_template,
            bos_token_id: special.bos_token_id,
            eos_token_ids: special.eos_token_ids,
            fetch: None,
        })
    }

    fn open_safetensors(folder: &Path) -> Result<Self, LoadError> {
        let config_path = folder.join("config.json");
        let json = std::fs::read_to_string(&config_path).map_err(LoadError::io(&config_path))?;
        let special = safetensors::SpecialTokens::read(folder, &json)?;
        Ok(Self {
            path: folder.to_owned(),
            config: ModelConfig::from_huggingface(&json)?,
            files: Files::Safetensors(safetensors::open_folder(folder)?),
            chat_template: special.chat_template,
            bos_token_id: special.bos_token_id,
            eos_token_ids: special.eos_token_ids,
            fetch: None,
        })
    }

    /// Sizes and choices of the model.
    #[must_use]
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// A name to show to people: that of the file or folder.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path
            .file_stem()
            .and_then(std::ffi::OsStr::to_str)
            .unwrap_or("model")
    }

    /// The model's chat template (Jinja), where it has one.
    #[must_use]
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The id put in front of every prompt, where the model wants it.
    #[must_use]
    pub const fn bos_token_id(&self) -> Option<u32> {
        self.bos_token_id
    }

    /// The ids that end a turn.
    #[must_use]
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.eos_token_ids
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] where there is none, or it is damaged or of an unknown kind.
    pub fn tokenizer(&self) -> Result<Tokenizer, LoadError> {
        match &self.files {
            Files::Gguf(_) => {
                let (_, metadata) = gguf::GgufFile::open_with_metadata(&self.path)?;
                Tokenizer::from_gguf(&metadata)
            }
            Files::Safetensors(_) => {
                let path = self.path.join("tokenizer.json");
                let json = std::fs::read(&path).map_err(LoadError::io(&path))?;
                Tokenizer::from_json(&json)
            }
        }
    }
}

/// Refuses a shape that is not the one expected.
fn check_shape(tensor: &str, found: &[usize], expected: &[usize]) -> Result<(), LoadError> {
    if found == expected {
        return Ok(());
    }
    Err(LoadError::TensorShape {
        tensor: tensor.to_owned(),
        found: found.to_vec(),
        expected: expected.to_vec(),
    })
}
