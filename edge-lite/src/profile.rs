//! What this device can do with a model, measured: the planner's knowledge of this side.
//!
//! A profile holds for one model, one place of the layers and one number of threads. It is measured with a few layers,
//! in a few seconds, and stored in the cache folder. All times are wall-clock milliseconds of one layer, medians of
//! several runs.

mod device;
pub(crate) mod measure;
pub(crate) mod probe;
mod stack;
mod store;
mod table;
#[cfg(test)]
pub(crate) mod tests;

use headway_model::config::ModelConfig;
use headway_model::manifest::{Artifact, Manifest};
use headway_model::quantization::Quantization;
use headway_model::weights::WeightDtype;
use serde::{Deserialize, Serialize};

pub use self::device::{DeviceFacts, Power};
pub use self::measure::{LocalModelFile, measure_model};
pub(crate) use self::measure::{Measuring, measure_layers};
pub use self::store::{ProfileStore, StoreError};

use crate::link::Link;

/// The version of the stored form and of how it is measured.
pub const VERSION: u32 = 2;
/// Tails whose link is remembered.
const MAX_TAILS: usize = 16;

/// What was measured on this device with one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// [`VERSION`].
    pub version: u32,
    /// What it holds for.
    #[serde(flatten)]
    pub key: ProfileKey,
    /// The model's name, to show to people.
    pub model_name: String,
    /// When it was measured, in seconds since 1970.
    pub measured_at_seconds: u64,
    /// The device.
    pub device: DeviceFacts,
    /// What layers take, one for each way of holding them.
    pub layers: Vec<LayerTimes>,
    /// Links to tails, the last seen one first.
    pub tails: Vec<TailLink>,
}

/// What a profile holds for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileKey {
    /// The model's digest.
    pub model_digest: String,
    /// Where the layers run: `cpu` or `cuda:N`.
    pub place: String,
    /// Threads for the layers.
    pub threads: usize,
}

/// How the head's weights are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// How they are quantised.
    pub quantization: Quantization,
    /// The type in memory.
    pub dtype: WeightDtype,
}

/// What layers take here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerTimes {
    /// How the weights are held.
    pub held: Held,
    /// Layers that were run one after the other to measure one.
    pub layers_measured: usize,
    /// Bytes of a layer's file.
    pub layer_bytes: u64,
    /// Bytes of the embedding's file.
    pub embedding_bytes: u64,
    /// Looking one token id up.
    pub embedding_row_ms: f64,
    /// One row behind so many positions, in one layer; ascending, the first one behind none.
    pub decode: Vec<DecodeTime>,
    /// Several rows at once behind none, in one layer; ascending.
    pub prefill: Vec<PrefillTime>,
    /// What a row adds in one layer for each position before it, where many rows go at once.
    pub prefill_row_position_ms: f64,
    /// Final norm, lm_head and sampling, where they were here to be measured.
    pub lm_head: Option<LmHeadTimes>,
}

/// One row in one layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecodeTime {
    /// Positions before it.
    pub positions: usize,
    /// What it takes.
    pub ms: f64,
}

/// Several rows in one layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrefillTime {
    /// How many.
    pub rows: usize,
    /// What they take together.
    pub ms: f64,
}

/// Final norm and lm_head.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LmHeadTimes {
    /// Bytes of the matrix in its file.
    pub bytes: u64,
    /// One row.
    pub one_row_ms: f64,
}

/// What was seen of the way to a tail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TailLink {
    /// The tail's address, as it was given.
    pub url: String,
    /// When, in seconds since 1970.
    pub seen_at_seconds: u64,
    /// The link.
    pub link: Link,
}

impl Held {
    /// How a client holds weights in `quantization`, see [`ClientConfig::dtype`](crate::ClientConfig::dtype).
    #[must_use]
    pub fn of(quantization: Quantization, dtype: Option<WeightDtype>, manifest: &Manifest) -> Self {
        let dtype = dtype.unwrap_or(match quantization {
            Quantization::None => manifest.dtype,
            _ => WeightDtype::Native,
        });
        Self {
            quantization,
            dtype,
        }
    }
}

impl Profile {
    /// Of this device, with nothing measured yet.
    #[must_use]
    pub fn new(key: ProfileKey, model_name: &str) -> Self {
        Self {
            version: VERSION,
            device: DeviceFacts::read(&key.place),
            key,
            model_name: model_name.to_owned(),
            measured_at_seconds: now_seconds(),
            layers: Vec::new(),
            tails: Vec::new(),
        }
    }

    /// What layers take that are held so.
    #[must_use]
    pub fn times(&self, held: Held) -> Option<&LayerTimes> {
        self.layers.iter().find(|times| times.held == held)
    }

    /// Takes in what was measured, in place of what was before.
    pub fn put_times(&mut self, times: LayerTimes) {
        self.layers.retain(|known| known.held != times.held);
        self.layers.push(times);
        self.measured_at_seconds = now_seconds();
    }

    /// Remembers what the way to a tail is like, if anything is known of it.
    pub fn put_link(&mut self, url: &str, link: Link) {
        if link.rtt_ms.is_none() {
            return;
        }
        let before = self.tails.iter().find(|tail| tail.url == url);
        let before = before.map_or_else(Link::default, |tail| tail.link);
        // An answer tells little of the bandwidths; what was known of them stands.
        let link = Link {
            up_bits_per_second: link.up_bits_per_second.or(before.up_bits_per_second),
            down_bits_per_second: link.down_bits_per_second.or(before.down_bits_per_second),
            ..link
        };
        self.tails.retain(|tail| tail.url != url);
        let seen = TailLink {
            url: url.to_owned(),
            seen_at_seconds: now_seconds(),
            link,
        };
        self.tails.insert(0, seen);
        self.tails.truncate(MAX_TAILS);
    }

    /// The way to a tail, if it was seen within `max_age_seconds`. A clock that was set back makes it too old.
    #[must_use]
    pub fn fresh_link(&self, url: &str, max_age_seconds: u64) -> Option<Link> {
        let tail = self.tails.iter().find(|tail| tail.url == url)?;
        let age = now_seconds().checked_sub(tail.seen_at_seconds)?;
        (age <= max_age_seconds).then_some(tail.link)
    }
}

impl LayerTimes {
    /// Milliseconds of `rows` rows at once in one layer, behind `positions` positions. Linear between what was
    /// measured, and beyond.
    #[must_use]
    pub fn layer_ms(&self, rows: usize, positions: usize) -> f64 {
        let decode = |positions: usize| {
            let points = self
                .decode
                .iter()
                .map(|time| (float(time.positions), time.ms));
            interpolate(points, float(positions))
        };
        match rows {
            0 => 0.0,
            1 => decode(positions),
            rows => {
                let first = [(1.0, decode(0))].into_iter();
                let more = self.prefill.iter().map(|time| (float(time.rows), time.ms));
                interpolate(first.chain(more), float(rows))
                    + float(rows) * float(positions) * self.prefill_row_position_ms
            }
        }
    }

    /// Milliseconds of final norm and lm_head for one row. Where they were not measured, from their bytes: both read
    /// their weights once.
    #[must_use]
    pub fn lm_head_ms(&self, lm_head_bytes: u64) -> f64 {
        match self.lm_head {
            Some(lm_head) => lm_head.one_row_ms,
            None => self.layer_ms(1, 0) * ratio(lm_head_bytes, self.layer_bytes),
        }
    }
}

/// Bytes of a model's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartBytes {
    /// The embedding.
    pub embedding: u64,
    /// One layer: the largest.
    pub layer: u64,
    /// What the lm_head reads: its own matrix, or the embedding's.
    pub lm_head: u64,
    /// What it adds to the embedding and the layers.
    pub lm_head_own: u64,
}

impl PartBytes {
    /// Of the parts that a manifest lists.
    #[must_use]
    pub fn of(parts: &[Artifact], config: &ModelConfig) -> Self {
        let of = |name: &str| {
            let part = parts.iter().find(|part| part.name == name);
            part.map_or(0, |part| part.bytes)
        };
        let layers = parts.iter().filter(|part| part.name.starts_with("layer-"));
        let (embedding, lm_head_own) = (of("embedding"), of("lm_head"));
        Self {
            embedding,
            layer: layers.map(|part| part.bytes).max().unwrap_or(0),
            lm_head: if config.tied_embeddings {
                embedding
            } else {
                lm_head_own
            },
            lm_head_own,
        }
    }
}

/// Through `points` in ascending order, linear between them and beyond the last; 0 where there are none.
fn interpolate(points: impl Iterator<Item = (f64, f64)>, at: f64) -> f64 {
    let mut last: Option<(f64, f64)> = None;
    let mut slope = 0.0;
    for (x, y) in points {
        if let Some((last_x, last_y)) = last
            && x > last_x
        {
            // More never takes less: where a measurement says so, it is noise.
            slope = ((y - last_y) / (x - last_x)).max(0.0);
            if at <= x {
                return last_y + slope * (at - last_x);
            }
            last = Some((x, y.max(last_y)));
        } else {
            last = Some((x, y));
        }
    }
    last.map_or(0.0, |(x, y)| y + slope * (at - x).max(0.0))
}

fn now_seconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn ratio(part: u64, whole: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "sizes of files")]
    let (part, whole) = (part as f64, whole.max(1) as f64);
    part / whole
}

#[expect(clippy::cast_precision_loss, reason = "counts of rows and positions")]
const fn float(count: usize) -> f64 {
    count as f64
}
