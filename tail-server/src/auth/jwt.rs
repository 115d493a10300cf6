//! JWTs of an OpenID Connect issuer: signature, then claims. Pure: keys and time come in.

use std::time::{Duration, SystemTime};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};

use super::ring_provider::{self, ALGORITHMS};
use super::{BearerToken, CredentialSource, Device, Tenant};

#[cfg(test)]
pub(crate) mod tests;

/// How far the clocks of issuer and tail may be apart.
const LEEWAY: Duration = Duration::from_secs(30);

/// The most keys of an issuer.
const MAX_KEYS: usize = 256;

/// Why a JWT is not taken. No message repeats the token.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JwtError {
    #[error("it cannot be read as a JWT")]
    Form,
    #[error("it is not signed with RS256, ES256 or EdDSA")]
    Algorithm,
    #[error("its header demands an extension (crit) that is not known here")]
    Critical,
    #[error("it is signed with a key that its issuer does not publish")]
    UnknownKey,
    #[error("its signature is wrong")]
    Signature,
    #[error("its claim {claim} is missing or is not what the standard says")]
    Claim { claim: String },
    #[error("its issuer is not the one that is taken here")]
    Issuer,
    #[error("it is for another audience")]
    Audience,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    NotYetValid,
}

/// Why a key set cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeySetError {
    #[error("it is not a JWK Set")]
    Json(#[from] serde_json::Error),
    #[error("it has more than {MAX_KEYS} keys")]
    TooMany,
    #[error("it has no key for RS256, ES256 or EdDSA")]
    Empty,
}

/// An issuer's keys that can be used here.
#[derive(Debug, Default)]
pub(crate) struct IssuerKeys {
    keys: Vec<IssuerKey>,
}

#[derive(Debug)]
struct IssuerKey {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl IssuerKeys {
    /// Reads a JWK Set (RFC 7517). Keys for anything else than the algorithms taken here are left out.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, KeySetError> {
        let JwkSet { keys } = serde_json::from_slice(json)?;
        if keys.len() > MAX_KEYS {
            return Err(KeySetError::TooMany);
        }
        let keys: Vec<IssuerKey> = keys.iter().filter_map(usable).collect();
        if keys.is_empty() {
            return Err(KeySetError::Empty);
        }
        Ok(Self { keys })
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key for a header. A header without an id is for an issuer with one such key.
    fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&IssuerKey> {
        let mut fitting = self.keys.iter().filter(|key| key.algorithm == algorithm);
        match id {
            Some(_) => fitting.find(|key| key.id.as_deref() == id),
            None => fitting.next().filter(|_| fitting.next().is_none()),
        }
    }

    /// Whether a token with this key id would still be looked at.
    pub(crate) fn has(&self, id: Option<&str>, algorithm: Algorithm) -> bool {
        self.find(id, algorithm).is_some()
    }
}

fn usable(jwk: &Jwk) -> Option<IssuerKey> {
    if !matches!(
        jwk.common.public_key_use,
        None | Some(PublicKeyUse::Signature)
    ) {
        return None;
    }
    let key = DecodingKey::from_jwk(jwk).ok()?;
    let (algorithm, name) = match key.family() {
        AlgorithmFamily::Rsa => (Algorithm::RS256, KeyAlgorithm::RS256),
        // 4, x and y of P-256; P-384 is longer.
        AlgorithmFamily::Ec if key.try_get_as_bytes().ok()?.len() == 65 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmFamily::Ed => (Algorithm::EdDSA, KeyAlgorithm::EdDSA),
        _ => return None,
    };
    let is_for_it = jwk
        .common
        .key_algorithm
        .as_ref()
        .is_none_or(|known| *known == name);
    is_for_it.then(|| IssuerKey {
        id: jwk.common.key_id.clone(),
        algorithm,
        key,
    })
}

/// A JWT whose signature and claims are right.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CheckedJwt {
    pub(crate) tenant: Tenant,
    pub(crate) device: Device,
    pub(crate) key_id: Option<String>,
    pub(crate) algorithm: Algorithm,
    /// When it ends, the clocks' difference included.
    pub(crate) expires: SystemTime,
}

/// What tokens must say.
#[derive(Debug)]
pub(crate) struct JwtRules {
    issuer: String,
    audience: String,
    tenant_claim: String,
}

impl JwtRules {
    pub(crate) fn new(issuer: String, audience: String, tenant_claim: String) -> Self {
        ring_provider::install();
        Self {
            issuer,
            audience,
            tenant_claim,
        }
    }

    /// Checks form, algorithm, signature and claims, in this order.
    pub(crate) fn check(
        &self,
        token: &BearerToken<'_>,
        keys: &IssuerKeys,
        now: SystemTime,
    ) -> Result<CheckedJwt, JwtError> {
        let header = decode_header(token.reveal()).map_err(|error| match error.kind() {
            // What `alg` may be is a closed list, without `none`.
            ErrorKind::Json(error) if error.to_string().contains("variant") => JwtError::Algorithm,
            _ => JwtError::Form,
        })?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(JwtError::Algorithm);
        }
        // RFC 7515, section 4.1.11: what is not understood must not be passed over.
        if header.crit.is_some() {
            return Err(JwtError::Critical);
        }
        let key = keys
            .find(header.kid.as_deref(), header.alg)
            .ok_or(JwtError::UnknownKey)?;

        // The library checks the signature alone: it takes the time from the system's clock.
        let mut validation = Validation::new(header.alg);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let decoded = decode::<Map<String, Value>>(token.reveal(), &key.key, &validation);
        let claims = decoded.map_err(|error| match error.kind() {
            ErrorKind::InvalidSignature | ErrorKind::Base64(_) => JwtError::Signature,
            ErrorKind::InvalidAlgorithm => JwtError::Algorithm,
            _ => JwtError::Form,
        })?;
        let (tenant, expires) = self.check_claims(&claims.claims, now)?;
        // What must be there where it names the tenant, and is optional otherwise.
        let subject = claims.claims.get("sub").and_then(Value::as_str);
        Ok(CheckedJwt {
            device: Device::of_subject(&tenant, subject),
            tenant,
            key_id: header.kid,
            algorithm: header.alg,
            expires,
        })
    }

    /// RFC 7519, section 4.1. A claim of the wrong type is as good as none.
    fn check_claims(
        &self,
        claims: &Map<String, Value>,
        now: SystemTime,
    ) -> Result<(Tenant, SystemTime), JwtError> {
        let wrong = |claim: &str| JwtError::Claim {
            claim: claim.to_owned(),
        };
        let issuer = claims.get("iss").and_then(Value::as_str);
        if issuer.ok_or_else(|| wrong("iss"))? != self.issuer {
            return Err(JwtError::Issuer);
        }
        let is_audience = |value: &Value| value.as_str() == Some(&self.audience);
        let is_for_us = match claims.get("aud") {
            Some(Value::Array(audiences)) => audiences.iter().any(is_audience),
            Some(audience @ Value::String(_)) => is_audience(audience),
            _ => return Err(wrong("aud")),
        };
        if !is_for_us {
            return Err(JwtError::Audience);
        }
        let expires = moment(claims, "exp")?.ok_or_else(|| wrong("exp"))?;
        let expires = expires.checked_add(LEEWAY).ok_or_else(|| wrong("exp"))?;
        if now >= expires {
            return Err(JwtError::Expired);
        }
        if moment(claims, "nbf")?.is_some_and(|not_before| now + LEEWAY < not_before) {
            return Err(JwtError::NotYetValid);
        }
        let tenant = claims
            .get(&self.tenant_claim)
            .and_then(Value::as_str)
            .and_then(|name| Tenant::named(CredentialSource::Oidc, name))
            .ok_or_else(|| wrong(&self.tenant_claim))?;
        Ok((tenant, expires))
    }
}

/// A claim with seconds since 1970, which may have a fraction.
fn moment(claims: &Map<String, Value>, claim: &str) -> Result<Option<SystemTime>, JwtError> {
    let Some(value) = claims.get(claim) else {
        return Ok(None);
    };
    value
        .as_f64()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .and_then(|since_epoch| SystemTime::UNIX_EPOCH.checked_add(since_epoch))
        .map(Some)
        .ok_or_else(|| JwtError::Claim {
            claim: claim.to_owned(),
        })
}
