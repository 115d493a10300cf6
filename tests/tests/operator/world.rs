//! What scenarios have: the cluster, the installed chart, an operator, namespaces.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use cluster_rig::Cluster;
use e2e::operator::{Installation, NAMESPACE, Operator, OperatorOptions};
use headway_operator::crd::SplitModel;
use headway_operator::crd::status::SplitModelStatus;
use headway_operator::names;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, DynamicObject};
use kube::{Client, Config, ResourceExt as _};
use serde_json::{Value, json};

use crate::objects;
use crate::wait::eventually;

/// Field manager of what a test changes.
pub const SOMEBODY: &str = "somebody";

/// What scenarios have.
#[derive(Clone)]
pub struct World {
    shared: Arc<Shared>,
    operator: Option<Arc<Operator>>,
}

struct Shared {
    cluster: &'static Cluster,
    client: Client,
    config: Config,
    installation: Installation,
    namespaces: Mutex<Vec<String>>,
    outages: Mutex<Vec<RangeInclusive<Timestamp>>>,
}

impl World {
    /// The cluster with the chart.
    pub async fn new() -> Result<Self> {
        let cluster = tokio::task::spawn_blocking(cluster_rig::shared).await?;
        let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig())?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        Ok(Self {
            shared: Arc::new(Shared {
                cluster,
                client: Client::try_from(config.clone())?,
                config,
                installation: Installation::new(cluster).await?,
                namespaces: Mutex::default(),
                outages: Mutex::default(),
            }),
            operator: None,
        })
    }

    /// The same with an operator that leads.
    pub async fn with_operator(&self) -> Result<Self> {
        self.delete_lease().await?;
        let operator = self.start("shared", None).await?;
        Ok(Self {
            shared: Arc::clone(&self.shared),
            operator: Some(Arc::new(operator)),
        })
    }

    /// Starts an operator and waits until it is ready.
    pub async fn start(&self, identity: &str, proxy: Option<&str>) -> Result<Operator> {
        self.start_with(OperatorOptions {
            identity,
            proxy,
            otlp_endpoint: None,
            scrape_seconds: 0,
            wake_address: None,
        })
        .await
    }

    /// The same with any option.
    pub async fn start_with(&self, options: OperatorOptions<'_>) -> Result<Operator> {
        let operator = Operator::start(&self.shared.installation, options).await?;
        let ready = eventually("the operator is ready", async || {
            let (status, body) = operator.get("/readyz").await?;
            ensure!(status == 200, "/readyz answers {status}: {body}");
            Ok(())
        });
        ready.await.with_context(|| operator.log())?;
        Ok(operator)
    }

    /// The operator of the phase.
    pub fn operator(&self) -> &Operator {
        self.operator.as_deref().expect("the phase has an operator")
    }

    /// Ends the operator of the phase with SIGTERM; returns its log.
    pub async fn end_operator(&mut self) -> Result<String> {
        let operator = self.operator.take().context("the phase has an operator")?;
        let operator = Arc::into_inner(operator).context("a scenario still has the operator")?;
        let log = operator.log();
        let status = operator.terminate().await?;
        ensure!(status.success(), "after SIGTERM: {status}\n{log}");
        Ok(log)
    }

    /// A killed operator cannot give its lease back; without this, the next would wait until it expires.
    pub async fn delete_lease(&self) -> Result<()> {
        let leases: Api<Lease> = Api::namespaced(self.client(), NAMESPACE);
        let all = ListParams::default();
        leases
            .delete_collection(&DeleteParams::default(), &all)
            .await?;
        Ok(())
    }

    /// The cluster itself.
    pub fn cluster(&self) -> &'static Cluster {
        self.shared.cluster
    }

    /// A client with all permissions.
    pub fn client(&self) -> Client {
        self.shared.client.clone()
    }

    /// How to reach the API server.
    pub fn config(&self) -> Config {
        self.shared.config.clone()
    }

    /// The chart as installed.
    pub fn installation(&self) -> &Installation {
        &self.shared.installation
    }

    /// A namespace that nobody else has.
    pub async fn namespace(&self, purpose: &str) -> Result<String> {
        let name = format!("{purpose}-{:08x}", fastrand::u32(..));
        let namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        let namespaces: Api<Namespace> = Api::all(self.client());
        namespaces
            .create(&PostParams::default(), &namespace)
            .await?;
        let mut all = self
            .shared
            .namespaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.push(name.clone());
        Ok(name)
    }

    /// A cluster of one's own ends anyway.
    pub async fn remove_namespaces(&self) -> Result<()> {
        if self.cluster().is_ours() {
            return Ok(());
        }
        let namespaces: Api<Namespace> = Api::all(self.client());
        let all = self
            .shared
            .namespaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for name in all {
            namespaces.delete(&name, &DeleteParams::default()).await?;
        }
        Ok(())
    }

    /// Remembers when the API server was not well.
    pub fn add_outage(&self, outage: RangeInclusive<Timestamp>) {
        let mut all = self
            .shared
            .outages
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.push(outage);
    }

    /// Whether the API server was not well at `time`.
    pub fn is_in_outage(&self, time: Timestamp) -> bool {
        let all = self
            .shared
            .outages
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.iter().any(|outage| outage.contains(&time))
    }

    /// SplitModels of a namespace.
    pub fn splitmodels(&self, namespace: &str) -> Api<SplitModel> {
        Api::namespaced(self.client(), namespace)
    }

    /// SplitModels of a namespace as JSON, also those that are none.
    pub fn raw_splitmodels(&self, namespace: &str) -> Api<DynamicObject> {
        let resource = ApiResource::erase::<SplitModel>(&());
        Api::namespaced_with(self.client(), namespace, &resource)
    }

    /// Creates a SplitModel.
    pub async fn create(&self, namespace: &str, name: &str, spec: &Value) -> Result<DynamicObject> {
        let resource = ApiResource::erase::<SplitModel>(&());
        let object = DynamicObject::new(name, &resource).data(json!({"spec": spec}));
        let api = self.raw_splitmodels(namespace);
        let created = api.create(&PostParams::default(), &object).await;
        created.with_context(|| format!("creating SplitModel {name}"))
    }

    /// Changes a SplitModel by a JSON merge patch.
    pub async fn change(
        &self,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<DynamicObject> {
        let parameters = PatchParams {
            field_manager: Some(SOMEBODY.to_owned()),
            ..PatchParams::default()
        };
        let api = self.raw_splitmodels(namespace);
        let changed = api.patch(name, &parameters, &Patch::Merge(patch)).await;
        changed.with_context(|| format!("changing SplitModel {name}: {patch}"))
    }

    /// Deletes a SplitModel and waits until it and everything it owned have gone.
    pub async fn delete(&self, namespace: &str, name: &str) -> Result<()> {
        let api = self.raw_splitmodels(namespace);
        api.delete(name, &DeleteParams::default()).await?;
        self.gone(namespace, name).await
    }

    /// Waits until a SplitModel and everything it owned have gone.
    pub async fn gone(&self, namespace: &str, name: &str) -> Result<()> {
        let selector = format!("{}={name}", names::SPLITMODEL_LABEL);
        eventually("a SplitModel and all it owned have gone", async || {
            let splitmodel = self.raw_splitmodels(namespace).get_opt(name).await?;
            ensure!(splitmodel.is_none(), "{name} is still there");
            objects::none_left(self, namespace, &selector).await
        })
        .await
    }

    /// Waits until the status of a SplitModel is as it should be, and speaks of its present spec.
    pub async fn status(
        &self,
        namespace: &str,
        name: &str,
        what: &str,
        is_right: impl Fn(&SplitModelStatus) -> bool,
    ) -> Result<SplitModel> {
        let api = self.splitmodels(namespace);
        eventually(what, async || {
            let splitmodel = api.get(name).await?;
            let Some(status) = &splitmodel.status else {
                bail!("{name} has no status");
            };
            let is_new = status.observed_generation == splitmodel.metadata.generation;
            ensure!(is_new && is_right(status), "{}", json!(status));
            Ok(splitmodel)
        })
        .await
    }

    /// Waits until a SplitModel is ready and rolled out.
    pub async fn ready(&self, namespace: &str, name: &str) -> Result<SplitModel> {
        let is_ready = |status: &SplitModelStatus| {
            objects::has_condition(status, "Ready", "True", "TailsReady")
                && objects::has_condition(status, "Progressing", "False", "UpToDate")
        };
        self.status(namespace, name, "the SplitModel is ready", is_ready)
            .await
    }

    /// Deletes every SplitModel and waits until nothing is left in any namespace.
    pub async fn delete_everything(&self) -> Result<()> {
        for (api, name) in self.all_splitmodels().await? {
            // It may be on its way already.
            let _ = api.delete(&name, &DeleteParams::default()).await;
        }
        eventually("nothing is left of any SplitModel", async || {
            let left = self.all_splitmodels().await?.len();
            ensure!(left == 0, "{left} SplitModels are left");
            self.nothing_owned_left().await
        })
        .await
    }

    /// Takes away every SplitModel that no operator has taken away.
    pub async fn abandon_everything(&self) -> Result<()> {
        for (api, name) in self.all_splitmodels().await? {
            let unhindered = Patch::Merge(json!({"metadata": {"finalizers": null}}));
            api.delete(&name, &DeleteParams::default()).await?;
            // It goes with its last finalizer, or has gone before.
            let _ = api.patch(&name, &PatchParams::default(), &unhindered).await;
        }
        eventually("nothing is left of any SplitModel", async || {
            self.nothing_owned_left().await
        })
        .await
    }

    /// Every SplitModel in a namespace of ours; an existing cluster may have others.
    async fn all_splitmodels(&self) -> Result<Vec<(Api<DynamicObject>, String)>> {
        let mut found = Vec::new();
        for namespace in self.namespaces() {
            let api = self.raw_splitmodels(&namespace);
            let all = api.list(&ListParams::default()).await?;
            found.extend(all.iter().map(|each| (api.clone(), each.name_any())));
        }
        Ok(found)
    }

    async fn nothing_owned_left(&self) -> Result<()> {
        let namespaces = self.namespaces();
        let all = objects::labelled(self, None, names::OWNED_SELECTOR).await?;
        let is_ours = |object: &&DynamicObject| {
            object
                .namespace()
                .is_some_and(|namespace| namespaces.contains(&namespace))
        };
        let left: Vec<String> = all.iter().filter(is_ours).map(objects::title).collect();
        ensure!(left.is_empty(), "{} are left", left.join(", "));
        Ok(())
    }

    fn namespaces(&self) -> Vec<String> {
        let all = self
            .shared
            .namespaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.clone()
    }

    /// Runs kubectl; returns what it printed.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let command = self.cluster().kubectl(arguments);
        let output = tokio::process::Command::from(command).output().await?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {arguments:?}: {error}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
