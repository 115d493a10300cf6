//! Why a reconciliation has to be tried again, when, and in which words it is told.

use std::time::Duration;

use kube::runtime::finalizer;

use crate::apply::ApplyError;

const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(120);

/// Why a reconciliation has to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// An owned object could not be brought into its desired state.
    #[error("owned objects: {0}")]
    Apply(#[source] ApplyError),
    /// The status could not be written.
    #[error("writing the status")]
    Status(#[source] kube::Error),
    /// The pods of a deleted SplitModel are still there.
    #[error("waiting for the pods to drain")]
    Draining,
    /// Adding or removing the finalizer failed, or what happens between the two.
    #[error("finalizer: {0}")]
    Finalizer(#[source] Box<finalizer::Error<ReconcileError>>),
}

impl ReconcileError {
    /// Whether nothing is wrong but that pods take their time.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        match self {
            Self::Draining => true,
            Self::Finalizer(error) => {
                matches!(&**error, finalizer::Error::CleanupFailed(Self::Draining))
            }
            _ => false,
        }
    }
}

/// Doubles with each failure. `jitter`, `[0, 1)`, spreads those that failed together over the second half.
pub(crate) fn backoff(failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let full = FIRST_BACKOFF
        .saturating_mul(1 << doublings)
        .min(MAX_BACKOFF);
    full.mul_f64(0.5 + jitter / 2.0)
}

/// An error and what caused it, without what is said twice.
pub(crate) fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = match error.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) => status.message.clone(),
            _ => error.to_string(),
        };
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_bound_and_is_spread() {
        assert_eq!(backoff(1, 0.0), Duration::from_millis(250));
        assert_eq!(backoff(2, 0.0), Duration::from_millis(500));
        assert_eq!(backoff(3, 0.0), Duration::from_secs(1));
        assert_eq!(backoff(u32::MAX, 0.0), MAX_BACKOFF / 2);
        assert!(backoff(1, 0.999) < FIRST_BACKOFF);
    }
}
