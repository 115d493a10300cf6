//! `cargo xtask model companion`: a smaller model of the same tokenizer, made from a GGUF by leaving decoder layers out.
//!
//! Which ones can go is found greedily: of all layers that are left, the one whose absence costs the least perplexity
//! goes next. It is a stand-in with real weights for a small model that was trained to be one.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use candle_core::Device;
use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file::{self, Content, Value};
use headway_model::Decoder;
use headway_model::layer_range::LayerRange;
use headway_model::sampler::log_sum_exp;
use headway_model::weights::{WeightDtype, Weights};

use crate::paths::{cache_dir, root};

/// Logits held at a time.
const LOGIT_ROWS: usize = 32;

/// What to write.
#[derive(clap::Args)]
pub struct Arguments {
    /// How many layers go.
    #[arg(long, default_value_t = 6)]
    leave_out: usize,
    /// These go, and nothing is measured.
    #[arg(long, value_delimiter = ',')]
    layers: Vec<usize>,
    /// Tokens of the golden text to measure on.
    #[arg(long, default_value_t = 384)]
    tokens: usize,
    /// The GGUF file [default: beside the small real model].
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
}

/// Layers of SmolLM2-135M-Instruct that were found with the defaults, in the order in which they went.
pub const LEFT_OUT: [usize; 6] = [14, 13, 17, 12, 25, 5];

/// Finds which layers can go, and writes the rest.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let full = super::fetch()?;
    let left_out = if arguments.layers.is_empty() {
        search(&full, arguments)?
    } else {
        arguments.layers.clone()
    };
    let out = arguments.out.clone().unwrap_or_else(default_path);
    write(&full, &left_out, &out)?;
    println!("{}", out.display());
    Ok(())
}

/// The companion of the small real model, written first where it is not there.
pub fn path() -> anyhow::Result<PathBuf> {
    let path = default_path();
    if !path.is_file() {
        write(&super::fetch()?, &LEFT_OUT, &path)?;
    }
    Ok(path)
}

fn default_path() -> PathBuf {
    cache_dir().join("models").join("smollm2-companion.gguf")
}

fn search(full: &Path, arguments: &Arguments) -> anyhow::Result<Vec<usize>> {
    let weights = Weights::open(full)?;
    let num_layers = weights.config().num_layers;
    ensure!(
        arguments.leave_out < num_layers,
        "the model has {num_layers} layers"
    );
    let decoder = Decoder::load(
        &weights,
        LayerRange::new(0, num_layers),
        WeightDtype::Native,
    )?;
    let text = std::fs::read_to_string(root().join("tests/golden/eval_text.txt"))?;
    let mut token_ids = weights.tokenizer()?.encode(&text)?;
    token_ids.truncate(arguments.tokens.max(2));
    let mut kept: Vec<usize> = (0..num_layers).collect();
    println!("| left out | perplexity |\n|---|---|");
    println!("| none | {:.2} |", perplexity(&decoder, &kept, &token_ids)?);
    let mut left_out = Vec::new();
    while left_out.len() < arguments.leave_out {
        let mut best = (f64::INFINITY, 0);
        // The first layer makes of embeddings what all others expect.
        for index in 1..kept.len() {
            let mut without = kept.clone();
            without.remove(index);
            let found = perplexity(&decoder, &without, &token_ids)?;
            if found < best.0 {
                best = (found, index);
            }
        }
        left_out.push(kept.remove(best.1));
        println!("| {left_out:?} | {:.2} |", best.0);
    }
    Ok(left_out)
}

/// Of the decoder with only the layers `kept`, in order.
fn perplexity(decoder: &Decoder, kept: &[usize], token_ids: &[u32]) -> anyhow::Result<f64> {
    let (inputs, targets) = (&token_ids[..token_ids.len() - 1], &token_ids[1..]);
    let mut hidden_states = decoder.embed(inputs)?;
    for run in kept.chunk_by(|layer, next| layer + 1 == *next) {
        let layers = LayerRange::new(run[0], run[run.len() - 1] + 1);
        decoder.forward(
            layers,
            &mut hidden_states,
            &mut decoder.new_cache(inputs.len()),
        )?;
    }
    let (hidden_size, vocab_size) = (decoder.config().hidden_size, decoder.config().vocab_size);
    let mut surprise = 0.0;
    for (rows, targets) in hidden_states
        .chunks(LOGIT_ROWS * hidden_size)
        .zip(targets.chunks(LOGIT_ROWS))
    {
        let logits = decoder.logits(rows)?;
        for (row, target) in logits.chunks_exact(vocab_size).zip(targets) {
            surprise += f64::from(log_sum_exp(row) - row[*target as usize]);
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a few thousand tokens")]
    let count = targets.len() as f64;
    Ok((surprise / count).exp())
}

/// Copies the file, without the layers `left_out`; those behind them move down.
fn write(full: &Path, left_out: &[usize], out: &Path) -> anyhow::Result<()> {
    let mut file = BufReader::new(File::open(full).with_context(|| full.display().to_string())?);
    let content = Content::read(&mut file)?;
    let mut tensors: Vec<(String, QTensor)> = Vec::new();
    let mut names: Vec<&String> = content.tensor_infos.keys().collect();
    names.sort();
    for name in names {
        if let Some(new_name) = renamed(name, left_out)? {
            tensors.push((new_name, content.tensor(&mut file, name, &Device::Cpu)?));
        }
    }
    let mut metadata = content.metadata.clone();
    let architecture = metadata
        .get("general.architecture")
        .context("a GGUF names its architecture")?;
    let block_count = format!("{}.block_count", architecture.to_string()?);
    let layers = metadata
        .get(&block_count)
        .context("a GGUF counts its layers")?
        .to_u32()?;
    let left = layers - u32::try_from(left_out.len())?;
    metadata.insert(block_count, Value::U32(left));
    let mut metadata: Vec<(&str, &Value)> = metadata
        .iter()
        .map(|(name, value)| (name.as_str(), value))
        .collect();
    metadata.sort_by_key(|(name, _)| *name);
    let tensors: Vec<(&str, &QTensor)> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    let folder = out.parent().unwrap_or(Path::new("."));
    // A name of its own: two commands may write at once, and the last one to finish wins.
    let partial = tempfile::NamedTempFile::new_in(folder)?;
    gguf_file::write(&mut BufWriter::new(partial.as_file()), &metadata, &tensors)?;
    partial.persist(out).context("keeping the companion")?;
    Ok(())
}

/// What a tensor is called in the companion; `None` where it goes.
fn renamed(name: &str, left_out: &[usize]) -> anyhow::Result<Option<String>> {
    let Some((layer, rest)) = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'))
    else {
        return Ok(Some(name.to_owned()));
    };
    let layer: usize = layer
        .parse()
        .with_context(|| format!("the tensor {name}"))?;
    if left_out.contains(&layer) {
        return Ok(None);
    }
    let below = left_out.iter().filter(|gone| **gone < layer).count();
    Ok(Some(format!("blk.{}.{rest}", layer - below)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_behind_those_that_go_move_down() {
        let new_name = |name| renamed(name, &[3, 5]).unwrap();
        assert_eq!(
            new_name("blk.2.attn_q.weight").unwrap(),
            "blk.2.attn_q.weight"
        );
        assert_eq!(new_name("blk.3.attn_q.weight"), None);
        assert_eq!(
            new_name("blk.6.attn_q.weight").unwrap(),
            "blk.4.attn_q.weight"
        );
        assert_eq!(new_name("token_embd.weight").unwrap(), "token_embd.weight");
    }
}
