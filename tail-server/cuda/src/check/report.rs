//! What a measurement says: a line for people, and a JSON object for programs (`cargo xtask bench tail`).

use std::fmt;
use std::fmt::Write as _;

/// One line of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// What was measured on, and what floors are computed from.
    Machine {
        /// The device's name.
        device: String,
        /// Read and written by a copy within the device.
        copy_bytes_per_s: f64,
        /// Of a large bf16 product, two operations for each multiplication.
        matrix_operations_per_s: f64,
    },
    /// Steps of one kind.
    Step(StepTimes),
    /// A case that was not measured.
    LeftOut {
        /// The case.
        case: String,
        /// Why.
        reason: String,
    },
}

/// What a table has the steps in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One row for each of some sessions.
    Decode,
    /// A whole prompt, in as many steps as it takes.
    Prefill,
    /// Decode steps by split layer.
    Split,
}

/// Medians of steps of one kind, in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTimes {
    /// The table.
    pub kind: Kind,
    /// The first layer that runs.
    pub split_layer: usize,
    /// Layers that run.
    pub layers: usize,
    /// Positions that each session holds before the first step.
    pub context: usize,
    /// Sessions.
    pub batch: usize,
    /// Rows of all sessions and steps.
    pub tokens: usize,
    /// From the call to the logits on the host.
    pub wall_ms: f64,
    /// Layers, on the device.
    pub layers_ms: f64,
    /// Final norm and lm_head, on the device.
    pub logits_ms: f64,
    /// What the device cannot be faster than: bytes over bandwidth, or operations over the rate of products.
    pub floor_ms: f64,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Prefill => "prefill",
            Self::Split => "split",
        }
    }
}

impl StepTimes {
    /// The device's part.
    #[must_use]
    pub fn device_ms(&self) -> f64 {
        self.layers_ms + self.logits_ms
    }
}

impl Line {
    /// The line as one JSON object without line breaks.
    #[must_use]
    pub fn json(&self) -> String {
        let mut object = Object::new();
        match self {
            Self::Machine {
                device,
                copy_bytes_per_s,
                matrix_operations_per_s,
            } => {
                object.text("kind", "machine");
                object.text("device", device);
                object.number("copy_bytes_per_s", *copy_bytes_per_s);
                object.number("matrix_operations_per_s", *matrix_operations_per_s);
            }
            Self::Step(times) => {
                object.text("kind", times.kind.name());
                object.count("split_layer", times.split_layer);
                object.count("layers", times.layers);
                object.count("context", times.context);
                object.count("batch", times.batch);
                object.count("tokens", times.tokens);
                object.number("wall_ms", times.wall_ms);
                object.number("device_ms", times.device_ms());
                object.number("layers_ms", times.layers_ms);
                object.number("logits_ms", times.logits_ms);
                object.number("floor_ms", times.floor_ms);
            }
            Self::LeftOut { case, reason } => {
                object.text("kind", "left_out");
                object.text("case", case);
                object.text("reason", reason);
            }
        }
        object.end()
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine {
                device,
                copy_bytes_per_s,
                matrix_operations_per_s,
            } => write!(
                f,
                "{device}: copies {:.2} TB/s, bf16 products {:.0} TFLOP/s",
                copy_bytes_per_s / 1e12,
                matrix_operations_per_s / 1e12
            ),
            Self::Step(times) => write!(
                f,
                "{:<7} batch {:3} context {:5} tokens {:5} layers {:2}   wall {:8.3} ms ({:5.2} floors)   device {:8.3} ms ({:5.2}) = layers {:8.3} + lm_head {:7.3}   floor {:7.3}",
                times.kind.name(),
                times.batch,
                times.context,
                times.tokens,
                times.layers,
                times.wall_ms,
                times.wall_ms / times.floor_ms,
                times.device_ms(),
                times.device_ms() / times.floor_ms,
                times.layers_ms,
                times.logits_ms,
                times.floor_ms
            ),
            Self::LeftOut { case, reason } => write!(f, "{case} is left out: {reason}"),
        }
    }
}

/// A flat JSON object that is being written. Keys are plain words.
struct Object(String);

impl Object {
    fn new() -> Self {
        Self("{\"by\":\"headway\"".to_owned())
    }

    fn text(&mut self, key: &str, value: &str) {
        let _ = write!(self.0, ",\"{key}\":\"");
        for character in value.chars() {
            match character {
                '"' | '\\' => self.0.extend(['\\', character]),
                other if other.is_control() => self.0.push(' '),
                other => self.0.push(other),
            }
        }
        self.0.push('"');
    }

    fn count(&mut self, key: &str, value: usize) {
        let _ = write!(self.0, ",\"{key}\":{value}");
    }

    /// JSON has no word for what is not a number.
    fn number(&mut self, key: &str, value: f64) {
        let _ = match value.is_finite() {
            true => write!(self.0, ",\"{key}\":{value}"),
            false => write!(self.0, ",\"{key}\":null"),
        };
    }

    fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_one_object_with_its_sizes_and_times() {
        let times = StepTimes {
            kind: Kind::Decode,
            split_layer: 16,
            layers: 16,
            context: 512,
            batch: 8,
            tokens: 8,
            wall_ms: 3.5,
            layers_ms: 2.25,
            logits_ms: 0.25,
            floor_ms: f64::NAN,
        };
        let json = Line::Step(times).json();
        assert_eq!(
            json,
            "{\"by\":\"headway\",\"kind\":\"decode\",\"split_layer\":16,\"layers\":16,\"context\":512,\"batch\":8,\
             \"tokens\":8,\"wall_ms\":3.5,\"device_ms\":2.5,\"layers_ms\":2.25,\"logits_ms\":0.25,\"floor_ms\":null}"
        );
    }

    #[test]
    fn texts_cannot_end_their_string() {
        let left_out = Line::LeftOut {
            case: "a \"b\" \\\n".to_owned(),
            reason: String::new(),
        };
        let expected = r#"{"by":"headway","kind":"left_out","case":"a \"b\" \\ ","reason":""}"#;
        assert_eq!(left_out.json(), expected);
    }
}
