//! Gathers what a plan is made from, for one tail: its manifest and load, this device's profile, the link.

use std::time::Duration;

use headway_model::Tokenizer;
use headway_model::artifact::Part;
use headway_model::manifest::Manifest;
use headway_model::quantization::Quantization;
use headway_model::tail_load::TailLoad;
use headway_model::weights::Weights;

use super::{Planned, PlannerInput, Policy, Workload, plan};
use crate::artifact_cache::ArtifactCache;
use crate::client::{Reached, reach};
use crate::config::ClientConfig;
use crate::error::{DeviceError, Error, RequestError};
use crate::link::Link;
use crate::profile::measure::MOST_LAYERS;
use crate::profile::probe::{Probed, is_measured, probe};
use crate::profile::{
    DeviceFacts, Held, Measuring, PartBytes, Profile, ProfileKey, ProfileStore, measure_layers,
};
use crate::vocabulary::Vocabulary;

/// A part with the final norm, or with a small lm_head, is fetched to measure it; a larger one is not.
const MAX_LM_HEAD_BYTES: u64 = 64 << 20;

/// What to measure anew, and for how long.
#[derive(Clone, Debug)]
pub struct SurveyOptions {
    /// Head quantisations to measure, as far as the tail offers them.
    pub quantizations: Vec<Quantization>,
    /// Measure layers also where that is stored.
    pub measure_layers_anew: bool,
    /// How old a stored link may be.
    pub max_link_age_seconds: u64,
    /// How long measuring the layers of one quantisation may take.
    pub budget: Duration,
}

impl Default for SurveyOptions {
    fn default() -> Self {
        Self {
            quantizations: vec![Quantization::None],
            measure_layers_anew: false,
            max_link_age_seconds: 600,
            budget: Duration::from_secs(4),
        }
    }
}

/// What a plan is made from.
pub struct Survey {
    /// What the tail serves.
    pub manifest: Manifest,
    /// How busy it is.
    pub load: TailLoad,
    /// This device.
    pub profile: Profile,
    /// The way between them.
    pub link: Link,
    /// The model's text side, to count tokens.
    pub vocabulary: Vocabulary,
    url: String,
    open_round_trips: u32,
    store: ProfileStore,
}

/// Asks the tail at `tail_url`, and measures on this device what is not stored of it.
///
/// # Errors
/// [`TailError`](crate::TailError) where the tail cannot be reached, or does not say what it costs;
/// [`DeviceError`] where layers cannot be run here, or the cache folder cannot be used.
pub async fn survey(
    tail_url: &str,
    config: &ClientConfig,
    options: &SurveyOptions,
) -> Result<Survey, Error> {
    let reached = reach(tail_url, config).await?;
    let manifest = &reached.manifest;
    let cache_dir = config.cache_folder()?;
    let store = ProfileStore::new(&cache_dir);
    let key = ProfileKey::here(manifest.model_digest.clone(), config.place);
    let stored = store.read(&key).map_err(DeviceError::from)?;
    let mut profile = stored.unwrap_or_else(|| Profile::new(key.clone(), &manifest.name));
    profile.device = DeviceFacts::read(&key.place);

    let cache = ArtifactCache::open(
        &reached.api,
        &cache_dir,
        &manifest.model_digest,
        config.progress.clone(),
    )
    .await?;
    let tokenizer_file = cache.tokenizer(manifest).await?;
    let json = std::fs::read(&tokenizer_file).map_err(DeviceError::cache(&tokenizer_file))?;
    let vocabulary = Vocabulary::of_identity(&manifest.identity, Tokenizer::from_json(&json)?)?;
    for quantization in &options.quantizations {
        let held = Held::of(*quantization, config.dtype, manifest);
        let is_known = profile.times(held).is_some() && !options.measure_layers_anew;
        let is_offered = manifest.quantizations.contains(quantization);
        if is_offered && !is_known && manifest.max_device_layers() > 0 {
            let measuring = fetch(&reached, &cache, held, config, options.budget).await?;
            let times = tokio::task::spawn_blocking(move || measure_layers(&measuring));
            profile.put_times(times.await.map_err(DeviceError::Worker)??);
        }
    }
    let (link, load) = link_and_load(&reached, config, options, &profile, tail_url).await?;
    profile.put_link(tail_url, link);
    store.write(&profile).map_err(DeviceError::from)?;
    Ok(Survey {
        load,
        profile,
        link,
        vocabulary,
        url: tail_url.to_owned(),
        open_round_trips: if reached.url.is_tls() { 4 } else { 3 },
        store,
        manifest: reached.manifest,
    })
}

/// The stored link where it is fresh and the tail knows its costs; otherwise both are measured.
async fn link_and_load(
    reached: &Reached,
    config: &ClientConfig,
    options: &SurveyOptions,
    profile: &Profile,
    tail_url: &str,
) -> Result<(Link, TailLoad), Error> {
    if let Some(link) = profile.fresh_link(tail_url, options.max_link_age_seconds) {
        let load = reached.api.load().await?;
        if is_measured(&load.costs) {
            return Ok((link, load));
        }
    }
    let Probed { link, load } = probe(reached, config).await?;
    Ok((link, load))
}

/// Fetches a few layers, and what is behind the last one where that is small.
async fn fetch(
    reached: &Reached,
    cache: &ArtifactCache,
    held: Held,
    config: &ClientConfig,
    budget: Duration,
) -> Result<Measuring, Error> {
    let (api, manifest) = (&reached.api, &reached.manifest);
    let model = &manifest.identity.config;
    let most = manifest.max_device_layers().min(model.num_layers);
    let layers = most.min(MOST_LAYERS);
    // Unquantised parts are in the manifest; of others, the tail would make all that are listed.
    let listed = match held.quantization {
        Quantization::None => most,
        _ => layers,
    };
    let mut parts = api.head_parts(manifest, held.quantization, listed).await?;
    let bytes = PartBytes::of(&parts, model);
    let lm_head = Part::LmHead.to_string();
    let wanted: Vec<String> = (0..layers)
        .map(|layer| Part::Layer(layer).to_string())
        .collect();
    parts.retain(|part| {
        part.name == Part::Embedding.to_string()
            || wanted.contains(&part.name)
            || (part.name == lm_head && part.bytes <= MAX_LM_HEAD_BYTES)
    });
    let has_lm_head = parts.iter().any(|part| part.name == lm_head);
    let files = cache.parts(&parts, held.quantization).await?;
    Ok(Measuring {
        weights: Weights::open_parts(model.clone(), &files)?,
        held,
        place: config.place,
        bytes,
        layers,
        has_lm_head,
        budget,
    })
}

impl Survey {
    /// The best plan for `workload`.
    ///
    /// # Errors
    /// [`RequestError::Plan`].
    pub fn plan(&self, workload: Workload, policy: &Policy) -> Result<Planned, Error> {
        let input = PlannerInput {
            manifest: &self.manifest,
            load: &self.load,
            profile: &self.profile,
            link: self.link,
            open_round_trips: self.open_round_trips,
            workload,
            policy,
        };
        Ok(plan(&input).map_err(RequestError::Plan)?)
    }

    /// Stores what an answer's traffic told of the link, for the next plan.
    ///
    /// # Errors
    /// [`DeviceError::Profile`].
    pub fn remember(&mut self, link: Link) -> Result<(), Error> {
        self.profile.put_link(&self.url, link);
        self.store.write(&self.profile).map_err(DeviceError::from)?;
        Ok(())
    }
}
