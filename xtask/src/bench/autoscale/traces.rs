//! Two loads that were recorded: an hour of two services of Azure on 11 November 2023, played twice. `xtask/loads/README.md`
//! says where they are from.

use anyhow::Context as _;

use super::shapes::{Arrival, SECONDS, Shape};
use crate::paths::root;

/// After so long a recording begins again.
const HOUR_S: f64 = 3600.0;

/// The loads.
pub fn shapes() -> anyhow::Result<[Shape; 2]> {
    Ok([
        Shape {
            name: "conversations, recorded",
            what: "an hour of a service that people talk to, played twice; prompts' lengths play no part",
            min: 1,
            arrivals: arrivals("conversations.csv")?,
        },
        Shape {
            name: "code, recorded",
            what: "an hour of a service that completes code, played twice: short answers, in bursts",
            min: 1,
            arrivals: arrivals("code.csv")?,
        },
    ])
}

fn arrivals(file: &str) -> anyhow::Result<Vec<Arrival>> {
    let path = root().join("xtask/loads").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let line = |line: &str| {
        let (at_s, tokens) = line.split_once(',').context("two columns")?;
        let (at_s, tokens) = (at_s.parse()?, tokens.parse()?);
        anyhow::Ok(Arrival { at_s, tokens })
    };
    let lines = text.lines().skip(1);
    let hour: Vec<Arrival> = lines.map(line).collect::<Result<_, _>>()?;
    let again = hour.iter().map(|arrival| Arrival {
        at_s: arrival.at_s + HOUR_S,
        ..*arrival
    });
    let twice = hour.iter().copied().chain(again);
    Ok(twice
        .filter(|arrival| arrival.at_s < f64::from(SECONDS))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recordings_are_read_in_the_order_of_time() {
        for shape in shapes().unwrap() {
            assert!(
                shape.arrivals.is_sorted_by(|a, b| a.at_s <= b.at_s),
                "{}",
                shape.name
            );
            assert!(shape.arrivals.len() > 17_000, "{}", shape.name);
            assert!(shape.arrivals.iter().all(|arrival| arrival.tokens >= 1.0));
        }
    }
}
