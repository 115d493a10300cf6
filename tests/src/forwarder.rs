//! The one address a device knows, and whichever tail is behind it: a Service in a cluster, a load balancer.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Forwards TCP connections of a loopback port; stops when dropped.
pub struct Forwarder {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    cut: watch::Sender<()>,
    silence: watch::Sender<()>,
    accepting: tokio::task::JoinHandle<()>,
}

struct Shared {
    /// The first is the next one's; it then goes to the end.
    targets: VecDeque<SocketAddr>,
    up_bytes_of_next: VecDeque<u64>,
}

impl Forwarder {
    /// Listens on a free port and sends what comes to `target`.
    ///
    /// # Errors
    /// Where the port cannot be had.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Mutex::new(Shared {
            targets: [target].into(),
            up_bytes_of_next: VecDeque::new(),
        }));
        let cut = watch::Sender::new(());
        let silence = watch::Sender::new(());
        let ends = (cut.clone(), silence.clone());
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared), ends));
        Ok(Self {
            address,
            shared,
            cut,
            silence,
            accepting,
        })
    }

    /// The URL for devices.
    #[must_use]
    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// New connections go to `target`; those that are open stay where they are.
    pub fn point_to(&self, target: SocketAddr) {
        self.point_to_each(&[target]);
    }

    /// New connections go to `targets` in turn, and there is at least one; those that are open stay where they are.
    pub fn point_to_each(&self, targets: &[SocketAddr]) {
        lock(&self.shared).targets = targets.iter().copied().collect();
    }

    /// Ends every open connection.
    pub fn cut(&self) {
        self.cut.send_replace(());
    }

    /// From now on nothing passes on the connections that are open, and neither side is told.
    pub fn fall_silent(&self) {
        self.silence.send_replace(());
    }

    /// The next connections end after that many bytes from the device, one number for each; a frame may be
    /// half through.
    pub fn cut_next_after(&self, up_bytes: &[u64]) {
        lock(&self.shared).up_bytes_of_next.extend(up_bytes);
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Mutex<Shared>>,
    (cut, silence): (watch::Sender<()>, watch::Sender<()>),
) {
    while let Ok((device, _)) = listener.accept().await {
        let (target, up_bytes) = {
            let mut shared = lock(&shared);
            shared.targets.rotate_left(1);
            let target = shared.targets.back().copied();
            (target, shared.up_bytes_of_next.pop_front())
        };
        let Some(target) = target else { continue };
        let (mut cut, mut silence) = (cut.subscribe(), silence.subscribe());
        tokio::spawn(async move {
            let (mut device, mut tail) = (device, None);
            let silent = tokio::select! {
                // A tail that is not there ends the device's connection, too.
                _ = forward(&mut device, &mut tail, target, up_bytes.unwrap_or(u64::MAX)) => false,
                _ = cut.changed() => false,
                _ = silence.changed() => true,
            };
            if silent {
                // Both sockets are held until then, and nobody reads them.
                let _ = cut.changed().await;
            }
        });
    }
}

/// Forwards until either side has ended, or `up_bytes` have come from the device.
async fn forward(
    device: &mut TcpStream,
    tail: &mut Option<TcpStream>,
    target: SocketAddr,
    up_bytes: u64,
) -> Result<()> {
    let tail = tail.insert(TcpStream::connect(target).await?);
    device.set_nodelay(true)?;
    tail.set_nodelay(true)?;
    let (from_device, mut to_device) = device.split();
    let (mut from_tail, mut to_tail) = tail.split();
    let mut from_device = from_device.take(up_bytes);
    tokio::select! {
        up = tokio::io::copy(&mut from_device, &mut to_tail) => up?,
        down = tokio::io::copy(&mut from_tail, &mut to_device) => down?,
    };
    Ok(())
}
