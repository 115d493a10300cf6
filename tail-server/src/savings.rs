//! What the device's time was used for and what it was saved, counted as it happens: the [`Ledger`] values, the
//! metrics show.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use headway_model::tail_load::RowCosts;

use crate::accounting::{Ledger, Rows, Share, StepTimes, Term, attribute};
use crate::batcher::Phase;
use crate::metrics::Metrics;

/// The ledger of one tail. Shared by the engine and by those who report answers of devices.
pub(crate) struct Savings {
    ledger: Mutex<Ledger>,
    metrics: Arc<Metrics>,
}

impl Savings {
    /// `num_layers`: of the whole model.
    pub(crate) fn new(num_layers: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            ledger: Mutex::new(Ledger::new(num_layers)),
            metrics,
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Attributes a step's time to its sessions. `accepted`: of each session, how many draft tokens are right.
    /// The shares are in the order of `batch`.
    pub(crate) fn count_step(
        &self,
        times: &StepTimes,
        batch: &[Rows],
        accepted: &[usize],
    ) -> Vec<Share> {
        let mut shares = attribute(times, batch);
        for ((share, rows), &accepted) in shares.iter_mut().zip(batch).zip(accepted) {
            if rows.phase == Phase::Verify {
                *share = share.without_rejected(rows.rows, accepted);
            }
        }
        self.metrics.record_step(times.busy_ns(), &shares);
        let layers_ns = times.layers_ns.iter().sum();
        self.metrics.record_parts(layers_ns, times.logits_ns);
        let mut ledger = self.lock();
        ledger.record(times, batch);
        let due = ledger.due();
        drop(ledger);
        for (term, ns) in due {
            self.metrics.record_saved(term, ns);
        }
        shares
    }

    /// How long a step waited for its first engine step.
    pub(crate) fn count_queue_delay(&self, waited: Duration) {
        let seconds = waited.as_secs_f64();
        self.metrics.queue_delay_seconds.observe(seconds);
        self.lock().record_queue(waited);
    }

    /// What rows cost in recent steps.
    pub(crate) fn row_costs(&self) -> RowCosts {
        self.lock().row_costs()
    }

    /// A step that came to nothing: its time is charged to its sessions, and saved nothing.
    pub(crate) fn count_failed_step(&self, busy_ns: u64) {
        let charged = Share {
            compute_ns: busy_ns,
            saved_ns: 0,
        };
        self.metrics.record_step(busy_ns, &[charged]);
        self.metrics.engine_faults.inc();
    }

    /// A verified draft of `guessed` tokens, whose step was attributed `compute_ns`. Returns what it saved.
    pub(crate) fn count_draft(
        &self,
        entry_layer: usize,
        guessed: usize,
        accepted: usize,
        compute_ns: u64,
    ) -> u64 {
        self.metrics.record_draft(guessed, accepted);
        let saved_ns = self
            .lock()
            .accepted_draft(entry_layer, accepted, compute_ns);
        self.metrics.record_saved(Term::AcceptedDrafts, saved_ns);
        saved_ns
    }

    /// A verified draft of the tail's own, of `guessed` tokens: it saves what nobody is credited with.
    pub(crate) fn count_own_draft(&self, guessed: usize, accepted: usize) {
        self.metrics.record_own_draft(guessed, accepted);
    }

    /// Positions that a new session found computed.
    pub(crate) fn count_reused_prefix(&self, entry_layer: usize, positions: usize) {
        if positions == 0 {
            return;
        }
        self.metrics.reused_positions.inc_by(positions as u64);
        let saved_ns = self.lock().reused_prefix(entry_layer, positions);
        self.metrics.record_saved(Term::ReusedPrefixes, saved_ns);
    }

    /// Tokens that a device answered without the tail.
    pub(crate) fn count_on_device_answer(&self, prompt_tokens: u64, output_tokens: u64) {
        self.metrics.record_on_device(prompt_tokens, output_tokens);
        let saved_ns = self.lock().on_device_answer(prompt_tokens, output_tokens);
        self.metrics.record_saved(Term::OnDeviceAnswers, saved_ns);
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
