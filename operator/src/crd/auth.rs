//! `spec.auth`: who may use the tails.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigMapKeyRef, SecretRef};

/// Who may use the tails. Where there are several kinds of credentials, one of them is enough.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.secretRef) || has(self.oidc) || has(self.clientCaConfigMapRef)) != self.allowAnonymous")
        .message("choose: auth.secretRef names the Secret with the devices' hashed keys, auth.oidc the issuer of their JWTs, auth.clientCaConfigMapRef the authorities of their certificates; or auth.allowAnonymous: true lets everybody in who can reach a tail")
        .field_path(".allowAnonymous"),
)]
pub struct Auth {
    /// A Secret whose key `keys` holds the hashed keys of devices, one line each. Pods reload it by
    /// themselves when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// The issuer whose JWTs devices show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oidc: Option<Oidc>,
    /// Certificate authorities in PEM: a device with a certificate of theirs may use the tails. It takes
    /// `expose.tlsSecretRef`: certificates are shown where TLS ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca_config_map_ref: Option<ConfigMapKeyRef>,
    /// Lets everybody in who can reach a tail.
    #[serde(default)]
    pub allow_anonymous: bool,
    /// Origins of web pages that may open sessions, as browsers write them: `https://app.example.com`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "set"),
        inner(
            length(min = 8, max = 300),
            regex(pattern = r"^https?://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(:[0-9]{1,5})?$")
        )
    )]
    pub allowed_origins: Vec<String>,
}

/// The issuer whose JWTs devices show, as in OpenID Connect.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Oidc {
    /// The `iss` of the tokens, to the letter. Its keys are those that its discovery document names, unless `jwksUrl`
    /// says otherwise.
    #[schemars(length(min = 9, max = 1024), regex(pattern = r"^https://[^\s?#]+$"))]
    pub issuer: String,
    /// The `aud` that a token must have.
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[^\s]+$"))]
    pub audience: String,
    /// Where the issuer's keys are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 9, max = 1024), regex(pattern = r"^https://[^\s#]+$"))]
    pub jwks_url: Option<String>,
    /// The claim that names a token's tenant; `sub` where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[^\s]+$"))]
    pub tenant_claim: Option<String>,
}
