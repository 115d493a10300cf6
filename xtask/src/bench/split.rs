//! `cargo xtask bench split`.

use std::time::Duration;

use edge_lite::Report;

use super::relay::{Network, Relays};
use super::{median, text_of};
use crate::model;
use crate::processes::{self, Tail};

/// Options of `bench split`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Split layer.
    #[arg(long, default_value_t = 15)]
    split_layer: usize,
    /// Tokens to generate.
    #[arg(long, default_value_t = 64)]
    tokens: usize,
    /// Words of the long prompt; about one token each.
    #[arg(long, default_value_t = 500)]
    long_prompt_words: usize,
    /// Repetitions; the median is reported.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
}

const SHORT_PROMPT: &str = "The sea was calm that morning, and the old captain";

/// Prints decode speed and time to first token over networks, and bytes a token by codec.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    processes::build()?;
    let tail = Tail::start(
        &model::fetch()?,
        &["--threads", "1", "--codecs", "f32,f16,bf16,int8,int4,tcq4"],
    )?;
    let relays = Relays::to(&tail.url)?;
    println!(
        "Split layer {}, one thread a side, decode of {} tokens.\n",
        arguments.split_layer, arguments.tokens
    );
    println!(
        "| round trip | codec | decode tok/s | first token, short prompt | first token, long prompt |"
    );
    println!("|---|---|---|---|---|");
    for milliseconds in [0, 10, 20, 50] {
        let network = Network {
            round_trip: Duration::from_millis(milliseconds),
            uplink_bits_per_second: None,
        };
        let url = relays.url(network)?;
        for codec in ["f32", "f16"] {
            row(
                &format!("{milliseconds} ms"),
                codec,
                &measure(arguments, &url, codec)?,
            );
        }
    }
    println!(
        "\n| uplink, 20 ms round trip | codec | decode tok/s | first token, short prompt | first token, long prompt |"
    );
    println!("|---|---|---|---|---|");
    for megabits in [5, 20, 100] {
        let network = Network {
            round_trip: Duration::from_millis(20),
            uplink_bits_per_second: Some(megabits * 1_000_000),
        };
        let url = relays.url(network)?;
        for codec in ["f32", "f16", "int8", "int4", "tcq4"] {
            row(
                &format!("{megabits} Mbit/s"),
                codec,
                &measure(arguments, &url, codec)?,
            );
        }
    }
    println!("\n| codec | bytes up a decoded token | bytes down a token |\n|---|---|---|");
    for codec in ["f32", "f16", "bf16", "int8", "int4", "tcq4"] {
        let (up, down) = bytes_per_token(arguments, &tail.url, codec)?;
        println!("| {codec} | {up:.0} | {down:.0} |");
    }
    Ok(())
}

struct Measured {
    decode: f64,
    first_token_short_ms: f64,
    first_token_long_ms: f64,
    long_prompt_tokens: usize,
}

fn row(network: &str, codec: &str, measured: &Measured) {
    println!(
        "| {network} | {codec} | {:.1} | {:.0} ms | {:.0} ms ({} tokens) |",
        measured.decode,
        measured.first_token_short_ms,
        measured.first_token_long_ms,
        measured.long_prompt_tokens
    );
}

#[expect(clippy::cast_precision_loss, reason = "token counts are small")]
fn decode_speed(report: &Report) -> f64 {
    (report.token_ids.len() - 1) as f64 / report.timings_ms.decode * 1e3
}

fn measure(arguments: &Arguments, url: &str, codec: &str) -> anyhow::Result<Measured> {
    let long_prompt = text_of(arguments.long_prompt_words);
    let (mut decode, mut short, mut long, mut tokens) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for _ in 0..arguments.repeats {
        let report = generate(arguments, url, codec, SHORT_PROMPT, arguments.tokens)?;
        decode.push(decode_speed(&report));
        short.push(report.timings_ms.first_token);
        let report = generate(arguments, url, codec, &long_prompt, 1)?;
        long.push(report.timings_ms.first_token);
        tokens = report.prompt_tokens;
    }
    Ok(Measured {
        decode: median(decode),
        first_token_short_ms: median(short),
        first_token_long_ms: median(long),
        long_prompt_tokens: tokens,
    })
}

/// The difference of two lengths: prompt, handshake and close fall out.
#[expect(clippy::cast_precision_loss, reason = "byte counts are far below 2^52")]
fn bytes_per_token(arguments: &Arguments, url: &str, codec: &str) -> anyhow::Result<(f64, f64)> {
    let short = generate(arguments, url, codec, SHORT_PROMPT, 8)?;
    let long = generate(arguments, url, codec, SHORT_PROMPT, 8 + arguments.tokens)?;
    let tokens = (long.token_ids.len() - short.token_ids.len()) as f64;
    Ok((
        (long.bytes_up - short.bytes_up) as f64 / tokens,
        (long.bytes_down - short.bytes_down) as f64 / tokens,
    ))
}

fn generate(
    arguments: &Arguments,
    url: &str,
    codec: &str,
    prompt: &str,
    tokens: usize,
) -> anyhow::Result<Report> {
    let (split_layer, tokens) = (arguments.split_layer.to_string(), tokens.to_string());
    // A round trip for each token is what is measured.
    let plain = ["--raw", "--ignore-end-of-turn", "--draft", "off"];
    let chosen = [
        "--codec",
        codec,
        "--split-layer",
        &split_layer,
        "--prompt",
        prompt,
        "--max-tokens",
        &tokens,
    ];
    processes::generate(url, &[&plain[..], &chosen].concat())
}
