//! How soon a connection is known to be dead whose other end says nothing any more: after a sleep of this device, a
//! change of its address, or a lost network.
//!
//! It is the kernel that asks, by TCP, and the kernel of the other end that answers. A tail may be slow or not read for
//! a while without being taken for dead, and a program that was stopped there is not found out: for that there are the
//! limits on results.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_tungstenite::MaybeTlsStream;

/// Questions without an answer, after which a quiet connection is dead.
const PROBES: u32 = 3;

/// Lets reads and writes fail once nothing came from the other end for about `silence`: no answer to a quiet
/// connection's probes, and no acknowledgement of what was sent.
pub(crate) fn bound_silence(
    stream: &MaybeTlsStream<TcpStream>,
    silence: Duration,
) -> io::Result<()> {
    let stream = match stream {
        MaybeTlsStream::Plain(stream) => stream,
        MaybeTlsStream::Rustls(stream) => stream.get_ref().0,
        // No other kind is compiled in.
        _ => return Ok(()),
    };
    let socket = SockRef::from(stream);
    // Kernels count in whole seconds.
    let step = Duration::from_secs((silence.as_secs() / u64::from(PROBES + 1)).max(1));
    let keepalive = TcpKeepalive::new().with_time(step).with_interval(step);
    #[cfg(not(target_os = "openbsd"))]
    let keepalive = keepalive.with_retries(PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    // Without it, unacknowledged data is sent again for a quarter of an hour.
    #[cfg(any(target_os = "android", target_os = "linux"))]
    socket.set_tcp_user_timeout(Some(silence))?;
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_connection_is_given_up_within_seconds() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let stream = MaybeTlsStream::Plain(stream);
        bound_silence(&stream, Duration::from_secs(8)).unwrap();
        let MaybeTlsStream::Plain(stream) = &stream else {
            panic!("it is plain")
        };
        let socket = SockRef::from(stream);
        assert!(socket.keepalive().unwrap());
        let quiet = socket.tcp_keepalive_time().unwrap()
            + socket.tcp_keepalive_interval().unwrap() * socket.tcp_keepalive_retries().unwrap();
        assert_eq!(quiet.as_secs(), 8);
        assert_eq!(
            socket.tcp_user_timeout().unwrap(),
            Some(Duration::from_secs(8))
        );
    }
}
