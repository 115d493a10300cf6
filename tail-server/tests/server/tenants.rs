//! What one tenant may take.

use std::time::{Duration, Instant};

use headway_wire::message::server_frame::Message as Answer;
use headway_wire::message::{Close, Open, RefusalCode};

use crate::auth::{key_line, keys_file};
use crate::rig::{PATIENCE, Server, token_ids};

fn two_tenants() -> (tempfile::TempDir, String) {
    keys_file(&(key_line("acme", "one") + &key_line("globex", "two")))
}

#[tokio::test]
async fn a_tenant_with_too_many_sessions_waits_and_another_does_not() {
    let (_folder, path) = two_tenants();
    let options = ["--auth-keys", &path, "--tenant-max-sessions", "1"];
    let server = Server::start(&options).await;
    let first = server.session_as("one").await;
    let mut second = server
        .upgrade(&[("authorization", "Bearer one")])
        .await
        .unwrap();
    second.send(server.open(0)).await;
    let refusal = second.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::OverLimit);
    assert!(refusal.retry_after_ms.is_some());
    assert!(
        refusal.message.contains("one tenant"),
        "{}",
        refusal.message
    );
    server.session_as("two").await;

    drop(first);
    let opened = async {
        loop {
            let headers = [("authorization", "Bearer one")];
            let mut again = server.upgrade(&headers).await.unwrap();
            again.send(server.open(0)).await;
            if matches!(again.answer().await, Some(Answer::Opened(_))) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, opened).await.unwrap();
}

#[tokio::test]
async fn a_tenant_over_its_rate_opens_nothing_and_another_goes_on() {
    let (_folder, path) = two_tenants();
    let options = ["--auth-keys", &path, "--tenant-tokens-per-second", "20"];
    let server = Server::start(&options).await;
    let prompt = [1; 60];
    let mut refused = None;
    // Ten seconds of twenty rows, and then some: the fifth is over it, unless this takes seconds.
    for _ in 0..200 {
        let headers = [("authorization", "Bearer one")];
        let mut client = server.upgrade(&headers).await.unwrap();
        let prompt_tokens = 60;
        client
            .send(Open {
                prompt_tokens,
                ..server.open(0)
            })
            .await;
        match client.answer().await {
            Some(Answer::Refusal(refusal)) => {
                refused = Some(refusal);
                break;
            }
            _ => {
                client.send(token_ids(0, &prompt, false)).await;
                assert_eq!(client.result().await.positions, 60);
                client.send(Close {}).await;
            }
        }
    }
    let refusal = refused.expect("a tenant over its rate is refused");
    assert_eq!(refusal.code(), RefusalCode::OverLimit);
    assert!(
        refusal
            .retry_after_ms
            .is_some_and(|ms| (1..=10_000).contains(&ms))
    );
    server.session_as("two").await;
}

#[tokio::test]
async fn a_session_over_its_tenants_rate_waits_and_goes_on() {
    let (_folder, path) = two_tenants();
    let options = ["--auth-keys", &path, "--tenant-tokens-per-second", "20"];
    let server = Server::start(&options).await;
    let headers = [("authorization", "Bearer one")];
    let mut client = server.upgrade(&headers).await.unwrap();
    client
        .send(Open {
            max_positions: 256,
            prompt_tokens: 220,
            ..server.open(0)
        })
        .await;
    client.opened().await;
    // Ten seconds of twenty rows go at once; twenty rows more are a second.
    let started = Instant::now();
    client.send(token_ids(0, &[1; 220], true)).await;
    assert!(client.result().await.token_id.is_some());
    client.send(token_ids(220, &[1], true)).await;
    assert!(client.result().await.token_id.is_some());
    let elapsed = started.elapsed();
    assert!(elapsed >= Duration::from_secs(1), "{elapsed:?}");
}

#[tokio::test]
async fn a_device_with_too_many_sessions_waits_and_another_key_of_its_tenant_does_not() {
    let (_folder, path) = keys_file(&(key_line("acme", "one") + &key_line("acme", "two")));
    let options = ["--auth-keys", &path, "--device-max-sessions", "1"];
    let server = Server::start(&options).await;
    let _first = server.session_as("one").await;
    let mut second = server
        .upgrade(&[("authorization", "Bearer one")])
        .await
        .unwrap();
    second.send(server.open(0)).await;
    let refusal = second.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::OverLimit);
    assert!(refusal.retry_after_ms.is_some());
    assert!(
        refusal.message.contains("one device"),
        "{}",
        refusal.message
    );
    server.session_as("two").await;
}
