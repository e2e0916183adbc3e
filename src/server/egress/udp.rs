//! UDP through ordinary sockets: one mapping per inner address and port.
//!
//! # Theory of operation
//!
//! The first datagram from an inner address and port makes a mapping: a socket per address
//! family, bound to any port. Every datagram from there leaves by it, whatever its
//! destination, and whatever arrives at it goes back there, whoever sent it:
//! endpoint-independent mapping and filtering (RFC 4787 sections 4.1 and 5), as STUN and
//! games need it.
//!
//! # Limits
//!
//! At most [`MAX_MAPPINGS`] mappings; a new one beyond that takes the place of the one unused
//! for longest. A mapping ends after [`MAPPING_IDLE`] without a datagram of the client's.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use adit_netstack::{PacketSink, Stack};
use slab::Slab;
use socket2::{Domain, Socket, Type};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use crate::io::carrier::has_room;
use crate::io::pool::Pool;
use crate::io::relay::{Notice, ReadySet};

/// The UDP mappings of one session.
#[derive(Debug)]
pub struct Mappings {
    by_client: HashMap<SocketAddr, usize>,
    mappings: Slab<Mapping>,
    ready: Arc<ReadySet>,
    sweep: Option<Instant>,
    stats: MappingStats,
}

/// What [`Mappings`] have counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MappingStats {
    /// Mappings made.
    pub made: u64,
    /// Mappings ended because they were idle.
    pub expired: u64,
    /// Mappings ended to make room for new ones.
    pub evicted: u64,
    /// Datagrams dropped because no socket could be had.
    pub no_socket: u64,
    /// Datagrams the system did not take.
    pub send_failed: u64,
    /// Reads that failed.
    pub receive_failed: u64,
    /// Datagrams that arrived and did not fit the lane as a whole.
    pub no_room: u64,
}

impl Mappings {
    /// Makes an empty table.
    pub fn new() -> Self {
        Self {
            by_client: HashMap::new(),
            mappings: Slab::new(),
            ready: ReadySet::new(),
            sweep: None,
            stats: MappingStats::default(),
        }
    }

    /// Sends `payload` from `client`'s mapping to `origin`.
    pub fn send(&mut self, now: Instant, client: SocketAddr, origin: SocketAddr, payload: &[u8]) {
        let key = match self.by_client.get(&client) {
            Some(&key) => key,
            None => self.insert(now, client),
        };
        let Some(mapping) = self.mappings.get_mut(key) else {
            return;
        };
        mapping.last_used = now;
        let socket = match mapping.socket(origin.ip()) {
            Ok(socket) => socket,
            Err(_) => {
                self.stats.no_socket += 1;
                return;
            }
        };
        if send(socket, payload, origin).is_err() {
            self.stats.send_failed += 1;
        }
        // Registers the mapping's waker with a socket that has just been made.
        mapping.notice.queue();
    }

    /// Moves what arrived into the tunnel, through a buffer of `pool`; returns whether anything did.
    ///
    /// Without room in `sink`, datagrams stay in the sockets.
    pub fn poll<S: PacketSink>(
        &mut self,
        cx: &Context<'_>,
        now: Instant,
        pool: &Arc<Pool>,
        stack: &mut Stack,
        sink: &mut S,
    ) -> bool {
        self.ready.register(cx);
        let mut any = false;
        let mut scratch = None;
        for _ in 0..READY_PER_TURN {
            if self.ready.is_empty() || !has_room(sink) {
                return any;
            }
            let Some(key) = self.ready.pop() else { break };
            let Some(mapping) = self.mappings.get_mut(key) else {
                continue;
            };
            any = true;
            mapping.notice.taken();
            // Datagrams are read here first: their length is not known before. Lent for this turn alone: a mapping
            // stays for minutes, and a thousand idle sessions have one.
            let scratch = scratch.get_or_insert_with(|| pool.large());
            let stats = &mut self.stats;
            let received = mapping.receive(scratch, sink, |sink, client, origin, bytes| {
                if stack.send_udp(sink, origin, client, bytes).is_err() {
                    stats.no_room += 1;
                }
            });
            self.stats.receive_failed += received.errors as u64;
            if received.datagrams > 0 {
                mapping.last_used = now;
            }
            if received.more {
                mapping.notice.queue();
            }
        }
        any
    }

    /// Returns when [`Mappings::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.sweep
    }

    /// Ends the mappings that have been idle for [`MAPPING_IDLE`].
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.sweep.is_none_or(|due| now < due) {
            return;
        }
        let idle: Vec<usize> = self
            .mappings
            .iter()
            .filter(|(_, mapping)| now >= mapping.last_used + MAPPING_IDLE)
            .map(|(key, _)| key)
            .collect();
        for key in idle {
            self.remove(key);
            self.stats.expired += 1;
        }
        self.sweep = self
            .mappings
            .iter()
            .map(|(_, mapping)| mapping.last_used + MAPPING_IDLE)
            .min();
    }

    /// Counts the sockets there are; each mapping has one for each family that it has sent to.
    pub fn sockets(&self) -> usize {
        let mappings = self.mappings.iter();
        let each =
            mappings.map(|(_, it)| usize::from(it.v4.is_some()) + usize::from(it.v6.is_some()));
        each.sum()
    }

    /// Returns how many mappings there are.
    pub fn len(&self) -> usize {
        self.mappings.len()
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.mappings.is_empty()
    }

    /// Returns what was counted.
    pub fn stats(&self) -> &MappingStats {
        &self.stats
    }

    fn insert(&mut self, now: Instant, client: SocketAddr) -> usize {
        if self.mappings.len() >= MAX_MAPPINGS {
            let oldest = self
                .mappings
                .iter()
                .min_by_key(|(_, mapping)| mapping.last_used)
                .map(|(key, _)| key);
            if let Some(key) = oldest {
                self.remove(key);
                self.stats.evicted += 1;
            }
        }
        let entry = self.mappings.vacant_entry();
        let key = entry.key();
        let notice = Arc::new(Notice::new(self.ready.clone(), key));
        entry.insert(Mapping {
            client,
            v4: None,
            v6: None,
            waker: Waker::from(notice.clone()),
            notice,
            last_used: now,
        });
        self.by_client.insert(client, key);
        self.sweep.get_or_insert(now + MAPPING_IDLE);
        self.stats.made += 1;
        key
    }

    fn remove(&mut self, key: usize) {
        if let Some(mapping) = self.mappings.try_remove(key) {
            self.by_client.remove(&mapping.client);
        }
    }
}

impl Default for Mappings {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug)]
struct Mapping {
    client: SocketAddr,
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
    waker: Waker,
    notice: Arc<Notice>,
    last_used: Instant,
}

impl Mapping {
    fn socket(&mut self, origin: IpAddr) -> io::Result<&UdpSocket> {
        let (slot, any) = match origin {
            IpAddr::V4(_) => (&mut self.v4, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
            IpAddr::V6(_) => (&mut self.v6, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
        };
        if slot.is_none() {
            let address = SocketAddr::new(any, 0);
            let domain = Domain::for_address(address);
            let socket = Socket::new(domain, Type::DGRAM.nonblocking(), None)?;
            if domain == Domain::IPV6 {
                // Else it takes IPv4 datagrams too, and a client would get them from mapped addresses.
                socket.set_only_v6(true)?;
            }
            socket.bind(&address.into())?;
            *slot = Some(UdpSocket::from_std(socket.into())?);
        }
        slot.as_ref()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Reads from both sockets until they have nothing, their turn is over or there is no room.
    fn receive<S: PacketSink>(
        &self,
        scratch: &mut [u8],
        sink: &mut S,
        mut deliver: impl FnMut(&mut S, SocketAddr, SocketAddr, &[u8]),
    ) -> Received {
        let mut cx = Context::from_waker(&self.waker);
        let mut received = Received::default();
        for socket in [&self.v4, &self.v6].into_iter().flatten() {
            let mut errors = 0;
            for turn in 1..=DATAGRAMS_PER_TURN {
                if !has_room(sink) {
                    received.more = true;
                    break;
                }
                let mut buffer = ReadBuf::new(scratch);
                match socket.poll_recv_from(&mut cx, &mut buffer) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(origin)) => {
                        deliver(sink, self.client, origin, buffer.filled());
                        received.datagrams += 1;
                    }
                    // What an earlier datagram met with; the next read may find one that came.
                    Poll::Ready(Err(_)) => errors += 1,
                }
                // A socket that has nothing but errors gets its turn with the next datagram sent.
                received.more |= turn == DATAGRAMS_PER_TURN && errors < turn;
            }
            received.errors += errors;
        }
        received
    }
}

/// What one turn of a mapping brought.
#[derive(Clone, Copy, Debug, Default)]
struct Received {
    datagrams: usize,
    errors: usize,
    /// There may be more.
    more: bool,
}

/// Sends at once, whether or not the runtime has seen the socket writable yet.
pub(super) fn send(socket: &UdpSocket, payload: &[u8], to: SocketAddr) -> io::Result<usize> {
    socket2::SockRef::from(socket).send_to(payload, &to.into())
}

/// Mappings of one session: what a busy desktop with a game and a torrent needs, and a bound
/// on the descriptors that one client can take.
pub const MAX_MAPPINGS: usize = 1024;

/// How long an idle mapping lives (RFC 4787 REQ-5 asks for at least two minutes).
pub const MAPPING_IDLE: Duration = Duration::from_secs(180);

/// Mappings served per turn.
const READY_PER_TURN: usize = 128;

/// Datagrams read per socket and turn, so that one busy mapping cannot starve others.
const DATAGRAMS_PER_TURN: usize = 64;

#[cfg(test)]
mod tests {
    use adit_netstack::{Accept, Config, Offload};

    use super::*;

    /// A lane that has room for some packets.
    #[derive(Default)]
    struct Wire {
        left: usize,
        room: Vec<u8>,
        packets: Vec<Vec<u8>>,
    }

    impl PacketSink for Wire {
        fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
            if self.left == 0 {
                return None;
            }
            self.room.resize(len, 0);
            Some(&mut self.room[..len])
        }

        fn commit(&mut self, len: usize, _: Offload) {
            self.left -= 1;
            self.packets.push(self.room[..len].to_vec());
        }
    }

    struct Setting {
        mappings: Mappings,
        stack: Stack,
        origin: std::net::UdpSocket,
        now: Instant,
    }

    fn client(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 86, 0, 2], port))
    }

    impl Setting {
        fn new() -> Self {
            let config = Config {
                accept: Accept::Any,
                ..Config::default()
            };
            let origin = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            origin.set_nonblocking(true).unwrap();
            Self {
                mappings: Mappings::new(),
                stack: Stack::new(config, 1),
                origin,
                now: Instant::now(),
            }
        }

        fn turn(&mut self, wire: &mut Wire) -> bool {
            let cx = Context::from_waker(Waker::noop());
            let pool = Pool::new("test", 0, 1);
            let moved = self
                .mappings
                .poll(&cx, self.now, &pool, &mut self.stack, wire);
            assert_eq!(
                pool.stats().large.outstanding,
                0,
                "between turns nothing is kept"
            );
            moved
        }

        /// Sends from the client's port and returns where the origin sees it from.
        async fn send(&mut self, port: u16) -> SocketAddr {
            let origin = self.origin.local_addr().unwrap();
            self.mappings.send(self.now, client(port), origin, b"ask");
            loop {
                if let Ok((_, from)) = self.origin.recv_from(&mut [0; 16]) {
                    return from;
                }
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn datagrams_stay_in_the_socket_without_room() {
        let mut setting = Setting::new();
        let mapped = setting.send(1000).await;
        let mut wire = Wire::default();
        for number in 0..10u8 {
            setting.origin.send_to(&[number; 8], mapped).unwrap();
        }
        for _ in 0..10 {
            assert!(!setting.turn(&mut wire), "no room, no progress");
            tokio::task::yield_now().await;
        }
        // Room for three at a time loses none either.
        while wire.packets.len() < 10 {
            wire.left = 3;
            setting.turn(&mut wire);
            tokio::task::yield_now().await;
        }
        for (number, packet) in wire.packets.iter().enumerate() {
            assert!(packet.ends_with(&[number as u8; 8]), "{number}");
        }
        assert_eq!(setting.mappings.stats.no_room, 0);
        wire.left = 1;
        while setting.turn(&mut wire) {}
        assert!(
            setting.mappings.ready.is_empty(),
            "all waits for the sockets"
        );
    }

    #[tokio::test]
    async fn socket_for_ipv6_takes_no_ipv4() {
        let mut setting = Setting::new();
        let inner = SocketAddr::from(([0xfd86, 0, 0, 0, 0, 0, 0, 2], 1000));
        let origin = SocketAddr::from((Ipv6Addr::LOCALHOST, 9));
        setting.mappings.send(setting.now, inner, origin, b"ask");
        let mapping = setting.mappings.mappings.get(0).unwrap();
        let socket = mapping.v6.as_ref().unwrap();
        assert!(socket2::SockRef::from(socket).only_v6().unwrap());
        assert!(mapping.v4.is_none());
    }

    #[tokio::test]
    async fn idle_mapping_ends_after_180_s_and_newest_client_takes_the_oldest_ones_place() {
        let mut setting = Setting::new();
        let start = setting.now;
        let origin = setting.origin.local_addr().unwrap();
        // A socket each: the limit of descriptors must allow for them.
        crate::io::limits::raise_open_files().unwrap();
        for port in 0..MAX_MAPPINGS as u16 {
            setting.now += Duration::from_millis(1);
            setting
                .mappings
                .send(setting.now, client(port), origin, b"");
        }
        assert_eq!(setting.mappings.stats.evicted, 0);
        setting.now += Duration::from_millis(1);
        setting
            .mappings
            .send(setting.now, client(5000), origin, b"");
        assert_eq!(setting.mappings.stats.evicted, 1);
        assert!(!setting.mappings.by_client.contains_key(&client(0)));
        assert_eq!(setting.mappings.mappings.len(), MAX_MAPPINGS);
        assert!(
            setting
                .mappings
                .poll_timeout()
                .is_some_and(|due| due > start)
        );
        let end = setting.now + MAPPING_IDLE;
        setting.mappings.handle_timeout(end);
        assert!(setting.mappings.mappings.is_empty());
        assert!(setting.mappings.by_client.is_empty());
        assert_eq!(setting.mappings.poll_timeout(), None);
    }
}
