//! `edge-lite generate`

use std::io::Write as _;

use anyhow::Result;
use edge_lite::{Event, FinishReason, Generation, Report, Route, RouteReason};

use crate::args::{GenerateArgs, OutputFormat};
use crate::engine::Engine;

pub async fn run(args: GenerateArgs) -> Result<()> {
    let mut request = args.request();
    request.local_only = args.engine.routing.local_only;
    let engine = Engine::open(&args.engine, &request).await?;
    let generation = engine.generate(request).await?;
    match args.format {
        OutputFormat::Text => {
            let report = stream_text(generation).await?;
            writeln!(std::io::stderr(), "{}", summary(&report))?;
        }
        OutputFormat::Json => {
            let report = generation.finish().await?;
            writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?)?;
        }
    }
    engine.finish().await;
    Ok(())
}

/// Writes text to stdout as it comes. Ctrl-C ends the answer, not the program.
pub async fn stream_text(mut generation: Generation) -> Result<Report> {
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    let mut interrupted = false;
    loop {
        let event = tokio::select! {
            event = generation.next() => event,
            _ = &mut interrupt, if !interrupted => {
                interrupted = true;
                generation.cancel();
                continue;
            }
        };
        match event {
            None => anyhow::bail!("the generation ended without a report"),
            Some(Err(error)) => {
                writeln!(std::io::stdout())?;
                return Err(error.into());
            }
            Some(Ok(Event::Token(token))) => write_now(&token.text)?,
            Some(Ok(Event::Rest { text })) => write_now(&text)?,
            Some(Ok(Event::Report(report))) => {
                writeln!(std::io::stdout())?;
                return Ok(*report);
            }
        }
    }
}

fn write_now(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// The report for people: what ran where, and what it took.
pub fn summary(report: &Report) -> String {
    let (timings, tokens) = (&report.timings_ms, report.token_ids.len());
    // The first token's time is the prompt's.
    let decoded = tokens.saturating_sub(1) as f64;
    let rate = if timings.decode > 0.0 {
        decoded / timings.decode * 1e3
    } else {
        0.0
    };
    let positions = (report.prompt_tokens + tokens).max(1) as f64;
    let mib = report.head_weight_bytes as f64 / f64::from(1 << 20);
    let prompt = match report.token_id_positions {
        0 => "",
        _ => ", the prompt as token ids",
    };
    let route = match report.route {
        Route::Split => format!(
            "layers 0 to {} here, {} to {} on the tail{prompt}",
            report.split_layer - 1,
            report.split_layer,
            report.num_layers - 1
        ),
        Route::Device => "all layers here".to_owned(),
        Route::Cloud => "all layers on the tail".to_owned(),
    };
    let segments: String = report
        .segments
        .iter()
        .filter(|segment| segment.reason != RouteReason::Only)
        .map(|segment| {
            let place = match segment.route {
                Route::Device => "this device",
                Route::Split | Route::Cloud => "the tail",
            };
            format!(
                "               {} tokens of {place}: {}\n",
                segment.tokens, segment.why
            )
        })
        .collect();
    format!(
        "route          {route}; {mib:.1} MiB of weights here\n{segments}\
         tokens         {} of prompt, {tokens} of answer, ended by {}\n\
         time           first token {:.0} ms, then {rate:.1} tokens/s\n\
         bytes          {:.0} up and {:.0} down a token ({} and {} in all)\n\
         compute        {:.3} s here; {:.3} s on the tail, {:.3} s saved there by the layers here\n\
         guesses        {} of {} right, {:.2} tokens a step\n\
         sessions       {} rebuilt, {} positions sent again, {} found on the tail",
        report.prompt_tokens,
        finished(report.finish_reason),
        timings.first_token,
        report.bytes_up as f64 / positions,
        report.bytes_down as f64 / positions,
        report.bytes_up,
        report.bytes_down,
        report.head_compute_ms / 1e3,
        report.tail_compute_us as f64 / 1e6,
        report.tail_saved_us as f64 / 1e6,
        report.accepted_draft_tokens,
        report.draft_tokens,
        tokens as f64 / report.token_steps.max(1) as f64,
        report.reconnects,
        report.replayed_positions,
        report.reused_positions,
    )
}

const fn finished(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "a stop string",
        FinishReason::Length => "the most tokens",
        FinishReason::EndOfTurn => "the model",
        FinishReason::Cancelled => "you",
    }
}
