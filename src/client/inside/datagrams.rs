//! UDP ports and echo requests of the client's own, and what they send while the lane has no room.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use adit_netstack::PacketSink;
use tokio::sync::mpsc;

use super::Inside;
use crate::client::tunnel::{ConnectError, Datagram, HandleId, Reply};
use crate::io::carrier::has_room;

impl Inside {
    /// Binds a UDP port, of that number or any.
    pub(super) fn bind_udp(
        &mut self,
        handle: HandleId,
        number: Option<u16>,
        inbound: mpsc::Sender<Datagram>,
        reply: Reply,
    ) {
        let port = match number {
            Some(number) if !self.stack.bind_udp_port(number) => {
                reply.send(Err(ConnectError::PortTaken));
                return;
            }
            Some(number) => Some(number),
            None => self.stack.bind_udp(),
        };
        match port {
            Some(port) => {
                self.ports.insert(handle, port);
                self.inbound.insert(port, inbound);
                reply.send(Ok(()));
            }
            None => reply.send(Err(ConnectError::TooManyFlows)),
        }
    }

    /// Takes an identifier of echo requests that nobody has.
    pub(super) fn bind_echo(
        &mut self,
        handle: HandleId,
        inbound: mpsc::Sender<Datagram>,
        reply: Reply,
    ) {
        let mut tries = (0..IDENT_TRIES).map(|_| rand::random());
        let ident = tries.find(|ident| !self.replies.contains_key(ident));
        match ident.filter(|_| self.replies.len() < MAX_IDENTS) {
            Some(ident) => {
                self.echoes.insert(handle, ident);
                self.replies.insert(ident, inbound);
                reply.send(Ok(()));
            }
            None => reply.send(Err(ConnectError::TooManyFlows)),
        }
    }

    /// Frees a UDP port or an identifier; what of it still waits for room is dropped.
    pub(super) fn unbind_udp(&mut self, handle: HandleId) {
        self.outgoing.retain(|waiting| waiting.handle != handle);
        if let Some(port) = self.ports.remove(&handle) {
            self.inbound.remove(&port);
            self.stack.unbind_udp(port);
        }
        if let Some(ident) = self.echoes.remove(&handle) {
            self.replies.remove(&ident);
        }
    }

    /// Queues a datagram of one of our ports. A full queue loses its oldest: whoever sent that has asked again by now, or
    /// given up.
    pub(super) fn send_udp(
        &mut self,
        now: Instant,
        handle: HandleId,
        remote: SocketAddr,
        payload: Vec<u8>,
    ) {
        let from = match (self.ports.get(&handle), self.echoes.get(&handle)) {
            (Some(&port), _) => Sender::Port(port),
            (None, Some(&ident)) => Sender::Ident(ident),
            (None, None) => return,
        };
        if self.outgoing.len() >= MAX_OUTGOING {
            self.outgoing.pop_front();
            self.stats.udp_not_sent += 1;
        }
        self.outgoing.push_back(Outgoing {
            until: now + PATIENCE,
            handle,
            from,
            remote,
            payload,
        });
    }

    /// Sends what waits and is not too old while there is room; returns whether there was anything.
    pub(super) fn poll_outgoing<S: PacketSink>(&mut self, now: Instant, sink: &mut S) -> bool {
        let mut any = false;
        while !self.outgoing.is_empty() && has_room(sink) {
            let Some(Outgoing {
                until,
                from,
                remote,
                payload,
                ..
            }) = self.outgoing.pop_front()
            else {
                break;
            };
            any = true;
            let stack = &mut self.stack;
            let (to, sequence) = (remote.ip(), remote.port());
            let own = stack.own_address(to).filter(|_| now < until);
            let sent = own.is_some_and(|own| {
                let sent = match from {
                    Sender::Port(port) => {
                        let from = SocketAddr::new(own, port);
                        stack.send_udp(sink, from, remote, &payload)
                    }
                    Sender::Ident(ident) => {
                        stack.send_echo(sink, own, to, true, ident, sequence, &payload)
                    }
                };
                sent.is_ok()
            });
            if !sent {
                self.stats.udp_not_sent += 1;
            }
        }
        any
    }
}

/// A datagram that waits for room.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// When it is too old to be of use.
    until: Instant,
    handle: HandleId,
    from: Sender,
    /// Whom to; of an echo request, with its sequence number.
    remote: SocketAddr,
    payload: Vec<u8>,
}

/// What a datagram is sent from.
#[derive(Clone, Copy, Debug)]
enum Sender {
    /// A UDP port.
    Port(u16),
    /// An identifier of echo requests.
    Ident(u16),
}

/// Datagrams that may wait for room: the queries of a browser's start.
pub(super) const MAX_OUTGOING: usize = 256;

/// How long a datagram is of use: until a stub resolver asks again (resolv.conf(5)).
const PATIENCE: Duration = Duration::from_secs(5);

/// Identifiers of echo requests: a command that pings each host of a network at once.
const MAX_IDENTS: usize = 1024;

/// Random ones are tried until one is free: one in sixty-four is taken at most.
const IDENT_TRIES: usize = 16;
