//! When to try again after a lost session. Pure: time comes in as an argument.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::{Duration, Instant};

use crate::config::ReconnectPolicy;
use crate::error::TailError;

/// Tails of another model that are met in a row before it is the only one. Where a quarter of the tails still serve the
/// device's model, one answer in a hundred misses them all.
const MAX_OTHER_MODELS: u32 = 16;

/// The failures since the last sign of life.
#[derive(Debug)]
pub(crate) struct Recovery {
    policy: ReconnectPolicy,
    lost_at: Option<Instant>,
    attempts: u32,
    /// Attempts that count: not those that met a model which is being started.
    failures: u32,
    /// Attempts that met a tail of another model.
    other_models: u32,
    /// Somebody has said that the model is being started.
    is_starting: bool,
}

impl Recovery {
    pub(crate) fn new(policy: ReconnectPolicy) -> Self {
        Self {
            policy,
            lost_at: None,
            attempts: 0,
            failures: 0,
            other_models: 0,
            is_starting: false,
        }
    }

    /// A token came: the next failure is a new one.
    pub(crate) fn alive(&mut self) {
        *self = Self::new(self.policy);
    }

    /// How long to wait before the next attempt, or the error that ends the generation.
    ///
    /// The first attempt comes at once, because behind a Service another pod is most likely ready; then the
    /// wait doubles. `jitter` in `[0, 1)` spreads devices that lost the same tail. A tail's own retry-after
    /// is waited out in any case.
    pub(crate) fn wait_after(
        &mut self,
        error: TailError,
        now: Instant,
        jitter: f64,
    ) -> Result<Duration, TailError> {
        let is_other_model = error.is_of_another_model();
        if !is_other_model && !error.is_of_the_way() {
            return Err(error);
        }
        let elapsed = now.saturating_duration_since(*self.lost_at.get_or_insert(now));
        if matches!(error, TailError::Starting { .. }) {
            self.is_starting = true;
            self.failures = 0;
        }
        if is_other_model {
            self.other_models += 1;
            // The error itself says more than how often it came.
            if self.other_models > MAX_OTHER_MODELS.min(self.policy.max_attempts) {
                return Err(error);
            }
            self.failures = self.failures.min(1);
        }
        let backoff = match self.failures {
            0 => Duration::ZERO,
            doublings => {
                let factor = 2_u32.saturating_pow((doublings - 1).min(16));
                let full = self
                    .policy
                    .min_backoff
                    .saturating_mul(factor)
                    .min(self.policy.max_backoff);
                full.mul_f64(0.5 + jitter / 2.0)
            }
        };
        let wait = backoff.max(error.retry_after().unwrap_or_default());
        let deadline = if self.is_starting {
            self.policy.starting_deadline
        } else {
            self.policy.deadline
        };
        if self.failures >= self.policy.max_attempts || elapsed + wait > deadline {
            if self.policy.max_attempts == 0 {
                return Err(error);
            }
            return Err(TailError::GaveUp {
                attempts: self.attempts,
                elapsed,
                last: Box::new(error),
            });
        }
        self.attempts += 1;
        self.failures += 1;
        tracing::warn!(%error, attempt = self.attempts, wait_ms = wait.as_millis(), "the session is lost");
        Ok(wait)
    }
}

/// In `[0, 1)`. The standard library's hash keys are the only randomness that this crate needs.
pub(crate) fn jitter() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 32;
    f64::from(u32::try_from(bits).unwrap_or_default()) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use headway_wire::message::RefusalCode;

    use super::*;
    use crate::error::Refused;

    fn policy() -> ReconnectPolicy {
        ReconnectPolicy {
            max_attempts: 4,
            min_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_millis(300),
            deadline: Duration::from_secs(10),
            starting_deadline: Duration::from_secs(100),
        }
    }

    fn starting() -> TailError {
        TailError::Starting {
            url: String::new(),
            message: String::new(),
            retry_after: Duration::from_secs(2),
        }
    }

    fn refused(code: RefusalCode, retry_after_ms: Option<u64>) -> TailError {
        let retry_after = retry_after_ms.map(Duration::from_millis);
        TailError::Refused(Refused {
            code,
            message: String::new(),
            retry_after,
        })
    }

    #[test]
    fn waits_double_up_to_a_bound_and_attempts_end() {
        let (mut recovery, now) = (Recovery::new(policy()), Instant::now());
        // The largest jitter is just below 1; 1 gives round numbers.
        let waits: Vec<u128> = (0..4)
            .map(|_| {
                recovery
                    .wait_after(TailError::Closed, now, 1.0)
                    .unwrap()
                    .as_millis()
            })
            .collect();
        assert_eq!(waits, [0, 100, 200, 300]);
        let error = recovery
            .wait_after(TailError::Closed, now, 1.0)
            .unwrap_err();
        assert!(
            matches!(error, TailError::GaveUp { attempts: 4, .. }),
            "{error}"
        );
    }

    #[test]
    fn the_tails_retry_after_is_waited_out() {
        let mut recovery = Recovery::new(policy());
        let error = refused(RefusalCode::NoCapacity, Some(2500));
        assert_eq!(
            recovery
                .wait_after(error, Instant::now(), 0.0)
                .unwrap()
                .as_millis(),
            2500
        );
    }

    #[test]
    fn a_wait_beyond_the_deadline_is_not_begun() {
        let mut recovery = Recovery::new(policy());
        let error = refused(RefusalCode::NoCapacity, Some(11_000));
        let error = recovery.wait_after(error, Instant::now(), 0.0).unwrap_err();
        assert!(
            matches!(error, TailError::GaveUp { attempts: 0, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_model_that_is_being_started_is_waited_for_longer_and_without_counting() {
        let (mut recovery, lost) = (Recovery::new(policy()), Instant::now());
        recovery.wait_after(TailError::Closed, lost, 0.0).unwrap();
        for second in (0..=98).step_by(2) {
            let now = lost + Duration::from_secs(second);
            let wait = recovery.wait_after(starting(), now, 0.0).unwrap();
            assert_eq!(wait.as_secs(), 2);
        }
        // A connection that breaks while the first tail takes over is no reason to give up.
        let now = lost + Duration::from_secs(98);
        recovery.wait_after(TailError::Closed, now, 0.0).unwrap();
        let now = lost + Duration::from_secs(99);
        let error = recovery.wait_after(starting(), now, 0.0).unwrap_err();
        assert!(matches!(error, TailError::GaveUp { .. }), "{error}");
    }

    #[test]
    fn a_404_is_final_only_from_a_tail_itself() {
        let answered = |status: u16, body: &str| {
            let response = tokio_tungstenite::tungstenite::http::Response::builder()
                .status(status)
                .body(Some(body.as_bytes().to_vec()))
                .unwrap();
            TailError::Socket {
                url: String::new(),
                source: Box::new(tokio_tungstenite::tungstenite::Error::Http(Box::new(
                    response,
                ))),
            }
        };
        for status in [404, 429, 502, 503, 504] {
            assert!(answered(status, "no backend").is_recoverable(), "{status}");
        }
        let own = r#"{"error":{"code":"not_found","message":"no"}}"#;
        assert!(!answered(404, own).is_recoverable());
        assert!(!answered(403, "forbidden").is_recoverable());
    }

    #[test]
    fn tails_of_another_model_are_passed_over_quickly_and_not_for_ever() {
        let policy = ReconnectPolicy {
            max_attempts: 20,
            ..policy()
        };
        let (mut recovery, now) = (Recovery::new(policy), Instant::now());
        let other_model = || refused(RefusalCode::DigestMismatch, None);
        for attempt in 0..MAX_OTHER_MODELS {
            let wait = recovery.wait_after(other_model(), now, 1.0).unwrap();
            assert_eq!(wait.as_millis(), if attempt == 0 { 0 } else { 100 });
        }
        let error = recovery.wait_after(other_model(), now, 0.0).unwrap_err();
        assert!(matches!(error, TailError::Refused(_)), "{error}");

        let never = ReconnectPolicy {
            max_attempts: 0,
            ..policy
        };
        let mut recovery = Recovery::new(never);
        let error = recovery.wait_after(other_model(), now, 0.0).unwrap_err();
        assert!(matches!(error, TailError::Refused(_)), "{error}");
    }

    #[test]
    fn a_refused_device_is_not_tried_again_and_ended_credentials_once_more() {
        let mut recovery = Recovery::new(policy());
        let ended = refused(RefusalCode::Unauthenticated, None);
        assert_eq!(
            recovery.wait_after(ended, Instant::now(), 0.0).unwrap(),
            Duration::ZERO
        );
        let refused = TailError::Unauthenticated {
            url: String::new(),
            message: String::new(),
        };
        let error = recovery
            .wait_after(refused, Instant::now(), 0.0)
            .unwrap_err();
        assert!(
            matches!(error, TailError::Unauthenticated { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_limit_that_ends_is_waited_for_and_one_that_stays_is_not() {
        let mut recovery = Recovery::new(policy());
        let for_now = refused(RefusalCode::OverLimit, Some(3000));
        let wait = recovery.wait_after(for_now, Instant::now(), 0.0).unwrap();
        assert_eq!(wait.as_secs(), 3);
        let for_ever = refused(RefusalCode::OverLimit, None);
        assert!(recovery.wait_after(for_ever, Instant::now(), 0.0).is_err());
    }

    #[test]
    fn a_token_in_between_resets_the_count() {
        let (mut recovery, now) = (Recovery::new(policy()), Instant::now());
        for _ in 0..10 {
            assert_eq!(
                recovery.wait_after(TailError::Closed, now, 0.0).unwrap(),
                Duration::ZERO
            );
            recovery.alive();
        }
    }
}
