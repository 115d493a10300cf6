//! A short soak: everything that devices, networks and administrators do to a tail, for half a minute.

use anyhow::Result;
use e2e::load::soak::rules::{self, Extent};
use e2e::load::soak::{self, Settings};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_is_back_at_nothing_after_everything_that_can_happen_to_it() -> Result<()> {
    let outcome = soak::run(Settings::short(1), &mut |said| println!("{said}")).await?;
    println!("{}", outcome.markdown());
    assert_eq!(rules::broken(&outcome, Extent::Short), [""; 0]);
    let answers = outcome
        .counts
        .events
        .get("whole answers, every token as known");
    assert!(answers.is_some_and(|answers| *answers >= 20), "{answers:?}");
    Ok(())
}
