//! A tail that wants to know who is asking, and a device that says so: TLS and a bearer token.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use e2e::device::{finish, lossless, request, sampled};
use e2e::program::program;
use e2e::{PATIENCE, artifact_cache_dir, tiny_llama};
use edge_lite::{
    Client, ClientConfig, Credentials, Error, LocalConfig, LocalModel, Prompt, RequestError,
    Secret, TailError, Token,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

const TOKEN: &str = "0c5a8f7be2e14bd5b3c6c7a6f1a9de2f4b8d3a1c9e7f60512437861950adbcfe";

/// A tail with TLS and a file of keys, killed when dropped.
struct Tail {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Tail {
    async fn start(options: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        write_certificates(folder.path())?;
        std::fs::write(folder.path().join("keys"), key_line(TOKEN))?;
        std::fs::write(folder.path().join("token"), format!("{TOKEN}\n"))?;
        let file = |name: &str| folder.path().join(name);
        let mut child = Command::new(program("tail-server"))
            .arg("--model")
            .arg(tiny_llama())
            .args(["--listen", "127.0.0.1:0", "--cache-dir"])
            .arg(artifact_cache_dir())
            .arg("--tls-cert")
            .arg(file("tls.crt"))
            .arg("--tls-key")
            .arg(file("tls.key"))
            .arg("--auth-keys")
            .arg(file("keys"))
            .args(options)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stderr = child.stderr.take().context("tail-server has a stderr")?;
        let address = timeout(PATIENCE, listening(stderr)).await??;
        Ok(Self {
            child,
            address,
            folder,
        })
    }

    fn url(&self) -> String {
        format!("wss://{}", self.address)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Settings of a device with this token.
    fn device(&self, split_layer: usize, token: Option<Token>) -> ClientConfig {
        ClientConfig {
            credentials: Credentials {
                token,
                ca_file: Some(self.file("ca.crt")),
                client_certificate: None,
            },
            ..lossless(split_layer)
        }
    }
}

/// A certificate authority, and a certificate of it for loopback.
fn write_certificates(folder: &Path) -> Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &authority)?;
    std::fs::write(folder.join("ca.crt"), authority.pem())?;
    std::fs::write(folder.join("tls.crt"), certificate.pem())?;
    Ok(std::fs::write(folder.join("tls.key"), key.serialize_pem())?)
}

fn key_line(token: &str) -> String {
    let digest = Sha256::digest(token);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("acme:{hex}\n")
}

/// The address that the server prints, after which somebody goes on reading: a full pipe would stop it.
async fn listening(stderr: tokio::process::ChildStderr) -> Result<SocketAddr> {
    let mut lines = BufReader::new(stderr).lines();
    let mut seen = String::new();
    while let Some(line) = lines.next_line().await? {
        if let Some(address) = line.strip_prefix("listening on wss://") {
            let address = address.parse()?;
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok(address);
        }
        seen += &line;
        seen.push('\n');
    }
    anyhow::bail!("tail-server ended:\n{seen}")
}

fn prompt() -> Prompt {
    Prompt::TokenIds(vec![3, 17, 64, 9, 100, 42, 5, 77, 12, 90, 31])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_with_a_token_generates_over_tls_what_it_would_alone() -> Result<()> {
    let tail = Tail::start(&[]).await?;
    let model = LocalModel::load(&tiny_llama(), &LocalConfig::default())?;
    let request = request(prompt(), 16, sampled(3));
    let expected = finish(model.generate(request.clone()).await?).await?;
    let tokens = [
        Token::File(tail.file("token")),
        Token::Value(Secret::new(TOKEN.to_owned())),
    ];
    for (split_layer, token) in (0..).zip(tokens) {
        let config = tail.device(split_layer, Some(token));
        let client = Client::connect(&tail.url(), config).await?;
        let answer = finish(client.generate(request.clone()).await?).await?;
        assert_eq!(answer.tokens, expected.tokens, "split layer {split_layer}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_takes_token_and_authority_from_files() -> Result<()> {
    let tail = Tail::start(&[]).await?;
    let url = tail.url();
    let run = async |more: &[&std::ffi::OsStr]| -> Result<(bool, String)> {
        let output = Command::new(program("edge-lite"))
            .args(["generate", "--tail", &url, "--raw", "--prompt", "t3 t17"])
            .args(["--max-tokens", "3", "--split-layer", "1", "--cache-dir"])
            .arg(artifact_cache_dir())
            .args(more)
            .output()
            .await?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status.success(), error))
    };
    let (ca, token) = (tail.file("ca.crt"), tail.file("token"));
    let ca = ["--ca-file".as_ref(), ca.as_os_str()];
    let token = ["--token-file".as_ref(), token.as_os_str()];
    let (is_good, error) = run(&[ca, token].concat()).await?;
    assert!(is_good, "{error}");
    assert!(!error.contains(TOKEN));
    let (is_good, error) = run(&ca).await?;
    assert!(
        !is_good && error.contains("does not let this device in"),
        "{error}"
    );
    // The system knows nothing of this authority.
    let (is_good, _) = run(&token).await?;
    assert!(!is_good);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_is_one_clear_error() -> Result<()> {
    let tail = Tail::start(&[]).await?;
    let wrong = Token::Value(Secret::new("wrong".to_owned()));
    for token in [None, Some(wrong)] {
        let error = Client::connect(&tail.url(), tail.device(1, token))
            .await
            .err()
            .context("let in")?;
        assert!(
            matches!(&error, Error::Tail(TailError::Unauthenticated { message, .. }) if !message.is_empty()),
            "{error}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawn_key_ends_a_generation_without_a_storm_of_retries() -> Result<()> {
    let tail = Tail::start(&[]).await?;
    let token = Some(Token::File(tail.file("token")));
    let client = Client::connect(&tail.url(), tail.device(1, token)).await?;
    // Longer than the file takes to be read again: as many tokens as fit, again and again.
    std::fs::write(tail.file("keys"), "# nobody\n")?;
    let refused = async {
        loop {
            let generation = client.generate(request(prompt(), 200, sampled(1))).await?;
            match finish(generation).await {
                Ok(answer) => ensure!(answer.report.reconnects == 0, "a session was rebuilt"),
                Err(error) => return Ok(error),
            }
        }
    };
    let error = timeout(PATIENCE, refused).await??;
    assert!(
        matches!(error, Error::Tail(TailError::Unauthenticated { .. })),
        "{error}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_tail_recommends_and_forbids_reaches_the_device() -> Result<()> {
    let options = ["--split-default", "2", "--no-token-upload"];
    let mut tail = Tail::start(&options).await?;
    let token = || Some(Token::File(tail.file("token")));
    let config = ClientConfig {
        split_layer: None,
        ..tail.device(0, token())
    };
    let client = Client::connect(&tail.url(), config).await?;
    assert_eq!(client.choice().split_layer, 2);
    let penalised = client.generate(request(prompt(), 4, sampled(1))).await;
    assert!(matches!(
        penalised.err(),
        Some(Error::Request(RequestError::TokenUpload))
    ));
    for (split_layer, expected) in [(0, "takes 1 to 2"), (3, "does not allow")] {
        let error = Client::connect(&tail.url(), tail.device(split_layer, token()))
            .await
            .err()
            .context("accepted")?;
        assert!(error.to_string().contains(expected), "{error}");
    }
    tail.child.kill().await?;

    let tail = Tail::start(&["--on-device-answers"]).await?;
    let token = Some(Token::File(tail.file("token")));
    let client = Client::connect(&tail.url(), tail.device(3, token)).await?;
    let answer = finish(client.generate(request(prompt(), 4, sampled(1))).await?).await?;
    assert_eq!(answer.report.split_layer, 3);
    assert_eq!(answer.report.bytes_up, 0);
    Ok(())
}
