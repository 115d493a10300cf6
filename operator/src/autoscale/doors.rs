//! The operator in place of a model that sleeps: a port for each model that may, which the model's Service leads to
//! while no tail is ready.
//!
//! A port says which model is meant, whatever name, address or gateway a device came by. Whoever asks is told
//! `starting` and when to come back. Where a device wants a session, or the manifest that comes before one, the model is
//! woken; probes of load balancers and what devices report afterwards wake nobody.
//!
//! TLS cannot be answered: the operator has no certificate of the model's, and may read no Secret. A client that
//! begins with TLS wakes the model and is hung up on.
//!
//! Bounds: bytes and seconds of a request, connections of all doors together, callers that are remembered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::metrics::Metrics;
use crate::savings::shelf::Key;

/// When a device may try again.
const RETRY_AFTER_SECONDS: u64 = 2;
/// For how long a device that asked counts as one that waits. A little more than it is told to stay away.
const WAITS_FOR: Duration = Duration::from_secs(3);
/// Callers that are remembered for each model.
const MAX_CALLERS: usize = 10_000;
/// Connections of all doors together.
const MAX_CONNECTIONS: usize = 256;
/// What is read of a request.
const MAX_REQUEST_BYTES: usize = 8 << 10;
/// For a request to come, and for its answer to be taken.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The first byte of a TLS connection: RFC 8446, section 5.1, a record of type handshake.
const TLS_HANDSHAKE: u8 = 22;

/// Where doors are.
#[derive(Clone, Debug)]
pub struct Place {
    /// As Services reach this process.
    pub address: IpAddr,
    /// One for each model that may sleep.
    pub ports: RangeInclusive<u16>,
}

/// All doors.
pub struct Doors {
    place: Option<Place>,
    open: Mutex<BTreeMap<Key, Door>>,
    connections: Arc<Semaphore>,
    knocked: Arc<Notify>,
    metrics: Arc<Metrics>,
}

/// One door, which closes when it is dropped.
struct Door {
    port: u16,
    callers: Callers,
    _open: DropGuard,
}

/// When devices asked, the latest last.
type Callers = Arc<Mutex<VecDeque<Instant>>>;

impl Doors {
    /// No door is open yet. `knocked` is told of a caller. Without a `place` there are none.
    #[must_use]
    pub fn new(place: Option<Place>, knocked: Arc<Notify>, metrics: Arc<Metrics>) -> Self {
        Self {
            place,
            open: Mutex::default(),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            knocked,
            metrics,
        }
    }

    /// [`Doors::at`] where the model may sleep.
    pub fn at_if(&self, key: &Key, may_sleep: bool) -> Option<SocketAddr> {
        if may_sleep { self.at(key) } else { None }
    }

    /// Where devices of `key` find its door, which is opened if it is not yet. `None` where there can be none: there
    /// is no place for doors, or all ports are taken. To be called within a tokio runtime.
    pub fn at(&self, key: &Key) -> Option<SocketAddr> {
        let place = self.place.as_ref()?;
        let mut open = self.lock();
        if let Some(door) = open.get(key) {
            return Some((place.address, door.port).into());
        }
        let taken: BTreeSet<u16> = open.values().map(|door| door.port).collect();
        let free = place.ports.clone().filter(|port| !taken.contains(port));
        let Some((port, listener)) = free
            .into_iter()
            .find_map(|port| listen(place.address, port))
        else {
            tracing::warn!(
                namespace = key.0,
                name = key.1,
                "no port is left to answer on while this model sleeps; it is kept awake"
            );
            return None;
        };
        let (callers, stop) = (Callers::default(), CancellationToken::new());
        let hall = Hall {
            key: key.clone(),
            callers: Arc::clone(&callers),
            connections: Arc::clone(&self.connections),
            knocked: Arc::clone(&self.knocked),
            metrics: Arc::clone(&self.metrics),
        };
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! { () = hall.receive(listener) => {} () = stopped.cancelled() => {} }
        });
        let door = Door {
            port,
            callers,
            _open: stop.drop_guard(),
        };
        open.insert(key.clone(), door);
        Some((place.address, port).into())
    }

    /// Sessions that wait for a first tail of `key`.
    #[must_use]
    pub fn waiting(&self, key: &Key, now: Instant) -> f64 {
        let open = self.lock();
        let Some(door) = open.get(key) else {
            return 0.0;
        };
        let mut callers = lock_callers(&door.callers);
        while callers
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) >= WAITS_FOR)
        {
            callers.pop_front();
        }
        f64::from(u32::try_from(callers.len()).unwrap_or(u32::MAX))
    }

    /// Closes the doors of models that are not in `present`.
    pub fn keep(&self, present: &BTreeSet<Key>) {
        self.lock().retain(|key, _| present.contains(key));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Door>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock_callers(callers: &Callers) -> MutexGuard<'_, VecDeque<Instant>> {
    callers.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listen(address: IpAddr, port: u16) -> Option<(u16, TcpListener)> {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let listener = std::net::TcpListener::bind((any, port)).ok()?;
    listener.set_nonblocking(true).ok()?;
    Some((port, TcpListener::from_std(listener).ok()?))
}

/// What is behind one door.
#[derive(Clone)]
struct Hall {
    key: Key,
    callers: Callers,
    connections: Arc<Semaphore>,
    knocked: Arc<Notify>,
    metrics: Arc<Metrics>,
}

impl Hall {
    async fn receive(self, listener: TcpListener) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Whoever comes meanwhile waits in the system's own queue.
            let Ok(room) = Arc::clone(&self.connections).acquire_owned().await else {
                return;
            };
            let hall = self.clone();
            tokio::spawn(async move {
                let _room = room;
                let answered = timeout(REQUEST_TIMEOUT, hall.answer(stream)).await;
                if let Ok(Err(error)) = answered {
                    tracing::debug!(%error, "a device of a sleeping model could not be answered");
                }
            });
        }
    }

    async fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut request = Vec::new();
        let mut chunk = [0; 1024];
        while !has_ended(&request) && request.len() < MAX_REQUEST_BYTES {
            let read = stream.read(&mut chunk).await?;
            if read == 0 {
                return Ok(());
            }
            request.extend_from_slice(&chunk[..read]);
            if request.first() == Some(&TLS_HANDSHAKE) {
                self.called();
                return Ok(());
            }
        }
        let Some(path) = path(&request) else {
            return Ok(());
        };
        if wants_session(path) {
            self.called();
        }
        stream.write_all(refusal().as_bytes()).await?;
        stream.shutdown().await?;
        // What is not read when the connection is closed would take the answer with it.
        let mut rest = 0;
        while rest < MAX_REQUEST_BYTES {
            match stream.read(&mut chunk).await? {
                0 => break,
                read => rest += read,
            }
        }
        Ok(())
    }

    fn called(&self) {
        {
            let mut callers = lock_callers(&self.callers);
            if callers.len() == MAX_CALLERS {
                callers.pop_front();
            }
            callers.push_back(Instant::now());
        }
        self.metrics.told_starting(&self.key);
        self.knocked.notify_one();
    }
}

fn has_ended(request: &[u8]) -> bool {
    request.windows(4).any(|four| four == b"\r\n\r\n")
}

/// The target of an HTTP/1 request line: RFC 9112, section 3.
fn path(request: &[u8]) -> Option<&str> {
    let line = request.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let (_method, path, version) = (words.next()?, words.next()?, words.next()?);
    version.starts_with("HTTP/1.").then_some(path)
}

/// A device that wants a session opens one, or asks for the manifest first. There may be a gateway's prefix.
fn wants_session(path: &str) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    path.ends_with("/v1/session") || path.ends_with("/v1/model")
}

/// The form of a tail's own errors.
fn refusal() -> String {
    let body = serde_json::json!({"error": {
        "code": "starting",
        "message": format!(
            "no tail of this model runs; the first one is being started, try again in {RETRY_AFTER_SECONDS} s"
        ),
    }})
    .to_string();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Retry-After: {RETRY_AFTER_SECONDS}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doors() -> (Doors, Arc<Notify>) {
        let knocked = Arc::new(Notify::new());
        let place = Place {
            address: Ipv4Addr::LOCALHOST.into(),
            ports: 20_000..=20_999,
        };
        let metrics = Arc::new(Metrics::new().unwrap());
        (
            Doors::new(Some(place), Arc::clone(&knocked), metrics),
            knocked,
        )
    }

    fn key(name: &str) -> Key {
        ("ml".to_owned(), name.to_owned())
    }

    async fn said(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_device_that_wants_a_session_is_told_when_to_come_back_and_waits() {
        let (doors, knocked) = doors();
        let address = doors.at(&key("smol")).unwrap();
        let request = b"GET /team/v1/session HTTP/1.1\r\nUpgrade: websocket\r\n\r\n";
        let answer = said(address, request).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("\r\nRetry-After: 2\r\n"), "{answer}");
        let body = answer.split("\r\n\r\n").nth(1).unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["code"], "starting");
        knocked.notified().await;
        let now = Instant::now();
        assert_eq!(doors.waiting(&key("smol"), now), 1.0);
        assert_eq!(doors.waiting(&key("smol"), now + WAITS_FOR), 0.0);
    }

    #[tokio::test]
    async fn probes_and_reports_are_answered_and_wake_nobody() {
        let (doors, _) = doors();
        let address = doors.at(&key("smol")).unwrap();
        for line in ["GET /healthz", "GET /", "POST /v1/on-device-answers"] {
            let request = format!("{line} HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc");
            let answer = said(address, request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 503 "), "{line}: {answer}");
        }
        assert_eq!(doors.waiting(&key("smol"), Instant::now()), 0.0);
    }

    #[tokio::test]
    async fn tls_wakes_and_is_hung_up_on_and_noise_is_not_answered() {
        let (doors, _) = doors();
        let address = doors.at(&key("smol")).unwrap();
        assert_eq!(said(address, b"noise\r\n\r\n").await, "");
        assert_eq!(doors.waiting(&key("smol"), Instant::now()), 0.0);
        assert_eq!(said(address, &[TLS_HANDSHAKE]).await, "");
        assert_eq!(doors.waiting(&key("smol"), Instant::now()), 1.0);
    }

    #[tokio::test]
    async fn each_model_has_a_door_of_its_own_that_closes_with_it() {
        let (doors, _) = doors();
        let (a, b) = (doors.at(&key("a")).unwrap(), doors.at(&key("b")).unwrap());
        assert_ne!(a, b);
        assert_eq!(doors.at(&key("a")), Some(a));
        doors.keep(&BTreeSet::from([key("b")]));
        while TcpStream::connect(a).await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(TcpStream::connect(b).await.is_ok());
    }

    #[tokio::test]
    async fn without_a_place_or_a_port_there_is_no_door() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let doors = Doors::new(None, Arc::default(), Arc::clone(&metrics));
        assert_eq!(doors.at(&key("a")), None);
        let held = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = held.local_addr().unwrap().port();
        let place = Place {
            address: Ipv4Addr::LOCALHOST.into(),
            ports: port..=port,
        };
        let doors = Doors::new(Some(place), Arc::default(), metrics);
        assert_eq!(doors.at(&key("a")), None);
    }
}
