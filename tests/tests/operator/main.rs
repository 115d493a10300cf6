//! The operator, as a process with the chart's permissions, against a real control plane.
//!
//! Scenarios of one phase run at the same time and share an operator, where they do not bring their own; each
//! has a namespace of its own. At the end of a phase every `SplitModel` is deleted, and nothing may be left. The
//! last phase compares what the operator may do with what the audit log says it did.
//!
//! `cargo test --release -p e2e --test operator -- drift` runs the scenarios with `drift` in their names.

use std::process::ExitCode;

mod autoscaling;
mod crash;
mod drift;
mod events;
mod foreign;
mod handover;
mod invalid_manifests;
mod leadership;
mod lifecycle;
mod objects;
mod observability;
mod outage;
mod paused;
mod permissions;
mod quiet;
mod rollout;
mod runner;
mod savings;
mod specs;
mod stage;
mod stored;
mod update_rows;
mod updates;
mod wait;
mod world;

use runner::{Phase, Trial, trial};

fn main() -> ExitCode {
    runner::run(vec![
        Phase::with_operator(of_one_operator()),
        Phase::with_operator(vec![trial(
            "stored_specs_against_the_rules_are_reported_once",
            stored::against_the_rules,
        )]),
        Phase::bare(vec![trial(
            "stored_specs_that_cannot_be_read_do_not_stop_the_others",
            stored::unreadable,
        )]),
        Phase::with_operator(vec![trial(
            "an_api_server_that_restarts_loses_nothing",
            outage::nothing_is_lost,
        )]),
        Phase::bare(vec![trial(
            "a_kill_at_any_write_changes_nothing_in_the_end",
            crash::at_any_write,
        )]),
        Phase::bare(vec![trial(
            "traces_reach_a_collector",
            observability::traces,
        )]),
        Phase::bare(vec![trial(
            "savings_count_every_token_once_under_kills",
            savings::exactly_once,
        )]),
        Phase::bare(vec![trial(
            "load_adds_tails_and_the_emptiest_go_also_across_a_restart",
            autoscaling::up_and_down,
        )]),
        Phase::bare(vec![trial(
            "a_model_sleeps_is_answered_for_and_wakes",
            autoscaling::sleep_and_wake,
        )]),
        Phase::bare(vec![trial(
            "one_of_two_operators_leads",
            leadership::one_leads,
        )]),
        Phase::with_operator(vec![trial(
            "fifty_ready_models_cause_no_writes",
            quiet::no_writes,
        )]),
        Phase::looking_back(vec![trial(
            "every_permission_is_used_and_none_is_missing",
            permissions::used,
        )]),
    ])
}

/// Scenarios that need nothing but an operator, each in a namespace of its own.
fn of_one_operator() -> Vec<Trial> {
    vec![
        trial(
            "creating_gives_every_owned_object_and_a_ready_status",
            lifecycle::created,
        ),
        trial("kubectl_lists_and_explains", lifecycle::kubectl),
        trial("the_scale_subresource_scales", lifecycle::scaled),
        trial("deleting_leaves_nothing", lifecycle::deleted),
        trial(
            "deleting_with_orphans_leaves_nothing",
            lifecycle::deleted_with_orphans,
        ),
        trial(
            "every_field_of_the_spec_has_an_effect",
            updates::every_field,
        ),
        trial("drift_of_every_kind_is_undone", drift::undone),
        trial(
            "fields_of_others_are_left_alone",
            foreign::fields_are_left_alone,
        ),
        trial(
            "objects_of_others_are_not_taken_over",
            foreign::objects_are_not_taken_over,
        ),
        trial("pods_stay_while_keda_takes_over", handover::pods_stay),
        trial("paused_means_hands_off", paused::hands_off),
        trial(
            "a_status_is_never_ahead_of_the_rollout",
            rollout::status_is_not_ahead,
        ),
        trial(
            "a_rollout_that_fails_gives_way_to_what_served",
            rollout::failing_stops,
        ),
        trial(
            "transitions_are_events_and_repeats_are_not",
            events::transitions,
        ),
        trial("health_and_metrics_answer", observability::answers),
        trial(
            "invalid_manifests_are_refused_with_the_rule",
            invalid_manifests::refused,
        ),
        trial(
            "invalid_changes_are_refused_with_the_rule",
            invalid_manifests::changes_refused,
        ),
    ]
}
