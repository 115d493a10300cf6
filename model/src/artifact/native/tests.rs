use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::*;
use crate::artifact::{identity, verify, write_part};
use crate::{LayerRange, Quantization};

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden/tiny")
        .join(name)
}

fn all_parts(weights: &Weights) -> Vec<Part> {
    let num_layers = weights.config().num_layers;
    Part::of(LayerRange::new(0, num_layers), num_layers)
}

#[test]
fn digests_are_those_of_the_parts_that_are_written() {
    let models = [
        "llama",
        "llama_f16",
        "llama_bf16",
        "qwen2",
        "qwen3",
        "llama.gguf",
        "qwen3.gguf",
    ];
    for model in models {
        let weights = Weights::open(&tiny(model)).unwrap();
        for part in all_parts(&weights) {
            let written = write_part(&weights, part, Quantization::None, &mut io::sink()).unwrap();
            assert_eq!(
                native_part(&weights, part).unwrap(),
                written,
                "{model} {part}"
            );
        }
    }
}

#[test]
fn so_they_are_in_every_type() {
    let folder = tempfile::tempdir().unwrap();
    let weights = Weights::open(&tiny("llama")).unwrap();
    for quantization in Quantization::ALL {
        let path = folder.path().join(format!("{quantization}.gguf"));
        let mut file = std::fs::File::create(&path).unwrap();
        let part = Part::Layer(1);
        let written = write_part(&weights, part, quantization, &mut file).unwrap();
        let again = Weights::open_parts(weights.config().clone(), &[path]).unwrap();
        assert_eq!(
            native_part(&again, part).unwrap(),
            written,
            "{quantization}"
        );
    }
}

/// Any other digest is another model to every device.
#[test]
fn the_digest_of_a_model_is_what_it_always_was() {
    let digest = |model| {
        identity(&Weights::open(&tiny(model)).unwrap())
            .unwrap()
            .digest()
    };
    assert_eq!(
        digest("llama"),
        "sha256:3d7b60b8988c5727b445fc73b2ac873c03aa7b5964dbb6e7d47d3151fae83598"
    );
    assert_eq!(
        digest("llama.gguf"),
        "sha256:97a776fe6794a27e4767bb045d2666e2b38e8cb091be6d2d36dea69bc9ceff89"
    );
}

/// A copy of a model's folder, with one byte changed at `offset` from the end of `file`.
fn spoiled(file: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(tiny("llama")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = copy.path().join(file);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(path, bytes).unwrap();
    copy
}

#[test]
fn a_tail_is_verified_by_its_own_parts_and_no_others() {
    let sound = Weights::open(&tiny("llama")).unwrap();
    let identity = identity(&sound).unwrap();
    let num_layers = sound.config().num_layers;
    let tail = LayerRange::new(num_layers - 1, num_layers);
    verify(&sound, &identity, tail).unwrap();
    for shard in 1..=3 {
        let folder = spoiled(&format!("model-0000{shard}-of-00003.safetensors"));
        let weights = Weights::open(folder.path()).unwrap();
        let is_spoiled = |part: &Part| {
            let name = part.to_string();
            let listed = identity.parts.iter().find(|listed| listed.name == name);
            native_part(&weights, *part).unwrap().digest != listed.unwrap().digest
        };
        let spoiled: Vec<Part> = all_parts(&weights).into_iter().filter(is_spoiled).collect();
        assert_eq!(spoiled.len(), 1, "shard {shard}");
        let is_tails = super::super::needed(weights.config(), tail).contains(&spoiled[0]);
        match verify(&weights, &identity, tail) {
            Ok(()) => assert!(!is_tails, "{}", spoiled[0]),
            Err(LoadError::Identity {
                what,
                expected,
                got,
            }) => {
                assert!(is_tails, "{what}");
                assert_eq!(what, spoiled[0].to_string());
                assert_ne!(expected, got);
            }
            Err(error) => panic!("{error}"),
        }
    }
    let mut other = identity.clone();
    other.eos_token_ids.push(7);
    assert!(verify(&sound, &other, tail).is_err());
}

#[test]
fn only_the_bytes_of_the_tails_parts_are_fetched() {
    let asked: Arc<Mutex<Vec<_>>> = Arc::default();
    let weights = Weights::open(&tiny("llama")).unwrap();
    let identity = identity(&weights).unwrap();
    let weights = weights.with_fetch({
        let asked = Arc::clone(&asked);
        move |ranges| {
            asked.lock().unwrap().extend(ranges);
            Ok(())
        }
    });
    let num_layers = weights.config().num_layers;
    let tail = LayerRange::new(num_layers - 1, num_layers);
    verify(&weights, &identity, tail).unwrap();
    let head = places(&weights, Part::Layer(0)).unwrap();
    let asked = asked.lock().unwrap();
    assert!(!asked.is_empty());
    for (_, _, place) in &head {
        assert!(
            !asked
                .iter()
                .any(|(path, range)| path == place.path && *range == place.range),
            "a layer of the head was fetched"
        );
    }
}

#[test]
fn bytes_that_cannot_be_fetched_are_not_read() {
    let weights = Weights::open(&tiny("llama")).unwrap();
    let weights = weights.with_fetch(|_| Err(io::Error::other("the source has gone")));
    let error = native_part(&weights, Part::Embedding).unwrap_err();
    assert!(error.to_string().contains("the source has gone"), "{error}");
    assert!(identity(&weights).is_err());
}
