//! What can go wrong before there is a session: requests, ranges, and things that are no HTTP.

/// A request that ends its connection, and the statuses that are right for it.
pub type Case = (&'static str, &'static [u16]);

/// What the tail must refuse.
pub const REQUESTS: [Case; 18] = [
    (
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}\r\n\r\n",
        &[400],
    ),
    ("\0\0\0\0\r\n\r\n", &[400]),
    ("SSH-2.0-OpenSSH_9.2\r\n\r\n", &[400]),
    ("GET\r\n\r\n", &[400]),
    ("GET / HTTP/9.9\r\n\r\n", &[400, 505]),
    (
        "GET /v1/model HTTP/1.1\r\nHost: t\r\nno colon here\r\n\r\n",
        &[400],
    ),
    (
        "GET /v1/model HTTP/1.1\r\nHost: t\r\nContent-Length: -1\r\n\r\n",
        &[400],
    ),
    (
        "GET /nowhere HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
        &[404],
    ),
    (
        "GET /v1/head/none/../../../etc/passwd HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
        &[404],
    ),
    (
        "GET /v1/head/none/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
        &[404],
    ),
    (
        "GET /v1/head/q9_9/layer-0 HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
        &[404],
    ),
    (
        "GET /v1/head/none/layer-99999999999999999999 HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
        &[404],
    ),
    (
        "GET /v1/head/none/lm_head HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
        &[404],
    ),
    (
        "DELETE /v1/model HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
        &[405],
    ),
    (
        "POST /v1/session HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        &[405],
    ),
    (
        "GET /v1/session HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
        &[400, 426],
    ),
    (
        "GET /v1/session HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\0\r\n\r\n",
        &[400, 426],
    ),
    (
        "GET /v1/session HTTP/1.1\r\nHost: t\r\nConnection: close\r\nUpgrade: h2c\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        &[400, 426],
    ),
];

/// Layer ranges that make no sense.
pub const LAYERS: [&str; 10] = [
    "",
    "2-1",
    "0-99",
    "a-b",
    "-1-2",
    "0",
    "0-",
    "1-1-1",
    "0-18446744073709551616",
    "%00",
];

/// Byte ranges that make no sense, or are cheap to ask for and dear to answer.
pub const RANGES: [&str; 11] = [
    "bytes=99999999-",
    "bytes=5-2",
    "bytes=-0",
    "bytes=a-b",
    "bytes=",
    "lines=1-2",
    "bytes=0-18446744073709551616",
    "bytes=-18446744073709551615",
    "bytes=0-0,2-2,4-4,6-6,8-8",
    "bytes=0-,0-,0-,0-,0-,0-",
    "\u{e9}",
];
