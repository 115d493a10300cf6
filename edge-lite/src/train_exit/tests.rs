//! A tiny model's exit learns what the model says.

use std::path::Path;

use candle_core::{Device, Tensor};
use headway_model::EarlyExit;

use super::network::Network;
use super::own_text::MAX_POSITIONS;
use super::schedule::stride;
use super::trainer::cross_entropy;
use super::*;

fn config() -> TrainExitConfig {
    TrainExitConfig {
        model: Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny/llama"),
        split_layer: 1,
        exit_layers: 1,
        draft_vocab_size: 100,
        tokens: 20_000,
        epochs: 2,
        seed: 3,
        place: Place::Cpu,
    }
}

#[test]
fn an_exit_is_trained_written_and_opened() {
    let mut losses = Vec::new();
    let trained = train_exit(&config(), |progress| {
        if let TrainExitProgress::Trained { loss, .. } = progress {
            losses.push(loss);
        }
    })
    .unwrap();
    assert!(
        losses.len() >= 10 && losses[losses.len() - 1] < losses[0],
        "{losses:?}"
    );
    assert!(trained.measured_positions > 100);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("exit.gguf");
    let mut file = std::fs::File::create(&path).unwrap();
    trained.weights.write(&mut file, &path).unwrap();
    let weights = Weights::open(&config().model).unwrap();
    let digest = identity(&weights).unwrap().digest();
    let exit = EarlyExit::open(&path, &digest, weights.config(), 1).unwrap();
    assert_eq!(exit.token_ids().len(), 100);

    // What was trained is what runs: the same guesses as the network's, but for weights in 8 bits.
    let network = Network::new(&trained.weights, MAX_POSITIONS).unwrap();
    let hidden_size = weights.config().hidden_size;
    let values: Vec<f32> = (0_u16..)
        .map(|i| f32::from(i % 97).sin())
        .take(30 * hidden_size)
        .collect();
    let states = Tensor::from_vec(values, (1, 30, hidden_size), &Device::Cpu).unwrap();
    let out = network.forward(&states).unwrap().squeeze(0).unwrap();
    let expected = out.matmul(&network.lm_head.t().unwrap()).unwrap();
    let expected = expected.to_vec2::<f32>().unwrap();
    let rows = states.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let mut cache = exit.new_cache(30);
    for (row, expected) in rows.chunks_exact(hidden_size).zip(expected) {
        let found = exit.logits(row, &mut cache).unwrap();
        let largest = expected
            .iter()
            .fold(0_f32, |most, value| most.max(value.abs()));
        let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        let mean = differences.sum::<f32>() / 100.0;
        assert!(mean <= 0.05 * largest, "{mean} of {largest}");
    }
}

#[test]
fn settings_that_make_no_sense_are_refused_by_name() {
    let refused = |config: TrainExitConfig| {
        let error = train_exit(&config, |_| {}).err().unwrap();
        assert!(matches!(error, Error::Request(RequestError::Value { .. })));
        error.to_string()
    };
    let split_layer = 3;
    let error = refused(TrainExitConfig {
        split_layer,
        ..config()
    });
    assert_eq!(error, "split layer is 3; expected 1 to 2");
    let draft_vocab_size = 1000;
    let error = refused(TrainExitConfig {
        draft_vocab_size,
        ..config()
    });
    assert_eq!(error, "draft vocabulary is 1000; expected 1 to 128");
}

#[test]
fn every_batch_is_trained_with_once_an_epoch() {
    for count in [1, 2, 3, 10, 97, 100] {
        let mut seen: Vec<_> = (0..count)
            .map(|step| step * stride(count) % count)
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..count).collect::<Vec<_>>());
    }
}

#[test]
fn the_gradient_is_that_of_the_cross_entropy() {
    let (guessed, right) = ([0.3, -1.0, 2.0], [1.0, 0.5, -0.5]);
    let loss = |guessed: [f32; 3]| cross_entropy(&mut guessed.clone(), &mut right.clone(), 1.0);
    let mut gradient = guessed;
    cross_entropy(&mut gradient, &mut right.clone(), 1.0);
    for (index, found) in gradient.into_iter().enumerate() {
        let (mut up, mut down) = (guessed, guessed);
        up[index] += 0.01;
        down[index] -= 0.01;
        let expected = (loss(up) - loss(down)) / 0.02;
        assert!((found - expected).abs() < 1e-3, "{found} {expected}");
    }
}

/// Gradients of `Σ out · weights` by differences, for a few values of each input.
fn gradients_are_those_of(inputs: &[Tensor], of: impl Fn(&[Tensor]) -> Tensor) {
    let vars: Vec<_> = inputs
        .iter()
        .map(|input| candle_core::Var::from_tensor(input).unwrap())
        .collect();
    let tensors: Vec<_> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let out = of(&tensors);
    let weights = Tensor::randn(0_f32, 1.0, out.shape(), &Device::Cpu).unwrap();
    let sum = |out: Tensor| (out * &weights).unwrap().sum_all().unwrap();
    let gradients = sum(out).backward().unwrap();
    for (index, input) in inputs.iter().enumerate() {
        let gradient = gradients.get(&vars[index]).unwrap();
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values = input.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for place in (0..values.len()).step_by(values.len() / 7 + 1) {
            let moved = |by: f32| {
                let mut values = values.clone();
                values[place] += by;
                let mut inputs = inputs.to_vec();
                inputs[index] = Tensor::from_vec(values, input.shape(), &Device::Cpu).unwrap();
                f64::from(sum(of(&inputs)).to_scalar::<f32>().unwrap())
            };
            let expected = (moved(0.01) - moved(-0.01)) / 0.02;
            let found = f64::from(gradient[place]);
            assert!(
                (found - expected).abs() < 0.02 * (1.0 + expected.abs()),
                "input {index}, value {place}: {found}, not {expected}"
            );
        }
    }
}

fn noise(shape: &[usize]) -> Tensor {
    Tensor::randn(0_f32, 1.0, shape, &Device::Cpu).unwrap()
}

#[test]
fn gradients_of_the_operations_are_their_slopes() {
    use candle_core::D;
    use headway_model::config::RopeLayout;

    use super::attention::attention;
    use super::row_operations::{rms_norm, rotate, silu_product};

    gradients_are_those_of(&[noise(&[70, 20]), noise(&[20])], |inputs| {
        rms_norm(&inputs[0], &inputs[1], 1e-5).unwrap()
    });
    gradients_are_those_of(&[noise(&[3, 21]), noise(&[3, 21])], |inputs| {
        silu_product(&inputs[0], &inputs[1]).unwrap()
    });
    let angles = noise(&[9, 4]);
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
        gradients_are_those_of(&[noise(&[2, 7, 3, 8])], |inputs| {
            rotate(&inputs[0], &cos, &sin, layout).unwrap()
        });
    }
    let (q, kv) = ([2, 11, 6, 20], [2, 11, 2, 20]);
    gradients_are_those_of(&[noise(&q), noise(&kv), noise(&kv)], |inputs| {
        attention(&inputs[0], &inputs[1], &inputs[2]).unwrap()
    });
    // And attention is what it is called: one key's value where there is one, all of them alike where keys are.
    let (q, k, v) = (
        noise(&q),
        Tensor::zeros(&kv, candle_core::DType::F32, &Device::Cpu).unwrap(),
        noise(&kv),
    );
    let out = attention(&q, &k, &v).unwrap();
    let mean = v.mean_keepdim(1).unwrap().narrow(2, 1, 1).unwrap();
    let last = out.narrow(1, 10, 1).unwrap().narrow(2, 3, 1).unwrap();
    let difference = (last - mean)
        .unwrap()
        .abs()
        .unwrap()
        .max(D::Minus1)
        .unwrap();
    assert!(difference.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-5);
}
