//! Guesses of the next tokens by what followed the same tokens before (prompt lookup decoding), and how many to make.
//!
//! Devices guess so what they send, and tails what they go on with by themselves. Nothing here runs a model.

pub mod length;
pub mod lookup;
