//! Savings: what tails count → totals in a SplitModel's status, each second once.
//!
//! | step | module | gives |
//! |---|---|---|
//! | a tail's answer, or its last words | [`counters`] | `Reading` |
//! | what is known until it is written | [`books`] | what to fold, and when to write |
//! | highest reading of each run, and totals | [`ledger`] | `Ledger` |
//! | what is said of them | [`report`] | `status.savings`, a condition |
//!
//! These are pure. [`crate::scrape`] asks tails, [`shelf`] hears what the watch of pods says, and [`rounds`] strings all
//! of it together. `docs/savings.md` says how figures come about and what is not in them.

pub mod books;
pub mod counters;
pub mod ledger;
pub mod report;
pub mod rounds;
pub mod shelf;

#[cfg(test)]
mod tests;
