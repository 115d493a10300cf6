//! Many devices on a tail that runs already, with rows that nobody computed: what is measured does not depend on their
//! values. So a tail of any model can be measured, also one that only a GPU can run.
//!
//! Sessions come over a while, send a prompt, and decode. What is said of decoding is from the moment in which all of
//! them do until the first one has its answer: no prompt is computed then, and nobody is missing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use headway_model::manifest::Manifest;
use headway_model::sampler::SamplingParams;
use headway_wire::message::{Activations, Open, Step, StepResult, step};
use headway_wire::{Codec, PROTOCOL_VERSION, codec};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::answers::{wire_sampling, wire_u32};
use super::device::{Ended, Session};
use super::link::Link;
use super::samples::{Spread, as_f64};
use super::scrape::Scrape;
use super::server::scrape;
use super::usage::Usage;

/// Different rows that are sent; a step takes the next ones.
const ROWS: usize = 64;
/// Prompt steps on their way at a time.
const MAX_UNANSWERED: usize = 3;

/// What every session does.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens of each answer, at least 2.
    pub answer_tokens: usize,
    /// Layers that the devices would run; at least 1.
    pub split_layer: usize,
    /// How rows go up.
    pub codec: Codec,
    /// Over how long sessions come.
    pub arrival: Duration,
    /// How long a device takes for its layers, at least and at most, in milliseconds.
    pub think_ms: [f64; 2],
}

/// Measures each number of sessions and prints a Markdown table on `print`, line by line.
///
/// # Errors
/// Where the tail refuses a session or breaks the protocol, or answers are too short to measure.
pub async fn run(
    tail: SocketAddr,
    sessions: &[usize],
    crowd: &Crowd,
    print: &mut impl FnMut(&str),
) -> Result<()> {
    ensure!(crowd.split_layer > 0, "rows of split layer 0 are token ids");
    ensure!(
        crowd.answer_tokens > 1,
        "an answer of one token has no decoding"
    );
    let link = Link::plain(tail);
    let (status, body) = link.fetch("/v1/model", None).await?;
    ensure!(status == 200, "/v1/model answers {status}");
    let manifest: Manifest = serde_json::from_str(&body).context("a manifest")?;
    let bench = Arc::new(Bench::new(link, &manifest, *crowd)?);
    let Crowd {
        prompt_tokens,
        answer_tokens,
        split_layer,
        codec,
        arrival,
        think_ms,
    } = crowd;
    print(&format!(
        "{}, split layer {split_layer}, codec {codec}, prompts of {prompt_tokens} tokens, answers of {answer_tokens}; \
         sessions come over {} ms, devices take {} to {} ms a token.\n",
        manifest.name,
        arrival.as_millis(),
        think_ms[0],
        think_ms[1],
    ));
    print(HEADER);
    for count in sessions {
        print(&bench.measure(*count).await?.row(*count));
    }
    Ok(())
}

const HEADER: &str = "| sessions | output tok/s | first token: p50, ms | p99 | a token: p50, ms | p99 | steps/s | rows a step \
     | steps run | the device computes | host's share of a step | waited for sessions, ms a step | generator, cores |\n\
     |---|---|---|---|---|---|---|---|---|---|---|---|---|";

/// What all sessions share.
struct Bench {
    link: Link,
    crowd: Crowd,
    open: Open,
    hidden_size: usize,
    vocab_size: usize,
    /// Encoded, one after the other.
    rows: Vec<Bytes>,
}

/// How far the sessions are.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    decoding: usize,
    done: usize,
}

/// What one session measured.
struct Played {
    first_token: Duration,
    /// When each later token came, and how long it took.
    tokens: Vec<(Instant, Duration)>,
}

/// A moment of the run.
struct Moment {
    at: Instant,
    scrape: Scrape,
    generator: Usage,
}

/// What one number of sessions came to.
struct Measured {
    first_token: Spread,
    token: Spread,
    tokens: usize,
    from: Moment,
    to: Moment,
}

impl Bench {
    fn new(link: Link, manifest: &Manifest, crowd: Crowd) -> Result<Self> {
        let config = &manifest.identity.config;
        let mut random = fastrand::Rng::with_seed(1);
        let rows = (0..ROWS).map(|_| {
            let values: Vec<f32> = (0..config.hidden_size)
                .map(|_| random.f32() * 2.0 - 1.0)
                .collect();
            Ok(codec::encode(crowd.codec, &values, config.hidden_size)?.data)
        });
        let positions = crowd.prompt_tokens + crowd.answer_tokens;
        Ok(Self {
            rows: rows.collect::<Result<_>>()?,
            open: Open {
                protocol_version: PROTOCOL_VERSION,
                model_digest: manifest.model_digest.clone(),
                split_layer: wire_u32(crowd.split_layer),
                codec: Some(crowd.codec.into()),
                sampling: Some(wire_sampling(&SamplingParams::default())),
                max_positions: wire_u32(positions),
                prompt_tokens: wire_u32(crowd.prompt_tokens),
                ..Open::default()
            },
            hidden_size: config.hidden_size,
            vocab_size: config.vocab_size,
            link,
            crowd,
        })
    }

    async fn measure(self: &Arc<Self>, sessions: usize) -> Result<Measured> {
        let (progress, mut seen) = watch::channel(Progress::default());
        let progress = Arc::new(progress);
        let playing: Vec<_> = (0..sessions)
            .map(|session| {
                let (bench, progress) = (Arc::clone(self), Arc::clone(&progress));
                tokio::spawn(async move { bench.play(session, &progress).await })
            })
            .collect();
        drop(progress);
        // A session that fails ends the run below, and its part of the progress never comes.
        let window = async {
            let all = seen.wait_for(|now| now.decoding == sessions || now.done > 0);
            let is_too_short = all.await?.done > 0;
            let from = self.moment().await?;
            seen.wait_for(|now| now.done > 0).await?;
            let to = self.moment().await?;
            ensure!(
                !is_too_short,
                "an answer was there before the last session had begun: make answers longer"
            );
            anyhow::Ok((from, to))
        };
        let (window, played) = tokio::join!(window, all_played(playing));
        let played = played?;
        let (from, to) = window?;
        let times = played.iter().flat_map(|played| &played.tokens);
        let within: Vec<Duration> = times
            .filter(|(came, _)| (from.at..to.at).contains(came))
            .map(|(_, took)| *took)
            .collect();
        let first: Vec<Duration> = played.iter().map(|played| played.first_token).collect();
        Ok(Measured {
            first_token: Spread::of(&first),
            token: Spread::of(&within),
            tokens: within.len(),
            from,
            to,
        })
    }

    async fn moment(&self) -> Result<Moment> {
        Ok(Moment {
            scrape: scrape(&self.link).await?,
            generator: Usage::own()?,
            at: Instant::now(),
        })
    }

    /// One session, from its arrival on.
    async fn play(
        &self,
        session: usize,
        progress: &watch::Sender<Progress>,
    ) -> Result<Played, Ended> {
        let mut random = fastrand::Rng::with_seed(session as u64);
        sleep(self.crowd.arrival.mul_f64(random.f64())).await;
        let started = Instant::now();
        let mut device = Session::open(&self.link, None, self.open.clone()).await?;
        self.prefill(&mut device).await?;
        let first_token = started.elapsed();
        progress.send_modify(|progress| progress.decoding += 1);

        let [least_ms, most_ms] = self.crowd.think_ms;
        let mut tokens = Vec::with_capacity(self.crowd.answer_tokens);
        for index in 1..self.crowd.answer_tokens {
            let think_ms = (most_ms - least_ms).mul_add(random.f64(), least_ms);
            if think_ms > 0.0 {
                sleep(Duration::from_secs_f64(think_ms / 1e3)).await;
            }
            let started = Instant::now();
            let position = self.crowd.prompt_tokens + index - 1;
            device.step(self.step(position, 1, true)).await?;
            self.check(&device.result().await?, position + 1, true)?;
            tokens.push((Instant::now(), started.elapsed()));
        }
        progress.send_modify(|progress| progress.done += 1);
        device.close().await;
        Ok(Played {
            first_token,
            tokens,
        })
    }

    async fn prefill(&self, device: &mut Session) -> Result<(), Ended> {
        let end = self.crowd.prompt_tokens;
        let chunk = device.opened.max_step_positions.max(1) as usize;
        let (mut sent, mut held, mut unanswered) = (0, 0, 0);
        while held < end {
            if sent < end && unanswered < MAX_UNANSWERED {
                let rows = chunk.min(end - sent);
                device
                    .step(self.step(sent, rows, sent + rows == end))
                    .await?;
                sent += rows;
                unanswered += 1;
                continue;
            }
            held = end.min(held + chunk);
            unanswered -= 1;
            self.check(&device.result().await?, held, held == end)?;
        }
        Ok(())
    }

    fn step(&self, position: usize, rows: usize, sample: bool) -> Step {
        let mut data = Vec::new();
        for row in (position..position + rows).map(|position| &self.rows[position % ROWS]) {
            data.extend_from_slice(row);
        }
        Step {
            position: wire_u32(position),
            input: Some(step::Input::Activations(Activations {
                codec: self.open.codec,
                rows: wire_u32(rows),
                columns: wire_u32(self.hidden_size),
                data: data.into(),
            })),
            sample,
            ..Step::default()
        }
    }

    /// The right number of positions, and a token of the vocabulary where one is due.
    fn check(&self, result: &StepResult, positions: usize, is_due: bool) -> Result<(), Ended> {
        let is_token = result
            .token_id
            .is_some_and(|token_id| (token_id as usize) < self.vocab_size);
        if result.positions != wire_u32(positions) || is_token != is_due {
            let reason = format!("{result:?} where {positions} positions were due");
            return Err(Ended::Broken(reason));
        }
        Ok(())
    }
}

async fn all_played(playing: Vec<JoinHandle<Result<Played, Ended>>>) -> Result<Vec<Played>> {
    let mut all = Vec::with_capacity(playing.len());
    for session in playing {
        let ended = session.await.context("a device panicked")?;
        all.push(ended.map_err(|ended| anyhow!("a session ended: {ended:?}"))?);
    }
    Ok(all)
}

impl Measured {
    fn row(&self, sessions: usize) -> String {
        let seconds = (self.to.at - self.from.at).as_secs_f64();
        let grown = |name: &str| self.to.scrape.since(&self.from.scrape, name);
        let steps = grown("headway_tail_steps_total").max(1.0);
        let rows = self
            .to
            .scrape
            .sum_since(&self.from.scrape, "headway_tail_tokens_total");
        let busy_s = grown("headway_tail_busy_seconds_total");
        let computed_s =
            grown("headway_tail_layers_seconds_total") + grown("headway_tail_logits_seconds_total");
        let waited_s = grown("headway_tail_gather_wait_seconds_sum");
        let cpu = self
            .to
            .generator
            .cpu
            .saturating_sub(self.from.generator.cpu);
        format!(
            "| {sessions} | {:.0} | {:.1} | {:.1} | {:.2} | {:.2} | {:.1} | {:.1} | {:.0} % | {:.0} % | {:.1} % | {:.3} | {:.2} |",
            as_f64(self.tokens) / seconds,
            self.first_token.p50,
            self.first_token.p99,
            self.token.p50,
            self.token.p99,
            steps / seconds,
            rows / steps,
            busy_s / seconds * 100.0,
            computed_s / seconds * 100.0,
            (busy_s - computed_s) / busy_s.max(f64::MIN_POSITIVE) * 100.0,
            waited_s / steps * 1e3,
            cpu.as_secs_f64() / seconds,
        )
    }
}
