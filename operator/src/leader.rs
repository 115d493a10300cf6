//! Leader election by a Lease: of several replicas, one reconciles.

use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Seconds for which a leader that is not heard of stays the leader.
const LEASE_SECONDS: u64 = 15;
/// Seconds before the end of the lease at which the leader renews it.
const GRACE_SECONDS: u64 = 5;

/// Whether this replica leads, now and in the future.
pub struct Leadership {
    is_leader: watch::Receiver<bool>,
    /// `None` where there is no election.
    task: Option<JoinHandle<Result<LeaseManager, LeaseManagerError>>>,
    /// Keeps the channel open where there is no election.
    _alone: Option<watch::Sender<bool>>,
}

impl Leadership {
    /// Takes part in the election for the Lease `name` in `namespace` as `identity`.
    ///
    /// # Errors
    /// Where the Lease cannot be read or made.
    pub async fn elect(
        client: Client,
        namespace: &str,
        name: &str,
        identity: &str,
    ) -> Result<Self, LeaseManagerError> {
        let manager = LeaseManagerBuilder::new(client, name)
            .with_namespace(namespace)
            .with_identity(identity)
            .with_duration(LEASE_SECONDS)
            .with_grace(GRACE_SECONDS)
            .build()
            .await?;
        let (is_leader, task) = manager.watch().await;
        Ok(Self {
            is_leader,
            task: Some(task),
            _alone: None,
        })
    }

    /// The only replica there is.
    #[must_use]
    pub fn alone() -> Self {
        let (sender, is_leader) = watch::channel(true);
        Self {
            is_leader,
            task: None,
            _alone: Some(sender),
        }
    }

    /// Ends when this replica leads; never if the election has ended.
    pub async fn won(&mut self) {
        if self
            .is_leader
            .wait_for(|is_leader| *is_leader)
            .await
            .is_err()
        {
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
        let Self {
            is_leader, task, ..
        } = self;
        // The election ends, and releases, when nobody asks any more.
        drop(is_leader);
        if let Some(task) = task {
            match task.await {
                Ok(Ok(_)) => tracing::info!("lease released"),
                Ok(Err(error)) => tracing::warn!(%error, "the lease could not be released"),
                Err(error) => tracing::warn!(%error, "the election ended by itself"),
            }
        }
    }
}
