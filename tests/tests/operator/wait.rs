//! Waiting for what must come about.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use e2e::PATIENCE;

/// Between two looks; what is waited for takes a few of them.
const INTERVAL: Duration = Duration::from_millis(50);

/// Looks again and again until `probe` succeeds; its last error is why it did not.
pub async fn eventually<T>(what: &str, probe: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    within(PATIENCE, what, probe).await
}

/// [`eventually`] with a bound that is a claim by itself.
pub async fn within<T>(
    bound: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        match probe().await {
            Ok(value) => return Ok(value),
            Err(error) if began.elapsed() > bound => {
                return Err(error).with_context(|| format!("not within {bound:?}: {what}"));
            }
            Err(_) => tokio::time::sleep(INTERVAL).await,
        }
    }
}
