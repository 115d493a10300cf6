//! Who is let in: keys, JWTs, web pages.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use headway_wire::message::RefusalCode;
use headway_wire::message::server_frame::Message as Answer;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tail_server::Timeouts;
use tempfile::TempDir;

use crate::rig::{PROMPT, Server, replace_file, token_ids};

/// Files are looked at often.
pub fn timeouts() -> Timeouts {
    Timeouts {
        reload: Duration::from_millis(10),
        ..Timeouts::default()
    }
}

/// A line of a file of keys.
pub fn key_line(tenant: &str, token: &str) -> String {
    let hex: String = Sha256::digest(token)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{tenant}:{hex}\n")
}

/// A folder with the file `keys`.
pub fn keys_file(keys: &str) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    std::fs::write(&path, keys).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

async fn refusal_of(response: reqwest::Response) -> (u16, String, String) {
    let status = response.status().as_u16();
    let challenge = response
        .headers()
        .get("www-authenticate")
        .map(|value| value.to_str().unwrap().to_owned());
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["error"]["code"], "unauthenticated");
    let message = body["error"]["message"].as_str().unwrap().to_owned();
    (status, challenge.unwrap_or_default(), message)
}

const GUARDED: [&str; 5] = [
    "/v1/model",
    "/v1/load",
    "/v1/tokenizer",
    "/v1/head/none?layers=0-2",
    "/v1/head/none/layer-0",
];

#[tokio::test]
async fn everything_but_health_and_metrics_needs_a_key() {
    let (_folder, path) = keys_file(&key_line("acme", "one"));
    let server = Server::start(&["--auth-keys", &path]).await;
    for path in GUARDED {
        let (status, challenge, message) = refusal_of(server.get(path).await).await;
        assert_eq!((status, challenge.as_str()), (401, "Bearer"), "{path}");
        assert!(message.contains("Authorization: Bearer"), "{message}");
        let (status, challenge, _) = refusal_of(server.get_as(path, "two").await).await;
        assert_eq!(status, 401);
        assert_eq!(challenge, "Bearer error=\"invalid_token\"");
        assert_eq!(server.get_as(path, "one").await.status(), 200, "{path}");
    }
    assert_eq!(server.upgrade(&[]).await.err(), Some(401));
    let wrong = [("authorization", "Bearer two")];
    assert_eq!(server.upgrade(&wrong).await.err(), Some(401));
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(server.get(path).await.status(), 200, "{path}");
    }
    assert_eq!(server.get("/nowhere").await.status(), 404);
    let refused = server
        .metric("headway_tail_refusals_total{code=\"unauthenticated\"}")
        .await;
    assert_eq!(refused, 2.0 * GUARDED.len() as f64 + 2.0);

    let mut client = server.session_as("one").await;
    client.send(token_ids(0, &PROMPT, true)).await;
    assert!(client.result().await.token_id.is_some());
}

#[tokio::test]
async fn an_expired_key_is_told_so() {
    let keys = key_line("acme", "one").trim().to_owned() + ":2020-01-01T00:00:00Z";
    let (_folder, path) = keys_file(&keys);
    let server = Server::start(&["--auth-keys", &path]).await;
    let (status, _, message) = refusal_of(server.get_as("/v1/model", "one").await).await;
    assert_eq!(status, 401);
    assert!(message.contains("expired"), "{message}");
}

#[tokio::test]
async fn keys_come_and_go_without_a_restart_and_take_their_sessions_along() {
    let (_folder, path) = keys_file(&key_line("acme", "one"));
    let server = Server::start_with(&["--auth-keys", &path], timeouts()).await;
    let mut live = server.session_as("one").await;
    replace_file(&path, key_line("acme", "one") + &key_line("globex", "two"));
    server.wait_for_status("/v1/model", "two", 200).await;
    let mut other = server.session_as("two").await;
    live.send(token_ids(0, &PROMPT, true)).await;
    assert!(live.result().await.token_id.is_some());

    replace_file(&path, key_line("globex", "two"));
    let refusal = live.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::Unauthenticated);
    assert_eq!(server.get_as("/v1/model", "one").await.status(), 401);
    other.send(token_ids(0, &PROMPT, true)).await;
    assert!(other.result().await.token_id.is_some());
}

#[tokio::test]
async fn a_broken_file_of_keys_changes_nothing() {
    let (_folder, path) = keys_file(&key_line("acme", "one"));
    let server = Server::start_with(&["--auth-keys", &path], timeouts()).await;
    // From here on it has read the file.
    assert_eq!(server.get("/readyz").await.status(), 200);
    replace_file(&path, "acme:half of a line");
    let failed = "headway_tail_reloads_total{result=\"failed\",what=\"auth_keys\"}";
    server.wait_for_metric(failed, 1.0).await;
    assert_eq!(server.get_as("/v1/model", "one").await.status(), 200);
    replace_file(&path, key_line("acme", "two"));
    server.wait_for_status("/v1/model", "two", 200).await;
    assert_eq!(server.get_as("/v1/model", "one").await.status(), 401);
}

/// An issuer's key, `ed-1`.
struct Issuer {
    key: Ed25519KeyPair,
}

const ISSUER: &str = "https://id.example";

impl Issuer {
    fn new() -> Self {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let key = Ed25519KeyPair::from_pkcs8(key.as_ref()).unwrap();
        Self { key }
    }

    fn jwks(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.key.public_key());
        json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "ed-1", "x": x }] }).to_string()
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature = self.key.sign(message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn seconds_from_now(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(now.unwrap().as_secs()).unwrap() + seconds
}

fn claims(claim: &str, value: Value) -> Value {
    let mut claims = json!({
        "iss": ISSUER, "aud": "tail", "sub": "acme", "exp": seconds_from_now(300),
    });
    claims[claim] = value;
    claims
}

fn header() -> Value {
    json!({ "alg": "EdDSA", "kid": "ed-1" })
}

async fn server_with_issuer(issuer: &Issuer) -> (TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwks.json");
    std::fs::write(&path, issuer.jwks()).unwrap();
    let path = path.to_str().unwrap();
    let options = [
        "--oidc-issuer",
        ISSUER,
        "--oidc-audience",
        "tail",
        "--oidc-jwks",
        path,
    ];
    let server = Server::start_with(&options, timeouts()).await;
    (folder, server)
}

#[tokio::test]
async fn a_jwt_is_let_in_and_a_wrong_one_is_told_what_is_wrong() {
    let issuer = Issuer::new();
    let (_folder, server) = server_with_issuer(&issuer).await;
    let good = issuer.token(&header(), &claims("sub", json!("acme")));
    assert_eq!(server.get_as("/v1/model", &good).await.status(), 200);
    server.session_as(&good).await;

    let [head, _, signature] = good.split('.').collect::<Vec<_>>()[..] else {
        panic!("three parts")
    };
    let body = URL_SAFE_NO_PAD.encode(claims("sub", json!("globex")).to_string());
    let good_claims = claims("sub", json!("acme"));
    let cases = [
        (format!("{head}.{body}.{signature}"), "signature"),
        (Issuer::new().token(&header(), &good_claims), "signature"),
        (
            issuer.token(&header(), &claims("exp", json!(seconds_from_now(-31)))),
            "expired",
        ),
        (
            issuer.token(&header(), &claims("nbf", json!(seconds_from_now(300)))),
            "not valid yet",
        ),
        (
            issuer.token(&header(), &claims("aud", json!("other"))),
            "audience",
        ),
        (
            issuer.token(&header(), &claims("iss", json!("https://other.example"))),
            "issuer",
        ),
        (
            issuer.token(&json!({ "alg": "none" }), &good_claims),
            "not signed with",
        ),
        (
            issuer.token(&json!({ "alg": "HS256", "kid": "ed-1" }), &good_claims),
            "not signed with",
        ),
        (
            issuer.token(&json!({ "alg": "EdDSA", "kid": "ed-2" }), &good_claims),
            "does not publish",
        ),
        ("no.jwt.at-all".to_owned(), "cannot be read as a JWT"),
        ("opaque".to_owned(), "cannot be read as a JWT"),
    ];
    for (token, expected) in cases {
        let (status, challenge, message) =
            refusal_of(server.get_as("/v1/model", &token).await).await;
        assert_eq!(status, 401, "{expected}");
        assert_eq!(challenge, "Bearer error=\"invalid_token\"");
        assert!(message.contains(expected), "{expected}: {message}");
        assert!(!message.contains(&token), "{message}");
    }
}

#[tokio::test]
async fn a_session_ends_with_its_jwt_and_with_its_issuers_key() {
    let issuer = Issuer::new();
    let (folder, server) = server_with_issuer(&issuer).await;
    // Its end and the half minute for clocks that differ are a second away.
    let ending = claims("exp", json!(seconds_from_now(-29)));
    let mut ending = server.session_as(&issuer.token(&header(), &ending)).await;
    let lasting = issuer.token(&header(), &claims("sub", json!("acme")));
    let mut lasting = server.session_as(&lasting).await;
    let refusal = ending.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::Unauthenticated);

    lasting.send(token_ids(0, &PROMPT, true)).await;
    assert!(lasting.result().await.token_id.is_some());
    let others = Issuer::new().jwks().replace("ed-1", "ed-2");
    replace_file(folder.path().join("jwks.json"), others);
    let refusal = lasting.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::Unauthenticated);
}

#[tokio::test]
async fn keys_come_from_where_the_issuers_discovery_document_says() {
    let signer = Issuer::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}", listener.local_addr().unwrap());
    let document = json!({ "issuer": issuer, "jwks_uri": format!("{issuer}/keys") }).to_string();
    let jwks = signer.jwks();
    let router = axum::Router::new()
        .route(
            "/.well-known/openid-configuration",
            axum::routing::get(async move || document.clone()),
        )
        .route("/keys", axum::routing::get(async move || jwks.clone()));
    tokio::spawn(async move { axum::serve(listener, router).await });

    let options = ["--oidc-issuer", &issuer, "--oidc-audience", "tail"];
    let server = Server::start_with(&options, timeouts()).await;
    let fetched = "headway_tail_reloads_total{result=\"ok\",what=\"oidc_jwks\"}";
    server.wait_for_metric(fetched, 1.0).await;
    let token = signer.token(&header(), &claims("iss", json!(issuer)));
    assert_eq!(server.get_as("/v1/model", &token).await.status(), 200);
    let other = signer.token(&header(), &claims("iss", json!(ISSUER)));
    assert_eq!(server.get_as("/v1/model", &other).await.status(), 401);
}

#[tokio::test]
async fn pages_of_other_origins_open_no_sessions() {
    let options = ["--allowed-origins", "https://app.example"];
    let server = Server::start(&options).await;
    for origin in [
        "https://evil.example",
        "https://app.example.evil.example",
        "http://app.example",
        "https://app.example:8443",
        "null",
        "",
    ] {
        let refused = server.upgrade(&[("origin", origin)]).await;
        assert_eq!(refused.err(), Some(403), "{origin}");
    }
    for headers in [&[("origin", "https://app.example")][..], &[]] {
        let mut client = server.upgrade(headers).await.unwrap();
        client.send(server.open(0)).await;
        assert!(matches!(client.answer().await, Some(Answer::Opened(_))));
    }
    // On loopback too, where anybody's browser can reach it.
    let closed = Server::start(&[]).await;
    let refused = closed.upgrade(&[("origin", "https://evil.example")]).await;
    assert_eq!(refused.err(), Some(403));
}
