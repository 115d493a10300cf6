//! A decoder-only language model of the Llama family, cut by layer ranges.
//!
//! On the inference path this crate is everything between token ids and token ids except the wire:
//! embedding → layers → final norm → lm_head → sampler. The device loads `[0, k)`, the tail `[k, L)`,
//! an unsplit model `[0, L)`; all three go through [`decoder::Decoder`].
//!
//! # Invariant: a row's arithmetic does not depend on the batch
//! Every kernel of this crate gives a row (one position of one session) the same bits whether it is
//! computed alone, in a prompt chunk, or beside rows of other sessions. Decode equals prefill, a
//! replayed session equals the first one, and a batch equals its members. This is why matrix products
//! are our own kernels ([`linear`]) and not a GEMM that picks its summation order by shape.
//!
//! Deliberately absent: the network, and any knowledge of sessions.

pub mod artifact;
pub mod attention;
pub mod bf16_product;
pub mod block;
pub mod chat_template;
pub mod config;
pub mod decoder;
pub mod drafting;
pub mod early_exit;
pub mod error;
pub mod kv_cache;
pub mod layer_range;
pub mod linear;
pub mod manifest;
pub mod norm;
pub mod quantization;
pub mod rope;
pub mod sampler;
pub mod simd;
pub mod tail_load;
pub mod threads;
pub mod tokenizer;
pub mod weights;

pub use config::ModelConfig;
pub use decoder::Decoder;
pub use early_exit::EarlyExit;
pub use error::{ForwardError, LoadError};
pub use kv_cache::KvCache;
pub use kv_cache::store::{BLOCK_POSITIONS, BlockId, KvStore};
pub use kv_cache::table::KvTable;
pub use layer_range::LayerRange;
pub use quantization::Quantization;
pub use tokenizer::Tokenizer;
