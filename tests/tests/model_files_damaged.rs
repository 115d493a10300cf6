//! Damaged model files: an error that names the file or the tensor and what was expected, and never a panic.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result};
use e2e::program::program;
use e2e::{golden_dir, smollm2};
use headway_model::weights::{WeightDtype, Weights};
use headway_model::{Decoder, LayerRange};
use tempfile::TempDir;

/// Opens and loads all of a model that must not load; what the error says, causes included.
fn load_error(path: &Path) -> String {
    let loaded = Weights::open(path).and_then(|weights| {
        weights.tokenizer()?;
        let layers = LayerRange::new(0, weights.config().num_layers);
        Decoder::load(&weights, layers, WeightDtype::Native)
    });
    match loaded {
        Ok(_) => panic!("{} loads, damaged as it is", path.display()),
        Err(error) => format!("{:#}", anyhow::Error::from(error)),
    }
}

fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

/// A copy of the GGUF file `from` in `folder`, changed by `change`.
fn damaged_gguf(
    folder: &TempDir,
    from: &Path,
    change: impl FnOnce(&mut Vec<u8>),
) -> Result<PathBuf> {
    let mut bytes = std::fs::read(from)?;
    change(&mut bytes);
    let path = folder.path().join("damaged.gguf");
    std::fs::write(&path, bytes)?;
    Ok(path)
}

fn tiny_gguf() -> PathBuf {
    golden_dir().join("tiny/llama.gguf")
}

/// Where `text` stands first.
fn find(bytes: &[u8], text: &str) -> usize {
    let found = bytes
        .windows(text.len())
        .position(|window| window == text.as_bytes());
    found.expect("the text is in the file")
}

/// Puts another text of the same length in the place of one.
fn rename(bytes: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let at = find(bytes, from);
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
}

#[test]
fn a_truncated_gguf_names_the_tensor_that_is_cut_off() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bytes = std::fs::metadata(smollm2())?.len();
    let path = damaged_gguf(&folder, &smollm2(), |_| {})?;
    // From the end, because a file can only be shortened; the last lengths cut metadata and header.
    for (kept_bytes, parts) in [
        (bytes - 1, &["truncated", "tensor ", "offset"][..]),
        (bytes / 2, &["truncated", "tensor ", "offset"]),
        (bytes / 10, &["truncated", "tensor ", "offset"]),
        (500_000, &["damaged"]),
        (100, &["damaged"]),
        (8, &["damaged"]),
        (3, &["damaged"]),
        (0, &["damaged"]),
    ] {
        std::fs::File::options()
            .write(true)
            .open(&path)?
            .set_len(kept_bytes)?;
        let error = load_error(&path);
        assert_says(&error, parts);
        assert_says(&error, &["damaged.gguf"]);
    }
    Ok(())
}

#[test]
fn every_length_of_a_gguf_header_is_damaged_and_none_panics() -> Result<()> {
    let whole = std::fs::read(tiny_gguf())?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("damaged.gguf");
    // The last tensor of the list, and a little of the data behind it.
    let header_bytes = find(&whole, "blk.2.ffn_up.weight") + 200;
    for kept_bytes in (0..header_bytes).step_by(7) {
        std::fs::write(&path, &whole[..kept_bytes])?;
        assert_says(&load_error(&path), &["damaged.gguf"]);
    }
    Ok(())
}

#[test]
fn flipped_bits_of_a_gguf_header_are_an_error_or_another_model_and_never_a_panic() -> Result<()> {
    let whole = std::fs::read(tiny_gguf())?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("damaged.gguf");
    let mut random = fastrand::Rng::with_seed(3);
    let header_bytes = find(&whole, "blk.2.ffn_up.weight");
    for _ in 0..1000 {
        let mut bytes = whole.clone();
        bytes[random.usize(0..header_bytes)] ^= 1 << random.u32(0..8);
        std::fs::write(&path, bytes)?;
        let Ok(weights) = Weights::open(&path) else {
            continue;
        };
        // An error is as good: a flipped bit of a weight's name, say.
        let _ = weights.tokenizer();
        let layers = LayerRange::new(0, weights.config().num_layers);
        let _ = Decoder::load(&weights, layers, WeightDtype::Native);
    }
    Ok(())
}

#[test]
fn a_file_with_another_magic_is_no_gguf() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = damaged_gguf(&folder, &tiny_gguf(), |bytes| rename(bytes, "GGUF", "GGML"))?;
    assert_says(&load_error(&path), &["damaged.gguf", "GGUF"]);
    Ok(())
}

#[test]
fn an_architecture_that_is_not_run_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // The first "llama" is the value of general.architecture.
    let path = damaged_gguf(&folder, &tiny_gguf(), |bytes| {
        let at = find(bytes, "general.architecture");
        rename(&mut bytes[at..], "llama", "mamba");
    })?;
    assert_says(
        &load_error(&path),
        &["\"mamba\"", "llama, mistral, qwen2 and qwen3"],
    );
    Ok(())
}

#[test]
fn a_tensor_missing_from_a_gguf_is_named_with_its_shape() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = damaged_gguf(&folder, &tiny_gguf(), |bytes| {
        rename(bytes, "blk.1.ffn_gate.weight", "blk.1.ffn_gone.weight");
    })?;
    assert_says(
        &load_error(&path),
        &["blk.1.ffn_gate.weight", "missing", "[96, 64]"],
    );
    Ok(())
}

#[test]
fn a_misshapen_tensor_of_a_gguf_is_named_with_both_shapes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let name = "blk.1.ffn_gate.weight";
    let path = damaged_gguf(&folder, &tiny_gguf(), |bytes| {
        // Behind the name: the number of dimensions (u32), then each of them (u64), the innermost first.
        let dims = find(bytes, name) + name.len() + 4;
        let (inner, outer) = (64_u64.to_le_bytes(), 96_u64.to_le_bytes());
        assert_eq!(bytes[dims..dims + 16], [inner, outer].concat());
        bytes[dims..dims + 16].copy_from_slice(&[outer, inner].concat());
    })?;
    assert_says(&load_error(&path), &[name, "[64, 96]", "[96, 64]"]);
    Ok(())
}

/// A copy of a safetensors model whose header, JSON, has been changed.
fn damaged_safetensors(
    folder: &TempDir,
    change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
) -> Result<PathBuf> {
    let from = golden_dir().join("tiny/qwen3");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(from.join(name), folder.path().join(name))?;
    }
    std::fs::copy(
        golden_dir().join("tiny/llama/tokenizer.json"),
        folder.path().join("tokenizer.json"),
    )?;
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path)?;
    let (length, rest) = bytes.split_at(8);
    let header_bytes = usize::try_from(u64::from_le_bytes(length.try_into()?))?;
    let mut header: serde_json::Value = serde_json::from_slice(&rest[..header_bytes])?;
    change(header.as_object_mut().context("a header is an object")?);
    let header = serde_json::to_vec(&header)?;
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(
        &path,
        [&length, header.as_slice(), &rest[header_bytes..]].concat(),
    )?;
    Ok(folder.path().to_owned())
}

const Q_PROJ: &str = "model.layers.1.self_attn.q_proj.weight";

#[test]
fn safetensors_with_a_rewritten_header_still_load() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // Otherwise the tests below could see errors of the rewriting.
    let weights = Weights::open(&damaged_safetensors(&folder, |_| {})?)?;
    let layers = LayerRange::new(0, weights.config().num_layers);
    Decoder::load(&weights, layers, WeightDtype::Native)?;
    Ok(())
}

#[test]
fn a_tensor_missing_from_safetensors_is_named_as_in_the_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = damaged_safetensors(&folder, |header| {
        let q_proj = header.remove(Q_PROJ).expect("the tensor is in the header");
        header.insert("another.name".to_owned(), q_proj);
    })?;
    assert_says(&load_error(&path), &[Q_PROJ, "missing", "[128, 64]"]);
    Ok(())
}

#[test]
fn a_misshapen_tensor_of_safetensors_is_named_with_both_shapes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = damaged_safetensors(&folder, |header| {
        header[Q_PROJ]["shape"] = serde_json::json!([64, 128]);
    })?;
    assert_says(&load_error(&path), &[Q_PROJ, "[64, 128]", "[128, 64]"]);
    Ok(())
}

#[test]
fn offsets_beyond_the_end_of_safetensors_name_the_tensor() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = damaged_safetensors(&folder, |_| {})?;
    let file = path.join("model.safetensors");
    let bytes = std::fs::metadata(&file)?.len();
    for kept_bytes in [bytes - 1, bytes / 2] {
        std::fs::File::options()
            .write(true)
            .open(&file)?
            .set_len(kept_bytes)?;
        assert_says(
            &load_error(&path),
            &["model.safetensors", "truncated", "tensor "],
        );
    }
    for kept_bytes in [100, 8, 7, 0] {
        std::fs::File::options()
            .write(true)
            .open(&file)?
            .set_len(kept_bytes)?;
        assert_says(&load_error(&path), &["model.safetensors", "damaged"]);
    }
    Ok(())
}

#[test]
fn a_header_that_says_nonsense_is_damaged() -> Result<()> {
    for change in [
        serde_json::json!({ "dtype": "F32", "shape": [64, 64], "data_offsets": [16, 0] }),
        serde_json::json!({ "dtype": "F32", "shape": [u64::MAX, u64::MAX], "data_offsets": [0, 16] }),
        serde_json::json!({ "dtype": "F99", "shape": [64, 64], "data_offsets": [0, 16] }),
        serde_json::json!({ "dtype": "F32", "shape": "all", "data_offsets": [0, 16] }),
        serde_json::json!(null),
    ] {
        let folder = tempfile::tempdir()?;
        let path = damaged_safetensors(&folder, |header| header[Q_PROJ] = change)?;
        assert_says(&load_error(&path), &["model.safetensors", "damaged"]);
    }
    Ok(())
}

#[test]
fn a_configuration_without_sizes_names_the_key() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = damaged_safetensors(&folder, |_| {})?;
    let config = path.join("config.json");
    let json = std::fs::read_to_string(&config)?;
    for (from, to, parts) in [
        (
            "\"hidden_size\"",
            "\"hidden_sighs\"",
            &["hidden_size", "expected"][..],
        ),
        (
            "\"num_attention_heads\": 4",
            "\"num_attention_heads\": 0",
            &["num_attention_heads", "expected"],
        ),
        (
            "\"qwen3\"",
            "\"mamba\"",
            &["\"mamba\"", "llama, mistral, qwen2 and qwen3"],
        ),
        ("{", "", &["config.json"]),
    ] {
        assert!(json.contains(from), "{from} is not in {json}");
        std::fs::write(&config, json.replacen(from, to, 1))?;
        assert_says(&load_error(&path), parts);
    }
    Ok(())
}

fn run(name: &str, arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(program(name)).args(arguments).output()?)
}

#[test]
fn a_tail_does_not_start_on_a_damaged_model_and_says_why() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = damaged_gguf(&folder, &tiny_gguf(), |bytes| {
        rename(bytes, "blk.1.ffn_gate.weight", "blk.1.ffn_gone.weight");
    })?;
    let cache = folder.path().join("cache");
    let (model, cache) = (
        path.to_str().context("UTF-8")?,
        cache.to_str().context("UTF-8")?,
    );
    let output = run(
        "tail-server",
        &[
            "--model",
            model,
            "--listen",
            "127.0.0.1:0",
            "--cache-dir",
            cache,
        ],
    )?;
    let error = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert_says(
        &error,
        &[
            model,
            "tensor blk.1.ffn_gate.weight is missing; expected shape [96, 64]",
        ],
    );
    assert!(
        !error.contains("listening on") && !error.contains("panicked"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_device_that_cannot_do_what_is_asked_says_why() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = damaged_gguf(&folder, &tiny_gguf(), |bytes| bytes.truncate(2000))?;
    let damaged = path.to_str().context("UTF-8")?;
    // Nobody listens on the port of a listener that is gone.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let nobody = format!("ws://127.0.0.1:{port}");
    for (arguments, code, parts) in [
        (
            vec!["--tail", "http//nowhere"],
            1,
            vec!["http//nowhere", "expected ws://HOST:PORT"],
        ),
        (
            vec!["--tail", "ftp://host"],
            1,
            vec!["ftp://host", "expected ws://HOST:PORT"],
        ),
        (
            vec!["--tail", &nobody],
            1,
            vec!["no answer from", "refused"],
        ),
        (vec!["--model", damaged], 1, vec!["damaged.gguf"]),
        (
            vec!["--model", "/no/such/model.gguf"],
            1,
            vec!["/no/such/model.gguf"],
        ),
        (
            vec!["--tail", &nobody, "--codec", "int9"],
            2,
            vec!["--codec", "int9"],
        ),
        (
            vec!["--tail", &nobody, "--split-layer", "most"],
            2,
            vec!["--split-layer", "a number of layers, auto or plan"],
        ),
        (
            vec!["--tail", &nobody, "--head-quantization", "q9_9"],
            2,
            vec!["--head-quantization", "q9_9"],
        ),
        (
            vec!["--tail", &nobody, "--model", damaged],
            2,
            vec!["--tail", "--model"],
        ),
        (vec![], 2, vec!["--tail"]),
    ] {
        let output = run(
            "edge-lite",
            &[&["generate", "--prompt", "hi"], arguments.as_slice()].concat(),
        )?;
        let error = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert_says(&error, &parts);
        assert!(
            output.stdout.is_empty() && !error.contains("panicked"),
            "{error}"
        );
    }
    Ok(())
}
