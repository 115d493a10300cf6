//! The whole model on this device, with the same events and the same report as a split one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use headway_model::artifact::identity;
use headway_model::sampler::{Sampled, Sampler, SamplingParams};
use headway_model::weights::{WeightDtype, Weights};

use crate::answer::{Account, Answer, Plan};
use crate::device_layers::{DeviceLayers, Holding, Sequence};
use crate::error::{DeviceError, Error, RequestError};
use crate::event::Event;
use crate::generation::{Generation, Progress};
use crate::on_device::Reporter;
use crate::place::Place;
use crate::report::{FinishReason, Route, Totals};
use crate::request::GenerateRequest;
use crate::router::reason::Segment;
use crate::router::uncertainty::Uncertainty;
use crate::vocabulary::Vocabulary;

/// How to load and run a model on this device.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// The type in which weights are held.
    pub dtype: WeightDtype,
    /// Where the layers run.
    pub place: Place,
    /// The most positions of a generation; `None`: as many as the model was made for.
    pub max_positions: Option<usize>,
    /// Positions of the prompt that are computed at a time; bounds the memory for hidden states.
    pub prompt_chunk_positions: usize,
}

impl Default for LocalConfig {
    fn default() -> Self {
        Self {
            dtype: WeightDtype::Native,
            place: Place::default(),
            max_positions: None,
            prompt_chunk_positions: 256,
        }
    }
}

/// A model that runs here from its first layer to its last.
#[derive(Clone)]
pub struct LocalModel {
    layers: DeviceLayers,
    vocabulary: Arc<Vocabulary>,
    max_positions: usize,
    prompt_chunk_positions: usize,
    dtype: WeightDtype,
    source: Source,
    /// Tells the tail that the model came from of its answers.
    reporter: Option<Reporter>,
}

/// What the model is called by.
#[derive(Clone)]
enum Source {
    /// As the tail that it came from says.
    Digest(String),
    /// A file or folder, and its digest once somebody has asked for it.
    File(PathBuf, Arc<OnceLock<String>>),
}

impl LocalModel {
    /// Loads the model at `path`: a GGUF file or a folder. Blocks.
    ///
    /// # Errors
    /// [`DeviceError::Load`], [`RequestError::ChatTemplate`].
    pub fn load(path: &Path, config: &LocalConfig) -> Result<Self, Error> {
        let weights = Weights::open(path)?;
        let holding = Holding {
            dtype: config.dtype,
            place: config.place,
            max_positions: config.max_positions.unwrap_or(usize::MAX),
        };
        let layers = DeviceLayers::load(&weights, weights.config().num_layers, holding)?;
        let vocabulary = Arc::new(Vocabulary::of_weights(&weights)?);
        let source = Source::File(path.to_owned(), Arc::default());
        Ok(Self::new(layers, vocabulary, config, source))
    }

    /// All layers of the model that a tail calls `model_digest`.
    pub(crate) fn of_tail(
        layers: DeviceLayers,
        vocabulary: Arc<Vocabulary>,
        config: &LocalConfig,
        model_digest: String,
    ) -> Self {
        Self::new(layers, vocabulary, config, Source::Digest(model_digest))
    }

    /// `layers` are all of the model's.
    fn new(
        layers: DeviceLayers,
        vocabulary: Arc<Vocabulary>,
        config: &LocalConfig,
        source: Source,
    ) -> Self {
        let known = layers.config().max_positions;
        let max_positions = config.max_positions.map_or(known, |most| most.min(known));
        let prompt_chunk_positions = config.prompt_chunk_positions.max(1);
        Self {
            layers,
            vocabulary,
            max_positions,
            prompt_chunk_positions,
            dtype: config.dtype,
            source,
            reporter: None,
        }
    }

    /// The digest of weights, configuration and tokenizer, by which a tail names the same model. Reads the whole model
    /// the first time. Blocks.
    ///
    /// # Errors
    /// [`DeviceError::Load`].
    pub fn model_digest(&self) -> Result<String, Error> {
        match &self.source {
            Source::Digest(digest) => Ok(digest.clone()),
            Source::File(path, known) => {
                if let Some(digest) = known.get() {
                    return Ok(digest.clone());
                }
                let digest = identity(&Weights::open(path)?)?.digest();
                Ok(known.get_or_init(|| digest).clone())
            }
        }
    }

    /// The type in which weights are held.
    pub(crate) const fn dtype(&self) -> WeightDtype {
        self.dtype
    }

    /// The most positions of a generation.
    #[must_use]
    pub const fn max_positions(&self) -> usize {
        self.max_positions
    }

    /// Layers of the model.
    pub(crate) fn num_layers(&self) -> usize {
        self.layers.num_layers()
    }

    /// Bytes that the weights take in memory.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.layers.weight_bytes()
    }

    /// The text side, to be shared.
    pub(crate) const fn shared_vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// An empty sequence of at most `positions` positions.
    pub(crate) fn sequence(&self, positions: usize) -> Sequence {
        self.layers.sequence(positions)
    }

    /// Starts the forward passes of one generation of at most `positions` positions.
    ///
    /// # Errors
    /// [`RequestError::Sampling`].
    pub(crate) fn pass(
        &self,
        positions: usize,
        sampling: &SamplingParams,
        prompt_tokens: usize,
    ) -> Result<LocalPass, Error> {
        let sampler =
            Sampler::new(sampling.clone(), prompt_tokens).map_err(RequestError::Sampling)?;
        Ok(LocalPass {
            sequence: self.layers.sequence(positions.min(self.max_positions)),
            sampler,
            sampling: sampling.clone(),
            prompt_tokens,
            observed: 0,
            chunk_positions: self.prompt_chunk_positions,
            compute: Duration::ZERO,
        })
    }

    /// Every answer from now on is reported, cancelled ones too.
    pub(crate) fn reporting_to(self, reporter: Option<Reporter>) -> Self {
        Self { reporter, ..self }
    }

    /// The model's text side.
    #[must_use]
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Starts a generation.
    ///
    /// # Errors
    /// [`RequestError`] where the request does not fit the model. What goes wrong later comes as an event.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Generation, Error> {
        let model = self.clone();
        let plan = tokio::task::spawn_blocking(move || {
            Plan::new(request, &model.vocabulary, model.max_positions)
        });
        let plan = plan.await.map_err(DeviceError::Worker)??;
        let (generation, progress) = Generation::channel();
        let model = self.clone();
        tokio::task::spawn_blocking(move || model.run(&plan, &progress));
        Ok(generation)
    }

    /// Runs one generation to its end and reports it. Blocks.
    fn run(&self, plan: &Plan, progress: &Progress) {
        let mut answer = Answer::new(&self.vocabulary, plan);
        answer.opened(plan.started);
        let mut compute = Duration::ZERO;
        let finish = self
            .drive(plan, &mut answer, progress, &mut compute)
            .and_then(|finish| Ok(answer.rest(finish)?));
        let num_layers = self.layers.num_layers();
        let account = Account {
            prompt_tokens: plan.prompt.len(),
            split_layer: num_layers,
            num_layers,
            head_weight_bytes: self.layers.weight_bytes(),
            route: Route::Device,
            segments: vec![Segment::only(Route::Device, answer.tokens())],
            totals: Totals {
                head_compute_ms: compute.as_secs_f64() * 1e3,
                ..Totals::default()
            },
        };
        // Where nobody listens any more, there is nobody to tell.
        match finish {
            Ok((text, finish)) => {
                let report = Box::new(answer.report(finish, account));
                // First, so that whoever has the report knows that the answer is queued.
                if let Some(reporter) = self.reporter.as_ref().filter(|_| !plan.local_only) {
                    reporter.answered(report.prompt_tokens, report.token_ids.len());
                }
                if !text.is_empty() {
                    let _ = progress.events.blocking_send(Ok(Event::Rest { text }));
                }
                let _ = progress.events.blocking_send(Ok(Event::Report(report)));
            }
            Err(error) => drop(progress.events.blocking_send(Err(error))),
        }
    }

    fn drive(
        &self,
        plan: &Plan,
        answer: &mut Answer<'_>,
        progress: &Progress,
        compute: &mut Duration,
    ) -> Result<FinishReason, Error> {
        let mut pass = self.pass(plan.positions(), &plan.sampling, plan.prompt.len())?;
        let mut sequence = plan.prompt.clone();
        loop {
            let sampled = loop {
                if progress.cancelled.is_set() {
                    return Ok(FinishReason::Cancelled);
                }
                let next = pass.advance(&sequence, Measure::Nothing)?;
                *compute = pass.compute();
                if let Some(next) = next {
                    break next.sampled;
                }
            };
            let token_id = sampled.token_id;
            let taken = answer.take(sampled)?;
            if let Some(event) = taken.event
                && progress
                    .events
                    .blocking_send(Ok(Event::Token(event)))
                    .is_err()
            {
                return Ok(FinishReason::Cancelled);
            }
            if let Some(finish) = taken.finish {
                return Ok(finish);
            }
            sequence.push(token_id);
        }
    }
}

/// Whether a token's uncertainty is wanted beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    /// The token only.
    Nothing,
    /// How sure the model was of it, too.
    Uncertainty,
}

/// A token and how sure the model was.
#[derive(Clone, Debug)]
pub(crate) struct Next {
    pub(crate) sampled: Sampled,
    /// Zeros where it was not asked for.
    pub(crate) uncertainty: Uncertainty,
}

/// One generation's forward passes: takes in what it lacks of the sequence, and gives the token after it. Which engine
/// the tokens so far came from makes no difference.
pub(crate) struct LocalPass {
    sequence: Sequence,
    sampler: Sampler,
    sampling: SamplingParams,
    prompt_tokens: usize,
    /// Positions whose tokens the sampler has seen.
    observed: usize,
    chunk_positions: usize,
    compute: Duration,
}

impl LocalPass {
    /// Time in which layers ran.
    pub(crate) const fn compute(&self) -> Duration {
        self.compute
    }

    /// Takes in a chunk of what it lacks of `sequence`, prompt and answer, which is one token at least; and gives the
    /// token after it where that was all. Blocks.
    pub(crate) fn advance(
        &mut self,
        sequence: &[u32],
        measure: Measure,
    ) -> Result<Option<Next>, Error> {
        let started = Instant::now();
        for (position, token_id) in sequence.iter().enumerate().skip(self.observed) {
            self.sampler.observe(position, *token_id);
        }
        self.observed = sequence.len();
        let lacking = &sequence[self.sequence.len()..];
        debug_assert!(!lacking.is_empty(), "a token comes after another one");
        if lacking.len() > self.chunk_positions {
            self.sequence.extend(&lacking[..self.chunk_positions])?;
            self.compute += started.elapsed();
            return Ok(None);
        }
        let mut logits = self.sequence.logits(lacking)?;
        let uncertainty = match measure {
            Measure::Nothing => Uncertainty::default(),
            Measure::Uncertainty => Uncertainty::of_logits(&logits),
        };
        let sampled = self.sampler.sample(&mut logits, self.sequence.len());
        self.compute += started.elapsed();
        Ok(Some(Next {
            sampled,
            uncertainty,
        }))
    }

    /// Forgets the positions from `len` on.
    ///
    /// # Errors
    /// None in practice: the sampling was checked before.
    pub(crate) fn rewind(&mut self, len: usize) -> Result<(), Error> {
        if self.sequence.len() > len {
            self.sequence.truncate(len);
        }
        // A sampler cannot unlearn; it is shown what is kept again.
        self.sampler = Sampler::new(self.sampling.clone(), self.prompt_tokens)
            .map_err(RequestError::Sampling)?;
        self.observed = 0;
        Ok(())
    }
}
