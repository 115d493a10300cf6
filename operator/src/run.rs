//! The life of the process: listen, be elected, reconcile, stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use kube::runtime::events::{Recorder, Reporter};
use kube::{Client, Config as ClientConfig};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::autoscale::doors::Place;
use crate::build::Settings;
use crate::config::Config;
use crate::controller::{self, Setup};
use crate::http::{self, Health};
use crate::leader::Leadership;
use crate::metrics::Metrics;
use crate::names;

/// Between two tries to reach the API server at the start.
const CONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until `stop` is cancelled.
///
/// # Errors
/// Where there is no configuration of a cluster, the address is taken, or the API server refuses.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::new()?);
    let health = Arc::new(Health {
        metrics: Arc::clone(&metrics),
        is_ready: AtomicBool::new(false),
    });
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("listening on {}", config.listen))?;
    let address = listener.local_addr()?;
    tracing::info!("listening on http://{address}");
    // Health is answered until the lease has been released.
    let finished = CancellationToken::new();
    let serving_ends = finished.clone().cancelled_owned();
    let serving = tokio::spawn(http::serve(listener, Arc::clone(&health), serving_ends));

    let client_config = ClientConfig::infer().await.context("finding the cluster")?;
    let lease_namespace = config
        .lease_namespace
        .clone()
        .unwrap_or_else(|| client_config.default_namespace.clone());
    let client = Client::try_from(client_config).context("connecting to the cluster")?;
    tokio::select! {
        () = connected(&client) => health.is_ready.store(true, Ordering::Relaxed),
        () = stop.cancelled() => return Ok(()),
    }
    let identity = config.identity.clone().unwrap_or_else(random_identity);
    let mut leadership = if config.no_leader_election {
        Leadership::alone()
    } else {
        Leadership::elect(
            client.clone(),
            &lease_namespace,
            &config.lease_name,
            &identity,
        )
        .await
        .context("taking part in the election")?
    };
    let setup = || Setup {
        client: client.clone(),
        settings: Settings {
            tail_image: config.tail_image.clone(),
            pod_monitors: config.pod_monitors,
        },
        recorder: Recorder::new(
            client.clone(),
            Reporter {
                controller: names::MANAGED_BY.to_owned(),
                instance: Some(identity.clone()),
            },
        ),
        metrics: Arc::clone(&metrics),
        concurrency: config.concurrency,
        scrape_interval: match config.scrape_seconds {
            0 => None,
            seconds => Some(Duration::from_secs(seconds.into())),
        },
        place: config.wake_address.map(|address| Place {
            address,
            ports: config.wake_ports.range(),
        }),
    };
    lead(&mut leadership, setup, &metrics, &stop).await;
    leadership.release().await;
    finished.cancel();
    serving.await??;
    Ok(())
}

/// Reconciles whenever this replica leads, until `stop` is cancelled.
async fn lead(
    leadership: &mut Leadership,
    setup: impl Fn() -> Setup,
    metrics: &Metrics,
    stop: &CancellationToken,
) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = leadership.won() => {}
        }
        tracing::info!("leading");
        metrics.set_leader(true);
        let leading = stop.child_token();
        let reconciling = controller::run(setup(), leading.clone());
        tokio::pin!(reconciling);
        let result = tokio::select! {
            result = &mut reconciling => result,
            () = leadership.lost() => {
                leading.cancel();
                reconciling.await
            }
        };
        metrics.set_leader(false);
        match result {
            Ok(()) => tracing::info!("leading no more"),
            Err(error) => {
                tracing::warn!(%error, "reconciling could not begin; trying again");
                tokio::time::sleep(CONNECT_INTERVAL).await;
            }
        }
    }
}

/// Ends when the API server has answered.
async fn connected(client: &Client) {
    let mut interval = tokio::time::interval(CONNECT_INTERVAL);
    loop {
        interval.tick().await;
        match client.apiserver_version().await {
            Ok(version) => {
                tracing::info!(version = version.git_version, "connected to Kubernetes");
                return;
            }
            Err(error) => tracing::warn!(%error, "the API server does not answer"),
        }
    }
}

fn random_identity() -> String {
    format!("{}-{:08x}", names::MANAGED_BY, fastrand::u32(..))
}
