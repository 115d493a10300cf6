//! An early exit as a network that can be trained; the arithmetic of `headway_model::EarlyExit` in f32.

use std::collections::BTreeMap;

use candle_core::{D, Device, Result, Tensor, Var};
use headway_model::config::ModelConfig;
use headway_model::early_exit::{ExitWeights, INPUT_BIAS, INPUT_WEIGHT, exit_tensors};
use headway_model::rope::Rope;
use headway_model::weights::names::{EMBEDDING, OUTPUT_NORM, in_layer};

use super::attention::attention;
use super::product::product;
use super::row_operations::{rms_norm, rotate, silu_product};

/// What is trained, and the lm_head, which is not.
pub(super) struct Network {
    config: ModelConfig,
    /// By tensor name.
    pub(super) vars: BTreeMap<String, Var>,
    /// `[draft_vocab_size, hidden_size]`.
    pub(super) lm_head: Tensor,
    /// `[positions, head_dim / 2]`.
    cos: Tensor,
    sin: Tensor,
}

impl Network {
    /// Begins with `weights`, for texts of at most `max_positions`.
    pub(super) fn new(weights: &ExitWeights, max_positions: usize) -> Result<Self> {
        let config = weights.config.clone();
        let mut vars = BTreeMap::new();
        let mut lm_head = None;
        for (name, shape) in exit_tensors(&config) {
            let values = weights.tensors.iter().find(|(found, _)| *found == name);
            let values = values.map_or_else(Vec::new, |(_, values)| values.clone());
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
            if name == EMBEDDING {
                lm_head = Some(tensor);
            } else {
                vars.insert(name, Var::from_tensor(&tensor)?);
            }
        }
        let (cos, sin) = angles(&config, max_positions)?;
        Ok(Self {
            vars,
            lm_head: lm_head.ok_or_else(|| candle_core::Error::Msg(EMBEDDING.to_owned()))?,
            cos,
            sin,
            config,
        })
    }

    /// What is trained now, by name.
    pub(super) fn tensors(&self) -> Result<Vec<(String, Vec<f32>)>> {
        let lm_head = (EMBEDDING.to_owned(), self.lm_head.flatten_all()?.to_vec1()?);
        let trained = self.vars.iter().map(|(name, var)| {
            let values = var.flatten_all()?.to_vec1()?;
            Ok((name.clone(), values))
        });
        trained.chain([Ok(lm_head)]).collect()
    }

    /// `hidden_states`: `[batch, positions, hidden_size]` behind the split layer. Returns what the lm_head takes, of the
    /// same shape.
    pub(super) fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let input = linear(hidden_states, &self.vars[INPUT_WEIGHT])?;
        let mut x = input.broadcast_add(&self.vars[INPUT_BIAS])?;
        for layer in 0..self.config.num_layers {
            x = (&x + self.attention(layer, &x)?)?;
            x = (&x + self.mlp(layer, &x)?)?;
        }
        self.norm(&x, OUTPUT_NORM)
    }

    fn attention(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let (batch, positions, _) = x.dims3()?;
        let config = &self.config;
        let (heads, kv_heads) = (config.num_attention_heads, config.num_kv_heads);
        let head_dim = config.head_dim;
        let normed = self.norm(x, &in_layer(layer, "attn_norm.weight"))?;
        let projected = |name: &str, heads: usize| {
            let mut out = linear(&normed, self.weight(layer, &format!("attn_{name}.weight")))?;
            if config.architecture.has_qkv_bias() {
                out = out.broadcast_add(self.weight(layer, &format!("attn_{name}.bias")))?;
            }
            out.reshape((batch, positions, heads, head_dim))
        };
        let rotated = |name: &str, heads: usize| {
            let mut out = projected(name, heads)?;
            if config.architecture.has_qk_norm() {
                out = self.norm(&out, &in_layer(layer, &format!("attn_{name}_norm.weight")))?;
            }
            rotate(&out, &self.cos, &self.sin, config.rope_layout)
        };
        let (q, k) = (rotated("q", heads)?, rotated("k", kv_heads)?);
        let context = attention(&q, &k, &projected("v", kv_heads)?)?;
        let context = context.reshape((batch, positions, heads * head_dim))?;
        linear(&context, self.weight(layer, "attn_output.weight"))
    }

    fn mlp(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let normed = self.norm(x, &in_layer(layer, "ffn_norm.weight"))?;
        let gate = linear(&normed, self.weight(layer, "ffn_gate.weight"))?;
        let up = linear(&normed, self.weight(layer, "ffn_up.weight"))?;
        let gated = silu_product(&gate, &up)?;
        linear(&gated, self.weight(layer, "ffn_down.weight"))
    }

    fn weight(&self, layer: usize, name: &str) -> &Var {
        &self.vars[&in_layer(layer, name)]
    }

    /// RMS norm over the last dimension.
    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        rms_norm(x, &self.vars[name], self.config.rms_norm_eps)
    }
}

/// `x Wᵀ` over the last dimension.
fn linear(x: &Tensor, weight: &Var) -> Result<Tensor> {
    let (rows, columns) = (x.elem_count() / x.dim(D::Minus1)?, x.dim(D::Minus1)?);
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = weight.dim(0)?;
    }
    product(&x.reshape((rows, columns))?, &weight.t()?)?.reshape(shape)
}

fn angles(config: &ModelConfig, max_positions: usize) -> Result<(Tensor, Tensor)> {
    let rope = Rope::new(config);
    let factor = rope.attention_factor();
    let of = |part: fn(f32) -> f32| {
        #[expect(clippy::cast_precision_loss, reason = "positions of a short text")]
        let values: Vec<f32> = (0..max_positions)
            .flat_map(|position| {
                let turns = rope.inverse_frequencies().iter();
                turns.map(move |frequency| part(position as f32 * frequency) * factor)
            })
            .collect();
        Tensor::from_vec(values, (max_positions, config.head_dim / 2), &Device::Cpu)
    };
    Ok((of(f32::cos)?, of(f32::sin)?))
}
