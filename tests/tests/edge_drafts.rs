//! Guesses of the next tokens: fewer steps for the very same answer.

use std::fs::File;

use anyhow::Result;
use e2e::device::{chat, finish, lossless, request, sampled, unsplit};
use e2e::smollm2;
use e2e::tail::Tail;
use edge_lite::train_exit::{TrainExitConfig, train_exit};
use edge_lite::{
    Client, ClientConfig, DraftModelFile, Drafting, Place, Prompt, SamplingParams, WeightDtype,
};

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
            let told = report.token_steps + report.accepted_draft_tokens;
            // With all layers on the tail it goes on by itself where that is faster.
            assert!(told == 40 || split_layer == 0 && told < 40, "{told}");
            right += report.accepted_draft_tokens;
        }
    }
    // How many depends on what a row costs here, but for the first ones.
    assert!(right > 0, "some guesses were right in 320 tokens");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_all_layers_on_the_tail_an_answer_takes_one_step() -> Result<()> {
    let model = unsplit(WeightDtype::Native).await?;
    let tail = Tail::start(&smollm2(), &[]).await?;
    for sampling in [SamplingParams::default(), sampled(7), with_penalties()] {
        let request = request(chat("Name three rivers."), 40, sampling);
        let expected = finish(model.generate(request.clone()).await?).await?;
        let free = client(&tail, 0, Drafting::Off).await?;
        let free = finish(free.generate(request.clone()).await?).await?;
        assert_eq!(free.tokens, expected.tokens);
        assert_eq!(free.report.token_steps, 1, "the prompt's last one");
        let config = ClientConfig {
            free_running: false,
            drafting: Drafting::Off,
            ..lossless(0)
        };
        let stepped = Client::connect(&tail.url(), config).await?;
        let stepped = finish(stepped.generate(request).await?).await?;
        assert_eq!(stepped.tokens, expected.tokens);
        assert!(stepped.report.token_steps >= stepped.tokens.len() as u64);
    }
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

/// Answers as the unsplit model's, with guesses of `file`; of each how many were sent and how many of them were right. The
/// last one has penalties.
async fn guessed_by(file: DraftModelFile, split_layer: usize) -> Result<Vec<(u64, u64)>> {
    let model = unsplit(WeightDtype::Native).await?;
    let tail = Tail::start(&smollm2(), &[]).await?;
    let config = ClientConfig {
        drafting: Drafting::Model,
        draft_model: Some(file),
        ..lossless(split_layer)
    };
    let client = Client::connect(&tail.url(), config).await?;
    let drawn = SamplingParams {
        repetition_penalty: 1.0,
        ..sampled(7)
    };
    let mut counts = Vec::new();
    for (prompt, sampling) in [
        (verse(), SamplingParams::default()),
        (chat("Name three rivers."), SamplingParams::default()),
        (chat("Name three rivers."), drawn),
        (verse(), with_penalties()),
    ] {
        let request = request(prompt, 40, sampling);
        let expected = finish(model.generate(request.clone()).await?).await?;
        let answer = finish(client.generate(request).await?).await?;
        assert_eq!(answer.tokens, expected.tokens);
        let report = answer.report;
        counts.push((report.draft_tokens, report.accepted_draft_tokens));
    }
    Ok(counts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guesses_of_an_early_exit_change_no_token() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("exit.gguf");
    // A short training: enough for some guesses to be right near the model's end.
    let config = TrainExitConfig {
        model: smollm2(),
        split_layer: 25,
        exit_layers: 1,
        draft_vocab_size: 4096,
        tokens: 3000,
        epochs: 2,
        seed: 1,
        place: Place::Cpu,
    };
    let file = path.clone();
    tokio::task::spawn_blocking(move || -> Result<()> {
        let trained = train_exit(&config, |_| {})?;
        trained.weights.write(&mut File::create(&file)?, &file)?;
        Ok(())
    })
    .await??;
    let counts = guessed_by(DraftModelFile::EarlyExit(path.clone()), 25).await?;
    let right: u64 = counts.iter().map(|(_, right)| right).sum();
    assert!(right > 0, "some guesses were right in 160 tokens");

    let tail = Tail::start(&smollm2(), &[]).await?;
    let config = ClientConfig {
        draft_model: Some(DraftModelFile::EarlyExit(path)),
        ..lossless(10)
    };
    let refused = Client::connect(&tail.url(), config).await.err();
    let error = format!("{:#}", anyhow::Error::from(refused.expect("another layer")));
    assert!(error.contains("split layer 25; expected 10"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_companion_that_is_the_model_itself_is_always_right() -> Result<()> {
    let counts = guessed_by(DraftModelFile::Companion(smollm2()), 15).await?;
    // Drawn with the tail's own draws, a companion's tokens are the tail's where the models are the same. It does not
    // apply penalties.
    for (guesses, right) in &counts[..3] {
        assert!(*right > 0 && guesses == right, "{counts:?}");
    }
    Ok(())
}
