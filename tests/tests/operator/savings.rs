//! Savings of real tails, under kills of tails, pods and operators.

use anyhow::{Context as _, Result, ensure};
use e2e::operator::{Operator, OperatorOptions};
use headway_operator::crd::status::Savings;
use serde_json::json;

use crate::specs::{merged, minimal};
use crate::stage::{Stage, pods_of};
use crate::wait::eventually;
use crate::world::World;

const NAME: &str = "smol";
const TAILS: usize = 2;
/// Each with one tail killed; every third also with an operator killed.
const ROUNDS: usize = 9;

pub async fn exactly_once(world: World) -> Result<()> {
    let namespace = world.namespace("savings").await?;
    world.delete_lease().await?;
    let mut operator = start(&world, "savings-0").await?;
    let spec = json!({
        "replicas": TAILS,
        "autoscaling": {"provider": "none"},
        "split": {"min": 0},
        "pricing": {"gpuHour": "3600", "currency": "EUR"},
    });
    world
        .create(&namespace, NAME, &merged(minimal(), &spec))
        .await?;
    world.ready(&namespace, NAME).await?;
    let mut stages = Vec::new();
    for pod in pods_of(&world, &namespace, NAME).await? {
        stages.push(Stage::open(&world, &namespace, &pod).await?);
    }
    ensure!(stages.len() == TAILS, "{} pods", stages.len());

    let (mut tokens, mut answers) = (0, 0);
    for round in 0..ROUNDS {
        for stage in &stages {
            tokens += stage.answer().await?;
            answers += 1;
        }
        let chosen = round % TAILS;
        stages[chosen].kill_and_restart().await?;
        if round % 3 == 2 {
            let index = 1 + round / 3;
            operator.kill().await?;
            world.delete_lease().await?;
            operator = start(&world, &format!("savings-{index}")).await?;
        }
    }
    counted(&world, &namespace, tokens, answers).await?;

    // One pod leaves, with its last words, and another comes.
    let leaving = stages.remove(0);
    tokens += leaving.answer().await?;
    answers += 1;
    let left = leaving.pod.clone();
    leaving.leave().await?;
    let newcomer = eventually("the pod is replaced", async || {
        let pods = pods_of(&world, &namespace, NAME).await?;
        let known = |pod: &String| *pod == left || stages.iter().any(|stage| stage.pod == *pod);
        let mut new = pods.into_iter().filter(|pod| !known(pod));
        new.next().context("no new pod")
    })
    .await?;
    stages.push(Stage::open(&world, &namespace, &newcomer).await?);
    for stage in &stages {
        tokens += stage.answer().await?;
        answers += 1;
    }
    let savings = counted(&world, &namespace, tokens, answers).await?;
    ensure!(savings.unread_endings == 0, "{}", json!(savings));
    ensure!(
        savings.used_gpu_seconds > 0.0 && savings.head_layers_gpu_seconds > 0.0,
        "{}",
        json!(savings)
    );
    shown(&world, &namespace, &operator, &savings).await?;
    quiet(&operator).await?;

    // Figures stay while nobody adds any.
    let log = operator.log();
    let ended = operator.terminate().await?;
    ensure!(ended.success(), "after SIGTERM: {ended}\n{log}");
    drop(stages);
    counted(&world, &namespace, tokens, answers).await?;
    let operator = start(&world, "savings-last").await?;
    world.delete(&namespace, NAME).await?;
    operator.terminate().await?;
    Ok(())
}

async fn start(world: &World, identity: &str) -> Result<Operator> {
    let options = OperatorOptions {
        identity,
        proxy: None,
        otlp_endpoint: None,
        scrape_seconds: 1,
        wake_address: None,
    };
    world.start_with(options).await
}

/// Waits until the status says what the devices were given, and no more.
async fn counted(world: &World, namespace: &str, tokens: i64, answers: i64) -> Result<Savings> {
    let api = world.splitmodels(namespace);
    let waited = eventually("the status says what devices were given", async || {
        let status = api.get(NAME).await?.status.context("a status")?;
        let savings = status.savings.context("no savings yet")?;
        ensure!(
            savings.tokens.tails == tokens && savings.answers.split == answers,
            "devices got {tokens} tokens in {answers} answers: {}",
            json!(savings)
        );
        Ok(savings)
    });
    waited.await
}

/// The table of `kubectl`, and the metrics.
async fn shown(
    world: &World,
    namespace: &str,
    operator: &Operator,
    savings: &Savings,
) -> Result<()> {
    let table = world
        .kubectl(&["get", "splitmodels", "--namespace", namespace])
        .await?;
    for word in ["USED", "SAVED", "SAVED%", "MONEY", "EUR"] {
        ensure!(table.contains(word), "no {word} in\n{table}");
    }
    eventually("metrics say what the status says", async || {
        let own = format!("namespace=\"{namespace}\"");
        let used = operator
            .metric("headway_operator_used_gpu_seconds_total", &own)
            .await?;
        let tokens = operator
            .metric("headway_operator_output_tokens_total", &own)
            .await?;
        let right = (used - savings.used_gpu_seconds).abs() < 1e-6;
        ensure!(right && tokens > 0.0, "{used} s and {tokens} tokens");
        Ok(())
    })
    .await
}

/// Tails that do nothing are asked, and nothing is written.
async fn quiet(operator: &Operator) -> Result<()> {
    let asked = async || {
        operator
            .metric("headway_operator_scrapes_total", "ok")
            .await
    };
    let written = async || {
        operator
            .metric("headway_operator_status_writes_total", "")
            .await
    };
    let (asked_before, written_before) = (asked().await?, written().await?);
    eventually("tails are asked", async || {
        let asked = asked().await? - asked_before;
        ensure!(asked >= 10.0, "{asked} times");
        Ok(())
    })
    .await?;
    let written = written().await? - written_before;
    ensure!(written == 0.0, "{written} writes");
    Ok(())
}
