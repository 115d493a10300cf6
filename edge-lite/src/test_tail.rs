//! A tail for tests: the HTTP side from bytes in memory, and sessions at split layer 0 whose tokens depend on
//! every token before them, so that a gap or a double in a replay changes the answer.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use headway_model::config::{Architecture, ModelConfig, RopeLayout, RopeScaling};
use headway_model::manifest::{Artifact, Identity, Manifest, SplitRange, sha256_digest};
use headway_model::quantization::Quantization;
use headway_model::weights::WeightDtype;
use headway_wire::message::{
    GoAway, Open, Opened, Refusal, RefusalCode, ServerFrame, Step, StepResult, TokenIds,
    client_frame, step,
};
use headway_wire::{
    Limits, PREFIX_BLOCK_POSITIONS, PROTOCOL_VERSION, PrefixDigest, PrefixHasher, frame, prefix,
};

use crate::config::{ClientConfig, ReconnectPolicy};

pub(crate) const VOCAB_SIZE: usize = 50;
/// Ends a turn; the fake tail never samples it by itself.
pub(crate) const EOS_TOKEN_ID: u32 = 49;

/// What happens to one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    /// It is cut when this many tokens were sampled.
    CutAfter(usize),
    /// GoAway comes when this many tokens were sampled; the session goes on.
    GoAwayAfter(usize),
    /// It is refused.
    Refused(RefusalCode, Option<u32>),
    /// It is told that this many positions are reused, whatever is kept.
    Reuses(u32),
}

/// Path and Range header of a request for a file.
pub(crate) type FileRequest = (String, Option<String>);

#[derive(Clone)]
pub(crate) struct TestTail {
    pub(crate) manifest: Manifest,
    /// By path below `/v1/`.
    pub(crate) files: HashMap<String, Vec<u8>>,
    /// One for each connection, in order; afterwards all goes well.
    pub(crate) fates: Arc<Mutex<VecDeque<Fate>>>,
    pub(crate) opens: Arc<Mutex<Vec<Open>>>,
    pub(crate) requests: Arc<Mutex<Vec<FileRequest>>>,
    pub(crate) max_step_positions: u32,
    /// Guesses of a step that it verifies.
    pub(crate) max_draft_tokens: u32,
    /// Every token is the one so many before it, where this is set.
    pub(crate) period: Option<usize>,
    /// Positions that steps have carried, over all sessions.
    pub(crate) received: Arc<Mutex<usize>>,
    /// What sessions have sent that may be kept.
    pub(crate) kept: Arc<Mutex<HashMap<PrefixDigest, Vec<u32>>>>,
}

impl TestTail {
    /// A model of four layers whose parts are bytes without a meaning.
    pub(crate) fn new() -> Self {
        let mut files = HashMap::from([("tokenizer".to_owned(), tokenizer_json())]);
        let names = [
            "embedding",
            "layer-0",
            "layer-1",
            "layer-2",
            "layer-3",
            "lm_head",
        ];
        let parts = names.map(|name| {
            let bytes = format!("the bytes of {name} ").repeat(50).into_bytes();
            let part = artifact(name, &bytes);
            files.insert(format!("head/none/{name}"), bytes);
            part
        });
        let identity = Identity {
            config: config(),
            tokenizer: artifact("tokenizer", &files["tokenizer"]),
            parts: parts.to_vec(),
            chat_template: None,
            bos_token_id: None,
            eos_token_ids: vec![EOS_TOKEN_ID],
        };
        let manifest = Manifest {
            name: "test".to_owned(),
            model_digest: identity.digest(),
            identity,
            protocol_version: PROTOCOL_VERSION,
            split: SplitRange {
                min: 0,
                max: 3,
                default: 2,
            },
            dtype: WeightDtype::Native,
            // The last is of a later version, which devices pass over.
            codecs: ["f32", "int8", "wavelet"].map(str::to_owned).to_vec(),
            quantizations: vec![Quantization::None],
            max_positions: 64,
            token_upload: true,
            on_device_answers: false,
            free_running: false,
        };
        Self {
            manifest,
            files,
            fates: Arc::default(),
            opens: Arc::default(),
            requests: Arc::default(),
            max_step_positions: 4,
            max_draft_tokens: 0,
            period: None,
            received: Arc::default(),
            kept: Arc::default(),
        }
    }

    pub(crate) fn with_fates(self, fates: impl IntoIterator<Item = Fate>) -> Self {
        self.fates.lock().unwrap().extend(fates);
        self
    }

    /// Serves until the runtime ends.
    pub(crate) async fn serve(&self) -> SocketAddr {
        let router = Router::new()
            .route(
                "/v1/model",
                get(async |State(tail): State<Self>| axum::Json(tail.manifest)),
            )
            .route("/v1/session", get(session))
            .route("/v1/{*file}", get(file))
            .with_state(self.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    /// The longest beginning of `open`'s session that is kept.
    fn reused(&self, open: &Open) -> Vec<u32> {
        let kept = self.kept.lock().unwrap();
        let known = prefix::digests(&open.prefix_digests).map_while(|digest| kept.get(digest));
        known.last().cloned().unwrap_or_default()
    }

    /// Keeps every whole block of `sequence`, a session's token ids so far.
    fn keep(&self, sequence: &[u32]) {
        let mut hasher = PrefixHasher::new(0, None);
        let mut kept = self.kept.lock().unwrap();
        for (index, id) in sequence.iter().enumerate() {
            if let Some(digest) = hasher.push(&id.to_le_bytes()) {
                assert!((index + 1).is_multiple_of(PREFIX_BLOCK_POSITIONS));
                kept.insert(digest, sequence[..=index].to_vec());
            }
        }
    }

    fn opened(&self, open: &Open, reused_positions: u32) -> Opened {
        Opened {
            protocol_version: PROTOCOL_VERSION,
            session_id: 1,
            max_positions: open.max_positions,
            max_step_positions: self.max_step_positions,
            reused_positions,
            max_draft_tokens: self.max_draft_tokens,
            prefill_token_ids: false,
            max_ahead_steps: self.max_draft_tokens,
            free_running: false,
            tail_drafts: false,
        }
    }

    fn next_token(&self, sequence: &[u32]) -> u32 {
        match self.period {
            Some(period) => sequence[sequence.len() - period],
            None => next_token(sequence),
        }
    }

    /// Appends the guesses that are right, and counts them.
    fn verify(&self, sequence: &mut Vec<u32>, guesses: &[u32]) -> u32 {
        assert!(guesses.len() <= self.max_draft_tokens as usize);
        let mut right = 0;
        for &guess in guesses {
            if guess != self.next_token(sequence) {
                break;
            }
            sequence.push(guess);
            right += 1;
        }
        right
    }

    /// The answer to `prompt` if nothing goes wrong.
    pub(crate) fn expected(prompt: &[u32], tokens: usize) -> Vec<u32> {
        let mut sequence = prompt.to_vec();
        for _ in 0..tokens {
            sequence.push(next_token(&sequence));
        }
        sequence.split_off(prompt.len())
    }
}

/// A client's configuration without waiting.
pub(crate) fn client_config(cache_dir: &Path) -> ClientConfig {
    ClientConfig {
        cache_dir: Some(cache_dir.to_owned()),
        reconnect: ReconnectPolicy {
            min_backoff: std::time::Duration::from_millis(1),
            max_backoff: std::time::Duration::from_millis(2),
            ..ReconnectPolicy::default()
        },
        ..ClientConfig::default()
    }
}

fn artifact(name: &str, bytes: &[u8]) -> Artifact {
    Artifact {
        name: name.to_owned(),
        bytes: bytes.len() as u64,
        digest: sha256_digest(bytes),
    }
}

fn config() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        num_layers: 4,
        hidden_size: 32,
        intermediate_size: 64,
        num_attention_heads: 2,
        num_kv_heads: 1,
        head_dim: 16,
        vocab_size: VOCAB_SIZE,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_layout: RopeLayout::Half,
        rope_scaling: RopeScaling::None,
        max_positions: 64,
        tied_embeddings: false,
        sliding_window: None,
        sliding_window_start_layer: 0,
    }
}

/// Tokens `t0` to `t49`.
fn tokenizer_json() -> Vec<u8> {
    let vocab: serde_json::Map<_, _> = (0..VOCAB_SIZE)
        .map(|id| (format!("t{id}"), id.into()))
        .collect();
    let model = serde_json::json!({ "type": "WordLevel", "vocab": vocab, "unk_token": "t0" });
    let pre_tokenizer = serde_json::json!({ "type": "Whitespace" });
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": null, "model": model,
    });
    serde_json::to_vec(&json).unwrap()
}

fn next_token(sequence: &[u32]) -> u32 {
    let hash = sequence
        .iter()
        .fold(7_u32, |hash, id| hash.wrapping_mul(31).wrapping_add(*id));
    hash % EOS_TOKEN_ID
}

async fn file(
    State(tail): State<TestTail>,
    UrlPath(path): UrlPath<String>,
    headers: HeaderMap,
) -> Response {
    let range = headers
        .get("range")
        .map(|range| range.to_str().unwrap().to_owned());
    tail.requests
        .lock()
        .unwrap()
        .push((path.clone(), range.clone()));
    let Some(bytes) = tail.files.get(&path) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let Some(range) = range else {
        return bytes.clone().into_response();
    };
    let start: usize = range
        .strip_prefix("bytes=")
        .unwrap()
        .trim_end_matches('-')
        .parse()
        .unwrap();
    (StatusCode::PARTIAL_CONTENT, bytes[start..].to_vec()).into_response()
}

async fn session(State(tail): State<TestTail>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async move |socket| {
        let _ = serve_session(tail, socket).await;
    })
}

/// `None` where the connection ended.
async fn serve_session(tail: TestTail, mut socket: WebSocket) -> Option<()> {
    let fate = tail.fates.lock().unwrap().pop_front();
    let Some(client_frame::Message::Open(open)) = receive(&mut socket).await else {
        return None;
    };
    tail.opens.lock().unwrap().push(open.clone());
    if let Some(Fate::Refused(code, retry_after_ms)) = fate {
        let refusal = Refusal {
            code: code.into(),
            message: "not now".to_owned(),
            retry_after_ms,
        };
        return send(&mut socket, refusal).await;
    }
    let (mut sequence, mut sampled) = (tail.reused(&open), 0);
    let reused_positions = match fate {
        Some(Fate::Reuses(positions)) => positions,
        _ => u32::try_from(sequence.len()).unwrap(),
    };
    let opened = tail.opened(&open, reused_positions);
    send(&mut socket, opened).await?;
    let mut given = None;
    while let Some(client_frame::Message::Step(step)) = receive(&mut socket).await {
        let Step {
            position,
            input: Some(step::Input::TokenIds(TokenIds { ids })),
            sample,
            draft,
            first_guess,
            ..
        } = step
        else {
            panic!("a session at split layer 0 sends token ids")
        };
        if first_guess.is_some() && given.take() != Some((position, first_guess)) {
            send(&mut socket, passed_over(sequence.len())).await?;
            continue;
        }
        assert_eq!(
            position as usize,
            sequence.len(),
            "positions come without gaps"
        );
        assert!(ids.len() <= tail.max_step_positions as usize);
        *tail.received.lock().unwrap() += ids.len();
        let guesses = draft.map_or_else(Vec::new, |draft| draft.ids);
        assert!(ids.ends_with(&guesses) && (guesses.is_empty() || sample));
        sequence.extend(&ids[..ids.len() - guesses.len()]);
        let right = tail.verify(&mut sequence, &guesses);
        if open.keep_prefix {
            tail.keep(&sequence);
        }
        let result = StepResult {
            positions: u32::try_from(sequence.len()).unwrap(),
            token_id: sample.then(|| tail.next_token(&sequence)),
            draft_accepted: right,
            compute_us: 10,
            saved_us: 1,
            ..StepResult::default()
        };
        sampled += usize::from(sample);
        given = Some((result.positions, result.token_id));
        match fate {
            Some(Fate::CutAfter(tokens)) if sampled > tokens => return None,
            Some(Fate::GoAwayAfter(tokens)) if sample && sampled == tokens => {
                let (deadline_ms, reason) = (1000, "test".to_owned());
                let go_away = GoAway {
                    deadline_ms,
                    reason,
                };
                send(&mut socket, go_away).await?;
            }
            _ => {}
        }
        send(&mut socket, result).await?;
    }
    Some(())
}

fn passed_over(positions: usize) -> StepResult {
    StepResult {
        positions: u32::try_from(positions).unwrap(),
        passed_over: true,
        ..StepResult::default()
    }
}

async fn receive(socket: &mut WebSocket) -> Option<client_frame::Message> {
    loop {
        if let Message::Binary(bytes) = socket.recv().await?.ok()? {
            return frame::decode_client_frame(bytes, &Limits::default())
                .unwrap()
                .message;
        }
    }
}

async fn send(socket: &mut WebSocket, message: impl Into<ServerFrame>) -> Option<()> {
    socket
        .send(Message::Binary(frame::encode_server_frame(&message.into())))
        .await
        .ok()
}
