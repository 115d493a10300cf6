//! Sessions that go well.

use headway_model::weights::{WeightDtype, Weights};
use headway_model::{Decoder, LayerRange};
use headway_wire::message::{Close, Sampling};

use crate::rig::{Client, Device, PROMPT, Server, model_path, token_ids};

/// Greedy tokens of the unsplit model.
fn unsplit_tokens(count: usize) -> Vec<u32> {
    let weights = Weights::open(&model_path()).unwrap();
    let layers = LayerRange::new(0, weights.config().num_layers);
    let decoder = Decoder::load(&weights, layers, WeightDtype::Native).unwrap();
    let mut cache = decoder.new_cache(64);
    let mut tokens = Vec::new();
    let mut next_ids = PROMPT.to_vec();
    while tokens.len() < count {
        let mut hidden_states = decoder.embed(&next_ids).unwrap();
        decoder
            .forward(layers, &mut hidden_states, &mut cache)
            .unwrap();
        let last_row = hidden_states.len() - decoder.config().hidden_size;
        let logits = decoder.logits(&hidden_states[last_row..]).unwrap();
        let best = (0_u32..)
            .zip(&logits)
            .max_by(|a, b| a.1.total_cmp(b.1))
            .unwrap()
            .0;
        tokens.push(best);
        next_ids = vec![best];
    }
    tokens
}

/// Greedy tokens of a split session whose prompt goes up in two pipelined steps.
async fn split_tokens(server: &Server, split_layer: u32, count: usize) -> Vec<u32> {
    let mut device = Device::new(split_layer as usize);
    let mut client = server.session(split_layer).await;
    client.send(device.step(&PROMPT[..6], 0, false)).await;
    client.send(device.step(&PROMPT[6..], 6, true)).await;
    let first = client.result().await;
    assert_eq!((first.positions, first.token_id), (6, None));
    let mut tokens = Vec::new();
    while tokens.len() < count {
        let result = client.result().await;
        let position = PROMPT.len() + tokens.len();
        assert_eq!(result.positions as usize, position);
        tokens.push(result.token_id.unwrap());
        if tokens.len() < count {
            client
                .send(device.step(&tokens[tokens.len() - 1..], position, true))
                .await;
        }
    }
    client.send(Close {}).await;
    assert!(client.answer().await.is_none());
    tokens
}

#[tokio::test]
async fn every_split_layer_gives_the_tokens_of_the_unsplit_model() {
    let server = Server::start(&[]).await;
    let expected = unsplit_tokens(16);
    let (k0, k1, k2) = tokio::join!(
        split_tokens(&server, 0, 16),
        split_tokens(&server, 1, 16),
        split_tokens(&server, 2, 16)
    );
    assert_eq!([&k0, &k1, &k2], [&expected; 3]);

    server.wait_for_metric("headway_tail_sessions", 0.0).await;
    let busy = server.metric("headway_tail_busy_seconds_total").await;
    let attributed = server.metric("headway_tail_compute_seconds_total").await;
    assert!(
        busy > 0.0 && (busy - attributed).abs() < 1e-9,
        "{busy} {attributed}"
    );
    assert!(
        server
            .metric("headway_tail_saved_seconds_total{term=\"head_layers\"}")
            .await
            > 0.0
    );
    let decoded = server
        .metric("headway_tail_tokens_total{phase=\"decode\"}")
        .await;
    let prefilled = server
        .metric("headway_tail_tokens_total{phase=\"prefill\"}")
        .await;
    assert_eq!((prefilled, decoded), (33.0, 45.0));
}

#[tokio::test]
async fn a_tail_with_fewer_layers_serves_its_splits() {
    let server = Server::start(&["--split-min", "1", "--split-max", "2"]).await;
    assert_eq!(split_tokens(&server, 2, 8).await, unsplit_tokens(8));
}

async fn sampled(client: &mut Client) -> (u32, Option<f32>, usize) {
    let result = client.result().await;
    (
        result.token_id.unwrap(),
        result.logprob,
        result.top_logprobs.len(),
    )
}

#[tokio::test]
async fn a_draw_is_keyed_by_seed_and_position() {
    let server = Server::start(&[]).await;
    let mut draws = Vec::new();
    for _ in 0..2 {
        let sampling = Sampling {
            temperature: 1.5,
            seed: 7,
            logprobs: true,
            top_logprobs: 3,
            ..Sampling::default()
        };
        let mut client = server.connect().await;
        client
            .send(headway_wire::message::Open {
                sampling: Some(sampling),
                ..server.open(0)
            })
            .await;
        client.opened().await;
        client.send(token_ids(0, &PROMPT, true)).await;
        draws.push(sampled(&mut client).await);
    }
    assert_eq!(draws[0], draws[1]);
    assert!(draws[0].1.is_some_and(|logprob| logprob <= 0.0));
    assert_eq!(draws[0].2, 3);
}

#[tokio::test]
async fn more_steps_than_the_pipeline_holds_are_all_answered_in_order() {
    let server = Server::start(&[]).await;
    let mut client = server.session(0).await;
    for position in 0..30 {
        client.send(token_ids(position, &[1], false)).await;
    }
    for position in 1..=30 {
        assert_eq!(client.result().await.positions, position);
    }
}

#[tokio::test]
async fn a_device_that_vanishes_leaves_its_room() {
    let server = Server::start(&["--max-sessions", "1"]).await;
    let client = server.session(0).await;
    assert_eq!(server.metric("headway_tail_sessions").await, 1.0);
    drop(client);
    server.wait_for_metric("headway_tail_sessions", 0.0).await;
    assert_eq!(server.metric("headway_tail_kv_bytes").await, 0.0);
    server.session(2).await;
}
