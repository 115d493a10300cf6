//! What the operator tells of itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use e2e::operator::OperatorOptions;
use tokio::net::TcpListener;

use crate::specs::asleep;
use crate::wait::eventually;
use crate::world::World;

pub async fn answers(world: World) -> Result<()> {
    let operator = world.operator();
    for path in ["/healthz", "/readyz"] {
        let (status, body) = operator.get(path).await?;
        ensure!(status == 200, "{path} answers {status}: {body}");
    }
    let (status, _) = operator.get("/nothing").await?;
    ensure!(status == 404, "/nothing answers {status}");
    let namespace = world.namespace("observability").await?;
    world.create(&namespace, "smol", &asleep()).await?;
    eventually("work is counted", async || {
        for (name, labels) in [
            ("headway_operator_leader", ""),
            (
                "headway_operator_reconciliations_total",
                "result=\"applied\"",
            ),
            ("headway_operator_reconciliation_seconds_count", ""),
            (
                "headway_operator_writes_total",
                "kind=\"Deployment\",verb=\"apply\"",
            ),
            ("headway_operator_status_writes_total", ""),
            ("headway_operator_splitmodels", "ready=\"asleep\""),
        ] {
            let value = operator.metric(name, labels).await?;
            ensure!(value > 0.0, "{name}{{{labels}}} is {value}");
        }
        Ok(())
    })
    .await
}

/// A collector that counts the batches in which a span of a reconciliation is.
pub async fn traces(world: World) -> Result<()> {
    let batches = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&batches);
    let collect = post(async move |batch: Bytes| {
        let name = b"reconcile";
        if batch.windows(name.len()).any(|window| window == name) {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let router = Router::new().route("/v1/traces", collect);
    let collector = tokio::spawn(async move { axum::serve(listener, router).await });

    world.delete_lease().await?;
    let options = OperatorOptions {
        identity: "traced",
        proxy: None,
        otlp_endpoint: Some(&url),
        scrape_seconds: 0,
        wake_address: None,
    };
    let operator = world.start_with(options).await?;
    let namespace = world.namespace("traces").await?;
    world.create(&namespace, "smol", &asleep()).await?;
    eventually("a reconciliation is traced", async || {
        let batches = batches.load(Ordering::Relaxed);
        ensure!(batches > 0, "no batch with a reconciliation");
        Ok(())
    })
    .await?;
    let log = operator.log();
    let ended = operator.terminate().await?;
    ensure!(ended.success(), "after SIGTERM: {ended}\n{log}");
    ensure!(!log.contains("panicked"), "{log}");
    collector.abort();
    Ok(())
}
