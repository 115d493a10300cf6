//! Devices that are gone without a word, and devices that do not read.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use headway_wire::frame::encode_client_frame;
use tail_server::Timeouts;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::MaybeTlsStream;
use tokio_tungstenite::tungstenite::Message;

use crate::rig::{Client, PATIENCE, PROMPT, Server, token_ids};

const SESSIONS: &str = "headway_tail_sessions";

/// Passes bytes on until it is told to stop; then it keeps its sockets open and is silent, as a path is that a
/// packet no longer takes.
struct Relay {
    address: SocketAddr,
    is_dead: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Relay {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let is_dead = watch::Sender::new(false);
        let dying = is_dead.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((device, _)) = listener.accept().await {
                let tail = TcpStream::connect(target).await.unwrap();
                tokio::spawn(relay(device, tail, dying.subscribe()));
            }
        });
        Self {
            address,
            is_dead,
            accepting,
        }
    }

    fn die(&self) {
        self.is_dead.send_replace(true);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn relay(mut device: TcpStream, mut tail: TcpStream, mut dying: watch::Receiver<bool>) {
    let is_dead = async { dying.wait_for(|&is_dead| is_dead).await.is_ok() };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut device, &mut tail) => {}
        true = is_dead => std::future::pending().await,
    }
}

/// A session over a connection that leads to the server.
pub async fn session_over(stream: TcpStream, server: &Server) -> Client {
    let url = format!("ws://{}/v1/session", server.address);
    let stream = MaybeTlsStream::Plain(stream);
    let (socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    let mut client = Client { socket };
    client.send(server.open(0)).await;
    client.opened().await;
    client
}

fn impatient() -> Timeouts {
    Timeouts {
        ping_interval: Duration::from_millis(50),
        idle: Duration::from_millis(400),
        write: Duration::from_millis(400),
        ..Timeouts::default()
    }
}

/// Answers pings until `done`, as a device does that waits for its user.
async fn quiet_until(client: &mut Client, done: impl Future<Output = ()>) {
    tokio::select! {
        () = done => {}
        answer = client.answer() => panic!("expected nothing, got {answer:?}"),
    }
}

#[tokio::test]
async fn a_path_that_dies_without_a_word_is_noticed_and_its_room_freed() {
    let server = Server::start_with(&["--max-sessions", "2"], impatient()).await;
    let relay = Relay::to(server.address).await;
    let stream = TcpStream::connect(relay.address).await.unwrap();
    let mut dead = session_over(stream, &server).await;
    dead.send(token_ids(0, &PROMPT, true)).await;
    dead.result().await;
    let mut quiet = server.session(0).await;
    let held = server.metric("headway_tail_kv_bytes").await;

    relay.die();
    let noticed = server.wait_for_metric(SESSIONS, 1.0);
    quiet_until(&mut quiet, noticed).await;
    assert_eq!(server.metric("headway_tail_kv_bytes").await, held / 2.0);
    // Its room is somebody's again, and the device that was quiet is there still.
    server.session(0).await;
    quiet.send(token_ids(0, &PROMPT, true)).await;
    assert!(quiet.result().await.token_id.is_some());
}

#[tokio::test]
async fn a_device_that_waits_for_its_user_stays() {
    let server = Server::start_with(&[], impatient()).await;
    let relay = Relay::to(server.address).await;
    let stream = TcpStream::connect(relay.address).await.unwrap();
    let mut quiet = session_over(stream, &server).await;
    // Several times as long as a device may be silent.
    let waited = timeout(Duration::from_millis(1600), quiet.answer()).await;
    assert!(waited.is_err(), "{waited:?}");
    quiet.send(token_ids(0, &PROMPT, true)).await;
    assert!(quiet.result().await.token_id.is_some());
}

/// A connection whose reader holds next to nothing.
pub async fn narrow_stream(server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(server.address).await.unwrap()
}

/// A ping of 125 bytes (RFC 6455, section 5.5.2), masked with zeros.
pub fn ping_bytes() -> Vec<u8> {
    [&[0x89, 0x80 | 125, 0, 0, 0, 0][..], &[b'p'; 125]].concat()
}

#[tokio::test]
async fn a_device_that_does_not_read_is_dropped_and_others_go_on() {
    let timeouts = Timeouts {
        idle: Duration::from_secs(3600),
        ..impatient()
    };
    let server = Server::start_with(&["--max-sessions", "2"], timeouts).await;
    let mut other = server.session(0).await;
    let Client { socket } = session_over(narrow_stream(&server).await, &server).await;
    let (mut from, mut to) = match socket.into_inner() {
        MaybeTlsStream::Plain(stream) => stream.into_split(),
        _ => panic!("a plain stream"),
    };
    // What the server says back fills the way to the device, however much the kernel holds.
    let pings = ping_bytes().repeat(256);
    let flood = async { while to.write_all(&pings).await.is_ok() {} };
    let dropped = server.wait_for_metric(SESSIONS, 1.0);
    let ended = async {
        tokio::select! {
            () = flood => {}
            () = dropped => {}
        }
    };
    timeout(PATIENCE, ended).await.expect("it is never dropped");
    server.wait_for_metric(SESSIONS, 1.0).await;
    other.send(token_ids(0, &PROMPT, true)).await;
    assert!(other.result().await.token_id.is_some());
    server.session(0).await;

    // The connection itself is over, not only the session.
    let mut rest = Vec::new();
    let read = timeout(PATIENCE, from.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "the connection is kept");
}

#[tokio::test]
async fn a_device_that_floods_steps_and_reads_late_gets_all_its_results() {
    let server = Server::start_with(&[], impatient()).await;
    let mut client = session_over(narrow_stream(&server).await, &server).await;
    for position in 0..60 {
        let frame = encode_client_frame(&token_ids(position, &[1], true).into());
        client.send_raw(Message::Binary(frame)).await;
    }
    for position in 1..=60 {
        assert_eq!(client.result().await.positions, position);
    }
}
