//! The template of tail pods. It meets the `restricted` Pod Security Standard.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource,
    HTTPGetAction, KeyToPath, Lifecycle, LifecycleHandler, PersistentVolumeClaimVolumeSource,
    PodResourceClaim, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceClaim,
    ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, SleepAction, Volume,
    VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::tail_arguments::{claim_and_path, folder, tail_arguments};
use super::{Settings, labels, resource_claim_template};
use crate::crd::ConfigMapKeyRef;
use crate::crd::model::Model;
use crate::crd::tail::ExtraVolume;
use crate::kinds::OwnedKind;
use crate::names;
use crate::validate::ValidSpec;

/// Not root, and no account of the image's.
const USER_ID: i64 = 65_532;
/// Between the end of readiness and the signal to stop, so that load balancers notice the first before the second.
const PRE_STOP_SECONDS: i64 = 3;
/// Beyond draining, until the kubelet kills.
const GRACE_SECONDS: i64 = 10;
const START_PERIOD_SECONDS: i32 = 2;
/// Five minutes until the process answers. It does so before it has its model, whose download may take any time.
const START_FAILURES: i32 = 150;

pub(super) fn template(valid: &ValidSpec, settings: &Settings) -> PodTemplateSpec {
    let mut labels = labels(valid);
    labels.extend(valid.spec.tail.pod_labels.clone());
    let annotations = &valid.spec.tail.pod_annotations;
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: present(annotations.clone()),
            ..ObjectMeta::default()
        }),
        spec: Some(pod_spec(valid, settings)),
    }
}

fn pod_spec(valid: &ValidSpec, settings: &Settings) -> PodSpec {
    let tail = &valid.spec.tail;
    let drain_seconds = i64::from(valid.spec.rollout.drain_seconds);
    PodSpec {
        service_account_name: Some(names::owned(&valid.owner.name)),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(PRE_STOP_SECONDS + drain_seconds + GRACE_SECONDS),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER_ID),
            run_as_group: Some(USER_ID),
            fs_group: Some(USER_ID),
            // Without it, every file of a large cache gets its owner set at each start.
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        containers: vec![container(valid, settings)],
        volumes: Some(volumes(valid)),
        resource_claims: claim_name(valid).map(|template| {
            vec![PodResourceClaim {
                name: resource_claim_template::REQUEST.to_owned(),
                resource_claim_template_name: Some(template),
                ..PodResourceClaim::default()
            }]
        }),
        image_pull_secrets: non_empty(&tail.image_pull_secrets),
        node_selector: present(tail.node_selector.clone()),
        tolerations: non_empty(&tail.tolerations),
        affinity: tail.affinity.clone(),
        topology_spread_constraints: non_empty(&tail.topology_spread_constraints),
        runtime_class_name: tail.runtime_class_name.clone(),
        priority_class_name: tail.priority_class_name.clone(),
        ..PodSpec::default()
    }
}

fn container(valid: &ValidSpec, settings: &Settings) -> Container {
    let tail = &valid.spec.tail;
    let image = tail.image.as_ref().unwrap_or(&settings.tail_image);
    Container {
        name: names::TAIL.to_owned(),
        image: Some(image.clone()),
        image_pull_policy: tail
            .image_pull_policy
            .map(|policy| policy.name().to_owned()),
        args: Some(tail_arguments(valid)),
        ports: Some(vec![ContainerPort {
            name: Some(names::TAIL.to_owned()),
            container_port: names::TAIL_PORT,
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        startup_probe: Some(probe(
            valid,
            "/healthz",
            START_PERIOD_SECONDS,
            START_FAILURES,
        )),
        liveness_probe: Some(probe(valid, "/healthz", 10, 6)),
        readiness_probe: Some(probe(valid, "/readyz", 2, 2)),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction {
                    seconds: PRE_STOP_SECONDS,
                }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        resources: Some(resources(valid)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                add: None,
            }),
            ..SecurityContext::default()
        }),
        // The last counters of a pod that has ended.
        termination_message_policy: Some("File".to_owned()),
        volume_mounts: Some(mounts(valid)),
        ..Container::default()
    }
}

fn probe(valid: &ValidSpec, path: &str, period_seconds: i32, failures: i32) -> Probe {
    let is_tls = valid.spec.expose.tls_secret_ref.is_some();
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(names::TAIL.to_owned()),
            scheme: is_tls.then(|| "HTTPS".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(2),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn resources(valid: &ValidSpec) -> ResourceRequirements {
    let tail = &valid.spec.tail;
    let mut limits = quantities(&tail.resources.limits);
    if let Some(accelerator) = &tail.accelerator
        && let Some(resource) = &accelerator.resource_name
    {
        // Requests of extended resources follow their limits.
        limits.insert(resource.clone(), Quantity(accelerator.count.to_string()));
    }
    ResourceRequirements {
        requests: present(quantities(&tail.resources.requests)),
        limits: present(limits),
        claims: claim_name(valid).map(|_| {
            vec![ResourceClaim {
                name: resource_claim_template::REQUEST.to_owned(),
                request: None,
            }]
        }),
    }
}

fn quantities(amounts: &BTreeMap<String, IntOrString>) -> BTreeMap<String, Quantity> {
    let text = |amount: &IntOrString| match amount {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(text) => text.clone(),
    };
    amounts
        .iter()
        .map(|(name, amount)| (name.clone(), Quantity(text(amount))))
        .collect()
}

/// Name of the ResourceClaimTemplate, where the accelerator comes by dynamic resource allocation.
fn claim_name(valid: &ValidSpec) -> Option<String> {
    let accelerator = valid.spec.tail.accelerator.as_ref()?;
    accelerator.device_class_name.as_ref()?;
    Some(OwnedKind::ResourceClaimTemplate.object_name(&valid.owner.name))
}

fn volumes(valid: &ValidSpec) -> Vec<Volume> {
    let spec = &valid.spec;
    let cache = match &spec.model.cache.claim_name {
        Some(claim) => claim_volume("headway-cache", claim, false),
        None => empty_volume("headway-cache", spec.model.cache.size_limit.as_deref()),
    };
    let mut volumes = vec![cache, empty_volume("headway-tmp", Some("64Mi"))];
    if let Some((claim, _)) = claim_and_path(&spec.model.source) {
        volumes.push(claim_volume("headway-model", claim, true));
    }
    volumes.extend(delivery_volumes(&spec.model));
    if let Some(secret) = &spec.expose.tls_secret_ref {
        volumes.push(secret_volume("headway-tls", &secret.name));
    }
    if let Some(secret) = &spec.auth.secret_ref {
        volumes.push(secret_volume("headway-auth", &secret.name));
    }
    if let Some(authorities) = &spec.auth.client_ca_config_map_ref {
        volumes.push(config_map_volume("headway-client-ca", authorities));
    }
    volumes.extend(spec.tail.extra_volumes.iter().map(extra_volume));
    volumes
}

/// What the tail needs to get its model. As files, because a file that is put right is read at the next attempt; and
/// optional, because the tail says in a condition what is missing, and a pod that cannot start says it in an event.
fn delivery_volumes(model: &Model) -> Vec<Volume> {
    let optional = |name: &str, source: &ConfigMapKeyRef| {
        let mut volume = config_map_volume(name, source);
        if let Some(source) = &mut volume.config_map {
            source.optional = Some(true);
        }
        volume
    };
    let token = model.credentials_secret_ref.as_ref().map(|source| Volume {
        name: "headway-hub".to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(source.name.clone()),
            items: item(&source.key),
            optional: Some(true),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    });
    let identity = model.identity_config_map_ref.as_ref();
    let identity = identity.map(|source| optional("headway-identity", source));
    let ca = model.ca_config_map_ref.as_ref();
    let ca = ca.map(|source| optional("headway-ca", source));
    [token, identity, ca].into_iter().flatten().collect()
}

fn mounts(valid: &ValidSpec) -> Vec<VolumeMount> {
    let spec = &valid.spec;
    let mut mounts = vec![
        mount("headway-cache", folder::CACHE, false),
        mount("headway-tmp", folder::TMP, false),
    ];
    if claim_and_path(&spec.model.source).is_some() {
        mounts.push(mount("headway-model", folder::MODEL, true));
    }
    let model = &spec.model;
    let of_delivery = [
        (
            "headway-hub",
            folder::HUB,
            model.credentials_secret_ref.is_some(),
        ),
        (
            "headway-identity",
            folder::IDENTITY,
            model.identity_config_map_ref.is_some(),
        ),
        ("headway-ca", folder::CA, model.ca_config_map_ref.is_some()),
    ];
    let wanted = of_delivery
        .into_iter()
        .filter(|(_, _, is_wanted)| *is_wanted);
    mounts.extend(wanted.map(|(name, path, _)| mount(name, path, true)));
    if spec.expose.tls_secret_ref.is_some() {
        mounts.push(mount("headway-tls", folder::TLS, true));
    }
    if spec.auth.secret_ref.is_some() {
        mounts.push(mount("headway-auth", folder::AUTH, true));
    }
    if spec.auth.client_ca_config_map_ref.is_some() {
        mounts.push(mount("headway-client-ca", folder::CLIENT_CA, true));
    }
    mounts.extend(spec.tail.extra_volume_mounts.iter().cloned());
    mounts
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

fn empty_volume(name: &str, size_limit: Option<&str>) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: None,
            size_limit: size_limit.map(|size| Quantity(size.to_owned())),
        }),
        ..Volume::default()
    }
}

fn claim_volume(name: &str, claim: &str, read_only: bool) -> Volume {
    Volume {
        name: name.to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim.to_owned(),
            read_only: read_only.then_some(true),
        }),
        ..Volume::default()
    }
}

fn secret_volume(name: &str, secret: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn config_map_volume(name: &str, source: &ConfigMapKeyRef) -> Volume {
    Volume {
        name: name.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: source.name.clone(),
            items: item(&source.key),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// One key of a Secret or ConfigMap, as a file of that name.
fn item(key: &str) -> Option<Vec<KeyToPath>> {
    Some(vec![KeyToPath {
        key: key.to_owned(),
        path: key.to_owned(),
        mode: None,
    }])
}

fn extra_volume(extra: &ExtraVolume) -> Volume {
    let ExtraVolume {
        name,
        config_map,
        csi,
        empty_dir,
        persistent_volume_claim,
        projected,
        secret,
    } = extra.clone();
    Volume {
        name,
        config_map,
        csi,
        empty_dir,
        persistent_volume_claim,
        projected,
        secret,
        ..Volume::default()
    }
}

/// Empty maps and lists are left out: the API server would drop them, and the operator would not own them.
fn present<V>(map: BTreeMap<String, V>) -> Option<BTreeMap<String, V>> {
    (!map.is_empty()).then_some(map)
}

fn non_empty<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    (!list.is_empty()).then(|| list.to_vec())
}
