//! Guesses of the next tokens change how many steps an answer takes, and nothing else.

use futures_util::SinkExt as _;
use headway_wire::frame::encode_client_frame;
use headway_wire::message::server_frame::Message as Answer;
use headway_wire::message::{
    Open, RefusalCode, Sampling, Step, StepResult, TokenIds, TokenLogprob,
};
use tokio_tungstenite::tungstenite::Message;

use crate::rig::{Client, Device, PATIENCE, PROMPT, Server, token_ids};

/// Of an answer.
const TOKENS: usize = 13;
/// Guesses of one step, where all are made.
const GUESSES: usize = 3;
/// Ids of the model's vocabulary.
const VOCABULARY: u32 = 128;

const SAVED: &str = "headway_tail_saved_seconds_total{term=\"accepted_drafts\"}";
const ACCEPTED: &str = "headway_tail_draft_tokens_total{verdict=\"accepted\"}";
const REJECTED: &str = "headway_tail_draft_tokens_total{verdict=\"rejected\"}";
const VERIFIED: &str = "headway_tail_tokens_total{phase=\"verify\"}";

/// By how much logprobs may differ where rows go together: on a GPU, f32 sums of one row and of several have another
/// order.
const TOLERANCE: f32 = if cfg!(feature = "cuda") { 1e-4 } else { 0.0 };

/// What is reported of one token.
#[derive(Clone, Debug)]
struct Reported {
    id: u32,
    logprob: Option<f32>,
    top_logprobs: Vec<TokenLogprob>,
}

impl PartialEq for Reported {
    fn eq(&self, other: &Self) -> bool {
        let is_near = |a: f32, b: f32| (a - b).abs() <= TOLERANCE;
        let logprobs = match (self.logprob, other.logprob) {
            (Some(a), Some(b)) => is_near(a, b),
            (a, b) => a == b,
        };
        let tops = self.top_logprobs.iter().zip(&other.top_logprobs);
        self.id == other.id
            && logprobs
            && self.top_logprobs.len() == other.top_logprobs.len()
            && tops
                .into_iter()
                .all(|(a, b)| a.token_id == b.token_id && is_near(a.logprob, b.logprob))
    }
}

#[derive(Debug)]
struct Transcript {
    tokens: Vec<Reported>,
    steps: usize,
    /// How many guesses of each step were right, for the steps with guesses.
    accepted: Vec<usize>,
}

impl Transcript {
    fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

/// The guesses behind `known` tokens; as many as `most`, or fewer.
type Guess<'a> = &'a dyn Fn(usize, usize) -> Vec<u32>;

fn no_guesses(_known: usize, _most: usize) -> Vec<u32> {
    Vec::new()
}

/// Guesses `answer`, but for the guess with this index in each step, where there is one.
fn guesses(answer: Vec<u32>, wrong: Option<usize>) -> impl Fn(usize, usize) -> Vec<u32> {
    move |known, most| {
        let mut guesses: Vec<u32> = answer[known..].iter().copied().take(most).collect();
        if let Some(guess) = wrong.and_then(|index| guesses.get_mut(index)) {
            *guess = another(*guess);
        }
        guesses
    }
}

fn another(token_id: u32) -> u32 {
    (token_id + 1) % VOCABULARY
}

fn samplings() -> [Option<Sampling>; 4] {
    let reported = Sampling {
        logprobs: true,
        top_logprobs: 3,
        ..Sampling::default()
    };
    let sampled = Sampling {
        temperature: 0.9,
        top_p: 0.95,
        seed: 11,
        ..reported.clone()
    };
    let penalised = Sampling {
        temperature: 1.3,
        repetition_penalty: 1.2,
        presence_penalty: 0.4,
        frequency_penalty: 0.5,
        seed: 12,
        ..reported.clone()
    };
    [None, Some(reported), Some(sampled), Some(penalised)]
}

/// The step with the last known token and guesses of the next ones.
fn draft_step(device: &mut Device, rows: &[u32], position: usize) -> Step {
    device.rewind(position);
    let draft = (rows.len() > 1).then(|| TokenIds {
        ids: rows[1..].to_vec(),
    });
    Step {
        draft,
        ..device.step(rows, position, true)
    }
}

async fn answer(
    server: &Server,
    split_layer: u32,
    sampling: Option<&Sampling>,
    guess: Guess<'_>,
) -> Transcript {
    let open = Open {
        sampling: sampling.cloned(),
        ..server.open(split_layer)
    };
    let (mut client, _) = server.session_of(open).await;
    let mut device = Device::new(split_layer as usize);
    let has_penalties = sampling.is_some_and(|sampling| sampling.presence_penalty != 0.0);
    let mut transcript = Transcript {
        tokens: Vec::new(),
        steps: 0,
        accepted: Vec::new(),
    };
    let (mut rows, mut position) = (PROMPT.to_vec(), 0);
    while transcript.tokens.len() < TOKENS {
        let known = transcript.tokens.len();
        let mut guesses = Vec::new();
        if known > 0 {
            guesses = guess(known, GUESSES.min(TOKENS - known - 1));
            rows.extend(&guesses);
        }
        let mut step = if known == 0 {
            device.step(&rows, 0, true)
        } else {
            draft_step(&mut device, &rows, position)
        };
        if has_penalties && split_layer > 0 {
            step.history = Some(TokenIds { ids: rows.clone() });
        }
        client.send(step).await;
        let result = client.result().await;
        let accepted = result.draft_accepted as usize;
        transcript.steps += 1;
        if !guesses.is_empty() {
            transcript.accepted.push(accepted);
        }
        transcript.tokens.extend(reported(&guesses, &result));
        position += rows.len() - guesses.len() + accepted;
        assert_eq!(result.positions as usize, position);
        assert_eq!(position + 1, PROMPT.len() + transcript.tokens.len());
        rows = vec![result.token_id.unwrap()];
    }
    transcript
}

/// The guesses that are right and the token after them.
fn reported(guesses: &[u32], result: &StepResult) -> Vec<Reported> {
    let accepted = result.draft_accepted as usize;
    let count = if result.logprob.is_some() {
        accepted
    } else {
        0
    };
    assert_eq!(result.draft_logprobs.len(), count);
    let mut reported: Vec<Reported> = guesses[..accepted]
        .iter()
        .map(|&id| Reported {
            id,
            logprob: None,
            top_logprobs: Vec::new(),
        })
        .collect();
    for (token, report) in reported.iter_mut().zip(&result.draft_logprobs) {
        token.logprob = Some(report.logprob);
        token.top_logprobs = report.top_logprobs.clone();
    }
    reported.push(Reported {
        id: result.token_id.unwrap(),
        logprob: result.logprob,
        top_logprobs: result.top_logprobs.clone(),
    });
    reported
}

#[tokio::test]
async fn right_guesses_give_the_same_answer_and_reports_in_fewer_steps() {
    let server = Server::start(&[]).await;
    for split_layer in 0..3 {
        for sampling in samplings() {
            let sampling = sampling.as_ref();
            let alone = answer(&server, split_layer, sampling, &no_guesses).await;
            assert_eq!(alone.steps, TOKENS);
            let right = guesses(alone.ids(), None);
            let drafted = answer(&server, split_layer, sampling, &right).await;
            let context = format!("split layer {split_layer}, {sampling:?}");
            assert_eq!(drafted.tokens, alone.tokens, "{context}");
            assert_eq!(drafted.accepted, [GUESSES; 3], "{context}");
            assert_eq!(drafted.steps, 1 + 3, "{context}");
        }
    }
}

#[tokio::test]
async fn a_wrong_guess_ends_the_accepted_ones_and_is_corrected() {
    let server = Server::start(&[]).await;
    for split_layer in 0..3 {
        for sampling in samplings() {
            let sampling = sampling.as_ref();
            let alone = answer(&server, split_layer, sampling, &no_guesses).await;
            for wrong in 0..GUESSES {
                let guesses = guesses(alone.ids(), Some(wrong));
                let drafted = answer(&server, split_layer, sampling, &guesses).await;
                let context = format!("split layer {split_layer}, guess {wrong}, {sampling:?}");
                // The token after the accepted ones is the right one, in place of the wrong guess.
                assert_eq!(drafted.tokens, alone.tokens, "{context}");
                assert_eq!(drafted.accepted[0], wrong, "{context}");
                let whole_steps = (TOKENS - 1) / (wrong + 1);
                assert!(drafted.steps <= 1 + whole_steps + GUESSES, "{context}");
            }
        }
    }
}

#[tokio::test]
async fn sessions_with_and_without_guesses_do_not_disturb_each_other() {
    let server = Server::start(&[]).await;
    let sampling = samplings()[3].clone();
    let sampling = sampling.as_ref();
    let mut known = Vec::new();
    for split_layer in 0..3 {
        known.push(answer(&server, split_layer, sampling, &no_guesses).await);
    }
    let right: Vec<_> = known.iter().map(|it| guesses(it.ids(), None)).collect();
    let wrong: Vec<_> = known.iter().map(|it| guesses(it.ids(), Some(1))).collect();
    let (k0, k1, k2, plain) = tokio::join!(
        answer(&server, 0, sampling, &right[0]),
        answer(&server, 1, sampling, &wrong[1]),
        answer(&server, 2, sampling, &right[2]),
        answer(&server, 1, sampling, &no_guesses),
    );
    assert_eq!(k0.tokens, known[0].tokens);
    assert_eq!(k1.tokens, known[1].tokens);
    assert_eq!(k2.tokens, known[2].tokens);
    assert_eq!(plain.tokens, known[1].tokens);
}

/// A session of token ids that has its first token, which is returned.
async fn answering(server: &Server, open: Open) -> (Client, u32) {
    let (mut client, _) = server.session_of(open).await;
    client.send(token_ids(0, &PROMPT, true)).await;
    let first = client.result().await.token_id.unwrap();
    (client, first)
}

/// A step of token ids behind the prompt: `first`, and guesses after it.
fn guessing(first: u32, guesses: &[u32]) -> Step {
    let rows = [&[first], guesses].concat();
    draft_step(&mut Device::new(0), &rows, PROMPT.len())
}

/// The first two tokens of the answer to the prompt.
async fn first_two(server: &Server) -> (u32, u32) {
    let (mut client, first) = answering(server, server.open(0)).await;
    client.send(token_ids(PROMPT.len(), &[first], true)).await;
    (first, client.result().await.token_id.unwrap())
}

#[tokio::test]
async fn the_next_step_starts_where_the_result_says_and_nowhere_else() {
    let server = Server::start(&[]).await;
    let (_, second) = first_two(&server).await;
    let (mut bystander, bystanding) = answering(&server, server.open(0)).await;
    let wrong = [another(second), 5, 6];
    for offset in [0, 1, 2, 4, 5] {
        let (mut client, first) = answering(&server, server.open(0)).await;
        client.send(guessing(first, &wrong)).await;
        let result = client.result().await;
        assert_eq!(result.draft_accepted, 0);
        assert_eq!(result.positions as usize, PROMPT.len() + 1);
        let position = PROMPT.len() + offset;
        client.send(token_ids(position, &[second], true)).await;
        if offset == 1 {
            assert!(client.result().await.token_id.is_some());
            continue;
        }
        let refusal = client.refusal().await;
        assert_eq!(refusal.code(), RefusalCode::Malformed);
        let named = format!("{} positions", PROMPT.len() + 1);
        assert!(refusal.message.contains(&named), "{}", refusal.message);
    }
    bystander
        .send(token_ids(PROMPT.len(), &[bystanding], true))
        .await;
    assert_eq!(bystander.result().await.token_id, Some(second));
}

#[tokio::test]
async fn a_step_before_the_result_of_a_draft_is_refused() {
    let server = Server::start(&[]).await;
    let (_, second) = first_two(&server).await;
    let wrong = [another(second), 5, 6];
    let refused = async {
        loop {
            let (mut client, first) = answering(&server, server.open(0)).await;
            // In one write, so that the second is there when the first is taken.
            let early = token_ids(PROMPT.len() + 1 + wrong.len(), &[7], true);
            for step in [guessing(first, &wrong), early] {
                let frame = encode_client_frame(&step.into());
                client.socket.feed(Message::Binary(frame)).await.unwrap();
            }
            client.socket.flush().await.unwrap();
            match client.answer().await {
                Some(Answer::Refusal(refusal)) => return refusal,
                // The engine was faster, and the step starts at the wrong place.
                Some(Answer::StepResult(_)) => {
                    assert_eq!(client.refusal().await.code(), RefusalCode::Malformed);
                }
                other => panic!("expected Refusal, got {other:?}"),
            }
        }
    };
    let refusal = tokio::time::timeout(PATIENCE, refused)
        .await
        .expect("a step is never early");
    assert_eq!(refusal.code(), RefusalCode::Malformed);
    let message = &refusal.message;
    assert!(
        message.contains("before the result of the draft"),
        "{message}"
    );
    assert!(
        message.contains(&format!("position {}", PROMPT.len())),
        "{message}"
    );
}

#[tokio::test]
async fn a_draft_is_as_long_as_opened_says_and_no_longer() {
    for (options, most) in [
        (&["--max-draft-tokens", "2"][..], 2),
        // With the token before them they have to fit into an engine step beside waiting prompts.
        (&[], 5),
        (&["--max-draft-tokens", "64"], 5),
    ] {
        let server = Server::start(options).await;
        let (_, opened) = server.session_of(server.open(0)).await;
        assert_eq!(opened.max_draft_tokens, most);
        let (mut client, first) = answering(&server, server.open(0)).await;
        client.send(guessing(first, &vec![9; most as usize])).await;
        let result = client.result().await;
        assert!(result.draft_accepted <= most);

        let (mut client, first) = answering(&server, server.open(0)).await;
        let too_long = vec![9; most as usize + 1];
        client.send(guessing(first, &too_long)).await;
        let refusal = client.refusal().await;
        assert_eq!(refusal.code(), RefusalCode::OverLimit);
        let named = format!("max_draft_tokens is {most}, got {}", most + 1);
        assert!(refusal.message.contains(&named), "{}", refusal.message);
    }
}

#[tokio::test]
async fn a_tail_that_verifies_none_says_so_and_refuses_every_draft() {
    let server = Server::start(&["--max-draft-tokens", "0"]).await;
    let (_, opened) = server.session_of(server.open(0)).await;
    assert_eq!(opened.max_draft_tokens, 0);
    let (mut client, first) = answering(&server, server.open(0)).await;
    client.send(guessing(first, &[9])).await;
    let refusal = client.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::OverLimit);
    let named = "max_draft_tokens is 0, got 1";
    assert!(refusal.message.contains(named), "{}", refusal.message);
}

#[tokio::test]
async fn a_tail_that_takes_no_token_ids_takes_no_drafts() {
    let server = Server::start(&["--no-token-upload"]).await;
    let (mut client, opened) = server.session_of(server.open(1)).await;
    let mut device = Device::new(1);
    client.send(device.step(&PROMPT, 0, true)).await;
    let first = client.result().await.token_id.unwrap();
    let step = draft_step(&mut device, &[first, 9], PROMPT.len());
    client.send(step).await;
    let refusal = client.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::Unsupported);
    let message = &refusal.message;
    assert!(message.contains("Step.draft"), "{message}");
    assert_eq!(
        opened.max_draft_tokens, 0,
        "no draft can ever be verified here"
    );
}

#[tokio::test]
async fn guesses_are_counted_and_only_right_ones_save_time() {
    let server = Server::start(&[]).await;
    let alone = answer(&server, 0, None, &no_guesses).await;
    let wrong = answer(&server, 0, None, &guesses(alone.ids(), Some(0))).await;
    assert_eq!(wrong.accepted.iter().sum::<usize>(), 0);
    let (mut rows, mut rejected) = (0, 0);
    for known in 1..TOKENS {
        let guesses = GUESSES.min(TOKENS - known - 1);
        rejected += guesses;
        if guesses > 0 {
            rows += 1 + guesses;
        }
    }
    assert_eq!(server.metric(ACCEPTED).await, 0.0);
    assert_eq!(server.metric(REJECTED).await, rejected as f64);
    assert_eq!(server.metric(VERIFIED).await, rows as f64);
    assert_eq!(server.metric(SAVED).await, 0.0);

    let right = guesses(alone.ids(), None);
    answer(&server, 0, None, &right).await;
    assert_eq!(server.metric(ACCEPTED).await, 3.0 * GUESSES as f64);
    assert_eq!(server.metric(REJECTED).await, rejected as f64);
    let verified = rows + 3 * (GUESSES + 1);
    assert_eq!(server.metric(VERIFIED).await, verified as f64);
    // The losses of the wrong ones are made good first.
    let saved = async {
        while server.metric(SAVED).await == 0.0 {
            answer(&server, 0, None, &right).await;
        }
    };
    tokio::time::timeout(PATIENCE, saved)
        .await
        .expect("right guesses save time");
}

#[tokio::test]
async fn a_draft_may_end_at_the_last_position_and_not_behind_it() {
    let server = Server::start(&[]).await;
    let alone = answer(&server, 0, None, &no_guesses).await.ids();
    let open = || Open {
        max_positions: u32::try_from(PROMPT.len() + 1 + GUESSES).unwrap(),
        ..server.open(0)
    };
    let (mut client, first) = answering(&server, open()).await;
    client.send(guessing(first, &alone[1..=GUESSES])).await;
    let result = client.result().await;
    assert_eq!(result.draft_accepted as usize, GUESSES);
    assert_eq!(result.positions, open().max_positions);
    assert_eq!(result.token_id, Some(alone[GUESSES + 1]));

    let (mut client, first) = answering(&server, open()).await;
    client.send(guessing(first, &alone[1..GUESSES + 2])).await;
    let refusal = client.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::OverLimit);
    assert!(
        refusal.message.contains("max_positions"),
        "{}",
        refusal.message
    );
}
