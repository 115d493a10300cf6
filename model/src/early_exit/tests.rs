//! An exit made of a model's own last layers says what the model says.

use std::fs::File;
use std::path::PathBuf;

use super::*;
use crate::layer_range::LayerRange;
use crate::sampler::argmax;
use crate::weights::{WeightDtype, Weights};

const SPLIT_LAYER: usize = 1;
const DIGEST: &str = "sha256:of the model";

fn model() -> Weights {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny/llama");
    Weights::open(&folder).unwrap()
}

/// The layers of `weights` behind [`SPLIT_LAYER`] and its lm_head, for the tokens of `token_ids`.
fn exit_of(weights: &Weights, token_ids: Vec<u32>) -> ExitWeights {
    let num_layers = weights.config().num_layers - SPLIT_LAYER;
    let digest = DIGEST.to_owned();
    ExitWeights::of_last_layers(weights, digest, SPLIT_LAYER, num_layers, token_ids).unwrap()
}

fn written(exit: &ExitWeights, folder: &tempfile::TempDir) -> PathBuf {
    let path = folder.path().join("exit.gguf");
    exit.write(&mut File::create(&path).unwrap(), &path)
        .unwrap();
    path
}

#[test]
fn an_exit_of_the_models_own_layers_says_what_the_model_says() {
    let weights = model();
    let config = weights.config();
    let vocab = u32::try_from(config.vocab_size).unwrap();
    let token_ids: Vec<u32> = (0..vocab).rev().collect();
    let folder = tempfile::tempdir().unwrap();
    let path = written(&exit_of(&weights, token_ids), &folder);
    let exit = EarlyExit::open(&path, DIGEST, config, SPLIT_LAYER).unwrap();

    let load = |start, end| {
        Decoder::load(&weights, LayerRange::new(start, end), WeightDtype::F32).unwrap()
    };
    let (head, whole) = (load(0, SPLIT_LAYER), load(0, config.num_layers));
    let (mut head_cache, mut cache) = (head.new_cache(64), whole.new_cache(64));
    let mut exit_cache = exit.new_cache(64);
    let mut agreed = 0;
    for position in 0..40_u32 {
        let ids = [position * 37 % vocab];
        let mut behind_head = head.embed(&ids).unwrap();
        head.forward(head.layers(), &mut behind_head, &mut head_cache)
            .unwrap();
        let guess = argmax(&exit.logits(&behind_head, &mut exit_cache).unwrap());
        let mut states = whole.embed(&ids).unwrap();
        whole
            .forward(whole.layers(), &mut states, &mut cache)
            .unwrap();
        let right = argmax(&whole.logits(&states).unwrap());
        agreed += u32::from(exit.token_ids()[guess as usize] == right);
    }
    // Weights in 8 bits may turn a near-tie.
    assert!(agreed >= 36, "{agreed} of 40");
}

#[test]
fn an_exit_of_something_else_is_refused_by_name() {
    let weights = model();
    let config = weights.config();
    let folder = tempfile::tempdir().unwrap();
    let path = written(&exit_of(&weights, vec![3, 1, 2]), &folder);
    let refused = |digest: &str, config: &ModelConfig, layer| {
        let error = EarlyExit::open(&path, digest, config, layer).err().unwrap();
        assert!(matches!(error, LoadError::Exit { .. }), "{error}");
        error.to_string()
    };
    assert!(refused("sha256:other", config, SPLIT_LAYER).contains("sha256:other"));
    assert!(refused(DIGEST, config, 0).contains("split layer 1; expected 0"));
    let other = ModelConfig {
        rope_theta: 7.0,
        ..config.clone()
    };
    assert!(refused(DIGEST, &other, SPLIT_LAYER).contains("rope_theta"));
}

#[test]
fn a_file_that_is_no_exit_is_refused_with_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let weights = model();
    let mut exit = exit_of(&weights, vec![3, 1, 2]);
    exit.token_ids.push(4);
    let path = written(&exit, &folder);
    let open = || {
        EarlyExit::open(&path, DIGEST, weights.config(), SPLIT_LAYER)
            .err()
            .unwrap()
    };
    let error = open().to_string();
    assert!(
        error.contains("headway.exit.token_ids with 3 numbers"),
        "{error}"
    );
    exit.token_ids = vec![3, 1, 100_000];
    written(&exit, &folder);
    assert!(open().to_string().contains("token id 100000"));
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(matches!(open(), LoadError::Truncated { .. }));
    exit.tensors.pop();
    let missing = exit.write(&mut File::create(&path).unwrap(), &path);
    assert!(matches!(missing, Err(LoadError::MissingTensor { .. })));
}

#[test]
fn an_exit_has_no_layers_from_before_the_split() {
    let weights = model();
    let too_many = weights.config().num_layers;
    let exit = ExitWeights::of_last_layers(&weights, DIGEST.to_owned(), 1, too_many, vec![1]);
    assert!(matches!(exit, Err(LoadError::LayerRange { .. })));
}
