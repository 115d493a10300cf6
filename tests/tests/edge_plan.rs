//! Profiles and plans, as a user asks for them: with real processes and a real model.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use anyhow::{Context as _, Result};
use e2e::device::{finish, prose, request, unsplit};
use e2e::program::program;
use e2e::tail::Tail;
use e2e::{PATIENCE, smollm2};
use edge_lite::{Prompt, Report, Route, SamplingParams, WeightDtype};
use serde_json::Value;

fn edge_lite(cache_dir: &Path, arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(program("edge-lite"))
        .args(["--threads", "1"])
        .args(arguments)
        .arg("--cache-dir")
        .arg(cache_dir)
        .output()?)
}

/// What it printed, where it went well.
fn stdout(cache_dir: &Path, arguments: &[&str]) -> Result<String> {
    let output = edge_lite(cache_dir, arguments)?;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    Ok(String::from_utf8(output.stdout)?)
}

fn json(cache_dir: &Path, arguments: &[&str]) -> Result<Value> {
    let arguments = [arguments, &["--format", "json"]].concat();
    Ok(serde_json::from_str(&stdout(cache_dir, &arguments)?)?)
}

fn stored_profiles(cache_dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    let files = std::fs::read_dir(cache_dir.join("profiles"))?;
    Ok(files
        .map(|file| Ok(file?.path()))
        .collect::<std::io::Result<_>>()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_tells_of_the_device_the_layers_and_the_link() -> Result<()> {
    let tail = Tail::start(&smollm2(), &["--head-quantizations", "none,q8_0"]).await?;
    let (cache, url) = (tempfile::tempdir()?, tail.url());
    let arguments = [
        "profile",
        "--tail",
        &url,
        "--head-quantizations",
        "none,q8_0",
        "--seconds",
        "1",
    ];
    let profile = json(cache.path(), &arguments)?;
    assert_eq!(profile["version"], 2);
    assert_eq!(profile["threads"], 1);
    assert_eq!(profile["place"], "cpu");
    assert!(profile["device"]["memory_available_bytes"].as_u64() > Some(0));
    let layers = profile["layers"].as_array().context("layers")?;
    assert_eq!(layers.len(), 2);
    for layer in layers {
        for (list, least) in [("decode", 1), ("prefill", 1)] {
            let times = layer[list].as_array().context("times")?;
            assert!(times.len() >= least, "{layer}");
            assert!(
                times.iter().all(|time| time["ms"].as_f64() > Some(0.0)),
                "{layer}"
            );
        }
    }
    let link = &profile["tails"][0]["link"];
    for field in [
        "rtt_ms",
        "min_rtt_ms",
        "open_ms",
        "up_bits_per_second",
        "down_bits_per_second",
    ] {
        assert!(link[field].as_f64() > Some(0.0), "{field}: {link}");
    }
    let stored = stored_profiles(cache.path())?;
    assert_eq!(stored.len(), 1);
    let text = stdout(cache.path(), &arguments[..3])?;
    for part in [
        "memory",
        "power",
        "one row behind",
        "head quantisation q8_0",
        &url,
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert_eq!(stored_profiles(cache.path())?, stored);
    Ok(())
}

#[test]
fn a_model_that_is_here_is_measured_without_a_tail() -> Result<()> {
    let cache = tempfile::tempdir()?;
    let model = smollm2().display().to_string();
    let arguments = ["profile", "--model", &model, "--seconds", "1"];
    let profile = json(cache.path(), &arguments)?;
    let lm_head = &profile["layers"][0]["lm_head"];
    assert!(lm_head["one_row_ms"].as_f64() > Some(0.0), "{profile}");
    assert_eq!(stored_profiles(cache.path())?.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_names_every_alternative_and_is_what_then_runs() -> Result<()> {
    let tail = Tail::start(&smollm2(), &["--on-device-answers"]).await?;
    let (cache, url) = (tempfile::tempdir()?, tail.url());
    let planned = json(cache.path(), &["plan", "--tail", &url, "--explain"])?;
    let alternatives = planned["by_split_layer"]
        .as_array()
        .context("alternatives")?;
    assert_eq!(alternatives.len(), 31, "{planned}");
    let total = |alternative: &Value| alternative["total_ms"].as_f64().unwrap();
    let best = total(&planned["best"]);
    assert!(
        alternatives
            .iter()
            .all(|alternative| best <= 1.1 * total(alternative))
    );
    let text = stdout(cache.path(), &["plan", "--tail", &url, "--explain"])?;
    assert!(text.contains("alternatives compared") && text.contains("predicted: first token"));
    assert_eq!(
        text.lines().filter(|line| line.ends_with('<')).count(),
        1,
        "{text}"
    );

    // So dear that nothing is left to the tail.
    let dear = [
        "generate",
        "--tail",
        &url,
        "--split-layer",
        "plan",
        "--objective",
        "cost=1000000",
        "--prompt",
        "Hi",
        "--max-tokens",
        "4",
    ];
    let report: Report = serde_json::from_value(json(cache.path(), &dear)?)?;
    assert_eq!((report.route, report.split_layer), (Route::Device, 30));
    assert_eq!(report.token_ids.len(), 4);
    Ok(())
}

/// Milliseconds of latency that a millisecond of the tail is worth. So many that what a busy machine adds to every step is
/// little beside it.
const PRICE: u32 = 19;

/// What a row of a prompt and a row of an answer cost the tail, a layer, once they are apart: while other tests keep the
/// machine busy, a prompt may look as dear as an answer, and the tail is measured again.
async fn row_costs_us(cache_dir: &Path, tail: &Tail) -> Result<(f64, f64)> {
    let late = Instant::now() + PATIENCE;
    loop {
        let (_, load) = tail.get("/v1/load").await?;
        let load: Value = serde_json::from_str(&load)?;
        let cost_us = |name: &str| load["costs"][name].as_f64().context("a cost");
        let (prompt, answer) = (
            cost_us("prefill_row_layer_us")?,
            cost_us("decode_row_layer_us")?,
        );
        if 2.0 * prompt < answer {
            return Ok((prompt, answer));
        }
        assert!(Instant::now() < late, "{load}");
        let url = tail.url();
        stdout(cache_dir, &["profile", "--tail", &url, "--seconds", "1"])?;
    }
}

/// Makes the stored profile say that layers cost this device next to nothing, and that a row of hidden states takes the
/// uplink next to nothing, too, or, where it is slow, longer than the tail takes for a row of the prompt, and less than it takes for one of the answer, both at their
/// [`PRICE`].
async fn pretend_an_uplink(cache_dir: &Path, tail: &Tail, is_slow: bool) -> Result<()> {
    let (prompt, answer) = row_costs_us(cache_dir, tail).await?;
    let row_us = if is_slow {
        (prompt * answer).sqrt()
    } else {
        prompt / 4.0
    };
    let row_ms = f64::from(1 + PRICE) * 30.0 * row_us / 1e3;
    let file = stored_profiles(cache_dir)?.pop().context("a profile")?;
    let mut profile: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    profile["tails"][0]["link"]["up_bits_per_second"] = (576.0 * 4.0 * 8e3 / row_ms).into();
    for list in ["decode", "prefill"] {
        let times = profile["layers"][0][list].as_array_mut();
        for time in times.context("times")? {
            time["ms"] = 1e-6.into();
        }
    }
    std::fs::write(&file, serde_json::to_vec(&profile)?)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_that_is_planned_as_token_ids_goes_up_so_and_no_token_changes() -> Result<()> {
    let tail = Tail::start(&smollm2(), &["--codecs", "f32"]).await?;
    let (cache, url) = (tempfile::tempdir()?, tail.url());
    stdout(cache.path(), &["profile", "--tail", &url, "--seconds", "1"])?;
    let Prompt::Raw(prompt) = prose(3000)? else {
        panic!("prose is raw")
    };
    let objective = format!("cost={PRICE}");
    let objective = ["--objective", &objective, "--answer-tokens", "1000"];
    let planned = [
        &["plan", "--tail", &url, "--prompt-tokens", "700"][..],
        &objective,
    ]
    .concat();
    let generated = [
        &["generate", "--tail", &url, "--raw", "--prompt", &prompt][..],
        &["--ignore-end-of-turn", "--max-tokens", "12"],
        &["--split-layer", "plan"],
        &objective,
    ]
    .concat();
    let request = request(Prompt::Raw(prompt.clone()), 12, SamplingParams::default());
    let model = unsplit(WeightDtype::Native).await?;
    let expected = finish(model.generate(request).await?).await?.report;
    for (named, form) in [
        ("auto", "token_ids"),
        ("token-ids", "token_ids"),
        ("hidden-states", "hidden_states"),
    ] {
        // What was generated before has told the tail and the link other times.
        pretend_an_uplink(cache.path(), &tail, form == "token_ids").await?;
        let named = ["--prefill", named];
        let plan = json(cache.path(), &[&planned, &named[..]].concat())?;
        let best = &plan["best"];
        assert_eq!(best["prefill"], form, "{plan}");
        let report = json(cache.path(), &[&generated, &named[..]].concat())?;
        let report: Report = serde_json::from_value(report)?;
        assert_eq!(report.route, Route::Split);
        assert_eq!(
            Some(report.split_layer as u64),
            best["split_layer"].as_u64()
        );
        let of_prompt = report.prompt_tokens as u64;
        let by_token_ids = if form == "token_ids" { of_prompt } else { 0 };
        assert_eq!(report.token_id_positions, by_token_ids);
        assert_eq!(report.token_ids, expected.token_ids);
    }
    pretend_an_uplink(cache.path(), &tail, true).await?;
    let explained = stdout(cache.path(), &[&planned, &["--explain"][..]].concat())?;
    assert!(explained.contains("the prompt as token ids"), "{explained}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_of_a_later_version_says_what_to_do() -> Result<()> {
    let tail = Tail::start(&smollm2(), &[]).await?;
    let (cache, url) = (tempfile::tempdir()?, tail.url());
    let arguments = ["plan", "--tail", &url];
    stdout(cache.path(), &arguments)?;
    let file = stored_profiles(cache.path())?.pop().context("a profile")?;
    std::fs::write(&file, r#"{"version":99}"#)?;
    let output = edge_lite(cache.path(), &arguments)?;
    let error = String::from_utf8(output.stderr)?;
    assert!(!output.status.success());
    for part in [
        "version 99",
        "delete the file",
        file.to_str().context("UTF-8")?,
    ] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    Ok(())
}
