//! The operator decides on the number of tails, from what real tails say of sessions that real devices hold.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use e2e::device::{connect, first_tokens, lossless, prose, request};
use e2e::operator::{Operator, OperatorOptions};
use e2e::tail::{exchange, http_status};
use edge_lite::{Client, Error, Generation, SamplingParams, TailError};
use headway_operator::crd::status::SplitModelStatus;
use headway_operator::kinds::OwnedKind;
use headway_operator::names;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::Api;
use serde_json::json;

use crate::objects;
use crate::specs::{merged, minimal};
use crate::stage::{Stage, pods_of};
use crate::wait::eventually;
use crate::world::World;

const NAME: &str = "smol";
const SPLIT_LAYER: usize = 10;
/// More than a generation holds for its caller: a session of which nobody reads stays open.
const MAX_TOKENS: usize = 400;
/// An address for documentation (RFC 5737): nothing is there, and Services may lead to it.
const ELSEWHERE: &str = "192.0.2.1";

/// 12 sessions where 5 a pod are aimed at give three; when they end, the pods with the fewest sessions go.
pub async fn up_and_down(world: World) -> Result<()> {
    let namespace = world.namespace("autoscaling").await?;
    world.delete_lease().await?;
    let operator = start(&world, "scaler", None).await?;
    let spec = json!({
        "tail": {"limits": {"sessions": 10}},
        "autoscaling": {
            "max": 3,
            "targets": {"sessionsPercent": 50, "queueDelayMs": 60_000},
            "windows": {"stableSeconds": 10, "panicSeconds": 2, "scaleDownDelaySeconds": 5},
        },
    });
    world
        .create(&namespace, NAME, &merged(minimal(), &spec))
        .await?;
    world.ready(&namespace, NAME).await?;
    let mut stages = open_all(&world, &namespace, Vec::new()).await?;
    let mut crowd = hold(&stages[0], 12).await?;
    desired(&world, &namespace, 3).await?;
    stages = open_all(&world, &namespace, stages).await?;
    ensure!(stages.len() == 3, "{} pods", stages.len());
    let couple = hold(&stages[1], 2).await?;
    let single = hold(&stages[2], 1).await?;

    // Twelve on one pod, and few on the others: those beyond the mean are to move.
    let pods: Api<Pod> = Api::namespaced(world.client(), &namespace);
    eventually("the full pod is told how many it should have", async || {
        let pod = pods.get(&stages[0].pod).await?;
        let target = pod.annotations().get(names::SESSION_TARGET_ANNOTATION);
        // The mean, of those that had answered by then.
        let target = target.and_then(|target| target.parse::<u32>().ok());
        ensure!(
            target.is_some_and(|target| (4..=7).contains(&target)),
            "{target:?}"
        );
        Ok(())
    })
    .await?;

    operator.kill().await?;
    world.delete_lease().await?;
    crowd.truncate(4);
    let operator = start(&world, "successor", None).await?;
    eventually("the successor has asked every tail twice", async || {
        let asked = operator
            .metric("headway_operator_scrapes_total", "ok")
            .await?;
        ensure!(asked >= 6.0, "{asked} answers");
        Ok(())
    })
    .await?;
    let kept = replicas(&world, &namespace).await?;
    ensure!(
        kept == 3,
        "{kept} pods after a restart: no past is not a quiet one"
    );

    desired(&world, &namespace, 2).await?;
    let left = [stages[0].pod.clone(), stages[1].pod.clone()];
    remaining(&world, &namespace, &left).await?;
    drop(single);
    drop(couple);
    desired(&world, &namespace, 1).await?;
    remaining(&world, &namespace, &left[..1]).await?;
    steady(&operator).await?;
    let events = world
        .kubectl(&["get", "events", "--namespace", &namespace])
        .await?;
    for word in ["ScaledUp", "ScaledDown", " tails: "] {
        ensure!(events.contains(word), "no {word} in\n{events}");
    }

    // A person's wish counts, whatever load there is.
    world
        .kubectl(&["scale", "sm/smol", "-n", &namespace, "--replicas=2"])
        .await?;
    desired(&world, &namespace, 2).await?;
    drop(crowd);
    world.delete(&namespace, NAME).await?;
    operator.terminate().await?;
    Ok(())
}

/// A model without sessions sleeps; whoever comes is told when to come back, and wakes it.
pub async fn sleep_and_wake(world: World) -> Result<()> {
    let namespace = world.namespace("sleep").await?;
    world.delete_lease().await?;
    let operator = start(&world, "night", Some(ELSEWHERE)).await?;
    let spec = json!({"autoscaling": {
        "min": 0,
        "windows": {"stableSeconds": 10, "panicSeconds": 2, "scaleDownDelaySeconds": 0},
    }});
    world
        .create(&namespace, NAME, &merged(minimal(), &spec))
        .await?;
    world.ready(&namespace, NAME).await?;
    let stages = open_all(&world, &namespace, Vec::new()).await?;
    let asleep = |status: &SplitModelStatus| {
        status.desired_replicas == Some(0)
            && status.replicas == 0
            && objects::has_condition(status, "Ready", "False", "ScaledToZero")
    };
    world
        .status(&namespace, NAME, "the model sleeps", asleep)
        .await?;
    drop(stages);
    let door = door(&world, &namespace).await?;

    // A health check of a load balancer is answered, and wakes nobody.
    let probe = b"GET /healthz HTTP/1.1\r\nHost: smol\r\n\r\n";
    let answer = exchange(door, probe).await?;
    ensure!(http_status(&answer) == Some(503), "{answer:?}");
    ensure!(
        replicas(&world, &namespace).await? == 0,
        "a probe woke the model"
    );

    // An operator that takes over answers at a place of its own.
    operator.kill().await?;
    world.delete_lease().await?;
    let operator = start(&world, "morning", Some(ELSEWHERE)).await?;
    let door = eventually("the new operator answers", async || {
        let door = self::door(&world, &namespace).await?;
        let answer = exchange(door, probe).await?;
        ensure!(http_status(&answer) == Some(503), "{answer:?}");
        Ok(door)
    })
    .await?;
    ensure!(
        replicas(&world, &namespace).await? == 0,
        "a restart woke the model"
    );

    let mut config = lossless(SPLIT_LAYER);
    config.reconnect.starting_deadline = std::time::Duration::ZERO;
    let came = Client::connect(&format!("ws://{door}"), config).await;
    let error = came.err().context("nobody but the operator is there")?;
    ensure!(
        matches!(error, Error::Tail(TailError::Starting { .. })),
        "{error:?}"
    );
    world.ready(&namespace, NAME).await?;
    eventually("the Service leads to the operator no more", async || {
        let slice = objects::owned(&world, &namespace, NAME, OwnedKind::EndpointSlice).await?;
        ensure!(slice.is_none(), "the slice is still there");
        Ok(())
    })
    .await?;
    let events = world
        .kubectl(&["get", "events", "--namespace", &namespace])
        .await?;
    for word in ["FellAsleep", "Woken", "0 to 1 tails"] {
        ensure!(events.contains(word), "no {word} in\n{events}");
    }
    world.delete(&namespace, NAME).await?;
    operator.terminate().await?;
    Ok(())
}

async fn start(world: &World, identity: &str, wake_address: Option<&str>) -> Result<Operator> {
    let options = OperatorOptions {
        identity,
        proxy: None,
        otlp_endpoint: None,
        scrape_seconds: 1,
        wake_address,
    };
    world.start_with(options).await
}

/// Load that stays as it is changes no object.
async fn steady(operator: &Operator) -> Result<()> {
    let counted = async || -> Result<(f64, f64)> {
        let asked = operator.metric("headway_operator_scrapes_total", "ok");
        let written = operator.metric("headway_operator_writes_total", "");
        Ok((asked.await?, written.await?))
    };
    let (asked, written) = counted().await?;
    let after = eventually("the tail is asked", async || {
        let (asked_after, after) = counted().await?;
        ensure!(asked_after - asked >= 5.0, "{asked_after} times");
        Ok(after)
    })
    .await?;
    ensure!(after == written, "{} writes", after - written);
    Ok(())
}

/// Gives every pod that has none a tail.
async fn open_all(world: &World, namespace: &str, mut stages: Vec<Stage>) -> Result<Vec<Stage>> {
    let wanted = usize::try_from(replicas(world, namespace).await?)?;
    let pods = eventually("the pods run", async || {
        let pods = pods_of(world, namespace, NAME).await?;
        ensure!(pods.len() == wanted, "{pods:?}");
        Ok(pods)
    })
    .await?;
    for pod in pods {
        if !stages.iter().any(|stage| stage.pod == pod) {
            stages.push(Stage::open(world, namespace, &pod).await?);
        }
    }
    Ok(stages)
}

/// Sessions that are open until they are dropped.
async fn hold(stage: &Stage, count: usize) -> Result<Vec<Generation>> {
    let client = connect(&stage.tail()?.url(), SPLIT_LAYER).await?;
    let request = request(prose(40)?, MAX_TOKENS, SamplingParams::default());
    let mut held = Vec::new();
    for _ in 0..count {
        let mut generation = client.generate(request.clone()).await?;
        first_tokens(&mut generation, 1).await?;
        held.push(generation);
    }
    Ok(held)
}

async fn replicas(world: &World, namespace: &str) -> Result<i64> {
    let deployment = objects::existing(world, namespace, NAME, OwnedKind::Deployment).await?;
    let replicas = deployment.data["spec"]["replicas"].as_i64();
    replicas.context("a number of pods")
}

async fn desired(world: &World, namespace: &str, count: i32) -> Result<()> {
    let is_right = |status: &SplitModelStatus| {
        status.desired_replicas == Some(count) && status.ready_replicas == count
    };
    let what = format!("{count} tails serve");
    world.status(namespace, NAME, &what, is_right).await?;
    Ok(())
}

/// Waits until no other pods than these run.
async fn remaining(world: &World, namespace: &str, names: &[String]) -> Result<()> {
    let mut expected = names.to_vec();
    expected.sort();
    eventually(
        "only the pods with the most sessions are left",
        async || {
            let mut pods = pods_of(world, namespace, NAME).await?;
            pods.sort();
            ensure!(pods == expected, "{pods:?} instead of {expected:?}");
            Ok(())
        },
    )
    .await
}

/// Where the operator answers for the model, on this machine.
async fn door(world: &World, namespace: &str) -> Result<SocketAddr> {
    let slice = eventually("the Service leads to the operator", async || {
        objects::existing(world, namespace, NAME, OwnedKind::EndpointSlice).await
    })
    .await?;
    ensure!(
        slice.data["endpoints"][0]["addresses"] == json!([ELSEWHERE]),
        "{}",
        slice.data
    );
    let port = slice.data["ports"][0]["port"].as_u64().context("a port")?;
    Ok((Ipv4Addr::LOCALHOST, u16::try_from(port)?).into())
}
