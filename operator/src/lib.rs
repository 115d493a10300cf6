//! The operator: keeps, for every `SplitModel`, the tail-server pods it asks for.
//!
//! The modules are the steps of one reconciliation, in this order:
//!
//! | step | module | gives |
//! |---|---|---|
//! | what users declare | [`crd`] | `SplitModel` |
//! | what the cluster holds | [`watches`], [`observed`] | `Observed` |
//! | does it make sense | [`validate`] | `ValidSpec` |
//! | what there should be | [`build`] | `Desired` |
//! | writing the difference | [`drift`], [`apply`] | `Applied` |
//! | what is said about it | [`conditions`], [`status`] | `status`, events |
//!
//! [`controller`] strings them together. Beside it, in [`rounds`], [`scrape`] asks tails, [`savings`] adds up what they
//! count, and [`autoscale`] decides how many there are. `validate`, `build`, `drift` and `conditions` are pure: no
//! client, and time comes in as an argument.
//!
//! **Invariant: an unchanged cluster causes no writes.** What would be written is compared with what the watches
//! have seen; a reconciliation without a difference sends nothing, not even a read.
//!
//! **Deliberately absent:** any knowledge of models, of the wire protocol, and of Secrets' contents: the operator
//! names Secrets in pods and may not read them.

pub mod apply;
pub mod autoscale;
pub mod build;
pub mod conditions;
pub mod config;
pub mod controller;
pub mod crd;
pub mod delivery;
pub mod drift;
pub mod error;
pub mod http;
pub mod kinds;
pub mod leader;
pub mod metrics;
pub mod names;
pub mod observed;
pub mod pod_problem;
pub mod rollout;
pub mod rounds;
pub mod run;
pub mod savings;
pub mod scrape;
pub mod status;
pub mod telemetry;
pub mod validate;
pub mod watches;
