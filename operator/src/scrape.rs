//! Asks tails for their `/metrics`, within bounds of time and bytes. One answer has two readers: what was counted is
//! for [`crate::savings`], how busy the tail is for [`crate::autoscale`].

pub mod rounds;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use reqwest::redirect::Policy;

use crate::autoscale::signals::{Signals, read_signals};
use crate::savings::counters::{ReadError, Reading, read_metrics};

/// For an answer to come, from connecting to its last byte.
const TIMEOUT: Duration = Duration::from_secs(3);
/// A tail's page has some 20 KiB.
const MAX_BYTES: usize = 256 << 10;

/// Where a tail answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Of the pod.
    pub address: IpAddr,
    /// Port of the tail's container.
    pub port: u16,
    /// Whether it speaks TLS.
    pub is_tls: bool,
}

/// What a tail said.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// What it has counted.
    pub reading: Reading,
    /// How busy it is.
    pub signals: Signals,
}

/// Why a tail gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    /// No answer.
    #[error("{}", crate::error::error_chain(.0))]
    Http(#[source] reqwest::Error),
    /// Another answer.
    #[error("the tail answers {0}")]
    Status(u16),
    /// More than a tail says.
    #[error("the answer has more than {MAX_BYTES} bytes")]
    TooLarge,
    /// Not a tail's.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Asks tails.
#[derive(Clone, Debug)]
pub struct Scraper {
    client: reqwest::Client,
}

impl Scraper {
    /// One that asks whoever is at an address, without proxies, redirects or connections that are kept.
    ///
    /// # Errors
    /// Where there is no TLS provider.
    pub fn new() -> reqwest::Result<Self> {
        let client = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .no_proxy()
            .redirect(Policy::none())
            .pool_max_idle_per_host(0)
            // The certificate is for the name that devices use, and here a pod's address is asked. What comes
            // back are numbers, and nothing secret is sent.
            .tls_certs_only([])
            .tls_danger_accept_invalid_certs(true)
            .build()?;
        Ok(Self { client })
    }

    /// What the tail at `target` says.
    ///
    /// # Errors
    /// [`ScrapeError`] where it does not say.
    pub async fn ask(&self, target: Target) -> Result<Answer, ScrapeError> {
        let (status, body) = self.page(target, "/metrics").await?;
        if status != 200 {
            return Err(ScrapeError::Status(status));
        }
        let text = String::from_utf8_lossy(&body);
        Ok(Answer {
            reading: read_metrics(&text)?,
            signals: read_signals(&text),
        })
    }

    /// Status and body of what the tail at `target` answers.
    ///
    /// # Errors
    /// [`ScrapeError`] where it does not, or with too much.
    pub async fn page(&self, target: Target, path: &str) -> Result<(u16, Vec<u8>), ScrapeError> {
        let scheme = if target.is_tls { "https" } else { "http" };
        let address = SocketAddr::new(target.address, target.port);
        let request = self.client.get(format!("{scheme}://{address}{path}"));
        let mut response = request.send().await.map_err(ScrapeError::Http)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(ScrapeError::Http)? {
            if body.len().saturating_add(chunk.len()) > MAX_BYTES {
                return Err(ScrapeError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok((response.status().as_u16(), body))
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::response::Redirect;
    use axum::routing::get;
    use tokio::net::TcpListener;

    use super::*;

    const TAIL: &str = "headway_tail_start_time_seconds 5\nheadway_tail_busy_seconds_total 2\n";

    async fn asked(router: Router) -> Result<Answer, ScrapeError> {
        // Another test may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });
        let target = Target {
            address: address.ip(),
            port: address.port(),
            is_tls: false,
        };
        let answer = Scraper::new().unwrap().ask(target).await;
        serving.abort();
        answer
    }

    #[tokio::test]
    async fn a_tail_is_read() {
        let answer = asked(Router::new().route("/metrics", get(async || TAIL))).await;
        assert_eq!(answer.unwrap().reading.counters.used_us, 2_000_000);
    }

    #[tokio::test]
    async fn an_answer_without_end_is_cut() {
        let long = "x".repeat(MAX_BYTES + 1);
        let answer = asked(Router::new().route("/metrics", get(async || long))).await;
        assert!(matches!(answer, Err(ScrapeError::TooLarge)), "{answer:?}");
    }

    #[tokio::test]
    async fn nobody_is_sent_elsewhere() {
        let elsewhere = get(async || Redirect::temporary("/there"));
        let there = get(async || TAIL);
        let router = Router::new()
            .route("/metrics", elsewhere)
            .route("/there", there);
        let answer = asked(router).await;
        assert!(
            matches!(answer, Err(ScrapeError::Status(307))),
            "{answer:?}"
        );
    }

    #[tokio::test]
    async fn what_does_not_answer_says_why() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let target = Target {
            address: address.ip(),
            port: address.port(),
            is_tls: false,
        };
        let error = Scraper::new().unwrap().ask(target).await.unwrap_err();
        assert!(error.to_string().contains("refused"), "{error}");
    }
}
