//! Two operators: one works, the other waits for its turn.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::operator::Operator;

use crate::specs::minimal;
use crate::wait::within;
use crate::world::World;

/// A lease lasts 15 seconds; then comes the other's next look at it.
const TAKEOVER: Duration = Duration::from_secs(25);
/// A lease that was given back is taken at the other's next look, not at its end.
const HANDOVER: Duration = Duration::from_secs(5);

pub async fn one_leads(world: World) -> Result<()> {
    let namespace = world.namespace("leadership").await?;
    world.delete_lease().await?;
    let first = world.start("first", None).await?;
    leads(&first, Duration::from_secs(20)).await?;
    let second = world.start("second", None).await?;
    world.create(&namespace, "with-both", &minimal()).await?;
    world.ready(&namespace, "with-both").await?;
    ensure!(!is_leader(&second).await?, "both lead");
    ensure!(
        writes(&first).await? > 5.0,
        "{} writes by the leader",
        writes(&first).await?
    );
    ensure!(
        writes(&second).await? < 0.5,
        "{} writes by the other",
        writes(&second).await?
    );

    // Killed in the middle of its work.
    for index in 0..5 {
        world
            .create(&namespace, &format!("killed-{index}"), &minimal())
            .await?;
    }
    world
        .raw_splitmodels(&namespace)
        .delete("with-both", &kube::api::DeleteParams::default())
        .await?;
    first.kill().await?;
    let killed = Instant::now();
    leads(&second, TAKEOVER).await?;
    let took_over = killed.elapsed();
    for index in 0..5 {
        world.ready(&namespace, &format!("killed-{index}")).await?;
    }
    world.gone(&namespace, "with-both").await?;

    let third = world.start("third", None).await?;
    ensure!(!is_leader(&third).await?, "both lead");
    let terminated = Instant::now();
    let log = second.log();
    let ended = second.terminate().await?;
    ensure!(ended.success(), "after SIGTERM: {ended}\n{log}");
    leads(&third, TAKEOVER).await.with_context(|| third.log())?;
    let handed_over = terminated.elapsed();
    ensure!(
        handed_over < HANDOVER,
        "handed over after {handed_over:?}, taken over after {took_over:?}"
    );
    world.create(&namespace, "after", &minimal()).await?;
    world.ready(&namespace, "after").await?;
    world.delete_everything().await?;
    third.terminate().await?;
    Ok(())
}

async fn is_leader(operator: &Operator) -> Result<bool> {
    Ok(operator.metric("headway_operator_leader", "").await? > 0.5)
}

async fn leads(operator: &Operator, bound: Duration) -> Result<()> {
    within(bound, "the operator leads", async || {
        ensure!(is_leader(operator).await?, "it does not");
        Ok(())
    })
    .await
}

async fn writes(operator: &Operator) -> Result<f64> {
    let objects = operator.metric("headway_operator_writes_total", "").await?;
    Ok(objects
        + operator
            .metric("headway_operator_status_writes_total", "")
            .await?)
}
