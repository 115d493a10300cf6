//! A device without its network: the answer completes or fails with a clear error, and nothing hangs. The tail is not
//! there before an answer or goes in the middle, either side sleeps, the address changes, the clock jumps.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::device::{
    Answer, chat, finish, finish_after, first_tokens, lossless, request, sampled, unsplit,
};
use e2e::forwarder::Forwarder;
use e2e::program::program;
use e2e::tail::Tail;
use e2e::{PATIENCE, artifact_cache_dir, smollm2};
use edge_lite::config::ReconnectPolicy;
use edge_lite::{
    Client, ClientConfig, Error, GenerateRequest, LocalModel, Report, Route, RouteMode,
    RouteReason, Router, RouterConfig, TailError, WeightDtype,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

/// Longer than what a generation holds for its caller, so that it is still in use when a few tokens were read.
const MAX_TOKENS: usize = 120;

/// Short limits: what would otherwise take a minute to find out.
fn short(split_layer: usize) -> ClientConfig {
    ClientConfig {
        connect_timeout: Duration::from_secs(2),
        result_timeout: Duration::from_secs(2),
        ..lossless(split_layer)
    }
}

fn router_config(mode: RouteMode) -> RouterConfig {
    RouterConfig {
        mode,
        patience: Duration::from_secs(2),
        min_search_wait: Duration::from_millis(10),
        max_search_wait: Duration::from_millis(50),
        ..RouterConfig::default()
    }
}

fn question() -> GenerateRequest {
    request(chat("Tell me about the moon."), MAX_TOKENS, sampled(5))
}

/// The real model here, and its undisturbed answer.
async fn alone() -> Result<(LocalModel, Answer)> {
    let local = unsplit(WeightDtype::Native).await?;
    let answer = finish(local.generate(question()).await?).await?;
    Ok((local, answer))
}

/// An address that nobody listens on.
async fn nobody() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await?
        .local_addr()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_tail_and_a_local_model_the_error_says_so() -> Result<()> {
    let url = format!("ws://{}", nobody().await?);
    let error = Router::connect(&url, short(0), None, router_config(RouteMode::Auto))
        .await
        .err();
    assert!(
        matches!(&error, Some(Error::Tail(TailError::Http { .. }))),
        "{error:?}"
    );
    assert!(
        error
            .context("an error")?
            .to_string()
            .contains(&url.replace("ws:", "http:"))
    );

    // Gone after it was there.
    let tail = Tail::start(&smollm2(), &[]).await?;
    let config = ClientConfig {
        reconnect: ReconnectPolicy {
            max_attempts: 2,
            ..ReconnectPolicy::default()
        },
        ..short(0)
    };
    let client = Client::connect(&tail.url(), config).await?;
    let router = Router::new(Some(client), None, router_config(RouteMode::Auto)).await?;
    tail.kill().await?;
    let error = finish(router.generate(question()).await?).await.err();
    assert!(
        matches!(
            error,
            Some(Error::Tail(TailError::GaveUp { attempts: 2, .. }))
        ),
        "{error:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_that_comes_later_is_found() -> Result<()> {
    let (local, expected) = alone().await?;
    let address = nobody().await?;
    let url = format!("ws://{address}");
    let router =
        Router::connect(&url, short(10), Some(local), router_config(RouteMode::Tail)).await?;
    let answer = finish(router.generate(question()).await?).await?;
    assert_eq!(answer.tokens, expected.tokens);
    assert_eq!(answer.report.segments[0].reason, RouteReason::TailAway);
    assert_eq!(answer.report.route, Route::Device);

    let _tail = Tail::start_on(address, &smollm2(), &[]).await?;
    router.wait_for_tail().await;
    let answer = finish(router.generate(question()).await?).await?;
    assert_eq!(answer.tokens, expected.tokens);
    assert_eq!(answer.report.route, Route::Split);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_that_is_known_to_be_away_is_not_asked() -> Result<()> {
    let (local, expected) = alone().await?;
    let tail = Tail::start(&smollm2(), &[]).await?;
    let forwarder = Forwarder::start(tail.address()).await?;
    // Looked for once an hour: no check is taken for a request's.
    let config = RouterConfig {
        min_search_wait: Duration::from_secs(3600),
        ..router_config(RouteMode::Tail)
    };
    let router = Router::connect(&forwarder.url(), short(0), Some(local), config).await?;
    forwarder.point_to(nobody().await?);
    forwarder.cut();
    let answer = finish(router.generate(question()).await?).await?;
    assert_eq!(answer.tokens, expected.tokens);
    let lost = &answer.report.segments[0].reason;
    assert!(matches!(lost, RouteReason::TailLost { .. }), "{lost:?}");

    // Whoever asks now is seen here.
    let watched = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    forwarder.point_to(watched.local_addr()?);
    for _ in 0..3 {
        let answer = finish(router.generate(question()).await?).await?;
        assert_eq!(answer.report.segments[0].reason, RouteReason::TailAway);
        assert_eq!(answer.tokens, expected.tokens);
    }
    let ours = TcpStream::connect(watched.local_addr()?).await?;
    let (_, first) = watched.accept().await?;
    assert_eq!(first, ours.local_addr()?, "somebody asked before");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_that_sleeps_is_left_and_found_again() -> Result<()> {
    let (local, expected) = alone().await?;
    let tail = Tail::start(&smollm2(), &[]).await?;
    let router = Router::connect(
        &tail.url(),
        short(10),
        Some(local),
        router_config(RouteMode::Tail),
    )
    .await?;
    let mut generation = router.generate(question()).await?;
    let mut tokens = first_tokens(&mut generation, 2).await?;
    tail.fall_asleep()?;
    while router.tail_is_here() {
        tokens.append(&mut first_tokens(&mut generation, 1).await?);
    }
    let answer = finish_after(tokens, generation).await?;
    assert_eq!(answer.tokens, expected.tokens);
    assert!(
        matches!(
            answer.report.segments[1].reason,
            RouteReason::TailLost { .. }
        ),
        "{:?}",
        answer.report.segments
    );
    tail.wake()?;
    router.wait_for_tail().await;
    let answer = finish(router.generate(question()).await?).await?;
    assert_eq!(
        (answer.report.route, answer.tokens),
        (Route::Split, expected.tokens)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_that_sleeps_for_ever_is_an_error_where_nothing_else_answers() -> Result<()> {
    let tail = Tail::start(&smollm2(), &[]).await?;
    let config = ClientConfig {
        reconnect: ReconnectPolicy {
            max_attempts: 1,
            ..ReconnectPolicy::default()
        },
        ..short(0)
    };
    let client = Client::connect(&tail.url(), config).await?;
    let mut generation = client.generate(question()).await?;
    let tokens = first_tokens(&mut generation, 2).await?;
    tail.fall_asleep()?;
    let error = finish_after(tokens, generation).await.err();
    assert!(
        matches!(error, Some(Error::Tail(TailError::GaveUp { .. }))),
        "{error:?}"
    );
    tail.wake()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_leads_to_another_address_costs_no_token() -> Result<()> {
    let (_, expected) = alone().await?;
    let (before, after) = (
        Tail::start(&smollm2(), &[]).await?,
        Tail::start(&smollm2(), &[]).await?,
    );
    let forwarder = Forwarder::start(before.address()).await?;
    for split_layer in [0, 10] {
        forwarder.point_to(before.address());
        let client = Client::connect(&forwarder.url(), short(split_layer)).await?;
        let mut generation = client.generate(question()).await?;
        let tokens = first_tokens(&mut generation, 2).await?;
        // The old connection is dead, and nobody says so.
        forwarder.point_to(after.address());
        forwarder.fall_silent();
        let answer = finish_after(tokens, generation).await?;
        assert_eq!(answer.tokens, expected.tokens, "split layer {split_layer}");
        assert!(answer.report.reconnects >= 1, "split layer {split_layer}");
    }
    assert!(after.metric("headway_tail_sessions_resumed_total").await? >= 2.0);
    Ok(())
}

/// `edge-lite generate` of the question by way of `url`, put to sleep after its first text. `during` happens while it
/// sleeps.
async fn sleeping_device(
    url: &str,
    during: impl AsyncFnOnce() -> Result<()>,
) -> Result<(String, String)> {
    let tokens = MAX_TOKENS.to_string();
    let mut child = Command::new(program("edge-lite"))
        .args([
            "generate",
            "--tail",
            url,
            "--split-layer",
            "10",
            "--codec",
            "f32",
        ])
        .args([
            "--head-quantization",
            "none",
            "--max-tokens",
            &tokens,
            "--ignore-end-of-turn",
        ])
        .args([
            "--prompt",
            "Write the first line of a poem, then a new line, and so on.",
            "--cache-dir",
        ])
        .arg(artifact_cache_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdout = BufReader::new(child.stdout.take().context("a stdout")?);
    let mut text = Vec::new();
    stdout.read_until(b' ', &mut text).await?;
    let id = Pid::from_raw(i32::try_from(child.id().context("it runs")?)?);
    kill(id, Signal::SIGSTOP)?;
    during().await?;
    kill(id, Signal::SIGCONT)?;
    let ended = async {
        stdout.read_to_end(&mut text).await?;
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(PATIENCE, ended)
        .await
        .context("it hangs")??;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(output.status.success(), "{error}");
    Ok((String::from_utf8(text)?, error))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_slept_goes_on() -> Result<()> {
    let tail = Tail::start(&smollm2(), &[]).await?;
    let forwarder = Forwarder::start(tail.address()).await?;
    let (undisturbed, _) = sleeping_device(&tail.url(), async || Ok(())).await?;
    // The tail has another address when the device wakes, and the old connection is gone.
    let (text, _) = sleeping_device(&forwarder.url(), async || {
        forwarder.cut();
        Ok(())
    })
    .await?;
    assert_eq!(text, undisturbed);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_answers_without_its_tail() -> Result<()> {
    let url = format!("ws://{}", nobody().await?);
    let generate = |options: &[&str]| {
        Process::new(program("edge-lite"))
            .args([
                "generate",
                "--tail",
                &url,
                "--max-tokens",
                "4",
                "--format",
                "json",
                "--prompt",
                "Hi",
            ])
            .args(options)
            .stdin(Stdio::null())
            .output()
    };
    let model = smollm2();
    let model = model.to_str().context("a path in UTF-8")?;
    for options in [&["--local", model][..], &["--local", model, "--local-only"]] {
        let output = generate(options)?;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        let report: Report = serde_json::from_slice(&output.stdout)?;
        assert_eq!((report.route, report.token_ids.len()), (Route::Device, 4));
        let expected = if options.len() == 2 {
            RouteReason::TailAway
        } else {
            RouteReason::LocalOnly
        };
        assert_eq!(report.segments[0].reason, expected);
    }
    let output = generate(&[])?;
    assert!(!output.status.success());
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("no answer from"),
        "{output:?}"
    );
    Ok(())
}

/// Time on this device's path is measured by a clock that only goes forward. So a wall clock that jumps changes
/// nothing, and there is none to set in a test.
#[test]
fn no_part_of_the_path_reads_the_wall_clock() -> Result<()> {
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../edge-lite/src");
    let mut seen = 0;
    for part in [
        "answer",
        "client",
        "connection",
        "drafting",
        "generation",
        "liveness",
        "local",
        "on_device",
        "recovery",
        "router",
        "rows",
        "session",
        "tail_api",
    ] {
        let mut waiting = vec![sources.join(format!("{part}.rs"))];
        if sources.join(part).is_dir() {
            waiting.push(sources.join(part));
        }
        while let Some(path) = waiting.pop() {
            if path.is_dir() {
                for entry in std::fs::read_dir(&path)? {
                    waiting.push(entry?.path());
                }
                continue;
            }
            let text =
                std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            seen += 1;
            for clock in ["SystemTime", "UNIX_EPOCH", "chrono"] {
                assert!(!text.contains(clock), "{} reads {clock}", path.display());
            }
        }
    }
    assert!(seen > 20, "{seen} files");
    Ok(())
}
