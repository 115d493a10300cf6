use proptest::prelude::*;

use super::*;
use crate::accounting::attribute;
use crate::batcher::Phase;

fn rows(phase: Phase, entry_layer: usize, rows: usize, sampled: usize) -> Rows {
    Rows {
        entry_layer,
        rows,
        sampled,
        phase,
    }
}

/// One row of `phase` in a model of one layer.
fn record(ledger: &mut Ledger, phase: Phase, layer_ns: u64, finish_ns: u64, sampled: usize) {
    let times = StepTimes {
        assemble_ns: 12_345,
        first_layer: 0,
        layers_ns: vec![layer_ns],
        finish_ns,
        logits_ns: 0,
    };
    ledger.record(&times, &[rows(phase, 0, 1, sampled)]);
}

/// 10 layers; a prefill row costs 3 in a layer, a decode row 20, the end 50.
fn measured() -> Ledger {
    let mut ledger = Ledger::new(10);
    record(&mut ledger, Phase::Prefill, 3, 999, 0);
    record(&mut ledger, Phase::Decode, 20, 50, 1);
    ledger
}

fn due(ledger: &mut Ledger, term: Term) -> u64 {
    let due = ledger.due();
    let of_term = due.iter().filter(|(due, _)| *due == term);
    of_term.map(|(_, ns)| ns).sum()
}

#[test]
fn an_accepted_guess_saves_a_decode_row_through_the_tail_layers_and_the_end() {
    let mut ledger = measured();
    // A row from layer 4 on: 6 · 20 + 50 = 170. Three tokens for 200.
    assert_eq!(ledger.accepted_draft(4, 2, 200), 3 * 170 - 200);
}

#[test]
fn a_loss_is_made_good_before_anything_is_returned() {
    let mut ledger = measured();
    assert_eq!(ledger.accepted_draft(4, 0, 300), 0); // −130
    assert_eq!(ledger.accepted_draft(4, 1, 300), 0); // +40, so −90
    assert_eq!(ledger.accepted_draft(4, 2, 300), 210 - 90);
    assert_eq!(ledger.accepted_draft(4, 2, 300), 210);
}

#[test]
fn a_draft_of_which_nothing_was_accepted_never_saves() {
    let mut ledger = measured();
    for _ in 0..100 {
        // Its rows cost less than one decode row in the mean.
        assert_eq!(ledger.accepted_draft(4, 0, 100), 0);
    }
    assert_eq!(ledger.accepted_draft(4, 2, 100), 200);
}

#[test]
fn a_draft_before_the_first_decode_row_is_a_loss() {
    let mut ledger = Ledger::new(10);
    record(&mut ledger, Phase::Prefill, 3, 50, 1);
    assert_eq!(ledger.accepted_draft(4, 7, 400), 0);
    record(&mut ledger, Phase::Decode, 20, 50, 1);
    assert_eq!(ledger.accepted_draft(4, 2, 200), 0); // +310, so −90
    assert_eq!(ledger.accepted_draft(4, 2, 200), 310 - 90);
    assert_eq!(
        ledger.due(),
        [(Term::OnDeviceAnswers, 0), (Term::ReusedPrefixes, 0)]
    );
}

#[test]
fn a_reused_prefix_saves_prefill_rows_in_the_tail_layers_only() {
    let mut ledger = measured();
    assert_eq!(ledger.reused_prefix(4, 100), 100 * 6 * 3);
    assert_eq!(ledger.reused_prefix(10, 100), 0);
    assert_eq!(ledger.reused_prefix(0, 0), 0);
}

#[test]
fn an_on_device_answer_saves_what_the_whole_model_would_have_cost() {
    let mut ledger = measured();
    assert_eq!(
        ledger.on_device_answer(7, 5),
        7 * 10 * 3 + 4 * 10 * 20 + 5 * 50
    );
    assert_eq!(ledger.on_device_answer(7, 0), 7 * 10 * 3);
    assert_eq!(ledger.on_device_answer(0, 1), 50);
}

#[test]
fn what_cannot_be_valued_waits_for_its_cost_and_is_returned_once() {
    let mut ledger = Ledger::new(10);
    assert_eq!(ledger.on_device_answer(4, 3), 0);
    assert_eq!(ledger.on_device_answer(3, 2), 0);
    assert_eq!(ledger.reused_prefix(4, 100), 0);
    assert_eq!(due(&mut ledger, Term::OnDeviceAnswers), 0);

    record(&mut ledger, Phase::Prefill, 3, 999, 0);
    assert_eq!(
        ledger.due(),
        [
            (Term::OnDeviceAnswers, 7 * 10 * 3),
            (Term::ReusedPrefixes, 100 * 6 * 3)
        ]
    );
    assert_eq!(
        ledger.due(),
        [(Term::OnDeviceAnswers, 0), (Term::ReusedPrefixes, 0)]
    );

    record(&mut ledger, Phase::Decode, 20, 50, 1);
    // What waits may also come with the next answer's value.
    assert_eq!(
        ledger.on_device_answer(1, 1),
        (2 + 1) * 10 * 20 + (3 + 2) * 50 + 10 * 3 + 50
    );
    assert_eq!(
        ledger.due(),
        [(Term::OnDeviceAnswers, 0), (Term::ReusedPrefixes, 0)]
    );
}

#[test]
fn enormous_counts_saturate() {
    let mut ledger = Ledger::new(100);
    assert_eq!(ledger.on_device_answer(u64::MAX, u64::MAX), 0);
    assert_eq!(ledger.on_device_answer(u64::MAX, u64::MAX), 0);
    assert_eq!(ledger.reused_prefix(0, usize::MAX), 0);
    record(&mut ledger, Phase::Prefill, u64::MAX / 4, 1, 1);
    record(&mut ledger, Phase::Decode, u64::MAX / 4, u64::MAX / 4, 1);
    assert_eq!(
        ledger.due(),
        [
            (Term::OnDeviceAnswers, u64::MAX),
            (Term::ReusedPrefixes, u64::MAX)
        ]
    );
    for _ in 0..10 {
        ledger.accepted_draft(0, 0, u64::MAX);
    }
    // What one answer cannot hold is left for the next ones.
    assert_eq!(ledger.accepted_draft(0, usize::MAX, u64::MAX), u64::MAX);
    assert_eq!(ledger.accepted_draft(0, 0, 0), u64::MAX);
}

#[test]
fn a_million_million_tokens_are_valued_exactly() {
    let mut ledger = measured();
    let tokens = 1_000_000_000_000;
    assert_eq!(
        ledger.on_device_answer(tokens, tokens + 1),
        tokens * 10 * 3 + tokens * 10 * 20 + (tokens + 1) * 50
    );
}

#[test]
fn drafts_that_cost_as_much_as_the_rows_they_replace_save_nothing() {
    let mut ledger = Ledger::new(1);
    let decode = StepTimes {
        assemble_ns: 0,
        first_layer: 0,
        layers_ns: vec![100],
        finish_ns: 20,
        logits_ns: 0,
    };
    ledger.record(&decode, &[rows(Phase::Decode, 0, 1, 1)]);
    // Three rows that cost thrice as much as one, all accepted.
    let verify = StepTimes {
        assemble_ns: 0,
        first_layer: 0,
        layers_ns: vec![300],
        finish_ns: 60,
        logits_ns: 0,
    };
    let batch = [rows(Phase::Verify, 0, 3, 3)];
    let compute_ns = attribute(&verify, &batch)[0].compute_ns;
    ledger.record(&verify, &batch);
    assert_eq!(ledger.accepted_draft(0, 2, compute_ns), 0);
}

#[derive(Clone, Debug)]
enum Event {
    Decode {
        layer_ns: u64,
        finish_ns: u64,
    },
    Draft {
        entry_layer: usize,
        accepted: usize,
        compute_ns: u64,
    },
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0_u64..2_000, 0_u64..2_000).prop_map(|(layer_ns, finish_ns)| Event::Decode {
            layer_ns,
            finish_ns
        }),
        (0_usize..12, 0_usize..8, 0_u64..60_000).prop_map(|(entry_layer, accepted, compute_ns)| {
            Event::Draft {
                entry_layer,
                accepted,
                compute_ns,
            }
        }),
    ]
}

proptest! {
    #[test]
    fn drafts_return_the_running_maximum_of_their_net_saving(
        events in prop::collection::vec(any_event(), 0..200),
    ) {
        let mut ledger = Ledger::new(10);
        let (mut net_ns, mut highest_ns, mut returned_ns) = (0_i128, 0_i128, 0_i128);
        for event in events {
            match event {
                Event::Decode { layer_ns, finish_ns } => {
                    record(&mut ledger, Phase::Decode, layer_ns, finish_ns, 1);
                }
                Event::Draft { entry_layer, accepted, compute_ns } => {
                    let row_ns = ledger.decode_row_ns(entry_layer).unwrap_or(0).min(compute_ns);
                    net_ns += (accepted as i128 + 1) * i128::from(row_ns) - i128::from(compute_ns);
                    highest_ns = highest_ns.max(net_ns);
                    returned_ns += i128::from(ledger.accepted_draft(entry_layer, accepted, compute_ns));
                }
            }
            prop_assert_eq!(returned_ns, highest_ns);
        }
    }

    #[test]
    fn waiting_changes_when_a_value_is_returned_and_not_how_much(
        answers in prop::collection::vec((0_u64..1_000_000, 0_u64..1_000_000), 1..20),
        prefixes in prop::collection::vec((0_usize..12, 0_usize..100_000), 1..20),
    ) {
        let mut known = measured();
        let mut waiting = Ledger::new(10);
        let (mut answers_ns, mut prefixes_ns) = (0, 0);
        for &(prompt_tokens, output_tokens) in &answers {
            answers_ns += known.on_device_answer(prompt_tokens, output_tokens);
            prop_assert_eq!(waiting.on_device_answer(prompt_tokens, output_tokens), 0);
        }
        for &(entry_layer, positions) in &prefixes {
            prefixes_ns += known.reused_prefix(entry_layer, positions);
            prop_assert_eq!(waiting.reused_prefix(entry_layer, positions), 0);
        }
        record(&mut waiting, Phase::Prefill, 3, 999, 0);
        record(&mut waiting, Phase::Decode, 20, 50, 1);
        prop_assert_eq!(
            waiting.due(),
            [(Term::OnDeviceAnswers, answers_ns), (Term::ReusedPrefixes, prefixes_ns)]
        );
    }
}
