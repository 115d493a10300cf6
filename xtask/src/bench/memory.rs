//! `cargo xtask bench memory`.

use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use headway_model::weights::Weights;
use headway_model::{Decoder, LayerRange, Quantization};

use crate::model;
use crate::paths::program;
use crate::processes::{self, Tail};

const MIB: f64 = 1024.0 * 1024.0;

/// Prints peak resident sizes beside the bytes of the weights each side owns.
pub fn run() -> anyhow::Result<()> {
    processes::build()?;
    let path = model::fetch()?;
    let weights = Weights::open(&path)?;
    let num_layers = weights.config().num_layers;
    println!(
        "| split layer | head weights | edge weights, MiB | edge peak RSS, MiB | tail weights, MiB | tail peak RSS, MiB |"
    );
    println!("|---|---|---|---|---|---|");
    for split_layer in [0, 10, 20, num_layers] {
        for quantization in [Quantization::None, Quantization::Q4K, Quantization::Q4_0] {
            if split_layer == 0 && quantization != Quantization::None {
                continue;
            }
            let edge_weights = if split_layer == 0 {
                0
            } else {
                let head = LayerRange::new(0, split_layer);
                Decoder::load_quantized(&weights, head, quantization)?.weight_bytes()
            };
            let (edge, tail) = if split_layer == num_layers {
                if quantization != Quantization::None {
                    continue;
                }
                (
                    peak_of_edge(&["--model", path.to_str().context("a path in UTF-8")?])?,
                    None,
                )
            } else {
                let minimum = split_layer.to_string();
                let tail = Tail::start(
                    &path,
                    &[
                        "--split-min",
                        &minimum,
                        "--threads",
                        "1",
                        "--head-quantizations",
                        "none,q4_k,q4_0",
                    ],
                )?;
                let arguments = [
                    "--tail",
                    &tail.url,
                    "--split-layer",
                    &minimum,
                    "--head-quantization",
                    quantization.name(),
                ];
                // The first run fetches the head, the second is what a device does every day.
                peak_of_edge(&arguments)?;
                let edge = peak_of_edge(&arguments)?;
                let tail_layers = LayerRange::new(split_layer, num_layers);
                let bytes =
                    Decoder::load(&weights, tail_layers, Default::default())?.weight_bytes();
                (edge, Some((bytes, peak_resident_bytes(tail.id())?)))
            };
            let (tail_weights, tail_peak) = tail
                .map_or(("–".to_owned(), "–".to_owned()), |(weights, peak)| {
                    (mib(weights), mib(peak))
                });
            println!(
                "| {split_layer} | {quantization} | {} | {} | {tail_weights} | {tail_peak} |",
                mib(edge_weights),
                mib(edge)
            );
        }
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
fn mib(bytes: usize) -> String {
    format!("{:.1}", bytes as f64 / MIB)
}

/// Runs one generation and returns the most memory that it had resident.
fn peak_of_edge(arguments: &[&str]) -> anyhow::Result<usize> {
    let mut child = Command::new(program("edge-lite")?)
        .args([
            "--threads",
            "1",
            "generate",
            "--prompt",
            "Why is the sky blue?",
            "--max-tokens",
            "48",
        ])
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // The kernel keeps the peak until the process is gone, so the last reading is the answer.
    let mut peak = 0;
    loop {
        if let Ok(now) = peak_resident_bytes(child.id()) {
            peak = peak.max(now);
        }
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "edge-lite {} failed", arguments.join(" "));
            return Ok(peak);
        }
        std::thread::yield_now();
    }
}

/// `VmHWM`: the largest resident size so far.
fn peak_resident_bytes(process: u32) -> anyhow::Result<usize> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("no VmHWM")?;
    let kib: usize = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}
