//! The weights of a range of layers in device memory.

use std::sync::Arc;

use cudarc::driver::CudaSlice;
use headway_model::config::RopeLayout;
use headway_model::rope::Rope;
use headway_model::weights::names::{self, in_layer};
use headway_model::weights::{WeightDtype, Weights};
use headway_model::{LayerRange, LoadError, ModelConfig, Quantization};

use self::sources::{FromFile, Hold, OnTheFly, Random, Source};
use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::kernels::{Heads, Kernels};
use crate::packed::Format;
use crate::products::{Matrix, Outputs};

mod end;
mod sources;

pub(crate) use self::end::EndWeights;

/// Layers `[start, end)`, the embedding where `start` is 0, and final norm and lm_head where `end` is the model's
/// number of layers.
pub struct TailWeights {
    pub(crate) gpu: Arc<Gpu>,
    pub(crate) config: ModelConfig,
    pub(crate) layers: LayerRange,
    pub(crate) dtype: Dtype,
    /// `[vocab_size, hidden_size]`.
    pub(crate) embedding: Option<Arc<CudaSlice<u8>>>,
    pub(crate) blocks: Vec<LayerWeights>,
    /// What follows the model's last layer, where that is here.
    pub(crate) end: Option<EndWeights>,
    pub(crate) inverse_frequencies: CudaSlice<f32>,
    pub(crate) attention_factor: f32,
    bytes: usize,
}

/// Matrices are `[outputs, columns]` in the weights' type; vectors are f32.
pub(crate) struct LayerWeights {
    pub(crate) attention_norm: CudaSlice<f32>,
    /// q, k and v one below the other.
    pub(crate) qkv: Matrix,
    pub(crate) qkv_bias: Option<CudaSlice<f32>>,
    /// Of each head's q, and of each head's k.
    pub(crate) qk_norm: Option<[CudaSlice<f32>; 2]>,
    pub(crate) output: Matrix,
    pub(crate) mlp_norm: CudaSlice<f32>,
    /// gate and up one below the other.
    pub(crate) gate_up: Matrix,
    pub(crate) down: Matrix,
}

impl TailWeights {
    /// Reads `layers`, and what comes before and after them in the model. [`WeightDtype::Native`] takes the type that
    /// the file's matrices have; quantised ones stay quantised where there are kernels for them (on Hopper), and become
    /// bf16 elsewhere. [`WeightDtype::Fp8`] makes e4m3 of all matrices but lm_head and embedding on Hopper, and is as
    /// native elsewhere.
    ///
    /// An embedding is held in two bytes a value in any case, also where it is the lm_head too: rows of it are read as
    /// they are. One matrix at a time is in the host's memory.
    ///
    /// # Errors
    /// [`CudaError::Load`] where a tensor cannot be read, [`CudaError::Unsupported`] for sizes without kernels,
    /// [`CudaError::Driver`] where the device has too little memory.
    pub fn load(
        gpu: &Arc<Gpu>,
        weights: &Weights,
        layers: LayerRange,
        dtype: WeightDtype,
    ) -> Result<Self, CudaError> {
        let config = weights.config().clone();
        check_layers(&config, layers)?;
        let (dtype, hold) = match (dtype, dtype_of(weights, layers, dtype)?) {
            (WeightDtype::Fp8, _) if gpu.is_hopper() => (Dtype::Bf16, Hold::Float8),
            // The kernels for blocks have x in bf16.
            (WeightDtype::Native | WeightDtype::Fp8, Dtype::Bf16) if gpu.is_hopper() => {
                (Dtype::Bf16, Hold::Blocks)
            }
            (_, dtype) => (dtype, Hold::Dense),
        };
        let mut source = FromFile {
            gpu,
            weights,
            dtype,
            hold,
        };
        Self::from_source(gpu, config, layers, dtype, &mut source)
    }

    /// Random weights of a model's shape, for measurements: the same for the same arguments.
    ///
    /// # Errors
    /// As [`TailWeights::load`], without the files.
    pub fn random(
        gpu: &Arc<Gpu>,
        config: ModelConfig,
        layers: LayerRange,
        dtype: Dtype,
    ) -> Result<Self, CudaError> {
        Self::random_in(gpu, config, layers, (dtype, None))
    }

    /// As [`TailWeights::random`], in bf16 and with matrices in fewer bits, whose values are the same in all chunks.
    pub(crate) fn random_packed(
        gpu: &Arc<Gpu>,
        config: ModelConfig,
        layers: LayerRange,
        format: Format,
    ) -> Result<Self, CudaError> {
        Self::random_in(gpu, config, layers, (Dtype::Bf16, Some(format)))
    }

    fn random_in(
        gpu: &Arc<Gpu>,
        config: ModelConfig,
        layers: LayerRange,
        (dtype, format): (Dtype, Option<Format>),
    ) -> Result<Self, CudaError> {
        check_layers(&config, layers)?;
        let kernels = Kernels::new(gpu, dtype, heads_of(&config)?)?;
        let mut source = Random {
            gpu,
            dtype,
            format,
            kernels,
            seed: 1,
        };
        Self::from_source(gpu, config, layers, dtype, &mut source)
    }

    /// The layers alone: they give hidden states, also where they end the model.
    #[must_use]
    pub fn without_end(mut self) -> Self {
        if let Some(end) = self.end.take() {
            self.bytes -= end.lm_head.bytes();
        }
        self
    }

    /// For comparisons: all matrices but the embedding quantised when they are read, or in e4m3 without a
    /// `quantization`. `is_widened`: to bf16 again, so that other kernels multiply with the same values.
    pub(crate) fn quantized(
        gpu: &Arc<Gpu>,
        weights: &Weights,
        quantization: Option<Quantization>,
        is_widened: bool,
    ) -> Result<Self, CudaError> {
        let config = weights.config().clone();
        let layers = LayerRange::new(0, config.num_layers);
        let mut source = OnTheFly {
            gpu,
            weights,
            quantization,
            is_widened,
        };
        Self::from_source(gpu, config, layers, Dtype::Bf16, &mut source)
    }

    fn from_source(
        gpu: &Arc<Gpu>,
        config: ModelConfig,
        layers: LayerRange,
        dtype: Dtype,
        source: &mut impl Source,
    ) -> Result<Self, CudaError> {
        heads_of(&config)?;
        let vocabulary = [config.vocab_size, config.hidden_size];
        let embedding = if layers.start == 0 {
            let matrix = source.dense(&[(names::EMBEDDING.to_owned(), vocabulary)])?;
            Some(Arc::new(matrix))
        } else {
            None
        };
        let end = if layers.end == config.num_layers {
            Some(EndWeights::new(&config, embedding.as_ref(), source)?)
        } else {
            None
        };
        let blocks = layers
            .iter()
            .map(|layer| LayerWeights::new(&config, layer, source))
            .collect::<Result<Vec<_>, _>>()?;
        let rope = Rope::new(&config);
        let inverse_frequencies = gpu.stream().clone_htod(rope.inverse_frequencies())?;
        gpu.stream().synchronize()?;
        let mut bytes = blocks.iter().map(LayerWeights::bytes).sum::<usize>();
        bytes += end.as_ref().map_or(0, EndWeights::bytes);
        if let Some(embedding) = &embedding
            && !end.as_ref().is_some_and(|end| end.lm_head.is_in(embedding))
        {
            bytes += embedding.num_bytes();
        }
        Ok(Self {
            gpu: Arc::clone(gpu),
            layers,
            dtype,
            embedding,
            blocks,
            end,
            inverse_frequencies,
            attention_factor: rope.attention_factor(),
            bytes,
            config,
        })
    }

    /// The device they lie on.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Sizes and choices of the model.
    #[must_use]
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Layers held.
    #[must_use]
    pub const fn layers(&self) -> LayerRange {
        self.layers
    }

    /// The type of matrices, activations, keys and values.
    #[must_use]
    pub const fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// All matrices that rows are multiplied with.
    pub(crate) fn matrices(&self) -> impl Iterator<Item = &Matrix> + Clone {
        let layers = self.blocks.iter();
        let layers =
            layers.flat_map(|layer| [&layer.qkv, &layer.output, &layer.gate_up, &layer.down]);
        layers.chain(self.end.as_ref().map(|end| &end.lm_head))
    }

    /// Bytes of the matrices of one layer, and of the lm_head.
    pub(crate) fn matrix_bytes(&self) -> [usize; 2] {
        let layer = self.blocks.first();
        [
            layer.map_or(0, LayerWeights::matrix_bytes),
            self.end.as_ref().map_or(0, |end| end.lm_head.bytes()),
        ]
    }

    /// Bytes the weights take on the device; a tied matrix counts once.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The shape of the heads, where there are kernels for it.
pub(crate) fn heads_of(config: &ModelConfig) -> Result<Heads, CudaError> {
    if !config.head_dim.is_multiple_of(8) || config.head_dim > 256 {
        return Err(CudaError::Unsupported {
            what: "head_dim",
            found: config.head_dim,
            expected: "a multiple of 8 up to 256",
        });
    }
    if !config.hidden_size.is_multiple_of(4) || config.hidden_size > 16_384 {
        return Err(CudaError::Unsupported {
            what: "hidden_size",
            found: config.hidden_size,
            expected: "a multiple of 4 up to 16384",
        });
    }
    let small = |size: usize| u32::try_from(size).expect("ModelConfig bounds the heads by 1024");
    Ok(Heads {
        attention: small(config.num_attention_heads),
        kv: small(config.num_kv_heads),
        dim: small(config.head_dim),
        interleaved: config.rope_layout == RopeLayout::Interleaved,
        eps: config.rms_norm_eps,
    })
}

fn check_layers(config: &ModelConfig, layers: LayerRange) -> Result<(), LoadError> {
    let ends_the_model = layers.end == config.num_layers;
    if layers.start > layers.end
        || layers.end > config.num_layers
        || (layers.is_empty() && !ends_the_model)
    {
        return Err(LoadError::LayerRange {
            range: layers,
            num_layers: config.num_layers,
        });
    }
    Ok(())
}

/// The type in which `layers` are held where `dtype` is asked for.
///
/// # Errors
/// [`LoadError`] where the matrix that decides about it cannot be read.
pub(crate) fn dtype_of(
    weights: &Weights,
    layers: LayerRange,
    dtype: WeightDtype,
) -> Result<Dtype, LoadError> {
    Ok(match dtype {
        WeightDtype::Native | WeightDtype::Fp8 => {
            let config = weights.config();
            let shape = [config.q_size(), config.hidden_size];
            let name = in_layer(layers.start.min(config.num_layers - 1), "attn_q.weight");
            Dtype::for_weights(weights.matrix_dtype(&name, shape)?)
        }
        dtype => Dtype::for_weights(dtype),
    })
}

impl LayerWeights {
    fn new<S: Source>(
        config: &ModelConfig,
        layer: usize,
        source: &mut S,
    ) -> Result<Self, CudaError> {
        let (hidden, inter) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.q_size(), config.kv_size());
        let part = |name: &str, outputs, columns| (in_layer(layer, name), [outputs, columns]);
        let plain =
            |parts: &[(String, [usize; 2])], source: &mut S| source.matrix(parts, Outputs::Plain);
        let vector = |name: &str, len| (in_layer(layer, name), len);
        let qkv_bias = if config.architecture.has_qkv_bias() {
            let parts = [
                vector("attn_q.bias", q),
                vector("attn_k.bias", kv),
                vector("attn_v.bias", kv),
            ];
            Some(source.vector(&parts)?)
        } else {
            None
        };
        let qk_norm = if config.architecture.has_qk_norm() {
            Some([
                source.vector(&[vector("attn_q_norm.weight", config.head_dim)])?,
                source.vector(&[vector("attn_k_norm.weight", config.head_dim)])?,
            ])
        } else {
            None
        };
        Ok(Self {
            attention_norm: source.vector(&[vector("attn_norm.weight", hidden)])?,
            qkv: plain(
                &[
                    part("attn_q.weight", q, hidden),
                    part("attn_k.weight", kv, hidden),
                    part("attn_v.weight", kv, hidden),
                ],
                source,
            )?,
            qkv_bias,
            qk_norm,
            output: plain(&[part("attn_output.weight", hidden, q)], source)?,
            mlp_norm: source.vector(&[vector("ffn_norm.weight", hidden)])?,
            gate_up: source.matrix(
                &[
                    part("ffn_gate.weight", inter, hidden),
                    part("ffn_up.weight", inter, hidden),
                ],
                Outputs::Gated,
            )?,
            down: plain(&[part("ffn_down.weight", hidden, inter)], source)?,
        })
    }

    fn matrix_bytes(&self) -> usize {
        let matrices = [&self.qkv, &self.output, &self.gate_up, &self.down];
        matrices.into_iter().map(Matrix::bytes).sum()
    }

    fn bytes(&self) -> usize {
        let qk_norm = self.qk_norm.iter().flatten();
        let vectors = [&self.attention_norm, &self.mlp_norm].into_iter();
        let vectors = vectors.chain(&self.qkv_bias).chain(qk_norm);
        self.matrix_bytes() + vectors.map(CudaSlice::num_bytes).sum::<usize>()
    }
}
