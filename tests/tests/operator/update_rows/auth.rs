//! Rows of `spec.auth`.

use headway_operator::kinds::OwnedKind::{Deployment, NetworkPolicy};
use serde_json::{Value, json};

use super::{Row, VOLUMES, argument, row};
use crate::specs::merged;

pub(super) fn auth() -> Vec<Row> {
    let keys = || json!({"auth": {"allowAnonymous": false, "secretRef": {"name": "keys"}}});
    let mut rows = vec![
        row(
            "auth.secretRef.name",
            keys(),
            Deployment,
            VOLUMES,
            json!([{"name": "headway-auth", "secret": {"secretName": "keys"}}]),
        ),
        argument(
            "auth.allowAnonymous",
            json!({"auth": {"allowAnonymous": true, "secretRef": null}}),
            "--allow-anonymous",
        )
        .from(keys()),
        argument(
            "auth.allowedOrigins",
            json!({"auth": {"allowedOrigins": ["https://a.example.com", "https://b.example.com"]}}),
            "--allowed-origins=https://a.example.com,https://b.example.com",
        ),
    ];
    rows.extend(issuer());
    rows.extend(authorities());
    rows
}

fn issuer() -> Vec<Row> {
    let by = |changes: Value| {
        let oidc = json!({"issuer": "https://login.example.com", "audience": "headway"});
        json!({"auth": {"allowAnonymous": false, "oidc": merged(oidc, &changes)}})
    };
    let changed = |leaf, changes: Value, expected: &str| {
        argument(leaf, by(changes), expected).from(by(json!({})))
    };
    vec![
        argument(
            "auth.oidc.issuer",
            by(json!({})),
            "--oidc-issuer=https://login.example.com",
        ),
        row(
            "auth.oidc.issuer",
            by(json!({"issuer": "https://login.example.com:8443"})),
            NetworkPolicy,
            "/spec/egress",
            json!([{"ports": [{"port": 8443}]}]),
        ),
        changed(
            "auth.oidc.audience",
            json!({"audience": "other"}),
            "--oidc-audience=other",
        ),
        changed(
            "auth.oidc.jwksUrl",
            json!({"jwksUrl": "https://keys.example.com/jwks"}),
            "--oidc-jwks=https://keys.example.com/jwks",
        ),
        changed(
            "auth.oidc.tenantClaim",
            json!({"tenantClaim": "org"}),
            "--oidc-tenant-claim=org",
        ),
    ]
}

fn authorities() -> Vec<Row> {
    let tls = || json!({"expose": {"tlsSecretRef": {"name": "certificate"}}});
    let by = |key: &str| {
        let reference = json!({"name": "devices", "key": key});
        let auth = json!({"allowAnonymous": false, "clientCaConfigMapRef": reference});
        merged(tls(), &json!({"auth": auth}))
    };
    let volume = |key: &str| {
        let items = json!([{"key": key, "path": key}]);
        json!([{"name": "headway-client-ca", "configMap": {"name": "devices", "items": items}}])
    };
    let of_volume = |leaf, key: &str| row(leaf, by(key), Deployment, VOLUMES, volume(key));
    vec![
        of_volume("auth.clientCaConfigMapRef.name", "ca.crt").from(tls()),
        of_volume("auth.clientCaConfigMapRef.key", "other.crt").from(by("ca.crt")),
        argument(
            "auth.clientCaConfigMapRef.key",
            by("other.crt"),
            "--tls-client-ca=/client-ca/other.crt",
        )
        .from(by("ca.crt")),
    ]
}
