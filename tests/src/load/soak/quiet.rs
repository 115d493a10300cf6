//! A tail that is left alone, and what it still holds.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;
use tokio::sync::RwLockWriteGuard;
use tokio::time::{sleep, timeout};

use super::{RETENTION, World};
use crate::load::scrape::Scrape;
use crate::load::server::Server;
use crate::load::usage::Usage;

/// The last sessions of a phase take no longer. A session that does not move is found stuck before.
const PLAY_OUT: Duration = Duration::from_secs(300);
/// How long a tail may take to see that its sessions are over.
const GAUGES_WITHIN: Duration = Duration::from_secs(30);
/// Beyond the retention, how long a tail may take to throw kept prefixes away.
const RETENTION_SLACK: Duration = Duration::from_secs(10);
/// Connections that were closed and threads without work are gone after this.
const SETTLED_AFTER: Duration = Duration::from_secs(15);
/// And what is not gone after this stays.
const SETTLED_WITHIN: Duration = Duration::from_secs(45);

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What a tail is like when nothing happens.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Quiet {
    /// Since the soak began.
    pub at_seconds: f64,
    /// From the end of the last session until the gauges below were at 0, or were given up on.
    pub gauges_took_seconds: f64,
    /// `headway_tail_sessions`.
    pub sessions: f64,
    /// `headway_tail_queued_prompts`.
    pub queued_prompts: f64,
    /// KV blocks that sessions have written.
    pub kv_held: f64,
    /// KV blocks reserved for sessions.
    pub kv_promised: f64,
    /// KV blocks kept as prefixes, when the last session has just left one.
    pub most_kept: f64,
    /// KV blocks kept as prefixes, when the retention time is over.
    pub kv_kept: f64,
    /// KV blocks that are free then.
    pub kv_free: f64,
    /// From the end of the last session until none was kept.
    pub kept_took_seconds: f64,
    /// Resident memory, KiB.
    pub resident_kib: u64,
    /// Open file descriptors.
    pub file_descriptors: usize,
    /// Threads.
    pub threads: u64,
    /// `headway_tail_busy_seconds_total`.
    pub busy_seconds: f64,
    /// `headway_tail_compute_seconds_total`.
    pub compute_seconds: f64,
}

/// Waits until every player has stopped.
pub(super) async fn wait_for_all(world: &World) -> Result<RwLockWriteGuard<'_, ()>> {
    timeout(PLAY_OUT, world.ground.write())
        .await
        .context("the players of a phase do not come to an end")
}

/// Looks at a tail that nobody uses. `first`: the first look, to whose descriptors and threads it should return.
pub(super) async fn look(server: &Server, began: Instant, first: Option<&Quiet>) -> Result<Quiet> {
    let silence = Instant::now();
    let is_at_nothing = |scrape: &Scrape| {
        scrape.value("headway_tail_sessions") == 0.0
            && scrape.value("headway_tail_queued_prompts") == 0.0
            && scrape.kv_blocks("held") == 0.0
            && scrape.kv_blocks("promised") == 0.0
    };
    let scrape = scraped_when(server, silence + GAUGES_WITHIN, is_at_nothing).await?;
    let gauges_took_seconds = silence.elapsed().as_secs_f64();
    let until = silence + RETENTION + RETENTION_SLACK;
    let later = scraped_when(server, until, |scrape| scrape.kv_blocks("kept") == 0.0).await?;
    let kept_took_seconds = silence.elapsed().as_secs_f64();
    let usage = settled(server, first).await?;
    Ok(Quiet {
        at_seconds: began.elapsed().as_secs_f64(),
        gauges_took_seconds,
        sessions: scrape.value("headway_tail_sessions"),
        queued_prompts: scrape.value("headway_tail_queued_prompts"),
        kv_held: scrape.kv_blocks("held"),
        kv_promised: scrape.kv_blocks("promised"),
        most_kept: scrape.kv_blocks("kept"),
        kv_kept: later.kv_blocks("kept"),
        kv_free: later.kv_blocks("free"),
        kept_took_seconds,
        resident_kib: usage.resident_kib,
        file_descriptors: usage.file_descriptors,
        threads: usage.threads,
        busy_seconds: later.value("headway_tail_busy_seconds_total"),
        compute_seconds: later.value("headway_tail_compute_seconds_total"),
    })
}

/// The first scrape that is right, or the last one before the deadline.
async fn scraped_when(
    server: &Server,
    deadline: Instant,
    is_right: impl Fn(&Scrape) -> bool,
) -> Result<Scrape> {
    loop {
        let scrape = server.scrape().await?;
        if is_right(&scrape) || Instant::now() >= deadline {
            return Ok(scrape);
        }
        sleep(LOOK_EVERY).await;
    }
}

/// What is used when nothing more goes away; with a first look to compare with, as soon as it is no more.
async fn settled(server: &Server, first: Option<&Quiet>) -> Result<Usage> {
    let began = Instant::now();
    loop {
        sleep(LOOK_EVERY).await;
        let usage = server.usage()?;
        let is_settled = match first {
            None => began.elapsed() >= SETTLED_AFTER,
            Some(first) => {
                usage.file_descriptors <= first.file_descriptors && usage.threads <= first.threads
            }
        };
        if is_settled || began.elapsed() >= SETTLED_WITHIN {
            return Ok(usage);
        }
    }
}
