//! The outside end of a flow: a socket, or a pipe within this process.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// The outside end of a flow.
#[derive(Debug)]
pub enum Endpoint {
    /// A connected socket: an application's, or an origin's.
    Tcp(TcpStream),
    /// A connected Unix socket: an application's, or a service's near the client. It knows no resets: one shows as an end
    /// of both directions.
    Unix(UnixStream),
    /// One end of an in-memory pipe, for callers inside this process.
    Pipe(Box<dyn Pipe>),
}

/// One end of an in-memory pipe whose reader can be told that the flow has failed.
pub trait Pipe: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug {
    /// Drops the pipe so that its reader sees `kind` instead of a clean end, if it can.
    fn fail(self: Box<Self>, kind: io::ErrorKind);
}

impl Pipe for DuplexStream {
    fn fail(self: Box<Self>, _: io::ErrorKind) {}
}

impl Endpoint {
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(bytes);
        let read = match self {
            Endpoint::Tcp(socket) => Pin::new(socket).poll_read(cx, &mut buffer),
            Endpoint::Unix(socket) => Pin::new(socket).poll_read(cx, &mut buffer),
            Endpoint::Pipe(pipe) => Pin::new(pipe.as_mut()).poll_read(cx, &mut buffer),
        };
        read.map_ok(|()| buffer.filled().len())
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Endpoint::Tcp(socket) => Pin::new(socket).poll_write(cx, bytes),
            Endpoint::Unix(socket) => Pin::new(socket).poll_write(cx, bytes),
            Endpoint::Pipe(pipe) => Pin::new(pipe.as_mut()).poll_write(cx, bytes),
        }
    }

    pub(super) fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Endpoint::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Endpoint::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Endpoint::Pipe(pipe) => Pin::new(pipe.as_mut()).poll_write_vectored(cx, slices),
        }
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Endpoint::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Endpoint::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
            Endpoint::Pipe(pipe) => Pin::new(pipe.as_mut()).poll_shutdown(cx),
        }
    }

    /// Ends the connection so that the application sees a reset, as it would without us.
    pub fn reset(self) {
        match self {
            Endpoint::Tcp(socket) => {
                let handle = socket2::SockRef::from(&socket);
                // A zero linger makes close(2) send RST; where it cannot be set, a plain
                // close is the next best thing.
                if handle.set_linger(Some(std::time::Duration::ZERO)).is_err() {
                    let _ = handle.shutdown(Shutdown::Both);
                }
            }
            Endpoint::Unix(socket) => {
                // Also where another process has a copy of the descriptor, which a plain close would leave open.
                let _gone = socket2::SockRef::from(&socket).shutdown(Shutdown::Both);
            }
            Endpoint::Pipe(pipe) => pipe.fail(io::ErrorKind::ConnectionReset),
        }
    }
}
