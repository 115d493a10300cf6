//! Autoscaling by the operator: what tails say → how many there are, which of them go, and where sessions are.
//!
//! | step | module | gives |
//! |---|---|---|
//! | a tail's answer | [`signals`] | sessions, KV cache, queue delay |
//! | the last answers of all pods of a SplitModel | [`fleet`] | a sample |
//! | samples over time | `headway_autoscale` | a number of pods, and why |
//! | what stands | [`scales`] | the number that [`crate::build`] builds with |
//! | acting on it | [`rounds`] | annotations of pods, events, a reconciliation |
//! | in place of a model that sleeps | [`doors`] | `starting`, and who waits |
//!
//! The number is written by the reconciliation, like everything else of a Deployment: there is one writer, and an
//! unchanged number causes no write.

use kube::ResourceExt as _;

use crate::crd::SplitModel;
use crate::crd::autoscaling::Provider;
use crate::names;

pub mod doors;
pub mod fleet;
pub mod rounds;
pub mod scales;
pub mod signals;

/// Whether the operator decides on the number of pods.
#[must_use]
pub fn is_scaled_here(splitmodel: &SplitModel) -> bool {
    let paused = splitmodel.annotations().get(names::PAUSED_ANNOTATION);
    splitmodel.spec.autoscaling.provider == Provider::Operator
        && splitmodel.metadata.deletion_timestamp.is_none()
        && paused.is_none_or(|value| value != "true")
}
