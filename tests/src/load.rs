//! Load on real tails: many devices played by one process, what they measure, and what must hold under them.
//!
//! A device here computes nothing while it is played. What it sends and what it must get back is computed
//! before ([`answers`]), by the same layers that tail and device run; so one process plays many devices beside
//! a tail on the same two cores, and every token that comes is compared with the known one.
//!
//! [`concurrency`] measures, [`soak`] breaks things for a long time and looks whether the rules hold. [`synthetic`]
//! measures a tail whose model no test machine could compute answers of: its rows are random, and no token is compared.

pub mod answers;
pub mod concurrency;
pub mod credentials;
pub mod device;
pub mod link;
pub mod replay;
pub mod samples;
pub mod scrape;
pub mod server;
pub mod soak;
pub mod synthetic;
pub mod usage;
