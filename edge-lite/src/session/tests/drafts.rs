//! Guesses of the next tokens: right ones, wrong ones, and connections that end among them.

use super::{PROMPT, generate, request};
use crate::client::Client;
use crate::config::ClientConfig;
use crate::drafting::Drafting;
use crate::report::FinishReason;
use crate::request::{GenerateRequest, Prompt};
use crate::test_tail::{Fate, TestTail, client_config};

/// A tail whose tokens repeat with the prompt's last three, and that verifies guesses.
fn repeating() -> TestTail {
    TestTail {
        max_draft_tokens: 3,
        period: Some(3),
        ..TestTail::new()
    }
}

#[tokio::test]
async fn right_guesses_give_the_answer_in_fewer_steps() {
    let report = generate(&repeating(), request(20)).await.unwrap();
    let expected: Vec<u32> = PROMPT[3..].iter().copied().cycle().take(20).collect();
    assert_eq!(report.token_ids, expected);
    // How many are guessed depends on what a row costs here, but for the first ones.
    assert!(report.accepted_draft_tokens > 0);
    assert_eq!(report.token_steps + report.accepted_draft_tokens, 20);
    assert!(report.accepted_draft_tokens <= report.draft_tokens);
    assert_eq!(report.finish_reason, FinishReason::Length);
}

#[tokio::test]
async fn wrong_guesses_change_no_token() {
    let tail = TestTail {
        max_draft_tokens: 3,
        ..TestTail::new()
    };
    // Its tokens follow no pattern, but some stand in the prompt.
    let prompt: Vec<u32> = (0..14).chain(0..14).collect();
    let request = GenerateRequest {
        max_tokens: 30,
        ..GenerateRequest::new(Prompt::TokenIds(prompt.clone()))
    };
    let report = generate(&tail, request).await.unwrap();
    assert_eq!(report.token_ids, TestTail::expected(&prompt, 30));
    assert!(
        report.draft_tokens > report.accepted_draft_tokens,
        "{} guessed",
        report.draft_tokens
    );
}

#[tokio::test]
async fn a_connection_that_is_cut_at_a_draft_changes_no_token() {
    let tail = repeating().with_fates([
        Fate::CutAfter(2),
        Fate::CutAfter(1),
        Fate::GoAwayAfter(2),
        Fate::CutAfter(3),
    ]);
    let report = generate(&tail, request(24)).await.unwrap();
    let expected: Vec<u32> = PROMPT[3..].iter().copied().cycle().take(24).collect();
    assert_eq!(report.token_ids, expected);
    assert!(report.reconnects >= 3);
}

#[tokio::test]
async fn a_stop_among_right_guesses_ends_the_answer_there() {
    let request = GenerateRequest {
        stop: vec!["t9 t1".to_owned(), "t9t1".to_owned()],
        ..request(20)
    };
    let report = generate(&repeating(), request).await.unwrap();
    assert_eq!(report.finish_reason, FinishReason::Stop);
    assert!(report.token_ids.len() < 8, "{:?}", report.token_ids);
}

#[tokio::test]
async fn nothing_is_guessed_where_that_is_not_wanted() {
    let cache = tempfile::tempdir().unwrap();
    let config = ClientConfig {
        split_layer: Some(0),
        drafting: Drafting::Off,
        ..client_config(cache.path())
    };
    let url = format!("ws://{}", repeating().serve().await);
    let client = Client::connect(&url, config).await.unwrap();
    let generation = client.generate(request(10)).await.unwrap();
    let report = generation.finish().await.unwrap();
    assert_eq!((report.token_steps, report.draft_tokens), (10, 0));
}
