//! Measures layers on this device.
//!
//! A few layers are loaded, as often as the model has layers ([`Stack`]), and run as in an answer: a row goes through all
//! of them and, where it is here, the lm_head, before the next one.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use headway_model::artifact::identity;
use headway_model::quantization::Quantization;
use headway_model::threads;
use headway_model::weights::{WeightDtype, Weights};

use super::stack::{Depth, Output, Stack};
use super::{
    DecodeTime, DeviceFacts, Held, LayerTimes, LmHeadTimes, PartBytes, PrefillTime, Profile,
    ProfileKey, float,
};
use crate::device_layers::{DeviceLayers, Holding, name_of};
use crate::error::{DeviceError, Error};
use crate::place::Place;

/// Layers that are fetched to measure one.
pub(crate) const MOST_LAYERS: usize = 4;
/// Positions before a row, and rows at once, as far as the model and the time allow.
const CONTEXTS: [usize; 4] = [0, 128, 512, 2048];
const ROWS: [usize; 4] = [8, 32, 128, 512];
/// Rows at once behind [`DEEP_POSITIONS`], to tell what positions add.
const DEEP_ROWS: usize = 128;
const DEEP_POSITIONS: usize = 512;
/// So many rows at once read the weights of all layers anew; of more, the first layers tell as much.
const MOST_ROWS_THROUGH_ALL: usize = 32;
/// Rows at once while positions are filled.
const FILL_ROWS: usize = 256;
const ONE_ROW_RUNS: usize = 9;
const MANY_ROWS_RUNS: usize = 3;

/// Weights to measure, and how they are held.
pub(crate) struct Measuring {
    pub(crate) weights: Weights,
    pub(crate) held: Held,
    pub(crate) place: Place,
    /// Of the files of this quantisation.
    pub(crate) bytes: PartBytes,
    /// The most layers that are among `weights`.
    pub(crate) layers: usize,
    /// Final norm and lm_head are among `weights`.
    pub(crate) has_lm_head: bool,
    /// How long it may take, but for the first runs and loading.
    pub(crate) budget: Duration,
}

/// A model on this device's disk, and how to measure it.
#[derive(Clone, Debug)]
pub struct LocalModelFile {
    /// A GGUF file or a folder.
    pub path: PathBuf,
    /// The type in which weights are held.
    pub dtype: WeightDtype,
    /// Where the layers run.
    pub place: Place,
    /// How long it may take.
    pub budget: Duration,
}

/// Measures a model that is here. Reads all of it, for its digest. Blocks.
///
/// # Errors
/// [`DeviceError::Load`], [`DeviceError::Forward`].
pub fn measure_model(model: &LocalModelFile) -> Result<Profile, Error> {
    let weights = Weights::open(&model.path)?;
    let identity = identity(&weights)?;
    let key = ProfileKey::here(identity.digest(), model.place);
    let mut profile = Profile::new(key, weights.name());
    let measuring = Measuring {
        bytes: PartBytes::of(&identity.parts, weights.config()),
        layers: weights.config().num_layers,
        has_lm_head: true,
        weights,
        held: Held {
            quantization: Quantization::None,
            dtype: model.dtype,
        },
        place: model.place,
        budget: model.budget,
    };
    profile.put_times(measure_layers(&measuring)?);
    Ok(profile)
}

impl ProfileKey {
    /// For layers in `place` of this machine and this process's threads.
    #[must_use]
    pub fn here(model_digest: String, place: Place) -> Self {
        Self {
            model_digest,
            place: name_of(place),
            threads: threads::threads(),
        }
    }
}

/// Measures what layers take. Blocks.
pub(crate) fn measure_layers(measuring: &Measuring) -> Result<LayerTimes, DeviceError> {
    let config = measuring.weights.config();
    // Layers before the last one give hidden states, which is what a head does.
    let most = (config.num_layers - 1).max(1).min(measuring.layers);
    let num_layers = most.min(MOST_LAYERS);
    let capacity = (CONTEXTS[3] + FILL_ROWS).min(config.max_positions);
    let holding = Holding {
        dtype: measuring.held.dtype,
        place: measuring.place,
        max_positions: capacity,
    };
    let layers = DeviceLayers::load(&measuring.weights, num_layers, holding)?;
    let output = match &layers {
        DeviceLayers::Cpu(_) if measuring.has_lm_head => Some(Output::load(measuring)?),
        _ => None,
    };
    let available = DeviceFacts::read("cpu").memory_available_bytes;
    let available = usize::try_from(available).unwrap_or(usize::MAX);
    let mut runs = Runs {
        stack: Stack::load(measuring, &layers, capacity, available)?,
        output,
        vocab_size: config.vocab_size,
        capacity,
        deadline: Instant::now() + measuring.budget,
        embedding_row_ms: embedding_row_ms(&layers)?,
    };
    // Threads are started and pages are read once.
    runs.run(0, FILL_ROWS.min(ROWS[1]))?;
    let (first, lm_head_ms) = runs.tokens(0)?;
    let mut decode = vec![first];
    let mut prefill = Vec::new();
    for rows in ROWS {
        prefill.extend(runs.prefill(rows, 0, prefill.last().copied())?);
    }
    let prefill_row_position_ms = runs.deep_rows(&prefill)?;
    for positions in &CONTEXTS[1..] {
        if runs.has_time_to_fill(*positions, prefill.last()) {
            decode.push(runs.tokens(*positions)?.0);
        }
    }
    Ok(LayerTimes {
        held: measuring.held,
        layers_measured: runs.stack.num_layers(Depth::All),
        layer_bytes: measuring.bytes.layer,
        embedding_bytes: measuring.bytes.embedding,
        embedding_row_ms: runs.embedding_row_ms,
        decode,
        prefill,
        prefill_row_position_ms,
        lm_head: lm_head_ms.map(|one_row_ms| LmHeadTimes {
            bytes: measuring.bytes.lm_head,
            one_row_ms,
        }),
    })
}

/// Runs of some layers.
struct Runs {
    stack: Stack,
    output: Option<Output>,
    vocab_size: usize,
    capacity: usize,
    deadline: Instant,
    embedding_row_ms: f64,
}

impl Runs {
    /// Milliseconds of one layer for `rows` rows behind `positions`, once.
    fn run(&mut self, positions: usize, rows: usize) -> Result<f64, DeviceError> {
        let depth = depth(rows);
        self.fill(positions, depth)?;
        Ok(self.forward(rows, depth)?.0)
    }

    /// What one layer took for the next rows, and what is behind the last layer.
    fn forward(&mut self, rows: usize, depth: Depth) -> Result<(f64, Vec<f32>), DeviceError> {
        let position = self.stack.len(depth);
        // Ids that a compiler or a cache cannot foresee, all within the vocabulary.
        let ids = (position..position + rows)
            .map(|index| u32::try_from((index * 7919 + 13) % self.vocab_size).unwrap_or(0));
        let ids: Vec<u32> = ids.collect();
        let began = Instant::now();
        let hidden_states = black_box(self.stack.forward(&ids, depth)?);
        let ms = milliseconds(began.elapsed()) - float(rows) * self.embedding_row_ms;
        let layer_ms = ms / float(self.stack.num_layers(depth));
        Ok((layer_ms.max(f64::MIN_POSITIVE), hidden_states))
    }

    fn fill(&mut self, positions: usize, depth: Depth) -> Result<(), DeviceError> {
        self.stack.truncate(positions, depth);
        while self.stack.len(depth) < positions {
            let lacking = positions - self.stack.len(depth);
            self.forward(FILL_ROWS.min(lacking), depth)?;
        }
        Ok(())
    }

    fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// A layer's time for one row, and that of what is behind the layers, where it is here; as token follows token.
    fn tokens(&mut self, positions: usize) -> Result<(DecodeTime, Option<f64>), DeviceError> {
        let (mut layer, mut end) = (Vec::new(), Vec::new());
        while layer.len() < ONE_ROW_RUNS && !(layer.len() >= MANY_ROWS_RUNS && self.is_late()) {
            self.fill(positions, Depth::All)?;
            let (ms, hidden_states) = self.forward(1, Depth::All)?;
            layer.push(ms);
            if let Some(output) = &self.output {
                let began = Instant::now();
                black_box(output.token(&hidden_states)?);
                end.push(milliseconds(began.elapsed()));
            }
        }
        let ms = median(layer);
        let end = (!end.is_empty()).then(|| median(end));
        Ok((DecodeTime { positions, ms }, end))
    }

    /// `None` where it does not fit the model, or the time. `last`: what fewer rows took.
    fn prefill(
        &mut self,
        rows: usize,
        positions: usize,
        last: Option<PrefillTime>,
    ) -> Result<Option<PrefillTime>, DeviceError> {
        let depth = depth(rows);
        if positions + rows > self.capacity || !self.has_time(rows, depth, last.as_ref()) {
            return Ok(None);
        }
        let mut runs = Vec::new();
        while runs.is_empty() || (runs.len() < MANY_ROWS_RUNS && !self.is_late()) {
            runs.push(self.run(positions, rows)?);
        }
        let ms = median(runs);
        Ok(Some(PrefillTime { rows, ms }))
    }

    /// What positions add to many rows; 0 where that was not measured.
    fn deep_rows(&mut self, prefill: &[PrefillTime]) -> Result<f64, DeviceError> {
        let Some(shallow) = prefill.iter().find(|time| time.rows == DEEP_ROWS) else {
            return Ok(0.0);
        };
        let lacking = DEEP_POSITIONS.saturating_sub(self.stack.len(Depth::First));
        if !self.has_time(lacking, Depth::First, Some(shallow)) {
            return Ok(0.0);
        }
        let deep = self.prefill(DEEP_ROWS, DEEP_POSITIONS, None)?;
        Ok(deep.map_or(0.0, |deep| {
            (deep.ms - shallow.ms).max(0.0) / float(DEEP_ROWS * DEEP_POSITIONS)
        }))
    }

    /// Whether positions before a row can be filled in all layers until the deadline.
    fn has_time_to_fill(&self, positions: usize, known: Option<&PrefillTime>) -> bool {
        let lacking = positions.saturating_sub(self.stack.len(Depth::All));
        positions + FILL_ROWS <= self.capacity && self.has_time(lacking, Depth::All, known)
    }

    /// Whether `rows` rows can be run until the deadline, if they take what `known` says.
    fn has_time(&self, rows: usize, depth: Depth, known: Option<&PrefillTime>) -> bool {
        let needed_ms = known.map_or(0.0, |known| {
            known.ms / float(known.rows) * float(rows * self.stack.num_layers(depth))
        });
        let left = self.deadline.saturating_duration_since(Instant::now());
        !self.is_late() && needed_ms <= milliseconds(left)
    }
}

const fn depth(rows: usize) -> Depth {
    if rows <= MOST_ROWS_THROUGH_ALL {
        Depth::All
    } else {
        Depth::First
    }
}

/// 0 where looking up is a part of the layers.
fn embedding_row_ms(layers: &DeviceLayers) -> Result<f64, DeviceError> {
    const ROWS: u32 = 64;
    #[cfg_attr(
        not(feature = "cuda"),
        expect(irrefutable_let_patterns, reason = "layers on a GPU are another kind")
    )]
    let DeviceLayers::Cpu(decoder) = layers else {
        return Ok(0.0);
    };
    let vocab_size = u32::try_from(decoder.config().vocab_size).unwrap_or(u32::MAX);
    let ids: Vec<u32> = (0..ROWS).map(|index| index * 97 % vocab_size).collect();
    let mut runs = Vec::new();
    for _ in 0..MANY_ROWS_RUNS {
        let began = Instant::now();
        black_box(decoder.embed(&ids)?);
        runs.push(milliseconds(began.elapsed()) / f64::from(ROWS));
    }
    Ok(median(runs))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The middle value; of an even number, the upper one. `values` has one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
