//! TLS: what is spoken, certificates that change, and clients' certificates.

use std::sync::Arc;

use headway_wire::message::Close;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream};

use crate::auth::timeouts;
use crate::rig::{Client, PATIENCE, PROMPT, Server, replace_file, token_ids};

/// A certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Pair {
    certificate: String,
    key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn sign(&self, names: &[SanType]) -> Pair {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    /// For a server on loopback.
    fn server(&self) -> Pair {
        self.sign(&[SanType::IpAddress([127, 0, 0, 1].into())])
    }

    /// For a device.
    fn device(&self, uri: &str) -> Pair {
        self.sign(&[SanType::URI(uri.try_into().unwrap())])
    }

    fn client_config(
        &self,
        pair: Option<&Pair>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        match pair {
            None => builder.with_no_client_auth(),
            Some(Pair { certificate, key }) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        }
    }

    /// An HTTP client that trusts this authority, and shows a certificate.
    fn http(&self, pair: Option<&Pair>) -> reqwest::Client {
        reqwest::Client::builder()
            .tls_backend_preconfigured(self.client_config(pair, rustls::ALL_VERSIONS))
            .build()
            .unwrap()
    }
}

fn write_pair(folder: &TempDir, pair: &Pair) {
    replace_file(folder.path().join("tls.crt"), &pair.certificate);
    replace_file(folder.path().join("tls.key"), &pair.key);
}

/// A folder with a server's certificate of this authority, and the options that name it.
pub fn tls_options(authority: &Authority) -> (TempDir, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    write_pair(&folder, &authority.server());
    let path = |file: &str| folder.path().join(file).to_str().unwrap().to_owned();
    let options = vec![
        "--tls-cert".to_owned(),
        path("tls.crt"),
        "--tls-key".to_owned(),
        path("tls.key"),
    ];
    (folder, options)
}

/// A server with a certificate of `authority`, and with more options.
async fn start(authority: &Authority, more: &[&str]) -> (TempDir, Server) {
    let (folder, options) = tls_options(authority);
    let options: Vec<&str> = options
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect();
    let mut server = Server::start_with(&options, timeouts()).await;
    server.http = authority.http(None);
    (folder, server)
}

async fn handshake(server: &Server, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::from(server.address.ip());
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream);
    timeout(PATIENCE, connected).await.unwrap()
}

async fn socket(
    server: &Server,
    config: ClientConfig,
) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let url = format!("wss://{}/v1/session", server.address);
    let connector = Connector::Rustls(Arc::new(config));
    let connected =
        tokio_tungstenite::client_async_tls_with_config(url, stream, None, Some(connector)).await;
    connected.unwrap().0
}

#[tokio::test]
async fn a_session_runs_over_each_version_of_tls_that_is_safe() {
    let authority = Authority::new();
    let (_folder, server) = start(&authority, &[]).await;
    assert_eq!(server.get("/v1/model").await.status(), 200);
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let config = authority.client_config(None, &[version]);
        let socket = socket(&server, config).await;
        let mut client = Client { socket };
        client.send(server.open(0)).await;
        client.opened().await;
        client.send(token_ids(0, &PROMPT, true)).await;
        assert!(client.result().await.token_id.is_some());
        client.send(Close {}).await;
        assert!(client.answer().await.is_none());
    }
}

#[tokio::test]
async fn only_http_1_is_agreed_on() {
    let authority = Authority::new();
    let (_folder, server) = start(&authority, &[]).await;
    let mut config = authority.client_config(None, rustls::ALL_VERSIONS);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = handshake(&server, config.clone()).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    config.alpn_protocols = vec![b"h2".to_vec()];
    assert!(handshake(&server, config).await.is_err());
}

/// A ClientHello of TLS 1.1 (RFC 4346): version 3.2, no extensions.
fn client_hello_1_1() -> Vec<u8> {
    let mut body = vec![3, 2];
    body.extend([7; 32]);
    // No session id; one suite, TLS_RSA_WITH_AES_128_CBC_SHA; no compression.
    body.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    let length = u8::try_from(body.len()).unwrap();
    let mut record = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
    record.extend(body);
    record
}

async fn raw_answer(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("the server never closes");
    answer
}

#[tokio::test]
async fn plain_http_and_old_tls_get_an_alert_and_nothing_else() {
    let authority = Authority::new();
    let (_folder, server) = start(&authority, &[]).await;
    let hello = client_hello_1_1();
    for bytes in [&b"GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n"[..], &hello] {
        let answer = raw_answer(&server, bytes).await;
        // 21 is an alert; a reset may take it along.
        assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
        assert!(answer.len() <= 7, "{answer:?}");
    }
}

#[tokio::test]
async fn a_new_certificate_is_for_new_connections_and_old_ones_go_on() {
    let (old, new) = (Authority::new(), Authority::new());
    let (folder, server) = start(&old, &[]).await;
    let socket = socket(&server, old.client_config(None, rustls::ALL_VERSIONS)).await;
    let mut live = Client { socket };
    live.send(server.open(0)).await;
    live.opened().await;

    write_pair(&folder, &new.server());
    let renewed = async {
        while new
            .http(None)
            .get(server.url("/healthz"))
            .send()
            .await
            .is_err()
        {}
    };
    timeout(PATIENCE, renewed).await.unwrap();
    let trusting_old = old.client_config(None, rustls::ALL_VERSIONS);
    assert!(handshake(&server, trusting_old).await.is_err());
    live.send(token_ids(0, &PROMPT, true)).await;
    assert!(live.result().await.token_id.is_some());
    live.send_raw(Message::Ping("still here".into())).await;
    live.send(token_ids(PROMPT.len(), &[1], true)).await;
    assert!(live.result().await.token_id.is_some());
}

#[tokio::test]
async fn a_broken_certificate_leaves_the_old_one_in_use() {
    let authority = Authority::new();
    let (folder, server) = start(&authority, &[]).await;
    // From here on it has read the files.
    assert_eq!(server.get("/readyz").await.status(), 200);
    let failed = "headway_tail_reloads_total{result=\"failed\",what=\"tls\"}";
    replace_file(folder.path().join("tls.crt"), "not a certificate");
    server.wait_for_metric(failed, 1.0).await;
    // A certificate without its key is as broken.
    let other = Authority::new().server();
    replace_file(folder.path().join("tls.crt"), &other.certificate);
    server.wait_for_metric(failed, 2.0).await;
    std::fs::remove_file(folder.path().join("tls.crt")).unwrap();
    server.wait_for_metric(failed, 3.0).await;
    let status = async || {
        let response = authority.http(None).get(server.url("/v1/model")).send();
        response.await.unwrap().status()
    };
    assert_eq!(status().await, 200);

    write_pair(&folder, &authority.server());
    let renewed = "headway_tail_reloads_total{result=\"ok\",what=\"tls\"}";
    let good = async { while server.metric(renewed).await < 1.0 {} };
    timeout(PATIENCE, good).await.unwrap();
    assert_eq!(status().await, 200);
}

#[tokio::test]
async fn a_device_shows_a_certificate_of_the_right_authority() {
    let (authority, devices) = (Authority::new(), Authority::new());
    let ca = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca.path(), devices.0.pem()).unwrap();
    let options = ["--tls-client-ca", ca.path().to_str().unwrap()];
    let (_folder, server) = start(&authority, &options).await;

    let phone = devices.device("spiffe://example/acme/phone");
    let known = authority.http(Some(&phone));
    let status = known.get(server.url("/v1/model")).send().await.unwrap();
    assert_eq!(status.status(), 200);
    let config = authority.client_config(Some(&phone), rustls::ALL_VERSIONS);
    let mut client = Client {
        socket: socket(&server, config).await,
    };
    client.send(server.open(0)).await;
    client.opened().await;

    // Probes and scrapes come without one, and get no further.
    assert_eq!(server.get("/readyz").await.status(), 200);
    let without = server.get("/v1/model").await;
    assert_eq!(without.status(), 401);
    let body: serde_json::Value = without.json().await.unwrap();
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("client certificate"), "{message}");

    let foreign = Authority::new().device("spiffe://example/acme/phone");
    let foreign = authority.http(Some(&foreign));
    assert!(foreign.get(server.url("/healthz")).send().await.is_err());

    let nameless = authority.http(Some(&devices.sign(&[])));
    let refused = nameless.get(server.url("/v1/model")).send().await.unwrap();
    assert_eq!(refused.status(), 401);
}
