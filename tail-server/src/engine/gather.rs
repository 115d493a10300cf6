//! Whether a step should wait a moment for sessions that are about to come. Pure: time comes in.
//!
//! Where a step costs about the same for one row and for many, sessions that answer a little apart fall into
//! groups that take turns: each waits for the steps of the others, and the device reads its weights once for each
//! group. Waiting for those who are about to come makes one group of them.
//!
//! With `n` rows ready and `k` sessions that come within `w`, let a step of `r` rows take `a + b·r`. Without waiting,
//! the `n` are done after `a + b·n`, and the `k`, whose step begins then, `a + b·k` later. With waiting, all are done
//! after `w + a + b·(n + k)`. Over all of them that is sooner by
//!
//! ```text
//! k·(a − b·n) − (n + k)·w
//! ```
//!
//! in sum. A session sends its next row some time after it has its answer, so answers that come sooner are more rows
//! a second: the step waits while that is positive for some `k`. Where rows cost more than the step itself, as on a
//! CPU, `a − b·n` is not positive for any `n` and nobody waits.
//!
//! Who is about to come: a session that has an answer, until twice its usual deviation after its usual time. Both
//! are running estimates, as TCP has them for its round trips.
//!
//! Invariants, each with a test:
//! - A step is put off by at most half of what it will take, however many sessions come meanwhile or do not.
//! - Nobody is waited for before there is something to go by: measured steps of two sizes, and a return of the
//!   session.

mod costs;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use self::costs::StepCosts;
use super::SessionId;

/// A session that comes back later than this has made a pause, which says nothing about the next time.
const LONGEST_RETURN: Duration = Duration::from_secs(1);

/// Sessions that one decision looks at.
const MOST_EXPECTED: usize = 256;

/// How much a return moves the usual time, and its deviation.
const MEAN_WEIGHT: f64 = 1.0 / 8.0;
const DEVIATION_WEIGHT: f64 = 1.0 / 4.0;

/// Deviations after the usual time for which a session is waited for.
const PATIENCE_DEVIATIONS: f64 = 2.0;

/// The share of a step's time by which it may be put off.
const LONGEST_WAIT: f64 = 0.5;

/// Knows what steps cost and when sessions come back.
#[derive(Debug, Default)]
pub(super) struct Gather {
    costs: StepCosts,
    /// Of the sessions that have had an answer and are open.
    habits: BTreeMap<SessionId, Habit>,
    /// Who is about to come, and until when; the soonest first.
    expected: BTreeSet<(Instant, SessionId)>,
    /// Since when the next step could have begun, where it waits.
    since: Option<Instant>,
}

/// When a session comes back.
#[derive(Debug, Default)]
struct Habit {
    /// Its answer that it has not come back from.
    answered: Option<Instant>,
    /// Its entry in `expected`.
    due: Option<Instant>,
    usual: Option<Usual>,
}

/// From an answer to the next row, in seconds.
#[derive(Clone, Copy, Debug)]
struct Usual {
    mean_s: f64,
    deviation_s: f64,
}

impl Gather {
    /// A session was answered at `at` and has nothing more in the engine.
    pub(super) fn answered(&mut self, session: SessionId, at: Instant) {
        let habit = self.habits.entry(session).or_default();
        if let Some(due) = habit.due.take() {
            self.expected.remove(&(due, session));
        }
        habit.answered = Some(at);
        habit.due = habit.usual.map(|usual| at + usual.patience());
        if let Some(due) = habit.due {
            self.expected.insert((due, session));
        }
    }

    /// A session's next rows came at `at`. `is_pause`: they are no answer to the last token, such as another prompt.
    pub(super) fn came(&mut self, session: SessionId, at: Instant, is_pause: bool) {
        let Some(habit) = self.habits.get_mut(&session) else {
            return;
        };
        if let Some(due) = habit.due.take() {
            self.expected.remove(&(due, session));
        }
        let Some(answered) = habit.answered.take() else {
            return;
        };
        let took = at.saturating_duration_since(answered);
        if !is_pause && took <= LONGEST_RETURN {
            habit.usual = Some(Usual::after(habit.usual, took.as_secs_f64()));
        }
    }

    /// A session has ended.
    pub(super) fn left(&mut self, session: SessionId) {
        if let Some(Habit { due: Some(due), .. }) = self.habits.remove(&session) {
            self.expected.remove(&(due, session));
        }
    }

    /// Nobody will come any more.
    pub(super) fn all_left(&mut self) {
        self.habits.clear();
        self.expected.clear();
    }

    /// A step begins at `now`; returns by how long it was put off, where it was.
    pub(super) fn began(&mut self, now: Instant) -> Option<Duration> {
        self.since
            .take()
            .map(|since| now.saturating_duration_since(since))
    }

    /// No step could begin: those who were ready have gone.
    pub(super) fn nothing_is_ready(&mut self) {
        self.since = None;
    }

    /// A step of `rows` decode rows alone, at least one, took so long.
    pub(super) fn ended(&mut self, rows: usize, took: Duration) {
        self.costs.record(rows, took.as_secs_f64());
    }

    /// Until when a step of `rows` decode rows, at least one, should wait unless somebody comes before; `None`: it
    /// should begin. To be asked again when somebody came, and then. `most_rows`: of one step.
    pub(super) fn wait_until(
        &mut self,
        rows: usize,
        most_rows: usize,
        now: Instant,
    ) -> Option<Instant> {
        self.give_up_overdue(now);
        let line = self.costs.line()?;
        let longest = Duration::from_secs_f64(line.seconds(rows) * LONGEST_WAIT);
        let bound = self.since.unwrap_or(now) + longest;
        if bound <= now {
            return None;
        }
        let ready = as_f64(rows);
        let (mut until, mut most_gained_s) = (None, 0.0);
        let places = most_rows.saturating_sub(rows).min(MOST_EXPECTED);
        for (index, &(due, _)) in self.expected.iter().take(places).enumerate() {
            if due > bound {
                break;
            }
            let coming = as_f64(index + 1);
            let wait_s = due.saturating_duration_since(now).as_secs_f64();
            let gained_s = coming * (line.fixed_s - line.row_s * ready) - (ready + coming) * wait_s;
            if gained_s > most_gained_s {
                (until, most_gained_s) = (Some(due), gained_s);
            }
        }
        if until.is_some() {
            self.since.get_or_insert(now);
        }
        until
    }

    /// Those who did not come in time are slow this time: nobody knows when they will come.
    fn give_up_overdue(&mut self, now: Instant) {
        while let Some(&(due, session)) = self.expected.first()
            && due <= now
        {
            self.expected.pop_first();
            if let Some(habit) = self.habits.get_mut(&session) {
                habit.due = None;
            }
        }
    }
}

impl Usual {
    fn after(before: Option<Self>, took_s: f64) -> Self {
        let Some(Self {
            mean_s,
            deviation_s,
        }) = before
        else {
            return Self {
                mean_s: took_s,
                deviation_s: took_s / 2.0,
            };
        };
        let off_s = took_s - mean_s;
        Self {
            mean_s: mean_s + MEAN_WEIGHT * off_s,
            deviation_s: deviation_s + DEVIATION_WEIGHT * (off_s.abs() - deviation_s),
        }
    }

    /// For how long after its answer a session is waited for. Bounded by [`LONGEST_RETURN`] and its deviations.
    fn patience(self) -> Duration {
        Duration::from_secs_f64(self.mean_s + PATIENCE_DEVIATIONS * self.deviation_s)
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "rows and sessions are far below 2^52"
)]
fn as_f64(count: usize) -> f64 {
    count as f64
}
