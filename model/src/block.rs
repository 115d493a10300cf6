//! One decoder layer: norm, attention, residual; norm, gated MLP, residual.

use std::cell::RefCell;

use crate::attention::{AttentionShape, exp};
use crate::config::ModelConfig;
use crate::decoder::Segment;
use crate::error::LoadError;
use crate::kv_cache::store::{BLOCK_POSITIONS, KvStore};
use crate::linear::{Linear, for_rows};
use crate::norm::RmsNorm;
use crate::rope::Rope;
use crate::simd::{LANES, Simd, Work, dispatch};
use crate::weights::{StoreAs, Weights, names::in_layer};

/// The weights of one layer.
pub struct Block {
    layer: usize,
    attention_norm: RmsNorm,
    qkv: Linear,
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    output: Linear,
    mlp_norm: RmsNorm,
    gate_up: Linear,
    down: Linear,
    shape: AttentionShape,
    hidden_size: usize,
    intermediate_size: usize,
}

impl Block {
    /// Reads the weights of `layer`.
    ///
    /// # Errors
    /// [`LoadError`] naming the tensor that is missing, misshapen or of a wrong type.
    pub fn load(weights: &Weights, layer: usize, store_as: StoreAs) -> Result<Self, LoadError> {
        let config = weights.config();
        let (hidden, inter) = (config.hidden_size, config.intermediate_size);
        let matrix = |name: &str, outputs: usize, columns: usize| {
            weights.read(&in_layer(layer, name), &[outputs, columns])
        };
        let norm = |name: &str, len: usize| {
            let weight = weights.read_vector(&in_layer(layer, name), len)?;
            Ok::<_, LoadError>(RmsNorm::new(weight, config.rms_norm_eps))
        };
        let qkv = vec![
            matrix("attn_q.weight", config.q_size(), hidden)?,
            matrix("attn_k.weight", config.kv_size(), hidden)?,
            matrix("attn_v.weight", config.kv_size(), hidden)?,
        ];
        let gate_up = vec![
            matrix("ffn_gate.weight", inter, hidden)?,
            matrix("ffn_up.weight", inter, hidden)?,
        ];
        let qk_norm = if config.architecture.has_qk_norm() {
            Some((
                norm("attn_q_norm.weight", config.head_dim)?,
                norm("attn_k_norm.weight", config.head_dim)?,
            ))
        } else {
            None
        };
        Ok(Self {
            layer,
            attention_norm: norm("attn_norm.weight", hidden)?,
            qkv: Linear::new(qkv, qkv_bias(weights, layer)?, store_as)?,
            qk_norm,
            output: Linear::new(
                vec![matrix("attn_output.weight", hidden, config.q_size())?],
                None,
                store_as,
            )?,
            mlp_norm: norm("ffn_norm.weight", hidden)?,
            gate_up: Linear::new(gate_up, None, store_as)?,
            down: Linear::new(
                vec![matrix("ffn_down.weight", hidden, inter)?],
                None,
                store_as,
            )?,
            shape: AttentionShape {
                num_attention_heads: config.num_attention_heads,
                num_kv_heads: config.num_kv_heads,
                head_dim: config.head_dim,
                window: config.window_of(layer),
            },
            hidden_size: hidden,
            intermediate_size: inter,
        })
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let norms = self.attention_norm.bytes()
            + self.mlp_norm.bytes()
            + self
                .qk_norm
                .as_ref()
                .map_or(0, |(q, k)| q.bytes() + k.bytes());
        norms + self.qkv.bytes() + self.output.bytes() + self.gate_up.bytes() + self.down.bytes()
    }

    /// Runs the layer on rows of several sessions, in place. `hidden_states`: `[rows, hidden_size]`.
    pub(crate) fn forward(
        &self,
        hidden_states: &mut [f32],
        segments: &[Segment<'_>],
        store: &mut KvStore,
        rope: &Rope,
    ) {
        SCRATCH.with_borrow_mut(|scratch| {
            let rows = segments.iter().map(|segment| segment.rows).sum();
            let normed = sized(&mut scratch.normed, hidden_states.len());
            self.attention_norm.forward(hidden_states, normed);
            let qkv = sized(&mut scratch.wide, rows * self.qkv.outputs());
            self.qkv.forward(normed, rows, qkv);
            let context = sized(&mut scratch.context, rows * self.q_size());
            self.attend(qkv, context, segments, store, rope);
            self.output.forward(context, rows, normed);
            add(hidden_states, normed, self.hidden_size);

            self.mlp_norm.forward(hidden_states, normed);
            let chunk_len = MLP_ROWS * self.hidden_size;
            let chunks = hidden_states.chunks_mut(chunk_len);
            for (hidden_states, normed) in chunks.zip(normed.chunks_mut(chunk_len)) {
                let rows = hidden_states.len() / self.hidden_size;
                let gate_up = sized(&mut scratch.wide, rows * 2 * self.intermediate_size);
                self.gate_up.forward(normed, rows, gate_up);
                let gated = sized(&mut scratch.context, rows * self.intermediate_size);
                silu_product(gate_up, gated, self.intermediate_size);
                self.down.forward(gated, rows, normed);
                add(hidden_states, normed, self.hidden_size);
            }
        });
    }

    const fn q_size(&self) -> usize {
        self.shape.num_attention_heads * self.shape.head_dim
    }

    /// Rotates q and k, writes k and v to the store, and attends.
    fn attend(
        &self,
        qkv: &mut [f32],
        context: &mut [f32],
        segments: &[Segment<'_>],
        store: &mut KvStore,
        rope: &Rope,
    ) {
        let stride = self.qkv.outputs();
        let q_size = self.q_size();
        let kv_size = self.shape.num_kv_heads * self.shape.head_dim;
        let places: Vec<_> = segments
            .iter()
            .flat_map(|Segment { table, rows }| {
                (table.len()..table.len() + rows).map(move |position| (*table, position))
            })
            .collect();
        for_rows(stride, qkv, |row, qkv| {
            let (_, position) = places[row];
            let (q, kv) = qkv.split_at_mut(q_size);
            let k = &mut kv[..kv_size];
            if let Some((q_norm, k_norm)) = &self.qk_norm {
                q_norm.forward_in_place(q);
                k_norm.forward_in_place(k);
            }
            rope.rotate(q, position);
            rope.rotate(k, position);
        });
        for ((table, position), qkv) in places.iter().zip(qkv.chunks_exact(stride)) {
            let (k, v) = qkv[q_size..].split_at(kv_size);
            let block = table.block(self.layer, position / BLOCK_POSITIONS);
            store.write(block, position % BLOCK_POSITIONS, k, v);
        }
        let cache = (&*store, self.layer);
        self.shape.forward(cache, segments, qkv, stride, context);
    }
}

/// The biases of q, k and v one after the other, where the family has them.
fn qkv_bias(weights: &Weights, layer: usize) -> Result<Option<Vec<f32>>, LoadError> {
    let config = weights.config();
    if !config.architecture.has_qkv_bias() {
        return Ok(None);
    }
    let mut bias = weights.read_vector(&in_layer(layer, "attn_q.bias"), config.q_size())?;
    bias.extend(weights.read_vector(&in_layer(layer, "attn_k.bias"), config.kv_size())?);
    bias.extend(weights.read_vector(&in_layer(layer, "attn_v.bias"), config.kv_size())?);
    Ok(Some(bias))
}

/// The tensors of a layer, and their shapes; for writing a layer to a file of its own.
#[must_use]
pub(crate) fn tensors(config: &ModelConfig, layer: usize) -> Vec<(String, Vec<usize>)> {
    let (hidden, inter) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.q_size(), config.kv_size());
    let mut tensors = vec![
        ("attn_norm.weight", vec![hidden]),
        ("attn_q.weight", vec![q, hidden]),
        ("attn_k.weight", vec![kv, hidden]),
        ("attn_v.weight", vec![kv, hidden]),
        ("attn_output.weight", vec![hidden, q]),
        ("ffn_norm.weight", vec![hidden]),
        ("ffn_gate.weight", vec![inter, hidden]),
        ("ffn_up.weight", vec![inter, hidden]),
        ("ffn_down.weight", vec![hidden, inter]),
    ];
    if config.architecture.has_qkv_bias() {
        tensors.extend([
            ("attn_q.bias", vec![q]),
            ("attn_k.bias", vec![kv]),
            ("attn_v.bias", vec![kv]),
        ]);
    }
    if config.architecture.has_qk_norm() {
        let head_dim = config.head_dim;
        tensors.extend([
            ("attn_q_norm.weight", vec![head_dim]),
            ("attn_k_norm.weight", vec![head_dim]),
        ]);
    }
    tensors
        .into_iter()
        .map(|(name, shape)| (in_layer(layer, name), shape))
        .collect()
}

/// Memory for what a layer computes; some of it has two uses, one after the other.
#[derive(Default)]
struct Scratch {
    /// `[rows, hidden_size]`.
    normed: Vec<f32>,
    /// q, k and v; then gate and up.
    wide: Vec<f32>,
    /// What attention gives; then what the gate lets through.
    context: Vec<f32>,
}

thread_local! {
    /// As large as the largest batch of this thread: clearing new memory for each layer takes a twentieth of
    /// the time.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The first `len` values of `memory`, which grows where it must; they are what was there last.
fn sized(memory: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if memory.len() < len {
        memory.resize(len, 0.0);
    }
    &mut memory[..len]
}

/// Rows that pass through the MLP together: what lies between its products stays in a core's own cache.
const MLP_ROWS: usize = 128;

/// `[rows, columns]` each.
fn add(to: &mut [f32], from: &[f32], columns: usize) {
    for_rows(columns, to, |row, to| {
        let from = &from[row * columns..(row + 1) * columns];
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
    });
}

/// `silu(gate) · up`; `gate_up`: `[rows, 2 · size]`, `out`: `[rows, size]`.
fn silu_product(gate_up: &[f32], out: &mut [f32], size: usize) {
    for_rows(size, out, |row, out| {
        let (gate, up) = gate_up[2 * row * size..2 * (row + 1) * size].split_at(size);
        dispatch(SiluProduct { gate, up, out });
    });
}

struct SiluProduct<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Work for SiluProduct<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (gates, last_gate) = self.gate.as_chunks::<LANES>();
        let (ups, last_up) = self.up.as_chunks::<LANES>();
        let (outs, last_out) = self.out.as_chunks_mut::<LANES>();
        for ((gate, up), out) in gates.iter().zip(ups).zip(outs) {
            *out = silu_times(*gate, *up);
        }
        let mut gate = [0.0; LANES];
        gate[..last_gate.len()].copy_from_slice(last_gate);
        let mut up = [0.0; LANES];
        up[..last_up.len()].copy_from_slice(last_up);
        last_out.copy_from_slice(&silu_times(gate, up)[..last_out.len()]);
    }
}

/// `exp(-|g|)` never overflows: `silu(g) = g / (1 + e^-g)`, or `g e^g / (1 + e^g)` below zero.
///
/// By value, so that the compiler knows that nothing overlaps and keeps vectors.
#[inline(always)]
fn silu_times(gate: [f32; LANES], up: [f32; LANES]) -> [f32; LANES] {
    let mut e = gate;
    for e in &mut e {
        *e = -e.abs();
    }
    exp(&mut e, 0.0);
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        let numerator = if gate[i] < 0.0 {
            gate[i] * e[i]
        } else {
            gate[i]
        };
        out[i] = numerator / (1.0 + e[i]) * up[i];
    }
    out
}
