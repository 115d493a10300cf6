//! What the control plane has to bear of so many pods, and where each part of it ends. Rounds of scrapes are played
//! (`scrape_loop.rs`); the rest is computed from what was measured.

use std::fmt::Write as _;

use super::events::{Micros, SECOND};
use super::plots::Plot;
use super::random::Random;
use super::scrape_loop::{ScrapeLoop, share_of};
use super::step_costs::Curve;

/// Pods of which one SplitModel's ledger speaks. Read: `operator/src/savings/ledger.rs`, `MAX_PODS`.
const LEDGER_PODS: u32 = 1_200;
/// Between two writes of a status. Read: `operator/src/savings/books.rs`, `WRITE_INTERVAL`.
const WRITE_INTERVAL_S: f64 = 30.0;
/// Read: the operator's `--scrape-seconds`, and `rounds.rs` and `scrape.rs`.
const SCRAPE_INTERVAL: Micros = 10 * SECOND;
const SCRAPES_AT_A_TIME: u32 = 64;
const SCRAPE_TIMEOUT: Micros = 3 * SECOND;
/// The operator's processor time for one tail, over TCP, in microseconds. Measured: `fleet-costs`, 64 at a time.
const SCRAPE_CPU_US: f64 = 89.0;
/// The same over TLS. Measured as above.
const SCRAPE_TLS_CPU_US: f64 = 227.0;
/// Reading a page that has arrived, in microseconds, and its bytes. Measured as above.
const PAGE_CPU_US: f64 = 8.0;
const PAGE_BYTES: f64 = 9_745.0;
/// Until a tail has answered, in microseconds: 140 over loopback (measured), and a cluster's network (assumed).
const SCRAPE_LATENCY_US: f64 = 1_000.0;
/// Cores that an operator uses. Assumed; the chart sets no limit.
const OPERATOR_CORES: usize = 1;
/// Of a page, what the ten counters of the ledger would be as an answer of Prometheus, in bytes. Assumed: 14 series.
const PROMETHEUS_BYTES: f64 = 14.0 * 130.0;

/// By the pods of a SplitModel. Measured: `fleet-costs`, *Status writes* and *A look at the books*.
const WRITE_API_CPU_MS: [(f64, f64); 4] =
    [(1.0, 6.0), (100.0, 37.0), (400.0, 103.0), (1200.0, 276.5)];
const WRITE_ETCD_CPU_MS: [(f64, f64); 4] = [(1.0, 1.5), (100.0, 2.0), (400.0, 5.5), (1200.0, 13.0)];
const OBJECT_KIB: [(f64, f64); 4] = [(1.0, 2.4), (100.0, 27.5), (400.0, 103.7), (1200.0, 306.8)];
const LOOK_MS: [(f64, f64); 4] = [(1.0, 0.01), (100.0, 0.17), (400.0, 0.55), (1200.0, 1.61)];
/// Between two looks. Read: `rounds.rs`.
const LOOK_INTERVAL_S: f64 = 2.0;
/// Who watches SplitModels: the operator, and one that deploys them. Assumed.
const WATCHERS: f64 = 2.0;

/// Bytes of an endpoint in a slice. Measured: `fleet-costs`, *EndpointSlices*.
const ENDPOINT_BYTES: f64 = 274.0;
/// Endpoints of a slice. Read: the controller manager's `--max-endpoints-per-slice`.
const SLICE_ENDPOINTS: f64 = 100.0;
/// Writes of slices for each pod that is replaced: 0.27 where 300 pods are replaced in 4 s (measured: changes come
/// together); 3 where each change comes alone (assumed: the new one is ready, the old one ends, the old one has gone).
const SLICE_WRITES_A_POD: f64 = 3.0;
/// Nobody has a Service of more.
const MOST_ENDPOINTS: u32 = 10_000;
/// Tails of a node. Assumed: one for each of eight GPUs.
const PODS_A_NODE: f64 = 8.0;
/// Rules of kube-proxy's iptables mode for each endpoint: two of its own chain and one of the Service's. Assumed; the rig's
/// proxy writes nftables, which looks an endpoint up in a map.
const RULES_AN_ENDPOINT: f64 = 3.0;
/// Addresses of a DNS answer, of at most 65,535 bytes, 16 each with a compressed name. Computed.
const DNS_ADDRESSES: u32 = (65_535 - 100) / 16;
/// Memory and processor time of a tail for a session that is opened, its KV cache aside. Measured: `fleet-costs`.
const SESSION_KIB: f64 = 139.5;
const SESSION_OPEN_CPU_MS: f64 = 0.17;

/// The operator as it is, with so many pods.
pub(super) fn scrapes(pods: u32, gone_share: f64) -> ScrapeLoop {
    ScrapeLoop {
        pods,
        gone: share_of(pods, gone_share),
        at_a_time: SCRAPES_AT_A_TIME,
        interval: SCRAPE_INTERVAL,
        timeout: SCRAPE_TIMEOUT,
        cpu_us: SCRAPE_CPU_US,
        cores: OPERATOR_CORES,
        latency_us: SCRAPE_LATENCY_US,
    }
}

/// How scrapes could be made, named.
pub(super) fn designs(pods: u32, gone_share: f64) -> Vec<(&'static str, ScrapeLoop)> {
    let as_is = scrapes(pods, gone_share);
    let sharded = |shards: u32| ScrapeLoop {
        pods: pods.div_ceil(shards),
        gone: share_of(pods.div_ceil(shards), gone_share),
        ..as_is
    };
    vec![
        ("as it is", as_is),
        (
            "512 at a time",
            ScrapeLoop {
                at_a_time: 512,
                ..as_is
            },
        ),
        (
            "timeout of 0.5 s",
            ScrapeLoop {
                timeout: SECOND / 2,
                ..as_is
            },
        ),
        ("4 shards", sharded(4)),
        ("16 shards", sharded(16)),
        ("Prometheus answers", prometheus(pods)),
    ]
}

/// Prometheus asks the tails; the operator asks Prometheus once for each full ledger. Pods that are gone cost it nothing.
fn prometheus(pods: u32) -> ScrapeLoop {
    let bytes = PROMETHEUS_BYTES * f64::from(pods.min(LEDGER_PODS));
    ScrapeLoop {
        pods: pods.div_ceil(LEDGER_PODS),
        gone: 0,
        cpu_us: SCRAPE_CPU_US + PAGE_CPU_US * bytes / PAGE_BYTES,
        ..scrapes(pods, 0.0)
    }
}

/// What status writes cost: `models` SplitModels share `pods`.
struct Writes {
    a_second: f64,
    api_cores: f64,
    etcd_cores: f64,
    watch_kib_a_second: f64,
    operator_cores: f64,
}

fn writes(pods: f64, pods_a_model: f64) -> Writes {
    let models = (pods / pods_a_model).ceil();
    let each = pods_a_model.min(pods);
    let a_second = models / WRITE_INTERVAL_S;
    let at = |points: &[(f64, f64)]| Curve::new(points).at(each);
    Writes {
        a_second,
        api_cores: a_second * at(&WRITE_API_CPU_MS) / 1e3,
        etcd_cores: a_second * at(&WRITE_ETCD_CPU_MS) / 1e3,
        watch_kib_a_second: a_second * at(&OBJECT_KIB) * WATCHERS,
        operator_cores: models * at(&LOOK_MS) / 1e3 / LOOK_INTERVAL_S,
    }
}

/// What a rolling restart of a Service's pods sends to all nodes together, in GiB: by slices, and by one object with all
/// endpoints.
fn restart_gib(pods: f64) -> (f64, f64) {
    let nodes = (pods / PODS_A_NODE).ceil();
    let writes = pods * SLICE_WRITES_A_POD;
    let sent = |endpoints: f64| writes * endpoints * ENDPOINT_BYTES * nodes / f64::from(1 << 30);
    (sent(pods.min(SLICE_ENDPOINTS)), sent(pods))
}

/// The tables of the page.
pub(super) fn report(pods: &[u32], seed: u64) -> String {
    let mut text = String::new();
    let _ = write!(
        text,
        "### Load by the number of pods\n\n{}\n{}\n{}\n{}",
        scrape_table(pods, seed),
        write_table(pods),
        endpoint_table(pods),
        limits(seed)
    );
    text
}

fn scrape_table(pods: &[u32], seed: u64) -> String {
    let mut text = "Rounds of scrapes (simulated with measured costs), one operator with one core:\n\n\
        | pods | a round, s | busy | behind, s | with 10 % of pods gone: a round, s | behind, s |\n|---|---|---|---|---|---|\n"
        .to_owned();
    for &pods in pods {
        let mut random = Random::new(seed);
        let whole = scrapes(pods, 0.0).play(&mut random);
        let gone = scrapes(pods, 0.1).play(&mut random);
        let _ = writeln!(
            text,
            "| {pods} | {:.2} | {:.1} % | {:.1} | {:.1} | {:.1} |",
            whole.round_s,
            whole.busy_share * 100.0,
            whole.lag_s(SCRAPE_INTERVAL),
            gone.round_s,
            gone.lag_s(SCRAPE_INTERVAL),
        );
    }
    text
}

fn write_table(pods: &[u32]) -> String {
    let mut text = "Status writes (computed from measured costs), of SplitModels with 1,200 pods each, and with one pod each:\n\n\
        | pods | writes/s | API server, cores | etcd, cores | to watches, KiB/s | operator's looks, cores | one pod each: writes/s | API server, cores | to watches, KiB/s |\n\
        |---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for &pods in pods {
        let large = writes(f64::from(pods), f64::from(LEDGER_PODS));
        let small = writes(f64::from(pods), 1.0);
        let _ = writeln!(
            text,
            "| {pods} | {:.2} | {:.3} | {:.4} | {:.0} | {:.4} | {:.1} | {:.2} | {:.0} |",
            large.a_second,
            large.api_cores,
            large.etcd_cores,
            large.watch_kib_a_second,
            large.operator_cores,
            small.a_second,
            small.api_cores,
            small.watch_kib_a_second,
        );
    }
    text
}

fn endpoint_table(pods: &[u32]) -> String {
    let mut text = "Endpoints of one Service (computed from measured sizes); nodes have 8 tails each:\n\n\
        | pods | slices | largest slice, KiB | a restart of all, to all nodes by slices, GiB | by one object, GiB | iptables rules | of the pods, in the ledger |\n\
        |---|---|---|---|---|---|---|\n"
        .to_owned();
    for &count in pods.iter().filter(|pods| **pods <= MOST_ENDPOINTS) {
        let pods = f64::from(count);
        let (by_slices, by_object) = restart_gib(pods);
        let _ = writeln!(
            text,
            "| {count} | {:.0} | {:.1} | {by_slices:.2} | {by_object:.2} | {:.0} | {} |",
            (pods / SLICE_ENDPOINTS).ceil(),
            pods.min(SLICE_ENDPOINTS) * ENDPOINT_BYTES / 1024.0,
            pods * RULES_AN_ENDPOINT,
            count.min(LEDGER_PODS),
        );
    }
    text
}

/// Where each part ends, the first one first, and what lifts it.
fn limits(seed: u64) -> String {
    let mut text = "### Where each part ends\n\n\
        | part | ends at | which is | lifted by | then at | which is |\n|---|---|---|---|---|---|\n"
        .to_owned();
    let api = |pods_a_model: f64| {
        let each = Curve::new(&WRITE_API_CPU_MS).at(pods_a_model);
        pods_a_model * WRITE_INTERVAL_S * 1e3 / each
    };
    let rounds = round_limits(&mut Random::new(seed));
    let rows = [
        format!(
            "ledger of one SplitModel | {LEDGER_PODS} pods | read | one SplitModel for each pool of 1,200 \
             | writes of the API server | computed"
        ),
        rounds.gone,
        rounds.gone_wider,
        format!(
            "addresses of the headless Service in DNS | {DNS_ADDRESSES} pods | computed | one SplitModel for each pool | – | –"
        ),
        format!(
            "API server, one core for status writes, a pod a SplitModel | {:.0} pods | computed \
             | 1,200 pods a SplitModel / a write in 5 minutes | {:.0} / {:.0} pods | computed",
            api(1.0),
            api(1200.0),
            api(1.0) * 10.0,
        ),
        rounds.whole,
    ];
    for row in rows {
        let _ = writeln!(text, "| {row} |");
    }
    let _ = write!(
        text,
        "\nA tail with 256 sessions has {} connections at most, {:.0} MiB of memory for them and took {:.0} ms of processor \
         time to open them all (computed from a measured session: {SESSION_KIB} KiB, {SESSION_OPEN_CPU_MS} ms).\n",
        256 + 64,
        256.0 * SESSION_KIB / 1024.0,
        256.0 * SESSION_OPEN_CPU_MS,
    );
    text
}

/// Rows of the table of limits, without their ends.
struct RoundLimits {
    gone: String,
    gone_wider: String,
    whole: String,
}

fn round_limits(random: &mut Random) -> RoundLimits {
    let as_is = scrapes(0, 0.0);
    let tls = ScrapeLoop {
        cpu_us: SCRAPE_TLS_CPU_US,
        ..as_is
    };
    let wide = ScrapeLoop {
        at_a_time: 512,
        ..as_is
    };
    let short = ScrapeLoop {
        timeout: SECOND / 2,
        ..as_is
    };
    let gone = as_is.most_pods(0.1, random);
    let (of_wide, of_short) = (wide.most_pods(0.1, random), short.most_pods(0.1, random));
    let (whole, of_tls) = (as_is.most_pods(0.0, random), tls.most_pods(0.0, random));
    let asked = prometheus(LEDGER_PODS).cpu_us / f64::from(LEDGER_PODS);
    RoundLimits {
        gone: format!(
            "rounds, 10 % of pods gone | {gone} pods | simulated | 4 / 16 shards | {} / {} pods | simulated",
            4 * gone,
            16 * gone,
        ),
        gone_wider: format!(
            "the same | {gone} pods | simulated | 512 at a time / a timeout of 0.5 s | {of_wide} / {of_short} pods | simulated"
        ),
        whole: format!(
            "operator, one core for rounds, no pod gone | {whole} pods; {of_tls} by TLS | simulated \
             | 4 / 16 shards / Prometheus asks | {} / {} / {:.0} pods | simulated, the last computed",
            4 * whole,
            16 * whole,
            super::random::float(SCRAPE_INTERVAL) / asked,
        ),
    }
}

/// How long rounds take, by pods of which a tenth is gone, for each way to make them.
pub(super) fn rounds_plot(seed: u64) -> Plot {
    let pods = [
        100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000,
    ];
    let names = designs(0, 0.0).into_iter().map(|(name, _)| name);
    let series = names.enumerate().map(|(index, name)| {
        let round = |&pods: &u32| {
            let (_, design) = designs(pods, 0.1)[index];
            (f64::from(pods), design.play(&mut Random::new(seed)).round_s)
        };
        (name.to_owned(), pods.iter().map(round).collect())
    });
    Plot {
        title: "A round over all pods, a tenth of which is gone; every 10 s one is due (simulated)",
        x: "pods",
        y: "a round, s",
        is_log: (true, true),
        series: series.collect(),
    }
}
