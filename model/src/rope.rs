//! Rotary position embedding (arXiv:2104.09864) with the frequency scalings of the Llama families.

use std::f32::consts::PI;
use std::sync::OnceLock;

use crate::config::{ModelConfig, RopeLayout, RopeScaling};

/// Cosine and sine of every angle of [`CHUNK_POSITIONS`] positions, `[position, head_dim / 2]`.
type Angles = Box<[(f32, f32)]>;

/// Positions whose angles are computed together, when the first of them is needed.
const CHUNK_POSITIONS: usize = 256;

/// Cosines and sines for the positions seen so far.
pub struct Rope {
    inverse_frequencies: Vec<f32>,
    /// Multiplies cos and sin (YaRN).
    attention_factor: f32,
    layout: RopeLayout,
    chunks: Vec<OnceLock<Angles>>,
}

impl Rope {
    /// The rotation of one model.
    #[must_use]
    pub fn new(config: &ModelConfig) -> Self {
        let chunks = config.max_positions.div_ceil(CHUNK_POSITIONS);
        let attention_factor = match config.rope_scaling {
            RopeScaling::Yarn {
                attention_factor, ..
            } => attention_factor,
            _ => 1.0,
        };
        Self {
            inverse_frequencies: inverse_frequencies(config),
            attention_factor,
            layout: config.rope_layout,
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Radians a position for each pair of elements that is rotated together, scaling included; `[head_dim / 2]`.
    #[must_use]
    pub fn inverse_frequencies(&self) -> &[f32] {
        &self.inverse_frequencies
    }

    /// What cosines and sines are multiplied by.
    #[must_use]
    pub const fn attention_factor(&self) -> f32 {
        self.attention_factor
    }

    /// Rotates each head of `heads`, `[heads, head_dim]`, to `position`.
    pub fn rotate(&self, heads: &mut [f32], position: usize) {
        let half = self.inverse_frequencies.len();
        let chunk = self.chunks[position / CHUNK_POSITIONS]
            .get_or_init(|| self.chunk(position / CHUNK_POSITIONS));
        let angles = &chunk[(position % CHUNK_POSITIONS) * half..][..half];
        for head in heads.chunks_exact_mut(2 * half) {
            match self.layout {
                RopeLayout::Half => {
                    let (first, second) = head.split_at_mut(half);
                    for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
                RopeLayout::Interleaved => {
                    for (pair, (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                        *pair = [pair[0] * cos - pair[1] * sin, pair[1] * cos + pair[0] * sin];
                    }
                }
            }
        }
    }

    /// The angle is rounded to f32, as the models' training code does; only its cosine is exact.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "positions are below 2^24"
    )]
    fn chunk(&self, index: usize) -> Angles {
        (index * CHUNK_POSITIONS..(index + 1) * CHUNK_POSITIONS)
            .flat_map(|position| {
                self.inverse_frequencies.iter().map(move |frequency| {
                    let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                    (
                        cos as f32 * self.attention_factor,
                        sin as f32 * self.attention_factor,
                    )
                })
            })
            .collect()
    }
}

/// `theta^(-2i / head_dim)`, scaled; `[head_dim / 2]`.
#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^24")]
fn inverse_frequencies(config: &ModelConfig) -> Vec<f32> {
    let head_dim = config.head_dim as f32;
    let plain =
        (0..config.head_dim / 2).map(|i| 1.0 / config.rope_theta.powf(2.0 * i as f32 / head_dim));
    match &config.rope_scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|frequency| frequency / factor).collect(),
        RopeScaling::Factors { factors } => plain
            .zip(factors)
            .map(|(frequency, f)| frequency / f)
            .collect(),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        } => {
            let original = *original_max_positions as f32;
            plain
                .map(|frequency| {
                    let wavelength = 2.0 * PI / frequency;
                    if wavelength < original / high_freq_factor {
                        frequency
                    } else if wavelength > original / low_freq_factor {
                        frequency / factor
                    } else {
                        let smooth = (original / wavelength - low_freq_factor)
                            / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                })
                .collect()
        }
        RopeScaling::Yarn {
            factor,
            original_max_positions,
            beta_fast,
            beta_slow,
            ..
        } => {
            let original = *original_max_positions as f32;
            // The dimension that turns `rotations` times over the original context.
            let dimension = |rotations: f32| {
                head_dim * (original / (rotations * 2.0 * PI)).ln() / (2.0 * config.rope_theta.ln())
            };
            let low = dimension(*beta_fast).floor().max(0.0);
            let high = dimension(*beta_slow).ceil().min(head_dim - 1.0);
            let width = if high > low { high - low } else { 0.001 };
            plain
                .enumerate()
                .map(|(i, frequency)| {
                    let interpolated = ((i as f32 - low) / width).clamp(0.0, 1.0);
                    frequency / factor * interpolated + frequency * (1.0 - interpolated)
                })
                .collect()
        }
    }
}
