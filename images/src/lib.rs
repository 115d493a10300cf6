//! Container images of the operator and of tail-server, put together without a container engine: [`recipe`] says
//! what is in them, [`tree`] holds it, [`archive`] writes it down. The same programs give the same bytes.

pub mod archive;
pub mod libraries;
pub mod recipe;
pub mod tree;
