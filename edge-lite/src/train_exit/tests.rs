//! A tiny model's exit learns what the model says.

use std::path::Path;

use headway_model::EarlyExit;

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
