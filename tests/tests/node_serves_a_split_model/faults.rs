//! Twenty devices stream while tails are replaced, fail to be, are killed, and lose their node, operator or API server:
//! no token is lost or repeated, whatever happens. Says how long a device waited for a token at most.
//!
//! With `HEADWAY_LONG_OUTAGES` set, the operator is gone for ten minutes and the API server for two.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cluster_rig::Cluster;
use e2e::device::{Answer, chat, connect, finish, finish_after, first_tokens, request};
use e2e::{PATIENCE, other_model, smollm2};
use edge_lite::{
    Client, Error, GenerateRequest, LocalConfig, LocalModel, SamplingParams, WeightDtype,
};
use headway_images::recipe::PARTS;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::sleep;

use super::{
    EDGES, INTERVAL, MAX_TOKENS, SPLIT_LAYER, SPLIT_MODEL, TIMEOUT, cluster_sharing, explain,
    install, kill_tail, kubectl, obstacle, serve, tell,
};

/// Tails while nothing happens.
const TAILS: usize = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_is_lost_while_tails_are_replaced_or_fail() -> Result<()> {
    if obstacle()?.is_some() {
        return Ok(());
    }
    let models = tempfile::tempdir()?;
    let weights = smollm2();
    let model = models.path().join(weights.file_name().context("a file")?);
    fs::copy(&weights, &model)?;
    let other = other_model(models.path())?;
    let other_source = other.file_name().and_then(|name| name.to_str());
    let other_source = format!("pvc://models/{}", other_source.context("a name")?);
    let cluster = cluster_sharing(models.path())?;
    install(&cluster)?;
    let url = serve(&cluster)?;
    change(
        &cluster,
        &json!({
            "replicas": TAILS,
            "autoscaling": {"provider": "none"},
            "tail": {"limits": {"sessions": 64}},
            "rollout": {"drainSeconds": 120, "stopAfterSeconds": 10},
        }),
    )?;
    rolled_out(&cluster).await?;
    let request = request(
        chat("Tell me about the moon."),
        MAX_TOKENS,
        SamplingParams::default(),
    );
    let (before, after) = (
        answer_of(&model, &request).await?,
        answer_of(&other, &request).await?,
    );
    ensure!(
        texts(&before) != texts(&after),
        "the models answer the same"
    );
    let client = connect(&url, SPLIT_LAYER).await?;
    let world = World {
        cluster: &cluster,
        client: &client,
        request: &request,
    };

    let is_right = |answer: &Answer| answer.tokens == before.tokens;
    world
        .undisturbed()
        .await?
        .check("nothing happens", is_right)?;
    world.killed().await?.check("a tail is killed", is_right)?;
    world.image().await?.check("another image", is_right)?;
    world
        .failing_image()
        .await?
        .check("an image that is not there", is_right)?;
    world
        .drained()
        .await?
        .check("the node is drained", is_right)?;
    world
        .without_operator()
        .await?
        .check("the operator is gone", is_right)?;
    world
        .without_api_server()
        .await?
        .check("the API server is gone", is_right)?;

    // Each answer is of one model, from its first token to its last; those that begin later are of the other.
    let streamed = world.model(&other_source).await?;
    let is_one = |answer: &Answer| [&before.tokens, &after.tokens].contains(&&answer.tokens);
    streamed.check("another model", is_one)?;
    for answers in &streamed.answers {
        let last = answers.last().context("an answer")?;
        assert_eq!(last.tokens, after.tokens, "the last answer of a device");
    }
    Ok(())
}

async fn answer_of(model: &Path, request: &GenerateRequest) -> Result<Answer> {
    let (model, config) = (
        model.to_owned(),
        LocalConfig {
            dtype: WeightDtype::Native,
            ..LocalConfig::default()
        },
    );
    let load = move || LocalModel::load(&model, &config);
    let whole = tokio::task::spawn_blocking(load).await??;
    Ok(finish(whole.generate(request.clone()).await?).await?)
}

fn texts(answer: &Answer) -> Vec<&str> {
    answer
        .tokens
        .iter()
        .map(|token| token.text.as_str())
        .collect()
}

/// What the devices got.
struct Streamed {
    /// Of each device, in order.
    answers: Vec<Vec<Answer>>,
    /// The longest that any of them waited for a token.
    longest: Duration,
}

impl Streamed {
    fn check(&self, what: &str, is_right: impl Fn(&Answer) -> bool) -> Result<()> {
        let answers = self.answers.iter().flatten();
        let rebuilt: u32 = answers.clone().map(|answer| answer.report.reconnects).sum();
        tell(&format!(
            "{what}: longest wait {:.2} s, {} answers, sessions rebuilt {rebuilt} times",
            self.longest.as_secs_f64(),
            answers.clone().count(),
        ));
        for answer in answers {
            ensure!(is_right(answer), "{what}: {:?}", texts(answer));
        }
        Ok(())
    }
}

/// Devices that stream one answer after the other until they are told to stop.
struct Edges {
    is_over: Arc<AtomicBool>,
    tokens: Arc<AtomicUsize>,
    streams: Vec<JoinHandle<Result<Stream>>>,
}

/// The answers of one device, and the longest that it waited for a token.
type Stream = (Vec<Answer>, Duration);

impl Edges {
    async fn start(client: &Client, request: &GenerateRequest) -> Result<Self> {
        let mut edges = Self {
            is_over: Arc::default(),
            tokens: Arc::default(),
            streams: Vec::new(),
        };
        for _ in 0..EDGES {
            let (client, request) = (client.clone(), request.clone());
            let (is_over, tokens) = (Arc::clone(&edges.is_over), Arc::clone(&edges.tokens));
            let stream = async move {
                let streamed = stream(client, request, &is_over, &tokens).await;
                streamed.inspect_err(|error| tell(&format!("a stream has ended: {error:#}")))
            };
            edges.streams.push(tokio::spawn(stream));
        }
        edges.advance().await?;
        Ok(edges)
    }

    /// Waits until each has had some tokens more, in the mean.
    async fn advance(&self) -> Result<()> {
        let wanted = self.tokens.load(Ordering::Relaxed) + EDGES * MAX_TOKENS / 4;
        let late = Instant::now() + 3 * PATIENCE;
        while self.tokens.load(Ordering::Relaxed) < wanted {
            let ended = self.streams.iter().any(JoinHandle::is_finished);
            ensure!(!ended, "a stream has ended");
            ensure!(Instant::now() < late, "no tokens come");
            sleep(INTERVAL).await;
        }
        Ok(())
    }

    async fn end(self) -> Result<Streamed> {
        self.is_over.store(true, Ordering::Relaxed);
        let mut streamed = Streamed {
            answers: Vec::new(),
            longest: Duration::ZERO,
        };
        for stream in self.streams {
            let (answers, longest) = stream.await??;
            streamed.answers.push(answers);
            streamed.longest = streamed.longest.max(longest);
        }
        Ok(streamed)
    }
}

/// Streams answers, the last of them begun before `is_over`; as an app does that lives through a change of the model.
async fn stream(
    mut client: Client,
    request: GenerateRequest,
    is_over: &AtomicBool,
    count: &AtomicUsize,
) -> Result<Stream> {
    let (mut answers, mut longest) = (Vec::new(), Duration::ZERO);
    let mut renewed = 0;
    while answers.is_empty() || !is_over.load(Ordering::Relaxed) {
        client = client.renewed().await?;
        let mut generation = client.generate(request.clone()).await?;
        let mut before = Instant::now();
        let mut tokens = match first_tokens(&mut generation, 1).await {
            Ok(tokens) => tokens,
            // No tail of the client's model is left. Nothing is answered yet.
            Err(error) if is_of_another_model(&error) && renewed < 10 => {
                renewed += 1;
                continue;
            }
            Err(error) => return Err(error),
        };
        loop {
            longest = longest.max(before.elapsed());
            count.fetch_add(1, Ordering::Relaxed);
            if tokens.len() == MAX_TOKENS {
                break;
            }
            before = Instant::now();
            tokens.extend(first_tokens(&mut generation, 1).await?);
        }
        answers.push(finish_after(tokens, generation).await?);
    }
    Ok((answers, longest))
}

fn is_of_another_model(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::Tail(error)) if error.is_of_another_model())
}

struct World<'a> {
    cluster: &'a Cluster,
    client: &'a Client,
    request: &'a GenerateRequest,
}

impl World<'_> {
    async fn edges(&self) -> Result<Edges> {
        Edges::start(self.client, self.request).await
    }

    async fn undisturbed(&self) -> Result<Streamed> {
        let edges = self.edges().await?;
        edges.advance().await?;
        edges.end().await
    }

    async fn killed(&self) -> Result<Streamed> {
        let edges = self.edges().await?;
        block_in_place(|| kill_tail(self.cluster))?;
        edges.advance().await?;
        serving(self.cluster).await?;
        edges.end().await
    }

    async fn image(&self) -> Result<Streamed> {
        let tail = PARTS.iter().find(|part| part.program == "tail-server");
        super::import(self.cluster, tail.context("the tail's image")?, "next")?;
        let edges = self.edges().await?;
        let old = pods(self.cluster)?;
        change(
            self.cluster,
            &json!({"tail": {"image": "headway.test/tail-server:next"}}),
        )?;
        rolled_out(self.cluster).await?;
        ensure!(
            pods(self.cluster)?.is_disjoint(&old),
            "{old:?} are still there"
        );
        edges.end().await
    }

    async fn failing_image(&self) -> Result<Streamed> {
        let edges = self.edges().await?;
        let old = pods(self.cluster)?;
        let none =
            json!({"tail": {"image": "headway.test/tail-server:none", "imagePullPolicy": "Never"}});
        change(self.cluster, &none)?;
        condition(self.cluster, "Degraded", "RolloutStopped").await?;
        serving(self.cluster).await?;
        ensure!(pods(self.cluster)? == old, "{old:?} served");
        let streamed = edges.end().await?;
        change(
            self.cluster,
            &json!({"tail": {"image": null, "imagePullPolicy": null}}),
        )?;
        rolled_out(self.cluster).await?;
        Ok(streamed)
    }

    /// Nothing can be started again before the node is let in again; one tail has to stay until then.
    async fn drained(&self) -> Result<Streamed> {
        let edges = self.edges().await?;
        let name = kubectl(self.cluster, &["get", "nodes", "-o=name"])?;
        let drain = [
            "drain",
            name.trim(),
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            "--timeout=20s",
        ];
        let drained = block_in_place(|| kubectl(self.cluster, &drain));
        ensure!(drained.is_err(), "the budget lets the last tail go");
        edges.advance().await?;
        kubectl(self.cluster, &["uncordon", name.trim()])?;
        serving(self.cluster).await?;
        edges.end().await
    }

    async fn without_operator(&self) -> Result<Streamed> {
        let scale = |replicas: &str| {
            let replicas = format!("--replicas={replicas}");
            let arguments = [
                "scale",
                "deployment/headway-operator",
                "-n=headway-system",
                &replicas,
            ];
            kubectl(self.cluster, &arguments)
        };
        let edges = self.edges().await?;
        scale("0")?;
        let gone = Instant::now();
        block_in_place(|| kill_tail(self.cluster))?;
        edges.advance().await?;
        sleep(outage(600, 10).saturating_sub(gone.elapsed())).await;
        edges.advance().await?;
        scale("1")?;
        condition(self.cluster, "SavingsCurrent", "AllScraped").await?;
        edges.end().await
    }

    async fn without_api_server(&self) -> Result<Streamed> {
        let edges = self.edges().await?;
        block_in_place(|| self.cluster.stop_component("kube-apiserver"))?;
        sleep(outage(120, 10)).await;
        edges.advance().await?;
        block_in_place(|| self.cluster.start_component("kube-apiserver"))?;
        serving(self.cluster).await?;
        edges.end().await
    }

    async fn model(&self, source: &str) -> Result<Streamed> {
        let edges = self.edges().await?;
        change(self.cluster, &json!({"model": {"source": source}}))?;
        rolled_out(self.cluster).await?;
        // Those that began on the old one end, and one more.
        for _ in 0..8 {
            edges.advance().await?;
        }
        edges.end().await
    }
}

fn outage(long_seconds: u64, short_seconds: u64) -> Duration {
    let is_long = std::env::var_os("HEADWAY_LONG_OUTAGES").is_some();
    Duration::from_secs(if is_long { long_seconds } else { short_seconds })
}

fn change(cluster: &Cluster, spec: &Value) -> Result<()> {
    let (name, patch) = (
        format!("splitmodel/{SPLIT_MODEL}"),
        format!("--patch={}", json!({"spec": spec})),
    );
    block_in_place(|| kubectl(cluster, &["patch", &name, "--type=merge", &patch]))?;
    Ok(())
}

/// Names of the tails' pods that are not leaving.
fn pods(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let pods = block_in_place(|| kubectl(cluster, &["get", "pods", "-o=json"]))?;
    let pods: Value = serde_json::from_str(&pods)?;
    let staying = pods["items"].as_array().into_iter().flatten();
    let staying = staying.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let names = staying.filter_map(|pod| pod["metadata"]["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// Waits until every tail runs the newest spec, and no other is left.
async fn rolled_out(cluster: &Cluster) -> Result<()> {
    let name = format!("splitmodel/{SPLIT_MODEL}");
    let generation = kubectl(
        cluster,
        &["get", &name, "-o=jsonpath={.metadata.generation}"],
    )?;
    let observed = format!("--for=jsonpath={{.status.observedGeneration}}={generation}");
    block_in_place(|| kubectl(cluster, &["wait", &observed, &name, TIMEOUT]))
        .or_else(|error| explain(cluster, &error))?;
    condition(cluster, "Progressing", "UpToDate").await?;
    serving(cluster).await
}

/// Waits until there are as many tails as there should be, and all serve.
async fn serving(cluster: &Cluster) -> Result<()> {
    let fields = "-o=jsonpath={.status.replicas} {.status.readyReplicas}";
    let name = format!("splitmodel/{SPLIT_MODEL}");
    let wanted = format!("{TAILS} {TAILS}");
    eventually(cluster, &["get", &name, fields], |status| status == wanted).await
}

/// Waits until a condition has a reason.
async fn condition(cluster: &Cluster, type_: &str, reason: &str) -> Result<()> {
    let fields = format!("-o=jsonpath={{.status.conditions[?(@.type=='{type_}')].reason}}");
    let name = format!("splitmodel/{SPLIT_MODEL}");
    eventually(cluster, &["get", &name, &fields], |said| said == reason).await
}

async fn eventually(
    cluster: &Cluster,
    arguments: &[&str],
    is_wanted: impl Fn(&str) -> bool,
) -> Result<()> {
    let late = Instant::now() + 4 * PATIENCE;
    loop {
        let said = block_in_place(|| kubectl(cluster, arguments));
        match said {
            Ok(said) if is_wanted(&said) => return Ok(()),
            said if Instant::now() > late => {
                let error = anyhow::anyhow!("{arguments:?}: {said:?}");
                return explain(cluster, &error);
            }
            _ => sleep(4 * INTERVAL).await,
        }
    }
}
