//! A full tail makes room by ending sessions that nobody uses.

use std::time::{Duration, Instant};

use headway_wire::message::{Close, Open, RefusalCode};
use tokio::time::timeout;

use crate::rig::{Client, Device, PATIENCE, PROMPT, Server};

const EVICTED: &str = "headway_tail_sessions_evicted_total";
const SESSIONS: &str = "headway_tail_sessions";

/// A session, and the answer so far.
struct Speaker {
    client: Client,
    device: Device,
    tokens: Vec<u32>,
}

impl Speaker {
    fn new(client: Client, split_layer: u32) -> Self {
        Self {
            client,
            device: Device::new(split_layer as usize),
            tokens: Vec::new(),
        }
    }

    /// A session that has the first token of its answer.
    async fn answering(server: &Server, split_layer: u32) -> Self {
        let mut speaker = Self::new(server.session(split_layer).await, split_layer);
        speaker.next_token().await;
        speaker
    }

    async fn next_token(&mut self) {
        let step = match self.tokens.last() {
            None => self.device.step(&PROMPT, 0, true),
            Some(&last) => {
                let position = PROMPT.len() + self.tokens.len() - 1;
                self.device.step(&[last], position, true)
            }
        };
        self.client.send(step).await;
        self.tokens
            .push(self.client.result().await.token_id.unwrap());
    }

    /// Goes on until the answer has `count` tokens.
    async fn answer_to(&mut self, count: usize) {
        while self.tokens.len() < count {
            self.next_token().await;
        }
    }

    /// Sends everything again in a new session, and goes on as if it had always been there.
    async fn rebuilt(&mut self, server: &Server, split_layer: u32) {
        let known = [&PROMPT[..], &self.tokens].concat();
        let open = Open {
            resume_positions: u32::try_from(known.len() - 1).unwrap(),
            ..server.open(split_layer)
        };
        self.client = newcomer(server, || open.clone()).await;
        self.device = Device::new(split_layer as usize);
        let step = self.device.step(&known, 0, true);
        self.client.send(step).await;
        self.tokens
            .push(self.client.result().await.token_id.unwrap());
    }

    /// The session has been ended to make room.
    async fn is_evicted(&mut self) {
        let refusal = self.client.refusal().await;
        assert_eq!(refusal.code(), RefusalCode::NoCapacity);
        assert!(refusal.retry_after_ms.is_some_and(|ms| ms > 0));
        let message = &refusal.message;
        assert!(
            message.contains("idle") && message.contains("rebuild"),
            "{message}"
        );
    }
}

/// A session that is opened as soon as somebody can be ended for it.
async fn newcomer(server: &Server, open: impl Fn() -> Open) -> Client {
    let opened = async {
        loop {
            match server.try_session(open()).await {
                Ok(client) => return client,
                Err(refusal) => assert_eq!(refusal.code(), RefusalCode::NoCapacity),
            }
        }
    };
    timeout(PATIENCE, opened).await.expect("nobody makes room")
}

async fn undisturbed(split_layer: u32, count: usize) -> Vec<u32> {
    let server = Server::start(&[]).await;
    let mut speaker = Speaker::answering(&server, split_layer).await;
    speaker.answer_to(count).await;
    speaker.tokens
}

#[tokio::test]
async fn the_longest_idle_session_makes_room_where_all_sessions_are_taken() {
    for split_layer in 0..3 {
        let options = ["--max-sessions", "2", "--evict-idle-seconds", "1"];
        let server = Server::start(&options).await;
        let mut first = Speaker::answering(&server, split_layer).await;
        first.next_token().await;
        let mut second = Speaker::answering(&server, split_layer).await;
        let newcomer = newcomer(&server, || server.open(split_layer)).await;
        first.is_evicted().await;
        assert_eq!(server.metric(EVICTED).await, 1.0);
        assert_eq!(server.metric(SESSIONS).await, 2.0);

        let expected = undisturbed(split_layer, 8).await;
        second.answer_to(8).await;
        assert_eq!(second.tokens, expected);
        drop(newcomer);
        first.rebuilt(&server, split_layer).await;
        first.answer_to(8).await;
        assert_eq!(first.tokens, expected, "split layer {split_layer}");
        let resumed = server.metric("headway_tail_sessions_resumed_total").await;
        assert_eq!(resumed, 1.0);
    }
}

#[tokio::test]
async fn the_longest_idle_session_makes_room_where_the_kv_cache_is_taken() {
    // Two sessions of 64 positions over 3 layers, 2 heads of 16, keys and values in f32.
    let server = Server::start(&["--max-kv-bytes", "98304", "--evict-idle-seconds", "1"]).await;
    let mut first = Speaker::answering(&server, 0).await;
    first.next_token().await;
    let mut second = Speaker::answering(&server, 0).await;
    let _newcomer = newcomer(&server, || server.open(0)).await;
    first.is_evicted().await;
    assert_eq!(server.metric(EVICTED).await, 1.0);
    let expected = undisturbed(0, 4).await;
    second.answer_to(4).await;
    assert_eq!(second.tokens, expected);
    second.client.send(Close {}).await;
    first.rebuilt(&server, 0).await;
    first.answer_to(4).await;
    assert_eq!(first.tokens, expected);
}

#[tokio::test]
async fn a_session_that_never_fits_ends_nobody() {
    let options = ["--max-kv-bytes", "49152", "--evict-idle-seconds", "1"];
    let server = Server::start(&options).await;
    let mut first = Speaker::answering(&server, 0).await;
    // Until the session could be ended for somebody.
    let idle = Instant::now();
    while idle.elapsed() < Duration::from_millis(1500) {
        let open = Open {
            max_positions: 96,
            ..server.open(0)
        };
        let refusal = server.try_session(open).await.err().unwrap();
        assert_eq!(refusal.code(), RefusalCode::OverLimit);
        assert_eq!(refusal.retry_after_ms, None);
    }
    first.next_token().await;
    assert_eq!(server.metric(EVICTED).await, 0.0);
}

#[tokio::test]
async fn sessions_with_work_stay_and_the_newcomer_is_refused() {
    let options = ["--max-sessions", "2", "--evict-idle-seconds", "1"];
    let server = Server::start(&options).await;
    let long = || Open {
        max_positions: 256,
        ..server.open(0)
    };
    let mut speakers = Vec::new();
    for _ in 0..2 {
        let client = server.session_of(long()).await.0;
        speakers.push(Speaker::new(client, 0));
    }
    let mut pace = tokio::time::interval(Duration::from_millis(15));
    let started = Instant::now();
    // Longer than a session may be idle, by far.
    while started.elapsed() < Duration::from_secs(3) {
        pace.tick().await;
        for speaker in &mut speakers {
            speaker.next_token().await;
        }
        let refusal = server.try_session(long()).await.err().unwrap();
        assert_eq!(refusal.code(), RefusalCode::NoCapacity);
        assert!(refusal.retry_after_ms.is_some());
        assert!(
            refusal.message.contains("2 sessions"),
            "{}",
            refusal.message
        );
    }
    assert_eq!(server.metric(EVICTED).await, 0.0);
}

#[tokio::test]
async fn a_session_that_is_not_idle_for_long_enough_stays() {
    let server = Server::start(&["--max-sessions", "1"]).await;
    let mut first = Speaker::answering(&server, 0).await;
    for _ in 0..20 {
        let refusal = server.try_session(server.open(0)).await.err().unwrap();
        assert_eq!(refusal.code(), RefusalCode::NoCapacity);
    }
    first.next_token().await;
    assert_eq!(server.metric(EVICTED).await, 0.0);
}

#[tokio::test]
async fn newcomers_beside_each_other_end_one_idle_session_each() {
    let options = ["--max-sessions", "4", "--evict-idle-seconds", "2"];
    let server = Server::start(&options).await;
    let mut idle = Vec::new();
    for split_layer in [0, 1, 2] {
        idle.push(Speaker::answering(&server, split_layer).await);
    }
    // One that opened its session and never sent a step is idle too.
    idle.push(Speaker::new(server.session(0).await, 0));
    let (a, b, c, d) = tokio::join!(
        newcomer(&server, || server.open(0)),
        newcomer(&server, || server.open(1)),
        newcomer(&server, || server.open(2)),
        newcomer(&server, || server.open(0)),
    );
    for speaker in &mut idle {
        speaker.is_evicted().await;
    }
    assert_eq!(server.metric(EVICTED).await, 4.0);
    assert_eq!(server.metric(SESSIONS).await, 4.0);
    for (client, split_layer) in [(a, 0), (b, 1), (c, 2), (d, 0)] {
        Speaker::new(client, split_layer).next_token().await;
    }
}
