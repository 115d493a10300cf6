//! When nothing changes, nothing is written.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::permissions::{Request, list, requests};
use crate::specs::minimal;
use crate::world::World;

const MODELS: usize = 50;
const QUIET: Duration = Duration::from_secs(20);

pub async fn no_writes(world: World) -> Result<()> {
    if !world.cluster().is_ours() {
        return Ok(());
    }
    let namespace = world.namespace("quiet").await?;
    let ready = (0..MODELS).map(async |index| {
        let name = format!("model-{index}");
        world.create(&namespace, &name, &minimal()).await?;
        world.ready(&namespace, &name).await.map(drop)
    });
    let ready = futures_util::stream::iter(ready).buffer_unordered(MODELS);
    ready.try_collect::<()>().await?;
    // What the last transitions caused, such as events, is under way no longer than this.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = requests(&world)?.len();
    tokio::time::sleep(QUIET).await;
    let during = requests(&world)?.split_off(before);
    let is_write = |request: &&Request| {
        !matches!(request.verb.as_str(), "get" | "list" | "watch") && request.resource != "leases"
    };
    let writes: Vec<_> = during.iter().filter(is_write).collect();
    ensure!(
        writes.is_empty(),
        "{} writes:\n{}",
        writes.len(),
        list(&writes)
    );
    Ok(())
}
