//! `edge-lite plan`, and plans for answers.

use std::io::Write as _;

use anyhow::Result;
use edge_lite::planner::{Policy, Survey, SurveyOptions, Workload, survey};
use edge_lite::{ClientConfig, GenerateRequest};

use crate::args::{EngineArgs, OutputFormat, PlanArgs, PolicyArgs};
use crate::engine::place_config;

/// Answers are seldom as long as they may be.
const MOST_EXPECTED_TOKENS: usize = 128;

pub async fn run(args: PlanArgs) -> Result<()> {
    let config = place_config(&args.place, &args.credentials);
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
    Ok((planned.best.plan.configure(config), Some(Box::new(survey))))
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
        token_prefill: false,
    }
}
