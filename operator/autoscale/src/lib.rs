//! How many tails there should be: load over time → a number of pods, and why.
//!
//! | question | module | gives |
//! |---|---|---|
//! | what is aimed at | [`policy`] | `Policy` |
//! | how busy tails are | [`load`] | `Sample` |
//! | how many there should be | [`autoscaler`] | `Decision` |
//! | which of them go | [`leaving`] | the ones with the fewest sessions |
//! | who has too many sessions | [`spread`] | how many each should have |
//!
//! All of it is pure: time comes in as an argument, and nothing here knows of Kubernetes. The operator and the
//! simulation of `cargo xtask bench autoscale` call the same functions.
//!
//! The two windows are Knative's idea
//! (<https://knative.dev/docs/serving/autoscaling/kpa-specific/>): load is averaged over a stable window, and a short
//! window in which twice the present pods would be needed sets off a panic, in which no pod goes.

pub mod autoscaler;
pub mod leaving;
pub mod load;
pub mod policy;
pub mod reason;
pub mod spread;
mod window;
