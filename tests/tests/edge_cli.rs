//! The command `edge-lite`, as a user runs it.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result};
use e2e::program::program;
use e2e::tail::Tail;
use e2e::{artifact_cache_dir, golden_dir, smollm2};
use edge_lite::{FinishReason, Report, Route};

/// Runs the command to its end. `input` is what a user types.
fn edge_lite(arguments: &[&str], input: &str) -> Result<Output> {
    let mut child = Command::new(program("edge-lite"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Dropped at the end of the statement, which is the end of the input. A few lines fit the pipe.
    child
        .stdin
        .take()
        .context("stdin is a pipe")?
        .write_all(input.as_bytes())?;
    Ok(child.wait_with_output()?)
}

/// What it printed, where it went well.
fn stdout(arguments: &[&str], input: &str) -> Result<String> {
    let output = edge_lite(arguments, input)?;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    Ok(String::from_utf8(output.stdout)?)
}

/// A command line on a tail, or with the model here.
struct Engine(Vec<String>);

impl Engine {
    fn tail(tail: &Tail, split_layer: &str) -> Self {
        let cache_dir = artifact_cache_dir().display().to_string();
        let url = tail.url();
        Self(
            [
                "--tail",
                &url,
                "--split-layer",
                split_layer,
                "--cache-dir",
                &cache_dir,
            ]
            .map(str::to_owned)
            .into(),
        )
    }

    fn here() -> Self {
        Self(vec!["--model".to_owned(), smollm2().display().to_string()])
    }

    /// `edge-lite generate … --format json`: the report, and its JSON.
    fn generate(&self, options: &[&str]) -> Result<(Report, serde_json::Value)> {
        let engine = self.0.iter().map(String::as_str);
        let arguments = ["generate", "--format", "json"].into_iter().chain(engine);
        let text = stdout(
            &arguments.chain(options.iter().copied()).collect::<Vec<_>>(),
            "",
        )?;
        assert_eq!(text.lines().count(), 1, "one object on one line: {text}");
        Ok((serde_json::from_str(&text)?, serde_json::from_str(&text)?))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generate_prints_one_object_that_accounts_for_the_answer() -> Result<()> {
    let tail = Tail::start(&smollm2(), &[]).await?;
    let options = ["--prompt", "What is the sea?", "--max-tokens", "12"];
    let (expected, _) = Engine::here().generate(&options)?;
    assert_eq!((expected.route, expected.split_layer), (Route::Device, 30));
    assert_eq!((expected.bytes_up, expected.bytes_down), (0, 0));
    for (split_layer, route, layers) in [
        ("0", Route::Cloud, 0),
        ("10", Route::Split, 10),
        ("auto", Route::Split, 10),
    ] {
        let (report, json) = Engine::tail(&tail, split_layer).generate(&options)?;
        for key in [
            "text",
            "token_ids",
            "prompt_tokens",
            "split_layer",
            "route",
            "timings_ms",
            "bytes_up",
            "bytes_down",
        ] {
            assert!(!json[key].is_null(), "{key} is not in {json}");
        }
        assert_eq!((report.route, report.split_layer), (route, layers));
        assert_eq!(
            (report.token_ids.len(), report.finish_reason),
            (12, FinishReason::Length)
        );
        assert_eq!(
            (&report.text, &report.token_ids),
            (&expected.text, &expected.token_ids)
        );
        assert_eq!(report.prompt_tokens, expected.prompt_tokens);
        assert!(report.bytes_up > 0 && report.bytes_down > 0);
        let timings = report.timings_ms;
        assert!(
            timings.first_token > 0.0 && timings.total >= timings.first_token + timings.decode,
            "{timings:?}"
        );
    }
    Ok(())
}

#[test]
fn a_raw_prompt_goes_without_the_chat_template() -> Result<()> {
    let options = ["--prompt", "1, 2, 3, 4, 5,", "--max-tokens", "8"];
    let (chat, _) = Engine::here().generate(&options)?;
    let (raw, _) = Engine::here().generate(&[&options[..], &["--raw"]].concat())?;
    // The template adds a system message and turns.
    assert!(
        raw.prompt_tokens + 10 < chat.prompt_tokens,
        "{} {}",
        raw.prompt_tokens,
        chat.prompt_tokens
    );
    assert!(raw.text.contains("6, 7"), "{}", raw.text);
    Ok(())
}

#[test]
fn a_stop_string_ends_the_answer_and_is_not_in_it() -> Result<()> {
    let options = ["--raw", "--prompt", "1, 2, 3, 4, 5,", "--max-tokens", "40"];
    let (whole, _) = Engine::here().generate(&options)?;
    let (report, _) = Engine::here()
        .generate(&[&options[..], &["--stop", "nowhere", "--stop", "8, 9"]].concat())?;
    let before = whole.text.split_once("8, 9").context("the model counts")?.0;
    assert_eq!(
        (report.text.as_str(), report.finish_reason),
        (before, FinishReason::Stop)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_with_emoji_comes_whole_piece_by_piece() -> Result<()> {
    let tail = Tail::start(&smollm2(), &[]).await?;
    let prompt = "Repeat: 🌊🌊🌊 día 海 🌊🌊🌊 día 海 🌊🌊🌊 día 海 🌊🌊🌊 día";
    let options = ["--raw", "--prompt", prompt, "--max-tokens", "24"];
    let (expected, _) = Engine::here().generate(&options)?;
    // A wave is several tokens, none of them a character.
    assert!(
        expected.text.contains('🌊') && expected.text.contains('海'),
        "{}",
        expected.text
    );
    let engine = Engine::tail(&tail, "10").0;
    let arguments = ["generate"]
        .into_iter()
        .chain(engine.iter().map(String::as_str))
        .chain(options);
    // Invalid UTF-8 would be an error here.
    let streamed = stdout(&arguments.collect::<Vec<_>>(), "")?;
    assert_eq!(streamed, format!("{}\n", expected.text));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pull_fetches_what_the_split_needs_and_no_more() -> Result<()> {
    let tail = Tail::start(&smollm2(), &[]).await?;
    let cache = tempfile::tempdir()?;
    let cache_dir = cache.path().to_str().context("UTF-8")?;
    let url = tail.url();
    let arguments = [
        "pull",
        "--tail",
        &url,
        "--split-layer",
        "2",
        "--cache-dir",
        cache_dir,
    ];
    let listed = stdout(&arguments, "")?;
    let mut lines = listed.lines();
    assert!(
        lines.next().context("a first line")?.contains(" sha256:"),
        "{listed}"
    );
    let mut parts = Vec::new();
    for line in lines {
        let [part, bytes, digest, path] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("four columns, not {line:?}")
        };
        assert!(
            digest.starts_with("sha256:") && path.starts_with(cache_dir),
            "{line}"
        );
        assert_eq!(std::fs::metadata(path)?.len(), bytes.parse::<u64>()?);
        parts.push(part.to_owned());
    }
    assert_eq!(parts, ["embedding", "layer-0", "layer-1"]);
    let again = edge_lite(&arguments, "")?;
    assert_eq!(String::from_utf8(again.stdout)?, listed);
    let progress = String::from_utf8(again.stderr)?;
    assert!(
        progress.lines().all(|line| line.ends_with("(cached)")),
        "{progress}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chat_remembers_the_conversation_until_it_is_reset() -> Result<()> {
    let tail = Tail::start(&smollm2(), &[]).await?;
    let engine = Engine::tail(&tail, "10").0;
    let arguments = ["chat", "--max-tokens", "16"]
        .into_iter()
        .chain(engine.iter().map(String::as_str));
    let arguments: Vec<&str> = arguments.collect();
    let turn = "What is the capital of France?\n";
    let output = edge_lite(&arguments, &format!("{turn}{turn}/reset\n{turn}/quit\n"))?;
    assert!(output.status.success());
    let error = String::from_utf8(output.stderr)?;
    let answers = String::from_utf8(output.stdout)?;
    let [first, _, third] = answers
        .lines()
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()[..]
    else {
        panic!("three answers: {answers}")
    };
    assert_eq!(
        third, first,
        "nothing is left of what was said before a reset"
    );
    // "tokens         37 of prompt, 16 of answer, …"
    let prompts = error.lines().filter_map(|line| {
        let (tokens, _) = line.split_once(" of prompt")?;
        tokens.split_whitespace().last()?.parse().ok()
    });
    let [first, second, third] = prompts.collect::<Vec<usize>>()[..] else {
        panic!("three answers: {error}")
    };
    assert!(
        second > first,
        "the second turn comes after the first: {error}"
    );
    assert_eq!(
        third, first,
        "nothing is left of what was said before a reset"
    );
    Ok(())
}

fn eval(text: &Path, options: &[&str]) -> Result<String> {
    let (model, text) = (smollm2(), text.to_str().context("UTF-8")?);
    let model = model.to_str().context("UTF-8")?;
    let fixed = [
        "eval",
        "--model",
        model,
        "--text",
        text,
        "--max-tokens",
        "96",
        "--window",
        "48",
    ];
    stdout(&[&fixed[..], options].concat(), "")
}

#[test]
fn eval_shows_that_only_lossy_settings_lose() -> Result<()> {
    let text = golden_dir().join("eval_text.txt");
    let settings = [
        "--split-layers",
        "10,20",
        "--codecs",
        "f32,int4",
        "--head-quantizations",
        "none,q4_k",
    ];
    let table: serde_json::Value = serde_json::from_str(&eval(
        &text,
        &[&settings[..], &["--format", "json"]].concat(),
    )?)?;
    let rows = table["rows"].as_array().context("rows")?;
    assert_eq!(rows.len(), 8);
    for row in rows {
        let is_lossless = row["codec"] == "f32" && row["head_quantization"] == "none";
        let kl = row["mean_kl"].as_f64().context("mean_kl")?;
        assert_eq!(kl == 0.0, is_lossless, "{row}");
        if is_lossless {
            assert_eq!(row["top1_agreement_percent"], 100.0);
            assert_eq!(row["perplexity"], table["reference_perplexity"]);
        }
    }
    let markdown = eval(&text, &["--split-layers", "10"])?;
    let row = markdown.lines().last().context("a row")?;
    assert!(row.contains("| 100.00 % | 0.000e0 |"), "{markdown}");
    Ok(())
}
