//! A range of a model's layers on an NVIDIA GPU, or on several.
//!
//! Place on the path: below the tail server's engine and the device's head layers, in the place of the model crate's
//! decoder. It takes a step's rows as token ids or hidden states, with the tables that say where the sessions' keys and
//! values lie, and gives what decides about the next tokens. Draws and sessions are the engine's.
//!
//! Our own kernels (`kernels/`) do everything but the matrix products of large steps, of f32 and of devices before
//! Hopper, which are cuBLAS's. The residual stream is f32; weights, activations and the KV memory are of the weights'
//! type; every sum is f32.
//!
//! Invariants:
//! - One stream for each GPU runs everything there, in the order of the calls, but for hidden states that come in; where
//!   there are several GPUs, a stage's stream waits for the one before. Nothing is allocated in a step, unless a step is
//!   larger than any before it in what the host has to say about it.
//! - Kernels find positions, tables and items in device memory: between steps of the same size only that memory
//!   changes.
//! - On one GPU, steps of one tail run at a time: the thread blocks of a chain wait for each other, and those of two at once
//!   could each hold what the other waits for. Programs that share a GPU take turns by themselves, unless CUDA's
//!   Multi-Process Service runs them together, with which this is not to be used.
//! - After a fault of the device nothing is started any more: every later call returns [`CudaError::Broken`].
//! - The program starts without a driver. Libraries are loaded when [`Gpu::open`] finds them.
//!
//! A row's result depends on the batch where cuBLAS chooses another algorithm for another number of rows; the other
//! kernels give a row the same bits in any batch of decoding sessions.
#![cfg(feature = "cuda")]

mod attention;
mod buffers;
mod calls;
mod calls_peer;
mod chain;
pub mod check;
mod dtype;
mod error;
mod gpu;
mod graphs;
mod incoming;
mod kernels;
mod operand;
mod packed;
mod products;
mod sampling;
mod stages;
mod stamps;
mod step;
mod tail;
mod weights;

pub use self::buffers::LOGITS_ROWS;
pub use self::dtype::Dtype;
pub use self::error::CudaError;
pub use self::gpu::{Gpu, is_present};
pub use self::incoming::TakenIn;
pub use self::sampling::{ADJUSTMENTS, RowPlan, Summaries, SummaryPlan};
pub use self::stages::{StageBytes, Stages, load_stages, share_layers};
pub use self::step::{Input, Segment};
pub use self::tail::{DETERMINISTIC_ROWS, Tail, TailSizes, Times};
pub use self::weights::TailWeights;
