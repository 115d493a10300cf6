//! One decoder layer: norm, attention, residual; norm, gated MLP, residual.

use crate::attention::{AttentionShape, LayerCache, exp};
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
        let rows = segments.iter().map(|segment| segment.rows).sum();
        let mut normed = vec![0.0; hidden_states.len()];
        self.attention_norm.forward(hidden_states, &mut normed);
        let mut qkv = vec![0.0; rows * self.qkv.outputs()];
        self.qkv.forward(&normed, rows, &mut qkv);
        let mut context = vec![0.0; rows * self.shape.num_attention_heads * self.shape.head_dim];
        self.attend(&mut qkv, &mut context, segments, store, rope);
        self.output.forward(&context, rows, &mut normed);
        add(hidden_states, &normed);

        self.mlp_norm.forward(hidden_states, &mut normed);
        let mut gate_up = vec![0.0; rows * 2 * self.intermediate_size];
        self.gate_up.forward(&normed, rows, &mut gate_up);
        let mut gated = vec![0.0; rows * self.intermediate_size];
        silu_product(&gate_up, &mut gated, self.intermediate_size);
        self.down.forward(&gated, rows, &mut normed);
        add(hidden_states, &normed);
    }

    /// Rotates q and k, writes k and v to the store, and attends, session by session.
    fn attend(
        &self,
        qkv: &mut [f32],
        context: &mut [f32],
        segments: &[Segment<'_>],
        store: &mut KvStore,
        rope: &Rope,
    ) {
        let stride = self.qkv.outputs();
        let q_size = self.shape.num_attention_heads * self.shape.head_dim;
        let kv_size = self.shape.num_kv_heads * self.shape.head_dim;
        let mut row = 0;
        for segment in segments {
            let qkv = &mut qkv[row * stride..(row + segment.rows) * stride];
            for (i, qkv) in qkv.chunks_exact_mut(stride).enumerate() {
                let position = segment.table.len() + i;
                let (qk, v) = qkv.split_at_mut(q_size + kv_size);
                if let Some((q_norm, k_norm)) = &self.qk_norm {
                    q_norm.forward_in_place(&mut qk[..q_size]);
                    k_norm.forward_in_place(&mut qk[q_size..]);
                }
                rope.rotate(qk, position);
                let block = segment.table.block(self.layer, position / BLOCK_POSITIONS);
                store.write(block, position % BLOCK_POSITIONS, &qk[q_size..], v);
            }
            let context = &mut context[row * q_size..(row + segment.rows) * q_size];
            let cache = LayerCache {
                store,
                table: segment.table,
                layer: self.layer,
            };
            self.shape.forward(cache, qkv, stride, context);
            row += segment.rows;
        }
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

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
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
        let chunks = self
            .gate
            .chunks(LANES)
            .zip(self.up.chunks(LANES))
            .zip(self.out.chunks_mut(LANES));
        for ((gate, up), out) in chunks {
            // exp(-|g|) never overflows: silu(g) = g / (1 + e^-g), or g e^g / (1 + e^g) below zero.
            let mut e = [0.0; LANES];
            e.iter_mut()
                .zip(gate)
                .for_each(|(e, gate)| *e = -gate.abs());
            exp(&mut e, 0.0);
            for (((out, gate), up), e) in out.iter_mut().zip(gate).zip(up).zip(e) {
                let numerator = if *gate < 0.0 { gate * e } else { *gate };
                *out = numerator / (1.0 + e) * up;
            }
        }
    }
}
