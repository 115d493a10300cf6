//! The promise of a split: with f32 activations and unquantised head layers, device and tail give the tokens
//! and the log-probabilities of the unsplit model, bit for bit, wherever the cut is and whoever else is there.

use anyhow::Result;
use e2e::device::{Answer, chat, connect, finish, lossless, prose, request, sampled, unsplit};
use e2e::smollm2;
use e2e::tail::Tail;
use edge_lite::{
    Client, ClientConfig, Error, GenerateRequest, LocalModel, Prompt, RequestError, Route,
    SamplingParams, WeightDtype,
};
use futures_util::future::try_join_all;

const NUM_LAYERS: usize = 30;

async fn alone(model: &LocalModel, request: &GenerateRequest) -> Result<Answer> {
    Ok(finish(model.generate(request.clone()).await?).await?)
}

/// Checks that `client` answers as `expected` says.
async fn check(client: &Client, request: &GenerateRequest, expected: &Answer) -> Result<()> {
    let answer = finish(client.generate(request.clone()).await?).await?;
    let split_layer = client.choice().split_layer;
    assert_eq!(
        answer.tokens, expected.tokens,
        "split layer {split_layer}, {:?}",
        request.prompt
    );
    assert_eq!(answer.report.text, expected.report.text);
    assert_eq!(answer.report.prompt_tokens, expected.report.prompt_tokens);
    assert_eq!(answer.report.split_layer, split_layer);
    assert_eq!(answer.report.route, Route::of(split_layer, NUM_LAYERS));
    assert_eq!(answer.report.reconnects, 0);
    Ok(())
}

fn greedy() -> SamplingParams {
    SamplingParams::default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_split_layer_gives_the_greedy_tokens_of_the_unsplit_model() -> Result<()> {
    let model = unsplit(WeightDtype::Native).await?;
    let prompts = [
        chat("Why is the sky blue?"),
        Prompt::Raw("Once upon a time, in a village by the sea,".to_owned()),
    ];
    let requests = prompts.map(|prompt| request(prompt, 24, greedy()));
    let mut expected = Vec::new();
    for request in &requests {
        let answer = alone(&model, request).await?;
        assert_eq!(answer.tokens.len(), 24);
        assert!(
            answer
                .tokens
                .iter()
                .all(|token| token.logprob.is_some() && token.top_logprobs.len() == 3)
        );
        expected.push(answer);
    }
    // With --split-max at the last layer a device may also fetch everything and run alone.
    let tail = Tail::start(&smollm2(), &["--split-max", "30"]).await?;
    for split_layer in 0..=NUM_LAYERS {
        let client = connect(&tail.url(), split_layer).await?;
        for (request, expected) in requests.iter().zip(&expected) {
            check(&client, request, expected).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_model_is_for_a_device_only_where_the_tail_offers_it() -> Result<()> {
    let tail = Tail::start(&smollm2(), &[]).await?;
    let refused = Client::connect(&tail.url(), lossless(NUM_LAYERS)).await;
    match refused.map(drop) {
        Err(Error::Request(RequestError::OnDeviceAnswer {
            num_layers: NUM_LAYERS,
            min: 0,
            max,
        })) => {
            assert_eq!(max, NUM_LAYERS - 1);
        }
        other => panic!("expected a refusal that names 0 to 29, got {other:?}"),
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sampled_tokens_with_penalties_are_those_of_the_unsplit_model() -> Result<()> {
    let model = unsplit(WeightDtype::Native).await?;
    let tail = Tail::start(&smollm2(), &[]).await?;
    let with_every_penalty = SamplingParams {
        top_k: 40,
        min_p: 0.01,
        presence_penalty: 0.3,
        frequency_penalty: 0.2,
        logit_bias: vec![(260, -2.0), (28, 1.5)],
        ..sampled(11)
    };
    let requests = [
        request(chat("Write a poem about rain."), 24, sampled(7)),
        request(
            Prompt::Raw("The list of things: one,".to_owned()),
            24,
            with_every_penalty,
        ),
    ];
    for request in requests {
        let expected = alone(&model, &request).await?;
        let other_seed = GenerateRequest {
            sampling: SamplingParams {
                seed: 8,
                ..request.sampling.clone()
            },
            ..request.clone()
        };
        // Otherwise nothing was drawn and the test says nothing.
        assert_ne!(
            alone(&model, &other_seed).await?.report.token_ids,
            expected.report.token_ids
        );
        for split_layer in [0, 1, 10, 29] {
            check(
                &connect(&tail.url(), split_layer).await?,
                &request,
                &expected,
            )
            .await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_with_f32_weights_gives_the_tokens_of_the_unsplit_model_in_f32() -> Result<()> {
    let model = unsplit(WeightDtype::F32).await?;
    let greedy = request(chat("Why is the sky blue?"), 12, greedy());
    let drawn = request(chat("Why is the sky blue?"), 12, sampled(3));
    let (greedy_alone, drawn_alone) = (alone(&model, &greedy).await?, alone(&model, &drawn).await?);
    drop(model);
    let tail = Tail::start(&smollm2(), &["--dtype", "f32"]).await?;
    for split_layer in [1, 15] {
        let client = connect(&tail.url(), split_layer).await?;
        check(&client, &greedy, &greedy_alone).await?;
        check(&client, &drawn, &drawn_alone).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_of_many_chunks_gives_the_tokens_of_the_unsplit_model() -> Result<()> {
    let model = unsplit(WeightDtype::Native).await?;
    let request = request(prose(3600)?, 8, sampled(5));
    let expected = alone(&model, &request).await?;
    assert!(
        expected.report.prompt_tokens > 600,
        "{}",
        expected.report.prompt_tokens
    );
    // Neither divides the other, nor the prompt.
    let tail = Tail::start(&smollm2(), &["--step-tokens", "96"]).await?;
    for split_layer in [0, 10, 29] {
        let config = ClientConfig {
            prompt_chunk_positions: 150,
            ..lossless(split_layer)
        };
        check(
            &Client::connect(&tail.url(), config).await?,
            &request,
            &expected,
        )
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_prompt_gives_the_tokens_of_the_unsplit_model() -> Result<()> {
    let model = unsplit(WeightDtype::Native).await?;
    let request = request(Prompt::Raw(String::new()), 12, greedy());
    let expected = alone(&model, &request).await?;
    assert_eq!(expected.report.prompt_tokens, 1);
    let tail = Tail::start(&smollm2(), &[]).await?;
    for split_layer in [0, 10, 29] {
        check(
            &connect(&tail.url(), split_layer).await?,
            &request,
            &expected,
        )
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_beside_each_other_give_the_tokens_each_gives_alone() -> Result<()> {
    let model = unsplit(WeightDtype::Native).await?;
    // Fewer rows than sessions and prompts together, so that steps mix prompts, decodes and entry layers.
    let tail = Tail::start(&smollm2(), &["--step-tokens", "48"]).await?;
    let mut sessions = Vec::new();
    for (seed, split_layer) in (0_u64..).zip([0, 0, 1, 3, 7, 10, 10, 15, 20, 26, 29, 29]) {
        let index = sessions.len();
        let sampling = if index % 3 == 0 {
            greedy()
        } else {
            sampled(seed)
        };
        let prompt = match index % 4 {
            0 => prose(200 + 90 * index)?,
            1 => chat("Name three rivers, and where they end."),
            2 => Prompt::Raw("1 2 3 4".to_owned()),
            _ => prose(40)?,
        };
        let request = request(prompt, 8 + 2 * index, sampling);
        let expected = alone(&model, &request).await?;
        sessions.push((connect(&tail.url(), split_layer).await?, request, expected));
    }
    let checks = sessions.into_iter().map(|(client, request, expected)| {
        tokio::spawn(async move { check(&client, &request, &expected).await })
    });
    for checked in try_join_all(checks).await? {
        checked?;
    }
    tail.wait_for_metric("headway_tail_sessions", |sessions| sessions == 0.0)
        .await
}
