//! The byte stream under a stream lane: a TCP connection, bare or with TLS and a WebSocket on it.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::io::websocket::WebSocket;
use crate::status::Transport;

/// A connected byte stream that can carry a lane: a TCP connection, and what was put on it.
pub enum LaneStream {
    /// Bare TCP.
    Tcp(TcpStream),
    /// TLS over a stream, from either side.
    Tls(Box<TlsStream<LaneStream>>),
    /// A WebSocket over a stream, from either side.
    WebSocket(Box<WebSocket<LaneStream>>),
}

impl LaneStream {
    /// Returns the TCP connection at the bottom.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            LaneStream::Tcp(tcp) => tcp,
            LaneStream::Tls(tls) => tls.get_ref().0.tcp(),
            LaneStream::WebSocket(socket) => socket.stream().tcp(),
        }
    }

    /// Returns the address of the other end.
    ///
    /// # Errors
    ///
    /// When the connection is already gone.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().peer_addr()
    }

    /// Tells how it is carried.
    pub fn transport(&self) -> Transport {
        match self {
            LaneStream::Tcp(_) => Transport::Tcp,
            LaneStream::Tls(_) => Transport::Tls,
            LaneStream::WebSocket(_) if self.is_tls() => Transport::Wss,
            LaneStream::WebSocket(_) => Transport::Ws,
        }
    }

    /// Tells whether there is TLS in it.
    pub fn is_tls(&self) -> bool {
        match self {
            LaneStream::Tcp(_) => false,
            LaneStream::Tls(_) => true,
            LaneStream::WebSocket(socket) => socket.stream().is_tls(),
        }
    }
}

impl AsyncRead for LaneStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            LaneStream::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            LaneStream::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
            LaneStream::WebSocket(socket) => Pin::new(socket).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for LaneStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            LaneStream::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            LaneStream::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
            LaneStream::WebSocket(socket) => Pin::new(socket).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            LaneStream::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            LaneStream::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
            LaneStream::WebSocket(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
        }
    }

    /// Bare TCP takes many slices in one system call, a WebSocket makes one message of them. TLS is handed whole
    /// chunks: its records are cut from one slice at a time, and a chunk is as large as its buffer.
    fn is_write_vectored(&self) -> bool {
        match self {
            LaneStream::Tcp(_) => true,
            LaneStream::Tls(_) => false,
            LaneStream::WebSocket(_) => true,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            LaneStream::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            LaneStream::Tls(tls) => Pin::new(tls).poll_flush(cx),
            LaneStream::WebSocket(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            LaneStream::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            LaneStream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            LaneStream::WebSocket(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}

/// Sets what a lane needs of its TCP connection, right after connect or accept.
///
/// - `TCP_NODELAY`: a frame leaves at once; the lane itself gathers what can be gathered.
/// - `TCP_NOTSENT_LOWAT` of [`NOTSENT_LOWAT`]: the kernel keeps no more than that unsent, so
///   that what waits, waits where queues are fair and measured.
/// - `SO_KEEPALIVE` after a minute of silence: a last resort for connections that belong to no
///   session yet. A session notices a dead peer far sooner, which is why `TCP_USER_TIMEOUT` is
///   left alone: a lane may come back from ten silent seconds.
///
/// # Errors
///
/// When the connection is already gone, or the kernel does not know an option.
pub fn prepare_socket(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    keep_alive(stream)
}

/// Has the kernel ask after a minute of silence whether the other end of a connection is there still.
///
/// # Errors
///
/// When the connection is already gone, or the kernel does not know an option.
pub fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_AFTER)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )
}

/// How many unsent bytes the kernel may hold for one lane.
///
/// Two super-packets: the wire has one to work on while the driver wakes and writes the next.
/// It is 4 ms at 260 Mbit/s; a lane measured to be faster may be given more. Over loopback 64 to
/// 512 KiB carry the same at the same cost (1.9 to 2.5 s of processor time for 8 GiB, both
/// ends, without a trend), so the little one is taken: what is here waits behind everything else.
pub const NOTSENT_LOWAT: u32 = 128 * 1024;

/// Silence before the kernel's first keepalive probe: longer than any session's own ping, so
/// that probes are sent only where no session is.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

/// Time between two probes, as the Linux man page suggests for interactive use.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Probes unanswered before the connection is given up: about two minutes in all.
const KEEPALIVE_PROBES: u32 = 4;
