//! A load made of the workload in the tree: people who ask the prompts of `tests/prompts/mixed.jsonl` one after another,
//! in the order of the file, and read each answer before they ask again. What they ask and how long answers are comes
//! from the file; when people come is made up here.

use anyhow::Context as _;
use fastrand::Rng;
use serde::Deserialize;

use super::shapes::{Arrival, SECONDS, Shape};
use crate::paths::root;

/// People who are there from the first second on, and until the second.
const CROWDS: [(f64, f64, u32); 4] = [
    (0.0, 7200.0, 40),
    (1200.0, 4500.0, 120),
    (2400.0, 3000.0, 160),
    (5400.0, 6600.0, 100),
];
/// A token without hindrance, as the simulated pods give them.
const TOKEN_S: f64 = 0.09;
/// Reading: four words a second, and a while to think.
const READ_TOKEN_S: f64 = 0.25;
const THINK_S: f64 = 10.0;

#[derive(Deserialize)]
struct Line {
    max_tokens: u32,
}

/// The load.
pub fn shape() -> anyhow::Result<Shape> {
    let path = root().join("tests/prompts/mixed.jsonl");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let lengths: Vec<f64> = text
        .lines()
        .map(|line| Ok(f64::from(serde_json::from_str::<Line>(line)?.max_tokens)))
        .collect::<anyhow::Result<_>>()?;
    let mut rng = Rng::with_seed(11);
    let mut arrivals = Vec::new();
    let mut next = 0;
    for (from_s, until_s, people) in CROWDS {
        for _ in 0..people {
            // They do not come all at once, nor begin with the same prompt.
            let mut at_s = from_s + rng.f64() * 60.0;
            next += 7;
            let mut asked = next;
            while at_s < until_s.min(f64::from(SECONDS)) {
                let tokens = lengths[asked % lengths.len()];
                arrivals.push(Arrival { at_s, tokens });
                asked += 1;
                let think_s = -THINK_S * (1.0 - rng.f64()).ln();
                at_s += tokens * (TOKEN_S + READ_TOKEN_S) + think_s;
            }
        }
    }
    arrivals.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
    Ok(Shape {
        name: "prompts of the tree",
        what: "40 people who ask the prompts of tests/prompts/mixed.jsonl in turn and read the answers; for a while 120, 160 and 100 more",
        min: 1,
        arrivals,
    })
}
