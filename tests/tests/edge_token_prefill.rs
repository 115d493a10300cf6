//! A prompt that goes up as token ids beside head layers: the same answer, fewer bytes, and no saving claimed for it.

use anyhow::Result;
use e2e::device::{
    Answer, chat, finish, finish_after, first_tokens, lossless, prose, request, sampled, unsplit,
};
use e2e::smollm2;
use e2e::tail::Tail;
use edge_lite::{
    Client, ClientConfig, Codec, Error, GenerateRequest, Prefill, RequestError, SamplingParams,
    WeightDtype,
};

fn by_token_ids(split_layer: usize) -> ClientConfig {
    ClientConfig {
        prefill: Prefill::TokenIds,
        ..lossless(split_layer)
    }
}

async fn ask(url: &str, config: ClientConfig, request: &GenerateRequest) -> Result<Answer> {
    let client = Client::connect(url, config).await?;
    Ok(finish(client.generate(request.clone()).await?).await?)
}

async fn alone(request: &GenerateRequest) -> Result<Answer> {
    let model = unsplit(WeightDtype::Native).await?;
    Ok(finish(model.generate(request.clone()).await?).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_is_that_of_the_unsplit_model_at_fewer_bytes() -> Result<()> {
    let tail = Tail::start(&smollm2(), &[]).await?;
    // Many chunks; with draws and penalties, which see every token; and short.
    let requests = [
        request(prose(3000)?, 16, SamplingParams::default()),
        request(prose(1500)?, 16, sampled(5)),
        request(chat("Why is the sky blue?"), 16, SamplingParams::default()),
    ];
    for request in &requests {
        let expected = alone(request).await?;
        for split_layer in [1, 10, 29] {
            let plain = ask(&tail.url(), lossless(split_layer), request).await?;
            let answer = ask(&tail.url(), by_token_ids(split_layer), request).await?;
            assert_eq!(answer.tokens, expected.tokens, "split layer {split_layer}");
            assert_eq!(answer.report.text, expected.report.text);
            assert_eq!(answer.report.split_layer, split_layer);
            let (ids, states) = (answer.report.bytes_up, plain.report.bytes_up);
            let saved = 2000 * answer.report.prompt_tokens as u64;
            assert!(ids + saved < states, "{ids} bytes beside {states}");
            assert!(answer.report.head_compute_ms > 0.0);
            let of_prompt = answer.report.prompt_tokens as u64;
            assert_eq!(answer.report.token_id_positions, of_prompt);
            assert_eq!(plain.report.token_id_positions, 0);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_token_ids_save_the_tail_nothing() -> Result<()> {
    let tail = Tail::start(&smollm2(), &[]).await?;
    // One token: only the prompt's rows reach the tail.
    let request = request(prose(1000)?, 1, SamplingParams::default());
    let plain = ask(&tail.url(), lossless(15), &request).await?;
    assert!(plain.report.tail_saved_us > 0);
    let answer = ask(&tail.url(), by_token_ids(15), &request).await?;
    assert_eq!(answer.tokens, plain.tokens);
    assert_eq!(answer.report.tail_saved_us, 0);
    assert!(answer.report.tail_compute_us > 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_lost_in_the_answer_is_sent_token_ids_and_hidden_states_again() -> Result<()> {
    let mut tail = Tail::start(&smollm2(), &[]).await?;
    for (codec, read) in [(Codec::F32, 1), (Codec::F32, 9), (Codec::Tcq4, 5)] {
        // Long enough that the answer is not there in whole when the tail is lost.
        let request = request(prose(800)?, 96, SamplingParams::default());
        let config = ClientConfig {
            codec: Some(codec),
            ..by_token_ids(10)
        };
        let undisturbed = ask(&tail.url(), config.clone(), &request).await?;
        if codec == Codec::F32 {
            assert_eq!(undisturbed.tokens, alone(&request).await?.tokens);
        }
        let client = Client::connect(&tail.url(), config).await?;
        let mut generation = client.generate(request.clone()).await?;
        let tokens = first_tokens(&mut generation, read).await?;
        let address = tail.address();
        tail.kill().await?;
        tail = Tail::start_on(address, &smollm2(), &[]).await?;
        let answer = finish_after(tokens, generation).await?;
        assert_eq!(answer.tokens, undisturbed.tokens, "{codec}");
        assert!(answer.report.reconnects >= 1);
        assert!(answer.report.replayed_positions >= answer.report.prompt_tokens as u64);
    }
    Ok(())
}

/// A tail that lacks the first layers, at the address of one that had them: devices know the first one's manifest.
async fn replaced(tail: Tail) -> Result<Tail> {
    let address = tail.address();
    tail.kill().await?;
    Tail::start_on(address, &smollm2(), &["--split-min", "5"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_session_is_not_granted_token_ids_the_prompt_goes_up_as_hidden_states() -> Result<()>
{
    let tail = Tail::start(&smollm2(), &[]).await?;
    let request = request(prose(1500)?, 16, SamplingParams::default());
    let expected = alone(&request).await?;
    let client = Client::connect(&tail.url(), by_token_ids(10)).await?;
    let _tail = replaced(tail).await?;
    for _ in 0..2 {
        let answer = finish(client.generate(request.clone()).await?).await?;
        assert_eq!(answer.tokens, expected.tokens);
        let (report, hidden_size) = (answer.report, 576);
        assert_eq!((report.token_id_positions, report.reconnects), (0, 0));
        let bytes_of_states = (report.prompt_tokens * hidden_size * size_of::<f32>()) as u64;
        assert!(report.bytes_up > bytes_of_states);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_moves_to_a_tail_without_the_first_layers_goes_on_in_hidden_states()
-> Result<()> {
    let tail = Tail::start(&smollm2(), &[]).await?;
    // Long enough that the answer is not there in whole when the tail is lost.
    let request = request(prose(1500)?, 96, SamplingParams::default());
    let expected = alone(&request).await?;
    let client = Client::connect(&tail.url(), by_token_ids(10)).await?;
    let mut generation = client.generate(request.clone()).await?;
    let tokens = first_tokens(&mut generation, 5).await?;
    let _tail = replaced(tail).await?;
    let answer = finish_after(tokens, generation).await?;
    assert_eq!(answer.tokens, expected.tokens);
    let report = answer.report;
    assert!(report.reconnects >= 1);
    // To the first tail, and not to the second one.
    assert_eq!(report.token_id_positions, report.prompt_tokens as u64);
    assert!(report.replayed_positions >= report.prompt_tokens as u64);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_is_reused_whether_the_answer_was_split_or_not() -> Result<()> {
    let tail = Tail::start(&smollm2(), &[]).await?;
    // The prompt ends within a block, so the next one has rows of the answer.
    let request = request(prose(1200)?, 40, SamplingParams::default());
    let expected = alone(&request).await?;
    let blocks = (expected.report.prompt_tokens as u64 - 1) / 32 * 32;
    assert!(blocks > 0);
    let mut reused = Vec::new();
    for config in [
        by_token_ids(10),
        by_token_ids(20),
        lossless(0),
        by_token_ids(10),
    ] {
        let config = ClientConfig {
            reuse_prefix: true,
            ..config
        };
        let answer = ask(&tail.url(), config, &request).await?;
        assert_eq!(answer.tokens, expected.tokens);
        reused.push(answer.report.reused_positions);
    }
    assert_eq!(reused, [0, blocks, blocks, blocks]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_without_the_first_layers_or_without_token_ids_is_named() -> Result<()> {
    for options in [
        &["--split-min", "5"][..],
        &["--split-min", "1", "--no-token-upload"],
    ] {
        let tail = Tail::start(&smollm2(), options).await?;
        let refused = Client::connect(&tail.url(), by_token_ids(10)).await;
        assert!(matches!(
            refused.map(drop),
            Err(Error::Request(RequestError::TokenPrefill))
        ));
    }
    Ok(())
}
