//! Models cut into stages beside the uncut tail: the same steps, and all logits the same by every bit, since no sum is
//! made in another order. And the first stage alone, whose hidden states come to the host.

use std::path::Path;
use std::sync::Arc;

use headway_model::weights::{WeightDtype, Weights};
use headway_model::{BlockId, Decoder, KvCache, KvTable, LayerRange};

use super::tails::{MAX_ROWS, Pair, layer_blocks, most_likely, paths, tolerance};
use super::{Check, Random, difference};
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::stages::Stages;
use crate::step::{Input, Segment};
use crate::tail::{Tail, TailSizes};
use crate::weights::TailWeights;

const SEED: u64 = 5;
/// Rows of the steps of one session: a prompt, answers, a draft, another prompt.
const STEPS: [usize; 6] = [70, 1, 1, 5, 1, 33];

pub(super) fn all(
    gpu: &Arc<Gpu>,
    models: &Path,
    report: &mut impl FnMut(&Check),
) -> Result<(), CudaError> {
    let places = places(gpu)?;
    for path in paths(models) {
        let weights = Weights::open(&path)?;
        let layers = LayerRange::new(0, weights.config().num_layers);
        let decoder = Decoder::load(&weights, layers, WeightDtype::F32)?;
        let model = Model {
            name: path
                .file_name()
                .map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            weights,
            decoder,
        };
        for dtype in Dtype::ALL {
            let uncut = model.run(&[Arc::clone(gpu)], dtype, false)?.logits;
            let fitting = places.iter().enumerate();
            let fitting = fitting.filter(|(_, (_, gpus))| gpus.len() <= layers.len());
            for (index, (place, gpus)) in fitting {
                for graphs in [false, true].into_iter().take(1 + index % 2) {
                    let run = model.run(gpus, dtype, graphs)?;
                    let with = if graphs { ", graphs" } else { "" };
                    let name = format!("{} stages {place}{with}", gpus.len());
                    let mut check = model.check(&name, dtype, [&run.logits, &uncut], run.has_times);
                    if !check.passed() {
                        check.note += &model.where_they_differ(&run, &uncut);
                    }
                    report(&check);
                }
            }
            model.head(&places[1].1, dtype, report)?;
        }
    }
    Ok(())
}

/// Where stages lie, with a name.
type Place = (&'static str, Vec<Arc<Gpu>>);

/// On one stream, on several streams of one GPU, and on two GPUs where there are two.
fn places(gpu: &Arc<Gpu>) -> Result<Vec<Place>, CudaError> {
    let here = || Arc::clone(gpu);
    let again = || Gpu::open(gpu.ordinal());
    let mut places = vec![
        ("on a stream", vec![here(), here()]),
        ("on a GPU", vec![here(), again()?]),
        ("on a GPU", vec![here(), again()?, again()?]),
    ];
    match Gpu::open(gpu.ordinal() + 1) {
        Ok(other) => {
            places.push(("on two GPUs", vec![here(), Arc::clone(&other)]));
            places.push(("on two GPUs", vec![Arc::clone(&other), here()]));
            places.push(("on two GPUs", vec![here(), other, here()]));
        }
        Err(CudaError::NoDevice { .. }) => {}
        Err(error) => return Err(error),
    }
    Ok(places)
}

/// What the script gave.
struct Run {
    logits: Vec<f32>,
    /// Of each step: its rows, and those whose logits were wanted.
    steps: Vec<[usize; 2]>,
    /// There were all times.
    has_times: bool,
}

struct Model {
    name: String,
    weights: Weights,
    decoder: Decoder,
}

impl Model {
    /// Layers cut as evenly as they can be.
    fn cut(&self, stages: usize) -> Vec<LayerRange> {
        let num_layers = self.weights.config().num_layers;
        (0..stages)
            .map(|stage| {
                LayerRange::new(
                    stage * num_layers / stages,
                    (stage + 1) * num_layers / stages,
                )
            })
            .collect()
    }

    fn load(
        &self,
        gpu: &Arc<Gpu>,
        layers: LayerRange,
        dtype: Dtype,
    ) -> Result<TailWeights, CudaError> {
        TailWeights::load(gpu, &self.weights, layers, dtype.of_weights())
    }

    /// The script with a stage on each of `gpus`.
    fn run(&self, gpus: &[Arc<Gpu>], dtype: Dtype, graphs: bool) -> Result<Run, CudaError> {
        let cut = self.cut(gpus.len());
        let weights = gpus.iter().zip(&cut);
        let weights = weights.map(|(gpu, layers)| self.load(gpu, *layers, dtype));
        let in_layer = layer_blocks(self.weights.config());
        let kv_blocks: Vec<usize> = cut.iter().map(|layers| in_layer * layers.len()).collect();
        let sizes = TailSizes {
            item_positions: 32,
            graphs,
            ..TailSizes::new(MAX_ROWS, 0)
        };
        let stages = Stages::new(weights.collect::<Result<_, _>>()?, sizes, &kv_blocks)?;
        let mut pair = Pair::new(&self.decoder, stages);
        pair.run(SEED)?;
        Ok(Run {
            logits: pair.got,
            steps: pair.steps,
            has_times: pair.has_times,
        })
    }

    /// The steps in which some logits differ.
    fn where_they_differ(&self, run: &Run, uncut: &[f32]) -> String {
        let vocab_size = self.weights.config().vocab_size;
        let mut rows = run.logits.chunks(vocab_size).zip(uncut.chunks(vocab_size));
        let mut told = String::new();
        for (index, [all, wanted]) in run.steps.iter().enumerate() {
            let pairs = rows.by_ref().take(*wanted);
            let differing = pairs.filter(|(a, b)| difference(a, b) > 0.0).count();
            if differing > 0 {
                told += &format!("; step {index} of {all} rows: {differing} of {wanted}");
            }
        }
        told
    }

    fn check(&self, name: &str, dtype: Dtype, [got, uncut]: [&[f32]; 2], has_times: bool) -> Check {
        let vocab_size = self.weights.config().vocab_size;
        let rows = got
            .chunks_exact(vocab_size)
            .zip(uncut.chunks_exact(vocab_size));
        let all = rows.len();
        let equal = rows
            .filter(|(a, b)| most_likely(a) == most_likely(b))
            .count();
        let bits = got.iter().zip(uncut);
        let differ = bits.filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        Check {
            name: format!("{} {} {name}", self.name, dtype.name()),
            difference: if has_times && all > 0 {
                difference(got, uncut)
            } else {
                f64::INFINITY
            },
            tolerance: 0.0,
            note: format!("{equal} of {all} greedy tokens equal, {differ} logits differ"),
        }
    }

    /// One session: the first layers give hidden states to the host, as a device's head layers do, and the others take
    /// them from there. The hidden states beside the decoder's, the logits beside the uncut tail's.
    fn head(
        &self,
        gpus: &[Arc<Gpu>],
        dtype: Dtype,
        report: &mut impl FnMut(&Check),
    ) -> Result<(), CudaError> {
        let config = self.weights.config();
        let num_layers = config.num_layers;
        let split_layer = (num_layers / 2).max(1);
        let [head_layers, tail_layers, all] =
            [[0, split_layer], [split_layer, num_layers], [0, num_layers]]
                .map(|[start, end]| LayerRange::new(start, end));
        let open = |gpu, layers| -> Result<(Tail, KvTable), CudaError> {
            let columns = KvTable::columns_for(STEPS.iter().sum());
            let sizes = TailSizes::new(MAX_ROWS, columns * num_layers);
            let mut table = KvTable::new(layers);
            let mut blocks = (0..).map(BlockId);
            for _ in 0..columns {
                table.push_column(&blocks.by_ref().take(layers.len()).collect::<Vec<_>>());
            }
            Ok((Tail::new(self.load(gpu, layers, dtype)?, sizes)?, table))
        };
        let mut head = open(&gpus[0], head_layers)?;
        let mut tail = open(&gpus[1], tail_layers)?;
        let mut uncut = open(&gpus[0], all)?;
        let mut cache = KvCache::new(config, head_layers, STEPS.iter().sum());
        let mut random = Random(SEED);
        let (mut states, mut expected_states) = (Vec::new(), Vec::new());
        let (mut logits, mut expected_logits) = (Vec::new(), Vec::new());
        for rows in STEPS {
            let token_ids: Vec<u32> = (0..rows)
                .map(|_| u32::try_from(random.below(config.vocab_size)).expect("below 2^21"))
                .collect();
            let mut x = self.decoder.embed(&token_ids)?;
            self.decoder.forward(head_layers, &mut x, &mut cache)?;
            expected_states.extend(x);
            start(&mut head, Input::TokenIds(&token_ids), rows)?;
            let hidden_states = head.0.hidden_states(0..rows)?.to_vec();
            head.0.finish()?;
            start(&mut tail, Input::HiddenStates(&hidden_states), rows)?;
            logits.extend_from_slice(tail.0.logits(0..1)?);
            tail.0.finish()?;
            start(&mut uncut, Input::TokenIds(&token_ids), rows)?;
            expected_logits.extend_from_slice(uncut.0.logits(0..1)?);
            uncut.0.finish()?;
            states.extend(hidden_states);
            for (_, table) in [&mut head, &mut tail, &mut uncut] {
                table.advance(rows);
            }
        }
        report(&Check {
            name: format!("{} {} hidden states", self.name, dtype.name()),
            difference: difference(&states, &expected_states),
            tolerance: tolerance(dtype),
            note: format!("of layers {head_layers}"),
        });
        let name = "head and tail by the host";
        report(&self.check(name, dtype, [&logits, &expected_logits], true));
        Ok(())
    }
}

/// Starts a step of one session, whose last row's logits are wanted where there are logits.
fn start(
    (tail, table): &mut (Tail, KvTable),
    input: Input<'_>,
    rows: usize,
) -> Result<(), CudaError> {
    let segment = Segment {
        entry_layer: table.layers().start,
        rows,
        input,
        table,
    };
    let last = u32::try_from(rows - 1).expect("few rows");
    tail.start(&[segment], &[last])
}
