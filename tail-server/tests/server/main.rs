//! The server in process, on a port of its own, with a tiny model and real clients.

#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it in tests; their helpers are tests too"
)]

mod auth;
mod bounds;
mod drafts;
mod drain;
mod eviction;
mod free_running;
mod half_open;
mod http;
mod last_words;
mod load;
mod on_device;
mod prefixes;
mod rebalance;
mod refusals;
mod rig;
mod security;
mod sessions;
mod tenants;
mod tls;
