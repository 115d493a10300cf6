//! What the operator tells of itself.

use anyhow::{Result, ensure};

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
            ("headway_operator_splitmodels", "ready=\"false\""),
        ] {
            let value = operator.metric(name, labels).await?;
            ensure!(value > 0.0, "{name}{{{labels}}} is {value}");
        }
        Ok(())
    })
    .await
}
