//! The whole server on a device that fails when a test wants it to.

use std::sync::mpsc::{SyncSender, sync_channel};

use headway_wire::message::RefusalCode;
use tempfile::TempDir;

use self::rig::{PROMPT, Server, token_ids};
use super::*;
use crate::engine::faulty::{Fault, FaultyDevice};

#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "the tests from outside have their use for the rest"
)]
#[path = "../tests/server/rig.rs"]
mod rig;

async fn start(options: &[&str]) -> (Server, SyncSender<Fault>, TempDir) {
    let cache = tempfile::tempdir().unwrap();
    let (tell, told) = sync_channel(1);
    let device = move |layers, kv_parts: &[PoolPart]| {
        #[cfg(not(feature = "cuda"))]
        let TailLayers::Cpu(decoder) = layers;
        #[cfg(feature = "cuda")]
        let TailLayers::Cpu(decoder) = layers else {
            panic!("the CPU was asked for");
        };
        let (device, choose) = FaultyDevice::new(CpuDevice::new(decoder, kv_parts[0].blocks));
        tell.send(choose).unwrap();
        Ok(device)
    };
    let run = |launch: rig::Launch| {
        tokio::spawn(run_on(
            device,
            launch.listener,
            launch.config,
            launch.model,
            launch.last_words,
            launch.shutdown,
        ))
    };
    let options = [&["--device", "cpu"], options].concat();
    let server = Server::launch(cache.path(), &options, Timeouts::default(), run).await;
    // It answers when it has its device.
    assert_eq!(server.get("/healthz").await.status(), 200);
    (server, told.recv().unwrap(), cache)
}

#[tokio::test]
async fn a_fault_refuses_the_sessions_of_its_batch_and_everybody_else_goes_on() {
    let (server, choose, _cache) = start(&[]).await;
    let mut bystander = server.session(0).await;
    bystander.send(token_ids(0, &PROMPT[..4], false)).await;
    bystander.result().await;
    let bystanders_kv = server.metric("headway_tail_kv_bytes").await;

    for (index, fault) in [Fault::Error, Fault::Panic, Fault::Samples]
        .into_iter()
        .enumerate()
    {
        let mut failing = server.session(0).await;
        choose.send(fault).unwrap();
        failing.send(token_ids(0, &PROMPT[..4], true)).await;
        let refusal = failing.refusal().await;
        assert_eq!(refusal.code(), RefusalCode::Internal);
        assert!(refusal.retry_after_ms.is_some());
        assert_eq!(server.metric("headway_tail_kv_bytes").await, bystanders_kv);

        let position = 4 + index;
        bystander
            .send(token_ids(position, &PROMPT[position..=position], true))
            .await;
        assert!(bystander.result().await.token_id.is_some());
        let mut next = server.session(0).await;
        next.send(token_ids(0, &PROMPT[..4], true)).await;
        assert!(next.result().await.token_id.is_some());
        drop(next);
        server.wait_for_metric("headway_tail_sessions", 1.0).await;
    }
    let faults = "headway_tail_engine_faults_total";
    assert_eq!(server.metric(faults).await, 3.0);
    let refusals = "headway_tail_refusals_total{code=\"internal\"}";
    assert_eq!(server.metric(refusals).await, 3.0);
    let busy = server.metric("headway_tail_busy_seconds_total").await;
    let attributed = server.metric("headway_tail_compute_seconds_total").await;
    assert!((busy - attributed).abs() < 1e-9, "{busy} {attributed}");
    assert_eq!(server.get("/readyz").await.status(), 200);
}

#[tokio::test]
async fn an_overdue_step_fails_readiness_until_it_finishes() {
    let (server, choose, _cache) = start(&["--stall-seconds", "1"]).await;
    assert_eq!(server.get("/readyz").await.status(), 200);
    let (begun, has_begun) = sync_channel(1);
    let (release, go_on) = sync_channel(0);
    choose.send(Fault::Hang(begun, go_on)).unwrap();
    let mut client = server.session(0).await;
    client.send(token_ids(0, &PROMPT[..4], true)).await;
    tokio::task::spawn_blocking(move || has_begun.recv().unwrap())
        .await
        .unwrap();

    let stalled = "headway_tail_engine_stalled";
    server.wait_for_metric(stalled, 1.0).await;
    let response = server.get("/readyz").await;
    assert_eq!(response.status(), 503);
    let sentence = response.text().await.unwrap();
    assert!(
        sentence.contains("finished no step") && sentence.contains("--stall-seconds"),
        "{sentence}"
    );
    // What it was given, nobody would get.
    let mut newcomer = server.connect().await;
    newcomer.send(server.open(0)).await;
    let refusal = newcomer.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::Internal);
    assert!(refusal.retry_after_ms.is_some());
    // The process lives: restarting it is for whoever watches readiness to decide.
    assert_eq!(server.get("/healthz").await.status(), 200);

    drop(release);
    assert!(client.result().await.token_id.is_some());
    server.wait_for_metric(stalled, 0.0).await;
    assert_eq!(server.get("/readyz").await.status(), 200);
}
