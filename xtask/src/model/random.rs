//! `cargo xtask model random`: a model of a real one's shape whose weights are random, to measure with.
//!
//! A tail hashes every tensor of its model when it starts, so all layers must be there. Those that it will not run are
//! holes in their files: zeros that take no disk. Values are bf16, spread evenly so that a row keeps its variance;
//! the same in every run.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, anyhow, ensure};
use headway_model::weights::names;
use serde_json::{Map, Value, json};

/// A byte-level tokenizer of a few tokens; the rest of the vocabulary is made up.
const TOKENIZER: &str = include_str!("../../../tests/golden/tiny/llama/tokenizer.json");
const TOKENIZER_CONFIG: &str =
    include_str!("../../../tests/golden/tiny/llama/tokenizer_config.json");

const BF16_BYTES: usize = 2;
const ONE_BF16: [u8; 2] = [0x80, 0x3F];
/// Written at a time.
const PIECE_BYTES: usize = 1 << 20;

/// What to write.
#[derive(clap::Args)]
pub struct Arguments {
    /// Whose sizes.
    #[arg(long, value_enum, default_value_t = Shape::Llama31_8b)]
    shape: Shape,
    /// So many layers in place of the shape's. A tail hashes them all before it starts.
    #[arg(long, value_name = "N")]
    num_layers: Option<usize>,
    /// The first layer with values; below it, and in the embedding where it is not 0, there are zeros.
    #[arg(long, value_name = "K", default_value_t = 0)]
    layers_from: usize,
    /// The folder, made where it is not there.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Models whose sizes are known.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Shape {
    /// 32 layers, 16 GB.
    #[value(name = "llama-3.1-8b")]
    Llama31_8b,
}

impl Shape {
    const fn sizes(self) -> Sizes {
        match self {
            Self::Llama31_8b => Sizes {
                num_layers: 32,
                hidden_size: 4096,
                intermediate_size: 14_336,
                num_attention_heads: 32,
                num_kv_heads: 8,
                head_dim: 128,
                vocab_size: 128_256,
                max_positions: 131_072,
                rope_theta: 500_000.0,
            },
        }
    }
}

/// Of a Llama.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    num_layers: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_attention_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    vocab_size: usize,
    max_positions: usize,
    rope_theta: f64,
}

/// A file, and the tensors in it.
struct Shard {
    file: String,
    tensors: Vec<(String, Vec<usize>)>,
    has_values: bool,
}

/// Writes the model and prints its folder.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let whole = arguments.shape.sizes();
    let sizes = Sizes {
        num_layers: arguments.num_layers.unwrap_or(whole.num_layers),
        ..whole
    };
    let started = Instant::now();
    write(&sizes, arguments.layers_from, &arguments.out)?;
    eprintln!("written in {:.1} s", started.elapsed().as_secs_f64());
    println!("{}", arguments.out.display());
    Ok(())
}

fn write(sizes: &Sizes, layers_from: usize, folder: &Path) -> anyhow::Result<()> {
    ensure!(
        layers_from < sizes.num_layers,
        "--layers-from {layers_from}: the model has {} layers",
        sizes.num_layers
    );
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let shards = shards(sizes, layers_from);
    let text = |name: &str, value: &Value| {
        let path = folder.join(name);
        std::fs::write(&path, value.to_string()).with_context(|| path.display().to_string())
    };
    text("config.json", &config(sizes))?;
    text("tokenizer.json", &tokenizer(sizes.vocab_size)?)?;
    text(
        "tokenizer_config.json",
        &serde_json::from_str(TOKENIZER_CONFIG)?,
    )?;
    text("model.safetensors.index.json", &index(&shards))?;

    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let results: Vec<anyhow::Result<()>> = std::thread::scope(|scope| {
        let work = || {
            while let Some((number, shard)) = take(&shards, &next) {
                let path = folder.join(&shard.file);
                write_shard(shard, number, &path).with_context(|| path.display().to_string())?;
            }
            Ok(())
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ended = running.into_iter().map(std::thread::ScopedJoinHandle::join);
        ended
            .map(|ended| ended.map_err(|_| anyhow!("a writer has panicked"))?)
            .collect()
    });
    results.into_iter().collect()
}

fn take<'a>(shards: &'a [Shard], next: &AtomicUsize) -> Option<(usize, &'a Shard)> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    shards.get(number).map(|shard| (number, shard))
}

fn config(sizes: &Sizes) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_attention_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "head_dim": sizes.head_dim,
        "vocab_size": sizes.vocab_size,
        "max_position_embeddings": sizes.max_positions,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": sizes.rope_theta},
        "tie_word_embeddings": false,
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": 0,
        "eos_token_id": 1,
    })
}

/// The small tokenizer, with a made-up text for each further id.
fn tokenizer(vocab_size: usize) -> anyhow::Result<Value> {
    let mut tokenizer: Value = serde_json::from_str(TOKENIZER)?;
    let vocab = tokenizer["model"]["vocab"]
        .as_object_mut()
        .context("the tokenizer's vocabulary")?;
    for id in vocab.len()..vocab_size {
        vocab.insert(format!("<{id}>"), id.into());
    }
    Ok(tokenizer)
}

fn shards(sizes: &Sizes, layers_from: usize) -> Vec<Shard> {
    let (hidden, inter) = (sizes.hidden_size, sizes.intermediate_size);
    let (q, kv) = (
        sizes.num_attention_heads * sizes.head_dim,
        sizes.num_kv_heads * sizes.head_dim,
    );
    let vocabulary = || vec![sizes.vocab_size, hidden];
    let mut shards = vec![Shard {
        file: "model-embedding.safetensors".to_owned(),
        tensors: vec![(names::EMBEDDING.to_owned(), vocabulary())],
        has_values: layers_from == 0,
    }];
    shards.extend((0..sizes.num_layers).map(|layer| {
        let tensors = [
            ("attn_norm.weight", vec![hidden]),
            ("attn_q.weight", vec![q, hidden]),
            ("attn_k.weight", vec![kv, hidden]),
            ("attn_v.weight", vec![kv, hidden]),
            ("attn_output.weight", vec![hidden, q]),
            ("ffn_norm.weight", vec![hidden]),
            ("ffn_gate.weight", vec![inter, hidden]),
            ("ffn_up.weight", vec![inter, hidden]),
            ("ffn_down.weight", vec![hidden, inter]),
        ];
        Shard {
            file: format!("model-layer-{layer:02}.safetensors"),
            tensors: tensors
                .map(|(name, shape)| (names::in_layer(layer, name), shape))
                .into(),
            has_values: layer >= layers_from,
        }
    }));
    shards.push(Shard {
        file: "model-lm-head.safetensors".to_owned(),
        tensors: vec![
            (names::OUTPUT_NORM.to_owned(), vec![hidden]),
            (names::LM_HEAD.to_owned(), vocabulary()),
        ],
        has_values: true,
    });
    // As the hub's folders have them.
    for (name, _) in shards.iter_mut().flat_map(|shard| &mut shard.tensors) {
        *name = names::in_safetensors(name);
    }
    shards
}

fn index(shards: &[Shard]) -> Value {
    let files = shards.iter().flat_map(|shard| {
        let names = shard.tensors.iter().map(|(name, _)| name.clone());
        names.map(|name| (name, shard.file.clone().into()))
    });
    json!({"metadata": {}, "weight_map": files.collect::<Map<String, Value>>()})
}

/// `number`: tells its values from those of other files.
fn write_shard(shard: &Shard, number: usize, path: &Path) -> anyhow::Result<()> {
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in &shard.tensors {
        let start = end;
        end += shape.iter().product::<usize>() * BF16_BYTES;
        header.insert(
            name.clone(),
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}),
        );
    }
    let mut header = Value::from(header).to_string();
    // The values begin at a multiple of eight bytes.
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
    let mut file = File::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    if !shard.has_values {
        // What is not written reads as zeros.
        return Ok(file.set_len((8 + header.len() + end) as u64)?);
    }
    let mut out = BufWriter::with_capacity(PIECE_BYTES, file);
    let mut random = Random(number as u64);
    for (_, shape) in &shard.tensors {
        match shape[..] {
            [_, columns] => write_matrix(&mut random, shape, columns, &mut out)?,
            _ => out.write_all(&ONE_BF16.repeat(shape.iter().product()))?,
        }
    }
    Ok(out.flush()?)
}

/// Between plus and minus `sqrt(3 / columns)`, so that the values of a row have a variance of `1 / columns`.
fn write_matrix(
    random: &mut Random,
    shape: &[usize],
    columns: usize,
    out: &mut impl std::io::Write,
) -> std::io::Result<()> {
    #[expect(clippy::cast_precision_loss, reason = "columns are far below 2^24")]
    let scale = (3.0 / columns as f32).sqrt() / 32_768.0;
    let mut left = shape.iter().product::<usize>();
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    while left > 0 {
        let values = left.min(PIECE_BYTES / BF16_BYTES);
        piece.clear();
        while piece.len() < values * BF16_BYTES {
            let [a, b, c, d, e, f, g, h] = random.next().to_le_bytes();
            for two in [[a, b], [c, d], [e, f], [g, h]] {
                let value = f32::from(i16::from_le_bytes(two)) * scale;
                // bf16 is the upper half of an f32.
                let [_, _, low, high] = value.to_le_bytes();
                piece.extend([low, high]);
            }
        }
        out.write_all(&piece[..values * BF16_BYTES])?;
        left -= values;
    }
    Ok(())
}

/// Pseudo-random numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use headway_model::weights::{WeightDtype, Weights};
    use headway_model::{Decoder, LayerRange, artifact};

    use super::*;

    const SMALL: Sizes = Sizes {
        num_layers: 4,
        hidden_size: 64,
        intermediate_size: 96,
        num_attention_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        vocab_size: 300,
        max_positions: 256,
        rope_theta: 10_000.0,
    };

    #[test]
    fn a_tail_can_be_loaded_and_gives_sane_logits() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        write(&SMALL, 2, folder.path())?;
        let weights = Weights::open(folder.path())?;
        // What a tail does first: every tensor is read, and the tokenizer.
        artifact::identity(&weights)?;
        let layers = LayerRange::new(2, 4);
        let tail = Decoder::load(&weights, layers, WeightDtype::Native)?;
        let mut rows: Vec<f32> = (0..64_i16).map(|i| f32::from(i % 5 - 2)).collect();
        tail.forward(layers, &mut rows, &mut tail.new_cache(8))?;
        let logits = tail.logits(&rows)?;
        assert_eq!(logits.len(), SMALL.vocab_size);
        let largest = logits
            .iter()
            .fold(0_f32, |most, logit| most.max(logit.abs()));
        assert!(largest > 0.5 && largest < 20.0, "{largest}");
        Ok(())
    }

    #[test]
    fn layers_below_are_zeros_and_take_no_disk() -> anyhow::Result<()> {
        use std::os::unix::fs::MetadataExt as _;
        let folder = tempfile::tempdir()?;
        write(&SMALL, 3, folder.path())?;
        let blocks = |layer: usize| -> anyhow::Result<u64> {
            let file = folder
                .path()
                .join(format!("model-layer-{layer:02}.safetensors"));
            Ok(file.metadata()?.blocks())
        };
        assert!(blocks(0)? < blocks(3)?);
        let weights = Weights::open(folder.path())?;
        let norm = |layer| weights.read_vector(&names::in_layer(layer, "attn_norm.weight"), 64);
        assert_eq!(norm(0)?, [0.0; 64]);
        assert_eq!(norm(3)?, [1.0; 64]);
        Ok(())
    }
}
