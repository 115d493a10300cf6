//! Devices that take more than they use: too many of them, slow ones, silent ones.

use std::time::{Duration, Instant};

use fastrand::Rng;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use headway_wire::message::{Open, RefusalCode, Sampling, Step, TokenIds, step};
use headway_wire::{Codec, codec};
use tokio::time::{sleep, timeout};

use super::World;
use super::steady::{self, Manner};
use super::tally::event;
use crate::load::answers::wire_u32;
use crate::load::credentials::CROWD_TENANT;
use crate::load::device::{Ended, Session, last_refusal, not_connected};
use crate::load::link::{Socket, Stream};
use crate::load::replay::{Offer, open_frame};

/// Sessions of the crowd; a tenant may have eight.
const CROWD: usize = 12;
/// Connections of a flood.
const FLOOD: usize = 24;
/// A tail waits for an Open no longer than ten seconds.
const OPEN_TIMEOUT: Duration = Duration::from_secs(12);
/// Steps whose results a slow reader leaves lying.
const UNREAD_STEPS: u32 = 700;
/// What the system keeps of them; the rest is the tail's.
const UNREAD_BYTES: u32 = 4 << 10;
/// A tail that cannot send any more reads no more either; then the device cannot send.
const BLOCKED_AFTER: Duration = Duration::from_secs(3);
/// A full tail is asked again for so long.
const ASKED_FOR: Duration = Duration::from_secs(20);
/// As often.
const ASKED_EVERY: Duration = Duration::from_millis(500);
/// A tail pings every 15 seconds and gives up on a device that is silent for 60.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(80);

/// Opens more sessions than a tenant may have. Those that are let in must get the right answers.
pub(super) async fn open_too_many(world: &World, random: &mut Rng) {
    let manner = Manner::of(CROWD_TENANT);
    let mut randoms: Vec<Rng> = (0..CROWD).map(|_| random.fork()).collect();
    let sessions = randoms
        .iter_mut()
        .map(|random| steady::answer(world, random, &manner));
    // Not for longer than others wait for their turn.
    let all = timeout(Duration::from_secs(30), join_all(sessions)).await;
    if all.is_err() {
        world.tally.count("crowds dispersed");
    }
}

/// Sends steps with large results, does not read them for a while, then does.
pub(super) async fn read_slowly(world: &World, random: &mut Rng, tenant: &str) {
    // Rows of the last layer alone: it is the results that should be large, and not the work.
    let open = Open {
        split_layer: wire_u32(world.model.num_layers - 1),
        codec: Some(Codec::F16.into()),
        sampling: Some(Sampling {
            logprobs: true,
            top_logprobs: 20,
            ..Sampling::default()
        }),
        max_positions: UNREAD_STEPS,
        prompt_tokens: 1,
        ..any_open(world, tenant)
    };
    let Some(mut session) = opened(world, tenant, &open, Some(UNREAD_BYTES)).await else {
        return;
    };
    let columns = world.model.hidden_size;
    let row = match codec::encode(Codec::F16, &vec![0.5; columns], columns) {
        Ok(row) => Some(step::Input::Activations(row)),
        Err(error) => return world.tally.broken(error.to_string()),
    };
    world.tally.count("slow readers in a session");
    let mut sent = 0;
    while sent < UNREAD_STEPS {
        let step = session.step(Step {
            input: row.clone(),
            ..one_token(sent)
        });
        match timeout(BLOCKED_AFTER, step).await {
            Ok(Ok(())) => sent += 1,
            Ok(Err(ended)) => return note(world, ended),
            Err(_) => break,
        }
    }
    if sent < UNREAD_STEPS {
        // A frame is half sent; what comes after it could not be read.
        world
            .tally
            .count("slow readers that the tail stopped reading");
    }
    // A tail that cannot write waits for 20 seconds.
    let unread = if random.bool() { 2..10 } else { 25..30 };
    let unread = Duration::from_secs(random.u64(unread));
    sleep(unread.min(world.settings.half_open)).await;
    for position in 1..=sent {
        match session.result().await {
            Ok(result) if result.positions == position && result.top_logprobs.len() == 20 => {}
            Ok(result) => {
                let positions = result.positions;
                let reason = format!("a slow reader got {positions} positions for {position}");
                return world.tally.broken(reason);
            }
            // A tail need not wait for long.
            Err(Ended::Lost(_)) => return world.tally.count(event::CUT_OFF),
            Err(ended) => return note(world, ended),
        }
    }
    world.tally.count("slow readers that got all");
}

/// Opens a session and says nothing any more, not even that it is alive.
pub(super) async fn fall_silent(world: &World, random: &mut Rng, tenant: &str) {
    let open = any_open(world, tenant);
    let Some(mut session) = opened(world, tenant, &open, None).await else {
        return;
    };
    if random.bool()
        && let Err(ended) = session.step(one_token(0)).await
    {
        return note(world, ended);
    }
    world.tally.count("devices that fell silent in a session");
    let silence = world.settings.half_open;
    sleep(silence).await;
    if silence < GIVEN_UP_AFTER {
        return;
    }
    let ended = async {
        while session
            .socket()
            .next()
            .await
            .is_some_and(|came| came.is_ok())
        {}
    };
    match timeout(Duration::from_secs(1), ended).await {
        Ok(()) => world.tally.count(event::GIVEN_UP_ON),
        Err(_) => {
            let reason = format!("a device was silent for {silence:?} and kept its session");
            world.tally.broken(reason);
        }
    }
}

/// Opens connections of all kinds and no session.
pub(super) async fn flood(world: &World, random: &mut Rng, tenant: &str) {
    let token = world.credentials.token(tenant);
    let (mut raw, mut streams, mut sockets) = (Vec::new(), Vec::<Stream>::new(), Vec::new());
    let began = Instant::now();
    for index in 0..FLOOD {
        match index % 3 {
            0 => raw.extend(world.main.tcp().await.ok()),
            1 => streams.extend(world.main.stream().await.ok()),
            _ => match world.main.socket(Some(&token)).await {
                Ok(socket) => sockets.push(socket),
                Err(error) => note(world, not_connected(&error)),
            },
        }
    }
    world
        .tally
        .add("connections without a session", FLOOD as u64);
    if random.u8(..3) > 0 {
        sleep(Duration::from_millis(random.u64(..4_000))).await;
        return;
    }
    sleep(OPEN_TIMEOUT.saturating_sub(began.elapsed())).await;
    for mut socket in sockets {
        must_be_refused(world, &mut socket).await;
    }
}

async fn must_be_refused(world: &World, socket: &mut Socket) {
    match last_refusal(socket).await {
        Ok(refusal) if refusal.code() == RefusalCode::Malformed => {
            world.tally.refusal(refusal.code());
        }
        other => {
            let reason = format!("a socket without an Open ended with {other:?}");
            world.tally.broken(reason);
        }
    }
}

/// A greedy session without head layers and without a prefix.
pub(super) fn any_open(world: &World, tenant: &str) -> Open {
    let mut opening = world.opening(tenant);
    opening.offer = Offer::Nothing;
    let open = open_frame(&world.answers[0], &opening);
    Open {
        split_layer: 0,
        codec: None,
        sampling: None,
        ..open
    }
}

/// A step of one token, after which one is sampled.
pub(super) fn one_token(position: u32) -> Step {
    Step {
        position,
        input: Some(step::Input::TokenIds(TokenIds {
            // Any token of any vocabulary here.
            ids: vec![wire_u32(1 + position as usize % 100)],
        })),
        sample: true,
        ..Step::default()
    }
}

/// Opens a session for a device that will misbehave; `None` where the tail stays full. `receive_bytes`: what the
/// system may keep for it.
pub(super) async fn opened(
    world: &World,
    tenant: &str,
    open: &Open,
    receive_bytes: Option<u32>,
) -> Option<Session> {
    let until = Instant::now() + ASKED_FOR;
    let token = world.credentials.token(tenant);
    loop {
        let socket = match receive_bytes {
            None => world.main.socket(Some(&token)).await,
            Some(bytes) => world.main.narrow_socket(Some(&token), bytes).await,
        };
        let session = match socket {
            Ok(socket) => Session::open_on(socket, open.clone()).await,
            Err(error) => Err(not_connected(&error)),
        };
        let ended = match session {
            Ok(session) => return Some(session),
            Err(ended) => ended,
        };
        let is_full = matches!(&ended, Ended::Turned(503))
            || matches!(&ended, Ended::Refused(refusal) if refusal.retry_after_ms.is_some());
        note(world, ended);
        if !is_full || world.is_pausing() || Instant::now() > until {
            return None;
        }
        sleep(ASKED_EVERY).await;
    }
}

/// Counts why a session of such a device was not opened, or ended: a full tail may refuse it.
pub(super) fn note(world: &World, ended: Ended) {
    match ended {
        Ended::Refused(refusal)
            if matches!(
                refusal.code(),
                RefusalCode::NoCapacity | RefusalCode::OverLimit
            ) =>
        {
            world.tally.refusal(refusal.code());
        }
        Ended::Turned(503) => world.tally.turned(503),
        Ended::Stuck(what) => world.tally.stuck(what),
        other => world.tally.broken(format!("{other:?}")),
    }
}
