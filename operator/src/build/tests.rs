use serde_json::json;

use super::*;
use crate::validate::tests::splitmodel;

fn settings() -> Settings {
    Settings {
        tail_image: "tail-server:1".to_owned(),
        pod_monitors: true,
    }
}

fn built(spec: Value) -> Desired {
    built_as(spec, &Standing::default())
}

fn built_as(spec: Value, standing: &Standing) -> Desired {
    build(
        &ValidSpec::check(&splitmodel(spec)).unwrap(),
        &settings(),
        standing,
    )
}

fn minimal() -> Value {
    json!({"model": {"source": "hf://org/smol"}, "auth": {"allowAnonymous": true}})
}

fn full() -> Value {
    json!({
        "model": {
            "source": "hf://org/llama/model.gguf",
            "revision": "v2",
            "sha256": "ab".repeat(32),
            "identityConfigMapRef": {"name": "llama", "key": "identity.json"},
            "caConfigMapRef": {"name": "authorities", "key": "ca.crt"},
            "credentialsSecretRef": {"name": "hub", "key": "token"},
            "cache": {"sizeLimit": "40Gi"},
        },
        "split": {"min": 4, "max": 24, "default": 16},
        "edge": {"quantizations": ["q8_0"], "codecs": ["f16"], "tokenUpload": false, "onDeviceAnswers": true},
        "tail": {
            "image": "registry/tail:2",
            "imagePullPolicy": "Always",
            "imagePullSecrets": [{"name": "pull"}],
            "dtype": "fp8",
            "deterministic": true,
            "accelerator": {"deviceClassName": "gpu.example.com", "count": 2},
            "limits": {"sessions": 256, "kvMemory": "16Gi", "stepTokens": 512, "queue": 99, "draftTokens": 8,
                "evictIdleSeconds": 60, "prefixRetentionSeconds": 0,
                "perTenant": {"sessions": 64, "tokensPerSecond": 2000}, "perDevice": {"sessions": 2}},
            "log": {"format": "json", "filter": "info,tail_server=debug"},
            "tracing": {"otlpEndpoint": "http://collector:4318"},
            "resources": {"requests": {"cpu": 4, "memory": "8Gi"}, "limits": {"memory": "8Gi"}},
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "spot", "operator": "Exists"}],
            "affinity": {"podAntiAffinity": {}},
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
            ],
            "runtimeClassName": "nvidia",
            "priorityClassName": "high",
            "podLabels": {"team": "a"},
            "podAnnotations": {"note": "b"},
            "extraVolumes": [{"name": "extra", "configMap": {"name": "config"}}],
            "extraVolumeMounts": [{"name": "extra", "mountPath": "/extra"}],
        },
        "autoscaling": {"provider": "keda", "min": 0, "max": 4, "keda": {"prometheusAddress": "http://prometheus:9090"}},
        "expose": {
            "serviceType": "LoadBalancer",
            "serviceAnnotations": {"lb": "internal"},
            "httpRoute": {"host": "llama.example.com", "parentRefs": [{"name": "gw", "namespace": "edge", "sectionName": "https"}]},
            "tlsSecretRef": {"name": "cert"},
        },
        "auth": {
            "secretRef": {"name": "keys"},
            "oidc": {"issuer": "https://login.example.com:8443/", "audience": "headway", "tenantClaim": "org"},
            "clientCaConfigMapRef": {"name": "devices", "key": "ca.crt"},
            "allowedOrigins": ["https://app.example.com"],
        },
        "rollout": {"maxSurge": 0, "drainSeconds": 120},
    })
}

/// Compares with a file, or writes it where the environment variable `UPDATE_GOLDEN` is set.
fn assert_golden(name: &str, desired: &Desired) {
    let documents: Vec<String> = desired
        .objects
        .iter()
        .map(|object| serde_saphyr::to_string(&object.manifest).unwrap())
        .collect();
    let text = documents.join("---\n");
    let path = format!(
        "{}/src/build/golden/{name}.yaml",
        env!("CARGO_MANIFEST_DIR")
    );
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert!(
        text == golden,
        "{path} differs; set UPDATE_GOLDEN=1 to write it, and read the difference"
    );
}

#[test]
fn minimal_spec_gives_the_golden_objects() {
    assert_golden("minimal", &built(minimal()));
}

#[test]
fn full_spec_gives_the_golden_objects() {
    assert_golden("full", &built(full()));
}

#[test]
fn same_spec_gives_the_same_digests() {
    let digests = |desired: Desired| -> Vec<String> {
        desired
            .objects
            .into_iter()
            .map(|object| object.digest)
            .collect()
    };
    assert_eq!(digests(built(full())), digests(built(full())));
    assert_ne!(digests(built(full())), digests(built(minimal())));
}

#[test]
fn replicas_are_kept_within_the_bounds_of_their_provider() {
    let with = |provider: &str, replicas: i32, min: i32| {
        let mut spec = minimal();
        spec["replicas"] = replicas.into();
        spec["autoscaling"] = json!({"provider": provider, "min": min, "max": 5});
        if provider == "keda" {
            spec["autoscaling"]["keda"] = json!({"prometheusAddress": "http://prometheus:9090"});
        }
        built(spec).replicas
    };
    assert_eq!(with("operator", 0, 2), Some(2));
    assert_eq!(with("operator", 9, 2), Some(5));
    assert_eq!(with("operator", 0, 0), Some(0));
    assert_eq!(with("none", 0, 2), Some(0));
    assert_eq!(with("keda", 3, 2), None);
}

#[test]
fn what_stands_goes_before_what_the_spec_asks_for_and_is_kept_within_bounds() {
    let with = |replicas| {
        let mut spec = minimal();
        spec["replicas"] = 4.into();
        spec["autoscaling"] = json!({"min": 2, "max": 5});
        let standing = Standing {
            replicas: Some(replicas),
            door: None,
        };
        let desired = built_as(spec, &standing);
        let deployment = desired.objects.last().unwrap().manifest.clone();
        let asked = deployment["metadata"]["annotations"][names::ASKED_ANNOTATION].clone();
        assert_eq!(asked, "4");
        (desired.replicas, deployment["spec"]["replicas"].clone())
    };
    assert_eq!(with(3), (Some(3), json!(3)));
    assert_eq!(with(9), (Some(5), json!(5)));
    assert_eq!(with(0), (Some(2), json!(2)));
}

#[test]
fn a_door_is_an_endpoint_of_the_service() {
    let slice = |door: Option<&str>| {
        let standing = Standing {
            replicas: Some(0),
            door: door.map(|door| door.parse().unwrap()),
        };
        let desired = built_as(minimal(), &standing);
        let mut objects = desired.objects.into_iter();
        let slice = objects.find(|object| object.kind == OwnedKind::EndpointSlice);
        slice.map(|slice| slice.manifest)
    };
    assert_eq!(slice(None), None);
    let four = slice(Some("10.0.0.7:9100")).unwrap();
    assert_eq!(four["addressType"], "IPv4");
    assert_eq!(four["endpoints"][0]["addresses"], json!(["10.0.0.7"]));
    assert_eq!(four["ports"][0]["port"], 9100);
    let labels = &four["metadata"]["labels"];
    assert_eq!(labels["kubernetes.io/service-name"], "smol-tail");
    // Kubernetes' own controller leaves it alone.
    assert_eq!(
        labels["endpointslice.kubernetes.io/managed-by"],
        names::MANAGED_BY
    );
    assert_eq!(
        slice(Some("[fd00::7]:9100")).unwrap()["addressType"],
        "IPv6"
    );
}

#[test]
fn grace_period_outlasts_the_drain() {
    let desired = built(full());
    let deployment = desired.objects.last().unwrap();
    let pod = &deployment.manifest["spec"]["template"]["spec"];
    let drain_seconds = 120;
    assert!(pod["terminationGracePeriodSeconds"].as_i64().unwrap() > drain_seconds);
}

#[test]
fn names_of_the_longest_splitmodel_fit_into_a_dns_label() {
    let longest = "a".repeat(52);
    for kind in OwnedKind::ALL {
        assert!(kind.object_name(&longest).len() <= 63, "{kind:?}");
    }
}

#[test]
fn endpoint_is_what_devices_can_reach() {
    let endpoint_of = |spec| endpoint(&ValidSpec::check(&splitmodel(spec)).unwrap());
    assert_eq!(endpoint_of(minimal()), "ws://smol-tail.models.svc:8089");
    assert_eq!(endpoint_of(full()), "wss://llama.example.com");
    let mut tls = minimal();
    tls["expose"] = json!({"tlsSecretRef": {"name": "cert"}});
    assert_eq!(endpoint_of(tls), "wss://smol-tail.models.svc:8089");
}
