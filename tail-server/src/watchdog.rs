//! Whether the engine gets on. A device that hangs answers nothing and fails nothing: the tail looks healthy
//! while its sessions wait. So the engine's thread notes when work came and when a step finished, and `/readyz`
//! fails while a step is overdue.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::metrics::Metrics;

/// What the engine's thread has noted last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pulse {
    /// Waits for commands.
    Idle,
    /// Has work. `since`: when it came, or when the last step finished.
    Working { since: Instant },
    /// Has ended.
    Ended,
}

/// Why the engine cannot be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StallError {
    #[error(
        "the engine has work and has finished no step for {} s; --stall-seconds allows {} s",
        waited.as_secs(), bound.as_secs()
    )]
    Overdue { waited: Duration, bound: Duration },
    #[error("the engine's thread has ended")]
    Ended,
}

/// The decision. `bound`: how long a step may take; `None`: as long as it likes.
pub(crate) fn check(pulse: Pulse, bound: Option<Duration>, now: Instant) -> Result<(), StallError> {
    match (pulse, bound) {
        (Pulse::Ended, _) => Err(StallError::Ended),
        (Pulse::Working { since }, Some(bound)) => {
            let waited = now.saturating_duration_since(since);
            if waited > bound {
                return Err(StallError::Overdue { waited, bound });
            }
            Ok(())
        }
        (Pulse::Idle | Pulse::Working { .. }, _) => Ok(()),
    }
}

/// Holds the pulse between the engine, which notes it, and those who ask.
pub(crate) struct Watchdog {
    bound: Option<Duration>,
    pulse: Mutex<Pulse>,
    /// What was said last, so that the log tells a change once.
    is_stalled: AtomicBool,
    metrics: Arc<Metrics>,
}

impl Watchdog {
    pub(crate) fn new(bound: Option<Duration>, metrics: Arc<Metrics>) -> Self {
        Self {
            bound,
            pulse: Mutex::new(Pulse::Idle),
            is_stalled: AtomicBool::new(false),
            metrics,
        }
    }

    pub(crate) fn note(&self, pulse: Pulse) {
        *self.pulse.lock().unwrap_or_else(PoisonError::into_inner) = pulse;
    }

    /// Notes the thread's end when it is dropped.
    pub(crate) fn until_dropped(&self) -> NoteEnd<'_> {
        NoteEnd { watchdog: self }
    }

    /// Decides, shows it in the metrics, and logs it where it is new.
    pub(crate) fn check(&self, now: Instant) -> Result<(), StallError> {
        let pulse = *self.pulse.lock().unwrap_or_else(PoisonError::into_inner);
        let checked = check(pulse, self.bound, now);
        self.metrics.engine_stalled.set(i64::from(checked.is_err()));
        let was_stalled = self.is_stalled.swap(checked.is_err(), Ordering::Relaxed);
        match checked {
            Err(error) if !was_stalled => tracing::error!(%error, "the tail is not ready"),
            Ok(()) if was_stalled => tracing::info!("the engine gets on again"),
            _ => {}
        }
        checked
    }
}

/// Notes [`Pulse::Ended`] when it is dropped.
pub(crate) struct NoteEnd<'a> {
    watchdog: &'a Watchdog,
}

impl Drop for NoteEnd<'_> {
    fn drop(&mut self) {
        self.watchdog.note(Pulse::Ended);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(30);

    #[test]
    fn a_step_is_overdue_only_beyond_the_bound() {
        let since = Instant::now();
        let pulse = Pulse::Working { since };
        assert_eq!(check(pulse, Some(BOUND), since + BOUND), Ok(()));
        let waited = BOUND + Duration::from_millis(1);
        assert_eq!(
            check(pulse, Some(BOUND), since + waited),
            Err(StallError::Overdue {
                waited,
                bound: BOUND
            })
        );
    }

    #[test]
    fn an_engine_without_work_is_never_overdue_and_without_a_bound_none_is() {
        let (since, a_day) = (Instant::now(), Duration::from_secs(86_400));
        assert_eq!(check(Pulse::Idle, Some(BOUND), since + a_day), Ok(()));
        assert_eq!(check(Pulse::Working { since }, None, since + a_day), Ok(()));
    }

    #[test]
    fn an_engine_that_has_ended_is_told_whatever_the_bound() {
        for bound in [None, Some(BOUND)] {
            assert_eq!(
                check(Pulse::Ended, bound, Instant::now()),
                Err(StallError::Ended)
            );
        }
    }

    #[test]
    fn the_gauge_follows_and_a_finished_step_recovers() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let watchdog = Watchdog::new(Some(BOUND), Arc::clone(&metrics));
        let since = Instant::now();
        let late = since + 2 * BOUND;
        watchdog.note(Pulse::Working { since });
        let error = watchdog.check(late).unwrap_err().to_string();
        assert!(
            error.contains("60 s") && error.contains("--stall-seconds"),
            "{error}"
        );
        assert_eq!(metrics.engine_stalled.get(), 1);
        watchdog.note(Pulse::Working { since: late });
        assert_eq!(watchdog.check(late), Ok(()));
        assert_eq!(metrics.engine_stalled.get(), 0);
    }

    #[test]
    fn the_end_of_the_thread_is_noted_also_in_a_panic() {
        let watchdog = Watchdog::new(None, Arc::new(Metrics::new().unwrap()));
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _end = watchdog.until_dropped();
            panic!("outside a step");
        }));
        assert!(ended.is_err());
        assert_eq!(watchdog.check(Instant::now()), Err(StallError::Ended));
    }
}
