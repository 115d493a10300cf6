//! Pods meet the `restricted` Pod Security Standard, and the API server takes every object as it is.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::chart::{EVERYTHING, Namespace, find, kubectl, kubectl_refuses, kubectl_with, render};

#[test]
fn pods_meet_the_restricted_standard() -> Result<()> {
    let namespace = Namespace::create("chart-restricted")?;
    kubectl(&[
        "label",
        "namespace",
        namespace.0,
        "pod-security.kubernetes.io/enforce=restricted",
    ])?;
    let create = [
        "create",
        "--dry-run=server",
        "--validate=strict",
        "--filename=-",
        "--namespace",
        namespace.0,
    ];
    // Accounts are the chart's, which is not installed here.
    let account = ["--set", "serviceAccount.create=false"];
    let openshift = [
        "--set",
        "podSecurity.runAsUser=null,podSecurity.runAsGroup=null",
    ];
    kubectl(&[
        "wait",
        "--for=create",
        "serviceaccount/default",
        "--namespace",
        namespace.0,
        "--timeout=60s",
    ])?;
    for values in [vec![], openshift.to_vec()] {
        let objects = render(&[&account[..], &values].concat())?;
        for (kind, name) in [("Deployment", "headway-operator"), ("Job", "headway-test")] {
            let mut pod = pod_of(find(&objects, kind, name)?)?;
            kubectl_with(&create, &pod.to_string()).with_context(|| format!("{kind} {name}"))?;
            // The namespace does enforce it.
            pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] =
                true.into();
            let refusal = kubectl_refuses(&create, &pod.to_string())?;
            assert!(refusal.contains("PodSecurity"), "{refusal}");
        }
    }
    Ok(())
}

#[test]
fn root_filesystems_are_read_only() -> Result<()> {
    let objects = render(&EVERYTHING)?;
    for (kind, name) in [("Deployment", "headway-operator"), ("Job", "headway-test")] {
        let pod = pod_of(find(&objects, kind, name)?)?;
        let context = &pod["spec"]["containers"][0]["securityContext"];
        assert_eq!(context["readOnlyRootFilesystem"], true, "{kind}");
    }
    Ok(())
}

#[test]
fn api_server_knows_every_field() -> Result<()> {
    let namespace = Namespace::create("chart-strict")?;
    let objects = render(&EVERYTHING)?;
    for mut object in objects {
        if object["metadata"]["namespace"] == "headway-system" {
            object["metadata"]["namespace"] = namespace.0.into();
        }
        let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
        // Two tests may install the definition meanwhile: only whether it would be taken counts.
        let apply = [
            "apply",
            "--server-side",
            "--force-conflicts",
            "--dry-run=server",
            "--validate=strict",
            "-f=-",
        ];
        kubectl_with(&apply, &object.to_string()).with_context(|| name)?;
    }
    Ok(())
}

/// A pod by the template of its owner.
fn pod_of(owner: &Value) -> Result<Value> {
    let template = owner["spec"]["template"]
        .as_object()
        .context("a template")?;
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]});
    pod["metadata"]["name"] = "pod".into();
    Ok(pod)
}
