//! Guesses of the next tokens: fewer steps for the very same answer.

use anyhow::Result;
use e2e::device::{chat, finish, lossless, request, sampled, unsplit};
use e2e::smollm2;
use e2e::tail::Tail;
use edge_lite::{Client, ClientConfig, Drafting, Prompt, SamplingParams, WeightDtype};

/// Text that repeats itself, so that the model goes on with what stands in it.
fn verse() -> Prompt {
    let verse = "The wheels on the bus go round and round, round and round, round and round. ";
    Prompt::Raw(verse.repeat(4) + "The wheels on the")
}

fn with_penalties() -> SamplingParams {
    SamplingParams {
        presence_penalty: 0.2,
        frequency_penalty: 0.1,
        ..sampled(3)
    }
}

async fn client(tail: &Tail, split_layer: usize, drafting: Drafting) -> Result<Client> {
    let config = ClientConfig {
        drafting,
        ..lossless(split_layer)
    };
    Ok(Client::connect(&tail.url(), config).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guesses_change_the_number_of_steps_and_nothing_else() -> Result<()> {
    let model = unsplit(WeightDtype::Native).await?;
    let tail = Tail::start(&smollm2(), &[]).await?;
    let mut right = 0;
    for (prompt, sampling) in [
        (verse(), SamplingParams::default()),
        (verse(), sampled(7)),
        (verse(), with_penalties()),
        (chat("Name three rivers."), SamplingParams::default()),
    ] {
        let request = request(prompt, 40, sampling);
        let expected = finish(model.generate(request.clone()).await?).await?;
        for split_layer in [0, 15] {
            let client = client(&tail, split_layer, Drafting::PromptLookup).await?;
            let answer = finish(client.generate(request.clone()).await?).await?;
            // Log-probabilities too.
            assert_eq!(answer.tokens, expected.tokens, "split layer {split_layer}");
            let report = &answer.report;
            assert_eq!(report.token_steps + report.accepted_draft_tokens, 40);
            right += report.accepted_draft_tokens;
        }
    }
    // How many depends on what a row costs here, but for the first ones.
    assert!(right > 0, "some guesses were right in 320 tokens");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_guesses_each_token_takes_a_step() -> Result<()> {
    let tail = Tail::start(&smollm2(), &[]).await?;
    let client = client(&tail, 10, Drafting::Off).await?;
    let request = request(verse(), 24, SamplingParams::default());
    let answer = finish(client.generate(request).await?).await?;
    assert_eq!(answer.report.token_ids.len(), 24);
    assert_eq!(
        (answer.report.token_steps, answer.report.draft_tokens),
        (24, 0)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_id_goes_up_to_a_tail_that_may_not_see_any() -> Result<()> {
    let tail = Tail::start(&smollm2(), &["--no-token-upload"]).await?;
    let client = client(&tail, 10, Drafting::PromptLookup).await?;
    let request = request(verse(), 16, SamplingParams::default());
    let answer = finish(client.generate(request).await?).await?;
    assert_eq!(answer.report.token_ids.len(), 16);
    assert_eq!(
        (answer.report.token_steps, answer.report.draft_tokens),
        (16, 0)
    );
    Ok(())
}
