//! The operator is killed at each of its writes, once before and once after it has happened; another one goes on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::api_proxy::{ApiProxy, Moment};
use e2e::operator::Operator;
use headway_operator::names;
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::objects;
use crate::specs::complete;
use crate::wait::eventually;
use crate::world::World;

const NAME: &str = "smol";
/// Far more writes than one creation or deletion takes.
const MAX_WRITES: usize = 60;

/// An operator behind a proxy, and its successors.
struct Crashing {
    world: World,
    proxy: ApiProxy,
    namespace: String,
    operator: Option<Operator>,
    started: usize,
}

pub async fn at_any_write(world: World) -> Result<()> {
    let mut crashing = Crashing {
        proxy: ApiProxy::start(world.config()).await?,
        namespace: world.namespace("crash").await?,
        world,
        operator: None,
        started: 0,
    };
    crashing.start_operator().await?;
    crashing.create().await?;
    let undisturbed =
        eventually("the undisturbed state", async || crashing.settled().await).await?;
    crashing.world.delete(&crashing.namespace, NAME).await?;

    for moment in [Moment::BeforeForward, Moment::AfterForward] {
        let (mut creating, mut deleting) = (true, true);
        for write in 1.. {
            ensure!(write < MAX_WRITES, "still writing after {write} writes");
            let tried =
                crashing.at_write(write, moment, &mut creating, &mut deleting, &undisturbed);
            tried
                .await
                .with_context(|| format!("killed {moment:?} write {write}"))?;
            if !creating && !deleting {
                ensure!(
                    write > objects::awake_kinds().count(),
                    "only {write} writes"
                );
                break;
            }
        }
    }
    crashing
        .operator
        .take()
        .context("an operator")?
        .terminate()
        .await?;
    Ok(())
}

impl Crashing {
    async fn start_operator(&mut self) -> Result<()> {
        self.started += 1;
        self.world.delete_lease().await?;
        let identity = format!("crash-{}", self.started);
        let operator = self.world.start(&identity, Some(&self.proxy.url())).await?;
        self.operator = Some(operator);
        Ok(())
    }

    async fn create(&self) -> Result<()> {
        self.world
            .create(&self.namespace, NAME, &complete())
            .await?;
        Ok(())
    }

    /// Creates and deletes once, with a kill at the write in each. `creating` and `deleting` say whether there are
    /// as many writes at all.
    async fn at_write(
        &mut self,
        write: usize,
        moment: Moment,
        creating: &mut bool,
        deleting: &mut bool,
        undisturbed: &Value,
    ) -> Result<()> {
        if *creating {
            let killed = self.arm(write, moment)?;
            self.create().await?;
            eventually("it is killed or done", async || {
                ensure!(
                    killed.load(Ordering::Relaxed) || self.settled().await.is_ok(),
                    "neither"
                );
                Ok(())
            })
            .await
            .with_context(|| self.log())?;
            *creating = self.succeed(&killed).await?;
        } else {
            self.create().await?;
        }
        eventually("the state is that of an undisturbed run", async || {
            let settled = self.settled().await?;
            ensure!(
                settled == *undisturbed,
                "{settled}\ninstead of\n{undisturbed}"
            );
            Ok(())
        })
        .await
        .with_context(|| self.log())?;

        let api = self.world.raw_splitmodels(&self.namespace);
        if *deleting {
            let killed = self.arm(write, moment)?;
            api.delete(NAME, &DeleteParams::default()).await?;
            eventually("it is killed or done", async || {
                let is_gone = api.get_opt(NAME).await?.is_none();
                ensure!(killed.load(Ordering::Relaxed) || is_gone, "neither");
                Ok(())
            })
            .await
            .with_context(|| self.log())?;
            *deleting = self.succeed(&killed).await?;
        } else {
            api.delete(NAME, &DeleteParams::default()).await?;
        }
        let gone = self.world.gone(&self.namespace, NAME).await;
        gone.with_context(|| self.log())
    }

    /// The flag is set when the operator has been killed.
    fn arm(&self, write: usize, moment: Moment) -> Result<Arc<AtomicBool>> {
        let killed = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&killed);
        let pid = self.operator.as_ref().context("an operator")?.pid()?;
        self.proxy.interrupt(write, moment, move || {
            // It cannot have ended by itself: its request is here.
            let _ = kill(pid, Signal::SIGKILL);
            flag.store(true, Ordering::Relaxed);
        });
        Ok(killed)
    }

    /// Starts a successor if the operator was killed; returns whether it was.
    async fn succeed(&mut self, killed: &AtomicBool) -> Result<bool> {
        // If it was not killed by now, it is not killed later.
        self.proxy.call_off();
        let was_killed = killed.load(Ordering::Relaxed);
        if was_killed {
            let operator = self.operator.take().context("an operator")?;
            operator.ended().await?;
            self.start_operator().await?;
        }
        Ok(was_killed)
    }

    fn log(&self) -> String {
        self.operator
            .as_ref()
            .map(Operator::log)
            .unwrap_or_default()
    }

    /// Everything there is, without what differs from run to run; fails while it is not complete.
    async fn settled(&self) -> Result<Value> {
        let (world, namespace) = (&self.world, self.namespace.as_str());
        let splitmodel = world.splitmodels(namespace).get(NAME).await?;
        let status = splitmodel.status.as_ref().context("a status")?;
        ensure!(
            status.observed_generation == splitmodel.metadata.generation,
            "an old status"
        );
        // No node has the device.
        let is_told = objects::has_condition(status, "Degraded", "True", "Unschedulable");
        ensure!(is_told, "{}", json!(status));
        let (made, wanted) = (status.replicas, splitmodel.spec.replicas);
        ensure!(made == wanted, "{made} of {wanted} pods are made");
        let mut found = Vec::new();
        let mut names = BTreeSet::new();
        for object in objects::labelled(world, Some(namespace), names::OWNED_SELECTOR).await? {
            let kind = object
                .types
                .as_ref()
                .map(|types| types.kind.clone())
                .unwrap_or_default();
            // Made by others, with names of their own.
            if kind == "Pod" || kind == "ReplicaSet" {
                names.insert(kind);
                continue;
            }
            let mut essence = objects::essence(&object);
            let digest = essence["annotations"][names::APPLIED_ANNOTATION].take();
            ensure!(digest.is_string(), "{kind} has no digest");
            essence["owners"][0]["uid"].take();
            let deleted = object.metadata.deletion_timestamp.is_some();
            ensure!(!deleted, "{kind} {} is being deleted", object.name_any());
            found.push(essence);
        }
        if found.len() < objects::awake_kinds().count() {
            bail!("{} objects", found.len());
        }
        let conditions = status.conditions.iter();
        let conditions: Vec<_> = conditions
            .map(|condition| json!([condition.type_, condition.status, condition.reason]))
            .collect();
        Ok(json!({
            "owned": found,
            "made by others": names,
            "finalizers": splitmodel.finalizers(),
            "conditions": conditions,
            "endpoint": status.endpoint,
            "selector": status.selector,
            "replicas": status.replicas,
        }))
    }
}
