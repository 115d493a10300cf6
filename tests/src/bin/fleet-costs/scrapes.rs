//! What asking a tail for its counters costs the operator, and the tail: with the operator's own client, over loopback.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use e2e::load::credentials::Credentials;
use e2e::load::server::Server;
use e2e::load::usage::Usage;
use e2e::smollm2;
use futures_util::{StreamExt as _, stream};
use headway_operator::savings::counters::{read_last_words, read_metrics};
use headway_operator::scrape::{Scraper, Target};

use crate::{ms, number, quantile};

/// As the operator asks at a time.
const AT_A_TIME: usize = 64;

/// Readings of one page.
const READINGS: usize = 5_000;

pub async fn measure(scrapes: usize, print: &mut impl FnMut(&str)) -> Result<()> {
    print("## Asking a tail\n");
    print(
        "| over | at a time | asked | bytes | operator, ms of CPU | tail, ms of CPU | p50, ms | p99, ms | a second |\n\
         |---|---|---|---|---|---|---|---|---|",
    );
    let credentials = Credentials::new()?;
    let mut page = String::new();
    for (over, credentials) in [("TCP", None), ("TLS", Some(&credentials))] {
        let started = Instant::now();
        let server = Server::start(&smollm2(), &[], credentials).await?;
        let starting = started.elapsed();
        let target = Target {
            address: server.address().ip(),
            port: server.address().port(),
            is_tls: credentials.is_some(),
        };
        page = server.link().fetch("/metrics", None).await?.1;
        for at_a_time in [1, AT_A_TIME] {
            let row = ask(&server, target, scrapes, at_a_time).await?;
            print(&format!(
                "| {over} | {at_a_time} | {scrapes} | {} | {row} |",
                page.len()
            ));
        }
        if credentials.is_none() {
            print(&format!(
                "| a tail starts in {:.2} s (SmolLM2) | | | | | | | | |",
                starting.as_secs_f64()
            ));
        }
    }
    let text = own_cpu(|| {
        for _ in 0..READINGS {
            let _ = black_box(read_metrics(black_box(&page)));
        }
    })?;
    let words = words();
    let line = own_cpu(|| {
        for _ in 0..READINGS {
            let _ = black_box(read_last_words(black_box(&words)));
        }
    })?;
    print(&format!(
        "\nReading a page of {} bytes: {:.3} ms; the same counters as a line of JSON of {} bytes: {:.4} ms.\n",
        page.len(),
        ms(text) / number(READINGS),
        words.len(),
        ms(line) / number(READINGS),
    ));
    Ok(())
}

async fn ask(server: &Server, target: Target, scrapes: usize, at_a_time: usize) -> Result<String> {
    let scraper = Arc::new(Scraper::new()?);
    let (own, tail) = (Usage::own()?, server.usage()?);
    let started = Instant::now();
    let mut times: Vec<Duration> = stream::iter(0..scrapes)
        .map(|_| {
            let scraper = Arc::clone(&scraper);
            async move {
                let asked = Instant::now();
                scraper.ask(target).await.map(|_| asked.elapsed())
            }
        })
        .buffer_unordered(at_a_time)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect::<Result<_, _>>()
        .context("a scrape")?;
    let took = started.elapsed();
    let (own, tail) = (Usage::own()?.cpu - own.cpu, server.usage()?.cpu - tail.cpu);
    Ok(format!(
        "{:.3} | {:.3} | {:.2} | {:.2} | {:.0}",
        ms(own) / number(scrapes),
        ms(tail) / number(scrapes),
        ms(quantile(&mut times, 0.5)),
        ms(quantile(&mut times, 0.99)),
        number(scrapes) / took.as_secs_f64(),
    ))
}

fn own_cpu(work: impl FnOnce()) -> Result<Duration> {
    let before = Usage::own()?.cpu;
    work();
    Ok(Usage::own()?.cpu - before)
}

/// As a tail writes them.
fn words() -> String {
    concat!(
        r#"{"version":"0.1.0","start_time_seconds":1767225600.125,"busy_seconds":81.25,"compute_seconds":81.25,"#,
        r#""saved_seconds":{"accepted_drafts":2.5,"head_layers":40.5,"on_device_answers":0.0,"reused_prefixes":1.25},"#,
        r#""tokens":{"decode":5200,"prefill":1900,"verify":900},"sessions_opened":31,"#,
        r#""answers":{"on_device":4,"split":25,"tail":2},"output_tokens":5900,"on_device_output_tokens":310}"#,
    )
    .to_owned()
}
