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
//! [Rules](super::rules) judge each datagram as it leaves: the tunnel carries it, or a socket of this host beside the
//! inner port, or it is dropped. What arrives at either is not judged: to let a datagram out is to want its answer.
//!
//! ```text
//!                                      ┌─ tunnel ─▶ inner port ──▶ lane      ◀── whoever answers there
//!  application ──▶ header ──▶ rules ───┤
//!                                      └─ direct ─▶ host's port ─▶ network   ◀── whoever answers there
//! ```
//!
//! Without room in the lane datagrams stay in the applications' sockets, which pushes back. Those of an association whose
//! rules send some directly are read all the same, or a lane that stands still would hold up what does not need it; what
//! is for the tunnel waits then, or is dropped.
//!
//! # Limits
//!
//! At most `MAX_ASSOCIATIONS`, each with a socket of either family beside the tunnel at most; at most `MAX_UNRESOLVED`
//! datagrams wait for names in all, and `MAX_WAITING` for room; an association remembers `MAX_NAMES` names for `NAME_TTL`.

mod entry;
mod lookups;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use adit_netstack::{PacketSink, Stack};
use slab::Slab;
use tokio::io::ReadBuf;

pub(super) use self::entry::Application;
use self::entry::{Association, Route};
use self::lookups::{Lookups, Unresolved};
use super::proxy::udp_header;
use super::resolve::{Found, NameQueries, ResolveError};
use super::rules::Way;
use super::tunnel::{ConnectError, HandleId};
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
    /// Datagrams for the tunnel that wait for room.
    waiting: VecDeque<Waiting>,
    /// What was read last.
    scratch: Vec<u8>,
    /// The same with a header in front.
    headed: Vec<u8>,
    stats: AssociationStats,
}

/// What [`Associations`] have counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AssociationStats {
    /// Datagrams of applications that left.
    pub(crate) sent: u64,
    /// Those of them that left directly.
    pub(crate) direct: u64,
    /// Datagrams that the rules drop.
    pub(crate) blocked: u64,
    /// Datagrams that were to leave directly and that this host did not take.
    pub(crate) not_direct: u64,
    /// Datagrams for applications that were handed over.
    pub(crate) received: u64,
    /// Datagrams from an address that did not open the association.
    pub(crate) foreign_sender: u64,
    /// Datagrams whose header is malformed, or asks for fragmentation.
    pub(crate) bad_header: u64,
    /// Datagrams whose name could not be asked for, or has no address.
    pub(crate) unresolved: u64,
    /// Datagrams that were not sent: the session has no address for them, or the lane no room for all fragments.
    pub(crate) no_room: u64,
    /// Reads of an application's socket that failed.
    pub(crate) receive_failed: u64,
    /// Datagrams that the application's socket did not take.
    pub(crate) not_taken: u64,
    /// Datagrams for a port that has no association, or before its application spoke.
    pub(crate) no_receiver: u64,
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
            lookups: Lookups::new(names, first_query),
            waiting: VecDeque::new(),
            scratch: Vec::new(),
            headed: Vec::new(),
            stats: AssociationStats::default(),
        }
    }

    /// Returns how many there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Counts the sockets beside the tunnel.
    pub(super) fn direct_sockets(&self) -> usize {
        self.entries.iter().map(|(_, it)| it.direct.sockets()).sum()
    }

    /// Returns what was counted.
    pub(super) fn stats(&self) -> &AssociationStats {
        &self.stats
    }

    /// Takes an association up.
    pub(super) fn insert(
        &mut self,
        stack: &mut Stack,
        handle: HandleId,
        application: Application,
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
        entry.insert(Association::new(handle, application, port, notice));
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
        self.lookups.forget(handle);
        self.waiting.retain(|waiting| waiting.handle != handle);
        if self.entries.is_empty() {
            self.scratch = Vec::new();
            self.headed = Vec::new();
        }
    }

    /// Hands a datagram that arrived at inner `port` to its application.
    pub(super) fn deliver(&mut self, port: u16, remote: SocketAddr, payload: &[u8]) {
        let entry = self
            .by_port
            .get(&port)
            .and_then(|key| self.entries.get(*key));
        match entry {
            Some(entry) => hand_over(entry, remote, payload, &mut self.headed, &mut self.stats),
            None => self.stats.no_receiver += 1,
        }
    }

    /// Takes the answer to `query`: what waited for it leaves when there is room.
    pub(super) fn resolved(
        &mut self,
        now: Instant,
        query: u64,
        found: Result<Found, ResolveError>,
    ) {
        let Some(asked) = self.lookups.take(query) else {
            return;
        };
        let entry = self
            .by_handle
            .get(&asked.handle)
            .and_then(|key| self.entries.get_mut(*key));
        let (Ok(found), Some(entry)) = (found, entry) else {
            self.stats.unresolved += 1;
            return;
        };
        entry.remember(now, asked.host.clone(), asked.by, found);
        match entry.route(now, &asked.host, asked.port) {
            Route::Send(Way::Tunnel, to) if self.waiting.len() < MAX_WAITING => {
                self.waiting.push_back(Waiting {
                    handle: asked.handle,
                    to,
                    payload: asked.payload,
                });
            }
            Route::Send(Way::Tunnel, _) => self.stats.no_room += 1,
            Route::Send(Way::Direct, to) => {
                send_directly(entry, to, &asked.payload, &mut self.stats);
            }
            Route::Blocked => self.stats.blocked += 1,
            // The rules have changed, and say that somebody else is to be asked.
            Route::Ask(_) => self.stats.unresolved += 1,
        }
    }

    /// Moves what applications have sent to where it goes; returns whether there was any.
    ///
    /// `sink` is room in a lane, if there is a session. Without room, datagrams stay in the applications' sockets, but for
    /// those of associations that may send directly.
    pub(super) fn poll<S: PacketSink>(
        &mut self,
        cx: &Context<'_>,
        now: Instant,
        stack: &mut Stack,
        mut sink: Option<&mut S>,
    ) -> bool {
        self.ready.register(cx);
        let mut any = false;
        if let Some(sink) = sink.as_deref_mut() {
            any |= self.poll_waiting(stack, sink);
        }
        let mut passed_over = Vec::new();
        for _ in 0..READY_PER_TURN {
            let Some(key) = self.ready.pop() else { break };
            let goes_on = with_room(&mut sink).is_some()
                || self.entries.get(key).is_some_and(Association::has_direct);
            if !goes_on {
                passed_over.push(key);
                continue;
            }
            any = true;
            self.poll_one(key, now, stack, sink.as_deref_mut());
        }
        // They keep their turn until there is room.
        for key in passed_over {
            if let Some(entry) = self.entries.get(key) {
                entry.notice.taken();
                entry.notice.queue();
            }
        }
        any
    }

    fn poll_waiting<S: PacketSink>(&mut self, stack: &mut Stack, sink: &mut S) -> bool {
        let mut any = false;
        while !self.waiting.is_empty() && has_room(sink) {
            let Some(waiting) = self.waiting.pop_front() else {
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

    /// Serves one association: reads until its sockets have nothing, its turn is over, or there is no room.
    fn poll_one<S: PacketSink>(
        &mut self,
        key: usize,
        now: Instant,
        stack: &mut Stack,
        mut sink: Option<&mut S>,
    ) {
        let Some(entry) = self.entries.get(key) else {
            return;
        };
        entry.notice.taken();
        let may_wait = entry.has_direct();
        let mut read = Read::Something;
        let mut errors = 0;
        for _ in 0..DATAGRAMS_PER_TURN {
            let sink = with_room(&mut sink);
            if sink.is_none() && !may_wait {
                break;
            }
            read = self.poll_application(key, now, stack, sink);
            match read {
                Read::Something => {}
                Read::Failed => errors += 1,
                Read::Nothing => break,
            }
        }
        // After what was sent: a socket that it has opened is listened to from here on.
        let answers = self.poll_direct(key);
        // A socket that has nothing but errors gets its turn when something arrives.
        let questions = read != Read::Nothing && errors < DATAGRAMS_PER_TURN;
        if (questions || answers)
            && let Some(entry) = self.entries.get(key)
        {
            entry.notice.queue();
        }
    }

    /// Reads one datagram of an application and sends it where it goes.
    fn poll_application<S: PacketSink>(
        &mut self,
        key: usize,
        now: Instant,
        stack: &mut Stack,
        sink: Option<&mut S>,
    ) -> Read {
        let Some(entry) = self.entries.get_mut(key) else {
            return Read::Nothing;
        };
        self.scratch.resize(MAX_DATAGRAM, 0);
        let mut wake = Context::from_waker(&entry.waker);
        let mut buffer = ReadBuf::new(&mut self.scratch);
        let from = match entry.socket.poll_recv_from(&mut wake, &mut buffer) {
            Poll::Pending => return Read::Nothing,
            Poll::Ready(Ok(from)) => from,
            // What an earlier datagram met with; the next read may find one that came.
            Poll::Ready(Err(_)) => {
                self.stats.receive_failed += 1;
                return Read::Failed;
            }
        };
        if !entry.admit(from) {
            self.stats.foreign_sender += 1;
            return Read::Something;
        }
        let Ok((host, port, payload)) = udp_header::decode(buffer.filled()) else {
            self.stats.bad_header += 1;
            return Read::Something;
        };
        match entry.route(now, &host, port) {
            Route::Send(Way::Tunnel, to) => match sink {
                Some(sink) => {
                    let sent = entry.send(stack, sink, to, payload);
                    self.stats.count_sent(sent);
                }
                None if self.waiting.len() < MAX_WAITING => self.waiting.push_back(Waiting {
                    handle: entry.handle,
                    to,
                    payload: payload.to_vec(),
                }),
                None => self.stats.no_room += 1,
            },
            Route::Send(Way::Direct, to) => send_directly(entry, to, payload, &mut self.stats),
            Route::Blocked => self.stats.blocked += 1,
            Route::Ask(by) => {
                let asked = Unresolved {
                    handle: entry.handle,
                    host,
                    by,
                    port,
                    payload: payload.to_vec(),
                };
                if !self.lookups.ask(now, asked) {
                    self.stats.unresolved += 1;
                }
            }
        }
        Read::Something
    }

    /// Hands an application what came beside the tunnel; returns whether there may be more.
    fn poll_direct(&mut self, key: usize) -> bool {
        let Some(entry) = self.entries.get(key) else {
            return false;
        };
        let mut wake = Context::from_waker(&entry.waker);
        let mut errors = 0;
        self.scratch.resize(MAX_DATAGRAM, 0);
        for _ in 0..DATAGRAMS_PER_TURN {
            let mut buffer = ReadBuf::new(&mut self.scratch);
            match entry.direct.poll_recv_from(&mut wake, &mut buffer) {
                Poll::Pending => return false,
                Poll::Ready(Ok(from)) => {
                    let payload = buffer.filled();
                    hand_over(entry, from, payload, &mut self.headed, &mut self.stats);
                }
                Poll::Ready(Err(_)) => {
                    self.stats.receive_failed += 1;
                    errors += 1;
                }
            }
        }
        errors < DATAGRAMS_PER_TURN
    }
}

/// Lends a lane that has room.
fn with_room<'a, S: PacketSink>(sink: &'a mut Option<&mut S>) -> Option<&'a mut S> {
    let sink = sink.as_deref_mut()?;
    has_room(sink).then_some(sink)
}

/// Hands a datagram of `remote` to its application.
fn hand_over(
    entry: &Association,
    remote: SocketAddr,
    payload: &[u8],
    headed: &mut Vec<u8>,
    stats: &mut AssociationStats,
) {
    let Some(application) = entry.application() else {
        stats.no_receiver += 1;
        return;
    };
    headed.clear();
    udp_header::encode(remote, headed);
    headed.extend_from_slice(payload);
    match socket2::SockRef::from(&entry.socket).send_to(headed, &application.into()) {
        Ok(_) => stats.received += 1,
        Err(_) => stats.not_taken += 1,
    }
}

fn send_directly(
    entry: &mut Association,
    to: SocketAddr,
    payload: &[u8],
    stats: &mut AssociationStats,
) {
    match entry.direct.send_to(payload, to) {
        Ok(()) => {
            stats.sent += 1;
            stats.direct += 1;
            // A socket that it has opened is to be listened to.
            entry.notice.queue();
        }
        Err(_) => stats.not_direct += 1,
    }
}

/// What reading an application's socket gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    Something,
    Failed,
    Nothing,
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

/// A datagram that waits for room.
#[derive(Debug)]
struct Waiting {
    handle: HandleId,
    to: SocketAddr,
    payload: Vec<u8>,
}

/// Associations of one client: applications that speak UDP at the same time.
const MAX_ASSOCIATIONS: usize = 1024;

/// Datagrams that wait for room in the lane, those whose name has just got its address among them.
const MAX_WAITING: usize = 256;

/// The largest datagram there is.
const MAX_DATAGRAM: usize = 65_536;

/// Associations served per turn.
const READY_PER_TURN: usize = 128;

/// Datagrams read per socket of an association and turn.
const DATAGRAMS_PER_TURN: usize = 64;

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use adit_netstack::{Config, Offload};
    use tokio::net::UdpSocket;
    use tokio::sync::mpsc;

    use super::*;
    use crate::client::resolve::NameQuery;
    use crate::client::rules::{InForce, Replace, ResolvedBy, Rules, listed};
    use crate::client::tunnel::Lifeline;
    use crate::io::outside::Outside;

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
        replace: Replace,
        rules: InForce,
    }

    impl Setting {
        fn new() -> Self {
            let config = Config {
                addresses: vec![[10, 86, 0, 2].into()],
                ..Config::default()
            };
            let (names, asked) = mpsc::channel(8);
            let (replace, rules) = InForce::new(Rules::default());
            Self {
                associations: Associations::new(names, 70),
                stack: Stack::new(config, 1),
                asked,
                application: std::net::UdpSocket::bind("127.0.0.1:0").unwrap(),
                replace,
                rules,
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
                    Application {
                        socket,
                        client: self.application.local_addr().unwrap().ip(),
                        rules: self.rules.clone(),
                        alive: Lifeline::pair().0,
                        outside: Outside::default(),
                    },
                )
                .unwrap();
            address
        }

        fn turn(&mut self, wire: &mut Wire) -> bool {
            let cx = Context::from_waker(Waker::noop());
            let now = Instant::now();
            (self.associations).poll(&cx, now, &mut self.stack, Some(wire))
        }

        /// Takes turns until the association at work has read everything that was sent.
        async fn settle(&mut self, wire: &mut Wire, packets: usize) {
            while wire.packets.len() < packets {
                self.turn(wire);
                tokio::task::yield_now().await;
            }
            while self.turn(wire) {}
        }

        /// Takes turns until a name is asked for.
        async fn asks(&mut self, wire: &mut Wire) -> NameQuery {
            loop {
                self.turn(wire);
                if let Ok(query) = self.asked.try_recv() {
                    return query;
                }
                tokio::task::yield_now().await;
            }
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

    /// The address of a name, as it is said by somebody.
    fn found(by: ResolvedBy) -> Result<Found, ResolveError> {
        Ok(Found {
            addresses: vec![[192, 0, 2, 9].into()],
            by,
        })
    }

    #[tokio::test]
    async fn datagram_to_a_name_leaves_with_its_answer_once_there_is_room() {
        let mut setting = Setting::new();
        let relay = setting.associate(1).await;
        setting.send(relay, TO_NAME, b"named");
        let mut wire = Wire::default();
        let query = setting.asks(&mut wire).await;
        assert_eq!(query.query, 70, "numbers start where they were told to");
        let now = Instant::now();
        let answer = || found(ResolvedBy::Tunnel);
        setting.associations.resolved(now, 69, answer());
        assert_eq!(setting.associations.lookups.len(), 1, "not ours");
        setting.associations.resolved(now, 70, answer());
        assert!(setting.associations.lookups.len() == 0);
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
    async fn datagram_whose_name_is_found_is_dropped_where_too_many_wait() {
        let mut setting = Setting::new();
        let relay = setting.associate(1).await;
        setting.send(relay, TO_NAME, b"named");
        let mut wire = Wire::default();
        setting.asks(&mut wire).await;
        let associations = &mut setting.associations;
        associations
            .waiting
            .extend((0..MAX_WAITING).map(|_| Waiting {
                handle: HandleId::numbered(1),
                to: ([192, 0, 2, 1], 53).into(),
                payload: Vec::new(),
            }));
        associations.resolved(Instant::now(), 70, found(ResolvedBy::Tunnel));
        assert_eq!(associations.waiting.len(), MAX_WAITING);
        assert_eq!(associations.stats.no_room, 1);
    }

    #[tokio::test]
    async fn removed_association_leaves_nothing_behind() {
        let mut setting = Setting::new();
        let relay = setting.associate(1).await;
        setting.send(relay, TO_NAME, b"named");
        let mut wire = Wire::default();
        setting.asks(&mut wire).await;
        setting
            .associations
            .remove(&mut setting.stack, HandleId::numbered(1));
        let associations = &setting.associations;
        assert!(associations.entries.is_empty() && associations.by_handle.is_empty());
        assert!(associations.by_port.is_empty() && associations.lookups.len() == 0);
        assert_eq!(associations.scratch.capacity(), 0);
    }

    impl Setting {
        /// Takes turns, with or without room, until an application has heard something.
        async fn answer(&mut self, wire: Option<&mut Wire>) -> (SocketAddr, Vec<u8>) {
            let mut wire = wire;
            self.application.set_nonblocking(true).unwrap();
            let mut datagram = [0; 64];
            loop {
                let cx = Context::from_waker(Waker::noop());
                let now = Instant::now();
                let wire = wire.as_deref_mut();
                (self.associations).poll(&cx, now, &mut self.stack, wire);
                tokio::task::yield_now().await;
                if let Ok(len) = self.application.recv(&mut datagram) {
                    let (host, port, payload) = udp_header::decode(&datagram[..len]).unwrap();
                    let crate::client::resolve::Host::Ip(ip) = host else {
                        panic!("an address tells who answers");
                    };
                    return (SocketAddr::new(ip, port), payload.to_vec());
                }
            }
        }
    }

    /// A header that names an address.
    fn header(to: SocketAddr) -> Vec<u8> {
        let mut header = Vec::new();
        udp_header::encode(to, &mut header);
        header
    }

    /// A socket of the host's own network, and the header that names it.
    fn outside() -> (std::net::UdpSocket, SocketAddr) {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    #[tokio::test]
    async fn each_datagram_goes_the_way_that_the_rules_give_it_at_that_moment() {
        let mut setting = Setting::new();
        setting
            .replace
            .put(listed(&["direct 127.0.0.0/8", "block port 9"]));
        let relay = setting.associate(1).await;
        let mut wire = Wire::default();
        let (far, address) = outside();
        setting.send(relay, TO_ADDRESS, b"tunnel");
        setting.send(relay, &header(([192, 0, 2, 1], 9).into()), b"blocked");
        setting.send(relay, &header(address), b"direct");
        setting.settle(&mut wire, 1).await;
        let mut got = [0; 16];
        let (len, from) = loop {
            setting.turn(&mut wire);
            tokio::task::yield_now().await;
            if setting.associations.stats.direct == 1 {
                break far.recv_from(&mut got).unwrap();
            }
        };
        assert_eq!(&got[..len], b"direct");
        far.send_to(b"answer", from).unwrap();
        let (who, payload) = setting.answer(Some(&mut wire)).await;
        assert_eq!((who, &payload[..]), (address, &b"answer"[..]));
        let stats = setting.associations.stats;
        assert_eq!((stats.sent, stats.direct, stats.blocked), (2, 1, 1));
        assert!(wire.packets.len() == 1 && wire.packets[0].ends_with(b"tunnel"));

        setting.replace.put(listed(&["block 192.0.2.0/24"]));
        setting.send(relay, &header(address), b"tunnel now");
        setting.send(relay, TO_ADDRESS, b"blocked now");
        setting.settle(&mut wire, 2).await;
        while setting.associations.stats.blocked < 2 {
            setting.turn(&mut wire);
            tokio::task::yield_now().await;
        }
        assert!(wire.packets.len() == 2 && wire.packets[1].ends_with(b"tunnel now"));
    }

    #[tokio::test]
    async fn direct_datagrams_do_not_wait_for_the_tunnel_and_those_for_it_are_kept_within_bounds() {
        let mut setting = Setting::new();
        setting.replace.put(listed(&["direct 127.0.0.0/8"]));
        let relay = setting.associate(1).await;
        let (far, address) = outside();
        for number in 0..MAX_WAITING + 3 {
            setting.send(relay, TO_ADDRESS, &number.to_be_bytes());
            if number % 32 == 0 {
                let mut full = Wire {
                    full: true,
                    ..Wire::default()
                };
                setting.turn(&mut full);
                tokio::task::yield_now().await;
            }
        }
        setting.send(relay, &header(address), b"direct");
        far.set_nonblocking(true).unwrap();
        let mut got = [0; 16];
        let from = loop {
            let cx = Context::from_waker(Waker::noop());
            let now = Instant::now();
            let none: Option<&mut Wire> = None;
            (setting.associations).poll(&cx, now, &mut setting.stack, none);
            tokio::task::yield_now().await;
            if let Ok((_, from)) = far.recv_from(&mut got) {
                break from;
            }
        };
        far.send_to(b"answer", from).unwrap();
        assert_eq!(setting.answer(None).await.0, address);
        assert_eq!(setting.associations.waiting.len(), MAX_WAITING);
        assert_eq!(setting.associations.stats.no_room, 3);
        let mut wire = Wire::default();
        setting.settle(&mut wire, MAX_WAITING).await;
        assert!(
            wire.packets[0].ends_with(&0_usize.to_be_bytes()),
            "in order"
        );
    }

    #[tokio::test]
    async fn name_is_asked_of_the_resolver_that_the_rules_say_and_its_addresses_are_judged() {
        let mut setting = Setting::new();
        setting
            .replace
            .put(listed(&["block 192.0.2.0/24", "direct a.test"]));
        let relay = setting.associate(1).await;
        let mut wire = Wire::default();
        let mut ask = async |setting: &mut Setting| {
            setting.send(relay, TO_NAME, b"named");
            loop {
                setting.turn(&mut wire);
                if let Ok(query) = setting.asked.try_recv() {
                    return query;
                }
                tokio::task::yield_now().await;
            }
        };
        let query = ask(&mut setting).await;
        assert_eq!(query.by, ResolvedBy::Host);
        let now = Instant::now();
        let answer = found(ResolvedBy::Host);
        setting.associations.resolved(now, query.query, answer);
        assert_eq!(setting.associations.stats.blocked, 1);
        // What one resolver has said is not what the other says.
        setting.replace.put(Rules::default());
        let query = ask(&mut setting).await;
        assert_eq!(query.by, ResolvedBy::Tunnel);
        let answer = found(ResolvedBy::Tunnel);
        setting.associations.resolved(now, query.query, answer);
        setting.settle(&mut wire, 1).await;
        assert!(wire.packets[0].ends_with(b"named"));
    }

    #[tokio::test]
    async fn name_is_judged_by_who_has_said_its_addresses_and_not_by_who_was_to_be_asked() {
        let mut setting = Setting::new();
        setting.replace.put(listed(&["direct 127.0.0.0/8"]));
        let mut wire = Wire::default();
        for (association, by) in [(1, ResolvedBy::Tunnel), (2, ResolvedBy::Record)] {
            let relay = setting.associate(association).await;
            setting.send(relay, TO_NAME, b"named");
            let query = setting.asks(&mut wire).await;
            assert_eq!(query.by, ResolvedBy::Tunnel);
            let found = Found {
                addresses: vec![[127, 0, 0, 1].into()],
                by,
            };
            (setting.associations).resolved(Instant::now(), query.query, Ok(found));
            // What strangers say of a name leads nowhere in this network; a record of the file does.
            let directly = usize::from(by == ResolvedBy::Record);
            assert_eq!(setting.associations.stats.blocked, 1, "{by:?}");
            assert_eq!(setting.associations.direct_sockets(), directly, "{by:?}");
        }
        assert!(wire.packets.is_empty());
    }
}
