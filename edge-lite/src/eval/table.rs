//! What was measured, and how it reads.

use headway_model::quantization::Quantization;
use serde::Serialize;

/// The measured table.
#[derive(Clone, Debug, Serialize)]
pub struct EvalTable {
    /// The model's name.
    pub model: String,
    /// Tokens whose probability was measured.
    pub tokens: usize,
    /// Positions of a window.
    pub window: usize,
    /// Perplexity of the unsplit model.
    pub reference_perplexity: f64,
    /// One row for each setting.
    pub rows: Vec<EvalRow>,
}

/// What one setting costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvalRow {
    /// Layers before the cut.
    pub split_layer: usize,
    /// How head weights are quantised.
    pub head_quantization: Quantization,
    /// How hidden states go up.
    pub codec: String,
    /// Perplexity of the split model.
    pub perplexity: f64,
    /// Relative to the unsplit model, in percent.
    pub perplexity_change_percent: f64,
    /// Positions at which both models have the same most likely token, in percent.
    pub top1_agreement_percent: f64,
    /// Mean over positions of KL(unsplit ‖ split), in nats.
    pub mean_kl: f64,
    /// Mean bytes of one encoded position.
    pub bytes_per_position: f64,
    /// Bytes of the head's weights in memory: the embedding and the layers before the largest cut asked for.
    pub head_weight_bytes: usize,
}

impl EvalTable {
    /// The table for a document.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        use std::fmt::Write as _;
        let mut text = format!(
            "{}: {} tokens in windows of {}; unsplit perplexity {:.4}\n\n\
             | split layer | head | codec | perplexity | change | top-1 agreement | mean KL | bytes/position | head MiB |\n\
             |---:|---|---|---:|---:|---:|---:|---:|---:|\n",
            self.model, self.tokens, self.window, self.reference_perplexity
        );
        for row in &self.rows {
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.4} | {:+.3} % | {:.2} % | {:.3e} | {:.0} | {:.1} |",
                row.split_layer,
                row.head_quantization,
                row.codec,
                row.perplexity,
                row.perplexity_change_percent,
                row.top1_agreement_percent,
                row.mean_kl,
                row.bytes_per_position,
                row.head_weight_bytes as f64 / f64::from(1 << 20),
            );
        }
        text
    }
}
