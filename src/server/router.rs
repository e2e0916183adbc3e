//! Finds the session that an inner address belongs to, and queues packets for it.
//!
//! # Theory of operation
//!
//! Every session owns a [`Downlink`]: a queue of packets on their way to its client. The
//! router maps inner addresses to downlinks. Whoever has a packet for a client (the TUN
//! reader, another client's session) looks the destination up and pushes the packet; the
//! session's driver is woken once per batch and takes them to its lanes.
//!
//! A downlink that nobody drains fills up and then drops the newest packets, counted: the
//! TUN is never left unread because one client is slow.
//!
//! # Limits
//!
//! A downlink holds at most [`DOWNLINK_BYTES`] of packets in at most [`DOWNLINK_MEMORY`] of
//! buffers; all downlinks together, and what their sessions have taken from them and not sent, occupy at most
//! [`TOTAL_BYTES`] of buffers.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};

use adit_netstack::Offload;
use futures_util::task::AtomicWaker;

use crate::io::pool::Buffer;

/// The table from inner addresses to sessions.
#[derive(Debug, Default)]
pub struct Router {
    table: RwLock<HashMap<IpAddr, Arc<Downlink>, foldhash::fast::RandomState>>,
    queued: Arc<AtomicUsize>,
    no_route: AtomicU64,
}

impl Router {
    /// Makes an empty router.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a downlink whose bytes count against this router's total.
    pub fn downlink(&self) -> Arc<Downlink> {
        Arc::new(Downlink {
            packets: Mutex::new(VecDeque::new()),
            bytes: AtomicUsize::new(0),
            memory: AtomicUsize::new(0),
            total: self.queued.clone(),
            waker: AtomicWaker::new(),
            dropped_full: AtomicU64::new(0),
            dropped_total: AtomicU64::new(0),
        })
    }

    /// Sends packets for `address` to `downlink` from now on.
    pub fn insert(&self, address: IpAddr, downlink: Arc<Downlink>) {
        self.table
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(address, downlink);
    }

    /// Removes `address` if it still leads to `downlink`.
    pub fn remove(&self, address: IpAddr, downlink: &Arc<Downlink>) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table
            .get(&address)
            .is_some_and(|found| Arc::ptr_eq(found, downlink))
        {
            table.remove(&address);
        }
    }

    /// Returns the downlink that packets for `address` go to; counts where there is none.
    pub fn route(&self, address: IpAddr) -> Option<Arc<Downlink>> {
        let found = self
            .table
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&address)
            .cloned();
        if found.is_none() {
            self.no_route.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    /// Returns the number of packets for addresses that no session holds.
    pub fn no_route(&self) -> u64 {
        self.no_route.load(Ordering::Relaxed)
    }

    /// Returns the memory of all packets that wait, in downlinks or in front of lanes.
    pub fn queued_bytes(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }
}

/// The packets on their way to one client.
#[derive(Debug)]
pub struct Downlink {
    packets: Mutex<VecDeque<Queued>>,
    /// Of the packets' frames.
    bytes: AtomicUsize,
    /// Of the buffers they stand in.
    memory: AtomicUsize,
    total: Arc<AtomicUsize>,
    waker: AtomicWaker,
    dropped_full: AtomicU64,
    dropped_total: AtomicU64,
}

/// A packet in a buffer with room in front of and behind it for the frame it will be.
#[derive(Debug)]
pub struct Queued {
    /// The headroom, the packet and the tailroom of its frame.
    pub buffer: Buffer,
    /// What the packet still owes to an offload engine.
    pub offload: Offload,
}

impl Downlink {
    /// Queues a packet without waking the session; returns whether there was room.
    pub fn push(&self, mut packet: Queued) -> bool {
        let (len, cost) = (packet.buffer.len(), packet.buffer.capacity());
        if self.bytes.load(Ordering::Relaxed) + len > DOWNLINK_BYTES
            || self.memory.load(Ordering::Relaxed) + cost > DOWNLINK_MEMORY
        {
            self.dropped_full.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        if self.total.load(Ordering::Relaxed) + cost > TOTAL_BYTES {
            self.dropped_total.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        self.bytes.fetch_add(len, Ordering::Relaxed);
        self.memory.fetch_add(cost, Ordering::Relaxed);
        packet.buffer.charge(&self.total);
        self.packets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(packet);
        true
    }

    /// Wakes the session that drains this queue.
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// Takes the oldest packet; when there is none, the task of `cx` is woken by the next.
    pub fn poll_pop(&self, cx: &Context<'_>) -> Poll<Queued> {
        if let Some(packet) = self.pop() {
            return Poll::Ready(packet);
        }
        self.waker.register(cx.waker());
        match self.pop() {
            Some(packet) => Poll::Ready(packet),
            None => Poll::Pending,
        }
    }

    /// Drops what is queued: the session has ended.
    pub fn clear(&self) {
        while self.pop().is_some() {}
    }

    /// Returns the packets dropped because this queue, or all queues together, were full.
    pub fn dropped(&self) -> (u64, u64) {
        (
            self.dropped_full.load(Ordering::Relaxed),
            self.dropped_total.load(Ordering::Relaxed),
        )
    }

    fn pop(&self) -> Option<Queued> {
        let packet = self
            .packets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()?;
        let (len, cost) = (packet.buffer.len(), packet.buffer.capacity());
        self.bytes.fetch_sub(len, Ordering::Relaxed);
        self.memory.fetch_sub(cost, Ordering::Relaxed);
        Some(packet)
    }
}

impl Drop for Downlink {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The most that waits for one client's session: four of the netstack's receive windows, so that one
/// flow at full window loses nothing, and a slow lane does not build up more.
pub const DOWNLINK_BYTES: usize = 4 << 20;

/// The most memory that the buffers of one client's packets occupy: 256 large ones. Many flows
/// at once bring many super-packets that do not fill theirs; were a buffer counted as if it
/// were full, 64 flows would lose one super-packet in ten.
pub const DOWNLINK_MEMORY: usize = 16 << 20;

/// The most memory that the buffers of all clients' packets occupy.
pub const TOTAL_BYTES: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::{Wake, Waker};

    use super::*;
    use crate::io::pool::{LARGE, Pool};

    fn packet(pool: &Arc<Pool>, mark: u8) -> Queued {
        let mut buffer = pool.large();
        buffer[0] = mark;
        Queued {
            buffer,
            offload: Offload::default(),
        }
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 86, 0, last])
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn packets_leave_in_order_and_their_bytes_with_them() {
        let (router, pool) = (Router::new(), Pool::new("test", 0, 0));
        let downlink = router.downlink();
        let cx = Context::from_waker(Waker::noop());
        for mark in 0..10 {
            assert!(downlink.push(packet(&pool, mark)));
        }
        assert!(router.queued_bytes() > 0);
        for mark in 0..10 {
            let Poll::Ready(queued) = downlink.poll_pop(&cx) else {
                panic!("packet {mark} is missing");
            };
            assert_eq!(queued.buffer[0], mark);
        }
        assert!(downlink.poll_pop(&cx).is_pending());
        assert_eq!(router.queued_bytes(), 0);
    }

    #[test]
    fn full_downlink_drops_the_newest_and_counts_them() {
        let (router, pool) = (Router::new(), Pool::new("test", 0, 0));
        let downlink = router.downlink();
        let mut taken = 0;
        while downlink.push(packet(&pool, taken as u8)) {
            taken += 1;
        }
        assert!(router.queued_bytes() <= DOWNLINK_BYTES);
        assert!(!downlink.push(packet(&pool, 0)));
        assert_eq!(downlink.dropped(), (2, 0));
        // Another client is not the worse for it.
        assert!(router.downlink().push(packet(&pool, 0)));
        let cx = Context::from_waker(Waker::noop());
        assert!(matches!(downlink.poll_pop(&cx), Poll::Ready(first) if first.buffer[0] == 0));
        drop(downlink);
        assert_eq!(router.queued_bytes(), 0, "what nobody took is given back");
    }

    #[test]
    fn packet_counts_among_all_that_wait_until_its_buffer_is_given_back() {
        let (router, pool) = (Router::new(), Pool::new("test", 0, 0));
        let downlink = router.downlink();
        let cx = Context::from_waker(Waker::noop());
        for mark in 0..2 {
            assert!(downlink.push(packet(&pool, mark)));
        }
        let (Poll::Ready(first), Poll::Ready(second)) =
            (downlink.poll_pop(&cx), downlink.poll_pop(&cx))
        else {
            panic!("two were pushed");
        };
        // They wait in front of a lane now.
        assert_eq!(router.queued_bytes(), 2 * LARGE);
        drop(downlink);
        assert_eq!(
            router.queued_bytes(),
            2 * LARGE,
            "the client is gone, they are not"
        );
        drop(first);
        assert_eq!(router.queued_bytes(), LARGE);
        // Of another downlink it counts once.
        let other = router.downlink();
        assert!(other.push(second));
        assert_eq!(router.queued_bytes(), LARGE);
        drop(other);
        assert_eq!(router.queued_bytes(), 0);
    }

    #[test]
    fn packet_that_comes_later_wakes_whoever_found_none() {
        let (router, pool) = (Router::new(), Pool::new("test", 0, 0));
        let downlink = router.downlink();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        assert!(downlink.poll_pop(&Context::from_waker(&waker)).is_pending());
        downlink.push(packet(&pool, 1));
        assert_eq!(woken.0.load(Ordering::SeqCst), 0, "once per batch");
        downlink.wake();
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn former_holder_does_not_take_the_route_of_the_present_one_away() {
        let router = Router::new();
        let (old, new) = (router.downlink(), router.downlink());
        router.insert(address(2), old.clone());
        router.insert(address(2), new.clone());
        router.remove(address(2), &old);
        assert!(
            router
                .route(address(2))
                .is_some_and(|found| Arc::ptr_eq(&found, &new))
        );
        router.remove(address(2), &new);
        assert!(router.route(address(2)).is_none());
        assert_eq!(router.no_route(), 1);
    }

    fn fill(downlink: &Downlink, len: usize) -> usize {
        let pool = Pool::new("test", 0, 0);
        let packet = || Queued {
            buffer: {
                let mut buffer = pool.large();
                buffer.truncate(len);
                buffer
            },
            offload: Offload::default(),
        };
        (0..).take_while(|_| downlink.push(packet())).count()
    }

    #[test]
    fn half_full_buffers_do_not_halve_the_queue() {
        let router = Router::new();
        assert_eq!(
            fill(&router.downlink(), 60_000),
            DOWNLINK_BYTES / 60_000,
            "full packets"
        );
        let many = fill(&router.downlink(), 20_000);
        assert_eq!(many, DOWNLINK_BYTES / 20_000);
        assert!(many * LARGE <= DOWNLINK_MEMORY);
    }

    #[test]
    fn buffers_that_are_nearly_empty_are_bounded_by_their_memory() {
        let router = Router::new();
        let downlink = router.downlink();
        let count = fill(&downlink, 3000);
        assert_eq!(count, DOWNLINK_MEMORY / LARGE);
        assert_eq!(downlink.dropped(), (1, 0));
        assert_eq!(router.queued_bytes(), count * LARGE);
        drop(downlink);
        assert_eq!(router.queued_bytes(), 0);
    }
}
