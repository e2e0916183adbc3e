//! Pools of packet buffers, so that the data path allocates nothing once it is warm.
//!
//! A [`Buffer`] is an owned, fixed piece of memory of one of three classes: [`SMALL`] for what
//! fits an ordinary packet or a handshake, [`LARGE`] for a super-packet with the room its frame
//! needs in front and behind, [`MEDIUM`] for the short super-packets of many flows. It goes back to its [`Pool`] when it is dropped, on whatever
//! thread that happens. A pool keeps at most as many free buffers as it was told; what comes
//! back beyond that is freed, so a burst does not stay in memory for ever.
//!
//! The frames that arrive on stream lanes are put together in buffers of the lanes' own, whose sizes
//! follow the traffic: of those a pool has the [budget](Pool::reads) alone.
//!
//! Buffers are zeroed once, when they are allocated, and never again: whoever takes one writes
//! before it reads.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::io::lane::READ_MEMORY;
use crate::proto::budget::Budget;

/// The capacity of a small buffer in bytes: one wire packet with its frame, or one handshake.
pub const SMALL: usize = 2 * 1024;

/// The capacity of a medium buffer in bytes: a quarter of the largest super-packet. Where many flows share a lane, each
/// sends a third of a small window at a time, and packets that wait in large buffers would hold eight times their bytes.
pub const MEDIUM: usize = 16 * 1024;

/// The capacity of a large buffer in bytes.
///
/// The largest IP packet (65,535) with the frame's header in front (26) and the tag behind (16)
/// takes 65,577 bytes, and the largest frame of a stream lane 66,004; the next multiple of a
/// KiB above both that leaves room for the header a TUN device puts before its packets.
pub const LARGE: usize = 65 * 1024;

/// Lends buffers of three sizes and takes them back when they are dropped.
pub struct Pool {
    name: &'static str,
    small: Mutex<FreeList>,
    medium: Mutex<FreeList>,
    large: Mutex<FreeList>,
    reads: Arc<Budget>,
}

impl Pool {
    /// Creates an empty pool that keeps at most `max_small` and `max_large` free buffers, and as many medium ones as
    /// large ones.
    ///
    /// Nothing is allocated until a buffer is asked for. `name` is what logs and metrics call
    /// this pool.
    pub fn new(name: &'static str, max_small: usize, max_large: usize) -> Arc<Pool> {
        Arc::new(Pool {
            name,
            small: Mutex::new(FreeList::new(max_small)),
            medium: Mutex::new(FreeList::new(max_large)),
            large: Mutex::new(FreeList::new(max_large)),
            reads: Budget::new(READ_MEMORY),
        })
    }

    /// Lends a buffer of [`SMALL`] bytes.
    pub fn small(self: &Arc<Self>) -> Buffer {
        self.lend(Class::Small)
    }

    /// Lends a buffer of [`LARGE`] bytes.
    pub fn large(self: &Arc<Self>) -> Buffer {
        self.lend(Class::Large)
    }

    /// Lends a buffer cut to `len` bytes, of the smaller class that holds them.
    ///
    /// A `len` above [`LARGE`] gives a buffer of that size.
    pub fn sized(self: &Arc<Self>, len: usize) -> Buffer {
        let mut classes = [Class::Small, Class::Medium].into_iter();
        let class = classes.find(|class| len <= class.capacity());
        let class = class.unwrap_or(Class::Large);
        let mut buffer = self.lend(class);
        buffer.truncate(len);
        buffer
    }

    /// Returns what bounds the read buffers of the lanes that this pool is for.
    pub fn reads(&self) -> &Arc<Budget> {
        &self.reads
    }

    /// Returns what logs and metrics call this pool.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the counters of all classes.
    pub fn stats(&self) -> PoolStats {
        PoolStats {
            small: self.list(Class::Small).stats(),
            medium: self.list(Class::Medium).stats(),
            large: self.list(Class::Large).stats(),
        }
    }

    /// Frees what waits to be lent again, as after a burst.
    pub fn give_back(&self) {
        for class in [Class::Small, Class::Medium, Class::Large] {
            let free = std::mem::take(&mut self.list(class).free);
            // Freed here, outside the lock.
            drop(free);
        }
    }

    fn lend(self: &Arc<Self>, class: Class) -> Buffer {
        let reused = self.list(class).take();
        let bytes = reused.unwrap_or_else(|| vec![0; class.capacity()].into_boxed_slice());
        Buffer {
            len: bytes.len(),
            bytes,
            class,
            pool: Arc::clone(self),
            charged: None,
        }
    }

    fn list(&self, class: Class) -> MutexGuard<'_, FreeList> {
        let list = match class {
            Class::Small => &self.small,
            Class::Medium => &self.medium,
            Class::Large => &self.large,
        };
        // A free list is whole between any two statements: a panic elsewhere cannot spoil it.
        list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.name)
            .field("stats", &self.stats())
            .finish()
    }
}

/// An owned piece of pooled memory, given back to its pool on drop.
///
/// It dereferences to its first [`Buffer::len`] bytes. A fresh buffer is as long as its
/// capacity and holds whatever its last user left in it.
pub struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
    class: Class,
    pool: Arc<Pool>,
    /// What its memory counts against, while it is lent.
    charged: Option<Arc<AtomicUsize>>,
}

impl Buffer {
    /// Counts the buffer's memory against `total` until it is given back.
    pub fn charge(&mut self, total: &Arc<AtomicUsize>) {
        total.fetch_add(self.capacity(), Ordering::Relaxed);
        if let Some(former) = self.charged.replace(total.clone()) {
            former.fetch_sub(self.capacity(), Ordering::Relaxed);
        }
    }

    /// Shortens the buffer to `len` bytes; does nothing when it is not longer than that.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes the buffer as long as its capacity again.
    pub fn reset(&mut self) {
        self.len = self.bytes.len();
    }

    /// Returns how many bytes the buffer holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Tells whether the buffer holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns how many bytes the buffer can hold: [`SMALL`], [`MEDIUM`] or [`LARGE`].
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("len", &self.len)
            .field("capacity", &self.capacity())
            .finish()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(total) = self.charged.take() {
            total.fetch_sub(self.capacity(), Ordering::Relaxed);
        }
        let bytes = std::mem::take(&mut self.bytes);
        let surplus = self.pool.list(self.class).put(bytes);
        // Freed here, outside the lock.
        drop(surplus);
    }
}

/// The counters of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Buffers of [`SMALL`] bytes.
    pub small: ClassStats,
    /// Buffers of [`MEDIUM`] bytes.
    pub medium: ClassStats,
    /// Buffers of [`LARGE`] bytes.
    pub large: ClassStats,
}

/// The counters of one class of buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassStats {
    /// Requests served from the free list.
    pub hits: u64,
    /// Requests that had to allocate.
    pub misses: u64,
    /// Buffers lent and not yet back.
    pub outstanding: usize,
    /// Buffers that wait in the free list.
    pub free: usize,
}

#[derive(Clone, Copy)]
enum Class {
    Small,
    Medium,
    Large,
}

impl Class {
    fn capacity(self) -> usize {
        match self {
            Class::Small => SMALL,
            Class::Medium => MEDIUM,
            Class::Large => LARGE,
        }
    }
}

struct FreeList {
    free: Vec<Box<[u8]>>,
    max: usize,
    hits: u64,
    misses: u64,
    outstanding: usize,
}

impl FreeList {
    fn new(max: usize) -> FreeList {
        FreeList {
            free: Vec::new(),
            max,
            hits: 0,
            misses: 0,
            outstanding: 0,
        }
    }

    /// Takes the buffer that came back last: the one most likely still in the cache.
    fn take(&mut self) -> Option<Box<[u8]>> {
        self.outstanding += 1;
        let taken = self.free.pop();
        if taken.is_some() {
            self.hits += 1;
        } else {
            self.misses += 1;
        }
        taken
    }

    /// Takes a buffer back, or returns it when the list is full.
    fn put(&mut self, bytes: Box<[u8]>) -> Option<Box<[u8]>> {
        self.outstanding -= 1;
        if self.free.len() < self.max {
            self.free.push(bytes);
            None
        } else {
            Some(bytes)
        }
    }

    fn stats(&self) -> ClassStats {
        ClassStats {
            hits: self.hits,
            misses: self.misses,
            outstanding: self.outstanding,
            free: self.free.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffer_holds_the_largest_packet_with_its_frame() {
        let pool = Pool::new("test", 1, 1);
        assert!(pool.large().len() >= 65_535 + 26 + 16);
        assert!(pool.large().len() >= 66_100);
        assert_eq!(pool.small().len(), 2048);
    }

    #[test]
    fn sized_buffer_is_of_the_smallest_class_that_holds_it() {
        let pool = Pool::new("test", 1, 1);
        for (len, capacity) in [
            (0, SMALL),
            (SMALL, SMALL),
            (SMALL + 1, MEDIUM),
            (MEDIUM, MEDIUM),
            (MEDIUM + 1, LARGE),
            (LARGE, LARGE),
        ] {
            let buffer = pool.sized(len);
            assert_eq!((buffer.len(), buffer.capacity()), (len, capacity));
        }
    }

    #[test]
    fn dropped_buffer_is_lent_again_unzeroed() {
        let pool = Pool::new("test", 4, 4);
        let mut buffer = pool.large();
        buffer[7] = 42;
        buffer.truncate(8);
        drop(buffer);
        let again = pool.large();
        assert_eq!(again.len(), LARGE);
        assert_eq!(again[7], 42);
        let stats = pool.stats().large;
        assert_eq!((stats.hits, stats.misses), (1, 1));
        assert_eq!((stats.outstanding, stats.free), (1, 0));
    }

    #[test]
    fn free_list_keeps_no_more_than_its_bound() {
        let pool = Pool::new("test", 2, 0);
        let lent: Vec<Buffer> = (0..5).map(|_| pool.small()).collect();
        assert_eq!(pool.stats().small.outstanding, 5);
        drop(lent);
        drop(pool.large());
        let stats = pool.stats();
        assert_eq!((stats.small.free, stats.small.outstanding), (2, 0));
        assert_eq!((stats.large.free, stats.large.outstanding), (0, 0));
    }

    #[test]
    fn pool_that_gives_back_keeps_none_but_what_is_lent() {
        let pool = Pool::new("test", 4, 4);
        let lent = pool.large();
        drop([pool.sized(SMALL), pool.sized(MEDIUM), pool.sized(LARGE)]);
        pool.give_back();
        let stats = pool.stats();
        let free = [stats.small, stats.medium, stats.large].map(|class| class.free);
        assert_eq!(free, [0; 3]);
        drop(lent);
        assert_eq!(
            (pool.stats().large.free, pool.stats().large.outstanding),
            (1, 0)
        );
    }

    #[test]
    fn truncate_never_lengthens_and_reset_restores_the_capacity() {
        let pool = Pool::new("test", 1, 1);
        let mut buffer = pool.small();
        buffer.truncate(10);
        buffer.truncate(100);
        assert_eq!(buffer.len(), 10);
        buffer.truncate(0);
        assert!(buffer.is_empty());
        buffer.reset();
        assert_eq!(buffer.len(), buffer.capacity());
    }

    #[test]
    fn buffers_come_back_from_other_threads() {
        let pool = Pool::new("test", 64, 64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let mut buffer = pool.small();
                        buffer[0] = 1;
                    }
                });
            }
        });
        let stats = pool.stats().small;
        assert_eq!(stats.hits + stats.misses, 4000);
        assert_eq!(stats.outstanding, 0);
        assert!(stats.misses <= 4);
    }
}
