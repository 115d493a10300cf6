//! Leader election by a Lease: of several replicas, one reconciles.
//!
//! The rules are those of Kubernetes' own controllers. A lease counts as given up when nobody has written it for
//! its duration, by the clock of whoever looks: the times in it are for people, as clocks differ.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::names;

/// Seconds for which a leader that is not heard of stays the leader.
const LEASE_SECONDS: u16 = 15;
/// A leader that could not renew its lease for this long stops, before anybody else can begin.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks at the lease, and two renewals.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// For one look with what follows from it; two of them fit between the deadline and the end of the lease.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(2500);

/// Whether this replica leads, now and in the future.
pub struct Leadership {
    is_leader: watch::Receiver<bool>,
    /// `None` where there is no election.
    election: Option<Election>,
    /// Keeps the channel open where there is no election.
    _alone: Option<watch::Sender<bool>>,
}

struct Election {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Leadership {
    /// Takes part in the election for the Lease `name` in `namespace` as `identity`.
    ///
    /// # Errors
    /// Where the Lease cannot be read.
    pub async fn elect(
        client: Client,
        namespace: &str,
        name: &str,
        identity: &str,
    ) -> Result<Self, kube::Error> {
        let leases: Api<Lease> = Api::namespaced(client, namespace);
        leases.get_opt(name).await?;
        let (sender, is_leader) = watch::channel(false);
        let candidate = Candidate {
            leases,
            name: name.to_owned(),
            identity: identity.to_owned(),
            is_leader: sender,
            seen_version: None,
            seen_since: Instant::now(),
            renewed: None,
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(candidate.run(stop.clone()));
        Ok(Self {
            is_leader,
            election: Some(Election { stop, task }),
            _alone: None,
        })
    }

    /// The only replica there is.
    #[must_use]
    pub fn alone() -> Self {
        let (sender, is_leader) = watch::channel(true);
        Self {
            is_leader,
            election: None,
            _alone: Some(sender),
        }
    }

    /// Ends when this replica leads; never if the election has ended.
    pub async fn won(&mut self) {
        let won = self.is_leader.wait_for(|is_leader| *is_leader).await;
        if won.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Ends when this replica does not lead any more.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + Sync + 'static {
        let mut is_leader = self.is_leader.clone();
        async move {
            // An error means that the election has ended.
            let _ = is_leader.wait_for(|is_leader| !*is_leader).await;
        }
    }

    /// Gives the lease up, so that another replica need not wait for its end.
    pub async fn release(self) {
        if let Some(Election { stop, task }) = self.election {
            stop.cancel();
            if let Err(error) = task.await {
                tracing::warn!(%error, "the election ended by itself");
            }
        }
    }
}

/// One replica in the election.
struct Candidate {
    leases: Api<Lease>,
    name: String,
    identity: String,
    is_leader: watch::Sender<bool>,
    /// The version of the Lease that was seen last, and since when it has been the last.
    seen_version: Option<String>,
    seen_since: Instant,
    /// When our own lease was written last.
    renewed: Option<Instant>,
}

impl Candidate {
    async fn run(mut self, stop: CancellationToken) {
        let mut interval = interval(RETRY_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = interval.tick() => {}
            }
            // A lease counts from before it was written.
            let looked = Instant::now();
            match timeout(REQUEST_TIMEOUT, self.acquire_or_renew()).await {
                Ok(Ok(is_ours)) => self.renewed = is_ours.then_some(looked),
                // Somebody was faster, or touched it; the next look tells.
                Ok(Err(error)) if is_conflict(&error) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the lease cannot be renewed"),
                Err(_) => tracing::warn!("the API server does not answer about the lease"),
            }
            let is_leader = self
                .renewed
                .is_some_and(|renewed| renewed.elapsed() < RENEW_DEADLINE);
            self.is_leader
                .send_if_modified(|before| std::mem::replace(before, is_leader) != is_leader);
        }
        if self.renewed.is_some() {
            match timeout(REQUEST_TIMEOUT, self.release()).await {
                Ok(Ok(_)) => tracing::info!("lease released"),
                Ok(Err(error)) => tracing::warn!(%error, "the lease could not be released"),
                Err(_) => tracing::warn!("the API server does not answer about the lease"),
            }
        }
    }

    /// Returns whether the lease is ours.
    async fn acquire_or_renew(&mut self) -> Result<bool, kube::Error> {
        let now = MicroTime(Timestamp::now());
        let mut spec = json!({
            "holderIdentity": self.identity,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": now,
        });
        let Some(lease) = self.leases.get_opt(&self.name).await? else {
            spec["acquireTime"] = json!(now);
            return self.create(spec).await;
        };
        self.saw(lease.metadata.resource_version);
        let held = lease.spec.unwrap_or_default();
        if held.holder_identity.as_ref() != Some(&self.identity) {
            let seconds = held
                .lease_duration_seconds
                .unwrap_or(i32::from(LEASE_SECONDS));
            let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            let is_held = held
                .holder_identity
                .is_some_and(|holder| !holder.is_empty());
            if is_held && self.seen_since.elapsed() < duration {
                return Ok(false);
            }
            spec["acquireTime"] = json!(now);
            spec["leaseTransitions"] = json!(held.lease_transitions.unwrap_or(0).saturating_add(1));
        }
        self.write(spec).await
    }

    async fn create(&mut self, spec: Value) -> Result<bool, kube::Error> {
        let lease = json!({"metadata": {"name": self.name}, "spec": spec});
        let lease = serde_json::from_value(lease).map_err(kube::Error::SerdeError)?;
        let parameters = PostParams {
            field_manager: Some(names::MANAGED_BY.to_owned()),
            ..PostParams::default()
        };
        let written = self.leases.create(&parameters, &lease).await?;
        self.saw(written.metadata.resource_version);
        Ok(true)
    }

    async fn release(&mut self) -> Result<bool, kube::Error> {
        let now = MicroTime(Timestamp::now());
        self.write(json!({"holderIdentity": null, "renewTime": now}))
            .await
    }

    /// Changes the Lease if it still is as it was seen last; a conflict otherwise.
    async fn write(&mut self, spec: Value) -> Result<bool, kube::Error> {
        let body = json!({"metadata": {"resourceVersion": self.seen_version}, "spec": spec});
        let parameters = PatchParams {
            field_manager: Some(names::MANAGED_BY.to_owned()),
            ..PatchParams::default()
        };
        let written = self
            .leases
            .patch(&self.name, &parameters, &Patch::Merge(body))
            .await?;
        self.saw(written.metadata.resource_version);
        Ok(true)
    }

    fn saw(&mut self, version: Option<String>) {
        if self.seen_version != version {
            self.seen_version = version;
            self.seen_since = Instant::now();
        }
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}
