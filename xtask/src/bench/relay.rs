//! A TCP relay that delays and throttles, in place of a network that does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;

/// An emulated path between device and tail.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// Round trip; half of it is added to each direction.
    pub round_trip: Duration,
    /// Bits a second from device to tail; `None`: not limited.
    pub uplink_bits_per_second: Option<u64>,
}

/// Paths to one tail, for as long as this lives.
pub struct Relays {
    runtime: Runtime,
    target: SocketAddr,
}

impl Relays {
    /// To the tail at `url`.
    pub fn to(url: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let address = url.trim_start_matches("ws://");
        Ok(Self {
            runtime,
            target: address.parse().context("the tail's address")?,
        })
    }

    /// The tail's URL over such a network.
    pub fn url(&self, network: Network) -> anyhow::Result<String> {
        let address = self.runtime.block_on(start(self.target, network))?;
        Ok(format!("ws://{address}"))
    }
}

/// Pieces in flight in one direction; 4096 of up to 16 KiB is more than any measured path holds.
const PIECES_IN_FLIGHT: usize = 4096;
const PIECE_BYTES: usize = 16 * 1024;

/// Relays connections on a free loopback port to `target`; returns the port's address.
async fn start(target: SocketAddr, network: Network) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    // One uplink, however many connections share it: the time at which it is free again.
    let uplink_free = Arc::new(Mutex::new(Instant::now()));
    tokio::spawn(async move {
        while let Ok((device, _)) = listener.accept().await {
            let uplink_free = Arc::clone(&uplink_free);
            tokio::spawn(async move {
                let tail = TcpStream::connect(target).await?;
                device.set_nodelay(true)?;
                tail.set_nodelay(true)?;
                let (from_device, to_device) = device.into_split();
                let (from_tail, to_tail) = tail.into_split();
                let delay = network.round_trip / 2;
                let limit = network
                    .uplink_bits_per_second
                    .map(|rate| (rate, uplink_free));
                tokio::join!(
                    relay(from_device, to_tail, delay, limit),
                    relay(from_tail, to_device, delay, None)
                );
                anyhow::Ok(())
            });
        }
    });
    Ok(address)
}

async fn relay(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
    limit: Option<(u64, Arc<Mutex<Instant>>)>,
) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES_IN_FLIGHT);
    let read = async move {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let mut sent = Instant::now();
            if let Some((bits_per_second, free)) = &limit {
                let mut free = free.lock().await;
                *free = sent.max(*free)
                    + Duration::from_nanos(read as u64 * 8 * 1_000_000_000 / bits_per_second);
                sent = *free;
            }
            if sender
                .send((sent + delay, buffer[..read].to_vec()))
                .await
                .is_err()
            {
                break;
            }
        }
    };
    let write = async move {
        while let Some((arrival, piece)) = receiver.recv().await {
            tokio::time::sleep_until(arrival).await;
            if to.write_all(&piece).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
