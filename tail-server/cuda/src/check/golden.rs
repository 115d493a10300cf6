//! A real model beside transformers: the golden data of `tests/golden`, whose README says what it holds.

use std::path::Path;
use std::sync::Arc;

use headway_model::sampler::{argmax, log_sum_exp};
use headway_model::weights::{WeightDtype, Weights};
use headway_model::{BlockId, KvTable, LayerRange, LoadError};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Check;
use crate::buffers::LOGITS_ROWS;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::step::{Input, Segment};
use crate::tail::{Tail, TailSizes};
use crate::weights::TailWeights;

/// The longest prompt and its answer.
const MAX_POSITIONS: usize = 2048;

/// How weights are held, and what that may change at most: a logit, and the perplexity as a share of it. Transformers
/// computes in f32; what f32 may change is what two implementations differ by.
const HELD: [Held; 5] = [
    Held::new("f32", WeightDtype::F32, 1e-3, 1e-4),
    Held::new("f16", WeightDtype::F16, 0.2, 2e-3),
    Held::new("bf16", WeightDtype::Bf16, 1.0, 1e-2),
    Held::new("as in the file", WeightDtype::Native, 1.0, 1e-2),
    Held::new("fp8", WeightDtype::Fp8, 10.0, 5e-2),
];

struct Held {
    name: &'static str,
    dtype: WeightDtype,
    logit: f32,
    perplexity: f64,
}

impl Held {
    const fn new(name: &'static str, dtype: WeightDtype, logit: f32, perplexity: f64) -> Self {
        Self {
            name,
            dtype,
            logit,
            perplexity,
        }
    }
}

#[derive(Deserialize)]
struct Reference {
    probe_token_ids: Vec<usize>,
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    token_ids: Vec<u32>,
    top_ids: Vec<usize>,
    top_logits: Vec<f32>,
    probe_logits: Vec<f32>,
    greedy: Vec<u32>,
    margins: Vec<f32>,
}

#[derive(Deserialize)]
struct Perplexity {
    window_tokens: usize,
    window_nll_sums: Vec<f64>,
}

/// `model`: SmolLM2-135M-Instruct. `golden`: the folder.
pub(super) fn all(
    gpu: &Arc<Gpu>,
    [model, golden]: [&Path; 2],
    report: &mut impl FnMut(&Check),
) -> Result<(), CudaError> {
    let weights = Weights::open(model)?;
    let reference: Reference = read(golden, "smollm2.json")?;
    let perplexity: Perplexity = read(golden, "perplexity.json")?;
    let path = golden.join("eval_text.txt");
    let text = std::fs::read_to_string(&path).map_err(|error| unusable(&path, &error))?;
    let tokenizer = weights
        .tokenizer()
        .map_err(|error| unusable(model, &error))?;
    let token_ids = tokenizer
        .encode(&text)
        .map_err(|error| unusable(&path, &error))?;
    for held in &HELD {
        let mut run = Run::new(gpu, &weights, held.dtype)?;
        report(&prompts(&mut run, held, &reference)?);
        report(&windows(&mut run, held, &perplexity, &token_ids)?);
    }
    Ok(())
}

fn read<T: DeserializeOwned>(golden: &Path, name: &str) -> Result<T, CudaError> {
    let path = golden.join(name);
    let json = std::fs::read(&path).map_err(|error| unusable(&path, &error))?;
    serde_json::from_slice(&json).map_err(|error| unusable(&path, &error))
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> CudaError {
    let (path, reason) = (path.to_owned(), error.to_string());
    LoadError::Damaged { path, reason }.into()
}

/// The largest difference of a logit after the prompts, and how many tokens of the answers are transformers' own: each
/// after the tokens before it are given, and only where no other token is about as likely.
fn prompts(run: &mut Run, held: &Held, reference: &Reference) -> Result<Check, CudaError> {
    let (mut largest, mut equal, mut compared) = (0_f32, 0, 0);
    for prompt in &reference.prompts {
        run.forget();
        let mut logits = run.last_logits(&prompt.token_ids)?;
        let top = prompt.top_ids.iter().zip(&prompt.top_logits);
        let probes = reference.probe_token_ids.iter().zip(&prompt.probe_logits);
        for (token_id, expected) in top.chain(probes) {
            let difference = (logits[*token_id] - expected).abs();
            // NaN is the largest of all.
            largest = if difference <= largest {
                largest
            } else {
                difference
            };
        }
        for (token_id, margin) in prompt.greedy.iter().zip(&prompt.margins) {
            if *margin >= 2.0 * HELD[0].logit {
                compared += 1;
                equal += usize::from(argmax(&logits) == *token_id);
            }
            logits = run.last_logits(&[*token_id])?;
        }
    }
    let is_lossless = held.dtype != WeightDtype::F32 || equal == compared;
    Ok(Check {
        name: format!("transformers' logits, weights {}", held.name),
        difference: if is_lossless {
            f64::from(largest)
        } else {
            f64::INFINITY
        },
        tolerance: f64::from(held.logit),
        note: format!("{equal} of {compared} greedy tokens equal"),
    })
}

/// The perplexity of a text.
fn windows(
    run: &mut Run,
    held: &Held,
    expected: &Perplexity,
    token_ids: &[u32],
) -> Result<Check, CudaError> {
    let (mut found_nats, mut expected_nats, mut tokens) = (0.0, 0.0, 0_u32);
    let windows = token_ids.chunks_exact(expected.window_tokens);
    for (window, nats) in windows.zip(&expected.window_nll_sums) {
        run.forget();
        let logits = run.all_logits(window)?;
        for (logits, target) in logits.chunks_exact(run.vocab_size()).zip(&window[1..]) {
            found_nats += f64::from(log_sum_exp(logits) - logits[*target as usize]);
            tokens += 1;
        }
        expected_nats += nats;
    }
    let [found, expected] =
        [found_nats, expected_nats].map(|nats| (nats / f64::from(tokens)).exp());
    let change = found / expected - 1.0;
    Ok(Check {
        name: format!("transformers' perplexity, weights {}", held.name),
        difference: if change.is_finite() {
            change.abs()
        } else {
            f64::INFINITY
        },
        tolerance: held.perplexity,
        note: format!(
            "{found:.4}, transformers {expected:.4}: {:+.3} %",
            100.0 * change
        ),
    })
}

/// One session on the whole model.
struct Run {
    tail: Tail,
    table: KvTable,
}

impl Run {
    fn new(gpu: &Arc<Gpu>, weights: &Weights, dtype: WeightDtype) -> Result<Self, CudaError> {
        let layers = LayerRange::new(0, weights.config().num_layers);
        let held = TailWeights::load(gpu, weights, layers, dtype)?;
        let columns = KvTable::columns_for(MAX_POSITIONS);
        let sizes = TailSizes::new(MAX_POSITIONS, columns * layers.len());
        Ok(Self {
            tail: Tail::new(held, sizes)?,
            table: KvTable::new(layers),
        })
    }

    fn vocab_size(&self) -> usize {
        self.tail.weights().config().vocab_size
    }

    /// Begins anew.
    fn forget(&mut self) {
        let layers = self.table.layers();
        let mut blocks = (0..).map(BlockId);
        self.table = KvTable::new(layers);
        for _ in 0..KvTable::columns_for(MAX_POSITIONS) {
            let column: Vec<BlockId> = blocks.by_ref().take(layers.len()).collect();
            self.table.push_column(&column);
        }
    }

    /// After the last of the tokens, which follow those so far.
    fn last_logits(&mut self, token_ids: &[u32]) -> Result<Vec<f32>, CudaError> {
        self.logits(token_ids, token_ids.len() - 1)
    }

    /// `[token, vocab_size]`.
    fn all_logits(&mut self, token_ids: &[u32]) -> Result<Vec<f32>, CudaError> {
        self.logits(token_ids, 0)
    }

    /// After the tokens from `first` on.
    fn logits(&mut self, token_ids: &[u32], first: usize) -> Result<Vec<f32>, CudaError> {
        let rows = token_ids.len();
        let segment = Segment {
            entry_layer: 0,
            rows,
            input: Input::TokenIds(token_ids),
            table: &self.table,
        };
        let wanted: Vec<u32> = (0..).take(rows).skip(first).collect();
        self.tail.start(&[segment], &wanted)?;
        let mut logits = Vec::with_capacity(wanted.len() * self.vocab_size());
        for start in (0..wanted.len()).step_by(LOGITS_ROWS) {
            let range = start..wanted.len().min(start + LOGITS_ROWS);
            logits.extend_from_slice(self.tail.logits(range)?);
        }
        self.tail.finish()?;
        self.table.advance(rows);
        Ok(logits)
    }
}
