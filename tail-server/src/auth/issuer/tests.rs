use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde_json::json;

use super::*;
use crate::auth::jwt::tests::{AUDIENCE, ISSUER, TestIssuer};

/// An issuer's web server: its key set, and how often it was asked for.
#[derive(Clone)]
struct Web {
    jwks: Arc<std::sync::Mutex<String>>,
    asked: Arc<AtomicUsize>,
    address: SocketAddr,
}

impl Web {
    async fn start(jwks: String) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = Self {
            jwks: Arc::new(std::sync::Mutex::new(jwks)),
            asked: Arc::default(),
            address: listener.local_addr().unwrap(),
        };
        let discovery = async |State(web): State<Self>| {
            let jwks_uri = format!("http://{}/jwks", web.address);
            json!({ "issuer": ISSUER, "jwks_uri": jwks_uri, "more": [] }).to_string()
        };
        let jwks = async |State(web): State<Self>| {
            web.asked.fetch_add(1, Ordering::Relaxed);
            web.jwks.lock().unwrap().clone()
        };
        let router = Router::new()
            .route("/discovery", get(discovery))
            .route(
                "/elsewhere",
                get(|| async {
                    json!({ "issuer": ISSUER, "jwks_uri": "http://id.example/" }).to_string()
                }),
            )
            .route(
                "/other",
                get(|| async {
                    json!({ "issuer": "https://other", "jwks_uri": "https://other/" }).to_string()
                }),
            )
            .route("/jwks", get(jwks))
            .with_state(web.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        web
    }

    fn url(&self, path: &str) -> Url {
        Url::parse(&format!("http://{}/{path}", self.address)).unwrap()
    }

    fn issuer(&self, jwks: JwksSource) -> Issuer {
        let config = OidcConfig {
            issuer: ISSUER.to_owned(),
            audience: AUDIENCE.to_owned(),
            jwks,
            tenant_claim: "sub".to_owned(),
        };
        Issuer::new(&config).unwrap()
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn claims() -> serde_json::Value {
    json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "acme", "exp": 4_000_000_000_u64 })
}

async fn check(issuer: &Issuer, token: &str) -> Result<CheckedJwt, JwtError> {
    issuer
        .check(&BearerToken::new(token), SystemTime::now())
        .await
}

#[tokio::test]
async fn keys_are_fetched_when_a_token_needs_them_and_not_for_each_unknown_one() {
    let signer = TestIssuer::new();
    let web = Web::start(signer.jwks().to_string()).await;
    for source in [
        JwksSource::Url(web.url("jwks")),
        JwksSource::Discovery(web.url("discovery")),
    ] {
        let before = web.asked();
        let issuer = web.issuer(source);
        let good = signer.token(&claims());
        assert!(check(&issuer, &good).await.is_ok());
        let unknown = signer.sign(&json!({ "alg": "EdDSA", "kid": "ed-9" }), &claims());
        for _ in 0..10 {
            assert_eq!(check(&issuer, &unknown).await, Err(JwtError::UnknownKey));
        }
        assert!(check(&issuer, &good).await.is_ok());
        assert_eq!(web.asked() - before, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_found_once_enough_time_has_passed() {
    let old = TestIssuer::new();
    let web = Web::start(old.jwks().to_string()).await;
    let issuer = web.issuer(JwksSource::Url(web.url("jwks")));
    // The clock stands still but for what is advanced; a fetch must not run against it.
    tokio::time::resume();
    assert!(check(&issuer, &old.token(&claims())).await.is_ok());
    *web.jwks.lock().unwrap() = old.jwks().to_string().replace("ed-1", "ed-2");
    let new = old.sign(&json!({ "alg": "EdDSA", "kid": "ed-2" }), &claims());
    assert_eq!(check(&issuer, &new).await, Err(JwtError::UnknownKey));
    tokio::time::pause();
    tokio::time::advance(MIN_REFRESH).await;
    tokio::time::resume();
    assert!(check(&issuer, &new).await.is_ok());
    assert_eq!(
        check(&issuer, &old.token(&claims())).await,
        Err(JwtError::UnknownKey)
    );
}

#[tokio::test]
async fn what_cannot_be_used_leaves_the_keys_of_before() {
    let signer = TestIssuer::new();
    let web = Web::start(signer.jwks().to_string()).await;
    let issuer = web.issuer(JwksSource::Url(web.url("jwks")));
    let remote = issuer.remote.as_ref().unwrap();
    assert_eq!(
        issuer.fetch_if_due(remote, Duration::ZERO).await,
        Some(true)
    );
    for broken in ["not JSON", "{\"keys\":[]}", &" ".repeat(300 << 10)] {
        broken.clone_into(&mut web.jwks.lock().unwrap());
        assert_eq!(
            issuer.fetch_if_due(remote, Duration::ZERO).await,
            Some(false)
        );
        assert!(check(&issuer, &signer.token(&claims())).await.is_ok());
    }
}

#[tokio::test]
async fn a_discovery_document_of_another_issuer_or_to_an_open_place_is_not_followed() {
    let web = Web::start(String::new()).await;
    let fetch = async |path: &str| {
        let issuer = web.issuer(JwksSource::Discovery(web.url(path)));
        issuer.remote.as_ref().unwrap().fetch(ISSUER).await
    };
    assert!(matches!(
        fetch("other").await,
        Err(IssuerError::OtherIssuer { .. })
    ));
    assert!(matches!(
        fetch("elsewhere").await,
        Err(IssuerError::Unprotected { .. })
    ));
    assert!(matches!(
        fetch("missing").await,
        Err(IssuerError::Fetch { .. })
    ));
    assert!(matches!(
        fetch("jwks").await,
        Err(IssuerError::Discovery { .. })
    ));
}
