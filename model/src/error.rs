//! Errors of loading and of running a model.

use std::path::PathBuf;

use crate::kv_cache::store::BlockId;
use crate::layer_range::LayerRange;

/// Why a model, or a part of it, could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file or folder could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// What was being read.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The files are not those of the identity that was given.
    #[error("{what} has digest {got}; the model's identity says {expected}")]
    Identity {
        /// A part's name, or everything that is not in the weights.
        what: String,
        /// In the identity.
        expected: String,
        /// Of the files.
        got: String,
    },
    /// The path holds nothing this crate can load.
    #[error(
        "{path} is not a model: expected a .gguf file, a folder with config.json and *.safetensors, or a folder of .gguf parts"
    )]
    NotAModel {
        /// The path given.
        path: PathBuf,
    },
    /// The file's own structure is damaged.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A tensor's bytes end before they should.
    #[error(
        "{path} is truncated: tensor {tensor} needs {needed_bytes} bytes at offset {offset_bytes}, the file has {file_bytes} bytes"
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The tensor that is cut off.
        tensor: String,
        /// Where its data starts.
        offset_bytes: u64,
        /// How many bytes it has.
        needed_bytes: u64,
        /// How many bytes the file has.
        file_bytes: u64,
    },
    /// The model is of a family this crate does not run.
    #[error(
        "architecture {found:?} is not supported; supported are llama, mistral, qwen2 and qwen3"
    )]
    Architecture {
        /// The architecture the file names.
        found: String,
    },
    /// A configuration value is missing or makes no sense.
    #[error("configuration: {key} is {found}; expected {expected}")]
    Config {
        /// The key in the file.
        key: String,
        /// What was found there.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A tensor the model needs is not there.
    #[error("tensor {tensor} is missing; expected shape {expected:?}")]
    MissingTensor {
        /// The tensor's name in the file.
        tensor: String,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor {tensor} has shape {found:?}; expected {expected:?}")]
    TensorShape {
        /// The tensor's name in the file.
        tensor: String,
        /// Its shape there.
        found: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A tensor is stored in a type this crate does not compute with.
    #[error("tensor {tensor} has type {found}; expected one of {expected}")]
    TensorType {
        /// The tensor's name in the file.
        tensor: String,
        /// Its type there.
        found: String,
        /// The types that would be right.
        expected: String,
    },
    /// The layer range does not fit the model.
    #[error("layers {range} were asked for, but the model has layers [0, {num_layers})")]
    LayerRange {
        /// The range asked for.
        range: LayerRange,
        /// How many layers there are.
        num_layers: usize,
    },
    /// The tokenizer is missing or damaged.
    #[error("tokenizer: {reason}")]
    Tokenizer {
        /// What is wrong.
        reason: String,
    },
    /// The early exit belongs to something else.
    #[error("{path} is an early exit with {what} {found}; expected {expected}")]
    Exit {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: &'static str,
        /// What the file says.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// The weights cannot be stored in the quantisation asked for.
    #[error("tensor {tensor} cannot be quantised to {quantization}: {reason}")]
    Quantization {
        /// The tensor.
        tensor: String,
        /// The quantisation asked for.
        quantization: String,
        /// Why it does not work.
        reason: String,
    },
}

impl LoadError {
    /// Binds an I/O error to the path it happened on.
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// Why a forward pass was refused. Nothing has been computed or written when one is returned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// A token id outside the vocabulary.
    #[error("token id {token_id} is outside the vocabulary of {vocab_size}")]
    TokenId {
        /// The id given.
        token_id: u32,
        /// Number of ids the model knows.
        vocab_size: usize,
    },
    /// Hidden states of the wrong length.
    #[error("hidden states hold {found} values; expected {rows} rows of {columns}")]
    Shape {
        /// Number of values given.
        found: usize,
        /// Rows expected.
        rows: usize,
        /// Columns expected: the hidden size.
        columns: usize,
    },
    /// The KV cache has no room for the rows.
    #[error("the KV cache holds {len} of {capacity} positions; {rows} more do not fit")]
    CacheFull {
        /// Positions held.
        len: usize,
        /// Positions it can hold.
        capacity: usize,
        /// Positions that were to be added.
        rows: usize,
    },
    /// A table names a block that the store does not have.
    #[error("KV block {} is not in the store of {num_blocks} blocks", block.0)]
    Block {
        /// The block named.
        block: BlockId,
        /// Number of blocks in the store.
        num_blocks: usize,
    },
    /// A layer that is not loaded, or not in the cache.
    #[error("layer {layer} is not loaded; loaded are {loaded}")]
    Layer {
        /// The layer asked for.
        layer: usize,
        /// The layers at hand.
        loaded: LayerRange,
    },
}
