//! `edge-lite generate`

use std::io::Write as _;

use anyhow::Result;
use edge_lite::{Event, Generation, Report};

use crate::args::{GenerateArgs, OutputFormat};
use crate::engine::Engine;

pub async fn run(args: GenerateArgs) -> Result<()> {
    let engine = Engine::open(&args.engine).await?;
    let generation = engine.generate(args.request()).await?;
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

/// The report for people, on one line.
pub fn summary(report: &Report) -> String {
    let timings = &report.timings_ms;
    let tokens = report.token_ids.len();
    // The first token's time is the prompt's.
    let rate = match timings.decode {
        decode if decode > 0.0 => tokens.saturating_sub(1) as f64 / decode * 1e3,
        _ => 0.0,
    };
    format!(
        "[{tokens} tokens after {}, {:?} at layer {}, ended by {:?}; first token {:.0} ms, then {rate:.1} tokens/s; \
         up {} B, down {} B, tail {:.1} ms, {} reconnects]",
        report.prompt_tokens,
        report.route,
        report.split_layer,
        report.finish_reason,
        timings.first_token,
        report.bytes_up,
        report.bytes_down,
        report.tail_compute_us as f64 / 1e3,
        report.reconnects,
    )
}
