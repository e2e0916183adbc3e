//! The rings of a flow: address space at once, memory when used, given back when idle. The only unsafe file.
//!
//! smoltcp fixes a flow's rings and its window scale when the socket is made. So every flow gets the address space of
//! a large ring from the start, an anonymous mapping of which the kernel fills in a page when it is first written; never a
//! huge page, which would be the memory of a whole flow for its first byte. What a ring does not use can be given back
//! ([`BoundSocket::give_back`]): its pages read as zero afterwards, and nobody reads what nobody wrote. A flow that ends
//! leaves its mapping to the next one through a bounded list. Which pages hold memory is known ([`Extent`]) and counted
//! in the stack's [`Account`].

use std::io;

use memmap2::{MmapMut, MmapOptions, UncheckedAdvice};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;

use crate::extent::{Extent, Span};
use crate::memory::Account;

/// One mapping that holds a receive and a send ring.
#[derive(Debug)]
pub(crate) struct Rings {
    map: MmapMut,
    receive: Place,
    send: Place,
}

/// Where a ring lies in the mapping, and what of it holds memory.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: usize,
    len: usize,
    extent: Extent,
}

impl Rings {
    fn new(receive: usize, send: usize, page: usize) -> io::Result<Rings> {
        let map = MmapOptions::new()
            .len(receive + send)
            .no_reserve_swap()
            .map_anon()?;
        // Where the kernel has no huge pages it refuses, and all is well.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::NoHugePage);
        let place = |offset, len| Place {
            offset,
            len,
            extent: Extent::new(len, page),
        };
        Ok(Rings {
            map,
            receive: place(0, receive),
            send: place(receive, send),
        })
    }

    fn place(&self, ring: Ring) -> &Place {
        match ring {
            Ring::Receive => &self.receive,
            Ring::Send => &self.send,
        }
    }

    fn place_mut(&mut self, ring: Ring) -> &mut Place {
        match ring {
            Ring::Receive => &mut self.receive,
            Ring::Send => &mut self.send,
        }
    }

    fn held(&self) -> usize {
        self.receive.extent.len() + self.send.extent.len()
    }

    /// Gives back what is not among the `count` bytes from `at` on; says how much that was.
    fn give_back(&mut self, ring: Ring, at: usize, count: usize) -> usize {
        let Place {
            offset,
            len,
            extent,
        } = *self.place(ring);
        let (before, behind) = extent.dead(at, count);
        let gone = [before, behind].into_iter().all(|(start, dead)| {
            let first = dead.min(len - start);
            self.discard((offset + start, first)) && self.discard((offset, dead - first))
        });
        if !gone {
            return 0;
        }
        let extent = &mut self.place_mut(ring).extent;
        let held = extent.len();
        extent.shrink(at, count);
        held - extent.len()
    }

    /// Gives the pages of a range back to the kernel.
    fn discard(&mut self, (offset, len): Span) -> bool {
        if len == 0 {
            return true;
        }
        #[cfg(unix)]
        {
            // SAFETY: the range lies in a private anonymous mapping of our own and consists of whole pages, so its
            // bytes become zero and nothing else happens. Callers only name ranges whose contents nobody will read
            // before writing them.
            unsafe {
                self.map
                    .unchecked_advise_range(UncheckedAdvice::DontNeed, offset, len)
            }
            .is_ok()
        }
        #[cfg(not(unix))]
        {
            let _ = offset;
            false
        }
    }
}

/// Which ring of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ring {
    Receive,
    Send,
}

/// A set of one TCP socket together with the rings it writes to.
pub(crate) struct BoundSocket {
    // Declared, and so dropped, before the rings that it points into.
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    rings: Rings,
}

impl BoundSocket {
    fn new(mut rings: Rings) -> BoundSocket {
        let base = rings.map.as_mut_ptr();
        // SAFETY: the two slices lie within the mapping and do not overlap. The mapping is neither moved in memory
        // nor unmapped while the socket lives: `rings` is private to this struct, is never touched but by `discard`,
        // and is dropped or taken out only after `sockets` is dropped (field order; `into_rings`). The socket never
        // leaves this struct: the set is lent out only mutably borrowed, and this crate takes nothing out of it.
        let (receive, send) = unsafe {
            (
                std::slice::from_raw_parts_mut(base, rings.receive.len),
                std::slice::from_raw_parts_mut(base.add(rings.receive.len), rings.send.len),
            )
        };
        let socket = tcp::Socket::new(
            tcp::SocketBuffer::new(receive),
            tcp::SocketBuffer::new(send),
        );
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        BoundSocket {
            sockets,
            handle,
            rings,
        }
    }

    /// Lends the set, for the interface to work on.
    pub(crate) fn set(&mut self) -> &mut SocketSet<'static> {
        &mut self.sockets
    }

    /// Lends the socket.
    pub(crate) fn tcp(&self) -> &tcp::Socket<'static> {
        self.sockets.get(self.handle)
    }

    /// Lends the socket to change it.
    pub(crate) fn tcp_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Says which part of a ring holds memory.
    pub(crate) fn extent(&self, ring: Ring) -> &Extent {
        &self.rings.place(ring).extent
    }

    /// Takes note that `count` bytes from `at` on are written, and counts what memory that takes.
    pub(crate) fn grow(&mut self, ring: Ring, at: usize, count: usize, account: &mut Account) {
        let extent = &mut self.rings.place_mut(ring).extent;
        account.add(extent.growth(at, count));
        extent.grow(at, count);
    }

    /// Gives a ring's memory back to the kernel but for the `count` bytes from `at` on; says how much that was.
    ///
    /// The caller knows that these are all that is in the ring: what can be read or is unacknowledged, and for the
    /// receive ring what arrived out of order too. A wrong call would hand zeros to the application; it is not unsafe.
    pub(crate) fn give_back(
        &mut self,
        ring: Ring,
        at: usize,
        count: usize,
        account: &mut Account,
    ) -> usize {
        let freed = self.rings.give_back(ring, at, count);
        account.sub(freed);
        freed
    }

    /// Says what both rings hold.
    pub(crate) fn held(&self) -> usize {
        self.rings.held()
    }

    fn into_rings(self) -> Rings {
        let BoundSocket { sockets, rings, .. } = self;
        drop(sockets);
        rings
    }
}

/// Makes rings, and keeps a bounded number of used ones.
#[derive(Debug)]
pub(crate) struct RingPool {
    receive: usize,
    send: usize,
    page: usize,
    /// Rings of which some pages are still in memory, the most recently used last.
    warm: Vec<Rings>,
    /// Rings that hold no memory.
    cold: Vec<Rings>,
}

impl RingPool {
    /// Makes an empty pool for rings of these sizes, rounded up to pages.
    pub(crate) fn new(receive: usize, send: usize) -> RingPool {
        let page = page_size();
        RingPool {
            receive: round(receive, page),
            send: round(send, page),
            page,
            warm: Vec::new(),
            cold: Vec::new(),
        }
    }

    /// Makes a socket with rings of its own.
    ///
    /// # Errors
    /// That of the operating system when there is no address space or no mapping left.
    pub(crate) fn take(&mut self) -> io::Result<BoundSocket> {
        let rings = match self.warm.pop().or_else(|| self.cold.pop()) {
            Some(rings) => rings,
            None => Rings::new(self.receive, self.send, self.page)?,
        };
        Ok(BoundSocket::new(rings))
    }

    /// Takes the rings of a flow that has ended; with their memory only while that is ample.
    pub(crate) fn put(&mut self, socket: BoundSocket, account: &mut Account) {
        let mut rings = socket.into_rings();
        for ring in [Ring::Receive, Ring::Send] {
            // The next flow begins at the start of the ring.
            if !account.is_ample() || !rings.place(ring).extent.is_at_zero() {
                account.sub(rings.give_back(ring, 0, 0));
            }
        }
        if self.warm.len() + self.cold.len() >= MAX_SPARE {
            account.sub(rings.held());
        } else if rings.held() == 0 {
            self.cold.push(rings);
        } else {
            self.warm.push(rings);
        }
    }

    /// Gives back the memory of at most `count` spare rings, and says how many it were.
    pub(crate) fn cool(&mut self, count: usize, account: &mut Account) -> usize {
        let count = count.min(self.warm.len());
        for mut rings in self.warm.drain(..count) {
            for ring in [Ring::Receive, Ring::Send] {
                account.sub(rings.give_back(ring, 0, 0));
            }
            if rings.held() == 0 {
                self.cold.push(rings);
            } else {
                account.sub(rings.held());
            }
        }
        count
    }

    /// Says whether spare rings hold memory.
    pub(crate) fn is_warm(&self) -> bool {
        !self.warm.is_empty()
    }

    /// Says how much memory the spare rings hold.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.warm.iter().map(Rings::held).sum()
    }

    /// Says what memory is counted in.
    #[cfg(test)]
    pub(crate) fn page(&self) -> usize {
        self.page
    }

    /// Says how many spare rings there are.
    #[cfg(test)]
    pub(crate) fn spare(&self) -> usize {
        self.warm.len() + self.cold.len()
    }
}

fn round(size: usize, page: usize) -> usize {
    // A receive ring above 1 GiB cannot be told to the peer (RFC 7323 §2.3), and smoltcp refuses it.
    size.clamp(LEAST, 1 << 30).next_multiple_of(LEAST.max(page))
}

/// Asks the system for the size of a page.
fn page_size() -> usize {
    #[cfg(unix)]
    {
        // SAFETY: `sysconf` takes no pointer and may be called at any time, from any thread.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(size)
            .ok()
            .filter(|size| size.is_power_of_two())
            .unwrap_or(LEAST)
    }
    #[cfg(not(unix))]
    {
        LEAST
    }
}

/// The least ring, and what it is a multiple of: the largest page size in use with 4, 16 and 64 KiB pages, and what a
/// window without scale can tell.
const LEAST: usize = 65_536;
/// Enough that a burst of short connections makes no system calls, few enough that the address space stays small.
const MAX_SPARE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const RING: usize = LEAST;

    #[test]
    fn spare_rings_are_bounded() {
        let mut pool = RingPool::new(RING, RING);
        let mut account = Account::default();
        let sockets: Vec<_> = (0..MAX_SPARE + 10).map(|_| pool.take().unwrap()).collect();
        for mut socket in sockets {
            socket.grow(Ring::Send, 0, 1, &mut account);
            pool.put(socket, &mut account);
        }
        assert_eq!(pool.spare(), MAX_SPARE);
        assert_eq!(account.held(), MAX_SPARE * pool.page);
        assert_eq!(account.held(), pool.held());
    }

    #[test]
    fn cooled_rings_are_used_again() {
        let mut pool = RingPool::new(RING, RING);
        let mut account = Account::default();
        let mut socket = pool.take().unwrap();
        socket.grow(Ring::Receive, 0, RING, &mut account);
        pool.put(socket, &mut account);
        assert!(pool.is_warm());
        assert_eq!(account.held(), RING);
        assert_eq!(pool.cool(10, &mut account), 1);
        assert!(!pool.is_warm());
        assert_eq!((pool.spare(), account.held()), (1, 0));
        let _socket = pool.take().unwrap();
        assert_eq!(pool.spare(), 0);
    }

    #[test]
    fn untouched_rings_are_cold() {
        let mut pool = RingPool::new(RING, RING);
        let socket = pool.take().unwrap();
        pool.put(socket, &mut Account::default());
        assert!(!pool.is_warm());
        assert_eq!(pool.spare(), 1);
    }

    #[test]
    fn what_is_live_survives_what_is_given_back() {
        let mut pool = RingPool::new(RING, RING);
        let mut account = Account::default();
        let mut socket = pool.take().unwrap();
        socket.rings.map[..RING].fill(7);
        socket.grow(Ring::Receive, 0, RING, &mut account);
        let (at, count, page) = (RING - 100, 300, pool.page);
        let freed = socket.give_back(Ring::Receive, at, count, &mut account);
        assert_eq!((freed, account.held()), (RING - 2 * page, 2 * page));
        let ring = &socket.rings.map[..RING];
        assert!(ring[..page].iter().all(|byte| *byte == 7));
        assert!(ring[page..RING - page].iter().all(|byte| *byte == 0));
        assert!(ring[RING - page..].iter().all(|byte| *byte == 7));
    }

    #[test]
    fn sizes_are_rounded_to_pages() {
        let mut pool = RingPool::new(1, 70_000);
        let socket = pool.take().unwrap();
        assert_eq!(socket.tcp().recv_capacity(), LEAST);
        assert_eq!(socket.tcp().send_capacity(), 2 * LEAST);
    }
}
