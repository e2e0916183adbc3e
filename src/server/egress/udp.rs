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
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use crate::io::relay::{Notice, ReadySet};

/// The UDP mappings of one session.
#[derive(Debug)]
pub struct Mappings {
    by_client: HashMap<SocketAddr, usize>,
    mappings: Slab<Mapping>,
    ready: Arc<ReadySet>,
    scratch: Vec<u8>,
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
    /// Datagrams that arrived and did not fit the lane.
    pub no_room: u64,
}

impl Mappings {
    /// Makes an empty table.
    pub fn new() -> Self {
        Self {
            by_client: HashMap::new(),
            mappings: Slab::new(),
            ready: ReadySet::new(),
            scratch: Vec::new(),
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
        if mapping.notice.queue() {
            self.sweep.get_or_insert(now + MAPPING_IDLE);
        }
    }

    /// Moves what arrived into the tunnel; returns whether anything did.
    pub fn poll<S: PacketSink>(
        &mut self,
        cx: &Context<'_>,
        now: Instant,
        stack: &mut Stack,
        sink: &mut S,
    ) -> bool {
        self.ready.register(cx);
        if self.ready.is_empty() {
            return false;
        }
        let mut any = false;
        // Datagrams are read here first: their length is not known before.
        self.scratch.resize(MAX_DATAGRAM, 0);
        for _ in 0..READY_PER_TURN {
            let Some(key) = self.ready.pop() else { break };
            let Some(mapping) = self.mappings.get_mut(key) else {
                continue;
            };
            mapping.notice.taken();
            let moved = mapping.receive(&mut self.scratch, |client, origin, payload| {
                match stack.send_udp(sink, origin, client, payload) {
                    Ok(()) => {}
                    Err(_) => self.stats.no_room += 1,
                }
            });
            if moved > 0 {
                any = true;
                mapping.last_used = now;
            }
            if moved == DATAGRAMS_PER_TURN {
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
        self.stats.made += 1;
        key
    }

    fn remove(&mut self, key: usize) {
        if let Some(mapping) = self.mappings.try_remove(key) {
            self.by_client.remove(&mapping.client);
        }
        if self.mappings.is_empty() {
            self.scratch = Vec::new();
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
            let socket = std::net::UdpSocket::bind((any, 0))?;
            socket.set_nonblocking(true)?;
            *slot = Some(UdpSocket::from_std(socket)?);
        }
        slot.as_ref()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn receive(
        &self,
        scratch: &mut [u8],
        mut deliver: impl FnMut(SocketAddr, SocketAddr, &[u8]),
    ) -> usize {
        let mut cx = Context::from_waker(&self.waker);
        let mut moved = 0;
        for socket in [&self.v4, &self.v6].into_iter().flatten() {
            while moved < DATAGRAMS_PER_TURN {
                let mut buffer = ReadBuf::new(scratch);
                match socket.poll_recv_from(&mut cx, &mut buffer) {
                    Poll::Ready(Ok(origin)) => {
                        deliver(self.client, origin, buffer.filled());
                        moved += 1;
                    }
                    Poll::Ready(Err(_)) | Poll::Pending => break,
                }
            }
        }
        moved
    }
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

/// The largest datagram there is.
const MAX_DATAGRAM: usize = 65_536;

/// Mappings served per turn.
const READY_PER_TURN: usize = 128;

/// Datagrams read per mapping and turn, so that one busy mapping cannot starve others.
const DATAGRAMS_PER_TURN: usize = 64;
