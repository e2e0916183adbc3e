//! What carries the inner packets over the link.

use std::{collections::VecDeque, time::Instant};

use super::packet::{Packet, Side};

/// Two ends of a tunnel over one link, without sockets.
///
/// After [`Tunnel::inject`], [`Tunnel::handle_datagram`] or [`Tunnel::handle_timeout`] the world drains
/// [`Tunnel::poll_transmit`] and [`Tunnel::poll_deliver`] at both sides until they give nothing, and asks
/// [`Tunnel::poll_timeout`]. A tunnel that paces gives nothing from `poll_transmit` and names the time instead.
pub trait Tunnel {
    /// Takes an inner packet that enters at `side`.
    fn inject(&mut self, now: Instant, side: Side, packet: Packet);

    /// Gives the next datagram that leaves `side` for the link.
    fn poll_transmit(&mut self, now: Instant, side: Side) -> Option<Datagram>;

    /// Takes a datagram that has come over the link to `side`; `marked` says that it met congestion (ECN).
    fn handle_datagram(&mut self, now: Instant, side: Side, datagram: Vec<u8>, marked: bool);

    /// Gives the next inner packet that comes out at `side`.
    fn poll_deliver(&mut self, now: Instant, side: Side) -> Option<Packet>;

    /// Says when [`Tunnel::handle_timeout`] is to be called next: after `now`.
    fn poll_timeout(&self, now: Instant) -> Option<Instant>;

    /// Does what is due at both ends.
    fn handle_timeout(&mut self, now: Instant);
}

/// What a tunnel puts on the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// What the other end will get.
    pub bytes: Vec<u8>,
    /// Bytes of headers that the network puts around it: 28 for UDP over IPv4.
    pub headers: usize,
    /// The sender understands marks (ECN).
    pub ecn: bool,
}

/// No tunnel: inner packets go over the link as they are.
#[derive(Clone, Debug, Default)]
pub struct Direct {
    transmit: [VecDeque<Vec<u8>>; 2],
    deliver: [VecDeque<Vec<u8>>; 2],
}

impl Tunnel for Direct {
    fn inject(&mut self, _now: Instant, side: Side, packet: Packet) {
        let queue = &mut self.transmit[side.index()];
        match packet.segment {
            None => queue.push_back(packet.bytes),
            Some(_) => queue.extend(packet.cut()),
        }
    }

    fn poll_transmit(&mut self, _now: Instant, side: Side) -> Option<Datagram> {
        Some(Datagram {
            bytes: self.transmit[side.index()].pop_front()?,
            headers: 0,
            ecn: false,
        })
    }

    fn handle_datagram(&mut self, _now: Instant, side: Side, datagram: Vec<u8>, _marked: bool) {
        self.deliver[side.index()].push_back(datagram);
    }

    fn poll_deliver(&mut self, _now: Instant, side: Side) -> Option<Packet> {
        Some(Packet {
            bytes: self.deliver[side.index()].pop_front()?,
            segment: None,
        })
    }

    fn poll_timeout(&self, _now: Instant) -> Option<Instant> {
        None
    }

    fn handle_timeout(&mut self, _now: Instant) {}
}
