//! The command line of tail-server.

use std::num::NonZero;

use crate::crd::auth::Auth;
use crate::crd::limits::{Limits, Quota};
use crate::crd::model::Model;
use crate::crd::tail::{Accelerator, Tail};
use crate::names;
use crate::validate::ValidSpec;

/// Folders within a tail's container.
pub(super) mod folder {
    pub(crate) const CACHE: &str = "/cache";
    pub(crate) const MODEL: &str = "/model";
    pub(crate) const TLS: &str = "/tls";
    pub(crate) const AUTH: &str = "/auth";
    pub(crate) const TMP: &str = "/tmp";
    pub(crate) const HUB: &str = "/hub";
    pub(crate) const IDENTITY: &str = "/identity";
    pub(crate) const CA: &str = "/ca";
    pub(crate) const CLIENT_CA: &str = "/client-ca";
}

/// Before a tail tries again to get its model. It stays, and says why not in a condition.
const RETRY_SECONDS: u32 = 30;

/// The key of an auth Secret that holds the devices' hashed keys.
const AUTH_KEY: &str = "keys";

pub(super) fn tail_arguments(valid: &ValidSpec) -> Vec<String> {
    let spec = &valid.spec;
    let mut arguments = Arguments::default();
    arguments.option("model", model_argument(&spec.model));
    delivery(&spec.model, &mut arguments);
    arguments.option("listen", format!("0.0.0.0:{}", names::TAIL_PORT));
    arguments.option("cache-dir", folder::CACHE);
    if let Some(accelerator) = &spec.tail.accelerator {
        arguments.option("device", device(accelerator));
    }
    arguments.option("dtype", spec.tail.dtype.name());
    arguments.flag_if(spec.tail.deterministic, "deterministic");
    arguments.option("split-min", spec.split.min.to_string());
    arguments.option_if("split-max", spec.split.max);
    arguments.option_if("split-default", spec.split.default);
    let quantizations = spec.edge.quantizations.iter().map(|each| each.name());
    arguments.option("head-quantizations", list(quantizations));
    arguments.option(
        "codecs",
        list(spec.edge.codecs.iter().map(|each| each.name())),
    );
    arguments.flag_if(!spec.edge.token_upload, "no-token-upload");
    arguments.flag_if(spec.edge.on_device_answers, "on-device-answers");
    limits(&spec.tail.limits, valid.kv_bytes, &mut arguments);
    arguments.option("drain-seconds", spec.rollout.drain_seconds.to_string());
    if spec.expose.tls_secret_ref.is_some() {
        arguments.option("tls-cert", format!("{}/tls.crt", folder::TLS));
        arguments.option("tls-key", format!("{}/tls.key", folder::TLS));
    }
    access(&spec.auth, &mut arguments);
    telemetry(&spec.tail, &mut arguments);
    arguments.0
}

/// What is absent is left to the tail, which knows better what its device can do.
fn limits(limits: &Limits, kv_bytes: Option<u64>, arguments: &mut Arguments) {
    arguments.option("max-sessions", limits.sessions.to_string());
    arguments.option_if("max-kv-bytes", kv_bytes);
    arguments.option_if("step-tokens", limits.step_tokens);
    arguments.option("max-queue", limits.queue.to_string());
    arguments.option_if("max-draft-tokens", limits.draft_tokens);
    arguments.option_if("evict-idle-seconds", limits.evict_idle_seconds);
    arguments.option_if("prefix-retention-seconds", limits.prefix_retention_seconds);
    for (who, quota) in [("tenant", limits.per_tenant), ("device", limits.per_device)] {
        let Quota {
            sessions,
            tokens_per_second,
        } = quota;
        arguments.option_if(&format!("{who}-max-sessions"), sessions);
        arguments.option_if(&format!("{who}-tokens-per-second"), tokens_per_second);
    }
}

fn access(auth: &Auth, arguments: &mut Arguments) {
    if auth.secret_ref.is_some() {
        arguments.option("auth-keys", format!("{}/{AUTH_KEY}", folder::AUTH));
    }
    if let Some(oidc) = &auth.oidc {
        arguments.option("oidc-issuer", &oidc.issuer);
        arguments.option("oidc-audience", &oidc.audience);
        arguments.option_if("oidc-jwks", oidc.jwks_url.as_ref());
        arguments.option_if("oidc-tenant-claim", oidc.tenant_claim.as_ref());
    }
    if let Some(authorities) = &auth.client_ca_config_map_ref {
        let file = format!("{}/{}", folder::CLIENT_CA, authorities.key);
        arguments.option("tls-client-ca", file);
    }
    arguments.flag_if(auth.allow_anonymous, "allow-anonymous");
    if !auth.allowed_origins.is_empty() {
        arguments.option("allowed-origins", list(&auth.allowed_origins));
    }
}

fn telemetry(tail: &Tail, arguments: &mut Arguments) {
    let format = tail.log.format.map(|format| format.name());
    arguments.option_if("log-format", format);
    arguments.option_if("log-filter", tail.log.filter.as_ref());
    arguments.option_if("otlp-endpoint", tail.tracing.otlp_endpoint.as_ref());
}

fn delivery(model: &Model, arguments: &mut Arguments) {
    if let Some(sha256) = &model.sha256 {
        arguments.option("model-sha256", sha256);
    }
    if let Some(identity) = &model.identity_config_map_ref {
        arguments.option(
            "model-identity",
            format!("{}/{}", folder::IDENTITY, identity.key),
        );
    }
    if let Some(secret) = &model.credentials_secret_ref {
        arguments.option("hub-token-file", format!("{}/{}", folder::HUB, secret.key));
    }
    if let Some(ca) = &model.ca_config_map_ref {
        arguments.option("model-ca", format!("{}/{}", folder::CA, ca.key));
    }
    arguments.option("retry-seconds", RETRY_SECONDS.to_string());
}

#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    /// One word each, so that a value that begins with a dash stays a value.
    fn option(&mut self, name: &str, value: impl AsRef<str>) {
        self.0.push(format!("--{name}={}", value.as_ref()));
    }

    fn option_if(&mut self, name: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.option(name, value.to_string());
        }
    }

    fn flag_if(&mut self, given: bool, name: &str) {
        if given {
            self.0.push(format!("--{name}"));
        }
    }
}

/// The source in tail-server's words: the revision goes behind the repository, a volume becomes a folder.
fn model_argument(model: &Model) -> String {
    if let Some((_, path)) = claim_and_path(&model.source) {
        return format!("{}/{path}", folder::MODEL);
    }
    let (Some(revision), Some(path)) = (&model.revision, model.source.strip_prefix("hf://")) else {
        return model.source.clone();
    };
    let mut parts = path.splitn(3, '/');
    let (organisation, repository) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let file = parts.next().map(|file| format!("/{file}"));
    let file = file.unwrap_or_default();
    format!("hf://{organisation}/{repository}@{revision}{file}")
}

/// Claim and path of a `pvc://claim/path`.
pub(super) fn claim_and_path(source: &str) -> Option<(&str, &str)> {
    source.strip_prefix("pvc://")?.split_once('/')
}

fn device(accelerator: &Accelerator) -> String {
    let count = NonZero::new(accelerator.count).map_or(1, NonZero::get);
    list((0..count).map(|index| format!("cuda:{index}")))
}

fn list(words: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let words: Vec<_> = words.into_iter().collect();
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argument(source: &str, revision: Option<&str>) -> String {
        model_argument(&Model {
            source: source.to_owned(),
            revision: revision.map(str::to_owned),
            credentials_secret_ref: None,
            sha256: None,
            identity_config_map_ref: None,
            ca_config_map_ref: None,
            cache: crate::crd::model::ModelCache::default(),
        })
    }

    #[test]
    fn revision_stands_behind_the_repository() {
        assert_eq!(
            argument("hf://org/model", Some("main")),
            "hf://org/model@main"
        );
        assert_eq!(
            argument("hf://org/model/sub/model.gguf", Some("v1")),
            "hf://org/model@v1/sub/model.gguf"
        );
        assert_eq!(
            argument("hf://org/model/m.gguf", None),
            "hf://org/model/m.gguf"
        );
    }

    #[test]
    fn claim_becomes_a_folder() {
        assert_eq!(
            argument("pvc://weights/smol/model.gguf", None),
            "/model/smol/model.gguf"
        );
        assert_eq!(
            claim_and_path("pvc://weights/smol/m"),
            Some(("weights", "smol/m"))
        );
        assert_eq!(claim_and_path("hf://org/model"), None);
    }

    #[test]
    fn every_gpu_of_a_pod_is_named() {
        let accelerator = |count| Accelerator {
            resource_name: Some("nvidia.com/gpu".to_owned()),
            device_class_name: None,
            count,
        };
        assert_eq!(device(&accelerator(1)), "cuda:0");
        assert_eq!(device(&accelerator(3)), "cuda:0,cuda:1,cuda:2");
    }
}
