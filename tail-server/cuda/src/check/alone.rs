//! Graphs beside the same kernels started one by one, and deterministic tails: sessions in company, in pieces of any
//! length, beside each session alone, row by row. All bits of all logits are to be the same.

use std::sync::Arc;

use headway_model::{BlockId, KvTable, LayerRange, ModelConfig};

use super::{Check, Random};
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::packed::Format;
use crate::step::{Input, Segment};
use crate::tail::{DETERMINISTIC_ROWS, Tail, TailSizes};
use crate::weights::TailWeights;

/// Rows of each session, and the layer at which it enters.
const SESSIONS: [[usize; 2]; 9] = [
    [1, 0],
    [70, 0],
    [33, 0],
    [5, 0],
    [40, 1],
    [64, 1],
    [2, 1],
    [90, 2],
    [17, 2],
];
const LAYERS: LayerRange = LayerRange::new(0, 3);
const BLOCKS: usize = 256;

pub(super) fn all(gpu: &Arc<Gpu>, report: &mut impl FnMut(&Check)) -> Result<(), CudaError> {
    for held in [
        Held::Dense(Dtype::Bf16),
        Held::Dense(Dtype::F16),
        Held::Packed(Format::Float8),
        Held::Packed(Format::Four32),
    ] {
        let company = Company::new();
        let tail = |graphs| -> Result<Tail, CudaError> {
            let weights = match held {
                Held::Dense(dtype) => TailWeights::random(gpu, config(), LAYERS, dtype)?,
                Held::Packed(format) => TailWeights::random_packed(gpu, config(), LAYERS, format)?,
            };
            let sizes = TailSizes {
                deterministic: true,
                graphs,
                ..TailSizes::new(DETERMINISTIC_ROWS, BLOCKS)
            };
            Tail::new(weights, sizes)
        };
        let name = held.name();
        let together = company.together(&mut tail(false)?, 1)?;
        let in_graphs = company.together(&mut tail(true)?, 1)?;
        report(&check("graphs", name, &in_graphs, &together));
        let otherwise = company.together(&mut tail(true)?, 2)?;
        report(&check("other pieces", name, &otherwise, &together));
        let alone = company.alone(&mut tail(true)?)?;
        report(&check("alone", name, &alone, &together));
    }
    Ok(())
}

/// What matrices are held in.
#[derive(Clone, Copy)]
enum Held {
    Dense(Dtype),
    Packed(Format),
}

impl Held {
    const fn name(self) -> &'static str {
        match self {
            Self::Dense(dtype) => dtype.name(),
            Self::Packed(format) => format.name(),
        }
    }
}

/// Large enough for products in several planes.
fn config() -> ModelConfig {
    ModelConfig {
        num_layers: LAYERS.end,
        hidden_size: 2048,
        intermediate_size: 2560,
        vocab_size: 1024,
        ..super::kernels::config(16, 4, 128)
    }
}

fn check(name: &str, held: &str, got: &[Vec<f32>], expected: &[Vec<f32>]) -> Check {
    let pairs = got.iter().flatten().zip(expected.iter().flatten());
    let differ = pairs.filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    let count: usize = got.iter().map(Vec::len).sum();
    let expected_count: usize = expected.iter().map(Vec::len).sum();
    Check {
        name: format!("deterministic {name} {held}"),
        difference: if count == expected_count && count > 0 && differ == 0 {
            0.0
        } else {
            f64::INFINITY
        },
        tolerance: 0.0,
        note: format!("{differ} of {count} logits differ"),
    }
}

/// The sessions' rows: hidden states.
struct Company {
    rows: Vec<Vec<f32>>,
}

impl Company {
    fn new() -> Self {
        let mut random = Random(11);
        let hidden = config().hidden_size;
        let rows = SESSIONS.map(|[rows, _]| random.values(rows * hidden));
        Self { rows: rows.into() }
    }

    /// The logits of all rows of each session, which go through the tail in random pieces beside each other.
    fn together(&self, tail: &mut Tail, seed: u64) -> Result<Vec<Vec<f32>>, CudaError> {
        let mut random = Random(seed);
        let mut tables = tables(&mut random);
        let mut logits = vec![Vec::new(); SESSIONS.len()];
        while SESSIONS
            .iter()
            .zip(&tables)
            .any(|([rows, _], table)| table.len() < *rows)
        {
            let mut room = DETERMINISTIC_ROWS;
            let mut pieces = Vec::new();
            for (index, [rows, _]) in SESSIONS.iter().enumerate() {
                let left = (rows - tables[index].len()).min(room);
                let most = if random.below(2) == 0 { 1 } else { 48 };
                let piece = random.between(1, most).min(left);
                if piece > 0 && random.below(4) > 0 {
                    pieces.push((index, piece));
                    room -= piece;
                }
            }
            self.step(tail, &mut tables, &pieces, &mut logits)?;
        }
        Ok(logits)
    }

    /// The same, one row of one session at a time.
    fn alone(&self, tail: &mut Tail) -> Result<Vec<Vec<f32>>, CudaError> {
        let mut tables = tables(&mut Random(3));
        let mut logits = vec![Vec::new(); SESSIONS.len()];
        for (index, [rows, _]) in SESSIONS.iter().enumerate() {
            for _ in 0..*rows {
                self.step(tail, &mut tables, &[(index, 1)], &mut logits)?;
            }
        }
        Ok(logits)
    }

    fn step(
        &self,
        tail: &mut Tail,
        tables: &mut [KvTable],
        pieces: &[(usize, usize)],
        logits: &mut [Vec<f32>],
    ) -> Result<(), CudaError> {
        let config = config();
        let segments: Vec<Segment<'_>> = pieces
            .iter()
            .map(|&(index, rows)| {
                let first = tables[index].len() * config.hidden_size;
                Segment {
                    entry_layer: SESSIONS[index][1],
                    rows,
                    input: Input::HiddenStates(
                        &self.rows[index][first..first + rows * config.hidden_size],
                    ),
                    table: &tables[index],
                }
            })
            .collect();
        let rows: usize = pieces.iter().map(|(_, rows)| rows).sum();
        if rows == 0 {
            return Ok(());
        }
        let wanted: Vec<u32> = (0..).take(rows).collect();
        tail.start(&segments, &wanted)?;
        let mut values: &[f32] = tail.logits(0..rows)?;
        for (index, rows) in pieces {
            let (of_session, rest) = values.split_at(rows * config.vocab_size);
            logits[*index].extend(of_session);
            values = rest;
        }
        tail.finish()?;
        for (index, rows) in pieces {
            tables[*index].advance(*rows);
        }
        Ok(())
    }
}

/// Of all sessions, whose blocks lie anywhere.
fn tables(random: &mut Random) -> Vec<KvTable> {
    let mut blocks = random.permutation(BLOCKS).into_iter().map(BlockId);
    let table = |[rows, entry_layer]: [usize; 2]| {
        let layers = LayerRange::new(entry_layer, LAYERS.end);
        let mut table = KvTable::new(layers);
        for _ in 0..KvTable::columns_for(rows) {
            let column: Vec<BlockId> = blocks.by_ref().take(layers.len()).collect();
            table.push_column(&column);
        }
        table
    };
    SESSIONS.map(table).into()
}
