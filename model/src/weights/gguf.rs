//! GGUF files; the header is read by candle.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};

use super::{Place, RawTensor, check_shape};
use crate::error::LoadError;

/// Keys of GGUF's metadata.
pub type Metadata = HashMap<String, Value>;

/// Where the tensors of one file are.
pub struct GgufFile {
    path: PathBuf,
    file_bytes: u64,
    data_offset_bytes: u64,
    tensors: HashMap<String, TensorInfo>,
}

impl GgufFile {
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        Self::open_with_metadata(path).map(|(file, _)| file)
    }

    /// The metadata is returned beside the file and not kept: a tokenizer's lists are large.
    pub fn open_with_metadata(path: &Path) -> Result<(Self, Metadata), LoadError> {
        let file = File::open(path).map_err(LoadError::io(path))?;
        let file_bytes = file.metadata().map_err(LoadError::io(path))?.len();
        let content = Content::read(&mut BufReader::new(file)).map_err(|e| LoadError::Damaged {
            path: path.to_owned(),
            reason: format!("no GGUF header: {e}"),
        })?;
        let file = Self {
            path: path.to_owned(),
            file_bytes,
            data_offset_bytes: content.tensor_data_offset,
            tensors: content.tensor_infos,
        };
        file.check_offsets()?;
        Ok((file, content.metadata))
    }

    /// Every tensor lies inside the file: a truncated download fails here and not when a layer loads.
    fn check_offsets(&self) -> Result<(), LoadError> {
        let mut tensors: Vec<_> = self.tensors.iter().collect();
        tensors.sort_by_key(|(_, info)| info.offset);
        for (name, info) in tensors {
            let needed_bytes = self.tensor_bytes(name, info)? as u64;
            let offset_bytes = self.data_offset_bytes.saturating_add(info.offset);
            if offset_bytes.saturating_add(needed_bytes) > self.file_bytes {
                return Err(LoadError::Truncated {
                    path: self.path.clone(),
                    tensor: name.clone(),
                    offset_bytes,
                    needed_bytes,
                    file_bytes: self.file_bytes,
                });
            }
        }
        Ok(())
    }

    fn tensor_bytes(&self, name: &str, info: &TensorInfo) -> Result<usize, LoadError> {
        let block = info.ggml_dtype.block_size();
        let columns = info.shape.dims().last().copied().unwrap_or(0);
        let elements = info
            .shape
            .dims()
            .iter()
            .try_fold(1_usize, |product, size| product.checked_mul(*size));
        match elements {
            Some(elements) if columns.is_multiple_of(block) && elements < 1 << 40 => {
                Ok(elements / block * info.ggml_dtype.type_size())
            }
            _ => Err(LoadError::Damaged {
                path: self.path.clone(),
                reason: format!(
                    "tensor {name} has shape {:?}; expected rows of a multiple of {block} values for {:?}",
                    info.shape.dims(),
                    info.ggml_dtype
                ),
            }),
        }
    }

    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Where a tensor of this shape is.
    pub fn locate(&self, name: &str, shape: &[usize]) -> Result<Place<'_>, LoadError> {
        let info = self.info(name).ok_or_else(|| LoadError::MissingTensor {
            tensor: name.to_owned(),
            expected: shape.to_vec(),
        })?;
        check_shape(name, info.shape.dims(), shape)?;
        let start = self.data_offset_bytes + info.offset;
        Ok(Place {
            path: &self.path,
            range: start..start + self.tensor_bytes(name, info)? as u64,
            dtype: info.ggml_dtype,
        })
    }

    pub fn read(&self, name: &str) -> Result<RawTensor, LoadError> {
        let info = self.info(name).ok_or_else(|| LoadError::MissingTensor {
            tensor: name.to_owned(),
            expected: Vec::new(),
        })?;
        let mut data = vec![0; self.tensor_bytes(name, info)?];
        let mut file = File::open(&self.path).map_err(LoadError::io(&self.path))?;
        file.seek(SeekFrom::Start(self.data_offset_bytes + info.offset))
            .map_err(LoadError::io(&self.path))?;
        file.read_exact(&mut data)
            .map_err(LoadError::io(&self.path))?;
        Ok(RawTensor {
            name: name.to_owned(),
            dtype: info.ggml_dtype,
            shape: info.shape.dims().to_vec(),
            data,
        })
    }
}

/// The tokens with a role, and the chat template.
pub struct SpecialTokens {
    pub chat_template: Option<String>,
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
}

/// Turn ends that some files do not name as their end token.
const TURN_ENDS: [&str; 4] = ["<|im_end|>", "<|eot_id|>", "<|end|>", "<|endoftext|>"];

impl SpecialTokens {
    pub fn new(metadata: &Metadata) -> Self {
        let id = |key: &str| {
            metadata
                .get(&format!("tokenizer.ggml.{key}"))
                .and_then(|value| value.to_u32().ok())
        };
        let add_bos = metadata
            .get("tokenizer.ggml.add_bos_token")
            .and_then(|value| value.to_bool().ok())
            // Without the key, sentencepiece vocabularies have one and byte-level ones do not.
            .unwrap_or_else(|| {
                metadata
                    .get("tokenizer.ggml.model")
                    .and_then(|m| m.to_string().ok())
                    .is_some_and(|m| m == "llama")
            });
        let mut eos_token_ids: Vec<u32> = ["eos_token_id", "eot_token_id", "eom_token_id"]
            .into_iter()
            .filter_map(id)
            .collect();
        if let Some(Value::Array(tokens)) = metadata.get("tokenizer.ggml.tokens") {
            let ends = tokens.iter().enumerate().filter(|(_, token)| {
                token
                    .to_string()
                    .is_ok_and(|token| TURN_ENDS.contains(&token.as_str()))
            });
            eos_token_ids.extend(ends.filter_map(|(index, _)| u32::try_from(index).ok()));
        }
        eos_token_ids.sort_unstable();
        eos_token_ids.dedup();
        Self {
            chat_template: metadata
                .get("tokenizer.chat_template")
                .and_then(|v| v.to_string().ok())
                .cloned(),
            bos_token_id: id("bos_token_id").filter(|_| add_bos),
            eos_token_ids,
        }
    }
}
