//! SOCKS5 UDP relays (RFC 1928 section 7), served by the driver.
//!
//! # Theory of operation
//!
//! An association is a UDP socket on the client's side and a port of the inner address. A
//! datagram of the application's names its destination in a header; the header is taken off
//! and the payload leaves from the inner port. Whatever arrives at the inner port, from
//! whomever, goes to the application with the sender in its header: endpoint-independent,
//! as STUN and games need it.
//!
//! Only datagrams from the address that opened the association are taken; the port of the
//! first one is where answers go. A name in a header is given to the resolver, and its
//! datagram waits for the answer.
//!
//! # Limits
//!
//! At most `MAX_ASSOCIATIONS`; at most `MAX_UNRESOLVED` datagrams wait for names in all;
//! an association remembers `MAX_NAMES` names for `NAME_TTL`.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use adit_netstack::{PacketSink, Stack};
use slab::Slab;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use super::proxy::udp_header;
use super::resolve::{Host, NameQueries, NameQuery, ResolveError};
use super::tunnel::{ConnectError, HandleId, Lifeline};
use crate::io::carrier::has_room;
use crate::io::relay::{Notice, ReadySet};

/// Every SOCKS5 UDP relay of a client.
#[derive(Debug)]
pub(super) struct Associations {
    entries: Slab<Association>,
    by_handle: HashMap<HandleId, usize>,
    by_port: HashMap<u16, usize>,
    ready: Arc<ReadySet>,
    lookups: Lookups,
    /// Datagrams whose name has got its address and that wait for room.
    resolved: VecDeque<Resolved>,
    scratch: Vec<u8>,
    stats: AssociationStats,
}

/// What [`Associations`] have counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AssociationStats {
    /// Datagrams of applications that left.
    pub(super) sent: u64,
    /// Datagrams for applications that were handed over.
    pub(super) received: u64,
    /// Datagrams from an address that did not open the association.
    pub(super) foreign_sender: u64,
    /// Datagrams whose header is malformed, or asks for fragmentation.
    pub(super) bad_header: u64,
    /// Datagrams whose name could not be asked for, or has no address.
    pub(super) unresolved: u64,
    /// Datagrams that were not sent: the session has no address for them, or the lane no room for all fragments.
    pub(super) no_room: u64,
    /// Reads of an application's socket that failed.
    pub(super) receive_failed: u64,
    /// Datagrams that the application's socket did not take.
    pub(super) not_taken: u64,
    /// Datagrams for a port that has no association, or before its application spoke.
    pub(super) no_receiver: u64,
}

impl Associations {
    /// Makes an empty table; `first_query` is a random number, so that an answer to one of a former
    /// table is not taken for one of ours.
    pub(super) fn new(names: NameQueries, first_query: u64) -> Self {
        Self {
            entries: Slab::new(),
            by_handle: HashMap::new(),
            by_port: HashMap::new(),
            ready: ReadySet::new(),
            lookups: Lookups {
                names,
                waiting: HashMap::new(),
                next: first_query,
            },
            resolved: VecDeque::new(),
            scratch: Vec::new(),
            stats: AssociationStats::default(),
        }
    }

    /// Returns what was counted.
    pub(super) fn stats(&self) -> &AssociationStats {
        &self.stats
    }

    pub(super) fn insert(
        &mut self,
        stack: &mut Stack,
        handle: HandleId,
        socket: UdpSocket,
        client: IpAddr,
        alive: Lifeline,
    ) -> Result<(), ConnectError> {
        if self.entries.len() >= MAX_ASSOCIATIONS {
            return Err(ConnectError::TooManyFlows);
        }
        let port = stack.bind_udp().ok_or(ConnectError::TooManyFlows)?;
        let entry = self.entries.vacant_entry();
        let key = entry.key();
        let notice = Arc::new(Notice::new(self.ready.clone(), key));
        // The first poll registers the socket's waker.
        notice.queue();
        entry.insert(Association {
            handle,
            socket,
            client,
            application: None,
            port,
            waker: Waker::from(notice.clone()),
            notice,
            names: HashMap::new(),
            _alive: alive,
        });
        self.by_handle.insert(handle, key);
        self.by_port.insert(port, key);
        Ok(())
    }

    pub(super) fn remove(&mut self, stack: &mut Stack, handle: HandleId) {
        let Some(key) = self.by_handle.remove(&handle) else {
            return;
        };
        if let Some(entry) = self.entries.try_remove(key) {
            self.by_port.remove(&entry.port);
            stack.unbind_udp(entry.port);
        }
        self.lookups
            .waiting
            .retain(|_, waiting| waiting.handle != handle);
        self.resolved.retain(|waiting| waiting.handle != handle);
        if self.entries.is_empty() {
            self.scratch = Vec::new();
        }
    }

    /// Hands a datagram that arrived at inner `port` to its application.
    pub(super) fn deliver(&mut self, port: u16, remote: SocketAddr, payload: &[u8]) {
        let entry = self
            .by_port
            .get(&port)
            .and_then(|key| self.entries.get(*key));
        let Some((entry, application)) = entry.and_then(|e| Some((e, e.application?))) else {
            self.stats.no_receiver += 1;
            return;
        };
        self.scratch.clear();
        udp_header::encode(remote, &mut self.scratch);
        self.scratch.extend_from_slice(payload);
        match socket2::SockRef::from(&entry.socket).send_to(&self.scratch, &application.into()) {
            Ok(_) => self.stats.received += 1,
            Err(_) => self.stats.not_taken += 1,
        }
    }

    /// Takes the answer to `query`: what waited for it leaves when there is room.
    pub(super) fn resolved(
        &mut self,
        now: Instant,
        query: u64,
        addresses: Result<Vec<IpAddr>, ResolveError>,
    ) {
        let Some(waiting) = self.lookups.waiting.remove(&query) else {
            return;
        };
        let address = addresses.ok().and_then(|all| all.first().copied());
        let entry = self
            .by_handle
            .get(&waiting.handle)
            .and_then(|key| self.entries.get_mut(*key));
        let (Some(address), Some(entry)) = (address, entry) else {
            self.stats.unresolved += 1;
            return;
        };
        entry.remember(now, waiting.host, address);
        self.resolved.push_back(Resolved {
            handle: waiting.handle,
            to: SocketAddr::new(address, waiting.port),
            payload: waiting.payload,
        });
    }

    /// Moves what applications have sent into the tunnel; returns whether there was any.
    ///
    /// Without room in `sink`, datagrams stay in the applications' sockets.
    pub(super) fn poll<S: PacketSink>(
        &mut self,
        cx: &Context<'_>,
        now: Instant,
        stack: &mut Stack,
        sink: &mut S,
    ) -> bool {
        self.ready.register(cx);
        let mut any = self.poll_resolved(stack, sink);
        for _ in 0..READY_PER_TURN {
            if self.ready.is_empty() || !has_room(sink) {
                return any;
            }
            let Some(key) = self.ready.pop() else { break };
            any = true;
            self.poll_one(key, now, stack, sink);
        }
        any
    }

    fn poll_resolved<S: PacketSink>(&mut self, stack: &mut Stack, sink: &mut S) -> bool {
        let mut any = false;
        while !self.resolved.is_empty() && has_room(sink) {
            let Some(waiting) = self.resolved.pop_front() else {
                break;
            };
            any = true;
            let entry = self
                .by_handle
                .get(&waiting.handle)
                .and_then(|key| self.entries.get(*key));
            let sent = entry.is_some_and(|e| e.send(stack, sink, waiting.to, &waiting.payload));
            self.stats.count_sent(sent);
        }
        any
    }

    /// Serves one association: reads until its socket has nothing, its turn is over, or there is
    /// no room.
    fn poll_one<S: PacketSink>(
        &mut self,
        key: usize,
        now: Instant,
        stack: &mut Stack,
        sink: &mut S,
    ) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.notice.taken();
        self.scratch.resize(MAX_DATAGRAM, 0);
        let mut wake = Context::from_waker(&entry.waker);
        let mut errors = 0;
        for _ in 0..DATAGRAMS_PER_TURN {
            if !has_room(sink) {
                break;
            }
            let mut buffer = ReadBuf::new(&mut self.scratch);
            let from = match entry.socket.poll_recv_from(&mut wake, &mut buffer) {
                Poll::Pending => return,
                Poll::Ready(Ok(from)) => from,
                // What an earlier datagram met with; the next read may find one that came.
                Poll::Ready(Err(_)) => {
                    self.stats.receive_failed += 1;
                    errors += 1;
                    continue;
                }
            };
            if from.ip() != entry.client || entry.application.is_some_and(|known| known != from) {
                self.stats.foreign_sender += 1;
                continue;
            }
            entry.application = Some(from);
            let Ok((host, port, payload)) = udp_header::decode(buffer.filled()) else {
                self.stats.bad_header += 1;
                continue;
            };
            if let Some(address) = entry.address_of(now, &host) {
                let to = SocketAddr::new(address, port);
                let sent = entry.send(stack, sink, to, payload);
                self.stats.count_sent(sent);
                continue;
            }
            let asked = self.lookups.ask(
                host.clone(),
                Unresolved {
                    handle: entry.handle,
                    until: now + RESOLVE_TIMEOUT,
                    host,
                    port,
                    payload: payload.to_vec(),
                },
                now,
            );
            if !asked {
                self.stats.unresolved += 1;
            }
        }
        // A socket that has nothing but errors gets its turn when something arrives.
        if errors < DATAGRAMS_PER_TURN {
            entry.notice.queue();
        }
    }
}

/// Names that the resolver was asked for.
#[derive(Debug)]
struct Lookups {
    names: NameQueries,
    waiting: HashMap<u64, Unresolved>,
    next: u64,
}

impl Lookups {
    /// Asks for `host`, and keeps the datagram until the answer is there; false if it cannot.
    fn ask(&mut self, host: Host, waiting: Unresolved, now: Instant) -> bool {
        if self.waiting.len() >= MAX_UNRESOLVED {
            // Those that no answer will come for any more.
            self.waiting.retain(|_, waiting| now < waiting.until);
        }
        if self.waiting.len() >= MAX_UNRESOLVED {
            return false;
        }
        let query = self.next;
        if self.names.try_send(NameQuery { query, host }).is_err() {
            return false;
        }
        self.next = self.next.wrapping_add(1);
        self.waiting.insert(query, waiting);
        true
    }
}

impl AssociationStats {
    fn count_sent(&mut self, sent: bool) {
        if sent {
            self.sent += 1;
        } else {
            self.no_room += 1;
        }
    }
}

#[derive(Debug)]
struct Association {
    handle: HandleId,
    socket: UdpSocket,
    /// The only address that may use it.
    client: IpAddr,
    /// Where answers go: where the first datagram came from.
    application: Option<SocketAddr>,
    /// The inner port.
    port: u16,
    waker: Waker,
    notice: Arc<Notice>,
    names: HashMap<Host, (IpAddr, Instant)>,
    _alive: Lifeline,
}

impl Association {
    fn address_of(&self, now: Instant, host: &Host) -> Option<IpAddr> {
        match host {
            Host::Ip(address) => Some(*address),
            Host::Name(_) => self
                .names
                .get(host)
                .filter(|(_, until)| now < *until)
                .map(|(address, _)| *address),
        }
    }

    fn remember(&mut self, now: Instant, host: Host, address: IpAddr) {
        if self.names.len() >= MAX_NAMES {
            self.names.clear();
        }
        self.names.insert(host, (address, now + NAME_TTL));
    }

    fn send<S: PacketSink>(
        &self,
        stack: &mut Stack,
        sink: &mut S,
        to: SocketAddr,
        payload: &[u8],
    ) -> bool {
        stack.own_address(to.ip()).is_some_and(|own| {
            stack
                .send_udp(sink, SocketAddr::new(own, self.port), to, payload)
                .is_ok()
        })
    }
}

/// A datagram that waits for its name's address.
#[derive(Debug)]
struct Unresolved {
    handle: HandleId,
    until: Instant,
    host: Host,
    port: u16,
    payload: Vec<u8>,
}

/// A datagram that waits for room.
#[derive(Debug)]
struct Resolved {
    handle: HandleId,
    to: SocketAddr,
    payload: Vec<u8>,
}

/// Associations of one client: applications that speak UDP at the same time.
const MAX_ASSOCIATIONS: usize = 1024;

/// Datagrams that wait for a name.
const MAX_UNRESOLVED: usize = 256;

/// How long a datagram waits for its name: longer than the resolver tries.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(30);

/// Names that one association remembers.
const MAX_NAMES: usize = 64;

/// How long it remembers them: short, since it does not know their TTL.
const NAME_TTL: Duration = Duration::from_secs(30);

/// The largest datagram there is.
const MAX_DATAGRAM: usize = 65_536;

/// Associations served per turn.
const READY_PER_TURN: usize = 128;

/// Datagrams read per association and turn.
const DATAGRAMS_PER_TURN: usize = 64;

#[cfg(test)]
mod tests {
    use adit_netstack::{Config, Offload};
    use tokio::sync::mpsc;

    use super::*;

    /// A lane that has room or not.
    #[derive(Default)]
    struct Wire {
        full: bool,
        room: Vec<u8>,
        packets: Vec<Vec<u8>>,
    }

    impl PacketSink for Wire {
        fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
            if self.full {
                return None;
            }
            self.room.resize(len, 0);
            Some(&mut self.room[..len])
        }

        fn commit(&mut self, len: usize, _: Offload) {
            self.packets.push(self.room[..len].to_vec());
        }
    }

    struct Setting {
        associations: Associations,
        stack: Stack,
        asked: mpsc::Receiver<NameQuery>,
        application: std::net::UdpSocket,
    }

    impl Setting {
        fn new() -> Self {
            let config = Config {
                addresses: vec![[10, 86, 0, 2].into()],
                ..Config::default()
            };
            let (names, asked) = mpsc::channel(MAX_UNRESOLVED);
            Self {
                associations: Associations::new(names, 70),
                stack: Stack::new(config, 1),
                asked,
                application: std::net::UdpSocket::bind("127.0.0.1:0").unwrap(),
            }
        }

        /// Adds an association and returns where its application sends to.
        async fn associate(&mut self, number: u64) -> SocketAddr {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let address = socket.local_addr().unwrap();
            self.associations
                .insert(
                    &mut self.stack,
                    HandleId::numbered(number),
                    socket,
                    self.application.local_addr().unwrap().ip(),
                    Lifeline::pair().0,
                )
                .unwrap();
            address
        }

        fn turn(&mut self, wire: &mut Wire) -> bool {
            let cx = Context::from_waker(Waker::noop());
            let now = Instant::now();
            self.associations.poll(&cx, now, &mut self.stack, wire)
        }

        /// Takes turns until the association at work has read everything that was sent.
        async fn settle(&mut self, wire: &mut Wire, packets: usize) {
            while wire.packets.len() < packets {
                self.turn(wire);
                tokio::task::yield_now().await;
            }
            while self.turn(wire) {}
        }

        fn send(&self, to: SocketAddr, header: &[u8], payload: &[u8]) {
            let datagram = [header, payload].concat();
            self.application.send_to(&datagram, to).unwrap();
        }
    }

    /// RSV, FRAG, ATYP, 192.0.2.1, port 53 (RFC 1928 section 7).
    const TO_ADDRESS: &[u8] = &[0, 0, 0, 1, 192, 0, 2, 1, 0, 53];

    /// The same to the name `a.test`.
    const TO_NAME: &[u8] = b"\0\0\0\x03\x06a.test\0\x35";

    #[tokio::test]
    async fn datagrams_stay_in_the_socket_without_room() {
        let mut setting = Setting::new();
        let relay = setting.associate(1).await;
        let mut wire = Wire {
            full: true,
            ..Wire::default()
        };
        for _ in 0..5 {
            setting.send(relay, TO_ADDRESS, b"payload");
        }
        for _ in 0..10 {
            assert!(!setting.turn(&mut wire), "no room, no progress");
            tokio::task::yield_now().await;
        }
        wire.full = false;
        setting.settle(&mut wire, 5).await;
        assert!(
            wire.packets
                .iter()
                .all(|packet| packet.ends_with(b"payload"))
        );
        assert_eq!(setting.associations.stats.sent, 5);
    }

    #[tokio::test]
    async fn every_one_of_many_associations_is_heard() {
        let mut setting = Setting::new();
        let mut relays = Vec::new();
        for number in 0..2 * READY_PER_TURN as u64 + 10 {
            relays.push(setting.associate(number).await);
        }
        let mut wire = Wire::default();
        while setting.turn(&mut wire) {}
        assert!(
            setting.associations.ready.is_empty(),
            "all wait for their sockets"
        );
        setting.send(relays[relays.len() - 1], TO_ADDRESS, b"last");
        setting.settle(&mut wire, 1).await;
        assert!(wire.packets[0].ends_with(b"last"));
    }

    #[tokio::test]
    async fn datagram_to_a_name_leaves_with_its_answer_once_there_is_room() {
        let mut setting = Setting::new();
        let relay = setting.associate(1).await;
        setting.send(relay, TO_NAME, b"named");
        let mut wire = Wire::default();
        let query = loop {
            setting.turn(&mut wire);
            if let Ok(query) = setting.asked.try_recv() {
                break query;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(query.query, 70, "numbers start where they were told to");
        let now = Instant::now();
        let answer = || Ok(vec![[192, 0, 2, 9].into()]);
        setting.associations.resolved(now, 69, answer());
        assert_eq!(setting.associations.lookups.waiting.len(), 1, "not ours");
        setting.associations.resolved(now, 70, answer());
        assert!(setting.associations.lookups.waiting.is_empty());
        wire.full = true;
        setting.turn(&mut wire);
        assert!(wire.packets.is_empty());
        wire.full = false;
        setting.settle(&mut wire, 1).await;
        assert!(wire.packets[0].ends_with(b"named"));
        // The name is known now.
        setting.send(relay, TO_NAME, b"again");
        setting.settle(&mut wire, 2).await;
        assert!(setting.asked.try_recv().is_err());
    }

    #[tokio::test]
    async fn lookups_without_an_answer_make_room_in_the_end() {
        let mut setting = Setting::new();
        let now = Instant::now();
        let waiting = |until| Unresolved {
            handle: HandleId::numbered(1),
            until,
            host: Host::parse(b"a.test").unwrap(),
            port: 53,
            payload: Vec::new(),
        };
        let host = || Host::parse(b"a.test").unwrap();
        let lookups = &mut setting.associations.lookups;
        for _ in 0..MAX_UNRESOLVED {
            assert!(lookups.ask(host(), waiting(now + RESOLVE_TIMEOUT), now));
            setting.asked.try_recv().unwrap();
        }
        assert!(!lookups.ask(host(), waiting(now + RESOLVE_TIMEOUT), now));
        let later = now + RESOLVE_TIMEOUT;
        assert!(lookups.ask(host(), waiting(later + RESOLVE_TIMEOUT), later));
        assert_eq!(lookups.waiting.len(), 1);
    }

    #[tokio::test]
    async fn removed_association_leaves_nothing_behind() {
        let mut setting = Setting::new();
        let relay = setting.associate(1).await;
        setting.send(relay, TO_NAME, b"named");
        let mut wire = Wire::default();
        while setting.asked.try_recv().is_err() {
            setting.turn(&mut wire);
            tokio::task::yield_now().await;
        }
        setting
            .associations
            .remove(&mut setting.stack, HandleId::numbered(1));
        let associations = &setting.associations;
        assert!(associations.entries.is_empty() && associations.by_handle.is_empty());
        assert!(associations.by_port.is_empty() && associations.lookups.waiting.is_empty());
        assert_eq!(associations.scratch.capacity(), 0);
    }
}
