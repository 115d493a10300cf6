//! Folders in the layout of Hugging Face's hub; one or several `.safetensors` files.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::Value;

use super::{Place, check_shape};
use crate::error::LoadError;
use crate::tokenizer::Tokenizer;

/// A safetensors header is JSON; the format's own limit is 100 MB.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Where the tensors of one file are.
pub struct SafetensorsFile {
    path: PathBuf,
    data_offset_bytes: u64,
    metadata: Metadata,
}

/// Opens the files that `model.safetensors.index.json` names, or `model.safetensors`.
pub fn open_folder(folder: &Path) -> Result<Vec<SafetensorsFile>, LoadError> {
    let index = folder.join("model.safetensors.index.json");
    if !index.is_file() {
        return Ok(vec![SafetensorsFile::open(
            &folder.join("model.safetensors"),
        )?]);
    }
    let damaged = |reason: String| LoadError::Damaged {
        path: index.clone(),
        reason,
    };
    let json = std::fs::read(&index).map_err(LoadError::io(&index))?;
    let json: Value = serde_json::from_slice(&json).map_err(|e| damaged(e.to_string()))?;
    let map = json["weight_map"]
        .as_object()
        .ok_or_else(|| damaged("no object \"weight_map\"".to_owned()))?;
    let files: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    if let Some(file) = files
        .iter()
        .find(|file| Path::new(file).components().count() != 1)
    {
        return Err(damaged(format!("{file:?} is not a plain file name")));
    }
    files
        .into_iter()
        .map(|file| SafetensorsFile::open(&folder.join(file)))
        .collect()
}

impl SafetensorsFile {
    fn open(path: &Path) -> Result<Self, LoadError> {
        let damaged = |reason: String| LoadError::Damaged {
            path: path.to_owned(),
            reason,
        };
        let mut file = File::open(path).map_err(LoadError::io(path))?;
        let file_bytes = file.metadata().map_err(LoadError::io(path))?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length)
            .map_err(|_| damaged("shorter than its header's length".to_owned()))?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES || header_bytes > file_bytes - 8 {
            return Err(damaged(format!(
                "a header of {header_bytes} bytes in a file of {file_bytes} bytes"
            )));
        }
        let mut header = Vec::new();
        file.take(header_bytes)
            .read_to_end(&mut header)
            .map_err(LoadError::io(path))?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|e| damaged(format!("header: {e}")))?;
        let this = Self {
            path: path.to_owned(),
            data_offset_bytes: 8 + header_bytes,
            metadata,
        };
        this.check_offsets(file_bytes)?;
        Ok(this)
    }

    /// Every tensor lies inside the file and is as long as its shape says.
    fn check_offsets(&self, file_bytes: u64) -> Result<(), LoadError> {
        let mut tensors: Vec<_> = self.metadata.tensors().into_iter().collect();
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        for (name, info) in tensors {
            let (start, end) = info.data_offsets;
            let offset_bytes = self.data_offset_bytes + start as u64;
            let elements = info
                .shape
                .iter()
                .try_fold(1_usize, |product, size| product.checked_mul(*size));
            let needed = elements
                .and_then(|n| n.checked_mul(info.dtype.bitsize()))
                .map(|bits| bits / 8);
            if end < start || needed != Some(end - start) {
                return Err(LoadError::Damaged {
                    path: self.path.clone(),
                    reason: format!(
                        "tensor {name} of shape {:?} ({:?}) lies at bytes {start} to {end}",
                        info.shape, info.dtype
                    ),
                });
            }
            let needed_bytes = (end - start) as u64;
            if offset_bytes + needed_bytes > file_bytes {
                return Err(LoadError::Truncated {
                    path: self.path.clone(),
                    tensor: name,
                    offset_bytes,
                    needed_bytes,
                    file_bytes,
                });
            }
        }
        Ok(())
    }

    pub fn has(&self, stored: &str) -> bool {
        self.metadata.info(stored).is_some()
    }

    /// Where the tensor called `stored` in the file is.
    pub fn locate(&self, stored: &str, shape: &[usize]) -> Result<Place<'_>, LoadError> {
        let info = self
            .metadata
            .info(stored)
            .ok_or_else(|| LoadError::MissingTensor {
                tensor: stored.to_owned(),
                expected: shape.to_vec(),
            })?;
        check_shape(stored, &info.shape, shape)?;
        let dtype = match info.dtype {
            Dtype::F32 => GgmlDType::F32,
            Dtype::F16 => GgmlDType::F16,
            Dtype::BF16 => GgmlDType::BF16,
            other => {
                return Err(LoadError::TensorType {
                    tensor: stored.to_owned(),
                    found: format!("{other:?}"),
                    expected: "F32, F16, BF16".to_owned(),
                });
            }
        };
        let (start, end) = info.data_offsets;
        let (start, end) = (start as u64, end as u64);
        Ok(Place {
            path: &self.path,
            range: self.data_offset_bytes + start..self.data_offset_bytes + end,
            dtype,
        })
    }
}

/// The tokens with a role, and the chat template.
pub struct SpecialTokens {
    pub chat_template: Option<String>,
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
}

impl SpecialTokens {
    /// From `tokenizer_config.json` and `generation_config.json` where they exist, and `config.json`.
    pub fn read(folder: &Path, config_json: &str) -> Result<Self, LoadError> {
        let config = parse(config_json, &folder.join("config.json"))?;
        let generation = read_optional(&folder.join("generation_config.json"))?;
        let tokenizer = read_optional(&folder.join("tokenizer_config.json"))?;
        let mut eos_token_ids = [&generation["eos_token_id"], &config["eos_token_id"]]
            .into_iter()
            .flat_map(ids)
            .collect::<Vec<_>>();
        let token_id = named_ids(folder)?;
        eos_token_ids.extend(token_text(&tokenizer["eos_token"]).and_then(&token_id));
        eos_token_ids.sort_unstable();
        eos_token_ids.dedup();
        let add_bos = tokenizer["add_bos_token"].as_bool().unwrap_or(false);
        let bos = token_text(&tokenizer["bos_token"]).and_then(&token_id);
        Ok(Self {
            chat_template: chat_template(folder, &tokenizer)?,
            bos_token_id: bos
                .or_else(|| ids(&config["bos_token_id"]).next())
                .filter(|_| add_bos),
            eos_token_ids,
        })
    }
}

/// The newer place is a file of its own; the older one a key, sometimes with several named templates.
fn chat_template(folder: &Path, tokenizer: &Value) -> Result<Option<String>, LoadError> {
    let path = folder.join("chat_template.jinja");
    if path.is_file() {
        return std::fs::read_to_string(&path)
            .map(Some)
            .map_err(LoadError::io(&path));
    }
    let template = &tokenizer["chat_template"];
    let named = template.as_array().and_then(|templates| {
        templates
            .iter()
            .find(|template| template["name"] == "default")
            .map(|template| &template["template"])
    });
    Ok(named.unwrap_or(template).as_str().map(str::to_owned))
}

/// Looks token texts up in the folder's tokenizer; a folder without one knows none.
fn named_ids(folder: &Path) -> Result<impl Fn(&str) -> Option<u32>, LoadError> {
    let path = folder.join("tokenizer.json");
    let mut known = HashMap::new();
    if path.is_file() {
        let json = std::fs::read(&path).map_err(LoadError::io(&path))?;
        known = Tokenizer::from_json(&json)?.special_tokens();
    }
    Ok(move |token: &str| known.get(token).copied())
}

/// A token is a string, or an object with its text under `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// One id, or a list of them.
fn ids(value: &Value) -> impl Iterator<Item = u32> {
    let one = value.as_u64();
    let several = value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_u64);
    one.into_iter()
        .chain(several)
        .filter_map(|id| u32::try_from(id).ok())
}

fn parse(json: &str, path: &Path) -> Result<Value, LoadError> {
    serde_json::from_str(json).map_err(|e| LoadError::Damaged {
        path: path.to_owned(),
        reason: e.to_string(),
    })
}

fn read_optional(path: &Path) -> Result<Value, LoadError> {
    match std::fs::read_to_string(path) {
        Ok(json) => parse(&json, path),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(e) => Err(LoadError::io(path)(e)),
    }
}
