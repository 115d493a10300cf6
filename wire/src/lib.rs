//! The protocol between a device and a tail: message types, activation codecs, and the checks that every
//! byte of a peer passes before anyone else sees it.
//!
//! Place on the path: `edge-lite` runs the head layers, [`codec::encode`]s their hidden states, puts them in
//! a [`message::Step`] and calls [`frame::encode_client_frame`]; `tail-server` calls
//! [`frame::decode_client_frame`] on each binary WebSocket message and [`codec::decode`]s the hidden states
//! for its engine. The way back is [`frame::encode_server_frame`] and [`frame::decode_server_frame`].
//!
//! ```text
//! hidden states ─ codec ─ message ─ frame ─► bytes ─► frame ─ limits ─ message ─ codec ─ hidden states
//! ```
//!
//! Invariants:
//! - No byte string makes a decoder panic, and none makes it take more memory than a small multiple of the
//!   bytes received: each size is checked against [`Limits`] and against the bytes that are there first.
//! - A row of hidden states encodes to the same bytes whatever rows stand beside it, so a session that is
//!   replayed in other chunks gives the tail the same numbers.
//! - What this crate encodes within the limits, it decodes.
//!
//! Deliberately absent: sockets, tensors and clocks. This crate knows neither tokio nor axum nor candle.

pub mod codec;
pub mod error;
pub mod frame;
pub mod limits;
pub mod message;
pub mod prefix;

pub use codec::Codec;
pub use error::{CodecError, FrameError};
pub use limits::Limits;
pub use prefix::{PREFIX_BLOCK_POSITIONS, PrefixDigest, PrefixHasher};

/// The version of `proto/headway.proto` that this crate speaks. A frame that opens a session with another
/// one is refused as unsupported.
pub const PROTOCOL_VERSION: u32 = 1;
