//! Who this device is to the tail, and whom it trusts to be the tail.

use std::fmt;
use std::path::{Path, PathBuf};

use reqwest::header::HeaderValue;
use tokio::io::AsyncReadExt as _;

use crate::error::TailError;

/// The longest token, in bytes. Tails take less.
const MAX_TOKEN_BYTES: usize = 16 << 10;

/// Who this device is to the tail, and whom it trusts to be the tail. The default is nobody, and the system's
/// certificate authorities.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// Sent with every request.
    pub token: Option<Token>,
    /// The certificate authorities, in PEM, that sign the tail's certificate; instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Shown to a tail that asks for one.
    pub client_certificate: Option<ClientCertificate>,
}

/// The files of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate chain, PEM.
    pub certificate_file: PathBuf,
    /// Its private key, PEM.
    pub key_file: PathBuf,
}

/// A bearer token, or where it is.
#[derive(Clone, Debug)]
pub enum Token {
    /// In a file, which is read again for each request: a token that is renewed there is used at once.
    File(PathBuf),
    /// The token itself.
    Value(Secret),
}

/// A text that is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(redacted)")
    }
}

impl Token {
    /// The value of the `Authorization` header.
    pub(crate) async fn authorization(&self) -> Result<HeaderValue, TailError> {
        match self {
            Self::Value(Secret(token)) => header(token).ok_or_else(|| TailError::Token {
                what: "the token".to_owned(),
            }),
            Self::File(path) => {
                let token = read(path).await.map_err(|source| TailError::TokenFile {
                    path: path.clone(),
                    source,
                })?;
                header(&token).ok_or_else(|| TailError::Token {
                    what: path.display().to_string(),
                })
            }
        }
    }
}

async fn read(path: &Path) -> std::io::Result<String> {
    let file = tokio::fs::File::open(path).await?;
    let mut token = String::new();
    file.take(MAX_TOKEN_BYTES as u64 + 1)
        .read_to_string(&mut token)
        .await?;
    Ok(token)
}

/// `None` where the text is no token (RFC 6750, section 2.1).
fn header(token: &str) -> Option<HeaderValue> {
    let token = token.trim();
    let is_token = (1..=MAX_TOKEN_BYTES).contains(&token.len())
        && token.bytes().all(|byte| byte.is_ascii_graphic());
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))
        .ok()
        .filter(|_| is_token)?;
    // Keeps it out of everybody's debug output.
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_is_shown_nowhere() {
        let token = Token::Value(Secret::new("hunter2hunter2".to_owned()));
        let header = token.authorization().await.unwrap();
        assert_eq!(header, "Bearer hunter2hunter2");
        let credentials = Credentials {
            token: Some(token),
            ..Credentials::default()
        };
        let shown = format!("{credentials:?} {header:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[tokio::test]
    async fn a_token_file_is_read_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let token = Token::File(file.path().to_owned());
        for text in ["first", "second"] {
            std::fs::write(file.path(), format!("{text}\n")).unwrap();
            assert_eq!(
                token.authorization().await.unwrap(),
                format!("Bearer {text}")
            );
        }
    }

    #[tokio::test]
    async fn what_is_no_token_is_refused_without_being_repeated() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let token = Token::File(file.path().to_owned());
        let long = "x".repeat(MAX_TOKEN_BYTES + 1);
        for text in ["", "\n", "two words", "lin\nes", "\u{e9}tat", &long] {
            std::fs::write(file.path(), text).unwrap();
            let error = token.authorization().await.unwrap_err();
            assert!(matches!(error, TailError::Token { .. }), "{error}");
            assert!(text.trim().is_empty() || !error.to_string().contains(text));
        }
        let missing = Token::File("/nowhere/token".into());
        let error = missing.authorization().await.unwrap_err();
        assert!(error.to_string().contains("/nowhere/token"), "{error}");
    }
}
