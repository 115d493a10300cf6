//! The chart's roles against what the audit log says that the operator did.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, Subject,
};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams};
use serde_json::Value;

use crate::world::World;

/// A request of the operator, from the audit log.
pub struct Request {
    pub time: Timestamp,
    pub verb: String,
    pub group: String,
    /// With the subresource behind a slash.
    pub resource: String,
    pub namespace: String,
    pub name: String,
    pub code: i64,
}

impl fmt::Display for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            time,
            verb,
            group,
            resource,
            namespace,
            name,
            code,
        } = self;
        write!(
            formatter,
            "{time} {verb} {resource}.{group} {namespace}/{name}: {code}"
        )
    }
}

/// Requests for a message.
pub fn list(requests: &[&Request]) -> String {
    requests
        .iter()
        .fold(String::new(), |text, request| format!("{text}{request}\n"))
}

/// API group, resource and verb.
type Permission = (String, String, String);

pub async fn used(world: World) -> Result<()> {
    if !world.cluster().is_ours() {
        return Ok(());
    }
    let requests = requests(&world)?;
    ensure!(
        !requests.is_empty(),
        "the audit log has no request of {}",
        world.installation().user()
    );
    // An API server that has just started refuses what it has not read the roles for yet.
    let is_refused = |request: &&Request| request.code == 403 && !world.is_in_outage(request.time);
    let refused: Vec<_> = requests.iter().filter(is_refused).collect();
    ensure!(refused.is_empty(), "refused:\n{}", list(&refused));
    let mut used = BTreeSet::new();
    for request in requests {
        // An apply that creates needs both.
        if request.verb == "patch" && request.code == 201 {
            used.insert((
                request.group.clone(),
                request.resource.clone(),
                "create".to_owned(),
            ));
        }
        used.insert((request.group, request.resource, request.verb));
    }
    let granted = granted(&world).await?;
    let with_wildcard = granted.iter().find(|(group, resource, verb)| {
        [group, resource, verb].into_iter().any(|part| part == "*")
    });
    ensure!(
        with_wildcard.is_none(),
        "a wildcard is granted: {with_wildcard:?}"
    );
    let unused: Vec<_> = granted.difference(&used).collect();
    ensure!(unused.is_empty(), "granted and never used: {unused:#?}");
    Ok(())
}

/// All requests of the operator that were answered, in order.
pub fn requests(world: &World) -> Result<Vec<Request>> {
    let log = std::fs::read_to_string(world.cluster().audit_log()?)?;
    let user = world.installation().user();
    let mut found = Vec::new();
    // The last line may be half written.
    for line in log
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n') && line.contains(&user))
    {
        let event: Value = serde_json::from_str(line).context("a line of the audit log")?;
        // A watch is logged when it begins and when it ends; both count for its verb.
        if event["user"]["username"] != *user || !event["objectRef"].is_object() {
            continue;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let object = &event["objectRef"];
        let resource = match object["subresource"].as_str() {
            Some(subresource) => format!("{}/{subresource}", text(&object["resource"])),
            None => text(&object["resource"]),
        };
        let time = event["requestReceivedTimestamp"]
            .as_str()
            .context("a time")?;
        found.push(Request {
            time: time.parse()?,
            verb: text(&event["verb"]),
            group: text(&object["apiGroup"]),
            resource,
            namespace: text(&object["namespace"]),
            name: text(&object["name"]),
            code: event["responseStatus"]["code"].as_i64().unwrap_or(0),
        });
    }
    Ok(found)
}

/// Everything that is granted to the operator's account.
async fn granted(world: &World) -> Result<BTreeSet<Permission>> {
    let account = world.installation().account();
    let is_bound = |subjects: &Option<Vec<Subject>>| {
        subjects.iter().flatten().any(|subject| {
            subject.kind == "ServiceAccount"
                && subject.name == account
                && subject.namespace.as_deref() == Some(e2e::operator::NAMESPACE)
        })
    };
    let client = world.client();
    let all = ListParams::default();
    let mut rules: Vec<PolicyRule> = Vec::new();
    for binding in Api::<ClusterRoleBinding>::all(client.clone())
        .list(&all)
        .await?
    {
        if is_bound(&binding.subjects) {
            let role = Api::<ClusterRole>::all(client.clone())
                .get(&binding.role_ref.name)
                .await?;
            rules.extend(role.rules.unwrap_or_default());
        }
    }
    for binding in Api::<RoleBinding>::all(client.clone()).list(&all).await? {
        if is_bound(&binding.subjects) {
            let namespace = binding.metadata.namespace.unwrap_or_default();
            let roles = Api::<Role>::namespaced(client.clone(), &namespace);
            rules.extend(
                roles
                    .get(&binding.role_ref.name)
                    .await?
                    .rules
                    .unwrap_or_default(),
            );
        }
    }
    let mut granted = BTreeSet::new();
    for rule in rules {
        for group in rule.api_groups.unwrap_or_default() {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    granted.insert((group.clone(), resource.clone(), verb.clone()));
                }
            }
        }
    }
    Ok(granted)
}
