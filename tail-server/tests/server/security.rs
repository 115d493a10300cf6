//! Peers that mean ill: slow ones, many at once, and small inputs that would be large inside.

use std::time::{Duration, SystemTime};

use futures_util::SinkExt as _;
use headway_wire::message::{ClientFrame, LogitBias, Open, RefusalCode, Sampling, Step, TokenIds};
use tail_server::Timeouts;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::MaybeTlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::auth::{key_line, keys_file, timeouts};
use crate::half_open::{narrow_stream, ping_bytes, session_over};
use crate::rig::{Client, PATIENCE, PROMPT, Server, token_ids};
use crate::tls::{Authority, tls_options};

/// The request that makes a connection a WebSocket, without the empty line that ends it.
const UPGRADE: &str = "GET /v1/session HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Session sockets beyond the sessions that a tail takes.
const EXTRA_SOCKETS: usize = 64;

/// Writes pieces without an end, slowly, until the server ends the connection. Returns what it said.
async fn trickle(stream: TcpStream, piece: &[u8]) -> Vec<u8> {
    let (mut from, mut to) = stream.into_split();
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    let writing = async {
        loop {
            pace.tick().await;
            if to.write_all(piece).await.is_err() {
                return std::future::pending::<()>().await;
            }
        }
    };
    let mut answer = Vec::new();
    let reading = async {
        tokio::select! {
            // A reset is an end as well.
            _ = from.read_to_end(&mut answer) => {}
            () = writing => {}
        }
    };
    timeout(PATIENCE, reading)
        .await
        .expect("the server never closes");
    answer
}

fn plain(client: Client) -> TcpStream {
    match client.socket.into_inner() {
        MaybeTlsStream::Plain(stream) => stream,
        _ => panic!("a plain stream"),
    }
}

async fn is_served(server: &Server) {
    let mut client = server.session(0).await;
    client.send(token_ids(0, &PROMPT, true)).await;
    assert!(client.result().await.token_id.is_some());
}

#[tokio::test]
async fn an_upgrade_that_trickles_ends_the_connection() {
    let headers = Duration::from_millis(200);
    let timeouts = Timeouts {
        headers,
        ..Timeouts::default()
    };
    let server = Server::start_with(&[], timeouts).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(UPGRADE.as_bytes()).await.unwrap();
    let answer = trickle(stream, b"X").await;
    assert!(!answer.starts_with(b"HTTP/1.1 101"));
}

#[tokio::test]
async fn upgrades_that_never_end_do_not_keep_a_good_device_out() {
    let timeouts = Timeouts {
        headers: Duration::from_millis(200),
        ..Timeouts::default()
    };
    let server = Server::start_with(&[], timeouts).await;
    let mut slow = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(UPGRADE.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    timeout(PATIENCE, is_served(&server)).await.unwrap();
}

#[tokio::test]
async fn an_open_that_trickles_ends_the_connection_in_time() {
    let timeouts = Timeouts {
        open: Duration::from_millis(200),
        ..Timeouts::default()
    };
    let server = Server::start_with(&[], timeouts).await;
    // A frame of 60000 bytes that comes byte by byte, messages without content that never end, and pings.
    let frame = [0x82, 0x80 | 126, 0xea, 0x60, 0, 0, 0, 0];
    for (start, piece) in [
        (&frame[..], &[0][..]),
        (&[0x02, 0x80, 0, 0, 0, 0], &[0x00, 0x80, 0, 0, 0, 0]),
        (&[], &[0x89, 0x80, 0, 0, 0, 0]),
    ] {
        let mut stream = plain(server.connect().await);
        stream.write_all(start).await.unwrap();
        trickle(stream, piece).await;
    }
    server
        .wait_for_metric("headway_tail_refusals_total{code=\"malformed\"}", 3.0)
        .await;
}

#[tokio::test]
async fn a_step_that_trickles_is_no_sign_of_life() {
    let timeouts = Timeouts {
        ping_interval: Duration::from_millis(50),
        idle: Duration::from_millis(300),
        ..Timeouts::default()
    };
    let server = Server::start_with(&["--max-sessions", "1"], timeouts).await;
    let mut stream = plain(server.session(0).await);
    let frame = [0x82, 0x80 | 126, 0xea, 0x60, 0, 0, 0, 0];
    stream.write_all(&frame).await.unwrap();
    trickle(stream, &[0]).await;
    server.wait_for_metric("headway_tail_sessions", 0.0).await;
    is_served(&server).await;
}

/// Opens sockets until one is refused, and says how many were not.
async fn flood(server: &Server) -> Vec<Client> {
    let mut sockets = Vec::new();
    loop {
        match server.upgrade(&[]).await {
            Ok(client) => sockets.push(client),
            Err(status) => {
                assert_eq!(status, 503);
                return sockets;
            }
        }
        assert!(sockets.len() < 1000, "sockets without a limit");
    }
}

#[tokio::test]
async fn more_sockets_than_the_limit_are_refused_until_some_have_gone() {
    let server = Server::start(&["--max-sessions", "2"]).await;
    let mut live = server.session(0).await;
    let mut flood = flood(&server).await;
    assert_eq!(1 + flood.len(), 2 + EXTRA_SOCKETS);
    let request = server.http.get(server.url("/v1/session"));
    let refused = request
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .send()
        .await
        .unwrap();
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1");
    let body: serde_json::Value = refused.json().await.unwrap();
    assert_eq!(body["error"]["code"], "no_capacity");
    // Who has a session goes on, and the cluster still hears that the tail is well.
    live.send(token_ids(0, &PROMPT, true)).await;
    assert!(live.result().await.token_id.is_some());
    assert_eq!(server.get("/readyz").await.status(), 200);

    flood.truncate(10);
    let recovered = async { while server.upgrade(&[]).await.is_err() {} };
    timeout(PATIENCE, recovered).await.unwrap();
    is_served(&server).await;
}

#[tokio::test]
async fn sockets_that_open_no_session_do_not_stay_however_many_they_are() {
    let timeouts = Timeouts {
        open: Duration::from_millis(500),
        ..Timeouts::default()
    };
    let server = Server::start_with(&["--max-sessions", "1"], timeouts).await;
    let _silent = flood(&server).await;
    let recovered = async { while server.upgrade(&[]).await.is_err() {} };
    timeout(PATIENCE, recovered)
        .await
        .expect("silent sockets keep everybody out");
    is_served(&server).await;
}

#[tokio::test]
async fn a_frame_of_a_declared_size_without_end_is_refused_by_its_header() {
    let server = Server::start(&[]).await;
    for declared in [1_u64 << 62, u64::MAX >> 1, 1 << 33] {
        let mut client = server.session(0).await;
        let header = [&[0x82, 0xff][..], &declared.to_be_bytes(), &[0; 4]].concat();
        match client.socket.get_mut() {
            MaybeTlsStream::Plain(stream) => stream.write_all(&header).await.unwrap(),
            _ => panic!("a plain stream"),
        }
        assert_eq!(client.refusal().await.code(), RefusalCode::OverLimit);
    }
    server.wait_for_metric("headway_tail_sessions", 0.0).await;
}

#[tokio::test]
async fn a_message_of_fragments_without_end_is_refused_at_the_limit() {
    const FRAGMENT_BYTES: usize = 16 << 10;
    let server = Server::start(&[]).await;
    let mut client = server.session(0).await;
    let fragment = |kind| {
        let frame = Frame::message(vec![0; FRAGMENT_BYTES], OpCode::Data(kind), false);
        Message::Frame(frame)
    };
    client.send_raw(fragment(Data::Binary)).await;
    // More than the kernel's buffers hold, were they not read.
    for _ in 0..64 {
        if client.socket.send(fragment(Data::Continue)).await.is_err() {
            break;
        }
    }
    let refusal = client.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::OverLimit);
    assert!(
        refusal.message.contains("max_frame_bytes"),
        "{}",
        refusal.message
    );
    is_served(&server).await;
}

#[tokio::test]
async fn compression_is_not_agreed_on_and_not_taken() {
    let server = Server::start(&[]).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";
    let request = [UPGRADE, offer].concat();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let byte = timeout(PATIENCE, stream.read_u8()).await.unwrap();
        answer.push(byte.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap().to_lowercase();
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    assert!(!answer.contains("sec-websocket-extensions"), "{answer}");

    // The first reserved bit: a compressed message.
    let mut client = server.session(0).await;
    match client.socket.get_mut() {
        MaybeTlsStream::Plain(stream) => {
            let frame = [0xc2, 0x80 | 1, 0, 0, 0, 0, 0];
            stream.write_all(&frame).await.unwrap();
        }
        _ => panic!("a plain stream"),
    }
    assert_eq!(client.refusal().await.code(), RefusalCode::Malformed);
}

/// `count` fields of protobuf's wire format, each of these bytes.
fn fields(field: &[u8], count: usize) -> Message {
    Message::binary(field.repeat(count))
}

#[tokio::test]
async fn frames_of_very_many_small_parts_are_refused_and_harm_nobody() {
    let server = Server::start(&[]).await;
    // The frame's own limit is above all of these: 64 KiB, and a step of 512 rows.
    let many = 60_000;
    let biases = vec![LogitBias::default(); many / 2];
    let open = Open {
        sampling: Some(Sampling {
            logit_bias: biases,
            ..Sampling::default()
        }),
        ..server.open(0)
    };
    let with_ids = |step: fn(Vec<u32>) -> Step| step(vec![1; many]);
    let steps = [
        with_ids(|ids| token_ids(0, &ids, true)),
        with_ids(|ids| Step {
            draft: Some(TokenIds { ids }),
            ..token_ids(0, &[1], true)
        }),
    ];
    let mut opening = server.connect().await;
    opening.send(open).await;
    let refusal = opening.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::OverLimit);
    assert!(
        refusal.message.contains("max_logit_bias"),
        "{}",
        refusal.message
    );
    for step in steps {
        let mut client = server.session(0).await;
        client.send(ClientFrame::from(step)).await;
        assert_eq!(client.refusal().await.code(), RefusalCode::OverLimit);
    }
    // Fields that no version knows, groups within groups, and the same message over and over.
    let unknown = fields(&[0x78, 0x01], many);
    let nested = fields(&[0x7b], many);
    let repeated = fields(&[0x0a, 0x00], many);
    for (bomb, name) in [
        (unknown, "unknown"),
        (nested, "nested"),
        (repeated, "repeated"),
    ] {
        let mut client = server.connect().await;
        client.send_raw(bomb).await;
        let code = client.refusal().await.code();
        let refused = matches!(code, RefusalCode::Malformed | RefusalCode::Unsupported);
        assert!(refused, "{name}: {code:?}");
    }
    is_served(&server).await;
}

#[tokio::test]
async fn pings_of_a_device_that_does_not_read_take_no_memory() {
    const FLOOD_BYTES: usize = 64 << 20;
    // What kernel buffers may hold on both sides, and a fair buffer of the server's.
    const MAX_PONG_BYTES: usize = 16 << 20;
    let timeouts = Timeouts {
        ping_interval: Duration::from_secs(3600),
        ..Timeouts::default()
    };
    let server = Server::start_with(&[], timeouts).await;
    let client = session_over(narrow_stream(&server).await, &server).await;
    let (mut from, mut to) = plain(client).into_split();
    let pings = ping_bytes().repeat(1024);
    let flood = async {
        for _ in 0..FLOOD_BYTES / pings.len() {
            to.write_all(&pings).await.unwrap();
        }
        // A session's end: the server closes after what it has to say.
        let close = [0x82, 0x80 | 2, 0, 0, 0, 0, 0x1a, 0x00];
        to.write_all(&close).await.unwrap();
    };
    timeout(PATIENCE, flood).await.expect("pings are not read");
    let mut pong_bytes = 0;
    let mut buffer = vec![0; 1 << 16];
    let rest = async {
        while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
            pong_bytes += bytes;
        }
    };
    timeout(PATIENCE, rest)
        .await
        .expect("the session never ends");
    assert!(
        pong_bytes <= MAX_PONG_BYTES,
        "{pong_bytes} bytes were kept for a device that did not read"
    );
}

/// A ClientHello (RFC 8446, section 4.1.2) that claims TLS 1.2 in its old field, and names only older versions where
/// versions are named since.
fn hello_of_old_versions() -> Vec<u8> {
    // RFC 8446, sections 4.2.1, 4.2.3 and 4.2.7: supported_versions 1.1 and 1.0, ecdsa_secp256r1_sha256, x25519.
    let extensions = [
        &[0, 43, 0, 5, 4, 3, 2, 3, 1][..],
        &[0, 13, 0, 4, 0, 2, 4, 3],
        &[0, 10, 0, 4, 0, 2, 0, 29],
    ]
    .concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    // No session id; TLS_AES_128_GCM_SHA256 and TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256; no compression.
    body.extend([0, 0, 4, 0x13, 0x01, 0xc0, 0x2b, 1, 0]);
    body.extend([0, u8::try_from(extensions.len()).unwrap()]);
    body.extend(extensions);
    let length = u8::try_from(body.len()).unwrap();
    let mut record = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
    record.extend(body);
    record
}

#[tokio::test]
async fn a_hello_that_names_only_old_versions_gets_an_alert() {
    let (_folder, options) = tls_options(&Authority::new());
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let server = Server::start(&options).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&hello_of_old_versions()).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("the server never closes");
    // A fatal alert, protocol_version (RFC 8446, section 6); a reset may take it along.
    assert!(
        answer.is_empty() || (answer[0] == 21 && answer[5..] == [2, 70]),
        "{answer:?}"
    );
}

#[tokio::test]
async fn what_only_looks_like_credentials_lets_nobody_in() {
    let (_folder, path) = keys_file(&key_line("acme", "one"));
    let server = Server::start(&["--auth-keys", &path]).await;
    let long = format!("Bearer {}", "x".repeat(16 << 10));
    let twice = [
        ("authorization", "Bearer one"),
        ("authorization", "Bearer two"),
    ];
    for headers in [
        &[("authorization", "Bearer")][..],
        &[("authorization", "Bearer ")],
        &[("authorization", "one")],
        &[("authorization", "Basic b25l")],
        &[("authorization", "Bearer one two")],
        &[("authorization", "Bearer one,two")],
        &[("authorization", &long)],
        &[("proxy-authorization", "Bearer one")],
        &[("cookie", "token=one")],
        &[("x-forwarded-for", "127.0.0.1")],
    ] {
        assert_eq!(
            server.upgrade(headers).await.err(),
            Some(401),
            "{headers:?}"
        );
    }
    let mut request = server.http.get(server.url("/v1/model"));
    for (name, value) in twice {
        request = request.header(name, value);
    }
    assert_eq!(request.send().await.unwrap().status(), 401);
    for path in [
        "/v1/model?token=one",
        "/v1/model?access_token=one",
        "//v1/model",
        "/v1/%6dodel",
    ] {
        let status = server.get(path).await.status();
        assert!(status == 401 || status == 404, "{path}: {status}");
    }
    is_session_of(&server, "one").await;
}

async fn is_session_of(server: &Server, token: &str) {
    let mut client = server.session_as(token).await;
    client.send(token_ids(0, &PROMPT, true)).await;
    assert!(client.result().await.token_id.is_some());
}

#[tokio::test]
async fn a_session_ends_when_its_key_expires_and_another_key_goes_on() {
    let end = OffsetDateTime::from(SystemTime::now() + Duration::from_secs(3));
    let end = end.format(&Rfc3339).unwrap();
    let keys = format!(
        "{}:{end}\n{}",
        key_line("acme", "one").trim(),
        key_line("acme", "two")
    );
    let (_folder, path) = keys_file(&keys);
    let server = Server::start_with(&["--auth-keys", &path], timeouts()).await;
    let mut ending = server.session_as("one").await;
    let mut lasting = server.session_as("two").await;
    let refusal = ending.refusal().await;
    assert_eq!(refusal.code(), RefusalCode::Unauthenticated);
    assert_eq!(server.get_as("/v1/model", "one").await.status(), 401);
    let headers = [("authorization", "Bearer one")];
    assert_eq!(server.upgrade(&headers).await.err(), Some(401));
    lasting.send(token_ids(0, &PROMPT, true)).await;
    assert!(lasting.result().await.token_id.is_some());
}
