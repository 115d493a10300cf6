//! What a peer can do wrong, and what it is told.

use std::time::Duration;

use headway_wire::message::{Open, RefusalCode, Sampling};
use tail_server::Timeouts;
use tokio_tungstenite::tungstenite::Message;

use crate::rig::{Device, PROMPT, Server, token_ids};

#[tokio::test]
async fn a_first_frame_that_is_no_protobuf_is_malformed() {
    let server = Server::start(&[]).await;
    let mut client = server.connect().await;
    client.send_raw(Message::binary(vec![0xff; 64])).await;
    assert_eq!(client.refusal().await.code(), RefusalCode::Malformed);
    assert_eq!(
        server
            .metric("headway_tail_refusals_total{code=\"malformed\"}")
            .await,
        1.0
    );
}

#[tokio::test]
async fn a_text_message_is_malformed() {
    let server = Server::start(&[]).await;
    let mut client = server.connect().await;
    client.send_raw(Message::text("{}")).await;
    assert_eq!(client.refusal().await.code(), RefusalCode::Malformed);
}

#[tokio::test]
async fn a_step_before_open_is_malformed() {
    let server = Server::start(&[]).await;
    let mut client = server.connect().await;
    client.send(token_ids(0, &[1], false)).await;
    assert_eq!(client.refusal().await.code(), RefusalCode::Malformed);
}

#[tokio::test]
async fn a_socket_that_says_nothing_is_refused_in_time() {
    let timeouts = Timeouts {
        open: Duration::from_millis(50),
        ..Timeouts::default()
    };
    let server = Server::start_with(&[], timeouts).await;
    let refusal = server.connect().await.refusal().await;
    assert!(refusal.message.contains("50 ms"), "{}", refusal.message);
}

#[tokio::test]
async fn another_digest_is_refused_with_both() {
    let server = Server::start(&[]).await;
    let mut client = server.connect().await;
    let model_digest = format!("sha256:{}", "0".repeat(64));
    client
        .send(Open {
            model_digest: model_digest.clone(),
            ..server.open(1)
        })
        .await;
    let refusal = client.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::DigestMismatch);
    assert!(
        refusal.message.contains(&model_digest)
            && refusal.message.contains(&server.manifest.model_digest)
    );
}

#[tokio::test]
async fn another_protocol_version_is_unsupported() {
    let server = Server::start(&[]).await;
    let mut client = server.connect().await;
    client
        .send(Open {
            protocol_version: 99,
            ..server.open(1)
        })
        .await;
    assert_eq!(client.refusal().await.code(), RefusalCode::Unsupported);
}

#[tokio::test]
async fn a_step_out_of_order_ends_its_session_only() {
    let server = Server::start(&[]).await;
    let mut bystander = server.session(0).await;
    let mut client = server.session(0).await;
    client.send(token_ids(5, &[1], false)).await;
    let refusal = client.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::Malformed);
    assert!(
        refusal.message.contains("position 5") && refusal.message.contains("0 positions"),
        "{}",
        refusal.message
    );
    bystander.send(token_ids(0, &PROMPT, true)).await;
    assert!(bystander.result().await.token_id.is_some());
}

#[tokio::test]
async fn a_token_id_outside_the_vocabulary_is_malformed() {
    let server = Server::start(&[]).await;
    let mut client = server.session(0).await;
    client.send(token_ids(0, &[1_000_000], true)).await;
    assert_eq!(client.refusal().await.code(), RefusalCode::Malformed);
}

#[tokio::test]
async fn activations_in_a_token_id_session_are_malformed() {
    let server = Server::start(&[]).await;
    let mut client = server.session(0).await;
    client.send(Device::new(1).step(&PROMPT, 0, true)).await;
    assert_eq!(client.refusal().await.code(), RefusalCode::Malformed);
}

#[tokio::test]
async fn a_frame_beyond_the_limit_is_refused_before_it_is_read() {
    let server = Server::start(&[]).await;
    let mut client = server.session(0).await;
    client.send_raw(Message::binary(vec![0; 300 << 10])).await;
    assert_eq!(client.refusal().await.code(), RefusalCode::OverLimit);
    server.wait_for_metric("headway_tail_sessions", 0.0).await;
}

#[tokio::test]
async fn more_positions_than_the_model_has_are_over_the_limit() {
    let server = Server::start(&[]).await;
    let mut client = server.connect().await;
    client
        .send(Open {
            max_positions: 257,
            ..server.open(0)
        })
        .await;
    assert_eq!(client.refusal().await.code(), RefusalCode::OverLimit);
}

#[tokio::test]
async fn token_ids_that_may_not_leave_the_device_are_unsupported() {
    let server = Server::start(&["--no-token-upload"]).await;
    assert_eq!(server.manifest.split.min, 1);
    assert!(!server.manifest.token_upload);
    let mut client = server.connect().await;
    client.send(server.open(0)).await;
    let refusal = client.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::Unsupported);
    assert!(
        refusal.message.contains("split layers 1 to 2"),
        "{}",
        refusal.message
    );

    let mut client = server.connect().await;
    let sampling = Some(Sampling {
        presence_penalty: 1.0,
        ..Sampling::default()
    });
    client
        .send(Open {
            sampling,
            ..server.open(1)
        })
        .await;
    let refusal = client.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::Unsupported);
    assert!(refusal.message.contains("penalties"), "{}", refusal.message);

    let mut client = server.session(1).await;
    let mut step = Device::new(1).step(&PROMPT, 0, true);
    let ids = PROMPT.to_vec();
    step.history = Some(headway_wire::message::TokenIds { ids });
    client.send(step).await;
    assert_eq!(client.refusal().await.code(), RefusalCode::Unsupported);

    let mut client = server.session(1).await;
    client.send(Device::new(1).step(&PROMPT, 0, true)).await;
    assert!(client.result().await.token_id.is_some());
}

#[tokio::test]
async fn a_full_queue_of_prompts_refuses_until_one_is_computed() {
    let server = Server::start(&["--max-queue", "1"]).await;
    let mut first = server.session(0).await;
    let mut second = server.connect().await;
    second.send(server.open(0)).await;
    let refusal = second.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::NoCapacity);
    assert!(refusal.retry_after_ms.is_some());
    assert!(refusal.message.contains("prompts"), "{}", refusal.message);

    first.send(token_ids(0, &PROMPT, true)).await;
    first.result().await;
    server
        .wait_for_metric("headway_tail_queued_prompts", 0.0)
        .await;
    // The first one's answer goes on, and takes no place.
    let third = server.session(0).await;
    drop(third);
    server
        .wait_for_metric("headway_tail_queued_prompts", 0.0)
        .await;
}

#[tokio::test]
async fn a_full_tail_refuses_with_retry_after() {
    let server = Server::start(&["--max-sessions", "1"]).await;
    let _first = server.session(0).await;
    let mut second = server.connect().await;
    second.send(server.open(0)).await;
    let refusal = second.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::NoCapacity);
    assert!(
        refusal
            .retry_after_ms
            .is_some_and(|retry_after_ms| retry_after_ms > 0)
    );
}

#[tokio::test]
async fn kv_cache_that_is_taken_is_refused_with_retry_after() {
    // Room for one session of 64 positions over 3 layers, 2 heads of 16, keys and values in f32.
    let server = Server::start(&["--max-kv-bytes", "70000"]).await;
    let _first = server.session(0).await;
    let mut second = server.connect().await;
    second.send(server.open(0)).await;
    let refusal = second.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::NoCapacity);
    assert!(refusal.retry_after_ms.is_some());
}

#[tokio::test]
async fn a_device_that_goes_silent_is_let_go() {
    let timeouts = Timeouts {
        ping_interval: Duration::from_millis(20),
        idle: Duration::from_millis(100),
        ..Timeouts::default()
    };
    let server = Server::start_with(&[], timeouts).await;
    // Pongs are sent by reading, which this client does not do.
    let _silent = server.session(0).await;
    server.wait_for_metric("headway_tail_sessions", 0.0).await;
}

#[tokio::test]
async fn a_device_that_answers_pings_stays() {
    let timeouts = Timeouts {
        ping_interval: Duration::from_millis(20),
        idle: Duration::from_millis(200),
        ..Timeouts::default()
    };
    let server = Server::start_with(&[], timeouts).await;
    let mut client = server.session(0).await;
    let waited = tokio::time::timeout(Duration::from_millis(600), client.answer()).await;
    assert!(waited.is_err(), "{waited:?}");
    client.send(token_ids(0, &PROMPT, true)).await;
    assert!(client.result().await.token_id.is_some());
}
