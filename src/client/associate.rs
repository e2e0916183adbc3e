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

use std::collections::HashMap;
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
use crate::io::clock;
use crate::io::relay::{Notice, ReadySet};

/// Every SOCKS5 UDP relay of a client.
#[derive(Debug)]
pub(super) struct Associations {
    entries: Slab<Association>,
    by_handle: HashMap<HandleId, usize>,
    by_port: HashMap<u16, usize>,
    ready: Arc<ReadySet>,
    names: NameQueries,
    unresolved: HashMap<u64, Unresolved>,
    next_query: u64,
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
    /// Datagrams that the lane had no room for, or the session no address.
    pub(super) no_room: u64,
    /// Datagrams that the application's socket did not take.
    pub(super) not_taken: u64,
    /// Datagrams for a port that has no association, or before its application spoke.
    pub(super) no_receiver: u64,
}

impl Associations {
    pub(super) fn new(names: NameQueries) -> Self {
        Self {
            entries: Slab::new(),
            by_handle: HashMap::new(),
            by_port: HashMap::new(),
            ready: ReadySet::new(),
            names,
            unresolved: HashMap::new(),
            next_query: 0,
            scratch: Vec::new(),
            stats: AssociationStats::default(),
        }
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
        self.unresolved
            .retain(|_, waiting| waiting.handle != handle);
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

    /// Sends what waited for the name of `query`.
    pub(super) fn resolved<S: PacketSink>(
        &mut self,
        stack: &mut Stack,
        sink: &mut S,
        query: u64,
        addresses: Result<Vec<IpAddr>, ResolveError>,
    ) {
        let Some(waiting) = self.unresolved.remove(&query) else {
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
        entry.remember(waiting.host, address);
        let to = SocketAddr::new(address, waiting.port);
        self.stats
            .count_sent(entry.send(stack, sink, to, &waiting.payload));
    }

    /// Moves what applications have sent into the tunnel; returns whether there was any.
    pub(super) fn poll<S: PacketSink>(
        &mut self,
        cx: &Context<'_>,
        stack: &mut Stack,
        sink: &mut S,
    ) -> bool {
        self.ready.register(cx);
        let mut any = false;
        for _ in 0..READY_PER_TURN {
            let Some(key) = self.ready.pop() else { break };
            let Some(entry) = self.entries.get_mut(key) else {
                continue;
            };
            entry.notice.taken();
            self.scratch.resize(MAX_DATAGRAM, 0);
            let mut wake = Context::from_waker(&entry.waker);
            let mut more = true;
            for _ in 0..DATAGRAMS_PER_TURN {
                let mut buffer = ReadBuf::new(&mut self.scratch);
                let Poll::Ready(Ok(from)) = entry.socket.poll_recv_from(&mut wake, &mut buffer)
                else {
                    more = false;
                    break;
                };
                any = true;
                if from.ip() != entry.client || entry.application.is_some_and(|known| known != from)
                {
                    self.stats.foreign_sender += 1;
                    continue;
                }
                entry.application = Some(from);
                let Ok((host, port, payload)) = udp_header::decode(buffer.filled()) else {
                    self.stats.bad_header += 1;
                    continue;
                };
                match entry.address_of(&host) {
                    Some(address) => {
                        let to = SocketAddr::new(address, port);
                        self.stats.count_sent(entry.send(stack, sink, to, payload));
                    }
                    None if self.unresolved.len() < MAX_UNRESOLVED => {
                        let query = self.next_query;
                        self.next_query += 1;
                        let asked = self.names.try_send(NameQuery {
                            query,
                            host: host.clone(),
                        });
                        if asked.is_err() {
                            self.stats.unresolved += 1;
                            continue;
                        }
                        self.unresolved.insert(
                            query,
                            Unresolved {
                                handle: entry.handle,
                                host,
                                port,
                                payload: payload.to_vec(),
                            },
                        );
                    }
                    None => self.stats.unresolved += 1,
                }
            }
            if more {
                entry.notice.queue();
            }
        }
        any
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
    fn address_of(&self, host: &Host) -> Option<IpAddr> {
        match host {
            Host::Ip(address) => Some(*address),
            Host::Name(_) => self
                .names
                .get(host)
                .filter(|(_, until)| clock::now() < *until)
                .map(|(address, _)| *address),
        }
    }

    fn remember(&mut self, host: Host, address: IpAddr) {
        if self.names.len() >= MAX_NAMES {
            self.names.clear();
        }
        self.names.insert(host, (address, clock::now() + NAME_TTL));
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

#[derive(Debug)]
struct Unresolved {
    handle: HandleId,
    host: Host,
    port: u16,
    payload: Vec<u8>,
}

/// Associations of one client: applications that speak UDP at the same time.
const MAX_ASSOCIATIONS: usize = 1024;

/// Datagrams that wait for a name.
const MAX_UNRESOLVED: usize = 256;

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
