//! A tail that goes on by itself gives what it gives step by step.

use headway_wire::message::{FreeRun, LogitBias, Open, RefusalCode, Sampling, StepResult};

use crate::rig::{Client, PROMPT, Server, token_ids};

/// Of an answer.
const TOKENS: usize = 13;

fn until(tokens: usize) -> FreeRun {
    FreeRun {
        // The last token needs no row.
        until_position: u32::try_from(PROMPT.len() + tokens - 1).unwrap(),
        stop_token_ids: Vec::new(),
    }
}

/// What does not depend on time.
fn said(result: StepResult) -> StepResult {
    StepResult {
        compute_us: 0,
        saved_us: 0,
        queue_us: 0,
        ..result
    }
}

/// A session of split layer 0 whose prompt is sent.
async fn asked(server: &Server, sampling: Option<&Sampling>) -> Client {
    let open = Open {
        sampling: sampling.cloned(),
        ..server.open(0)
    };
    let (mut client, opened) = server.session_of(open).await;
    assert!(opened.free_running);
    client.send(token_ids(0, &PROMPT, true)).await;
    client
}

async fn step_by_step(server: &Server, sampling: Option<&Sampling>) -> Vec<StepResult> {
    let mut client = asked(server, sampling).await;
    let mut results = vec![said(client.result().await)];
    while results.len() < TOKENS {
        let position = PROMPT.len() + results.len() - 1;
        let last = results.last().and_then(|result| result.token_id).unwrap();
        client.send(token_ids(position, &[last], true)).await;
        results.push(said(client.result().await));
    }
    results
}

async fn results(client: &mut Client, count: usize) -> Vec<StepResult> {
    let mut results = Vec::new();
    for _ in 0..count {
        results.push(said(client.result().await));
    }
    results
}

fn samplings() -> [Option<Sampling>; 3] {
    let sampled = Sampling {
        temperature: 0.9,
        top_p: 0.95,
        logprobs: true,
        top_logprobs: 2,
        seed: 11,
        ..Sampling::default()
    };
    let penalised = Sampling {
        repetition_penalty: 1.2,
        presence_penalty: 0.4,
        frequency_penalty: 0.5,
        ..sampled.clone()
    };
    [None, Some(sampled), Some(penalised)]
}

#[tokio::test]
async fn a_tail_that_runs_free_gives_the_tokens_that_it_gives_step_by_step() {
    let server = Server::start(&[]).await;
    for sampling in samplings() {
        let sampling = sampling.as_ref();
        let alone = step_by_step(&server, sampling).await;
        let mut client = asked(&server, sampling).await;
        client.send(until(TOKENS)).await;
        assert_eq!(results(&mut client, TOKENS).await, alone, "{sampling:?}");
        // Some at a time, said while it goes on and after it has stopped.
        let mut client = asked(&server, sampling).await;
        client.send(until(4)).await;
        client.send(until(6)).await;
        let mut some = results(&mut client, 6).await;
        client.send(until(TOKENS)).await;
        some.extend(results(&mut client, TOKENS - 6).await);
        assert_eq!(some, alone, "{sampling:?}");
    }
}

/// Says one token again and again, with draws that do not matter.
fn monotonous() -> Sampling {
    Sampling {
        temperature: 0.5,
        logprobs: true,
        seed: 5,
        logit_bias: vec![LogitBias {
            token_id: 42,
            bias: 100.0,
        }],
        ..Sampling::default()
    }
}

#[tokio::test]
async fn what_the_tail_guesses_by_itself_changes_no_result() {
    let guessing = Server::start(&[]).await;
    let plain = Server::start(&["--max-draft-tokens", "0"]).await;
    let free = async |server: &Server, sampling: &Option<Sampling>| {
        let mut client = asked(server, sampling.as_ref()).await;
        client.send(until(TOKENS)).await;
        results(&mut client, TOKENS).await
    };
    for sampling in samplings().into_iter().chain([Some(monotonous())]) {
        let guessed = free(&guessing, &sampling).await;
        assert_eq!(guessed, free(&plain, &sampling).await, "{sampling:?}");
    }
    let accepted = "headway_tail_own_draft_tokens_total{verdict=\"accepted\"}";
    assert!(guessing.metric(accepted).await > 0.0);
    assert!(plain.metric(accepted).await.abs() < 0.5);
    let saved = "headway_tail_saved_seconds_total{term=\"accepted_drafts\"}";
    assert!(guessing.metric(saved).await.abs() < 1e-9, "nobody's credit");
    // As many rows are charged and as many tokens are counted as the device gets.
    for server in [&guessing, &plain] {
        let tokens = server.metric("headway_tail_output_tokens_total").await;
        assert!((tokens - 4.0 * TOKENS as f64).abs() < 0.5, "{tokens}");
    }
}

#[tokio::test]
async fn it_stops_at_the_position_and_behind_the_token_that_were_said() {
    let server = Server::start(&[]).await;
    let alone = step_by_step(&server, None).await;
    let ids: Vec<u32> = alone.iter().filter_map(|result| result.token_id).collect();
    let stop = ids[4];
    let first = ids.iter().position(|id| *id == stop).unwrap();
    let stopping = FreeRun {
        stop_token_ids: vec![stop],
        ..until(TOKENS)
    };
    for (word, tokens) in [(until(3), 3), (stopping, first + 1)] {
        let mut client = asked(&server, None).await;
        client.send(word).await;
        results(&mut client, tokens).await;
        // It waits: the next row is the device's.
        let position = PROMPT.len() + tokens - 1;
        client
            .send(token_ids(position, &[ids[tokens - 1]], true))
            .await;
        assert_eq!(said(client.result().await), alone[tokens]);
    }
}

#[tokio::test]
async fn sessions_that_run_free_and_others_do_not_disturb_each_other() {
    let server = Server::start(&[]).await;
    let [_, sampled, penalised] = samplings();
    let known = step_by_step(&server, sampled.as_ref()).await;
    let other = step_by_step(&server, penalised.as_ref()).await;
    let free = async |sampling: Option<&Sampling>| {
        let mut client = asked(&server, sampling).await;
        client.send(until(TOKENS)).await;
        results(&mut client, TOKENS).await
    };
    let (first, second, third) = tokio::join!(
        free(sampled.as_ref()),
        free(penalised.as_ref()),
        step_by_step(&server, sampled.as_ref())
    );
    assert_eq!((first, second, third), (known.clone(), other, known));
}

#[tokio::test]
async fn hidden_states_and_positions_that_are_not_there_are_refused() {
    let server = Server::start(&[]).await;
    let (mut client, opened) = server.session_of(server.open(1)).await;
    assert!(!opened.free_running);
    client.send(until(3)).await;
    let refusal = client.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::Malformed);
    assert!(refusal.message.contains("split layer 0"), "{refusal:?}");

    let mut client = asked(&server, None).await;
    client.send(until(1000)).await;
    let refusal = loop {
        match client.answer().await {
            Some(headway_wire::message::server_frame::Message::Refusal(refusal)) => break refusal,
            Some(_) => {}
            None => panic!("the session ended without a word"),
        }
    };
    assert_eq!(refusal.code(), RefusalCode::OverLimit);
    assert!(refusal.message.contains("max_positions"), "{refusal:?}");
}
