//! `edge-lite plan`, and plans for answers.

use std::io::Write as _;

use anyhow::Result;
use edge_lite::planner::{Policy, Survey, SurveyOptions, Workload, survey};
use edge_lite::{ClientConfig, DraftModelFile, GenerateRequest};
use headway_model::EarlyExit;

use crate::args::{EngineArgs, OutputFormat, PlanArgs, PolicyArgs};
use crate::engine::place_config;

/// Answers are seldom as long as they may be.
const MOST_EXPECTED_TOKENS: usize = 128;

pub async fn run(args: PlanArgs) -> Result<()> {
    let config = ClientConfig {
        prefill: args.prefill,
        ..place_config(&args.place, &args.credentials)
    };
    let policy = policy(&args.policy, &config);
    let options = SurveyOptions {
        quantizations: policy.quantizations.clone(),
        ..SurveyOptions::default()
    };
    let survey = survey(&args.tail, &config, &options).await?;
    let workload = Workload {
        prompt_tokens: args.prompt_tokens,
        answer_tokens: args.answer_tokens,
        cached_share: args.cached_share,
        right_share: args.right_share,
    };
    let planned = survey.plan(workload, &policy)?;
    let mut stdout = std::io::stdout();
    match args.format {
        OutputFormat::Json => writeln!(stdout, "{}", serde_json::to_string(&planned)?)?,
        OutputFormat::Text => {
            if args.explain {
                writeln!(stdout, "link: {}\n", survey.link)?;
                writeln!(stdout, "{}", planned.explain())?;
            }
            writeln!(stdout, "{planned}")?;
        }
    }
    Ok(())
}

/// `config` with the best plan for `request`, and what the plan was made from.
pub async fn planned(
    tail: &str,
    config: ClientConfig,
    args: &EngineArgs,
    request: &GenerateRequest,
) -> Result<(ClientConfig, Option<Box<Survey>>)> {
    let policy = policy(&args.policy, &config);
    let options = SurveyOptions {
        quantizations: policy.quantizations.clone(),
        ..SurveyOptions::default()
    };
    let survey = survey(tail, &config, &options).await?;
    let expected = args.answer_tokens;
    let workload = Workload {
        prompt_tokens: survey.vocabulary.token_ids(&request.prompt)?.len(),
        answer_tokens: expected.unwrap_or(request.max_tokens.clamp(1, MOST_EXPECTED_TOKENS)),
        ..Workload::default()
    };
    let planned = survey.plan(workload, &policy)?;
    tracing::info!("{planned}");
    let config = planned.best.plan.configure(config);
    Ok((without_foreign_exit(config)?, Some(Box::new(survey))))
}

/// An early exit guesses behind one split layer, and a plan may have chosen another one.
fn without_foreign_exit(mut config: ClientConfig) -> Result<ClientConfig> {
    if let Some(DraftModelFile::EarlyExit(path)) = &config.draft_model {
        let its_layer = EarlyExit::split_layer_of(path)?;
        if config.split_layer != Some(its_layer) {
            tracing::info!("the early exit is for split layer {its_layer}, so it is not used");
            config.draft_model = None;
        }
    }
    Ok(config)
}

/// What was asked for by name is the only choice; otherwise what is allowed.
fn policy(args: &PolicyArgs, config: &ClientConfig) -> Policy {
    Policy {
        objective: args.objective,
        codecs: config
            .codec
            .map_or_else(|| args.allow_codecs.clone(), |codec| vec![codec]),
        quantizations: config
            .head_quantization
            .map_or_else(|| args.allow_head_quantizations.clone(), |one| vec![one]),
        dtype: config.dtype,
        prefill: config.prefill,
    }
}
