//! What a session gets does not depend on who shares its steps, nor on drafts or reused prefixes.

use headway_model::KvCache;
use headway_model::sampler::SamplingParams;
use headway_wire::PrefixDigest;

use super::*;

const SESSIONS: usize = 64;
/// Of an answer.
const TOKENS: usize = 12;
const POSITIONS: usize = 128;

/// One of many different sessions.
struct Script {
    entry_layer: usize,
    prompt: Vec<u32>,
    params: SamplingParams,
    /// Guesses in each step; every other one is right, where right ones are known.
    draft: usize,
}

impl Script {
    /// Entry layers 0 to 2, prompts of 1 to 80 tokens, greedy, sampled and penalised, with drafts of 0 to 4.
    fn number(index: usize) -> Self {
        let id = |position: usize| {
            // Deterministic and different everywhere: a linear congruence.
            let mixed = (index * 7919 + position * 104_729 + 12_345) % 128;
            u32::try_from(mixed).unwrap()
        };
        let seed = index as u64;
        let params = match index % 4 {
            0 => SamplingParams::default(),
            1 => SamplingParams {
                temperature: 0.9,
                top_p: 0.95,
                seed,
                ..SamplingParams::default()
            },
            2 => SamplingParams {
                temperature: 1.3,
                top_k: 20,
                repetition_penalty: 1.2,
                frequency_penalty: 0.5,
                seed,
                ..SamplingParams::default()
            },
            _ => SamplingParams {
                presence_penalty: 0.7,
                logprobs: true,
                top_logprobs: 2,
                ..SamplingParams::default()
            },
        };
        Self {
            entry_layer: index % 3,
            prompt: (0..1 + (index * 13) % 80).map(id).collect(),
            params,
            draft: index % 5,
        }
    }
}

/// The head layers of one session.
struct Head {
    decoder: Decoder,
    cache: KvCache,
}

impl Head {
    fn new(rig: &Rig, entry_layer: usize) -> Self {
        let layers = LayerRange::new(0, entry_layer);
        let decoder = Decoder::load(&rig.weights, layers, WeightDtype::Native).unwrap();
        let cache = decoder.new_cache(POSITIONS);
        Self { decoder, cache }
    }

    /// The rows of tokens that stand from `position` on.
    fn input(&mut self, token_ids: &[u32], position: usize) -> StepInput {
        let layers = self.decoder.layers();
        if layers.is_empty() {
            return StepInput::TokenIds(token_ids.to_vec());
        }
        self.cache.truncate(position);
        let mut hidden_states = self.decoder.embed(token_ids).unwrap();
        self.decoder
            .forward(layers, &mut hidden_states, &mut self.cache)
            .unwrap();
        StepInput::HiddenStates(hidden_states)
    }
}

/// The answer of one session. `known`: its answer, where it has been computed before; guesses are made of it.
async fn answer(rig: &Rig, script: &Script, known: Option<&[Sampled]>) -> Vec<Sampled> {
    let sampler = Sampler::new(script.params.clone(), script.prompt.len()).unwrap();
    let session = rig.open_with(script.entry_layer, POSITIONS, sampler).await;
    let mut head = Head::new(rig, script.entry_layer);
    let mut answer: Vec<Sampled> = Vec::new();
    let mut next_ids = script.prompt.clone();
    let mut position = 0;
    while answer.len() < TOKENS {
        let mut draft: Vec<u32> = known
            .unwrap_or_default()
            .iter()
            .skip(answer.len())
            .map(|sampled| sampled.token_id)
            .take(script.draft.min(TOKENS - answer.len() - 1))
            .collect();
        if next_ids.len() > 1 {
            // A prompt.
            draft.clear();
        }
        if answer.len().is_multiple_of(2)
            && let Some(last) = draft.last_mut()
        {
            *last = (*last + 1) % 128;
        }
        next_ids.extend(&draft);
        let input = head.input(&next_ids, position);
        let mut step = request(input, next_ids.len());
        if script.params.needs_history() {
            step.history = next_ids.clone();
        }
        if !draft.is_empty() {
            step.phase = Phase::Verify;
        }
        step.draft = draft.clone();
        let output = run_step(&session, step).await.unwrap();
        let accepted = output.sampled.len() - 1;
        position += next_ids.len() - (draft.len() - accepted);
        assert_eq!(output.positions, position);
        next_ids = vec![output.sampled[accepted].token_id];
        answer.extend(output.sampled);
    }
    answer
}

#[tokio::test]
async fn sixty_four_mixed_sessions_with_drafts_get_the_tokens_that_each_gets_alone() {
    // The kernels compute a row alike whatever is beside it, in whichever type the weights are.
    for dtype in [WeightDtype::F32, WeightDtype::Bf16, WeightDtype::F16] {
        mixed_sessions_get_what_each_gets_alone(&Rig::with_dtype(16, dtype)).await;
    }
}

async fn mixed_sessions_get_what_each_gets_alone(rig: &Rig) {
    let scripts: Vec<Script> = (0..SESSIONS).map(Script::number).collect();
    let mut alone = Vec::new();
    for script in &scripts {
        alone.push(answer(rig, script, None).await);
    }
    let steps_alone = rig.metrics.steps.get();
    let together = scripts
        .iter()
        .zip(&alone)
        .map(|(script, known)| answer(rig, script, Some(known)));
    let together = futures_util::future::join_all(together).await;
    assert_eq!(together, alone);
    // They did share steps, and guesses were right and wrong.
    assert!(rig.metrics.steps.get() - steps_alone < steps_alone / 2);
    let text = rig.metrics.render().unwrap();
    for verdict in ["accepted", "rejected"] {
        let none = format!("headway_tail_draft_tokens_total{{verdict=\"{verdict}\"}} 0");
        assert!(!text.contains(&none), "{text}");
    }
}

/// Sends a prompt whose first `reused` positions are there, and gives the first tokens of the answer.
async fn answer_behind_prefix(
    rig: &Rig,
    prompt: &[u32],
    prefix: &[PrefixDigest],
    digests: Vec<PrefixDigest>,
) -> (usize, Vec<u32>) {
    let request_room = KvRequest {
        tenant: &Tenant::anonymous(),
        codec: None,
        layers: LayerRange::new(0, 3),
        positions: POSITIONS,
        prefix,
        keeps_prefix: true,
    };
    let room = rig.capacity.reserve(&request_room, Instant::now());
    let room = room.unwrap_or_else(|error| panic!("{error}"));
    let reused = room.reused_positions();
    let open = OpenSession {
        entry_layer: 0,
        sampler: Sampler::new(SamplingParams::default(), prompt.len()).unwrap(),
        room,
    };
    let session = rig.engine.open(open).await.unwrap();
    let mut next_ids = prompt[reused..].to_vec();
    let mut tokens = Vec::new();
    while tokens.len() < TOKENS {
        let mut step = request(StepInput::TokenIds(next_ids.clone()), next_ids.len());
        if tokens.is_empty() {
            step.digests = digests.clone();
        }
        let output = run_step(&session, step).await.unwrap();
        next_ids = vec![output.sampled[0].token_id];
        tokens.extend(&next_ids);
    }
    (reused, tokens)
}

#[tokio::test]
async fn behind_a_reused_prefix_an_answer_is_the_one_of_the_whole_prompt() {
    let rig = Rig::new(16);
    let prompt = Script::number(36).prompt;
    assert!(prompt.len() > 64);
    let (_, expected) = answer_behind_prefix(&rig, &prompt, &[], Vec::new()).await;
    let digests = vec![[1; 32], [2; 32]];
    let (reused, tokens) = answer_behind_prefix(&rig, &prompt, &[], digests.clone()).await;
    assert_eq!((reused, &tokens), (0, &expected));
    for (offered, columns) in [(&digests[..1], 1), (&digests[..], 2)] {
        // Two at a time share the blocks and write behind them.
        let (first, second) = tokio::join!(
            answer_behind_prefix(&rig, &prompt, offered, Vec::new()),
            answer_behind_prefix(&rig, &prompt, offered, Vec::new()),
        );
        let reused = columns * headway_model::BLOCK_POSITIONS;
        assert_eq!(first, (reused, expected.clone()));
        assert_eq!(second, first);
    }
    let text = rig.metrics.render().unwrap();
    assert!(
        text.contains("headway_tail_reused_positions_total 192"),
        "{text}"
    );
    let none = "headway_tail_saved_seconds_total{term=\"reused_prefixes\"} 0\n";
    assert!(!text.contains(none), "{text}");
}

#[tokio::test]
async fn after_the_last_session_no_block_is_held() {
    let rig = Rig::new(16);
    let scripts: Vec<Script> = (0..8).map(Script::number).collect();
    futures_util::future::join_all(scripts.iter().map(|script| answer(&rig, script, None))).await;
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
    let text = metrics.render().unwrap();
    for state in ["held", "promised", "kept"] {
        let none = format!("headway_tail_kv_blocks{{state=\"{state}\"}} 0");
        assert!(text.contains(&none), "{text}");
    }
    assert_eq!(metrics.sessions.get(), 0);
}
