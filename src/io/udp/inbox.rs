//! Where a session finds the datagrams that another task has read for it.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use quinn_udp::EcnCodepoint;

use super::receive::Datagram;
use super::socket::UdpIo;
use crate::io::pool::Buffer;

/// Datagrams of one sender that the kernel has joined, or one alone.
#[derive(Debug)]
pub struct Arrival {
    /// The datagrams, one behind the other.
    pub buffer: Buffer,
    /// The length of each but the last, which may be shorter; at least 1.
    pub stride: usize,
    /// Who sent them, or says so.
    pub from: SocketAddr,
    /// The address they were sent to, where the kernel tells.
    pub to: Option<IpAddr>,
    /// What routers marked on them.
    pub ecn: Option<EcnCodepoint>,
    /// The socket they came in by.
    pub io: Arc<UdpIo>,
}

impl Arrival {
    /// Hands out the datagrams in place.
    pub fn datagrams(&mut self) -> impl Iterator<Item = Datagram<'_>> {
        let (from, to, ecn) = (self.from, self.to, self.ecn);
        self.buffer
            .chunks_mut(self.stride.max(1))
            .map(move |bytes| Datagram {
                from,
                to,
                ecn,
                bytes,
            })
    }
}

/// A bounded queue of what has arrived for one session.
#[derive(Debug, Default)]
pub struct Inbox {
    queue: Mutex<VecDeque<Arrival>>,
    /// Of the buffers in the queue.
    memory: AtomicUsize,
    waker: AtomicWaker,
    dropped: AtomicU64,
}

impl Inbox {
    /// Makes an empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Queues without waking the session; drops and counts where there is no room, and returns
    /// whether there was.
    pub fn push(&self, arrival: Arrival) -> bool {
        let cost = arrival.buffer.capacity();
        if self.memory.load(Ordering::Relaxed) + cost > INBOX_MEMORY {
            let lost = arrival.buffer.len().div_ceil(arrival.stride.max(1));
            self.dropped.fetch_add(lost as u64, Ordering::Relaxed);
            return false;
        }
        self.memory.fetch_add(cost, Ordering::Relaxed);
        self.lock().push_back(arrival);
        true
    }

    /// Wakes the session: once for all that was pushed in one turn.
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// Takes the oldest; when there is none, the task of `cx` is woken by the next.
    pub fn poll_pop(&self, cx: &Context<'_>) -> Poll<Arrival> {
        if let Some(arrival) = self.pop() {
            return Poll::Ready(arrival);
        }
        self.waker.register(cx.waker());
        match self.pop() {
            Some(arrival) => Poll::Ready(arrival),
            None => Poll::Pending,
        }
    }

    /// Returns the datagrams dropped because the session did not keep up.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn pop(&self) -> Option<Arrival> {
        let arrival = self.lock().pop_front()?;
        self.memory
            .fetch_sub(arrival.buffer.capacity(), Ordering::Relaxed);
        Some(arrival)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Arrival>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The most that waits for one session: 30 ms at a gigabit, when its task is kept from running.
pub const INBOX_MEMORY: usize = 4 << 20;
