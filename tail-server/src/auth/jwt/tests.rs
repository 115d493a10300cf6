use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use serde_json::json;

use super::*;

/// Of a key that was made for this test and thrown away, by openssl.
const RSA_MODULUS: &str = "wJ7fU0MfMpa7NxsuNWQSqsKTkD2W3H8AcIuMr85wjPpH3V718bSgLI-QDxMj3yK592NVcdKU2rXsr_vVQQgV0OUzfz\
     uZ19K2Jwk0wuePUskAVC4YTr9BCxmUB1MaaJFIKia9_0gclJJ9BIh34pvA0dmkFXxEDTnbtzpfH3lYXvAIuqhaY0KV\
     KdUrBcOtly41ezxsgL7YnxQVrctfFdVo1ztogiIktSI_ue6ykVoAjGyKyRg8vAJIUmGZEJaiekvDd4v1pMJrsxPuD-\
     LPG4VToLdIIpPZjnpODH8u2v3Z5-_pqbRbF0H-Rq_hIk-zaSq9xu5sxJ-dj0zaZY8Z0pNvBw";

/// `{"alg":"RS256","typ":"JWT","kid":"rsa-1"}` and
/// `{"iss":"https://id.example","aud":"tail","sub":"acme","exp":1000000300}`, signed by openssl.
const RSA_TOKEN: &str = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCIsImtpZCI6InJzYS0xIn0.eyJpc3MiOiJodHRwczovL2lkLmV4YW1wbG\
     UiLCJhdWQiOiJ0YWlsIiwic3ViIjoiYWNtZSIsImV4cCI6MTAwMDAwMDMwMH0.UurrfLIn3yNI2qgENnLhHwbYKYzX\
     9pDTyjCEF3-\
     biGKEQrH2bcNZ77qqtkLf3w1fQme04pwITEiFW1aQp1XDKmJRiNj_AoLS5JBEeOvXDavw2UBHtgYpOZ3cwGjNRJmnC\
     xFhmMistXdtJ-aEPP_NsAGR4iQSijGKj7zP0y1JWKqQQrCxzNpJwhr7TNi_Gm6GxucYWz2sfDoKjgu7Awn1PuE0j7T\
     n0jyGwtse9S6M9tQzjR8fTS8gUkzy9oEMsXC9wkUgc3WVzLRPsM9B8mmHHfd9idBs8dA1nybaUXTQp3VZXJuTSz71r\
     Ne5bfJt3me5dqXIvbnwqAKCeIwLwY8Lmw";

pub(crate) const ISSUER: &str = "https://id.example";
pub(crate) const AUDIENCE: &str = "tail";

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// An issuer with an Ed25519 key `ed-1` and a P-256 key `ec-1`.
pub(crate) struct TestIssuer {
    ed: Ed25519KeyPair,
    ec: EcdsaKeyPair,
}

impl TestIssuer {
    pub(crate) fn new() -> Self {
        let random = SystemRandom::new();
        let ed = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let ec = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        Self {
            ed: Ed25519KeyPair::from_pkcs8(ed.as_ref()).unwrap(),
            ec: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, ec.as_ref(), &random)
                .unwrap(),
        }
    }

    pub(crate) fn jwks(&self) -> Value {
        let point = self.ec.public_key().as_ref();
        json!({ "keys": [
            { "kty": "OKP", "crv": "Ed25519", "kid": "ed-1", "use": "sig",
              "x": base64(self.ed.public_key()) },
            { "kty": "EC", "crv": "P-256", "kid": "ec-1", "alg": "ES256",
              "x": base64(&point[1..33]), "y": base64(&point[33..]) },
        ] })
    }

    pub(crate) fn keys(&self) -> IssuerKeys {
        IssuerKeys::parse(self.jwks().to_string().as_bytes()).unwrap()
    }

    /// Signs with Ed25519, whatever the header says.
    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        let message = format!(
            "{}.{}",
            base64(header.to_string()),
            base64(claims.to_string())
        );
        let signature = self.ed.sign(message.as_bytes());
        format!("{message}.{}", base64(signature))
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        self.sign(&json!({ "alg": "EdDSA", "kid": "ed-1" }), claims)
    }

    fn sign_ec(&self, header: &Value, claims: &Value) -> String {
        let message = format!(
            "{}.{}",
            base64(header.to_string()),
            base64(claims.to_string())
        );
        let signature = self
            .ec
            .sign(&SystemRandom::new(), message.as_bytes())
            .unwrap();
        format!("{message}.{}", base64(signature))
    }
}

/// The tests' present: a second before the claims of [`claims`] are issued.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

fn claims() -> Value {
    json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "acme", "exp": 1_000_000_300 })
}

fn with(claim: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[claim] = value;
    claims
}

fn without(claim: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(claim);
    claims
}

fn rules() -> JwtRules {
    JwtRules::new(ISSUER.to_owned(), AUDIENCE.to_owned(), "sub".to_owned())
}

fn check(token: &str, keys: &IssuerKeys) -> Result<CheckedJwt, JwtError> {
    rules().check(&BearerToken::new(token), keys, now())
}

fn missing(claim: &str) -> JwtError {
    JwtError::Claim {
        claim: claim.to_owned(),
    }
}

#[test]
fn a_good_token_of_each_algorithm_names_its_tenant_and_its_end() {
    let issuer = TestIssuer::new();
    let ec = issuer.sign_ec(&json!({ "alg": "ES256", "kid": "ec-1" }), &claims());
    for token in [issuer.token(&claims()), ec] {
        let checked = check(&token, &issuer.keys()).unwrap();
        assert_eq!(checked.tenant.to_string(), "oidc/acme");
        assert_eq!(checked.expires, now() + Duration::from_secs(330));
    }
    let rsa = json!({ "keys": [{ "kty": "RSA", "kid": "rsa-1", "n": RSA_MODULUS, "e": "AQAB" }] });
    let keys = IssuerKeys::parse(rsa.to_string().as_bytes()).unwrap();
    let checked = check(RSA_TOKEN, &keys).unwrap();
    assert_eq!(checked.tenant.to_string(), "oidc/acme");
}

#[test]
fn a_tampered_token_is_refused() {
    let issuer = TestIssuer::new();
    let token = issuer.token(&claims());
    let [header, _, signature] = token.split('.').collect::<Vec<_>>()[..] else {
        panic!("three parts")
    };
    let others = base64(with("sub", json!("globex")).to_string());
    let tampered = format!("{header}.{others}.{signature}");
    assert_eq!(check(&tampered, &issuer.keys()), Err(JwtError::Signature));
    let foreign = TestIssuer::new().token(&claims());
    assert_eq!(check(&foreign, &issuer.keys()), Err(JwtError::Signature));
    let unsigned = token.rsplit_once('.').unwrap().0.to_owned() + ".";
    assert_eq!(check(&unsigned, &issuer.keys()), Err(JwtError::Signature));
}

#[test]
fn an_algorithm_that_is_not_allowed_is_refused_whatever_the_signature() {
    let issuer = TestIssuer::new();
    for algorithm in ["none", "HS256", "RS512", "PS256", "ES384", "eddsa", ""] {
        let token = issuer.sign(&json!({ "alg": algorithm, "kid": "ed-1" }), &claims());
        assert_eq!(
            check(&token, &issuer.keys()),
            Err(JwtError::Algorithm),
            "{algorithm}"
        );
    }
    // An algorithm that is allowed, but not that key's.
    let token = issuer.sign(&json!({ "alg": "ES256", "kid": "ed-1" }), &claims());
    assert_eq!(check(&token, &issuer.keys()), Err(JwtError::UnknownKey));
    // The public key of an asymmetric algorithm as a shared secret.
    let header = json!({ "alg": "HS256", "kid": "ec-1" });
    let token = issuer.sign_ec(&header, &claims());
    assert_eq!(check(&token, &issuer.keys()), Err(JwtError::Algorithm));
}

#[test]
fn an_unknown_key_is_told_apart_from_a_wrong_signature() {
    let issuer = TestIssuer::new();
    let token = issuer.sign(&json!({ "alg": "EdDSA", "kid": "ed-2" }), &claims());
    assert_eq!(check(&token, &issuer.keys()), Err(JwtError::UnknownKey));
    // Without an id there must be no choice.
    let token = issuer.sign(&json!({ "alg": "EdDSA" }), &claims());
    assert!(check(&token, &issuer.keys()).is_ok());
    let mut two = issuer.jwks();
    let other = TestIssuer::new().jwks()["keys"][0].clone();
    two["keys"].as_array_mut().unwrap().push(other);
    let two = IssuerKeys::parse(two.to_string().as_bytes()).unwrap();
    assert_eq!(check(&token, &two), Err(JwtError::UnknownKey));
}

#[test]
fn a_keys_place_in_the_header_is_not_followed() {
    let (issuer, attacker) = (TestIssuer::new(), TestIssuer::new());
    let header = json!({
        "alg": "EdDSA", "kid": "ed-1", "jwk": attacker.jwks()["keys"][0], "jku": "https://attacker.example",
    });
    let token = attacker.sign(&header, &claims());
    assert_eq!(check(&token, &issuer.keys()), Err(JwtError::Signature));
}

#[test]
fn an_extension_that_is_not_known_is_not_passed_over() {
    let issuer = TestIssuer::new();
    let header = json!({ "alg": "EdDSA", "kid": "ed-1", "crit": ["b64"], "b64": false });
    let token = issuer.sign(&header, &claims());
    assert_eq!(check(&token, &issuer.keys()), Err(JwtError::Critical));
}

#[test]
fn the_claims_must_be_there_and_right() {
    let issuer = TestIssuer::new();
    let late = 1_000_000_031;
    let cases = [
        (
            with("iss", json!("https://other.example")),
            JwtError::Issuer,
        ),
        (with("iss", json!("https://id.example/")), JwtError::Issuer),
        (without("iss"), missing("iss")),
        (with("iss", json!([ISSUER])), missing("iss")),
        (with("aud", json!("other")), JwtError::Audience),
        (with("aud", json!(["other", "tai"])), JwtError::Audience),
        (with("aud", json!([])), JwtError::Audience),
        (without("aud"), missing("aud")),
        (with("aud", json!({ "tail": true })), missing("aud")),
        (with("exp", json!(999_999_970)), JwtError::Expired),
        (with("exp", json!(0)), JwtError::Expired),
        (without("exp"), missing("exp")),
        (with("exp", json!("1000000300")), missing("exp")),
        (with("exp", json!(-1)), missing("exp")),
        (with("exp", json!(1e300)), missing("exp")),
        (with("exp", Value::Null), missing("exp")),
        (with("nbf", json!(late)), JwtError::NotYetValid),
        (with("nbf", json!("0")), missing("nbf")),
        (without("sub"), missing("sub")),
        (with("sub", json!(7)), missing("sub")),
        (with("sub", json!("")), missing("sub")),
        (with("sub", json!("two words")), missing("sub")),
        (with("sub", json!("x".repeat(129))), missing("sub")),
    ];
    for (claims, expected) in cases {
        let checked = check(&issuer.token(&claims), &issuer.keys());
        assert_eq!(checked, Err(expected), "{claims}");
    }
}

#[test]
fn clocks_may_differ_a_little_and_an_audience_may_be_one_of_several() {
    let issuer = TestIssuer::new();
    for claims in [
        with("exp", json!(999_999_971)),
        with("nbf", json!(1_000_000_030)),
        with("aud", json!(["other", AUDIENCE])),
        with("exp", json!(1_000_000_300.5)),
        with("sub", json!("auth0|5f7c8ec7c33c6c004bbafe82")),
    ] {
        assert!(
            check(&issuer.token(&claims), &issuer.keys()).is_ok(),
            "{claims}"
        );
    }
}

#[test]
fn another_claim_can_name_the_tenant() {
    let issuer = TestIssuer::new();
    let rules = JwtRules::new(ISSUER.to_owned(), AUDIENCE.to_owned(), "org".to_owned());
    let token = issuer.token(&with("org", json!("globex")));
    let checked = rules.check(&BearerToken::new(&token), &issuer.keys(), now());
    assert_eq!(checked.unwrap().tenant.to_string(), "oidc/globex");
}

#[test]
fn the_subject_names_the_device_whatever_names_the_tenant() {
    let issuer = TestIssuer::new();
    let rules = JwtRules::new(ISSUER.to_owned(), AUDIENCE.to_owned(), "org".to_owned());
    let device = |subject: Value| {
        let mut claims = with("org", json!("globex"));
        claims["sub"] = subject;
        let token = issuer.token(&claims);
        let checked = rules.check(&BearerToken::new(&token), &issuer.keys(), now());
        checked.unwrap().device
    };
    assert_eq!(device(json!("phone")), device(json!("phone")));
    assert_ne!(device(json!("phone")), device(json!("tablet")));
    // A claim of the wrong type is as good as none.
    assert_eq!(device(Value::Null), device(json!(7)));
    assert_ne!(device(Value::Null), device(json!("phone")));
}

#[test]
fn what_is_no_jwt_is_refused() {
    let issuer = TestIssuer::new();
    for token in [
        "",
        ".",
        "..",
        "a.b.c",
        "a.b.c.d",
        "e30.e30.e30",
        "\u{e9}.x.y",
    ] {
        assert_eq!(check(token, &issuer.keys()), Err(JwtError::Form), "{token}");
    }
    let list = issuer.sign(&json!({ "alg": "EdDSA", "kid": "ed-1" }), &json!([1]));
    assert_eq!(check(&list, &issuer.keys()), Err(JwtError::Form));
}

#[test]
fn a_key_set_keeps_what_can_be_used() {
    let mut jwks = TestIssuer::new().jwks();
    let keys = jwks["keys"].as_array_mut().unwrap();
    keys.push(json!({ "kty": "oct", "kid": "shared", "k": "c2VjcmV0" }));
    keys.push(json!({ "kty": "RSA", "kid": "enc", "use": "enc", "n": RSA_MODULUS, "e": "AQAB" }));
    keys.push(json!({ "kty": "RSA", "kid": "pss", "alg": "PS256", "n": RSA_MODULUS, "e": "AQAB" }));
    keys.push(json!({ "kty": "EC", "crv": "P-384", "kid": "p384", "x": "AA", "y": "AA" }));
    keys.push(json!({ "kty": "new", "kid": "of a later standard" }));
    let parsed = IssuerKeys::parse(jwks.to_string().as_bytes()).unwrap();
    assert_eq!(parsed.len(), 2);
    assert!(IssuerKeys::parse(b"{}").is_err() && IssuerKeys::parse(b"").is_err());
    assert!(matches!(
        IssuerKeys::parse(b"{\"keys\":[]}"),
        Err(KeySetError::Empty)
    ));
}
