//! Peers that are slow or large before they are anybody.

use std::time::Duration;

use tail_server::Timeouts;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::rig::{PATIENCE, Server};
use crate::tls::{Authority, tls_options};

fn impatient() -> Timeouts {
    Timeouts {
        handshake: Duration::from_millis(100),
        headers: Duration::from_millis(100),
        ..Timeouts::default()
    }
}

/// Sends bytes, and reads to the end that the server must make.
async fn answer_to(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // The server may have closed before all is sent.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("the server never closes");
    answer
}

#[tokio::test]
async fn headers_that_do_not_end_end_the_connection() {
    let server = Server::start_with(&[], impatient()).await;
    for start in ["", "G", "GET /healthz HTTP/1.1\r\nHost: t\r\nX-Slow: "] {
        let answer = answer_to(&server, start.as_bytes()).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{start:?}");
    }
}

#[tokio::test]
async fn headers_that_trickle_end_the_connection() {
    let server = Server::start_with(&[], impatient()).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut from, mut to) = stream.into_split();
    let trickle = async {
        to.write_all(b"GET / HTTP/1.1\r\n").await?;
        loop {
            to.write_all(b"X: y\r\n").await?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let mut answer = Vec::new();
    let ended = async {
        tokio::select! {
            ended = trickle => { let _: std::io::Result<()> = ended; }
            _ = from.read_to_end(&mut answer) => {}
        }
    };
    timeout(PATIENCE, ended)
        .await
        .expect("the server never closes");
}

#[tokio::test]
async fn an_idle_connection_ends_after_its_request() {
    let server = Server::start_with(&[], impatient()).await;
    let answer = answer_to(&server, b"GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n").await;
    assert!(answer.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn a_handshake_that_does_not_end_ends_the_connection() {
    let authority = Authority::new();
    let (_folder, options) = tls_options(&authority);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let server = Server::start_with(&options, impatient()).await;
    // The start of a record of 512 bytes.
    for start in [&b""[..], &[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]] {
        assert!(answer_to(&server, start).await.is_empty());
    }
}

#[tokio::test]
async fn more_slow_connections_than_there_is_room_for_do_not_stay() {
    let server = Server::start_with(&[], impatient()).await;
    let mut slow = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        slow.push(stream);
    }
    let asked = timeout(PATIENCE, server.get("/healthz")).await;
    assert_eq!(asked.unwrap().status(), 200);
}

#[tokio::test]
async fn headers_that_are_too_large_or_too_many_are_refused() {
    let server = Server::start(&[]).await;
    let large = format!(
        "GET /healthz HTTP/1.1\r\nX: {}\r\n\r\n",
        "x".repeat(1 << 20)
    );
    let many = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(1000));
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    for bomb in [large, many, long] {
        let answer = answer_to(&server, bomb.as_bytes()).await;
        let status = String::from_utf8_lossy(&answer);
        // A reset may take the answer along.
        assert!(
            status.is_empty()
                || status.starts_with("HTTP/1.1 431")
                || status.starts_with("HTTP/1.1 414"),
            "{status}"
        );
    }
    // What a token of an issuer may take.
    let token = "x".repeat(12 << 10);
    assert_eq!(server.get_as("/v1/model", &token).await.status(), 200);
}
