//! Writing on an NVIDIA GPU: the model in pieces, cut where hidden states are taken.

use headway_cuda::{CudaError, Gpu, Input, Segment, Tail, TailSizes, TailWeights};
use headway_model::config::ModelConfig;
use headway_model::layer_range::LayerRange;
use headway_model::weights::{WeightDtype, Weights};

use super::own_text::{AT_END, AT_EXIT_LAYERS, AT_SPLIT, MAX_ROWS, Taps};
use super::writer::{Part, Sample, Take, Writer, kv_blocks, last_rows};
use crate::device_layers::gpu::turn;
use crate::error::DeviceError;

/// Writes on a GPU.
pub(super) struct GpuWriter {
    config: ModelConfig,
    /// The layers up to each place where hidden states are taken, in order; those without layers are left out.
    pieces: Vec<Piece>,
    /// Final norm and lm_head.
    end: Tail,
}

struct Piece {
    tail: Tail,
    first_layer: usize,
    /// Of [`Take`].
    places: Vec<usize>,
}

impl GpuWriter {
    /// As many as logits are computed for at a time.
    const TEXTS_AT_A_TIME: usize = headway_cuda::LOGITS_ROWS;

    /// On the GPU of this number.
    pub(super) fn new(ordinal: usize, weights: &Weights, taps: Taps) -> Result<Self, CudaError> {
        let gpu = Gpu::open(ordinal)?;
        tracing::info!(ordinal, name = gpu.name()?, "the text is written on a GPU");
        let config = weights.config().clone();
        let num_layers = config.num_layers;
        let of_layer = kv_blocks(&config, Self::TEXTS_AT_A_TIME) / num_layers;
        let load = |first: usize, end: usize| {
            let layers = LayerRange::new(first, end);
            TailWeights::load(&gpu, weights, layers, WeightDtype::Native)
        };
        let sizes = |rows: usize, layers: LayerRange| TailSizes {
            first_block: layers.start * of_layer,
            ..TailSizes::new(rows, layers.len() * of_layer)
        };
        let mut pieces: Vec<Piece> = Vec::new();
        for (before, place) in [
            (taps.split_layer, AT_SPLIT),
            (taps.exit_layers, AT_EXIT_LAYERS),
            (num_layers, AT_END),
        ] {
            let first_layer = pieces
                .last()
                .map_or(0, |piece| piece.tail.weights().layers().end);
            match pieces.last_mut() {
                Some(piece) if first_layer == before => piece.places.push(place),
                _ => pieces.push(Piece {
                    tail: Tail::new(
                        load(first_layer, before)?.without_end(),
                        sizes(MAX_ROWS, LayerRange::new(first_layer, before)),
                    )?,
                    first_layer,
                    places: vec![place],
                }),
            }
        }
        let nothing = LayerRange::new(num_layers, num_layers);
        let end = Tail::new(
            load(num_layers, num_layers)?,
            sizes(Self::TEXTS_AT_A_TIME, nothing),
        )?;
        Ok(Self {
            config,
            pieces,
            end,
        })
    }
}

impl Writer for GpuWriter {
    fn texts_at_a_time(&self) -> usize {
        Self::TEXTS_AT_A_TIME
    }

    fn step(
        &mut self,
        parts: &[Part<'_>],
        take: &mut Take<'_>,
        sample: &mut Sample<'_>,
    ) -> Result<(), DeviceError> {
        let hidden_size = self.config.hidden_size;
        let rows: usize = parts.iter().map(|part| part.token_ids.len()).sum();
        let _turn = turn();
        let mut hidden_states: Vec<f32> = Vec::new();
        for piece in &mut self.pieces {
            let mut rest = &*hidden_states;
            let mut segments = Vec::with_capacity(parts.len());
            for part in parts {
                let input = if piece.first_layer == 0 {
                    Input::TokenIds(part.token_ids)
                } else {
                    let (states, behind) = rest.split_at(part.token_ids.len() * hidden_size);
                    rest = behind;
                    Input::HiddenStates(states)
                };
                segments.push(Segment {
                    entry_layer: piece.first_layer,
                    rows: part.token_ids.len(),
                    input,
                    table: part.table,
                });
            }
            piece.tail.start(&segments, &[])?;
            let states = piece.tail.hidden_states(0..rows)?.to_vec();
            piece.tail.finish()?;
            for place in &piece.places {
                take(*place, &states);
            }
            hidden_states = states;
        }
        let last = last_rows(parts, &hidden_states, hidden_size);
        let segments: Vec<_> = parts
            .iter()
            .zip(last.chunks_exact(hidden_size))
            .map(|(part, state)| Segment {
                entry_layer: self.config.num_layers,
                rows: 1,
                input: Input::HiddenStates(state),
                table: part.table,
            })
            .collect();
        let wanted: Vec<u32> = (0..).take(parts.len()).collect();
        self.end.start(&segments, &wanted)?;
        sample(self.end.logits(0..parts.len())?);
        self.end.finish()?;
        Ok(())
    }
}
