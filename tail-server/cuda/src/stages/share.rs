//! Which GPU has which layers.

use std::sync::Arc;

use headway_model::weights::{WeightDtype, Weights};
use headway_model::{LayerRange, ModelConfig};

use crate::dtype::Dtype;
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::weights::{TailWeights, dtype_of};

/// Loads `layers` and what comes after them to the memory of `gpus`, as they are listed: a range of layers each, so
/// that all have about as many bytes of weights. GPUs beyond the number of layers get none, and no entry.
///
/// # Errors
/// As [`TailWeights::load`].
///
/// # Panics
/// Without a GPU.
pub fn load_stages(
    gpus: &[Arc<Gpu>],
    weights: &Weights,
    layers: LayerRange,
    dtype: WeightDtype,
) -> Result<Vec<TailWeights>, CudaError> {
    if let [gpu] = gpus {
        return Ok(vec![TailWeights::load(gpu, weights, layers, dtype)?]);
    }
    // One type for all, whatever those layers have in the file that a stage begins with.
    let dtype = dtype_of(weights, layers, dtype)?;
    let bytes = StageBytes::of(weights.config(), layers, dtype);
    let stages = share_layers(layers, gpus.len(), bytes);
    let load = |(gpu, layers): (&Arc<Gpu>, LayerRange)| {
        TailWeights::load(gpu, weights, layers, dtype.of_weights())
    };
    gpus.iter().zip(stages).map(load).collect()
}

/// Bytes of a model's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageBytes {
    /// Of each layer.
    pub layer: usize,
    /// Of what the stage with the first layer has besides: the embedding, or nothing.
    pub before: usize,
    /// Of what the stage with the last layer has besides: the lm_head.
    pub behind: usize,
}

impl StageBytes {
    /// Of `layers` and what comes after them, in memory as `dtype`. Vectors are too small to count.
    #[must_use]
    pub const fn of(config: &ModelConfig, layers: LayerRange, dtype: Dtype) -> Self {
        let hidden = config.hidden_size;
        let attention = 2 * hidden * (config.q_size() + config.kv_size());
        let mlp = 3 * hidden * config.intermediate_size;
        let vocabulary = hidden * config.vocab_size * dtype.bytes();
        Self {
            layer: (attention + mlp) * dtype.bytes(),
            before: if layers.start == 0 { vocabulary } else { 0 },
            behind: vocabulary,
        }
    }
}

/// Cuts `layers` into ranges that follow each other, for at most `gpus` GPUs: one layer at least for each range, and
/// the largest number of bytes as small as it can be. Without layers there is one range.
///
/// # Panics
/// Without a GPU.
#[must_use]
pub fn share_layers(layers: LayerRange, gpus: usize, bytes: StageBytes) -> Vec<LayerRange> {
    assert!(gpus > 0, "somebody runs the layers");
    let stages = gpus.min(layers.len().max(1));
    let mut taken = vec![0; stages];
    let mut loads = vec![0; stages];
    loads[0] += bytes.before;
    loads[stages - 1] += bytes.behind;
    let mut give = |stage: usize| {
        taken[stage] += 1;
        loads[stage] += bytes.layer;
        let lightest = (0..stages).min_by_key(|&stage| loads[stage]);
        lightest.expect("there is a stage")
    };
    // All layers are alike: the lightest stage gets the next one, once each has its first.
    let mut lightest = 0;
    for stage in 0..stages.min(layers.len()) {
        lightest = give(stage);
    }
    for _ in stages..layers.len() {
        lightest = give(lightest);
    }
    let mut start = layers.start;
    let ranges = taken.into_iter().map(|count: usize| {
        let range = LayerRange::new(start, start + count);
        start = range.end;
        range
    });
    ranges.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(layers: [usize; 2], gpus: usize, bytes: [usize; 3]) -> Vec<usize> {
        let layers = LayerRange::new(layers[0], layers[1]);
        let [layer, before, behind] = bytes;
        let bytes = StageBytes {
            layer,
            before,
            behind,
        };
        let ranges = share_layers(layers, gpus, bytes);
        assert_eq!(ranges[0].start, layers.start);
        assert_eq!(ranges[ranges.len() - 1].end, layers.end);
        assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
        ranges.into_iter().map(LayerRange::len).collect()
    }

    #[test]
    fn one_gpu_has_all_layers() {
        assert_eq!(shared([3, 9], 1, [1, 0, 5]), [6]);
        assert_eq!(shared([9, 9], 1, [1, 0, 5]), [0]);
    }

    #[test]
    fn what_stands_before_and_behind_the_layers_counts() {
        assert_eq!(shared([0, 12], 3, [10, 0, 0]), [4, 4, 4]);
        assert_eq!(shared([0, 12], 3, [10, 0, 30]), [5, 5, 2]);
        assert_eq!(shared([0, 12], 3, [10, 30, 30]), [3, 6, 3]);
        // An lm_head of more bytes than all layers.
        assert_eq!(shared([4, 8], 2, [1, 0, 100]), [3, 1]);
    }

    #[test]
    fn more_gpus_than_layers_get_a_layer_each_and_the_rest_nothing() {
        assert_eq!(shared([0, 2], 8, [10, 5, 5]), [1, 1]);
        assert_eq!(shared([2, 2], 8, [10, 5, 5]), [0]);
    }

    #[test]
    fn no_other_cut_has_a_smaller_largest_stage() {
        for (behind, gpus, count) in (0..40).step_by(7).flat_map(|behind| {
            (1..5).flat_map(move |gpus| (gpus..14).map(move |count| (behind, gpus, count)))
        }) {
            let load = |stage: usize, layers: usize| {
                layers * 10 + if stage + 1 == gpus { behind } else { 0 }
            };
            let got = shared([0, count], gpus, [10, 0, behind]);
            let largest = got
                .iter()
                .enumerate()
                .map(|(stage, &n)| load(stage, n))
                .max();
            let best = smallest_largest(0, count, gpus, &load);
            assert_eq!(largest, Some(best), "{count} layers on {gpus}, {behind}");
        }
    }

    /// By trying every cut.
    fn smallest_largest(
        stage: usize,
        left: usize,
        gpus: usize,
        load: &dyn Fn(usize, usize) -> usize,
    ) -> usize {
        if stage + 1 == gpus {
            return load(stage, left);
        }
        let most = left - (gpus - stage - 1);
        (1..=most)
            .map(|n| load(stage, n).max(smallest_largest(stage + 1, left - n, gpus, load)))
            .min()
            .expect("each stage gets a layer")
    }
}
