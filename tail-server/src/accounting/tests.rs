use proptest::prelude::*;

use super::*;

fn rows(entry_layer: usize, rows: usize, sampled: usize) -> Rows {
    Rows {
        entry_layer,
        rows,
        sampled,
        phase: if sampled == 0 {
            Phase::Prefill
        } else {
            Phase::Decode
        },
    }
}

fn draft(entry_layer: usize, rows: usize) -> Rows {
    Rows {
        entry_layer,
        rows,
        sampled: rows,
        phase: Phase::Verify,
    }
}

#[test]
fn a_session_alone_is_charged_the_whole_step() {
    let times = StepTimes {
        assemble_ns: 7,
        first_layer: 2,
        layers_ns: vec![100, 110],
        finish_ns: 50,
        logits_ns: 0,
    };
    let shares = attribute(&times, &[rows(2, 3, 1)]);
    assert_eq!(shares[0].compute_ns, times.busy_ns());
}

#[test]
fn layers_that_nobody_ran_are_valued_at_the_mean_of_those_that_ran_all() {
    let times = StepTimes {
        assemble_ns: 0,
        first_layer: 10,
        layers_ns: vec![100, 300],
        finish_ns: 5,
        logits_ns: 0,
    };
    let shares = attribute(&times, &[rows(10, 1, 1)]);
    assert_eq!(shares[0].saved_ns, 10 * 200);
}

#[test]
fn a_session_that_enters_at_layer_0_saves_nothing() {
    let times = StepTimes {
        assemble_ns: 0,
        first_layer: 0,
        layers_ns: vec![60, 60, 100, 100],
        finish_ns: 0,
        logits_ns: 0,
    };
    let shares = attribute(&times, &[rows(0, 1, 0), rows(2, 1, 0)]);
    assert_eq!(
        shares[0],
        Share {
            compute_ns: 60 + 60 + 50 + 50,
            saved_ns: 0
        }
    );
    assert_eq!(
        shares[1],
        Share {
            compute_ns: 50 + 50,
            saved_ns: 40 + 40
        }
    );
}

#[test]
fn a_layer_slower_with_part_of_the_batch_saves_nothing_instead_of_less() {
    let times = StepTimes {
        assemble_ns: 0,
        first_layer: 0,
        layers_ns: vec![150, 100],
        finish_ns: 0,
        logits_ns: 0,
    };
    let shares = attribute(&times, &[rows(0, 1, 0), rows(1, 1, 0)]);
    assert_eq!(shares[1].saved_ns, 0);
}

#[test]
fn the_lm_head_is_paid_by_those_who_sampled() {
    let times = StepTimes {
        assemble_ns: 0,
        first_layer: 0,
        layers_ns: vec![0],
        finish_ns: 90,
        logits_ns: 0,
    };
    let shares = attribute(&times, &[rows(0, 64, 0), rows(0, 1, 1), rows(0, 1, 1)]);
    assert_eq!(
        shares
            .iter()
            .map(|share| share.compute_ns)
            .collect::<Vec<_>>(),
        [0, 45, 45]
    );
}

#[test]
fn a_draft_pays_for_all_its_rows_also_at_the_end() {
    let times = StepTimes {
        assemble_ns: 50,
        first_layer: 2,
        layers_ns: vec![100],
        finish_ns: 200,
        logits_ns: 0,
    };
    let shares = attribute(&times, &[rows(2, 1, 1), draft(2, 3), rows(2, 1, 0)]);
    assert_eq!(
        shares
            .iter()
            .map(|share| share.compute_ns)
            .collect::<Vec<_>>(),
        [10 + 20 + 50, 30 + 60 + 150, 10 + 20]
    );
}

#[test]
fn rejected_guesses_save_nothing_in_the_head_layers() {
    let share = Share {
        compute_ns: 90,
        saved_ns: 1001,
    };
    let saved_ns = [0, 1, 2, 3].map(|accepted| share.without_rejected(4, accepted).saved_ns);
    assert_eq!(saved_ns, [250, 500, 750, 1001]);
    assert_eq!(share.without_rejected(4, 0).compute_ns, 90);
}

#[test]
fn terms_have_names_of_their_own() {
    let names = Term::ALL.map(Term::name);
    assert_eq!(
        names,
        [
            "head_layers",
            "on_device_answers",
            "accepted_drafts",
            "reused_prefixes"
        ]
    );
}

fn any_step() -> impl Strategy<Value = (StepTimes, Vec<Rows>)> {
    let ns = 0_u64..10_000_000_000;
    let layers = prop::collection::vec(ns.clone(), 1..40);
    (layers, ns.clone(), ns, 0_usize..20).prop_flat_map(
        |(layers_ns, assemble_ns, finish_ns, first_layer)| {
            let last_layer = first_layer + layers_ns.len() - 1;
            let session = (first_layer..=last_layer, 1_usize..500, 0_usize..3);
            prop::collection::vec(session, 1..30).prop_map(move |sessions| {
                let mut batch: Vec<Rows> = sessions
                    .into_iter()
                    .map(|(entry, count, kind)| match kind {
                        2 => draft(entry, count),
                        sampled => rows(entry, count, sampled),
                    })
                    .collect();
                batch.sort_by_key(|rows| rows.entry_layer);
                // A step starts at the lowest entry layer of its batch.
                batch[0].entry_layer = first_layer;
                (
                    StepTimes {
                        assemble_ns,
                        first_layer,
                        layers_ns: layers_ns.clone(),
                        finish_ns,
                        logits_ns: 0,
                    },
                    batch,
                )
            })
        },
    )
}

proptest! {
    #[test]
    fn what_is_attributed_is_exactly_the_busy_time((times, batch) in any_step()) {
        let shares = attribute(&times, &batch);
        prop_assert_eq!(shares.iter().map(|share| share.compute_ns).sum::<u64>(), times.busy_ns());
    }

    #[test]
    fn saved_is_the_counterfactual_minus_the_used_time_where_no_layer_is_clamped((times, batch) in any_step()) {
        let highest = batch.iter().map(|rows| rows.entry_layer).max().unwrap_or(0);
        let (partly, full) = times.layers_ns.split_at(highest - times.first_layer);
        let full_ns = full.iter().sum::<u64>() / full.len() as u64;
        let saved: u64 = attribute(&times, &batch).iter().map(|share| share.saved_ns).sum();
        let expected = times.first_layer as u64 * full_ns
            + partly.iter().map(|&ns| full_ns.saturating_sub(ns)).sum::<u64>();
        prop_assert_eq!(saved, expected);
    }

    #[test]
    fn a_split_loses_nothing(total in any::<u64>(), weights in prop::collection::vec(0_usize..1000, 0..50)) {
        let parts = split(total, &weights);
        let expected = if weights.iter().all(|&weight| weight == 0) { 0 } else { total };
        prop_assert_eq!(parts.iter().sum::<u64>(), expected);
    }
}
