//! `edge-lite eval`

use std::io::Write as _;

use anyhow::{Context as _, Result};
use edge_lite::eval::{EvalConfig, evaluate};

use crate::args::{EvalArgs, TableFormat};
use crate::engine::model_path;

/// `threads`: 0 is one for each core.
pub fn run(args: &EvalArgs, threads: usize) -> Result<()> {
    // The sums over the vocabulary run on rayon's threads, the layers on the model's own.
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .context("cannot start threads")?;
    let config = EvalConfig {
        model: model_path(&args.model, args.cache_dir.as_deref())?,
        text: args.text.clone(),
        split_layers: args.split_layers.clone(),
        codecs: args.codecs.clone(),
        head_quantizations: args.head_quantizations.clone(),
        window: args.window,
        max_tokens: args.max_tokens,
    };
    let table = evaluate(&config, |done, all| {
        tracing::info!("window {done} of {all}")
    })?;
    let text = match args.format {
        TableFormat::Markdown => table.to_markdown(),
        TableFormat::Json => serde_json::to_string(&table)? + "\n",
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
