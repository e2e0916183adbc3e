//! Writing to a socket: datagrams gathered in one buffer, sent many per call.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn_udp::{EcnCodepoint, Transmit};
use rustix::io::Errno;
use tokio_util::sync::ReusableBoxFuture;

use super::socket::{Feedback, UdpIo, add};
use crate::io::pool::{Buffer, LARGE, Pool};

/// Where a datagram goes, and how it is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The address it goes to.
    pub to: SocketAddr,
    /// The address it leaves from; `None` lets the kernel choose.
    pub source: Option<IpAddr>,
    /// What routers may mark.
    pub ecn: Option<EcnCodepoint>,
}

/// Datagrams on their way to a socket, written straight into its buffer.
#[derive(Debug)]
pub struct SendBatch {
    pool: Arc<Pool>,
    /// Lent while something is in it.
    buffer: Option<Buffer>,
    /// Bytes written.
    filled: usize,
    pub(super) groups: VecDeque<Group>,
}

/// Datagrams of one target and one length, of which the last may be shorter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    target: Target,
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) segment: usize,
    pub(super) count: usize,
    /// A shorter one was the last.
    full: bool,
}

impl SendBatch {
    /// Makes an empty batch, which holds no memory of `pool`.
    pub fn new(pool: Arc<Pool>) -> Self {
        Self {
            pool,
            buffer: None,
            filled: 0,
            groups: VecDeque::with_capacity(GROUPS),
        }
    }

    /// Returns room for a datagram of at most `len` bytes, to be written and then committed.
    ///
    /// `None` while the batch is full: flush it first.
    pub fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.groups.len() >= GROUPS {
            return None;
        }
        let pool = &self.pool;
        let buffer = self.buffer.get_or_insert_with(|| pool.large());
        buffer.get_mut(self.filled..self.filled.checked_add(len)?)
    }

    /// Queues the first `len` bytes of what was last reserved; none is nothing.
    pub fn commit(&mut self, len: usize, target: Target) {
        let end = self.filled + len;
        if len == 0 || end > BATCH_BYTES {
            return;
        }
        match self.groups.back_mut() {
            Some(group) if group.takes(len, &target) => {
                group.end = end;
                group.count += 1;
                group.full = len < group.segment;
            }
            Some(_) | None => self.groups.push_back(Group {
                target,
                start: self.filled,
                end,
                segment: len,
                count: 1,
                full: false,
            }),
        }
        self.filled = end;
    }

    /// Returns whether nothing waits to be sent.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Returns how many bytes wait to be sent.
    pub fn len(&self) -> usize {
        self.groups
            .iter()
            .map(|group| group.end - group.start)
            .sum()
    }

    /// Forgets what waits to be sent.
    pub fn clear(&mut self) {
        self.groups.clear();
        self.filled = 0;
        self.buffer = None;
    }

    pub(super) fn front(&self, segments: usize) -> Option<(Group, &[u8])> {
        let mut group = *self.groups.front()?;
        // A kernel that turned out not to segment gets them one by one.
        if group.count > segments {
            group.end = group.end.min(group.start + group.segment * segments.max(1));
            group.count = segments.max(1);
        }
        Some((group, self.buffer.as_ref()?.get(group.start..group.end)?))
    }

    /// The front of the first group, up to `end`, has been dealt with.
    pub(super) fn advance(&mut self, end: usize, count: usize) {
        if let Some(group) = self.groups.front_mut() {
            group.start = end;
            group.count = group.count.saturating_sub(count);
            if group.start >= group.end {
                self.groups.pop_front();
            }
        }
        if self.groups.is_empty() {
            self.clear();
        }
    }
}

impl Group {
    fn takes(&self, len: usize, target: &Target) -> bool {
        !self.full
            && self.target == *target
            && len <= self.segment
            && self.count < MAX_SEGMENTS
            && self.end - self.start + len <= MAX_SEND
    }
}

/// One of those who send on a socket.
pub struct Sender {
    io: Arc<UdpIo>,
    writable: ReusableBoxFuture<'static, io::Result<()>>,
    /// The socket was full; `writable` tells when it is not.
    pub(super) blocked: bool,
    /// The group in front has failed once, maybe for an error of before.
    failed_once: bool,
    /// What was said while sending, until it is asked for.
    feedback: Option<Feedback>,
}

impl Sender {
    /// Makes one more sender of `io`.
    pub fn new(io: Arc<UdpIo>) -> Self {
        Self {
            writable: ReusableBoxFuture::new(writable(io.clone())),
            io,
            blocked: false,
            failed_once: false,
            feedback: None,
        }
    }

    /// Returns the socket.
    pub fn io(&self) -> &Arc<UdpIo> {
        &self.io
    }

    /// Sends what is in `batch`: `Ready` when all of it is gone, `Pending` when the socket is
    /// full, and then the task of `cx` is woken when it is not.
    ///
    /// What the kernel refuses is lost, as datagrams may be, and counted.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>, batch: &mut SendBatch) -> Poll<()> {
        while !batch.is_empty() {
            if self.blocked {
                // An error of the readiness itself comes back from the send.
                let _ = ready!(self.writable.poll(cx));
                self.blocked = false;
            }
            let segments = self.io.segments();
            let Some((group, contents)) = batch.front(segments) else {
                break;
            };
            let sent = self.io.try_send(&Transmit {
                destination: group.target.to,
                ecn: group.target.ecn,
                contents,
                segment_size: (group.count > 1).then_some(group.segment),
                src_ip: group.target.source,
            });
            match sent {
                Ok(()) => {
                    self.failed_once = false;
                    batch.advance(group.end, group.count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    add(&self.io.counters.blocked, 1);
                    self.blocked = true;
                    self.writable.set(writable(self.io.clone()));
                }
                // It has just learnt that it does not segment.
                Err(_) if group.count > 1 && self.io.segments() == 1 => {}
                Err(error) => {
                    if self.refused(&error, &group) {
                        batch.advance(group.end, group.count);
                    }
                }
            }
        }
        // Room that was reserved for nothing goes back too.
        batch.clear();
        Poll::Ready(())
    }

    /// Takes what was said about datagrams of this sender, by this host's kernel or the network.
    pub fn take_feedback(&mut self) -> Option<Feedback> {
        self.feedback.take()
    }

    /// Hears why a group did not leave, and counts it; returns whether it is lost, else it is
    /// tried again.
    fn refused(&mut self, error: &io::Error, group: &Group) -> bool {
        while let Some(queued) = self.io.take_feedback() {
            self.feedback = Some(queued);
        }
        if !self.failed_once {
            // What the network says about one datagram takes the place of the next send.
            self.failed_once = true;
            return false;
        }
        self.failed_once = false;
        let counters = &self.io.counters;
        let said = Feedback::of_error(error);
        let counter = match said {
            Some(Feedback::TooBig { .. }) => &counters.too_big,
            Some(Feedback::Refused | Feedback::Unreachable | Feedback::Forbidden) => {
                &counters.unreachable
            }
            None if Errno::from_io_error(error) == Some(Errno::NOBUFS) => &counters.no_buffers,
            None => {
                tracing::debug!(%error, "a datagram was not sent");
                &counters.failed
            }
        };
        add(counter, group.count as u64);
        self.feedback = said.or(self.feedback);
        true
    }
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender")
            .field("local", &self.io.local_addr())
            .field("blocked", &self.blocked)
            .finish_non_exhaustive()
    }
}

/// Waits for room in the socket; unlike a poll of the socket itself, any number may wait.
async fn writable(io: Arc<UdpIo>) -> io::Result<()> {
    io.socket.writable().await
}

/// Bytes of datagrams that one batch holds: a full segmented send.
pub const BATCH_BYTES: usize = LARGE;

/// Groups of one batch; datagrams that are all of different lengths fill it before its bytes do.
const GROUPS: usize = 64;

/// Datagrams of one segmented send: `UDP_MAX_SEGMENTS` of older kernels.
const MAX_SEGMENTS: usize = 64;

/// Bytes of one segmented send: the largest IPv4 packet less its headers, IPv6's being larger.
const MAX_SEND: usize = 65_535 - 40 - 8;
