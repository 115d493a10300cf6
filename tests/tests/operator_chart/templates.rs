//! Each value does what its comment says.

use std::collections::BTreeSet;
use std::iter;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use headway_operator::config::Arguments;
use serde_json::Value;

use crate::chart::{EVERYTHING, find, helm, ids, render, render_refuses};

/// `Kind/name` of what the default values make.
const DEFAULT: [&str; 12] = [
    "ClusterRole/headway-operator",
    "ClusterRole/headway-splitmodels-edit",
    "ClusterRole/headway-splitmodels-view",
    "ClusterRoleBinding/headway-operator",
    "CustomResourceDefinition/splitmodels.headway.dev",
    "Deployment/headway-operator",
    "Job/headway-test",
    "PodDisruptionBudget/headway-operator",
    "Role/headway-operator",
    "RoleBinding/headway-operator",
    "Service/headway-operator",
    "ServiceAccount/headway-operator",
];

#[test]
fn chart_passes_strict_lint() -> Result<()> {
    helm(&["lint", "--strict", "CHART"])?;
    helm(&[&["lint", "--strict", "CHART"][..], &EVERYTHING].concat())?;
    Ok(())
}

#[test]
fn default_values_make_these_objects_and_no_others() -> Result<()> {
    assert_eq!(ids(&render(&[])?), set(&DEFAULT));
    Ok(())
}

#[test]
fn each_flag_adds_or_removes_what_it_says() -> Result<()> {
    // The flag; what it adds; what it removes.
    let cases: [(&str, &[&str], &[&str]); 10] = [
        (
            "crds.install=false",
            &[],
            &["CustomResourceDefinition/splitmodels.headway.dev"],
        ),
        (
            "podDisruptionBudget.enabled=false",
            &[],
            &["PodDisruptionBudget/headway-operator"],
        ),
        (
            "serviceAccount.create=false",
            &[],
            &["ServiceAccount/headway-operator"],
        ),
        (
            "rbac.aggregate=false",
            &[],
            &[
                "ClusterRole/headway-splitmodels-edit",
                "ClusterRole/headway-splitmodels-view",
            ],
        ),
        (
            "rbac.create=false",
            &[],
            &[
                "ClusterRole/headway-operator",
                "ClusterRole/headway-splitmodels-edit",
                "ClusterRole/headway-splitmodels-view",
                "ClusterRoleBinding/headway-operator",
                "Role/headway-operator",
                "RoleBinding/headway-operator",
            ],
        ),
        (
            "leaderElection.enabled=false,replicas=1",
            &[],
            &["Role/headway-operator", "RoleBinding/headway-operator"],
        ),
        (
            "monitoring.podMonitor.enabled=true",
            &["PodMonitor/headway-operator"],
            &[],
        ),
        (
            "monitoring.prometheusRule.enabled=true",
            &["PrometheusRule/headway-operator"],
            &[],
        ),
        (
            "monitoring.dashboard.enabled=true",
            &["ConfigMap/headway-dashboard"],
            &[],
        ),
        (
            "networkPolicy.enabled=true",
            &["NetworkPolicy/headway-operator"],
            &[],
        ),
    ];
    let default = set(&DEFAULT);
    for (flag, added, removed) in cases {
        let got = ids(&render(&["--set", flag])?);
        let gained: BTreeSet<String> = got.difference(&default).cloned().collect();
        let lost: BTreeSet<String> = default.difference(&got).cloned().collect();
        assert_eq!((gained, lost), (set(added), set(removed)), "{flag}");
    }
    Ok(())
}

#[test]
fn operators_command_line_follows_the_values() -> Result<()> {
    let default = [
        "--tail-image=headway-tail-server:0.1.0",
        "--listen=0.0.0.0:8080",
        "--lease-name=headway",
        "--lease-namespace=headway-system",
        "--identity=$(POD_NAME)",
        "--concurrency=16",
        "--scrape-seconds=10",
        "--wake-address=$(POD_IP)",
        "--wake-ports=9100-9599",
        "--log-format=json",
        "--log-filter=info",
    ];
    assert_eq!(operator_arguments(&[])?, default);
    // The value; the arguments that come with it; those that go.
    let cases: [(&str, &[&str], &[&str]); 11] = [
        (
            "tail.image.tag=v2",
            &["--tail-image=headway-tail-server:v2"],
            &default[..1],
        ),
        (
            "leaderElection.enabled=false,replicas=1",
            &["--no-leader-election"],
            &default[2..4],
        ),
        (
            "leaderElection.leaseName=lease",
            &["--lease-name=lease"],
            &default[2..3],
        ),
        ("concurrency=4", &["--concurrency=4"], &default[5..6]),
        ("scrapeSeconds=0", &["--scrape-seconds=0"], &default[6..7]),
        ("wake.enabled=false", &[], &default[7..9]),
        (
            "wake.lastPort=9100",
            &["--wake-ports=9100-9100"],
            &default[8..9],
        ),
        ("tail.podMonitors=true", &["--pod-monitors"], &[]),
        ("log.format=text", &["--log-format=text"], &default[9..10]),
        (
            "tracing.otlpEndpoint=http://collector:4318",
            &["--otlp-endpoint=http://collector:4318"],
            &[],
        ),
        (
            "extraArgs[0]=--log-filter=debug",
            &["--log-filter=debug"],
            &[],
        ),
    ];
    let default = set(&default);
    for (value, added, removed) in cases {
        let got: BTreeSet<String> = operator_arguments(&["--set", value])?.into_iter().collect();
        let gained: BTreeSet<String> = got.difference(&default).cloned().collect();
        let lost: BTreeSet<String> = default.difference(&got).cloned().collect();
        assert_eq!((gained, lost), (set(added), set(removed)), "{value}");
    }
    Ok(())
}

#[test]
fn operator_understands_every_command_line_of_the_chart() -> Result<()> {
    let flags = "tail.podMonitors=true,tracing.otlpEndpoint=http://collector:4318";
    let alone = "leaderElection.enabled=false,replicas=1";
    let objects = render(&[])?;
    for arguments in [
        operator_arguments(&["--set", flags])?,
        operator_arguments(&["--set", alone])?,
        container_arguments(find(&objects, "Job", "headway-test")?)?,
    ] {
        // As the kubelet fills it in.
        let arguments = arguments
            .iter()
            .map(|word| word.replace("$(POD_IP)", "10.0.0.7"));
        let words = iter::once("headway-operator".to_owned()).chain(arguments);
        Arguments::try_parse_from(words)?;
    }
    Ok(())
}

#[test]
fn digest_of_an_image_wins_over_its_tag() -> Result<()> {
    let digest = format!("sha256:{}", "a".repeat(64));
    let values = format!(
        "image.repository=registry.example:5000/a/operator,image.tag=v1,image.digest={digest}"
    );
    let objects = render(&["--set", &values])?;
    let image = format!("registry.example:5000/a/operator@{digest}");
    for kind in ["Deployment/headway-operator", "Job/headway-test"] {
        let (kind, name) = kind.split_once('/').context("a kind and a name")?;
        let pod = &find(&objects, kind, name)?["spec"]["template"]["spec"];
        assert_eq!(pod["containers"][0]["image"], image.as_str());
    }
    Ok(())
}

#[test]
fn selectors_select_the_operators_pods_and_not_the_tests() -> Result<()> {
    let objects = render(&EVERYTHING)?;
    let selectors = [
        ("Deployment", "/spec/selector/matchLabels"),
        ("Service", "/spec/selector"),
        ("PodDisruptionBudget", "/spec/selector/matchLabels"),
        ("NetworkPolicy", "/spec/podSelector/matchLabels"),
        ("PodMonitor", "/spec/selector/matchLabels"),
    ];
    let labels = |kind: &str, name: &str| -> Result<Value> {
        Ok(find(&objects, kind, name)?["spec"]["template"]["metadata"]["labels"].clone())
    };
    let operator = labels("Deployment", "headway-operator")?;
    let test = labels("Job", "headway-test")?;
    for (kind, pointer) in selectors {
        let object = find(&objects, kind, "headway-operator")?;
        let selector = object.pointer(pointer).and_then(Value::as_object);
        let selector = selector.with_context(|| format!("{kind} has {pointer}"))?;
        let selects = |labels: &Value| selector.iter().all(|(key, value)| labels[key] == *value);
        assert!(selects(&operator) && !selects(&test), "{kind}");
    }
    Ok(())
}

#[test]
fn labels_of_all_and_of_pods_may_overlap() -> Result<()> {
    let objects = render(&["--set", "commonLabels.team=a,podLabels.team=b"])?;
    let deployment = find(&objects, "Deployment", "headway-operator")?;
    assert_eq!(deployment["metadata"]["labels"]["team"], "a");
    assert_eq!(
        deployment["spec"]["template"]["metadata"]["labels"]["team"],
        "b"
    );
    Ok(())
}

#[test]
fn contradicting_values_are_refused_with_what_to_change() -> Result<()> {
    let cases = [
        (
            "leaderElection.enabled=false",
            "set replicas to 1 or leaderElection.enabled to true",
        ),
        (
            "tail.podMonitors=true,rbac.podMonitors=false",
            "set rbac.podMonitors to true",
        ),
    ];
    for (values, advice) in cases {
        let refusal = render_refuses(&["--set", values])?;
        assert!(refusal.contains(advice), "{refusal}");
    }
    Ok(())
}

#[test]
fn older_kubernetes_is_refused() -> Result<()> {
    let refusal = render_refuses(&["--kube-version", "1.31.9"])?;
    assert!(refusal.contains(">=1.32.0"), "{refusal}");
    render(&["--kube-version", "1.32.0-eks-1"])?;
    Ok(())
}

#[test]
fn definition_stays_on_uninstall_unless_told_otherwise() -> Result<()> {
    let policy = |values: &[&str]| -> Result<Value> {
        let objects = render(values)?;
        let definition = find(
            &objects,
            "CustomResourceDefinition",
            "splitmodels.headway.dev",
        )?;
        Ok(definition["metadata"]["annotations"]["helm.sh/resource-policy"].clone())
    };
    assert_eq!(policy(&[])?, "keep");
    assert_eq!(policy(&["--set", "crds.keep=false"])?, Value::Null);
    Ok(())
}

fn operator_arguments(values: &[&str]) -> Result<Vec<String>> {
    let objects = render(values)?;
    container_arguments(find(&objects, "Deployment", "headway-operator")?)
}

fn container_arguments(owner: &Value) -> Result<Vec<String>> {
    let arguments = &owner["spec"]["template"]["spec"]["containers"][0]["args"];
    serde_json::from_value(arguments.clone()).context("arguments are strings")
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
