//! The whole model on this device, with the same events and the same report as a split one.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headway_model::sampler::{Sampled, Sampler};
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
    /// Tells the tail that the model came from of its answers.
    reporter: Option<Reporter>,
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
        Ok(Self::new(layers, vocabulary, config))
    }

    /// `layers` are all of the model's.
    pub(crate) fn new(
        layers: DeviceLayers,
        vocabulary: Arc<Vocabulary>,
        config: &LocalConfig,
    ) -> Self {
        let known = layers.config().max_positions;
        let max_positions = config.max_positions.map_or(known, |most| most.min(known));
        let prompt_chunk_positions = config.prompt_chunk_positions.max(1);
        Self {
            layers,
            vocabulary,
            max_positions,
            prompt_chunk_positions,
            reporter: None,
        }
    }

    /// Every answer from now on is reported, cancelled ones too.
    pub(crate) fn reporting_to(self, reporter: Option<Reporter>) -> Self {
        Self { reporter, ..self }
    }

    /// Where answers are reported, if they are.
    pub(crate) fn reporter(&self) -> Option<&Reporter> {
        self.reporter.as_ref()
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
        let mut pass = Pass {
            model: self,
            sequence: self.layers.sequence(plan.positions()),
            compute: Duration::ZERO,
        };
        let finish = pass
            .drive(plan, &mut answer, progress)
            .and_then(|finish| Ok(answer.rest(finish)?));
        let num_layers = self.layers.num_layers();
        let account = Account {
            prompt_tokens: plan.prompt.len(),
            split_layer: num_layers,
            num_layers,
            head_weight_bytes: self.layers.weight_bytes(),
            route: Route::Device,
            totals: Totals {
                head_compute_ms: pass.compute.as_secs_f64() * 1e3,
                ..Totals::default()
            },
        };
        // Where nobody listens any more, there is nobody to tell.
        match finish {
            Ok((text, finish)) => {
                let report = Box::new(answer.report(finish, account));
                // First, so that whoever has the report knows that the answer is queued.
                if let Some(reporter) = &self.reporter {
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
}

/// One generation's forward passes.
struct Pass<'a> {
    model: &'a LocalModel,
    sequence: Sequence,
    compute: Duration,
}

impl Pass<'_> {
    fn drive(
        &mut self,
        plan: &Plan,
        answer: &mut Answer<'_>,
        progress: &Progress,
    ) -> Result<FinishReason, Error> {
        let mut sampler = Sampler::new(plan.sampling.clone(), plan.prompt.len())
            .map_err(RequestError::Sampling)?;
        for (position, token_id) in plan.prompt.iter().enumerate() {
            sampler.observe(position, *token_id);
        }
        let (before, last) = plan.prompt.split_at(plan.prompt.len().saturating_sub(1));
        debug_assert_eq!(last.len(), 1, "a prompt has one token or more");
        for chunk in before.chunks(self.model.prompt_chunk_positions) {
            if progress.cancelled.is_set() {
                return Ok(FinishReason::Cancelled);
            }
            let started = Instant::now();
            self.sequence.extend(chunk)?;
            self.compute += started.elapsed();
        }
        let mut next_input = last.to_vec();
        loop {
            if progress.cancelled.is_set() {
                return Ok(FinishReason::Cancelled);
            }
            let sampled = self.sample(&next_input, &sampler)?;
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
            sampler.observe(self.sequence.len(), token_id);
            next_input = vec![token_id];
        }
    }

    fn sample(&mut self, token_ids: &[u32], sampler: &Sampler) -> Result<Sampled, DeviceError> {
        let started = Instant::now();
        let mut logits = self.sequence.logits(token_ids)?;
        let sampled = sampler.sample(&mut logits, self.sequence.len());
        self.compute += started.elapsed();
        Ok(sampled)
    }
}
