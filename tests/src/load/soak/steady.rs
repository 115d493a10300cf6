//! Devices that keep to the protocol, and whose answers must be the known ones, whatever happens to their
//! sessions on the way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use headway_wire::message::{Refusal, RefusalCode};

use super::World;
use super::tally::event;
use crate::load::answers::Answer;
use crate::load::credentials::{QUIET_TENANT, ROTATING_TENANT};
use crate::load::device::Ended;
use crate::load::replay::{Offer, Opening, Replay};

/// The longest wait before another try.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// A device that is refused for so long goes away.
const PATIENCE: Duration = Duration::from_secs(180);
/// After how long a new token is known to the tail, at the latest.
const RELOADED_AFTER: Duration = Duration::from_secs(15);

/// How a device behaves.
#[derive(Clone, Debug)]
pub(super) struct Manner {
    pub(super) tenant: &'static str,
    pub(super) keep_prefix: bool,
    pub(super) offer: Offer,
    /// Sends drafts.
    pub(super) guesses: bool,
    /// Does nothing for some seconds in the middle of the answer.
    pub(super) pauses: bool,
    /// Begins on the tail that is killed, and goes on with the other.
    pub(super) two_tails: bool,
}

impl Manner {
    pub(super) fn of(tenant: &'static str) -> Self {
        Self {
            tenant,
            keep_prefix: false,
            offer: Offer::Nothing,
            guesses: false,
            pauses: false,
            two_tails: false,
        }
    }
}

/// Where a device stands in its answer.
struct Progress {
    answer: Arc<Answer>,
    known: usize,
    on_victim: bool,
    /// When a token came last.
    moved: Instant,
    /// Refused for its token since then.
    locked_out: Option<Instant>,
}

impl Progress {
    /// What came stays, however the session ends.
    fn note(&mut self, world: &World, replay: &Replay) {
        let came = replay.known() - self.known;
        world.tally.add("tokens", came as u64);
        self.known = replay.known();
        self.moved = Instant::now();
    }
}

/// What to do about a session that has ended before its end.
enum Verdict {
    Again(Duration),
    Over,
}

/// Asks a question to the end of its answer, in as many sessions as it takes.
pub(super) async fn answer(world: &World, random: &mut Rng, manner: &Manner) {
    let answer = world.any_answer(random);
    answer_to(world, random, manner, answer).await;
}

/// Two sessions with the same question: what the first leaves, the second offers.
pub(super) async fn kept_and_offered(world: &World, random: &mut Rng, manner: &Manner) {
    let answer = world.any_answer(random);
    let keeping = Manner {
        keep_prefix: true,
        ..manner.clone()
    };
    answer_to(world, random, &keeping, Arc::clone(&answer)).await;
    let offer = if random.bool() {
        Offer::Right
    } else {
        Offer::Partly(random.usize(..4))
    };
    let offering = Manner {
        offer,
        // Or the other way round, so that ends of blocks that nobody wants are seen, too.
        keep_prefix: random.bool(),
        ..manner.clone()
    };
    answer_to(world, random, &offering, answer).await;
}

/// A session in an empty tail that leaves a prefix, so that a quiet phase sees it go.
pub(super) async fn leave_prefix(world: &World) {
    let longest = world
        .answers
        .iter()
        .filter(|answer| !answer.question().sampling.needs_history())
        .max_by_key(|answer| answer.sequence().len());
    let keeping = Manner {
        keep_prefix: true,
        ..Manner::of(QUIET_TENANT)
    };
    if let Some(answer) = longest {
        let mut random = Rng::with_seed(world.settings.seed);
        answer_to(world, &mut random, &keeping, Arc::clone(answer)).await;
    }
}

async fn answer_to(world: &World, random: &mut Rng, manner: &Manner, answer: Arc<Answer>) {
    let mut progress = Progress {
        answer,
        known: 0,
        on_victim: manner.two_tails,
        moved: Instant::now(),
        locked_out: None,
    };
    loop {
        let Err(ended) = session(world, random, manner, &mut progress).await else {
            return world.tally.count(event::ANSWERED);
        };
        let Verdict::Again(wait) = judge(world, manner, &mut progress, ended) else {
            return;
        };
        if world.is_pausing() {
            return world
                .tally
                .count("devices that gave up because of a quiet phase");
        }
        if progress.moved.elapsed() > PATIENCE {
            return world
                .tally
                .count("devices that gave up after three minutes of refusals");
        }
        tokio::time::sleep(wait.min(MAX_WAIT)).await;
    }
}

/// One session, from wherever the answer stands.
async fn session(
    world: &World,
    random: &mut Rng,
    manner: &Manner,
    progress: &mut Progress,
) -> Result<(), Ended> {
    let opening = Opening {
        keep_prefix: manner.keep_prefix,
        offer: manner.offer.clone(),
        known: progress.known,
        ..world.opening(manner.tenant)
    };
    let link = if progress.on_victim {
        &world.victim
    } else {
        &world.main
    };
    let mut replay = Replay::open(link, Arc::clone(&progress.answer), &opening).await?;
    progress.locked_out = None;
    world.tally.count("sessions opened");
    if progress.known > 0 {
        world.tally.count(event::REBUILT);
    }
    let reused = replay.session.opened.reused_positions;
    world.tally.add(event::REUSED, reused.into());
    let pause_at = random.usize(progress.known..=progress.answer.question().answer_tokens);
    let mut pauses = manner.pauses;
    replay.prefill(random.usize(8..=512)).await?;
    progress.note(world, &replay);
    while !replay.is_done() {
        if pauses && replay.known() >= pause_at {
            pauses = false;
            pause(world, random, &mut replay).await?;
        }
        if manner.guesses && random.u8(..4) > 0 {
            let (right, wrong) = (random.usize(..=6), random.usize(..=3));
            replay.verify(right, wrong).await?;
        } else {
            replay.decode().await?;
        }
        progress.note(world, &replay);
    }
    replay.session.close().await;
    Ok(())
}

async fn pause(world: &World, random: &mut Rng, replay: &mut Replay) -> Result<(), Ended> {
    world.tally.count("pauses");
    let pause = Duration::from_millis(random.u64(1_000..8_000));
    let paused = replay.session.idle(pause).await;
    if let Err(ended) = &paused
        && ended.refusal_code() == Some(RefusalCode::NoCapacity)
    {
        world.tally.count(event::EVICTED);
    }
    paused
}

/// What is right, and what to do next.
fn judge(world: &World, manner: &Manner, progress: &mut Progress, ended: Ended) -> Verdict {
    let tally = &world.tally;
    let is_rotating = manner.tenant == ROTATING_TENANT;
    match ended {
        Ended::Refused(refusal) => {
            tally.refusal(refusal.code());
            // Whoever is refused a session has been let in before.
            progress.locked_out = None;
            // Whoever knows two tails asks the other one.
            progress.on_victim ^= manner.two_tails;
            judge_refusal(world, is_rotating, &refusal)
        }
        Ended::Turned(status) => {
            tally.turned(status);
            match status {
                503 => Verdict::Again(Duration::from_secs(1)),
                // The file has the new token, and the tail has not looked yet; or the other way round.
                401 if is_rotating && may_be_locked_out(progress) => {
                    Verdict::Again(Duration::from_millis(500))
                }
                _ => over(world, format!("HTTP {status} for a good session")),
            }
        }
        Ended::Lost(_) if progress.on_victim => {
            tally.count(event::LOST);
            progress.on_victim = false;
            Verdict::Again(Duration::ZERO)
        }
        Ended::Lost(reason) => over(world, format!("ended without a reason: {reason}")),
        Ended::Stuck(what) => {
            tally.stuck(&format!("waiting for {what}, {manner:?}"));
            Verdict::Over
        }
        Ended::Mismatch(what) => {
            let question = progress.answer.question();
            tally.mismatch(format!("{what}; {manner:?}, {question:?}"));
            Verdict::Over
        }
        Ended::Broken(what) => over(world, format!("{what}; {manner:?}")),
    }
}

fn judge_refusal(world: &World, is_rotating: bool, refusal: &Refusal) -> Verdict {
    let after = refusal
        .retry_after_ms
        .map(u64::from)
        .map(Duration::from_millis);
    match (refusal.code(), after) {
        (RefusalCode::NoCapacity | RefusalCode::OverLimit, Some(after)) => Verdict::Again(after),
        (RefusalCode::Unauthenticated, None) if is_rotating => {
            world.tally.count(event::WITHDRAWN);
            Verdict::Again(Duration::from_millis(500))
        }
        _ => over(world, format!("a good session was refused: {refusal:?}")),
    }
}

fn may_be_locked_out(progress: &mut Progress) -> bool {
    let since = *progress.locked_out.get_or_insert_with(Instant::now);
    since.elapsed() < RELOADED_AFTER
}

fn over(world: &World, description: String) -> Verdict {
    world.tally.broken(description);
    Verdict::Over
}
