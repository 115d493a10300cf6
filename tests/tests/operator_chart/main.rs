//! The Helm chart, rendered by the real helm and installed into a real control plane.
//!
//! Fake nodes run its pods: these become ready without running, so what the operator does is not tested here.

mod chart;
mod examples;
mod lifecycle;
mod monitoring;
mod permissions;
mod restricted;
mod tail_arguments;
mod templates;
mod upgrade;
mod values;
