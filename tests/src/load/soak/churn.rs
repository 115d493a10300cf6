//! What happens around the tail while devices use it: it is asked how it is, its files are replaced, and the
//! tail beside it is killed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::tally::event;
use super::{World, options};
use crate::load::scrape::Scrape;
use crate::load::server::Server;
use crate::smollm2;

const POLL_EVERY: Duration = Duration::from_secs(1);
/// A tail looks at its files every two seconds.
const REWRITE_EVERY: Duration = Duration::from_secs(5);

/// Asks for health and metrics every second, as a cluster does.
pub(super) async fn poll(world: Arc<World>) -> Result<()> {
    loop {
        sleep(POLL_EVERY).await;
        let _on_ground = world.ground.read().await;
        if world.is_over() {
            return Ok(());
        }
        match world.main.fetch("/healthz", None).await {
            Ok((200, _)) => world.tally.count("health checks"),
            Ok((status, _)) => world.tally.broken(format!("/healthz answers {status}")),
            Err(error) => world.tally.broken(format!("/healthz: {error:#}")),
        }
        match world.main.fetch("/metrics", None).await {
            Ok((200, text)) => look_at(&world, &Scrape::parse(&text)),
            Ok((status, _)) => world.tally.broken(format!("/metrics answers {status}")),
            Err(error) => world.tally.broken(format!("/metrics: {error:#}")),
        }
    }
}

fn look_at(world: &World, scrape: &Scrape) {
    let tally = &world.tally;
    tally.count("scrapes");
    let (kv, limit) = (
        scrape.value("headway_tail_kv_bytes"),
        scrape.value("headway_tail_kv_limit_bytes"),
    );
    if kv > limit {
        tally.broken(format!("{kv} bytes of KV cache, at most {limit}"));
    }
    tally.largest(
        "most sessions at a time",
        whole(scrape.value("headway_tail_sessions")),
    );
    tally.largest(
        "most queued prompts",
        whole(scrape.value("headway_tail_queued_prompts")),
    );
    tally.largest("most KV cache, MiB", whole(kv / f64::from(1 << 20)));
    tally.largest("most KV blocks kept", whole(scrape.kv_blocks("kept")));
}

/// Replaces the tokens, and the certificate, in turns.
pub(super) async fn rewrite_files(world: Arc<World>) -> Result<()> {
    let mut is_certificate = false;
    loop {
        sleep(REWRITE_EVERY).await;
        let _on_ground = world.ground.read().await;
        if world.is_over() {
            return Ok(());
        }
        if is_certificate {
            world.credentials.renew_certificate()?;
            world.tally.count(event::CERTIFICATES_REPLACED);
        } else {
            world.credentials.rotate_token()?;
            world.tally.count(event::TOKENS_REPLACED);
        }
        is_certificate = !is_certificate;
    }
}

/// Kills the second tail and starts it again, where it was.
pub(super) async fn kill_again_and_again(world: Arc<World>, victim: Server) -> Result<()> {
    let mut victim = victim;
    let address = victim.address();
    loop {
        sleep(world.settings.kill_every).await;
        let _on_ground = world.ground.read().await;
        if world.is_over() {
            return Ok(());
        }
        victim.kill().await?;
        world.tally.count(event::KILLED);
        victim =
            Server::start_on(address, &smollm2(), &options("1"), Some(&world.credentials)).await?;
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "gauges are small and not negative"
)]
const fn whole(value: f64) -> u64 {
    value as u64
}
