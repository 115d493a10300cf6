//! What a soak has to say, as Markdown and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

pub use super::quiet::Quiet;
pub use super::tally::Counts;
use crate::load::samples::slope;
use crate::load::scrape::Scrape;

/// Counters of the tail that are shown, by the beginning of their names.
const SHOWN: [&str; 13] = [
    "headway_tail_steps_total",
    "headway_tail_tokens_total",
    "headway_tail_sessions_opened_total",
    "headway_tail_sessions_resumed_total",
    "headway_tail_sessions_evicted_total",
    "headway_tail_refusals_total",
    "headway_tail_engine_faults_total",
    "headway_tail_reused_positions_total",
    "headway_tail_draft_tokens_total",
    "headway_tail_reloads_total",
    "headway_tail_busy_seconds_total",
    "headway_tail_compute_seconds_total",
    "headway_tail_received_bytes_total",
];

/// How a soak went.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// What the acts were drawn from.
    pub seed: u64,
    /// All of it, quiet phases included.
    pub seconds: f64,
    /// One after each phase.
    pub quiets: Vec<Quiet>,
    /// What the devices have counted.
    pub counts: Counts,
    /// What the tail has counted.
    pub tail: BTreeMap<String, f64>,
    /// Processor time.
    pub cores: Cores,
    /// Lines of the tail's log that speak of one.
    pub panics: Vec<String>,
}

/// Processor time by the second, on average.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cores {
    /// Of the tail that is looked at.
    pub tail: f64,
    /// Of the process that plays the devices.
    pub generator: f64,
}

/// The tail's own counters.
pub(super) fn counters(scrape: &Scrape) -> BTreeMap<String, f64> {
    SHOWN
        .into_iter()
        .flat_map(|prefix| scrape.with_prefix(prefix))
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

impl Outcome {
    /// Growth of the resident memory over the quiet phases, in KiB a minute.
    #[must_use]
    pub fn growth_kib_per_minute(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "kibibytes of one process")]
        let points = self
            .quiets
            .iter()
            .map(|quiet| (quiet.at_seconds / 60.0, quiet.resident_kib as f64));
        slope(&points.collect::<Vec<_>>())
    }

    /// Tables.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "Seed {}, {:.0} s, {} quiet phases. Tail {:.2} cores, devices {:.2} cores on average.\n\n",
            self.seed,
            self.seconds,
            self.quiets.len(),
            self.cores.tail,
            self.cores.generator
        );
        self.quiets_table(&mut text);
        let _ = writeln!(
            text,
            "\nThe line through the resident sizes rises by {:.1} KiB a minute.\n",
            self.growth_kib_per_minute()
        );
        table(&mut text, "done", &self.counts.acts);
        table(&mut text, "came of it", &self.counts.events);
        table(&mut text, "refusals that came", &self.counts.refusals);
        let faults = [
            ("wrong tokens", self.counts.mismatches),
            ("stuck sessions", self.counts.stuck),
            ("other faults", self.counts.broken),
        ];
        table(&mut text, "faults", &BTreeMap::from(faults));
        table(&mut text, "counted by the tail", &self.tail);
        text
    }

    fn quiets_table(&self, text: &mut String) {
        text.push_str(
            "| quiet at, s | gauges at 0 after, s | kept at first | none kept after, s | sessions | blocks held, promised, kept \
             | RSS, MiB | descriptors | threads | busy, s | attributed, s |\n\
             |---|---|---|---|---|---|---|---|---|---|---|\n",
        );
        for quiet in &self.quiets {
            #[expect(clippy::cast_precision_loss, reason = "kibibytes of one process")]
            let mib = quiet.resident_kib as f64 / 1024.0;
            let _ = writeln!(
                text,
                "| {:.0} | {:.1} | {} | {:.1} | {} | {}, {}, {} | {mib:.1} | {} | {} | {:.2} | {:.2} |",
                quiet.at_seconds,
                quiet.gauges_took_seconds,
                quiet.most_kept,
                quiet.kept_took_seconds,
                quiet.sessions,
                quiet.kv_held,
                quiet.kv_promised,
                quiet.kv_kept,
                quiet.file_descriptors,
                quiet.threads,
                quiet.busy_seconds,
                quiet.compute_seconds,
            );
        }
    }
}

fn table<K: std::fmt::Display, V: std::fmt::Display>(
    text: &mut String,
    title: &str,
    rows: &BTreeMap<K, V>,
) {
    let _ = writeln!(text, "| {title} | |\n|---|---|");
    for (name, value) in rows {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    text.push('\n');
}
