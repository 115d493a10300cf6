//! What must hold after a soak.

use super::mix::Act;
use super::quiet::Quiet;
use super::report::Outcome;
use super::tally::event;

/// Memory that may come after the first quiet phase, in KiB, where 10 % of it is less.
const MAX_GROWTH_KIB: u64 = 20 << 10;

/// The difference between the time that was attributed and the time in which the tail computed.
const MAX_UNATTRIBUTED: f64 = 0.01;

/// Which rules a soak is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All.
    Long,
    /// Those that do not need time: memory may still grow, and not every act may have been drawn.
    Short,
}

/// Every rule that was broken, in words.
#[must_use]
pub fn broken(outcome: &Outcome, extent: Extent) -> Vec<String> {
    let counts = &outcome.counts;
    let mut broken = Vec::new();
    let mut must = |holds: bool, what: String| {
        if !holds {
            broken.push(what);
        }
    };
    must(
        counts.mismatches == 0,
        format!("{} mismatches", counts.mismatches),
    );
    must(
        counts.stuck == 0,
        format!("{} stuck sessions", counts.stuck),
    );
    must(
        counts.broken == 0,
        format!("{} other faults: {:?}", counts.broken, counts.descriptions),
    );
    must(
        outcome.panics.is_empty(),
        format!("panics: {:?}", outcome.panics),
    );
    for name in [
        "headway_tail_engine_faults_total",
        "headway_tail_refusals_total{code=\"internal\"}",
    ] {
        let value = outcome.tail.get(name).copied().unwrap_or_default();
        must(value == 0.0, format!("{name} is {value}"));
    }
    must(!outcome.quiets.is_empty(), "no quiet phase".to_owned());
    let first = outcome.quiets.first();
    for (quiet, first) in outcome.quiets.iter().zip(std::iter::repeat(first)) {
        broken.extend(first.into_iter().flat_map(|first| not_quiet(quiet, first)));
    }
    if extent == Extent::Long {
        broken.extend(grown(&outcome.quiets));
        let done = |act: &Act| counts.acts.get(act.name()).is_some_and(|count| *count > 0);
        let missing = Act::all().filter(|act| !done(act));
        broken.extend(missing.map(|act| format!("nothing was done of: {}", act.name())));
        let happened = |name: &str| counts.events.get(name).is_some_and(|count| *count > 0);
        let missing = event::ALL.into_iter().filter(|name| !happened(name));
        broken.extend(missing.map(|name| format!("this never happened: {name}")));
    }
    broken
}

/// What a tail still holds that it should not.
fn not_quiet(quiet: &Quiet, first: &Quiet) -> Vec<String> {
    let at = format!("in the quiet phase at {:.0} s", quiet.at_seconds);
    let mut broken: Vec<String> = [
        ("sessions", quiet.sessions),
        ("queued prompts", quiet.queued_prompts),
        ("KV blocks held", quiet.kv_held),
        ("KV blocks promised", quiet.kv_promised),
        ("KV blocks kept", quiet.kv_kept),
    ]
    .into_iter()
    .filter(|(_, value)| *value != 0.0)
    .map(|(name, value)| format!("{value} {name} {at}"))
    .collect();
    if quiet.most_kept == 0.0 {
        broken.push(format!("no prefix was kept {at}"));
    }
    if quiet.kv_free != first.kv_free {
        let (free, at_first) = (quiet.kv_free, first.kv_free);
        broken.push(format!(
            "{free} KV blocks free {at}; {at_first} in the first"
        ));
    }
    let unattributed = (quiet.busy_seconds - quiet.compute_seconds).abs();
    if unattributed > quiet.busy_seconds * MAX_UNATTRIBUTED {
        let (busy, compute) = (quiet.busy_seconds, quiet.compute_seconds);
        broken.push(format!("busy {busy:.3} s, attributed {compute:.3} s {at}"));
    }
    if quiet.file_descriptors > first.file_descriptors || quiet.threads > first.threads {
        broken.push(format!(
            "{} descriptors and {} threads {at}; {} and {} in the first",
            quiet.file_descriptors, quiet.threads, first.file_descriptors, first.threads
        ));
    }
    broken
}

fn grown(quiets: &[Quiet]) -> Option<String> {
    let (first, last) = (quiets.first()?.resident_kib, quiets.last()?.resident_kib);
    let most = first + MAX_GROWTH_KIB.max(first / 10);
    (last > most).then(|| format!("{last} KiB resident at the end; {first} KiB at first"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(quiets: &[Quiet]) -> Outcome {
        Outcome {
            quiets: quiets.to_vec(),
            ..Outcome::default()
        }
    }

    fn quiet() -> Quiet {
        Quiet {
            resident_kib: 200 << 10,
            file_descriptors: 12,
            threads: 5,
            busy_seconds: 100.0,
            compute_seconds: 100.5,
            most_kept: 40.0,
            ..Quiet::default()
        }
    }

    #[test]
    fn a_tail_that_is_back_at_nothing_breaks_no_rule() {
        assert_eq!(
            broken(&outcome(&[quiet(), quiet()]), Extent::Short),
            [""; 0]
        );
    }

    #[test]
    fn what_is_left_behind_is_named() {
        let left = [
            Quiet {
                kv_held: 1.0,
                ..quiet()
            },
            Quiet {
                threads: 6,
                ..quiet()
            },
            Quiet {
                compute_seconds: 98.0,
                ..quiet()
            },
        ];
        for quiet_after in left {
            let broken = broken(&outcome(&[quiet(), quiet_after]), Extent::Short);
            assert_eq!(broken.len(), 1, "{broken:?}");
        }
    }

    #[test]
    fn memory_may_grow_a_little_and_in_a_short_soak_more() {
        let grown_by = |kib| {
            let last = Quiet {
                resident_kib: quiet().resident_kib + kib,
                ..quiet()
            };
            grown(&[quiet(), last])
        };
        assert_eq!(grown_by(MAX_GROWTH_KIB), None);
        assert!(grown_by(MAX_GROWTH_KIB + 1).is_some());
    }

    #[test]
    fn a_long_soak_that_leaves_something_out_has_not_passed() {
        let broken = broken(&outcome(&[quiet()]), Extent::Long);
        assert_eq!(broken.len(), Act::all().count() + event::ALL.len());
    }
}
