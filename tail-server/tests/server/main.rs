//! The server in process, on a port of its own, with a tiny model and real clients.

#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it in tests; their helpers are tests too"
)]

mod auth;
mod bounds;
mod drain;
mod http;
mod last_words;
mod refusals;
mod rig;
mod sessions;
mod tenants;
mod tls;
