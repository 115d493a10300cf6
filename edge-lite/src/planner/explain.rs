//! The alternatives of a plan, for people.

use std::fmt::{Display, Formatter, Result, Write as _};

use super::{Alternative, Impossible, Planned, PromptForm};
use crate::report::Route;

/// Where a split is predicted to be faster than what is chosen.
const CAUTION: &str =
    "what is predicted to be faster is so by too little, or costs the tail too much";

impl Display for Impossible {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self {
            first_split_layer: first,
            last_split_layer: last,
            reason,
        } = self;
        if first == last {
            write!(f, "split layer {first}: {reason}")
        } else {
            write!(f, "split layers {first} to {last}: {reason}")
        }
    }
}

impl Display for Planned {
    /// The plan, in a few words.
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Alternative {
            route,
            plan,
            prediction,
        } = &self.best;
        let what = match route {
            Route::Device => "all layers here".to_owned(),
            Route::Cloud => "all layers on the tail".to_owned(),
            Route::Split => format!("layers 0 to {} here", plan.split_layer - 1),
        };
        write!(f, "{what}")?;
        if *route == Route::Split {
            write!(f, ", hidden states as {}", plan.codec)?;
        }
        if *route != Route::Cloud {
            write!(f, ", head quantisation {}", plan.head_quantization)?;
        }
        if plan.prefill == PromptForm::TokenIds && *route == Route::Split {
            write!(f, ", the prompt as token ids")?;
        }
        if *route != Route::Device {
            write!(
                f,
                ", {} rows of the prompt at a time",
                plan.prompt_chunk_positions
            )?;
        }
        if plan.draft_tokens > 0 {
            write!(f, ", {} guesses a step", plan.draft_tokens)?;
        }
        write!(
            f,
            "\npredicted: first token {:.0} ms, {:.1} ms a token, answer {:.0} ms, tail {:.0} ms, {:.0} KB up, {:.0} MB here",
            prediction.first_token_ms,
            prediction.token_ms,
            prediction.total_ms,
            prediction.tail_ms,
            prediction.up_bytes / 1e3,
            megabytes(prediction.memory_bytes),
        )?;
        if self.keeps_bound == Some(false) {
            write!(f, "\nno plan keeps the bound; this is the fastest")?;
        }
        Ok(())
    }
}

impl Planned {
    /// A table of the best alternative of each split layer, and why others are not possible.
    #[must_use]
    pub fn explain(&self) -> String {
        let mut text = String::from(
            "split  codec  head   prompt  chunk  guesses  first token ms  ms/token  answer ms   tail ms     KB up  MB here\n",
        );
        for alternative in &self.by_split_layer {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}", row(alternative, alternative == &self.best));
        }
        for impossible in &self.impossible {
            let _ = writeln!(text, "{impossible}");
        }
        let best = &self.best;
        let is_faster = |of: &Alternative| of.prediction.total_ms < best.prediction.total_ms;
        if best.route != Route::Split && self.by_split_layer.iter().any(is_faster) {
            let _ = writeln!(text, "{CAUTION}");
        }
        let _ = writeln!(text, "{} alternatives compared", self.compared);
        text
    }
}

fn row(alternative: &Alternative, is_best: bool) -> String {
    let Alternative {
        route,
        plan,
        prediction,
    } = alternative;
    let codec = match route {
        Route::Split => plan.codec.to_string(),
        Route::Cloud => "ids".to_owned(),
        Route::Device => "-".to_owned(),
    };
    let prompt = match plan.prefill {
        PromptForm::Nothing => "-",
        PromptForm::TokenIds => "ids",
        PromptForm::HiddenStates => "states",
    };
    let quantization = match route {
        Route::Cloud => "-",
        _ => plan.head_quantization.name(),
    };
    let chunk = match route {
        Route::Device => "-".to_owned(),
        _ => plan.prompt_chunk_positions.to_string(),
    };
    format!(
        "{:>5}  {codec:<5}  {quantization:<5}  {prompt:<6}  {chunk:>5}  {:>7}  {:>14.1}  {:>8.2}  {:>9.0}  {:>8.1}  {:>8.1}  {:>7.0}{}",
        plan.split_layer,
        plan.draft_tokens,
        prediction.first_token_ms,
        prediction.token_ms,
        prediction.total_ms,
        prediction.tail_ms,
        prediction.up_bytes / 1e3,
        megabytes(prediction.memory_bytes),
        if is_best { "  <" } else { "" },
    )
}

#[expect(clippy::cast_precision_loss, reason = "sizes of memories")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
