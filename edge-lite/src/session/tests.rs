mod drafts;

use headway_wire::message::RefusalCode;
use headway_wire::prefix::PREFIX_DIGEST_BYTES;

use crate::client::Client;
use crate::config::ClientConfig;
use crate::error::{Error, TailError};
use crate::event::Event;
use crate::report::{FinishReason, Report, Route};
use crate::request::{GenerateRequest, Prompt};
use crate::test_tail::{Fate, TestTail, client_config};

const PROMPT: [u32; 6] = [3, 1, 4, 1, 5, 9];

fn request(max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        max_tokens,
        ..GenerateRequest::new(Prompt::TokenIds(PROMPT.to_vec()))
    }
}

async fn connect(tail: &TestTail) -> (tempfile::TempDir, Client) {
    connect_with(tail, false).await
}

async fn connect_with(tail: &TestTail, reuse_prefix: bool) -> (tempfile::TempDir, Client) {
    let cache = tempfile::tempdir().unwrap();
    let config = ClientConfig {
        split_layer: Some(0),
        reuse_prefix,
        ..client_config(cache.path())
    };
    let client = Client::connect(&format!("ws://{}", tail.serve().await), config)
        .await
        .unwrap();
    (cache, client)
}

async fn generate(tail: &TestTail, request: GenerateRequest) -> Result<Report, Error> {
    let (_cache, client) = connect(tail).await;
    client.generate(request).await?.finish().await
}

#[tokio::test]
async fn a_generation_streams_its_tokens_and_then_reports() {
    let (_cache, client) = connect(&TestTail::new()).await;
    let mut generation = client.generate(request(5)).await.unwrap();
    let (mut token_ids, mut text) = (Vec::new(), String::new());
    let report = loop {
        match generation.next().await.unwrap().unwrap() {
            Event::Token(token) => {
                token_ids.push(token.token_id);
                text.push_str(&token.text);
            }
            Event::Rest { text: rest } => text.push_str(&rest),
            Event::Report(report) => break report,
        }
    };
    assert!(generation.next().await.is_none());
    assert_eq!(token_ids, TestTail::expected(&PROMPT, 5));
    assert_eq!((report.token_ids, report.text), (token_ids, text));
    assert_eq!(
        (report.prompt_tokens, report.split_layer, report.route),
        (6, 0, Route::Cloud)
    );
    assert_eq!(
        (report.finish_reason, report.reconnects),
        (FinishReason::Length, 0)
    );
    // Two prompt chunks of at most four, and four tokens.
    assert_eq!((report.tail_compute_us, report.tail_saved_us), (60, 6));
    assert!(
        report.bytes_up > 100 && report.bytes_down > 50,
        "{} {}",
        report.bytes_up,
        report.bytes_down
    );
}

#[tokio::test]
async fn a_cut_connection_changes_no_token() {
    let tail =
        TestTail::new().with_fates([Fate::CutAfter(0), Fate::CutAfter(3), Fate::CutAfter(1)]);
    let report = generate(&tail, request(8)).await.unwrap();
    assert_eq!(report.token_ids, TestTail::expected(&PROMPT, 8));
    assert_eq!(report.reconnects, 3);
    // The prompt; then it with three tokens; then it with four.
    assert_eq!(report.replayed_positions, 6 + 9 + 10);
    let resumed: Vec<u32> = tail
        .opens
        .lock()
        .unwrap()
        .iter()
        .map(|open| open.resume_positions)
        .collect();
    assert_eq!(resumed, [0, 6, 9, 10]);
    assert!(
        tail.opens
            .lock()
            .unwrap()
            .iter()
            .all(|open| open.prompt_tokens == 6 && open.max_positions == 14)
    );
}

#[tokio::test]
async fn a_tail_that_goes_away_is_left_before_the_next_step() {
    let tail = TestTail::new().with_fates([Fate::GoAwayAfter(2)]);
    let report = generate(&tail, request(6)).await.unwrap();
    assert_eq!(report.token_ids, TestTail::expected(&PROMPT, 6));
    assert_eq!((report.reconnects, report.replayed_positions), (1, 7));
}

#[tokio::test]
async fn a_session_stays_on_a_leaving_tail_while_no_other_takes_it() {
    let draining = Fate::Refused(RefusalCode::Draining, Some(60_000));
    let tail = TestTail::new().with_fates([Fate::GoAwayAfter(1), draining]);
    let report = generate(&tail, request(6)).await.unwrap();
    assert_eq!(report.token_ids, TestTail::expected(&PROMPT, 6));
    assert_eq!(report.reconnects, 0);
}

#[tokio::test]
async fn a_full_tail_is_asked_again() {
    let full = Fate::Refused(RefusalCode::NoCapacity, Some(5));
    let tail = TestTail::new().with_fates([full, full]);
    let report = generate(&tail, request(2)).await.unwrap();
    assert_eq!(report.token_ids, TestTail::expected(&PROMPT, 2));
    assert_eq!((report.reconnects, report.replayed_positions), (0, 0));
    assert_eq!(tail.opens.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn tails_of_another_model_are_passed_over() {
    let other_model = Fate::Refused(RefusalCode::DigestMismatch, None);
    let tail = TestTail::new().with_fates([Fate::CutAfter(1), other_model, other_model]);
    let report = generate(&tail, request(4)).await.unwrap();
    assert_eq!(report.token_ids, TestTail::expected(&PROMPT, 4));
    assert_eq!(report.reconnects, 1);
}

#[tokio::test]
async fn only_tails_of_another_model_end_the_generation_with_their_words() {
    let other_model = Fate::Refused(RefusalCode::DigestMismatch, None);
    let fates = std::iter::repeat_n(other_model, 32);
    let tail = TestTail::new().with_fates([Fate::CutAfter(1)].into_iter().chain(fates));
    let error = generate(&tail, request(4)).await.unwrap_err();
    let Error::Tail(TailError::Refused(refused)) = &error else {
        panic!("{error}")
    };
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (RefusalCode::DigestMismatch, "not now")
    );
    assert!(error.to_string().contains("digest_mismatch"), "{error}");
}

#[tokio::test]
async fn attempts_end_and_the_last_reason_is_kept() {
    let full = Fate::Refused(RefusalCode::NoCapacity, None);
    let tail = TestTail::new().with_fates([full; 32]);
    let error = generate(&tail, request(2)).await.unwrap_err();
    let Error::Tail(TailError::GaveUp {
        attempts: 16, last, ..
    }) = error
    else {
        panic!("{error}")
    };
    assert!(matches!(*last, TailError::Refused(_)));
}

#[tokio::test]
async fn a_stop_string_across_tokens_ends_the_answer_before_it() {
    let tokens = TestTail::expected(&PROMPT, 3);
    let plain = generate(&TestTail::new(), request(3)).await.unwrap().text;
    // The end of the second token's text and the start of the third's.
    let third = plain.rfind(&format!("t{}", tokens[2])).unwrap();
    let stop = plain[third - 2..third + 2].to_owned();
    let report = generate(
        &TestTail::new(),
        GenerateRequest {
            stop: vec![stop],
            ..request(8)
        },
    )
    .await
    .unwrap();
    assert_eq!(report.finish_reason, FinishReason::Stop);
    assert_eq!(report.text, plain[..third - 2]);
    assert_eq!(report.token_ids, tokens);
}

#[tokio::test]
async fn a_cancelled_generation_reports_what_there_is() {
    let (_cache, client) = connect(&TestTail::new()).await;
    let mut generation = client.generate(request(50)).await.unwrap();
    assert!(matches!(
        generation.next().await.unwrap().unwrap(),
        Event::Token(_)
    ));
    generation.cancel();
    let report = generation.finish().await.unwrap();
    // It may have ended by itself in the meantime: the channel holds all of its events.
    assert!(matches!(
        report.finish_reason,
        FinishReason::Cancelled | FinishReason::Length
    ));
    assert!(!report.token_ids.is_empty());
}

#[tokio::test]
async fn the_answer_is_clipped_to_the_positions_of_a_session() {
    let report = generate(&TestTail::new(), request(1000)).await.unwrap();
    assert_eq!(
        (report.token_ids.len(), report.finish_reason),
        (58, FinishReason::Length)
    );
}

#[tokio::test]
async fn a_prompt_without_room_for_an_answer_is_refused_with_both_numbers() {
    let (_cache, client) = connect(&TestTail::new()).await;
    let prompt = Prompt::TokenIds(vec![1; 64]);
    let error = client
        .generate(GenerateRequest::new(prompt))
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("64 tokens") && error.contains("at most 63"),
        "{error}"
    );
}

#[tokio::test]
async fn an_empty_prompt_starts_from_the_end_of_a_turn() {
    let request = GenerateRequest {
        max_tokens: 1,
        ..GenerateRequest::new(Prompt::Raw(String::new()))
    };
    let report = generate(&TestTail::new(), request).await.unwrap();
    assert_eq!(report.prompt_tokens, 1);
    assert_eq!(
        report.token_ids,
        TestTail::expected(&[crate::test_tail::EOS_TOKEN_ID], 1)
    );
}

/// Prompts of this many tokens; the shorter is how the longer begins.
fn long_request(prompt_tokens: usize, max_tokens: usize) -> (Vec<u32>, GenerateRequest) {
    let prompt: Vec<u32> = PROMPT.into_iter().cycle().take(prompt_tokens).collect();
    let request = GenerateRequest {
        max_tokens,
        ..GenerateRequest::new(Prompt::TokenIds(prompt.clone()))
    };
    (prompt, request)
}

/// Of each session opened: digests offered, positions to be sent again, and whether it may be kept.
fn offers(tail: &TestTail) -> Vec<(usize, u32, bool)> {
    let opens = tail.opens.lock().unwrap();
    opens
        .iter()
        .map(|open| {
            let digests = open.prefix_digests.len() / PREFIX_DIGEST_BYTES;
            (digests, open.resume_positions, open.keep_prefix)
        })
        .collect()
}

#[tokio::test]
async fn what_the_tail_holds_is_not_sent_again() {
    let tail = TestTail::new();
    let (_cache, client) = connect_with(&tail, true).await;
    // A prompt; the same one; a longer one, as of the next turn.
    for (prompt_tokens, reused) in [(40, 0), (40, 32), (50, 32)] {
        let (prompt, request) = long_request(prompt_tokens, 4);
        let sent_before = *tail.received.lock().unwrap();
        let generation = client.generate(request).await.unwrap();
        let report = generation.finish().await.unwrap();
        assert_eq!(report.token_ids, TestTail::expected(&prompt, 4));
        assert_eq!(
            (report.reused_positions, report.replayed_positions),
            (reused, 0)
        );
        let sent = *tail.received.lock().unwrap() - sent_before;
        // The last token of an answer is not sent.
        assert_eq!(sent as u64, prompt_tokens as u64 + 3 - reused);
    }
    assert_eq!(offers(&tail), [(1, 0, true); 3]);
}

#[tokio::test]
async fn nothing_is_offered_or_kept_unasked() {
    let tail = TestTail::new();
    let (_cache, client) = connect(&tail).await;
    for _ in 0..2 {
        let (prompt, request) = long_request(40, 2);
        let report = client
            .generate(request)
            .await
            .unwrap()
            .finish()
            .await
            .unwrap();
        assert_eq!(report.token_ids, TestTail::expected(&prompt, 2));
        assert_eq!(report.reused_positions, 0);
    }
    assert_eq!(offers(&tail), [(0, 0, false); 2]);
}

#[tokio::test]
async fn a_sampler_that_sees_every_token_is_offered_nothing() {
    let tail = TestTail::new();
    let (_cache, client) = connect_with(&tail, true).await;
    for _ in 0..2 {
        let (prompt, mut request) = long_request(40, 2);
        request.sampling.repetition_penalty = 1.5;
        let report = client
            .generate(request)
            .await
            .unwrap()
            .finish()
            .await
            .unwrap();
        assert_eq!(report.token_ids, TestTail::expected(&prompt, 2));
    }
    assert_eq!(offers(&tail), [(0, 0, true); 2]);
}

#[tokio::test]
async fn a_rebuilt_session_offers_its_answer_too() {
    let tail = TestTail::new().with_fates([Fate::CutAfter(20), Fate::CutAfter(3)]);
    let (_cache, client) = connect_with(&tail, true).await;
    let (prompt, request) = long_request(20, 40);
    let report = client
        .generate(request)
        .await
        .unwrap()
        .finish()
        .await
        .unwrap();
    assert_eq!(report.token_ids, TestTail::expected(&prompt, 40));
    // 40 positions were sent before the first cut, 43 before the second; one block is whole, 12 of its rows answer.
    assert_eq!(offers(&tail), [(0, 0, true), (1, 40, true), (1, 43, true)]);
    assert_eq!((report.reconnects, report.reused_positions), (2, 64));
    assert_eq!(report.replayed_positions, (40 - 32) + (43 - 32));
}

#[tokio::test]
async fn a_session_that_moves_offers_what_it_has() {
    let tail = TestTail::new().with_fates([Fate::GoAwayAfter(15)]);
    let (_cache, client) = connect_with(&tail, true).await;
    let (prompt, request) = long_request(20, 24);
    let report = client
        .generate(request)
        .await
        .unwrap()
        .finish()
        .await
        .unwrap();
    assert_eq!(report.token_ids, TestTail::expected(&prompt, 24));
    assert_eq!((report.reconnects, report.reused_positions), (1, 32));
}

#[tokio::test]
async fn a_tail_that_reuses_more_than_it_was_offered_is_not_believed() {
    // A prompt too short for an offer; one block offered; half a block; more than the session has.
    for (prompt_tokens, lie) in [(20, 32), (40, 64), (40, 16), (40, 96)] {
        let tail = TestTail::new().with_fates([Fate::Reuses(lie)]);
        let (_cache, client) = connect_with(&tail, true).await;
        let (_, request) = long_request(prompt_tokens, 24);
        let generation = client.generate(request).await.unwrap();
        let error = generation.finish().await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Tail(TailError::Protocol { .. } | TailError::Frame(_))
            ),
            "{error}"
        );
        assert_eq!(*tail.received.lock().unwrap(), 0);
    }
}
