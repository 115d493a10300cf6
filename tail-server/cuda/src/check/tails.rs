//! The whole tail beside the model crate's decoder in f32: the same steps, the same tables, the logits compared. Tails
//! in stages run the same script.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use headway_model::decoder::Segment as CpuSegment;
use headway_model::weights::{WeightDtype, Weights};
use headway_model::{BLOCK_POSITIONS, BlockId, Decoder, KvStore, KvTable, LayerRange, ModelConfig};

use super::{Check, Random, difference};
use crate::buffers::LOGITS_ROWS;
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::stages::Stages;
use crate::step::{Input, Segment};
use crate::tail::TailSizes;
use crate::weights::TailWeights;

const STEPS: usize = 40;
const SESSIONS: usize = 7;
pub(super) const MAX_ROWS: usize = 512;
/// Positions of the longest session, where the model has as many.
const MAX_POSITIONS: usize = 600;

pub(super) fn all(
    gpu: &Arc<Gpu>,
    models: &Path,
    report: &mut impl FnMut(&Check),
) -> Result<(), CudaError> {
    for path in paths(models) {
        let weights = Weights::open(&path)?;
        let layers = LayerRange::new(0, weights.config().num_layers);
        let decoder = Decoder::load(&weights, layers, WeightDtype::F32)?;
        let name = path
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        for dtype in Dtype::ALL {
            // Steps are cut otherwise for each.
            for item_positions in [32, 128] {
                let tail = TailWeights::load(gpu, &weights, layers, dtype.of_weights())?;
                let sizes = TailSizes {
                    item_positions,
                    ..TailSizes::new(MAX_ROWS, blocks(weights.config()))
                };
                let tail = Stages::new(vec![tail], sizes, &[sizes.kv_blocks])?;
                let mut pair = Pair::new(&decoder, tail);
                pair.store = Some(KvStore::new(weights.config(), sizes.kv_blocks));
                pair.run(item_positions as u64)?;
                report(&pair.check(&format!("tail {name} {}", dtype.name()), dtype));
            }
        }
    }
    Ok(())
}

/// The model itself, or all models of a folder.
pub(super) fn paths(models: &Path) -> Vec<PathBuf> {
    if models.is_file() || models.join("config.json").is_file() {
        return vec![models.to_owned()];
    }
    let mut paths: Vec<PathBuf> = std::fs::read_dir(models)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.join("config.json").is_file()
                || path
                    .extension()
                    .is_some_and(|extension| extension == "gguf")
        })
        .collect();
    paths.sort();
    paths
}

fn longest(config: &ModelConfig) -> usize {
    config.max_positions.min(MAX_POSITIONS)
}

/// In one layer.
pub(super) fn layer_blocks(config: &ModelConfig) -> usize {
    SESSIONS * KvTable::columns_for(longest(config))
}

fn blocks(config: &ModelConfig) -> usize {
    layer_blocks(config) * config.num_layers
}

/// What a tail's logits may be apart from those of f32, over the largest of them. The models are tiny, with random
/// weights: nothing averages the rounding out. The largest seen with bf16 was 0.10.
pub(super) const fn tolerance(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 1e-4,
        Dtype::F16 => 2e-2,
        Dtype::Bf16 => 1.5e-1,
    }
}

/// A session of the script.
struct Session {
    entry_layer: usize,
    table: KvTable,
    token_ids: Vec<u32>,
}

/// Rows that one session puts into a step.
struct Chunk {
    session: usize,
    token_ids: Vec<u32>,
    hidden_states: Vec<f32>,
    rows: usize,
    /// Trailing rows whose logits are wanted.
    wanted: usize,
    /// Of those, how many turn out to be wrong guesses.
    rejected: usize,
}

pub(super) struct Pair<'a> {
    decoder: &'a Decoder,
    /// Without it, the decoder computes nothing.
    store: Option<KvStore>,
    tail: Stages,
    sessions: Vec<Session>,
    /// Of each stage.
    free: Vec<VecDeque<u32>>,
    /// `[row, vocab_size]` of both, all steps.
    expected: Vec<f32>,
    pub(super) got: Vec<f32>,
    /// Of each step: its rows, and those whose logits were wanted.
    pub(super) steps: Vec<[usize; 2]>,
    /// Each step has told a time for each of its layers.
    pub(super) has_times: bool,
}

impl<'a> Pair<'a> {
    pub(super) fn new(decoder: &'a Decoder, tail: Stages) -> Self {
        Self {
            store: None,
            decoder,
            tail,
            sessions: Vec::new(),
            free: Vec::new(),
            expected: Vec::new(),
            got: Vec::new(),
            steps: Vec::new(),
            has_times: true,
        }
    }

    /// Prompts of 1 to 200 rows, single rows and drafts, of sessions that enter at any layer; one shares the first
    /// blocks of another; blocks lie anywhere.
    pub(super) fn run(&mut self, seed: u64) -> Result<(), CudaError> {
        let mut random = Random(seed);
        self.deal(&random.permutation(blocks(self.decoder.config())));
        let num_layers = self.decoder.config().num_layers;
        for index in 0..SESSIONS - 1 {
            let entry_layer = index % num_layers;
            self.sessions.push(Session {
                entry_layer,
                table: KvTable::new(LayerRange::new(entry_layer, num_layers)),
                token_ids: Vec::new(),
            });
        }
        for step in 0..STEPS {
            if step == STEPS / 2 {
                self.share_prefix();
            }
            let chunks = self.plan(&mut random);
            if chunks.is_empty() {
                break;
            }
            self.step(&chunks)?;
        }
        Ok(())
    }

    /// Gives each stage the numbers of its blocks.
    fn deal(&mut self, blocks: &[u32]) {
        let mut start = 0;
        for stage in self.tail.stages() {
            let end = start + layer_blocks(self.decoder.config()) * stage.weights().layers().len();
            let own = blocks.iter().copied();
            let own = own.filter(|block| (start..end).contains(&(*block as usize)));
            self.free.push(own.collect());
            start = end;
        }
    }

    /// A new session begins with the full blocks of the longest one that enters at layer 0.
    fn share_prefix(&mut self) {
        let zero = self
            .sessions
            .iter()
            .filter(|session| session.entry_layer == 0);
        let Some(first) = zero.max_by_key(|session| session.table.len()) else {
            return;
        };
        let columns = first.table.len() / BLOCK_POSITIONS;
        let mut table = KvTable::new(first.table.layers());
        for column in first
            .table
            .blocks()
            .chunks(first.table.layers().len())
            .take(columns)
        {
            table.push_column(column);
        }
        table.advance(columns * BLOCK_POSITIONS);
        let token_ids = first.token_ids[..columns * BLOCK_POSITIONS].to_vec();
        self.sessions.push(Session {
            entry_layer: 0,
            table,
            token_ids,
        });
    }

    fn plan(&mut self, random: &mut Random) -> Vec<Chunk> {
        let config = self.decoder.config();
        let mut chunks = Vec::new();
        let mut room = MAX_ROWS;
        for (index, session) in self.sessions.iter_mut().enumerate() {
            let left = (longest(config) - session.table.len()).min(room);
            let rows = match random.below(8) {
                0 => 0,
                1 => random.between(1, 200),
                2 | 3 => random.between(2, 9),
                _ => 1,
            };
            let rows = if session.table.is_empty() {
                random.between(1, 200)
            } else {
                rows
            };
            let rows = rows.min(left);
            if rows == 0 {
                continue;
            }
            room -= rows;
            while session.table.capacity() < session.table.len() + rows {
                let held = session.table.layers();
                let mut column = Vec::with_capacity(held.len());
                for (stage, free) in self.tail.stages().iter().zip(&mut self.free) {
                    let layers = stage.weights().layers();
                    let count = layers.end.saturating_sub(held.start).min(layers.len());
                    column.extend(free.drain(..count).map(BlockId));
                }
                session.table.push_column(&column);
            }
            let wanted = if rows < 10 { rows } else { random.below(2) };
            let wants_tokens = session.entry_layer == 0;
            let token_ids = (0..rows).map(|_| random.below(config.vocab_size));
            let token_ids = token_ids.map(|id| u32::try_from(id).expect("ids are below 2^21"));
            chunks.push(Chunk {
                session: index,
                token_ids: if wants_tokens {
                    token_ids.collect()
                } else {
                    Vec::new()
                },
                hidden_states: if wants_tokens {
                    Vec::new()
                } else {
                    random.values(rows * config.hidden_size)
                },
                rows,
                wanted,
                rejected: random.below(wanted.max(1)),
            });
        }
        chunks.sort_by_key(|chunk| self.sessions[chunk.session].entry_layer);
        chunks
    }

    fn step(&mut self, chunks: &[Chunk]) -> Result<(), CudaError> {
        let mut wanted = Vec::new();
        let mut row = 0;
        for chunk in chunks {
            row += chunk.rows;
            wanted
                .extend((row - chunk.wanted..row).map(|row| u32::try_from(row).expect("few rows")));
        }
        self.step_on_cpu(chunks, &wanted)?;
        let segments: Vec<Segment<'_>> = chunks
            .iter()
            .map(|chunk| {
                let session = &self.sessions[chunk.session];
                Segment {
                    entry_layer: session.entry_layer,
                    rows: chunk.rows,
                    input: if session.entry_layer == 0 {
                        Input::TokenIds(&chunk.token_ids)
                    } else {
                        Input::HiddenStates(&chunk.hidden_states)
                    },
                    table: &session.table,
                }
            })
            .collect();
        self.steps.push([row, wanted.len()]);
        self.tail.start(&segments, &wanted)?;
        for start in (0..wanted.len()).step_by(LOGITS_ROWS) {
            let logits = self
                .tail
                .logits(start..wanted.len().min(start + LOGITS_ROWS))?;
            self.got.extend_from_slice(logits);
        }
        let times = self.tail.finish()?;
        let ran = self.decoder.config().num_layers - times.first_layer;
        self.has_times &= times.layers_ns.len() == ran;
        for chunk in chunks {
            let session = &mut self.sessions[chunk.session];
            let kept = chunk.rows - chunk.rejected;
            session.table.advance(kept);
            session.token_ids.extend(chunk.token_ids.iter().take(kept));
        }
        Ok(())
    }

    fn step_on_cpu(&mut self, chunks: &[Chunk], wanted: &[u32]) -> Result<(), CudaError> {
        let Some(store) = &mut self.store else {
            return Ok(());
        };
        let config = self.decoder.config();
        let mut x = Vec::new();
        for chunk in chunks {
            x.extend(self.decoder.embed(&chunk.token_ids)?);
            x.extend(&chunk.hidden_states);
        }
        let first = chunks
            .first()
            .map_or(0, |chunk| self.sessions[chunk.session].entry_layer);
        for layer in first..config.num_layers {
            let active: Vec<CpuSegment<'_>> = chunks
                .iter()
                .map(|chunk| (&self.sessions[chunk.session], chunk.rows))
                .filter(|(session, _)| session.entry_layer <= layer)
                .map(|(session, rows)| CpuSegment {
                    table: &session.table,
                    rows,
                })
                .collect();
            let rows: usize = active.iter().map(|segment| segment.rows).sum();
            let active_x = &mut x[..rows * config.hidden_size];
            self.decoder
                .forward_layer(layer, active_x, &active, store)?;
        }
        let mut rows = Vec::new();
        for &row in wanted {
            rows.extend(&x[row as usize * config.hidden_size..][..config.hidden_size]);
        }
        self.expected.extend(self.decoder.logits(&rows)?);
        Ok(())
    }

    fn check(&self, name: &str, dtype: Dtype) -> Check {
        let vocab_size = self.decoder.config().vocab_size;
        let rows = self
            .expected
            .chunks_exact(vocab_size)
            .zip(self.got.chunks_exact(vocab_size));
        let all = rows.len();
        let equal = rows
            .filter(|(expected, got)| most_likely(expected) == most_likely(got))
            .count();
        let difference = difference(&self.got, &self.expected);
        // Decoding greedily, f32 gives the tokens of the CPU.
        let is_lossless = dtype != Dtype::F32 || equal == all;
        Check {
            name: name.to_owned(),
            difference: if is_lossless {
                difference
            } else {
                f64::INFINITY
            },
            tolerance: tolerance(dtype),
            note: format!("{equal} of {all} greedy tokens equal, difference {difference:.1e}"),
        }
    }
}

pub(super) fn most_likely(logits: &[f32]) -> Option<usize> {
    logits
        .iter()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(b.1))
        .map(|(index, _)| index)
}
