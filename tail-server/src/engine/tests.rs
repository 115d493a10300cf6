mod batched;

use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use headway_model::sampler::SamplingParams;
use headway_model::weights::{WeightDtype, Weights};
use headway_model::{Decoder, KvStore, LayerRange};
use tokio::sync::Semaphore;

use super::faulty::{Fault, FaultyDevice};
use super::*;
use crate::auth::Tenant;
use crate::capacity::{Capacity, KvLimits, KvRequest, PoolPart};
use crate::metrics::Metrics;

const PROMPT: [u32; 9] = [3, 17, 64, 9, 100, 42, 5, 77, 12];

/// An engine over the tiny Llama: 3 layers, hidden size 64.
struct Rig {
    engine: EngineHandle,
    thread: JoinHandle<()>,
    weights: Weights,
    capacity: Capacity,
    metrics: Arc<Metrics>,
    choose: SyncSender<Fault>,
}

impl Rig {
    fn new(step_tokens: usize) -> Self {
        Self::with_dtype(step_tokens, WeightDtype::Native)
    }

    fn with_dtype(step_tokens: usize, dtype: WeightDtype) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny/llama");
        let weights = Weights::open(&path).unwrap();
        let decoder = Decoder::load(&weights, LayerRange::new(0, 3), dtype).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let limits = KvLimits {
            parts: vec![PoolPart {
                layers: 3,
                blocks: 4096,
            }],
            block_bytes: KvStore::block_bytes(decoder.config()),
            prefix_retention: Duration::from_secs(3600),
        };
        let capacity = Capacity::new(80, limits, Arc::clone(&metrics));
        let (device, choose) = FaultyDevice::new(CpuDevice::new(decoder, 4096));
        let savings = Arc::new(Savings::new(3, Arc::clone(&metrics)));
        let watchdog = Arc::new(Watchdog::new(None, Arc::clone(&metrics)));
        let (engine, thread) =
            EngineHandle::start(device, step_tokens, 80, watchdog, savings).unwrap();
        Self {
            engine,
            thread,
            weights,
            capacity,
            metrics,
            choose,
        }
    }

    /// Holds the engine in a step until what is returned is dropped; the steps that come meanwhile make one
    /// batch.
    async fn hold(&self, session: &EngineSession) -> SyncSender<()> {
        let (begun, has_begun) = sync_channel(1);
        let (release, go_on) = sync_channel(0);
        self.choose.send(Fault::Hang(begun, go_on)).unwrap();
        let step = request(StepInput::TokenIds(vec![1]), 1);
        drop(session.step(step).await.unwrap());
        tokio::task::spawn_blocking(move || has_begun.recv().unwrap())
            .await
            .unwrap();
        release
    }

    async fn open(&self, entry_layer: usize) -> EngineSession {
        let sampler = Sampler::new(SamplingParams::default(), PROMPT.len()).unwrap();
        self.open_with(entry_layer, 64, sampler).await
    }

    /// A session whose token ids pass `layers`, and whose hidden states enter at `entry_layer`.
    async fn open_through(&self, layers: LayerRange, entry_layer: usize) -> EngineSession {
        let sampler = Sampler::new(SamplingParams::default(), PROMPT.len()).unwrap();
        self.open_at(layers, entry_layer, 64, sampler).await
    }

    async fn open_with(
        &self,
        entry_layer: usize,
        positions: usize,
        sampler: Sampler,
    ) -> EngineSession {
        let layers = LayerRange::new(entry_layer, 3);
        self.open_at(layers, entry_layer, positions, sampler).await
    }

    async fn open_at(
        &self,
        layers: LayerRange,
        entry_layer: usize,
        positions: usize,
        sampler: Sampler,
    ) -> EngineSession {
        let request = KvRequest {
            tenant: &Tenant::anonymous(),
            codec: None,
            layers,
            positions,
            prefix: &[],
            keeps_prefix: false,
        };
        let room = self
            .capacity
            .reserve(&request, Instant::now())
            .unwrap_or_else(|error| panic!("{error}"));
        let open = OpenSession {
            entry_layer,
            sampler,
            room,
        };
        self.engine.open(open).await.unwrap()
    }

    /// The first `count` greedy tokens of a session that runs `entry_layer` layers itself.
    async fn tokens(&self, entry_layer: usize, count: usize) -> Vec<u32> {
        let head_layers = LayerRange::new(0, entry_layer);
        let head = Decoder::load(&self.weights, head_layers, WeightDtype::Native).unwrap();
        let mut head_cache = head.new_cache(64);
        let session = self.open(entry_layer).await;
        let mut tokens: Vec<u32> = Vec::new();
        let mut next_ids = PROMPT.to_vec();
        for _ in 0..count {
            let input = if entry_layer == 0 {
                StepInput::TokenIds(next_ids.clone())
            } else {
                let mut hidden_states = head.embed(&next_ids).unwrap();
                head.forward(head_layers, &mut hidden_states, &mut head_cache)
                    .unwrap();
                StepInput::HiddenStates(hidden_states)
            };
            let output = run_step(&session, request(input, next_ids.len()))
                .await
                .unwrap();
            let token_id = output.sampled[0].token_id;
            tokens.push(token_id);
            next_ids = vec![token_id];
        }
        tokens
    }
}

fn request(input: StepInput, rows: usize) -> StepRequest {
    let memory = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    let phase = if rows > 1 {
        Phase::Prefill
    } else {
        Phase::Decode
    };
    StepRequest {
        input,
        rows,
        history: Vec::new(),
        sample: true,
        draft: Vec::new(),
        drafter: Drafter::Device,
        digests: Vec::new(),
        phase,
        arrived: Instant::now(),
        memory,
    }
}

async fn run_step(session: &EngineSession, request: StepRequest) -> StepReply {
    session
        .step(request)
        .await?
        .await
        .map_err(|_| EngineError::Stopped)?
}

#[tokio::test]
async fn sessions_of_every_entry_layer_give_the_same_tokens_alone_and_together() {
    // Four rows a step: prompts are chunked and mix with the decodes of the others.
    let rig = Rig::new(4);
    let alone = rig.tokens(0, 12).await;
    let (k0, k1, k2) = tokio::join!(rig.tokens(0, 12), rig.tokens(1, 12), rig.tokens(2, 12));
    assert_eq!([&k0, &k1, &k2], [&alone; 3]);
}

#[tokio::test]
async fn a_step_that_fails_ends_its_session_and_no_other() {
    let rig = Rig::new(16);
    let bystander = rig.open(0).await;
    let failing = rig.open(0).await;
    let no_such_id = request(StepInput::TokenIds(vec![1_000_000]), 1);
    assert_eq!(
        run_step(&failing, no_such_id).await.err(),
        Some(EngineError::Failed)
    );
    let after = request(StepInput::TokenIds(vec![1]), 1);
    assert_eq!(
        run_step(&failing, after).await.err(),
        Some(EngineError::Failed)
    );
    assert!(
        run_step(&bystander, request(StepInput::TokenIds(vec![1]), 1))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_panic_in_a_step_ends_its_session_and_not_the_engine() {
    let rig = Rig::new(16);
    let failing = rig.open(1).await;
    // Fewer values than rows: the invariant that the session's check keeps is broken here.
    let broken = request(StepInput::HiddenStates(vec![0.0]), 2);
    assert_eq!(
        run_step(&failing, broken).await.err(),
        Some(EngineError::Failed)
    );
    let next = rig.open(0).await;
    assert!(
        run_step(&next, request(StepInput::TokenIds(vec![1]), 1))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_fault_ends_every_session_of_its_batch_and_no_other() {
    let rig = Rig::new(16);
    for (index, fault) in [Fault::Error, Fault::Panic, Fault::Samples]
        .into_iter()
        .enumerate()
    {
        let bystander = rig.open(0).await;
        let (first, second) = (rig.open(0).await, rig.open(0).await);
        let release = rig.hold(&bystander).await;
        rig.choose.send(fault).unwrap();
        let mut replies = Vec::new();
        for session in [&first, &second] {
            let step = request(StepInput::TokenIds(PROMPT[..5].to_vec()), 5);
            replies.push(session.step(step).await.unwrap());
            // One more, which is never begun.
            let step = request(StepInput::TokenIds(vec![1]), 1);
            replies.push(session.step(step).await.unwrap());
        }
        drop(release);
        for reply in replies {
            assert_eq!(reply.await.unwrap().err(), Some(EngineError::Failed));
        }
        // A session's room is free before its device hears of the fault: only the bystander is left.
        assert_eq!(rig.metrics.sessions.get(), 1);
        assert_eq!(rig.metrics.engine_faults.get(), index as u64 + 1);
        let step = request(StepInput::TokenIds(vec![1]), 1);
        assert!(run_step(&bystander, step).await.is_ok());
        let next = rig.open(0).await;
        let step = request(StepInput::TokenIds(vec![1]), 1);
        assert!(run_step(&next, step).await.is_ok());
        drop((bystander, first, second, next));
    }
}

#[tokio::test]
async fn a_fault_changes_no_token_of_the_sessions_that_go_on() {
    let rig = Rig::new(16);
    let expected = rig.tokens(0, 6).await;
    let failing = rig.open(0).await;
    rig.choose.send(Fault::Panic).unwrap();
    let step = request(StepInput::TokenIds(PROMPT.to_vec()), PROMPT.len());
    assert!(run_step(&failing, step).await.is_err());
    assert_eq!(rig.tokens(0, 6).await, expected);
}

#[tokio::test]
async fn attributed_time_equals_busy_time() {
    let rig = Rig::new(4);
    tokio::join!(rig.tokens(0, 5), rig.tokens(1, 5), rig.tokens(2, 5));
    let text = rig.metrics.render().unwrap();
    let value = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let (busy, attributed) = (
        value("headway_tail_busy_seconds_total"),
        value("headway_tail_compute_seconds_total"),
    );
    assert!(
        busy > 0.0 && (busy - attributed).abs() < 1e-9,
        "{busy} {attributed}"
    );
    let saved = "headway_tail_saved_seconds_total{term=\"head_layers\"}";
    assert!(value(saved) > 0.0);
}

#[tokio::test]
async fn closing_gives_the_room_back_and_the_last_handle_ends_the_thread() {
    let rig = Rig::new(16);
    drop(rig.open(0).await);
    drop(rig.open(2).await);
    let Rig {
        engine,
        thread,
        metrics,
        ..
    } = rig;
    drop(engine);
    tokio::task::spawn_blocking(move || thread.join().unwrap())
        .await
        .unwrap();
    assert_eq!((metrics.sessions.get(), metrics.kv_bytes.get()), (0, 0));
}

#[tokio::test]
async fn token_ids_before_hidden_states_give_the_same_tokens() {
    let rig = Rig::new(4);
    let expected = rig.tokens(0, 12).await;
    for entry_layer in [1, 2] {
        let head_layers = LayerRange::new(0, entry_layer);
        let head = Decoder::load(&rig.weights, head_layers, WeightDtype::Native).unwrap();
        let mut head_cache = head.new_cache(64);
        let session = rig.open_through(LayerRange::new(0, 3), entry_layer).await;
        let mut next_ids = PROMPT.to_vec();
        let mut tokens = Vec::new();
        for _ in 0..12 {
            let mut hidden_states = head.embed(&next_ids).unwrap();
            head.forward(head_layers, &mut hidden_states, &mut head_cache)
                .unwrap();
            let input = if tokens.is_empty() {
                StepInput::TokenIds(next_ids.clone())
            } else {
                StepInput::HiddenStates(hidden_states)
            };
            let step = request(input, next_ids.len());
            let output = run_step(&session, step).await.unwrap();
            // Nothing is saved by rows that pass all layers.
            assert!(!tokens.is_empty() || output.saved_us == 0);
            tokens.push(output.sampled[0].token_id);
            next_ids = tokens[tokens.len() - 1..].to_vec();
        }
        assert_eq!(tokens, expected, "entry layer {entry_layer}");
    }
}
