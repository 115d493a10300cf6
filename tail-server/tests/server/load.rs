//! What a tail tells devices of its load and of what rows cost.

use headway_model::tail_load::{RowCosts, TailLoad};

use crate::rig::{PROMPT, Server, token_ids};

async fn load(server: &Server) -> TailLoad {
    server.get("/v1/load").await.json().await.unwrap()
}

#[tokio::test]
async fn costs_are_told_once_they_were_measured() {
    let server = Server::start(&["--max-sessions", "3", "--max-draft-tokens", "5"]).await;
    let idle = load(&server).await;
    assert_eq!(idle.costs, RowCosts::default());
    assert_eq!((idle.sessions, idle.max_sessions), (0, 3));
    assert_eq!((idle.step_rows, idle.max_draft_tokens), (8, 5));
    assert!(!idle.draining);

    let mut session = server.session(0).await;
    session.send(token_ids(0, &PROMPT, true)).await;
    session.result().await;
    session.send(token_ids(PROMPT.len(), &[1], true)).await;
    session.result().await;
    let busy = load(&server).await;
    assert_eq!(busy.sessions, 1);
    let RowCosts {
        prefill_row_layer_us,
        decode_row_layer_us,
        decode_step_layer_us,
        sampled_row_us,
        queue_us,
    } = busy.costs;
    // Alone in a step, a row pays all of it.
    assert_eq!(decode_row_layer_us, decode_step_layer_us);
    for cost in [
        prefill_row_layer_us,
        decode_row_layer_us,
        sampled_row_us,
        queue_us,
    ] {
        assert!(cost.is_some_and(|us| us > 0.0), "{:?}", busy.costs);
    }
}
