//! A release from its installation to its end, and beyond.

use anyhow::{Context as _, Result, bail};

use crate::chart::{
    DEFINITION, Namespace, TIMEOUT, await_definition, helm, helm_refuses, kubectl, kubectl_with,
    object, without_definition,
};

#[test]
fn installed_release_works_and_its_notes_can_be_followed() -> Result<()> {
    let Some(_guard) = without_definition()? else {
        return Ok(());
    };
    let namespace = Namespace::create("chart-install")?;
    let of = format!("--namespace={}", namespace.0);
    let notes = helm(&["install", "headway", "CHART", &of, "--wait", TIMEOUT])?;
    let deployment = object(&["deployment", "headway-operator", &of])?;
    assert_eq!(deployment["status"]["readyReplicas"], 2);
    let tested = helm(&["test", "headway", &of, TIMEOUT])?;
    assert!(tested.contains("Phase:          Succeeded"), "{tested}");
    let jobs = object(&["jobs", &of])?;
    assert_eq!(
        jobs["items"].as_array().map(Vec::len),
        Some(0),
        "a test that passed is gone"
    );
    // The notes: wait, create, look.
    await_definition()?;
    let rollout = command_after(&notes, "kubectl --namespace chart-install rollout status ")?;
    kubectl(&["rollout", "status", rollout, &of, TIMEOUT])?;
    let manifest = between(
        &notes,
        "kubectl apply --server-side -f - <<'EOF'\n",
        "\nEOF\n",
    )?;
    kubectl_with(
        &[
            "apply",
            "--server-side",
            "--validate=strict",
            &of,
            "--filename=-",
        ],
        manifest,
    )?;
    assert!(notes.contains("kubectl get splitmodels"), "{notes}");
    let listed = kubectl(&["get", "splitmodels", &of])?;
    assert!(listed.contains("smollm2"), "{listed}");
    Ok(())
}

#[test]
fn rights_of_people_and_of_the_operator_are_as_documented() -> Result<()> {
    let Some(_guard) = without_definition()? else {
        return Ok(());
    };
    let namespace = Namespace::create("chart-rights")?;
    let of = format!("--namespace={}", namespace.0);
    helm(&["install", "headway", "CHART", &of, "--wait", TIMEOUT])?;
    for role in ["view", "edit", "admin"] {
        let bind = ["create", "rolebinding", role, &of];
        kubectl(
            &[
                &bind[..],
                &[&format!("--clusterrole={role}"), &format!("--user={role}")],
            ]
            .concat(),
        )?;
        // Roles are put together by the controller manager, after the answer.
        let sees = r#"--for=jsonpath={.rules[?(@.resources[0]=="splitmodels")].verbs[?(@=="watch")]}=watch"#;
        kubectl(&["wait", "clusterrole", role, sees, TIMEOUT])?;
    }
    let account = "system:serviceaccount:chart-rights:headway-operator";
    // Who; what; whether they may, in that namespace.
    let cases = [
        ("view", "watch splitmodels.headway.dev", true),
        ("view", "get splitmodels.headway.dev/status", true),
        ("view", "patch splitmodels.headway.dev", false),
        ("view", "patch splitmodels.headway.dev/scale", false),
        ("edit", "create splitmodels.headway.dev", true),
        ("edit", "delete splitmodels.headway.dev", true),
        ("edit", "patch splitmodels.headway.dev/scale", true),
        ("edit", "patch splitmodels.headway.dev/status", false),
        ("admin", "update splitmodels.headway.dev", true),
        ("admin", "patch splitmodels.headway.dev/status", false),
        (account, "patch splitmodels.headway.dev/status", true),
        (account, "patch leases.coordination.k8s.io/headway", true),
        (account, "patch leases.coordination.k8s.io/other", false),
        (account, "create splitmodels.headway.dev", false),
        (account, "delete splitmodels.headway.dev", false),
        (account, "get secrets", false),
        (account, "create pods", false),
        (account, "get pods/log", false),
        (account, "create pods/exec", false),
        (
            account,
            "create rolebindings.rbac.authorization.k8s.io",
            false,
        ),
    ];
    for (who, what, expected) in cases {
        assert_eq!(may(who, what, &of)?, expected, "{who}: {what}");
    }
    Ok(())
}

#[test]
fn savings_outlive_the_release_and_the_next_one_takes_over() -> Result<()> {
    let Some(_guard) = without_definition()? else {
        return Ok(());
    };
    let namespace = Namespace::create("chart-reinstall")?;
    let of = format!("--namespace={}", namespace.0);
    helm(&["install", "headway", "CHART", &of, "--wait", TIMEOUT])?;
    await_definition()?;
    create_with_savings(&of)?;
    let said = helm(&["uninstall", "headway", &of, "--wait", TIMEOUT])?;
    assert!(
        said.contains(&format!("[CustomResourceDefinition] {DEFINITION}")),
        "{said}"
    );
    assert_savings(&of)?;
    // The definition still says whose it is.
    let refusal = helm_refuses(&["install", "other", "CHART", &of])?;
    assert!(
        refusal.contains(DEFINITION) && refusal.contains(r#"current value is "headway""#),
        "{refusal}"
    );
    helm(&["install", "headway", "CHART", &of, "--wait", TIMEOUT])?;
    assert_savings(&of)?;
    helm(&["uninstall", "headway", &of, "--wait", TIMEOUT])?;
    helm(&[
        "install",
        "other",
        "CHART",
        &of,
        "--take-ownership",
        "--wait",
        TIMEOUT,
    ])?;
    let definition = object(&["crd", DEFINITION])?;
    assert_eq!(
        definition["metadata"]["annotations"]["meta.helm.sh/release-name"],
        "other"
    );
    assert_savings(&of)?;
    Ok(())
}

#[test]
fn definition_goes_with_the_release_where_it_is_not_kept() -> Result<()> {
    let Some(_guard) = without_definition()? else {
        return Ok(());
    };
    let namespace = Namespace::create("chart-not-kept")?;
    let of = format!("--namespace={}", namespace.0);
    helm(&[
        "install",
        "headway",
        "CHART",
        &of,
        "--set",
        "crds.keep=false",
        "--wait",
        TIMEOUT,
    ])?;
    await_definition()?;
    helm(&["uninstall", "headway", &of, "--wait", TIMEOUT])?;
    kubectl(&["wait", "--for=delete", "crd", DEFINITION, TIMEOUT])?;
    Ok(())
}

/// A SplitModel `kept` whose status holds savings, written as the operator writes them.
pub fn create_with_savings(of: &str) -> Result<()> {
    let splitmodel = r#"{
        "apiVersion": "headway.dev/v1alpha1", "kind": "SplitModel", "metadata": {"name": "kept"},
        "spec": {"model": {"source": "hf://org/model"}, "auth": {"allowAnonymous": true}}
    }"#;
    kubectl_with(
        &[
            "apply",
            "--server-side",
            "--validate=strict",
            of,
            "--filename=-",
        ],
        splitmodel,
    )?;
    let savings = r#"{"status": {"savings": {"usedGpuSeconds": 12.5, "savedGpuSeconds": 30.25}}}"#;
    kubectl(&[
        "patch",
        "splitmodel",
        "kept",
        of,
        "--subresource=status",
        "--type=merge",
        "-p",
        savings,
    ])?;
    Ok(())
}

pub fn assert_savings(of: &str) -> Result<()> {
    let splitmodel = object(&["splitmodel", "kept", of])?;
    let savings = &splitmodel["status"]["savings"];
    assert_eq!(savings["usedGpuSeconds"], 12.5);
    assert_eq!(savings["savedGpuSeconds"], 30.25);
    Ok(())
}

fn may(who: &str, what: &str, of: &str) -> Result<bool> {
    let (verb, resource) = what.split_once(' ').context("a verb and a resource")?;
    // A subresource is an option, and what is left behind a slash a name.
    let (resource, subresource) = match resource.split_once('/') {
        Some((resource, part @ ("status" | "scale" | "log" | "exec"))) => (resource, part),
        _ => (resource, ""),
    };
    let subresource = format!("--subresource={subresource}");
    // It ends with 1 where the answer is no.
    let script = [
        "auth",
        "can-i",
        verb,
        resource,
        &subresource,
        of,
        "--as",
        who,
        "-q",
    ];
    let output = cluster_rig::shared().kubectl(&script).output()?;
    match output.status.code() {
        Some(0) => Ok(true),
        Some(1) if output.stderr.is_empty() => Ok(false),
        _ => bail!("{script:?}: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// The rest of the line that begins with `command`.
fn command_after<'a>(text: &'a str, command: &str) -> Result<&'a str> {
    between(text, command, "\n")
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Result<&'a str> {
    let found = text
        .split_once(start)
        .and_then(|(_, rest)| rest.split_once(end));
    Ok(found
        .with_context(|| format!("{start:?} is not in:\n{text}"))?
        .0)
}
