//! The messages of `proto/headway.proto`, as `prost` generates them. Their documentation is the comments of
//! that file.
//!
//! Nothing here is checked: a value from a peer has passed [`crate::frame`] first, a value built here is
//! the builder's responsibility.

pub use generated::*;

mod generated {
    #![allow(
        missing_docs,
        reason = "generated; the schema's comments are its documentation"
    )]

    include!(concat!(env!("OUT_DIR"), "/headway.wire.v1.rs"));
}
