//! Reading a socket: many datagrams per call, handed out one by one in place.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn_udp::{EcnCodepoint, RecvMeta};
use tokio::io::Interest;
use tokio_util::sync::ReusableBoxFuture;

use super::inbox::Arrival;
use super::socket::{Feedback, UdpIo, add};
use crate::io::pool::{Buffer, Pool, SMALL};

/// Reads a socket into buffers of its own that it uses again and again.
pub struct Receiver {
    io: Arc<UdpIo>,
    failed: ReusableBoxFuture<'static, ()>,
    pool: Arc<Pool>,
    /// Large ones, lent while there is something to read.
    buffers: Option<Box<[Buffer; MESSAGES]>>,
    metas: [RecvMeta; MESSAGES],
    filled: usize,
    /// The message that is handed out, and how far.
    at: usize,
    offset: usize,
}

/// One datagram in place.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// Who sent it, or says so.
    pub from: SocketAddr,
    /// The address it was sent to, where the kernel tells.
    pub to: Option<IpAddr>,
    /// What routers marked on it.
    pub ecn: Option<EcnCodepoint>,
    /// Its bytes.
    pub bytes: &'a mut [u8],
}

impl Receiver {
    /// Reads `io` into buffers of `pool`.
    pub fn new(io: Arc<UdpIo>, pool: Arc<Pool>) -> Self {
        Self {
            failed: ReusableBoxFuture::new(failed(io.clone())),
            io,
            pool,
            buffers: None,
            metas: [RecvMeta::default(); MESSAGES],
            filled: 0,
            at: 0,
            offset: 0,
        }
    }

    /// Returns the socket.
    pub fn io(&self) -> &Arc<UdpIo> {
        &self.io
    }

    /// Reads once; `Ready(Ok(()))` when something is there to be taken by [`Receiver::next_datagram`] or
    /// [`Receiver::take_message`], both of which forget what the last read brought.
    ///
    /// # Errors
    ///
    /// What the network said about what was sent, which ends nothing: call again.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Feedback>> {
        (self.filled, self.at, self.offset) = (0, 0, 0);
        loop {
            let interest = ready!(self.poll_ready(cx));
            let pool = &self.pool;
            let buffers = self
                .buffers
                .get_or_insert_with(|| Box::new(std::array::from_fn(|_| pool.large())));
            let mut slices = buffers.each_mut().map(|buffer| IoSliceMut::new(buffer));
            match self.io.try_recv(interest, &mut slices, &mut self.metas) {
                Ok(filled) => {
                    self.filled = filled;
                    self.count();
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    // Whoever said it, the queue of such messages takes room from datagrams.
                    let said = Feedback::of_error(&error);
                    let queued = self.io.take_feedback();
                    if let Some(feedback) = queued.or(said) {
                        return Poll::Ready(Err(feedback));
                    }
                    tracing::trace!(%error, "a datagram was not received");
                }
            }
        }
    }

    /// Hands out the next datagram of the last read.
    pub fn next_datagram(&mut self) -> Option<Datagram<'_>> {
        while self.at < self.filled {
            let meta = self.metas[self.at];
            if self.offset >= meta.len {
                self.at += 1;
                self.offset = 0;
                continue;
            }
            let end = meta.len.min(self.offset + meta.stride.max(1));
            let buffer = &mut self.buffers.as_mut()?[self.at];
            let bytes = buffer.get_mut(self.offset..end)?;
            self.offset = end;
            return Some(Datagram {
                from: meta.addr,
                to: meta.dst_ip,
                ecn: meta.ecn,
                bytes,
            });
        }
        None
    }

    /// Hands out the next message of the last read, whole: datagrams of one sender and one
    /// length, of which the last may be shorter, in a buffer that does not come back.
    ///
    /// A message that fits a small buffer is copied into one, so that a lone datagram does not
    /// keep 64 KiB from others for as long as it waits.
    pub fn take_message(&mut self) -> Option<Arrival> {
        loop {
            let meta = *self.metas.get(self.at).filter(|_| self.at < self.filled)?;
            let place = &mut self.buffers.as_mut()?[self.at];
            self.at += 1;
            if meta.len == 0 {
                continue;
            }
            let mut buffer = if meta.len <= SMALL {
                let mut small = self.pool.small();
                small[..meta.len].copy_from_slice(place.get(..meta.len)?);
                small
            } else {
                std::mem::replace(place, self.pool.large())
            };
            buffer.truncate(meta.len);
            return Some(Arrival {
                buffer,
                stride: meta.stride.max(1),
                from: meta.addr,
                to: meta.dst_ip,
                ecn: meta.ecn,
                io: self.io.clone(),
            });
        }
    }

    /// Gives the buffers back; they are lent again when something comes.
    pub fn shrink(&mut self) {
        self.filled = 0;
        self.buffers = None;
    }

    /// Waits for a datagram, or for word of one that was sent, which makes no socket readable.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Interest> {
        // An error of the readiness itself comes back from the read.
        if self.io.socket.poll_recv_ready(cx).is_ready() {
            return Poll::Ready(Interest::READABLE);
        }
        ready!(self.failed.poll(cx));
        self.failed.set(failed(self.io.clone()));
        Poll::Ready(Interest::ERROR)
    }

    fn count(&self) {
        let counters = &self.io.counters;
        let read = self.metas.iter().take(self.filled);
        let (datagrams, bytes) = read.fold((0, 0), |(datagrams, bytes), meta| {
            let in_it = meta.len.div_ceil(meta.stride.max(1));
            (datagrams + in_it as u64, bytes + meta.len as u64)
        });
        add(&counters.receives, 1);
        add(&counters.datagrams_received, datagrams);
        add(&counters.bytes_received, bytes);
    }
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver")
            .field("local", &self.io.local_addr())
            .field("left", &(self.filled - self.at.min(self.filled)))
            .finish_non_exhaustive()
    }
}

async fn failed(io: Arc<UdpIo>) {
    // Without a runtime nothing is ever ready.
    let _ = io.socket.ready(Interest::ERROR).await;
}

/// Messages read at once. Where the kernel joins what arrives together a few are plenty; where
/// it does not, each is one datagram, and a call for 16 of them costs little more than for one.
pub const MESSAGES: usize = 16;
