//! How the model comes here: the options, and what they must mean.

use std::path::PathBuf;
use std::time::Duration;

use super::{ConfigError, within};

/// The options for the model's delivery, as typed.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DeliveryArgs {
    /// What the SHA-256 of the model's file has to be, 64 hexadecimal digits: for a --model that is one .gguf file.
    #[arg(long, value_name = "HEX")]
    pub model_sha256: Option<String>,
    /// A file with the model's identity, as --print-identity writes it. A model that is another one is refused, and
    /// of safetensors behind an address only what this tail serves is fetched.
    #[arg(long, value_name = "FILE")]
    pub model_identity: Option<PathBuf>,
    /// Prints the identity of --model and ends.
    #[arg(long)]
    pub print_identity: bool,
    /// A file with the access token for hf:// repositories, read again at each attempt [default: the variable
    /// HF_TOKEN].
    #[arg(long, value_name = "FILE")]
    pub hub_token_file: Option<PathBuf>,
    /// A PEM file of certificate authorities that sources are trusted by, beside the system's.
    #[arg(long, value_name = "FILE")]
    pub model_ca: Option<PathBuf>,
    /// Where the model cannot be fetched or read, try again after so long, and after longer each time, instead of
    /// ending with the error; 0 ends.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub retry_seconds: u64,
}

/// How the model comes here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeliveryConfig {
    /// What the SHA-256 of the model's file has to be, 64 hexadecimal digits in lower case.
    pub sha256: Option<String>,
    /// Holds the model's identity.
    pub identity_file: Option<PathBuf>,
    /// Holds the access token for repositories; `None`: the environment has it, or there is none.
    pub token_file: Option<PathBuf>,
    /// Holds certificate authorities beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Before the second attempt; `None`: there is one.
    pub retry: Option<Duration>,
}

impl DeliveryConfig {
    pub(super) fn new(args: DeliveryArgs) -> Result<Self, ConfigError> {
        let DeliveryArgs {
            model_sha256,
            model_identity,
            // Asked for beside the configuration.
            print_identity: _,
            hub_token_file,
            model_ca,
            retry_seconds,
        } = args;
        Ok(Self {
            sha256: model_sha256.as_deref().map(sha256).transpose()?,
            identity_file: model_identity,
            token_file: hub_token_file,
            ca_file: model_ca,
            retry: match within("retry-seconds", retry_seconds, 0, 86_400)? {
                0 => None,
                seconds => Some(Duration::from_secs(seconds)),
            },
        })
    }
}

fn sha256(text: &str) -> Result<String, ConfigError> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    if digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(digits.to_ascii_lowercase());
    }
    Err(ConfigError::Value {
        option: "model-sha256",
        got: text.to_owned(),
        expected: "64 hexadecimal digits".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_has_one_form_however_it_is_written() {
        let digits = "AB".repeat(32);
        for text in [digits.clone(), format!("sha256:{digits}")] {
            assert_eq!(sha256(&text).unwrap(), "ab".repeat(32));
        }
        for wrong in ["", "ab", &"xy".repeat(32), &format!("md5:{digits}")] {
            assert!(sha256(wrong).is_err(), "{wrong}");
        }
    }
}
