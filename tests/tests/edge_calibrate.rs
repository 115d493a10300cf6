//! `edge-lite calibrate` on real models: what a tail says of a local answer is what the same model says in one pass, and
//! what is written is what the router reads.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use e2e::device::{connect, lossless};
use e2e::program::program;
use e2e::tail::Tail;
use e2e::{artifact_cache_dir, companion, tiny_llama};
use edge_lite::calibrate::{CalibrateConfig, Full, Record, calibrate, prompts};
use edge_lite::router::Thresholds;
use edge_lite::{Client, ClientConfig, Drafting, LocalConfig, LocalModel};

const PROMPTS: usize = 12;

fn write_prompts(folder: &Path) -> Result<std::path::PathBuf> {
    let path = folder.join("prompts.jsonl");
    let words = ["sea", "moon", "harbour", "12 + 30"];
    let lines = (0..PROMPTS).map(|index| {
        let prompt = format!("The {} and the {}", words[index % 4], words[index / 4]);
        serde_json::json!({ "id": index.to_string(), "task": "test", "prompt": prompt, "max_tokens": 24 }).to_string()
    });
    std::fs::write(&path, lines.collect::<Vec<_>>().join("\n"))?;
    Ok(path)
}

fn load(path: &Path) -> Result<LocalModel> {
    Ok(LocalModel::load(path, &LocalConfig::default())?)
}

async fn records(full: &Full, local: &LocalModel, prompts: &Path) -> Result<Vec<Record>> {
    let prompts = prompts::read(prompts)?;
    let config = CalibrateConfig {
        target_agreement: 0.5,
        max_tokens: 64,
    };
    let found = calibrate(full, local, &prompts, &config, |_, _| {}).await?;
    assert_eq!(found.records.len(), PROMPTS);
    Ok(found.records)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_and_a_model_here_agree_on_what_they_would_have_said() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let prompts = write_prompts(folder.path())?;
    let local = companion()?;
    let tail = Tail::start(&tiny_llama(), &[]).await?;
    let config = ClientConfig {
        drafting: Drafting::Off,
        ..lossless(0)
    };
    let there = Full::Tail(Box::new(Client::connect(&tail.url(), config).await?));
    let here = Full::Model(Box::new(load(&tiny_llama())?));
    let local_model = load(local.path())?;
    let here = records(&here, &local_model, &prompts).await?;
    let there = records(&there, &local_model, &prompts).await?;
    for (here, there) in here.iter().zip(&there) {
        assert_eq!(here.agrees, there.agrees, "{}", here.id);
        assert_eq!(here.agrees.len(), here.uncertainties.len());
        assert_eq!(here.full_tokens, there.full_tokens);
        assert!((here.rouge_l - there.rouge_l).abs() < 1e-12);
        assert!(here.full_seconds > 0.0 && there.full_seconds > 0.0);
    }
    // A model agrees with itself, to the last token.
    let same = Full::Model(Box::new(load(&tiny_llama())?));
    for record in records(&same, &load(&tiny_llama())?, &prompts).await? {
        assert!(record.agrees.iter().all(|agrees| *agrees), "{}", record.id);
        assert!(record.is_same_answer && record.rouge_l == 1.0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_writes_what_the_router_reads() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let prompts = write_prompts(folder.path())?;
    let local = companion()?;
    let (output, plot) = (
        folder.path().join("thresholds.json"),
        folder.path().join("curve.svg"),
    );
    let calibrated = Command::new(program("edge-lite"))
        .arg("calibrate")
        .arg("--prompts")
        .arg(&prompts)
        .arg("--model")
        .arg(tiny_llama())
        .arg("--local")
        .arg(local.path())
        .arg("--output")
        .arg(&output)
        .arg("--plot")
        .arg(&plot)
        .stdin(Stdio::null())
        .output()?;
    let error = String::from_utf8_lossy(&calibrated.stderr).into_owned();
    assert!(calibrated.status.success(), "{error}");
    assert!(String::from_utf8(calibrated.stdout)?.contains("| aimed at |"));
    assert!(std::fs::read_to_string(plot)?.contains("agreement with the full model"));
    let thresholds = Thresholds::read(&output)?;
    let tail = Tail::start(&tiny_llama(), &[]).await?;
    let digest = connect(&tail.url(), 0)
        .await?
        .manifest()
        .model_digest
        .clone();
    thresholds.check_models(&digest, &load(local.path())?.model_digest()?)?;

    // The command takes them, for this pair only.
    let generate = |local: &Path| {
        Command::new(program("edge-lite"))
            .args([
                "generate",
                "--tail",
                &tail.url(),
                "--split-layer",
                "0",
                "--prompt",
                "The sea",
                "--max-tokens",
                "3",
            ])
            .arg("--cache-dir")
            .arg(artifact_cache_dir())
            .arg("--local")
            .arg(local)
            .arg("--routing")
            .arg(&output)
            .stdin(Stdio::null())
            .output()
            .context("edge-lite runs")
    };
    let answered = generate(local.path())?;
    assert!(
        answered.status.success(),
        "{}",
        String::from_utf8_lossy(&answered.stderr)
    );
    let other = tempfile::tempdir()?;
    for file in std::fs::read_dir(local.path())? {
        let file = file?;
        std::fs::copy(file.path(), other.path().join(file.file_name()))?;
    }
    // Another constant is another model.
    let config = std::fs::read_to_string(other.path().join("config.json"))?;
    let changed = config.replace("1e-05", "2e-05");
    assert_ne!(config, changed);
    std::fs::write(other.path().join("config.json"), changed)?;
    let refused = generate(other.path())?;
    assert!(!refused.status.success());
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(error.contains("calibrate again"), "{error}");
    Ok(())
}
