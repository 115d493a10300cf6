//! The way to a tail: TCP, TLS where the tail has it, and HTTP or a WebSocket on top.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::AUTHORIZATION;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self};

use crate::tail::http_status;

/// For a whole HTTP exchange.
const HTTP_TIMEOUT: Duration = Duration::from_secs(20);
/// For a WebSocket, from TCP on.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(60);
/// What one read from a socket takes at most; results are small, and there are many devices.
const READ_BUFFER_BYTES: usize = 16 << 10;

/// The largest segments that a narrow socket takes. What a system lets pile up in front of a reader that does not
/// read grows with their size, which is 64 KiB on loopback.
const NARROW_SEGMENT_BYTES: u32 = 536;

/// Bytes in both directions.
pub trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// A connection to a tail, with TLS or without.
pub type Stream = Box<dyn Bytes>;

/// A WebSocket on it.
pub type Socket = WebSocketStream<Stream>;

/// How to reach one tail.
#[derive(Clone)]
pub struct Link {
    address: SocketAddr,
    tls: Option<TlsConnector>,
}

impl Link {
    /// Without TLS.
    #[must_use]
    pub const fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }

    /// With TLS: the tail's certificate must be of an authority in `ca_file`, PEM.
    ///
    /// # Errors
    /// Where the file holds no certificate.
    pub fn with_tls(address: SocketAddr, ca_file: &Path) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca_file)? {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            address,
            tls: Some(Arc::new(config).into()),
        })
    }

    /// TCP alone, with nothing said.
    ///
    /// # Errors
    /// Where nobody listens.
    pub async fn tcp(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect(self.address).await?;
        // A decode step is one small frame: waiting to fill a packet would cost more than the step.
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A connection on which HTTP can be spoken.
    ///
    /// # Errors
    /// Where nobody listens, or the certificate is not right.
    pub async fn stream(&self) -> std::io::Result<Stream> {
        self.secured(self.tcp().await?).await
    }

    /// A WebSocket for a session, with a bearer token where one is given.
    ///
    /// # Errors
    /// The library's; [`tungstenite::Error::Http`] where the tail answered with something else, and an error of
    /// the kind `TimedOut` where it did not answer for a minute.
    pub async fn socket(&self, token: Option<&str>) -> Result<Socket, tungstenite::Error> {
        let socket = async { self.upgraded(self.stream().await?, token).await };
        in_time(socket).await
    }

    /// As [`Link::socket`], where the systems on both sides keep little of what nobody has read yet, on this side
    /// about `receive_bytes`.
    ///
    /// # Errors
    /// As [`Link::socket`].
    pub async fn narrow_socket(
        &self,
        token: Option<&str>,
        receive_bytes: u32,
    ) -> Result<Socket, tungstenite::Error> {
        let socket = async {
            let tcp = TcpSocket::new_v4()?;
            // Before the connection, so that nothing was ever larger.
            tcp.set_recv_buffer_size(receive_bytes)?;
            SockRef::from(&tcp).set_tcp_mss(NARROW_SEGMENT_BYTES)?;
            let stream = tcp.connect(self.address).await?;
            self.upgraded(self.secured(stream).await?, token).await
        };
        in_time(socket).await
    }

    /// `GET path`: status and body.
    ///
    /// # Errors
    /// Where there is no HTTP answer in time.
    pub async fn fetch(&self, path: &str, token: Option<&str>) -> Result<(u16, String)> {
        let authorization = token.map_or(String::new(), |token| {
            format!("Authorization: Bearer {token}\r\n")
        });
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: tail\r\n{authorization}Connection: close\r\n\r\n"
        );
        let exchange = async {
            let mut stream = self.stream().await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            // What came before a reset is the answer.
            let _ = stream.read_to_end(&mut answer).await;
            std::io::Result::Ok(answer)
        };
        let answer = timeout(HTTP_TIMEOUT, exchange)
            .await
            .with_context(|| format!("no answer to GET {path}"))??;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
        let status = http_status(head.as_bytes()).context("an HTTP status")?;
        Ok((status, body.to_owned()))
    }

    async fn secured(&self, stream: TcpStream) -> std::io::Result<Stream> {
        match &self.tls {
            None => Ok(Box::new(stream)),
            Some(tls) => {
                let name = ServerName::from(self.address.ip());
                Ok(Box::new(tls.connect(name, stream).await?))
            }
        }
    }

    async fn upgraded(
        &self,
        stream: Stream,
        token: Option<&str>,
    ) -> Result<Socket, tungstenite::Error> {
        let url = format!("ws://{}/v1/session", self.address);
        let mut request = url.into_client_request()?;
        if let Some(token) = token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"))?;
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
        let upgrade = tokio_tungstenite::client_async_with_config(request, stream, Some(config));
        Ok(upgrade.await?.0)
    }
}

async fn in_time(
    socket: impl Future<Output = Result<Socket, tungstenite::Error>>,
) -> Result<Socket, tungstenite::Error> {
    let late = Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
    timeout(SOCKET_TIMEOUT, socket).await.unwrap_or(late)
}
