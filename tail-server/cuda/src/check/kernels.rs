//! Every kernel but attention and products, on sizes that fill no block.

use std::sync::Arc;

use cudarc::driver::CudaSlice;
use headway_model::config::{Architecture, RopeLayout, RopeScaling};
use headway_model::rope::Rope;
use headway_model::{BLOCK_POSITIONS, BlockId, KvTable, LayerRange, ModelConfig};

use super::host::{down, rounded, up};
use super::{Check, Random, difference};
use crate::attention::{Cut, RopeKv};
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::kernels::{AddNorm, Kernels, NormRows, Planes};
use crate::step::{Batch, Bounds, Input, Segment, Step};
use crate::weights::heads_of;

/// The layer in which the rotation's check writes keys and values.
const ROPE_LAYER: usize = 2;

pub(super) fn all(gpu: &Arc<Gpu>, report: &mut impl FnMut(&Check)) -> Result<(), CudaError> {
    for dtype in Dtype::ALL {
        for hidden in [8, 100, 576, 4096] {
            report(&rows(gpu, dtype, hidden)?);
        }
    }
    ropes(gpu, report)
}

/// The rotation and the write of keys and values.
pub(super) fn ropes(gpu: &Arc<Gpu>, report: &mut impl FnMut(&Check)) -> Result<(), CudaError> {
    for dtype in Dtype::ALL {
        for (head_dim, heads, kv_heads) in [
            (8, 1, 1),
            (16, 4, 2),
            (40, 14, 2),
            (64, 9, 3),
            (80, 5, 5),
            (128, 32, 8),
            (256, 2, 1),
        ] {
            for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
                let mut config = config(heads, kv_heads, head_dim);
                config.rope_layout = layout;
                report(&rope_kv(gpu, dtype, &config)?);
            }
        }
    }
    Ok(())
}

/// What a kernel's result may be apart from the same arithmetic on the host.
pub(super) const fn tolerance(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 1e-5,
        Dtype::F16 => 1e-3,
        Dtype::Bf16 => 8e-3,
    }
}

/// A model of one layer with these heads; the other sizes are small.
pub(crate) fn config(heads: usize, kv_heads: usize, head_dim: usize) -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Qwen3,
        num_layers: 4,
        hidden_size: 8,
        intermediate_size: 8,
        num_attention_heads: heads,
        num_kv_heads: kv_heads,
        head_dim,
        vocab_size: 1000,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_layout: RopeLayout::Half,
        rope_scaling: RopeScaling::None,
        max_positions: 1 << 17,
        tied_embeddings: true,
        sliding_window: None,
        sliding_window_start_layer: 0,
    }
}

/// A table over the layers from `entry_layer` to the last one, with `positions` held, and blocks for `rows` more
/// taken from `free`.
pub(super) fn table(
    config: &ModelConfig,
    entry_layer: usize,
    [positions, rows]: [usize; 2],
    free: &mut impl Iterator<Item = u32>,
) -> KvTable {
    let layers = LayerRange::new(entry_layer, config.num_layers);
    let mut table = KvTable::new(layers);
    for _ in 0..KvTable::columns_for(positions + rows) {
        let column: Vec<BlockId> = free.by_ref().take(layers.len()).map(BlockId).collect();
        table.push_column(&column);
    }
    table.advance(positions);
    table
}

/// Where an element of a position lies among a block's keys or values of one head, as `kernels/step.cuh` has it.
pub(super) const fn element_at(position: usize, element: usize, head_dim: usize) -> usize {
    let within = position % BLOCK_POSITIONS;
    if !head_dim.is_multiple_of(64) {
        return within * head_dim + element;
    }
    let eight = ((element / 8) ^ within) % 8;
    (element / 64 * BLOCK_POSITIONS + within) * 64 + eight * 8 + element % 8
}

/// Bounds that the checks stay within.
pub(super) fn bounds(config: &ModelConfig, kv_blocks: usize, cut: Cut) -> Bounds {
    Bounds {
        first_block: 0,
        max_rows: 4096,
        kv_blocks,
        cut,
        one_order: false,
        layers: LayerRange::new(0, config.num_layers),
    }
}

/// A step of four rows of token ids at layer 0 and three of hidden states at layer 2, on the device. The second, the
/// fourth and the last row are wanted.
fn of_both_inputs(
    gpu: &Arc<Gpu>,
    kernels: &Kernels,
    config: &ModelConfig,
    token_ids: &[u32],
    states: &[f32],
) -> Result<Step, CudaError> {
    let mut free = 0..64;
    let tables = [
        table(config, 0, [0, 4], &mut free),
        table(config, 2, [5, 3], &mut free),
    ];
    let segments = [
        Segment {
            entry_layer: 0,
            rows: 4,
            input: Input::TokenIds(token_ids),
            table: &tables[0],
        },
        Segment {
            entry_layer: 2,
            rows: 3,
            input: Input::HiddenStates(states),
            table: &tables[1],
        },
    ];
    let wanted = [1, 3, 6];
    let mut step = Step::new(gpu, 64, config.hidden_size)?;
    step.upload(
        gpu,
        &bounds(config, 64, kernels.attention.cut(64)),
        &Batch::new(&segments, &wanted),
    )?;
    Ok(step)
}

/// Token ids and hidden states become rows; the wanted ones are normed.
fn rows(gpu: &Arc<Gpu>, dtype: Dtype, hidden: usize) -> Result<Check, CudaError> {
    let mut random = Random(hidden as u64);
    let mut config = config(1, 1, 8);
    config.hidden_size = hidden;
    let kernels = Kernels::new(gpu, dtype, heads_of(&config)?)?;
    let embedding = rounded(&random.values(config.vocab_size * hidden), dtype);
    let states = random.values(3 * hidden);
    let token_ids = [0, 999, 17, 500];
    let weight = random.values(hidden);
    let step = of_both_inputs(gpu, &kernels, &config, &token_ids, &states)?;

    let x = up(gpu, &vec![9.0; 7 * hidden], Dtype::F32)?;
    let out = up(gpu, &vec![9.0; 7 * hidden], dtype)?;
    let device_embedding = up(gpu, &embedding, dtype)?;
    let width = u32::try_from(hidden).expect("sizes of the checks are small");
    let address = |memory| gpu.address(memory);
    let incoming = step.incoming(gpu);
    let step = step.address(gpu);
    let assemble = [address(&x), address(&device_embedding), incoming, step];
    kernels.assemble(gpu, assemble, 7, width)?;
    let mut expected: Vec<f32> = Vec::new();
    for token_id in token_ids {
        expected.extend(&embedding[token_id as usize * hidden..][..hidden]);
    }
    expected.extend(&states);
    let mut worst = difference(&down(gpu, &x, Dtype::F32)?, &expected);
    // Assembling changes no bit.
    worst = if worst == 0.0 { worst } else { f64::INFINITY };

    let norms = Norms {
        planes: random.values(2 * 7 * hidden),
        weight,
        eps: config.rms_norm_eps,
        hidden,
    };
    worst = worst.max(norms.worst(gpu, &kernels, (dtype, step), [&x, &out], expected)?);
    Ok(Check {
        name: format!("assemble and norm {} hidden {hidden}", dtype.name()),
        difference: worst,
        tolerance: tolerance(dtype),
        note: String::new(),
    })
}

/// A product onto rows, in two planes, and their norm.
struct Norms {
    /// `[plane, row, hidden]`.
    planes: Vec<f32>,
    weight: Vec<f32>,
    eps: f32,
    hidden: usize,
}

impl Norms {
    /// The largest difference of all kinds of norms. `expected`: what is in `x`, seven rows.
    fn worst(
        &self,
        gpu: &Arc<Gpu>,
        kernels: &Kernels,
        (dtype, step): (Dtype, u64),
        [x, out]: [&CudaSlice<u8>; 2],
        mut expected: Vec<f32>,
    ) -> Result<f64, CudaError> {
        let hidden = self.hidden;
        let mut worst = 0_f64;
        let device_planes = up(gpu, &self.planes, Dtype::F32)?;
        let device_weight = up(gpu, &self.weight, Dtype::F32)?;
        let stamps = up(gpu, &[0.0; 16], Dtype::F32)?;
        let address = |memory| gpu.address(memory);
        let what = AddNorm {
            x: address(x),
            product: Planes {
                address: address(&device_planes),
                planes: 2,
                stride: (7 * hidden) as u64,
            },
            weight: address(&device_weight),
            out: address(out),
            hidden_size: u32::try_from(hidden).expect("sizes of the checks are small"),
            stamps: address(&stamps),
        };
        let planes = &self.planes;
        let plus = |rows: usize, x: &[f32]| -> Vec<f32> {
            let add = |(i, x): (usize, &f32)| match i {
                i if i < rows * hidden => x + planes[i] + planes[7 * hidden + i],
                _ => *x,
            };
            x.iter().enumerate().map(add).collect()
        };
        // At layer 2 three rows join, which have no product yet; later all have one.
        kernels.add_norm(gpu, what, NormRows::BeforeLayer(7), (step, 2))?;
        expected = plus(4, &expected);
        worst = worst.max(difference(&down(gpu, x, Dtype::F32)?, &expected));
        let norms = |x: &[f32]| -> Vec<f32> {
            let norm = |x| host_norm(x, &self.weight, self.eps);
            x.chunks_exact(hidden).flat_map(norm).collect()
        };
        worst = worst.max(difference(&down(gpu, out, dtype)?, &norms(&expected)));
        kernels.add_norm(gpu, what, NormRows::WithinLayer(7), (step, 2))?;
        expected = plus(7, &expected);
        worst = worst.max(difference(&down(gpu, x, Dtype::F32)?, &expected));
        // The second and the third of the wanted rows.
        let wanted = NormRows::Wanted { first: 1, count: 2 };
        kernels.add_norm(gpu, what, wanted, (step, 4))?;
        let all = norms(&plus(7, &expected));
        let normed = [&all[3 * hidden..4 * hidden], &all[6 * hidden..]].concat();
        let got = down(gpu, out, dtype)?;
        worst = worst.max(difference(&got[..2 * hidden], &normed));
        Ok(worst)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "the reference is f64"
)]
fn host_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    let values = x.iter().zip(weight);
    values
        .map(|(x, weight)| (f64::from(*x) * scale * f64::from(*weight)) as f32)
        .collect()
}

/// q is rotated; k and v lie in their blocks, and nothing else is touched.
fn rope_kv(gpu: &Arc<Gpu>, dtype: Dtype, config: &ModelConfig) -> Result<Check, CudaError> {
    const ROWS: usize = 37;
    const BLOCKS: usize = 24;
    const UNTOUCHED: f32 = 9.0;
    let (dim, kv_heads) = (config.head_dim, config.num_kv_heads);
    let heads = config.num_attention_heads + 2 * kv_heads;
    let mut random = Random((dim * heads) as u64);
    let kernels = Kernels::new(gpu, dtype, heads_of(config)?)?;
    // Two planes, of which the sum is rotated.
    let planes = random.values(2 * ROWS * heads * dim);
    let (first, second) = planes.split_at(ROWS * heads * dim);
    let qkv: Vec<f32> = first.iter().zip(second).map(|(a, b)| a + b).collect();
    let [bias, q_norm, k_norm] = [heads * dim, dim, dim].map(|len| random.values(len));
    let mut free = random.permutation(BLOCKS).into_iter();
    let table = table(config, 1, [45, ROWS], &mut free);
    let states = vec![0.0; ROWS * config.hidden_size];
    let segment = Segment {
        entry_layer: 1,
        rows: ROWS,
        input: Input::HiddenStates(&states),
        table: &table,
    };
    let mut step = Step::new(gpu, 64, config.hidden_size)?;
    let bounds = bounds(config, BLOCKS, kernels.attention.cut(64));
    step.upload(gpu, &bounds, &Batch::new(&[segment], &[]))?;

    let rope = Rope::new(config);
    let frequencies = up(gpu, rope.inverse_frequencies(), Dtype::F32)?;
    let angles = up(gpu, &vec![0.0; ROWS * dim], Dtype::F32)?;
    let kv_len = BLOCKS * 2 * kv_heads * BLOCK_POSITIONS * dim;
    let kv = up(gpu, &vec![UNTOUCHED; kv_len], dtype)?;
    let device_qkv = up(gpu, &planes, Dtype::F32)?;
    let q = up(gpu, &vec![UNTOUCHED; ROWS * config.q_size()], dtype)?;
    let vectors = [&bias, &q_norm, &k_norm].map(|vector| up(gpu, vector, Dtype::F32));
    let [device_bias, device_q_norm, device_k_norm] = vectors;
    let (device_bias, device_q_norm, device_k_norm) =
        (device_bias?, device_q_norm?, device_k_norm?);
    let address = |memory| gpu.address(memory);
    let step = step.address(gpu);
    kernels.angles(
        gpu,
        [address(&angles), address(&frequencies), step],
        37,
        rope.attention_factor(),
    )?;
    let what = RopeKv {
        qkv: Planes {
            address: address(&device_qkv),
            planes: 2,
            stride: (ROWS * heads * dim) as u64,
        },
        q: address(&q),
        kv: address(&kv),
        angles: address(&angles),
        bias: address(&device_bias),
        q_norm: address(&device_q_norm),
        k_norm: address(&device_k_norm),
    };
    let layer = u32::try_from(ROPE_LAYER).expect("sizes of the checks are small");
    kernels
        .attention
        .rope_kv(gpu, what, step, [layer, layer], 37)?;

    let vectors = [&bias[..], &q_norm, &k_norm];
    let [expected_q, expected_kv] = host_rope_kv(
        config,
        &table,
        &rope,
        vectors,
        [&qkv, &vec![UNTOUCHED; kv_len]],
    );
    let q = difference(&down(gpu, &q, dtype)?, &expected_q);
    let kv = difference(&down(gpu, &kv, dtype)?, &expected_kv);
    Ok(Check {
        name: format!(
            "rope and KV write {} head_dim {dim} heads {heads} {:?}",
            dtype.name(),
            config.rope_layout
        ),
        difference: q.max(kv),
        tolerance: tolerance(dtype),
        note: String::new(),
    })
}

/// What [`rope_kv`] expects: `[q, kv]` as they are to become. `vectors`: bias, q norm and k norm.
fn host_rope_kv(
    config: &ModelConfig,
    table: &KvTable,
    rope: &Rope,
    [bias, q_norm, k_norm]: [&[f32]; 3],
    [qkv, kv]: [&[f32]; 2],
) -> [Vec<f32>; 2] {
    let (dim, kv_heads, q_heads) = (
        config.head_dim,
        config.num_kv_heads,
        config.num_attention_heads,
    );
    let heads = q_heads + 2 * kv_heads;
    let (mut q, mut new_kv) = (Vec::new(), kv.to_vec());
    for (index, values) in qkv.chunks_exact(dim).enumerate() {
        let (row, head) = (index / heads, index % heads);
        let position = table.len() + row;
        let block = table.block(ROPE_LAYER, position / BLOCK_POSITIONS).0 as usize;
        let mut set = |part: usize, kv_head: usize, values: &[f32]| {
            let head = (block * 2 + part) * kv_heads + kv_head;
            let of_head = &mut new_kv[head * BLOCK_POSITIONS * dim..][..BLOCK_POSITIONS * dim];
            for (element, value) in values.iter().enumerate() {
                of_head[element_at(position, element, dim)] = *value;
            }
        };
        let bias = &bias[head * dim..];
        let biased: Vec<f32> = values.iter().zip(bias).map(|(x, bias)| x + bias).collect();
        if head >= q_heads + kv_heads {
            set(1, head - q_heads - kv_heads, &biased);
            continue;
        }
        let norm = if head < q_heads { q_norm } else { k_norm };
        let mut rotated = host_norm(&biased, norm, config.rms_norm_eps);
        rope.rotate(&mut rotated, position);
        if head < q_heads {
            q.extend(rotated);
        } else {
            set(0, head - q_heads, &rotated);
        }
    }
    [q, new_kv]
}
