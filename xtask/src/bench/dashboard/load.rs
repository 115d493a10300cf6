//! Devices of several kinds that ask one question after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use edge_lite::{Client, ClientConfig, GenerateRequest, Prompt};
use tokio::time::sleep;

/// Layers on the device; `usize::MAX`: all.
const DEVICES: [usize; 6] = [0, 10, 10, 20, 20, usize::MAX];
const MAX_TOKENS: usize = 48;
const THINK_TIME: Duration = Duration::from_secs(1);
const QUESTIONS: [&str; 3] = [
    "Why is the sky blue?",
    "Repeat after me: the quick brown fox jumps over the lazy dog.",
    "Tell me about the moon.",
];

/// Asks `url` for `time`; in the middle of it, `happens`.
pub(super) fn run(
    url: &str,
    time: Duration,
    happens: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let is_over = Arc::new(AtomicBool::new(false));
    let devices: Vec<_> = DEVICES
        .into_iter()
        .map(|layers| {
            let (url, is_over) = (url.to_owned(), Arc::clone(&is_over));
            runtime.spawn(async move { device(&url, layers, &is_over).await })
        })
        .collect();
    let (began, half) = (Instant::now(), time / 2);
    runtime.block_on(sleep(half));
    happens()?;
    runtime.block_on(sleep(time.saturating_sub(began.elapsed())));
    is_over.store(true, Ordering::Relaxed);
    for device in devices {
        runtime.block_on(device)??;
    }
    Ok(())
}

async fn device(url: &str, layers: usize, is_over: &AtomicBool) -> anyhow::Result<()> {
    let config = match layers {
        usize::MAX => ClientConfig::default().with_all_layers(),
        layers => ClientConfig {
            split_layer: Some(layers),
            reuse_prefix: true,
            ..ClientConfig::default()
        },
    };
    let client = Client::connect(url, config).await?;
    for question in QUESTIONS.into_iter().cycle() {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let request = GenerateRequest {
            max_tokens: MAX_TOKENS,
            ..GenerateRequest::new(Prompt::user(question))
        };
        client.generate(request).await?.finish().await?;
        sleep(THINK_TIME).await;
    }
    client.finish_reports(THINK_TIME).await;
    Ok(())
}
