//! What was found, as Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Calibration;
use super::record::Record;

/// Agreements whose lines stand in the table.
const SHOWN: [f64; 6] = [0.75, 0.8, 0.85, 0.9, 0.95, 0.98];

pub(super) fn markdown(calibration: &Calibration) -> String {
    let Calibration {
        thresholds,
        records,
        cost,
        curve,
    } = calibration;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{} prompts; the full model takes {:.2} ms a position of a prompt and {:.2} ms a token of an answer, {:.3} s an \
         answer.\n",
        records.len(),
        cost.prompt_position_seconds * 1e3,
        cost.token_seconds * 1e3,
        curve.tail.tail_seconds
    );
    text.push_str(
        "| aimed at | agreement | answers here | tokens here | tail s/answer | of all on the tail | random, same agreement \
         | length only: tail s/answer, agreement | without the look into the answer |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let points = curve
        .routed
        .iter()
        .zip(&curve.by_length)
        .zip(&curve.before_the_answer);
    for ((routed, length), before) in
        points.filter(|((routed, _), _)| SHOWN.contains(&routed.target))
    {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {:.3} | {} | {:.3} | {:.3}, {} | {:.3}, {} |",
            percent(routed.target),
            percent(routed.agreement),
            percent(routed.device_answers),
            percent(routed.device_tokens),
            routed.tail_seconds,
            percent(routed.tail_seconds / curve.tail.tail_seconds.max(f64::MIN_POSITIVE)),
            curve.random_seconds(routed.agreement),
            length.tail_seconds,
            percent(length.agreement),
            before.tail_seconds,
            percent(before.agreement),
        );
    }
    let _ = writeln!(
        text,
        "\nAll on the device: agreement {}. Chosen for {}: an expected disagreement of at most {} for each tail \
         second by the request and {} after {} tokens, at most {} nats a token over {}.\n",
        percent(curve.device.agreement),
        percent(thresholds.target_agreement),
        bound(thresholds.accepted_loss_of_request),
        bound(thresholds.accepted_loss_of_probe),
        thresholds.probe_tokens,
        bound(thresholds.max_running_entropy),
        thresholds.running_tokens
    );
    tasks(&mut text, records);
    text
}

/// The local model alone, by task.
fn tasks(text: &mut String, records: &[Record]) {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    text.push_str(
        "| task | prompts | prompt tokens | agreement of the local model | same answer | ROUGE-L |\n\
         |---|---:|---:|---:|---:|---:|\n",
    );
    let mut tasks: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in records {
        tasks.entry(&record.task).or_default().push(record);
    }
    tasks.insert("all", records.iter().collect());
    for (task, records) in tasks {
        let mean = |value: &dyn Fn(&Record) -> f64| {
            records.iter().map(|record| value(record)).sum::<f64>() / records.len().max(1) as f64
        };
        let _ = writeln!(
            text,
            "| {task} | {} | {:.0} | {} | {} | {:.2} |",
            records.len(),
            mean(&|record| record.features.prompt_tokens as f64),
            percent(mean(&Record::agreement)),
            percent(mean(&|record| f64::from(u8::from(record.is_same_answer)))),
            mean(&|record| record.rouge_l)
        );
    }
}

fn bound(value: Option<f64>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| format!("{value:.3}"))
}
