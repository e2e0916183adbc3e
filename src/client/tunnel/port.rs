//! UDP ports of the inner address, and associations whose datagrams the driver itself moves.

use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::task::{Context, Poll, ready};

use tokio::sync::{mpsc, oneshot};

use super::command::Command;
use super::handle::{Handle, lock};

/// A UDP port of the inner address; dropping it unbinds it.
#[derive(Debug)]
pub struct UdpPort {
    pub(super) handle: Handle,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) datagrams: Mutex<mpsc::Receiver<Datagram>>,
}

impl UdpPort {
    /// Sends one datagram.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when the driver's queue is full (the datagram is not sent),
    /// `BrokenPipe` when the tunnel has gone.
    pub fn try_send_to(&self, payload: &[u8], remote: SocketAddr) -> io::Result<usize> {
        let command = Command::SendUdp {
            port: self.handle.id,
            remote,
            payload: payload.to_vec(),
        };
        match self.commands.try_send(command) {
            Ok(()) => Ok(payload.len()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(io::ErrorKind::WouldBlock.into()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Waits for a datagram and copies it into `buf`; what does not fit is cut off.
    ///
    /// Returns the number of bytes copied and the sender. One task may wait at a time.
    ///
    /// # Errors
    ///
    /// `BrokenPipe` when the tunnel has gone or has given the port up.
    pub fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let datagram = ready!(self.poll_recv(cx))?;
        let len = datagram.payload.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..len), datagram.payload.get(..len)) {
            to.copy_from_slice(from);
        }
        Poll::Ready(Ok((len, datagram.remote)))
    }
}

impl UdpPort {
    /// Waits for a datagram. One task may wait at a time; safe to cancel.
    ///
    /// # Errors
    ///
    /// As [`UdpPort::poll_recv_from`].
    pub async fn recv(&self) -> io::Result<Datagram> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<Datagram>> {
        let datagram = ready!(lock(&self.datagrams).poll_recv(cx));
        Poll::Ready(datagram.ok_or_else(|| io::ErrorKind::BrokenPipe.into()))
    }
}

/// One UDP payload and who sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// The sender.
    pub remote: SocketAddr,
    /// The payload.
    pub payload: Vec<u8>,
}

/// A SOCKS5 UDP relay that the driver serves; dropping it ends the relay.
#[derive(Debug)]
pub struct Association {
    pub(super) ended: oneshot::Receiver<()>,
    #[expect(dead_code, reason = "held for its last words")]
    pub(super) handle: Handle,
}

impl Association {
    /// Waits until the driver has given the relay up.
    pub async fn ended(&mut self) {
        // The lifeline carries no value: its end is the message.
        let _cut = (&mut self.ended).await;
    }
}
