//! The roles hold what the operator uses, and nothing else.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::chart::{find, render};

/// What the operator does with each kind of object that a SplitModel can own.
const OWNED: [&str; 6] = ["get", "list", "watch", "create", "patch", "delete"];

#[test]
fn cluster_role_holds_exactly_what_the_operator_uses() -> Result<()> {
    let mut expected = vec![
        rule("headway.dev", &["splitmodels"], &["list", "watch", "patch"]),
        rule("headway.dev", &["splitmodels/status"], &["patch"]),
        rule("apps", &["deployments"], &OWNED),
        rule("apps", &["replicasets"], &["list"]),
        rule("", &["services", "serviceaccounts"], &OWNED),
        rule("networking.k8s.io", &["networkpolicies"], &OWNED),
        rule("policy", &["poddisruptionbudgets"], &OWNED),
        rule("discovery.k8s.io", &["endpointslices"], &OWNED),
        rule("", &["pods"], &["list", "watch", "patch"]),
        rule("events.k8s.io", &["events"], &["create", "patch"]),
    ];
    let always = expected.len();
    expected.extend([
        rule("resource.k8s.io", &["resourceclaimtemplates"], &OWNED),
        rule("gateway.networking.k8s.io", &["httproutes"], &OWNED),
        rule("keda.sh", &["scaledobjects"], &OWNED),
        rule("monitoring.coreos.com", &["podmonitors"], &OWNED),
    ]);
    assert_eq!(rules("ClusterRole", &[])?, expected);
    let flags = [
        "resourceClaimTemplates",
        "httpRoutes",
        "scaledObjects",
        "podMonitors",
    ];
    for (index, flag) in flags.into_iter().enumerate() {
        let mut without = expected.clone();
        without.remove(always + index);
        let value = format!("rbac.{flag}=false");
        assert_eq!(rules("ClusterRole", &["--set", &value])?, without, "{flag}");
    }
    Ok(())
}

#[test]
fn role_holds_one_lease() -> Result<()> {
    let lease = |name: &str| {
        let mut named = rule("coordination.k8s.io", &["leases"], &["get", "patch"]);
        named["resourceNames"] = json!([name]);
        vec![rule("coordination.k8s.io", &["leases"], &["create"]), named]
    };
    assert_eq!(rules("Role", &[])?, lease("headway"));
    let named = ["--set", "leaderElection.leaseName=other"];
    assert_eq!(rules("Role", &named)?, lease("other"));
    Ok(())
}

#[test]
fn every_binding_is_of_the_operators_account() -> Result<()> {
    for (values, account) in [
        (&[][..], "headway-operator"),
        (&["--set", "serviceAccount.name=other"], "other"),
        (&["--set", "serviceAccount.create=false"], "default"),
    ] {
        let objects = render(values)?;
        let deployment = find(&objects, "Deployment", "headway-operator")?;
        assert_eq!(
            deployment["spec"]["template"]["spec"]["serviceAccountName"],
            account
        );
        for kind in ["ClusterRoleBinding", "RoleBinding"] {
            let binding = find(&objects, kind, "headway-operator")?;
            let subject =
                json!({"kind": "ServiceAccount", "name": account, "namespace": "headway-system"});
            assert_eq!(binding["subjects"], json!([subject]), "{kind}");
        }
    }
    Ok(())
}

#[test]
fn no_role_has_a_wildcard() -> Result<()> {
    let objects = render(&[])?;
    let words: BTreeSet<String> = objects
        .iter()
        .filter_map(|object| object["rules"].as_array())
        .flatten()
        .map(Value::to_string)
        .collect();
    assert!(words.iter().all(|rule| !rule.contains('*')), "{words:?}");
    Ok(())
}

fn rules(kind: &str, values: &[&str]) -> Result<Vec<Value>> {
    let objects = render(values)?;
    let rules = find(&objects, kind, "headway-operator")?["rules"].as_array();
    rules.cloned().context("a role has rules")
}

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": resources, "verbs": verbs})
}
