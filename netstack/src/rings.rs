//! The rings of a flow: address space at once, memory when used, given back when idle. The only unsafe file.
//!
//! smoltcp fixes a flow's rings and its window scale when the socket is made. So every flow gets the address space of
//! a large ring from the start, an anonymous mapping of which the kernel fills in a page when it is first written.
//! A ring that is empty can be given back ([`BoundSocket::give_back`]): its pages read as zero afterwards, and nobody
//! reads what nobody wrote. A flow that ends leaves its mapping to the next one through a bounded list.

use std::io;

use memmap2::{MmapMut, MmapOptions, UncheckedAdvice};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;

/// One mapping that holds a receive and a send ring.
#[derive(Debug)]
pub(crate) struct Rings {
    map: MmapMut,
    receive: usize,
    send: usize,
}

impl Rings {
    fn new(receive: usize, send: usize) -> io::Result<Rings> {
        let map = MmapOptions::new()
            .len(receive + send)
            .no_reserve_swap()
            .map_anon()?;
        Ok(Rings { map, receive, send })
    }

    /// Gives the pages of a range back to the kernel.
    fn discard(&mut self, offset: usize, len: usize) -> bool {
        #[cfg(unix)]
        {
            // SAFETY: the range lies in a private anonymous mapping of our own, so its bytes become zero and nothing
            // else happens. Callers only name ranges whose contents nobody will read before writing them.
            unsafe {
                self.map
                    .unchecked_advise_range(UncheckedAdvice::DontNeed, offset, len)
            }
            .is_ok()
        }
        #[cfg(not(unix))]
        {
            let _ = (offset, len);
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
                std::slice::from_raw_parts_mut(base, rings.receive),
                std::slice::from_raw_parts_mut(base.add(rings.receive), rings.send),
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

    /// Gives a ring's memory back to the kernel.
    ///
    /// The caller knows that the ring is empty: nothing to read, nothing unacknowledged, and for the receive ring no
    /// segment that arrived out of order either. A wrong call would hand zeros to the application; it is not unsafe.
    pub(crate) fn give_back(&mut self, ring: Ring) -> bool {
        let (offset, len) = match ring {
            Ring::Receive => (0, self.rings.receive),
            Ring::Send => (self.rings.receive, self.rings.send),
        };
        self.rings.discard(offset, len)
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
    /// Rings whose pages are likely still in memory, the most recently used last.
    warm: Vec<Rings>,
    /// Rings whose pages were given back.
    cold: Vec<Rings>,
}

impl RingPool {
    /// Makes an empty pool for rings of these sizes, rounded up to pages.
    pub(crate) fn new(receive: usize, send: usize) -> RingPool {
        RingPool {
            receive: round(receive),
            send: round(send),
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
            None => Rings::new(self.receive, self.send)?,
        };
        Ok(BoundSocket::new(rings))
    }

    /// Takes the rings of a flow that has ended.
    pub(crate) fn put(&mut self, socket: BoundSocket) {
        let rings = socket.into_rings();
        if self.warm.len() + self.cold.len() < MAX_SPARE {
            self.warm.push(rings);
        }
    }

    /// Gives back the memory of at most `count` spare rings, and says how many it were.
    pub(crate) fn cool(&mut self, count: usize) -> usize {
        let count = count.min(self.warm.len());
        for mut rings in self.warm.drain(..count) {
            let len = rings.receive + rings.send;
            if rings.discard(0, len) {
                self.cold.push(rings);
            }
        }
        count
    }

    /// Says whether spare rings may hold memory.
    pub(crate) fn is_warm(&self) -> bool {
        !self.warm.is_empty()
    }

    /// Says how many spare rings there are.
    #[cfg(test)]
    pub(crate) fn spare(&self) -> usize {
        self.warm.len() + self.cold.len()
    }
}

fn round(size: usize) -> usize {
    // A receive ring above 1 GiB cannot be told to the peer (RFC 7323 §2.3), and smoltcp refuses it.
    size.clamp(PAGE, 1 << 30).next_multiple_of(PAGE)
}

/// The largest page size in use with 4, 16 and 64 KiB pages, so that a ring boundary is a page boundary.
const PAGE: usize = 65_536;
/// Enough that a burst of short connections makes no system calls, few enough that the address space stays small.
const MAX_SPARE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spare_rings_are_bounded() {
        let mut pool = RingPool::new(PAGE, PAGE);
        let sockets: Vec<_> = (0..MAX_SPARE + 10).map(|_| pool.take().unwrap()).collect();
        for socket in sockets {
            pool.put(socket);
        }
        assert_eq!(pool.spare(), MAX_SPARE);
    }

    #[test]
    fn cooled_rings_are_used_again() {
        let mut pool = RingPool::new(PAGE, PAGE);
        let socket = pool.take().unwrap();
        pool.put(socket);
        assert!(pool.is_warm());
        assert_eq!(pool.cool(10), 1);
        assert!(!pool.is_warm());
        assert_eq!(pool.spare(), 1);
        let _socket = pool.take().unwrap();
        assert_eq!(pool.spare(), 0);
    }

    #[test]
    fn sizes_are_rounded_to_pages() {
        let mut pool = RingPool::new(1, 70_000);
        let socket = pool.take().unwrap();
        assert_eq!(socket.tcp().recv_capacity(), PAGE);
        assert_eq!(socket.tcp().send_capacity(), 2 * PAGE);
    }
}
