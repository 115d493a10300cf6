//! `cargo xtask bench edge`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use headway_model::weights::{WeightDtype, Weights};
use headway_model::{Decoder, LayerRange};
use serde::Deserialize;

use super::median;
use crate::model;
use crate::paths::{cache_dir, root};

const PREFILL: [usize; 2] = [128, 512];
const CONTEXT: usize = 128;
const DECODE: usize = 64;

/// Options of `bench edge`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Model file; default: the small real model.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Repetitions; the median is reported.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Measure without llama.cpp.
    #[arg(long)]
    without_peer: bool,
}

/// Tokens a second.
#[derive(Deserialize)]
struct Speeds {
    prefill: Vec<f64>,
    decode: f64,
}

/// Prints a table of tokens a second and of ratios to llama.cpp.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let path = arguments.model.clone().map_or_else(model::fetch, Ok)?;
    let weights = Weights::open(&path)?;
    let num_layers = weights.config().num_layers;
    let decoder = Decoder::load(
        &weights,
        LayerRange::new(0, num_layers),
        WeightDtype::Native,
    )?;
    let peer = if arguments.without_peer {
        None
    } else {
        Some(peer_python()?)
    };
    println!(
        "`{}`, kernels: {}\n",
        weights.name(),
        headway_model::simd::instruction_set()
    );
    println!(
        "| threads | what | prefill {} tok/s | prefill {} tok/s | decode tok/s |",
        PREFILL[0], PREFILL[1]
    );
    println!("|---|---|---|---|---|");
    for threads in [1, 2] {
        headway_model::threads::set_threads(threads);
        let head = LayerRange::new(0, num_layers / 3);
        let whole = measure(&decoder, decoder.layers(), arguments.repeats)?;
        let head = measure(&decoder, head, arguments.repeats)?;
        row(
            threads,
            &format!("head layers [0, {}), no lm_head", num_layers / 3),
            &head,
        );
        row(threads, "whole model", &whole);
        if let Some(python) = &peer {
            let llama = run_peer(python, &path, threads, arguments.repeats)?;
            row(threads, "llama.cpp, whole model", &llama);
            let ratio = Speeds {
                prefill: whole
                    .prefill
                    .iter()
                    .zip(&llama.prefill)
                    .map(|(ours, theirs)| ours / theirs)
                    .collect(),
                decode: whole.decode / llama.decode,
            };
            println!(
                "| {threads} | **whole model ÷ llama.cpp** | **{:.2}** | **{:.2}** | **{:.2}** |",
                ratio.prefill[0], ratio.prefill[1], ratio.decode
            );
        }
    }
    Ok(())
}

fn row(threads: usize, what: &str, speeds: &Speeds) {
    println!(
        "| {threads} | {what} | {:.0} | {:.0} | {:.1} |",
        speeds.prefill[0], speeds.prefill[1], speeds.decode
    );
}

fn measure(decoder: &Decoder, layers: LayerRange, repeats: usize) -> anyhow::Result<Speeds> {
    let prefill = PREFILL.map(|tokens| {
        prefill_seconds(decoder, layers, tokens, repeats).map(|s| per_second(tokens, s))
    });
    Ok(Speeds {
        prefill: prefill.into_iter().collect::<anyhow::Result<_>>()?,
        decode: per_second(DECODE, decode_seconds(decoder, layers, repeats)?),
    })
}

#[expect(clippy::cast_precision_loss, reason = "token counts are small")]
fn per_second(tokens: usize, seconds: f64) -> f64 {
    tokens as f64 / seconds
}

/// Token ids spread over the vocabulary.
fn token_ids(count: usize) -> Vec<u32> {
    (0_u32..)
        .map(|i| i.wrapping_mul(7919) % 40_000 + 100)
        .take(count)
        .collect()
}

fn prefill_seconds(
    decoder: &Decoder,
    layers: LayerRange,
    tokens: usize,
    repeats: usize,
) -> anyhow::Result<f64> {
    let mut seconds = Vec::new();
    // One more than asked: the first one warms caches up.
    for _ in 0..=repeats {
        let mut cache = decoder.new_cache(tokens);
        let start = Instant::now();
        let mut hidden = decoder.embed(&token_ids(tokens))?;
        decoder.forward(layers, &mut hidden, &mut cache)?;
        if layers == decoder.layers() {
            decoder.logits(&hidden[hidden.len() - decoder.config().hidden_size..])?;
        }
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(median(seconds.split_off(1)))
}

fn decode_seconds(decoder: &Decoder, layers: LayerRange, repeats: usize) -> anyhow::Result<f64> {
    let mut cache = decoder.new_cache(CONTEXT + DECODE);
    let mut hidden = decoder.embed(&token_ids(CONTEXT))?;
    decoder.forward(layers, &mut hidden, &mut cache)?;
    let mut seconds = Vec::new();
    for _ in 0..=repeats {
        cache.truncate(CONTEXT);
        let start = Instant::now();
        for token_id in token_ids(DECODE) {
            let mut hidden = decoder.embed(&[token_id])?;
            decoder.forward(layers, &mut hidden, &mut cache)?;
            if layers == decoder.layers() {
                let logits = decoder.logits(&hidden)?;
                std::hint::black_box(headway_model::sampler::argmax(&logits));
            }
        }
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(median(seconds.split_off(1)))
}

/// A Python with llama.cpp in it; built on first use, which takes some ten minutes on two cores.
pub fn peer_python() -> anyhow::Result<PathBuf> {
    let venv = cache_dir().join("peers/llama_cpp");
    let python = venv.join("bin/python");
    let ready = venv.join("ready");
    if ready.is_file() {
        return Ok(python);
    }
    eprintln!("building llama.cpp through llama-cpp-python, once");
    let status = Command::new("python3")
        .args(["-m", "venv"])
        .arg(&venv)
        .status()?;
    ensure!(status.success(), "python3 -m venv failed");
    let status = Command::new(&python)
        .args([
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--requirement",
        ])
        .arg(root().join("xtask/peers/requirements.txt"))
        // GCC 12 drops stores that AMX's tile configuration needs; see llama_cpp.py.
        .env("CFLAGS", "-fno-tree-dse -fno-dse")
        .env("CXXFLAGS", "-fno-tree-dse -fno-dse")
        .status()?;
    ensure!(status.success(), "pip install failed");
    std::fs::write(ready, "")?;
    Ok(python)
}

fn run_peer(python: &Path, model: &Path, threads: usize, repeats: usize) -> anyhow::Result<Speeds> {
    let output = Command::new(python)
        .arg(root().join("xtask/peers/llama_cpp.py"))
        .arg("--model")
        .arg(model)
        .args([
            "--threads",
            &threads.to_string(),
            "--repeats",
            &repeats.to_string(),
        ])
        .args([
            "--prefill",
            &PREFILL.map(|tokens| tokens.to_string()).join(","),
        ])
        .args(["--decode", &DECODE.to_string()])
        .output()?;
    ensure!(
        output.status.success(),
        "llama.cpp failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let json: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("llama_cpp.py prints JSON")?;
    let speed = |value: &serde_json::Value| {
        value["tokens_per_second"]
            .as_f64()
            .with_context(|| format!("tokens_per_second in {value}"))
    };
    let prefill = json["prefill"].as_array().context("a list \"prefill\"")?;
    Ok(Speeds {
        prefill: prefill.iter().map(speed).collect::<anyhow::Result<_>>()?,
        decode: speed(&json["decode"])?,
    })
}
