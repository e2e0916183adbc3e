//! Flows through the tunnel: given away to the driver with a socket, or read here as a stream of bytes.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;

use super::command::Attachment;
use super::handle::{Handle, Kind};
use crate::client::rules::Judged;
use crate::io::relay::{self, Endpoint, FlowWatch};

/// A TCP flow through the tunnel that nobody reads yet; dropping it aborts it.
#[derive(Debug)]
pub struct Flow {
    pub(super) handle: Handle,
    pub(super) remote: SocketAddr,
}

impl Flow {
    /// Returns the address that the flow is connected to.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Gives the flow and the application's socket to the driver, which moves the bytes
    /// from here on and closes both.
    ///
    /// `early` is what was read from `socket` before and belongs to the flow.
    pub fn attach(self, socket: TcpStream, early: Vec<u8>) {
        let Self { handle, remote: _ } = self;
        handle.attach(Attachment::Tcp(socket), early, None);
    }

    /// Like [`Flow::attach`], for a flow that the driver ends when rules send it another way than `judged` tells.
    pub fn attach_judged(self, socket: TcpStream, early: Vec<u8>, judged: Judged) {
        let Self { handle, remote: _ } = self;
        handle.attach(Attachment::Tcp(socket), early, Some(Box::new(judged)));
    }

    /// The same for any socket, and for somebody who wants to know how the flow ends; without `judged` no rules end it.
    pub fn attach_watched(self, endpoint: Endpoint, watch: FlowWatch, judged: Option<Judged>) {
        let Self { handle, remote: _ } = self;
        let attachment = Attachment::Watched { endpoint, watch };
        handle.attach(attachment, Vec::new(), judged.map(Box::new));
    }

    /// Turns the flow into a stream of bytes, for those who must look at them.
    pub fn into_stream(self) -> FlowStream {
        let (near, far) = tokio::io::duplex(PIPE);
        let fate = Arc::new(OnceLock::new());
        let mut guard = Handle {
            id: self.handle.id,
            kind: Kind::Flow,
            last_words: Arc::clone(&self.handle.last_words),
            armed: true,
        };
        let pipe = Pipe {
            stream: far,
            fate: Arc::clone(&fate),
        };
        if !self.handle.attach(Attachment::Pipe(pipe), Vec::new(), None) {
            guard.armed = false;
        }
        FlowStream {
            stream: near,
            fate,
            handle: guard,
        }
    }
}

/// A flow as a stream of bytes.
///
/// `shutdown` ends the sending half. Dropping the stream without it aborts the flow;
/// after it, what was written is still delivered.
#[derive(Debug)]
pub struct FlowStream {
    stream: DuplexStream,
    fate: Arc<OnceLock<io::ErrorKind>>,
    handle: Handle,
}

impl AsyncRead for FlowStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() == before
            && buf.remaining() > 0
            && let Some(kind) = self.fate.get()
        {
            return Poll::Ready(Err(io::Error::from(*kind)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for FlowStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        // The driver reads what is left and then the end: nothing to abort any more.
        self.handle.armed = false;
        Poll::Ready(Ok(()))
    }
}

/// The driver's end of a [`FlowStream`].
#[derive(Debug)]
pub struct Pipe {
    stream: DuplexStream,
    fate: Arc<OnceLock<io::ErrorKind>>,
}

impl Pipe {
    /// Drops the pipe so that the reader sees `kind` instead of a clean end.
    pub fn fail(self, kind: io::ErrorKind) {
        // Set at most once: `self` is consumed.
        let _first = self.fate.set(kind);
    }
}

impl relay::Pipe for Pipe {
    fn fail(self: Box<Self>, kind: io::ErrorKind) {
        Pipe::fail(*self, kind);
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Bytes in flight per direction of a [`FlowStream`]: one super-packet.
const PIPE: usize = 64 * 1024;
