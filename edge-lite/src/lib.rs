//! The device's side of Headway: runs the head of a language model here and its tail on a tail server.
//!
//! On the inference path this crate is everything before the wire and the text after it:
//! prompt → token ids ([`vocabulary`]) → head layers ([`head_layers`]) → codec and replay buffer (`rows`)
//! → WebSocket (`connection`) → … → token id → text and stop strings (`answer`) → [`Event`]. Guesses of the next
//! tokens ([`drafting`]) go along, several for one round trip.
//!
//! ```no_run
//! # async fn example() -> Result<(), edge_lite::Error> {
//! use edge_lite::{Client, ClientConfig, GenerateRequest, Prompt};
//!
//! let client = Client::connect("ws://127.0.0.1:8080", ClientConfig::default()).await?;
//! let request = GenerateRequest::new(Prompt::Raw("The sea is".to_owned()));
//! let report = client.generate(request).await?.finish().await?;
//! println!("{} ({} layers here)", report.text, report.split_layer);
//! # Ok(())
//! # }
//! ```
//!
//! With a model here that can answer in place of the tail, a [`Router`] chooses between both, for each request and between
//! tokens: [`router`]; [`calibrate`] finds out when a smaller model is good enough.
//!
//! # Invariants
//! - The tail's KV cache is only a cache: what this side holds (token ids, its own KV cache, the encoded
//!   activations) rebuilds a session on any tail, and the stream goes on exactly as it would have.
//! - No forward pass runs on a thread of the async runtime.
//! - Of a request that is `local_only`, nothing leaves this device.
//! - Nothing is loaded whose digest was not checked in this process.
//!
//! - Nothing lossy is used that was not asked for by name.
//!
//! Beside the path: what this device can do ([`profile`]), what the way to the tail is like ([`link`]), and what to run
//! here ([`planner`]).
//!
//! Deliberately absent: Kubernetes.

/// The examples there are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

mod answer;
mod artifact_cache;
pub mod calibrate;
pub mod client;
pub mod config;
mod connection;
pub mod credentials;
mod device_layers;
pub mod drafting;
pub mod error;
pub mod eval;
pub mod event;
pub mod generation;
pub mod head_layers;
pub mod link;
mod liveness;
pub mod local;
mod on_device;
pub mod place;
pub mod planner;
pub mod prefill;
mod prefix;
pub mod profile;
mod recovery;
mod replay;
pub mod report;
pub mod request;
pub mod router;
mod rows;
mod session;
mod stop;
mod tail_api;
mod tail_url;
#[cfg(test)]
mod test_tail;
mod tls;
pub mod train_exit;
pub mod unanswered;
mod vocabulary;

pub use client::Client;
pub use config::{ClientConfig, DraftModelFile, ReconnectPolicy};
pub use credentials::{ClientCertificate, Credentials, Secret, Token};
pub use drafting::Drafting;
pub use error::{DeviceError, Error, Refused, RequestError, TailError};
pub use event::{Event, TokenEvent};
pub use generation::Generation;
pub use link::Link;
pub use local::{LocalConfig, LocalModel};
pub use place::Place;
pub use prefill::Prefill;
pub use report::{FinishReason, Report, Route, Timings};
pub use request::{GenerateRequest, Prompt, TraceContext};
pub use router::{RouteMode, RouteReason, Router, RouterConfig, Segment};

pub use headway_model::chat_template::ChatMessage;
pub use headway_model::quantization::Quantization;
pub use headway_model::sampler::SamplingParams;
pub use headway_model::weights::WeightDtype;
pub use headway_wire::Codec;
