//! A long time of everything that devices, networks and administrators do to a tail, well and badly, and whether
//! the tail is what it was when it is left alone again. `cargo xtask bench soak` runs it.
//!
//! Players do one [`mix::Act`] after another. In a quiet phase all of them stop, and the tail must be back at
//! nothing: no session, no block of the KV cache, no more memory, descriptors or threads than the first time.
//! Every token of every well-behaved session is compared with one that was known before.

mod churn;
mod crowd;
mod hostile;
mod mix;
mod questions;
mod quiet;
pub mod report;
pub mod rules;
mod steady;
mod tally;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use fastrand::Rng;
use headway_model::ModelConfig;
use tokio::sync::RwLock;
use tokio::task::JoinSet;

use self::quiet::Quiet;
use self::report::{Cores, Outcome};
use self::tally::Tally;
use super::answers::{Answer, Reference};
use super::credentials::{Credentials, STEADY_TENANTS};
use super::link::Link;
use super::replay::Opening;
use super::server::Server;
use super::usage::Usage;
use crate::smollm2;

/// For how long a tail keeps prefixes.
const RETENTION: Duration = Duration::from_secs(5);

/// The limits that the load runs into.
const LIMITS: [(&str, &str); 8] = [
    ("--max-sessions", "20"),
    ("--max-queue", "10"),
    ("--max-kv-bytes", "134217728"),
    ("--prefix-retention-seconds", "5"),
    ("--evict-idle-seconds", "2"),
    ("--max-draft-tokens", "6"),
    ("--tenant-max-sessions", "8"),
    ("--tenant-tokens-per-second", "400"),
];

/// How much load, and for how long.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The same acts are drawn from the same seed; when they meet each other differs.
    pub seed: u64,
    /// Devices at a time, bad ones included.
    pub players: usize,
    /// Different questions that devices ask.
    pub questions: usize,
    /// The load of each phase; a quiet one follows each.
    pub phases: Vec<Duration>,
    /// Between two kills of the second tail.
    pub kill_every: Duration,
    /// How long a device is silent whose network has gone. A tail gives up on it after 75 seconds.
    pub half_open: Duration,
}

impl Settings {
    /// Of some minutes in all, quiet phases not counted. The first quiet phase comes after two minutes.
    #[must_use]
    pub fn of_minutes(minutes: u64, seed: u64) -> Self {
        const FIRST: Duration = Duration::from_secs(120);
        const EACH: Duration = Duration::from_secs(240);
        let mut left = Duration::from_secs(60 * minutes.max(3)) - FIRST;
        let mut phases = vec![FIRST];
        while !left.is_zero() {
            // No phase is so short that half-open connections do not fit.
            let phase = if left < 2 * EACH { left } else { EACH };
            phases.push(phase);
            left -= phase;
        }
        Self {
            seed,
            players: 32,
            questions: 28,
            phases,
            kill_every: Duration::from_secs(60),
            half_open: Duration::from_secs(90),
        }
    }

    /// Short enough for every run of the tests.
    #[must_use]
    pub fn short(seed: u64) -> Self {
        Self {
            seed,
            players: 24,
            questions: 10,
            phases: vec![Duration::from_secs(15), Duration::from_secs(20)],
            kill_every: Duration::from_secs(6),
            half_open: Duration::from_secs(5),
        }
    }
}

/// What players share.
struct World {
    settings: Settings,
    /// The tail that is looked at.
    main: Link,
    /// The tail that is killed again and again.
    victim: Link,
    model_digest: Arc<str>,
    model: ModelConfig,
    answers: Vec<Arc<Answer>>,
    credentials: Credentials,
    tally: Tally,
    /// Whoever plays reads; a quiet phase writes.
    ground: RwLock<()>,
    is_pausing: AtomicBool,
    is_over: AtomicBool,
    pause_at: Mutex<Instant>,
}

impl World {
    fn any_answer(&self, random: &mut Rng) -> Arc<Answer> {
        let index = random.usize(..self.answers.len());
        Arc::clone(&self.answers[index])
    }

    fn opening(&self, tenant: &str) -> Opening {
        Opening {
            model_digest: Arc::clone(&self.model_digest),
            token: Some(self.credentials.token(tenant)),
            ..Opening::default()
        }
    }

    /// True from when a phase's load should end; nobody tries again then.
    fn is_pausing(&self) -> bool {
        self.is_pausing.load(Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Load time left in this phase.
    fn time_left(&self) -> Duration {
        let pause_at = *self.pause_at.lock().unwrap_or_else(PoisonError::into_inner);
        pause_at.saturating_duration_since(Instant::now())
    }
}

/// Runs all phases. What was wrong is in the outcome, for [`rules::broken`] to find; `say` is told what happens.
///
/// # Errors
/// Where a tail does not start, or ends.
pub async fn run(settings: Settings, say: &mut impl FnMut(&str)) -> Result<Outcome> {
    say("computing the answers");
    let (questions, seed) = (settings.questions, settings.seed);
    let answers = tokio::task::spawn_blocking(move || {
        let reference = Reference::load(&smollm2())?;
        let questions = questions::draw(seed, questions, reference.config().num_layers);
        let answers = questions.into_iter().map(|each| reference.answer(each));
        let answers = answers.collect::<Result<Vec<_>>>()?;
        anyhow::Ok((answers, reference.config().clone()))
    });
    let (answers, model) = answers.await??;
    let credentials = Credentials::new()?;
    let server = Server::start(&smollm2(), &options("0"), Some(&credentials)).await?;
    let victim = Server::start(&smollm2(), &options("1"), Some(&credentials)).await?;
    let token = credentials.token(STEADY_TENANTS[0]);
    let world = Arc::new(World {
        main: server.link().clone(),
        victim: victim.link().clone(),
        model_digest: server.model_digest(Some(&token)).await?.into(),
        model,
        answers,
        credentials,
        tally: Tally::default(),
        ground: RwLock::new(()),
        is_pausing: AtomicBool::new(true),
        is_over: AtomicBool::new(false),
        pause_at: Mutex::new(Instant::now()),
        settings,
    });
    let mut outcome = phases(&world, &server, victim, say).await?;
    outcome.panics = server.panics();
    Ok(outcome)
}

/// `--threads` and the limits.
fn options(threads: &str) -> Vec<String> {
    LIMITS
        .into_iter()
        .chain([("--threads", threads)])
        .flat_map(|(option, value)| [option.to_owned(), value.to_owned()])
        .collect()
}

async fn phases(
    world: &Arc<World>,
    server: &Server,
    victim: Server,
    say: &mut impl FnMut(&str),
) -> Result<Outcome> {
    let began = Instant::now();
    let (tail_before, own_before) = (server.usage()?, Usage::own()?);
    // Held until the first phase begins.
    let mut ground = Some(world.ground.write().await);
    let mut tasks = JoinSet::new();
    for player in 0..world.settings.players {
        tasks.spawn(play(Arc::clone(world), player));
    }
    tasks.spawn(churn::poll(Arc::clone(world)));
    tasks.spawn(churn::rewrite_files(Arc::clone(world)));
    tasks.spawn(churn::kill_again_and_again(Arc::clone(world), victim));
    let mut quiets: Vec<Quiet> = Vec::new();
    for (index, load) in world.settings.phases.iter().enumerate() {
        say(&format!(
            "phase {}: {} s of load",
            index + 1,
            load.as_secs()
        ));
        *world
            .pause_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Instant::now() + *load;
        world.is_pausing.store(false, Ordering::Relaxed);
        drop(ground.take());
        tokio::time::sleep(*load).await;
        world.is_pausing.store(true, Ordering::Relaxed);
        ground = Some(quiet::wait_for_all(world).await?);
        steady::leave_prefix(world).await;
        let quiet = quiet::look(server, began, quiets.first()).await?;
        say(&format!("quiet: {quiet:?}"));
        quiets.push(quiet);
    }
    let seconds = began.elapsed().as_secs_f64();
    let (tail_after, own_after) = (server.usage()?, Usage::own()?);
    world.is_over.store(true, Ordering::Relaxed);
    drop(ground);
    while let Some(ended) = tasks.join_next().await {
        ended.context("a player panicked")??;
    }
    let cores = |before: &Usage, after: &Usage| {
        after.cpu.saturating_sub(before.cpu).as_secs_f64() / seconds
    };
    Ok(Outcome {
        seed: world.settings.seed,
        seconds,
        quiets,
        counts: world.tally.counts(),
        tail: report::counters(&server.scrape().await?),
        cores: Cores {
            tail: cores(&tail_before, &tail_after),
            generator: cores(&own_before, &own_after),
        },
        panics: Vec::new(),
    })
}

/// One player: an act after another while there is load.
async fn play(world: Arc<World>, player: usize) -> Result<()> {
    let seed = world.settings.seed.wrapping_mul(1_000);
    let mut random = Rng::with_seed(seed.wrapping_add(player as u64));
    let mut first = Some(mix::first(player));
    loop {
        let _on_ground = world.ground.read().await;
        if world.is_over() {
            return Ok(());
        }
        let act = first
            .take()
            .unwrap_or_else(|| mix::draw(&mut random, &world));
        world.tally.act(act.name());
        mix::play(act, &world, &mut random).await;
    }
}
