use std::collections::BTreeSet;

use headway_wire::message::RefusalCode;

use super::*;
use crate::error::code_name;

/// `docs/tail-metrics.md`.
const PAGE: &str = include_str!("../../../docs/tail-metrics.md");

/// What [`crate::loaded_model::LoadModelError::reason`] can be.
const DELIVERY_FAILURES: [&str; 12] = [
    "Unauthorized",
    "CredentialsUnusable",
    "NotFound",
    "PathMissing",
    "DigestMismatch",
    "IdentityUnusable",
    "NoSpace",
    "RateLimited",
    "SourceUnreachable",
    "InvalidSource",
    "CacheUnusable",
    "LoadFailed",
];

/// A row of the page's table.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    name: String,
    kind: String,
    labels: Vec<String>,
}

/// The cells of each row of the table of metrics.
fn documented() -> Vec<[&'static str; 5]> {
    PAGE.lines()
        .filter(|line| line.starts_with("| `headway_tail_"))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            cells.try_into().expect("five columns")
        })
        .collect()
}

/// `` `label`: `value`, `value`; `label`: … `` as pairs of a label and its values.
fn label_values(cell: &str) -> Vec<(String, Vec<String>)> {
    let word = |text: &str| text.trim().trim_matches('`').to_owned();
    cell.split(';')
        .filter_map(|label| label.split_once(':'))
        .map(|(label, values)| (word(label), values.split(',').map(word).collect()))
        .collect()
}

#[test]
fn every_metric_is_in_the_documented_table_with_its_type_and_labels_and_no_other_is() {
    let metrics = Metrics::new().unwrap();
    let live: BTreeSet<Row> = metrics
        .collectors()
        .iter()
        .map(|collector| {
            let desc = collector.desc()[0];
            let kind = collector.collect()[0].get_field_type();
            Row {
                name: desc.fq_name.clone(),
                kind: format!("{kind:?}").to_lowercase(),
                labels: desc.variable_labels.clone(),
            }
        })
        .collect();
    let rows = documented();
    let documented: BTreeSet<Row> = rows
        .iter()
        .map(|[name, kind, labels, _, _]| Row {
            name: name.trim_matches('`').to_owned(),
            kind: (*kind).to_owned(),
            labels: label_values(labels)
                .into_iter()
                .map(|(label, _)| label)
                .collect(),
        })
        .collect();
    assert_eq!(live, documented);
    assert_eq!(rows.len(), documented.len(), "a metric has two rows");
}

#[test]
fn the_documented_label_values_are_all_there_are() {
    let codes = (1..).map_while(|code| RefusalCode::try_from(code).ok());
    let strings = |values: &[&str]| -> Vec<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    };
    let expected: BTreeMap<String, Vec<String>> = [
        ("phase", strings(&Phase::ALL.map(Phase::name))),
        ("term", strings(&Term::ALL.map(Term::name))),
        (
            "code",
            codes.map(|code| code_name(code).to_owned()).collect(),
        ),
        ("reason", strings(&DELIVERY_FAILURES)),
        ("digest", strings(&["sha256:…"])),
        ("commit", strings(&["…"])),
        ("what", strings(&Reloaded::ALL.map(Reloaded::name))),
        ("result", strings(&RELOAD_RESULTS)),
        ("verdict", strings(&DRAFT_VERDICTS)),
        ("state", strings(&BLOCK_STATES)),
        ("part", strings(&ANSWER_PARTS)),
        ("route", strings(&Route::ALL.map(Route::name))),
    ]
    .map(|(label, values)| (label.to_owned(), values))
    .into();
    let documented: BTreeMap<String, Vec<String>> = documented()
        .iter()
        .flat_map(|[_, _, labels, _, _]| label_values(labels))
        .collect();
    assert_eq!(documented, expected);
}

#[test]
fn units_are_those_of_the_names() {
    for [name, _, _, unit, meaning] in documented() {
        let name = name.trim_matches('`').trim_end_matches("_total");
        for suffix in ["seconds", "bytes"] {
            assert_eq!(name.ends_with(suffix), unit == suffix, "{name}: {unit}");
        }
        assert!(!meaning.is_empty(), "{name} has no meaning");
    }
}

#[test]
fn a_token_is_measured_once_as_first_or_as_later() {
    let metrics = Metrics::new().unwrap();
    metrics.record_token_time(TokenTime::First(Duration::from_millis(500)));
    metrics.record_token_time(TokenTime::Later {
        took: Duration::from_millis(60),
        tokens: 3,
    });
    let text = metrics.render().unwrap();
    for line in [
        "headway_tail_time_to_first_token_seconds_sum 0.5",
        "headway_tail_time_to_first_token_seconds_count 1",
        "headway_tail_time_per_output_token_seconds_sum 0.06",
        "headway_tail_time_per_output_token_seconds_count 3",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn attributed_time_equals_busy_time_in_the_text() {
    let metrics = Metrics::new().unwrap();
    let shares = [
        Share {
            compute_ns: 1_500_000_000,
            saved_ns: 250_000_000,
        },
        Share {
            compute_ns: 500_000_000,
            saved_ns: 0,
        },
    ];
    metrics.record_step(2_000_000_000, &shares);
    metrics.record_tokens(Phase::Decode, 3);
    metrics.record_refusal("over_limit");
    let text = metrics.render().unwrap();
    for line in [
        "headway_tail_busy_seconds_total 2",
        "headway_tail_compute_seconds_total 2",
        "headway_tail_saved_seconds_total{term=\"head_layers\"} 0.25",
        "headway_tail_tokens_total{phase=\"decode\"} 3",
        "headway_tail_refusals_total{code=\"over_limit\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
