//! How the server leaves.

use headway_wire::message::server_frame::Message as Answer;
use headway_wire::message::{Close, RefusalCode};

use crate::rig::{PROMPT, Server, token_ids};

#[tokio::test]
async fn a_server_without_sessions_ends_at_once() {
    let mut server = Server::start(&["--drain-seconds", "3600"]).await;
    assert_eq!(server.get("/readyz").await.status(), 200);
    server.signal();
    server.ended().await;
}

#[tokio::test]
async fn live_sessions_go_on_while_new_ones_are_sent_away() {
    let mut server = Server::start(&["--drain-seconds", "3600"]).await;
    let mut live = server.session(0).await;
    server.signal();
    match live.answer().await {
        Some(Answer::GoAway(go_away)) => {
            assert!((3_500_000..=3_600_000).contains(&go_away.deadline_ms))
        }
        other => panic!("expected GoAway, got {other:?}"),
    }
    assert_eq!(server.get("/readyz").await.status(), 503);
    assert_eq!(server.get("/healthz").await.status(), 200);

    let mut late = server.connect().await;
    late.send(server.open(0)).await;
    let refusal = late.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::Draining);
    assert!(refusal.retry_after_ms.is_some());

    live.send(token_ids(0, &PROMPT, true)).await;
    assert!(live.result().await.token_id.is_some());
    live.send(Close {}).await;
    assert!(live.answer().await.is_none());
    drop((live, late));
    server.ended().await;
}

#[tokio::test]
async fn the_deadline_ends_sessions_that_stay() {
    let mut server = Server::start(&["--drain-seconds", "0"]).await;
    let mut live = server.session(0).await;
    server.signal();
    let mut answers = Vec::new();
    while let Some(answer) = live.answer().await {
        answers.push(answer);
    }
    let last = answers.pop();
    assert!(
        matches!(&last, Some(Answer::Refusal(refusal)) if refusal.code() == RefusalCode::Draining),
        "{last:?}"
    );
    server.ended().await;
}
