//! Devices of several kinds that ask tails of a cluster one question after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use edge_lite::{Client, ClientConfig, FinishReason, GenerateRequest, Prompt};
use tokio::time::sleep;

/// Layers on the device; `usize::MAX`: all.
const DEVICES: [usize; 6] = [0, 10, 10, 20, 20, usize::MAX];
const MAX_TOKENS: usize = 48;
const THINK_TIME: Duration = Duration::from_secs(1);
const REPORT_TIME: Duration = Duration::from_secs(10);
const QUESTIONS: [&str; 3] = [
    "Why is the sky blue?",
    "Repeat after me: the quick brown fox jumps over the lazy dog.",
    "Tell me about the moon.",
];

/// What devices got.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Got {
    /// Answers of tails.
    pub(super) answers: u64,
    /// Their tokens, with those that ended the turn.
    pub(super) tokens: u64,
    /// Tokens of answers that devices gave alone.
    pub(super) on_device_tokens: u64,
    /// Sessions that were opened again in the middle of an answer.
    pub(super) reconnects: u64,
}

/// Has devices ask `url` while `happens` runs.
pub(super) fn run(url: &str, happens: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Got> {
    let runtime = tokio::runtime::Runtime::new()?;
    let is_over = Arc::new(AtomicBool::new(false));
    let devices: Vec<_> = DEVICES
        .into_iter()
        .map(|layers| {
            let (url, is_over) = (url.to_owned(), Arc::clone(&is_over));
            runtime.spawn(async move { device(&url, layers, &is_over).await })
        })
        .collect();
    happens()?;
    is_over.store(true, Ordering::Relaxed);
    let mut all = Got::default();
    for device in devices {
        let got = runtime.block_on(device)??;
        all.answers += got.answers;
        all.tokens += got.tokens;
        all.on_device_tokens += got.on_device_tokens;
        all.reconnects += got.reconnects;
    }
    Ok(all)
}

async fn device(url: &str, layers: usize, is_over: &AtomicBool) -> anyhow::Result<Got> {
    let config = match layers {
        usize::MAX => ClientConfig::default().with_all_layers(),
        layers => ClientConfig {
            split_layer: Some(layers),
            reuse_prefix: true,
            ..ClientConfig::default()
        },
    };
    let client = Client::connect(url, config).await?;
    let mut got = Got::default();
    for question in QUESTIONS.into_iter().cycle() {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let request = GenerateRequest {
            max_tokens: MAX_TOKENS,
            ..GenerateRequest::new(Prompt::user(question))
        };
        let report = client.generate(request).await?.finish().await?;
        let mut tokens = u64::try_from(report.token_ids.len())?;
        if layers == usize::MAX {
            got.on_device_tokens += tokens;
        } else {
            tokens += u64::from(report.finish_reason == FinishReason::EndOfTurn);
            got.answers += 1;
            got.tokens += tokens;
            got.reconnects += u64::from(report.reconnects);
        }
        sleep(THINK_TIME).await;
    }
    client.finish_reports(REPORT_TIME).await;
    Ok(got)
}
