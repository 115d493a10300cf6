//! `edge-lite profile`

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use edge_lite::config::default_cache_dir;
use edge_lite::planner::{SurveyOptions, survey};
use edge_lite::profile::{LocalModelFile, Profile, ProfileStore, measure_model};

use crate::args::{OutputFormat, ProfileArgs};
use crate::engine::{model_path, place_config};

pub async fn run(args: ProfileArgs) -> Result<()> {
    let budget = Duration::from_secs(args.seconds);
    let profile = match (&args.tail, &args.model) {
        (Some(tail), _) => {
            let config = place_config(&args.place, &args.credentials);
            let options = SurveyOptions {
                quantizations: args.head_quantizations.clone(),
                measure_layers_anew: true,
                max_link_age_seconds: 0,
                budget,
            };
            survey(tail, &config, &options).await?.profile
        }
        (None, model) => {
            let model = model.clone().context("--tail or --model is missing")?;
            let cache_dir = args.place.cache_dir.clone().or_else(default_cache_dir);
            let (dtype, place) = (args.place.dtype, args.place.device);
            let measure = move || -> Result<Profile> {
                let file = LocalModelFile {
                    path: model_path(&model, cache_dir.as_deref())?,
                    dtype: dtype.unwrap_or_default(),
                    place,
                    budget,
                };
                let measured = measure_model(&file)?;
                let cache_dir =
                    cache_dir.context("this system names no cache folder; give --cache-dir")?;
                Ok(ProfileStore::new(&cache_dir).merge(measured)?)
            };
            tokio::task::spawn_blocking(measure).await??
        }
    };
    let text = match args.format {
        OutputFormat::Text => profile.to_string(),
        OutputFormat::Json => serde_json::to_string(&profile)? + "\n",
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
