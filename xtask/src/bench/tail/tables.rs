//! Tables from measured lines.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::Deserialize;

/// Whose lines have floors, and whom the others are compared with.
const OURS: &str = "headway";

/// What one line of a run says; `tail-server/cuda/src/check/report.rs` and `peers/transformers_tail.py` write them.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Line {
    /// What was measured on.
    Machine {
        by: String,
        device: String,
        copy_bytes_per_s: Option<f64>,
        matrix_operations_per_s: Option<f64>,
        versions: Option<String>,
    },
    Decode(Step),
    Prefill(Step),
    Split(Step),
    /// A case without numbers.
    LeftOut {
        by: String,
        case: String,
        reason: String,
    },
}

/// Medians of steps.
#[derive(Debug, Deserialize)]
pub struct Step {
    by: String,
    split_layer: usize,
    layers: usize,
    context: usize,
    batch: usize,
    /// Rows of all sessions.
    tokens: usize,
    wall_ms: f64,
    device_ms: f64,
    floor_ms: Option<f64>,
}

/// What makes steps comparable: batch, context, tokens.
type Case = (usize, usize, usize);

impl Step {
    fn case(&self) -> Case {
        (self.context, self.batch, self.tokens)
    }
}

/// Everything that the lines say.
pub fn markdown(lines: &[Line]) -> String {
    let mut decode: Vec<&Step> = Vec::new();
    let (mut prefill, mut split) = (decode.clone(), decode.clone());
    for line in lines {
        match line {
            Line::Decode(step) => decode.push(step),
            Line::Prefill(step) => prefill.push(step),
            Line::Split(step) => split.push(step),
            Line::Machine { .. } | Line::LeftOut { .. } => {}
        }
    }
    let mut text = machines(lines);
    text += &beside_each_other("Decode: one row for each session of a batch.", &decode);
    text += &beside_each_other("Prefill: one prompt.", &prefill);
    text += &by_split(&split);
    text += &left_out(lines);
    text
}

fn machines(lines: &[Line]) -> String {
    let mut text = String::new();
    for line in lines {
        let Line::Machine {
            by,
            device,
            copy_bytes_per_s,
            matrix_operations_per_s,
            versions,
        } = line
        else {
            continue;
        };
        let _ = write!(text, "- {by}: {device}");
        if let (Some(bytes), Some(operations)) = (copy_bytes_per_s, matrix_operations_per_s) {
            let (terabytes, teraflops) = (bytes / 1e12, operations / 1e12);
            let _ = write!(
                text,
                ", copies at {terabytes:.2} TB/s, bf16 products at {teraflops:.0} TFLOP/s"
            );
        }
        if let Some(versions) = versions {
            let _ = write!(text, ", {versions}");
        }
        text.push('\n');
    }
    text.push('\n');
    text
}

/// A row for each case, columns for each program.
fn beside_each_other(title: &str, steps: &[&Step]) -> String {
    let cases: BTreeSet<Case> = steps.iter().map(|step| step.case()).collect();
    if cases.is_empty() {
        return String::new();
    }
    let mut peers: Vec<&str> = Vec::new();
    for step in steps {
        if step.by != OURS && !peers.contains(&step.by.as_str()) {
            peers.push(&step.by);
        }
    }
    let mut text = format!(
        "{title}\n\n| context | batch | tokens | floor, ms | {OURS}: device, ms (floors) | wall, ms (floors) | tok/s |"
    );
    for peer in &peers {
        let _ = write!(
            text,
            " {peer}: device, ms (floors) | wall, ms (floors) | wall: {peer} / {OURS} |"
        );
    }
    let _ = writeln!(text, "\n|{}", "---|".repeat(7 + 3 * peers.len()));
    for case in cases {
        let of = |by: &str| {
            steps
                .iter()
                .find(|step| step.by == by && step.case() == case)
        };
        let ours = of(OURS);
        let floor_ms = ours.and_then(|ours| ours.floor_ms);
        let (context, batch, tokens) = case;
        let floor = floor_ms.map_or(MISSING.to_owned(), |floor_ms| format!("{floor_ms:.3}"));
        let _ = write!(text, "| {context} | {batch} | {tokens} | {floor} |");
        let times = |step: Option<&&Step>| {
            let cell = |ms: Option<f64>| ms.map_or(MISSING.to_owned(), |ms| beside(ms, floor_ms));
            let device = cell(step.map(|step| step.device_ms));
            format!(" {device} | {} |", cell(step.map(|step| step.wall_ms)))
        };
        text += &times(ours);
        let speed = ours.map(|ours| as_f64(tokens) / ours.wall_ms * 1e3);
        let _ = write!(
            text,
            " {} |",
            speed.map_or(MISSING.to_owned(), |speed| format!("{speed:.0}"))
        );
        for peer in &peers {
            let theirs = of(peer);
            text += &times(theirs);
            let ratio = ours.zip(theirs).map(|(a, b)| b.wall_ms / a.wall_ms);
            let _ = write!(
                text,
                " {} |",
                ratio.map_or(MISSING.to_owned(), |ratio| format!("{ratio:.2}"))
            );
        }
        text.push('\n');
    }
    text.push('\n');
    text
}

/// What is not there.
const MISSING: &str = "–";

fn beside(ms: f64, floor_ms: Option<f64>) -> String {
    floor_ms.map_or_else(
        || format!("{ms:.3}"),
        |floor_ms| format!("{ms:.3} ({:.2})", ms / floor_ms),
    )
}

/// Device time of a thousand tokens, and its share of that without any layers on the devices.
fn by_split(steps: &[&Step]) -> String {
    let batches: BTreeSet<usize> = steps.iter().map(|step| step.batch).collect();
    let splits: BTreeSet<(usize, usize)> = steps
        .iter()
        .map(|step| (step.split_layer, step.layers))
        .collect();
    let Some(&(lowest, _)) = splits.first() else {
        return String::new();
    };
    let mut text = format!(
        "GPU seconds of 1,000 decoded tokens by split layer, and of those of split layer {lowest}; context {}.\n\n\
         | split layer | layers on the tail |",
        steps[0].context
    );
    for batch in &batches {
        let _ = write!(text, " batch {batch}, s | share |");
    }
    let _ = writeln!(text, "\n|{}", "---|".repeat(2 + 2 * batches.len()));
    // Milliseconds of one token are seconds of a thousand.
    let seconds = |split_layer: usize, batch: usize| {
        let found = steps
            .iter()
            .find(|step| (step.split_layer, step.batch) == (split_layer, batch));
        found.map(|step| step.device_ms / as_f64(step.tokens))
    };
    for &(split_layer, layers) in &splits {
        let _ = write!(text, "| {split_layer} | {layers} |");
        for &batch in &batches {
            let cell = seconds(split_layer, batch).zip(seconds(lowest, batch));
            let _ = match cell {
                Some((this, whole)) => write!(text, " {this:.4} | {:.0} % |", this / whole * 100.0),
                None => write!(text, " {MISSING} | {MISSING} |"),
            };
        }
        text.push('\n');
    }
    text.push('\n');
    text
}

fn left_out(lines: &[Line]) -> String {
    let mut text = String::new();
    for line in lines {
        if let Line::LeftOut { by, case, reason } = line {
            let _ = writeln!(text, "- {by}, {case}: not measured, {reason}");
        }
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "counts are small")]
fn as_f64(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = r#"{"by":"headway","kind":"machine","device":"GPU","copy_bytes_per_s":4e12,"matrix_operations_per_s":8e14}
{"by":"headway","kind":"decode","split_layer":16,"layers":16,"context":512,"batch":8,"tokens":8,"wall_ms":4.0,"device_ms":3.0,"layers_ms":2.5,"logits_ms":0.5,"floor_ms":2.0}
{"by":"headway","kind":"split","split_layer":0,"layers":32,"context":512,"batch":8,"tokens":8,"wall_ms":6.0,"device_ms":4.0,"layers_ms":3.5,"logits_ms":0.5,"floor_ms":4.0}
{"by":"headway","kind":"split","split_layer":24,"layers":8,"context":512,"batch":8,"tokens":8,"wall_ms":2.0,"device_ms":1.0,"layers_ms":0.5,"logits_ms":0.5,"floor_ms":1.0}
{"by":"headway","kind":"left_out","case":"decode of 256 sessions at 8192","reason":"too large"}
{"by":"peer","kind":"machine","device":"GPU","versions":"torch 2"}
{"by":"peer","kind":"decode","split_layer":16,"layers":16,"context":512,"batch":8,"tokens":8,"wall_ms":10.0,"device_ms":9.0}
{"by":"peer","kind":"prefill","split_layer":16,"layers":16,"context":0,"batch":1,"tokens":512,"wall_ms":10.0,"device_ms":9.0}"#;

    #[test]
    fn programs_stand_beside_each_other_with_floors_and_ratios() {
        let lines: Vec<Line> = RUN
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let text = markdown(&lines);
        for row in [
            "- headway: GPU, copies at 4.00 TB/s, bf16 products at 800 TFLOP/s",
            "- peer: GPU, torch 2",
            "| 512 | 8 | 8 | 2.000 | 3.000 (1.50) | 4.000 (2.00) | 2000 | 9.000 (4.50) | 10.000 (5.00) | 2.50 |",
            "| 0 | 1 | 512 | – | – | – | – | 9.000 | 10.000 | – |",
            "| 0 | 32 | 0.5000 | 100 % |",
            "| 24 | 8 | 0.1250 | 25 % |",
            "- headway, decode of 256 sessions at 8192: not measured, too large",
        ] {
            assert!(text.contains(row), "{row} is not in\n{text}");
        }
    }
}
