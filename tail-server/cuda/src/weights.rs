//! The weights of a range of layers in device memory.

use std::sync::Arc;

use cudarc::driver::CudaSlice;
use headway_model::config::RopeLayout;
use headway_model::rope::Rope;
use headway_model::weights::names::{self, in_layer};
use headway_model::weights::{WeightDtype, Weights};
use headway_model::{LayerRange, LoadError, ModelConfig};

use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::kernels::{Heads, Kernels};
use crate::products::{Matrix, Outputs};

mod end;

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
    /// Reads `layers`, and what comes before and after them in the model. [`WeightDtype::Native`] takes the type that the file's matrices
    /// have, and bf16 for quantised ones.
    ///
    /// One matrix at a time is in the host's memory, as it stands in the file.
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
        let dtype = dtype_of(weights, layers, dtype)?;
        let mut source = FromFile {
            gpu,
            weights,
            dtype,
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
        check_layers(&config, layers)?;
        let kernels = Kernels::new(gpu, dtype, heads_of(&config)?)?;
        let mut source = Random {
            gpu,
            dtype,
            kernels,
            seed: 1,
        };
        Self::from_source(gpu, config, layers, dtype, &mut source)
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
            let matrix = source.matrix(&[(names::EMBEDDING.to_owned(), vocabulary)])?;
            Some(Arc::new(matrix))
        } else {
            None
        };
        let end = if layers.end == config.num_layers {
            let end = EndWeights::new(gpu, dtype, &config, embedding.as_ref(), source)?;
            Some(end)
        } else {
            None
        };
        let blocks = layers
            .iter()
            .map(|layer| LayerWeights::new(gpu, dtype, &config, layer, source))
            .collect::<Result<Vec<_>, _>>()?;
        let rope = Rope::new(&config);
        let inverse_frequencies = gpu.stream().clone_htod(rope.inverse_frequencies())?;
        gpu.stream().synchronize()?;
        let mut bytes = blocks.iter().map(LayerWeights::bytes).sum::<usize>();
        bytes += end.as_ref().map_or(0, EndWeights::bytes);
        let lm_head = end.as_ref().map(|end| end.lm_head.memory());
        if let Some(embedding) = &embedding
            && !lm_head.is_some_and(|lm_head| Arc::ptr_eq(embedding, lm_head))
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
        WeightDtype::Native => {
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
        gpu: &Gpu,
        dtype: Dtype,
        config: &ModelConfig,
        layer: usize,
        source: &mut S,
    ) -> Result<Self, CudaError> {
        let (hidden, inter) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.q_size(), config.kv_size());
        let part = |name: &str, outputs, columns| (in_layer(layer, name), [outputs, columns]);
        let matrix = |parts: &[(String, [usize; 2])], kind, source: &mut S| {
            let outputs = parts.iter().map(|(_, [outputs, _])| outputs).sum();
            let columns = parts.first().map_or(0, |(_, [_, columns])| *columns);
            let memory = Arc::new(source.matrix(parts)?);
            Matrix::new(gpu, dtype, memory, [outputs, columns], kind)
        };
        let plain =
            |parts: &[(String, [usize; 2])], source: &mut S| matrix(parts, Outputs::Plain, source);
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
            gate_up: matrix(
                &[
                    part("ffn_gate.weight", inter, hidden),
                    part("ffn_up.weight", inter, hidden),
                ],
                Outputs::Gated,
                source,
            )?,
            down: plain(&[part("ffn_down.weight", hidden, inter)], source)?,
        })
    }

    fn bytes(&self) -> usize {
        let matrices = [&self.qkv, &self.output, &self.gate_up, &self.down];
        let qk_norm = self.qk_norm.iter().flatten();
        let vectors = [&self.attention_norm, &self.mlp_norm].into_iter();
        let vectors = vectors.chain(&self.qkv_bias).chain(qk_norm);
        matrices.into_iter().map(Matrix::bytes).sum::<usize>()
            + vectors.map(CudaSlice::num_bytes).sum::<usize>()
    }
}

/// Where weights come from. Several tensors become one, one below the other.
trait Source {
    fn matrix(&mut self, parts: &[(String, [usize; 2])]) -> Result<CudaSlice<u8>, CudaError>;
    fn vector(&mut self, parts: &[(String, usize)]) -> Result<CudaSlice<f32>, CudaError>;
}

struct FromFile<'a> {
    gpu: &'a Gpu,
    weights: &'a Weights,
    dtype: Dtype,
}

impl Source for FromFile<'_> {
    fn matrix(&mut self, parts: &[(String, [usize; 2])]) -> Result<CudaSlice<u8>, CudaError> {
        let values: usize = parts
            .iter()
            .map(|(_, [outputs, columns])| outputs * columns)
            .sum();
        let mut matrix = self.gpu.zeros(values * self.dtype.bytes())?;
        let mut at = 0;
        for (name, shape) in parts {
            self.weights
                .read_matrix(name, *shape, self.dtype.of_weights(), |piece| {
                    let mut to = matrix.slice_mut(at..at + piece.len());
                    at += piece.len();
                    // The piece is read before this returns: it is not pinned.
                    self.gpu
                        .stream()
                        .memcpy_htod(piece, &mut to)
                        .map_err(CudaError::from)
                })?;
        }
        Ok(matrix)
    }

    fn vector(&mut self, parts: &[(String, usize)]) -> Result<CudaSlice<f32>, CudaError> {
        let mut values = Vec::new();
        for (name, len) in parts {
            values.extend(self.weights.read_vector(name, *len)?);
        }
        Ok(self.gpu.stream().clone_htod(&values)?)
    }
}

struct Random<'a> {
    gpu: &'a Gpu,
    dtype: Dtype,
    kernels: Kernels,
    seed: u32,
}

impl Source for Random<'_> {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a row has far fewer than 2^24 columns"
    )]
    fn matrix(&mut self, parts: &[(String, [usize; 2])]) -> Result<CudaSlice<u8>, CudaError> {
        let values: usize = parts
            .iter()
            .map(|(_, [outputs, columns])| outputs * columns)
            .sum();
        let columns = parts.first().map_or(1, |(_, [_, columns])| *columns);
        let matrix = self.gpu.zeros(values * self.dtype.bytes())?;
        self.seed += 1;
        let address = self.gpu.address(&matrix);
        // Keeps the variance of a row.
        let scale = (3.0 / columns as f32).sqrt();
        self.kernels
            .fill_random(self.gpu, address, values, scale, self.seed)?;
        Ok(matrix)
    }

    fn vector(&mut self, parts: &[(String, usize)]) -> Result<CudaSlice<f32>, CudaError> {
        let len = parts.iter().map(|(_, len)| len).sum();
        Ok(self.gpu.stream().clone_htod(&vec![1_f32; len])?)
    }
}
