//! UDP and ICMP beside smoltcp: ports, datagrams in and out, echo, errors.

use std::net::{IpAddr, SocketAddr};

use rand::RngExt;

use super::{EPHEMERAL, Outcome, PORT_TRIES, Stack};
use crate::checksum;
use crate::config::Accept;
use crate::event::SendUdpError;
use crate::fragments;
use crate::header::Header;
use crate::icmp::{self, ICMP_HEADER, Unreachable};
use crate::offload::{Checksum, Gso, Offload};
use crate::packet::{Packet, protocol};
use crate::sink::PacketSink;
use crate::stats::Dropped;

impl Stack {
    /// Binds a random free UDP port on the own addresses of both families; none if they are all bound.
    ///
    /// Whoever sends to it is heard (endpoint-independent, RFC 4787 §4.1 and §5). [`Accept::Any`] needs no binding.
    pub fn bind_udp(&mut self) -> Option<u16> {
        if self.ports.len() >= MAX_PORTS {
            return None;
        }
        let port = (0..PORT_TRIES)
            .map(|_| self.rng.random_range(EPHEMERAL))
            .find(|port| !self.ports.contains(port))?;
        self.ports.insert(port);
        Some(port)
    }

    /// Binds this UDP port on the own addresses of both families; false if it is bound already, or no port.
    pub fn bind_udp_port(&mut self, port: u16) -> bool {
        port != 0 && self.ports.len() < MAX_PORTS && self.ports.insert(port)
    }

    /// Frees a UDP port.
    pub fn unbind_udp(&mut self, port: u16) {
        self.ports.remove(&port);
    }

    /// Sends one datagram, in fragments if it does not fit the inner MTU.
    ///
    /// # Errors
    /// [`SendUdpError`]; with `Full`, fragments may have left already, which nobody will put together.
    pub fn send_udp<S: PacketSink>(
        &mut self,
        sink: &mut S,
        from: SocketAddr,
        to: SocketAddr,
        payload: &[u8],
    ) -> Result<(), SendUdpError> {
        if from.is_ipv4() != to.is_ipv4() {
            return Err(SendUdpError::Family);
        }
        let header = self.next_header(from.ip(), to.ip(), protocol::UDP);
        let max = usize::from(u16::MAX) - UDP_HEADER - header.len();
        if payload.len() > max {
            return Err(SendUdpError::TooLong {
                len: payload.len(),
                max,
            });
        }
        let total = UDP_HEADER + payload.len();
        let mut head = [0; UDP_HEADER];
        head[0..2].copy_from_slice(&from.port().to_be_bytes());
        head[2..4].copy_from_slice(&to.port().to_be_bytes());
        // It fits: the payload was checked against the largest packet.
        head[4..6].copy_from_slice(&(total as u16).to_be_bytes());
        if header.len() + total <= usize::from(self.config.mtu) {
            let len = header.len() + total;
            let packet = sink.reserve(len).ok_or(SendUdpError::Full)?;
            header.write(packet);
            fragments::copy_at(
                packet.get_mut(header.len()..).unwrap_or_default(),
                0,
                &head,
                payload,
            );
            sink.commit(
                len,
                Offload {
                    gso: Gso::None,
                    checksum: Checksum::Partial,
                },
            );
            self.count_out(len);
            return Ok(());
        }
        let mut sum =
            checksum::pseudo_header(header.source, header.destination, protocol::UDP, total);
        sum += checksum::sum(&head) + checksum::sum(payload);
        let sum = match !checksum::fold(sum) {
            0 => 0xffff,
            sum => sum,
        };
        head[6..8].copy_from_slice(&sum.to_be_bytes());
        self.send_fragments(sink, &header, &head, payload)
    }

    /// Sends an echo request or reply, in fragments if it does not fit the inner MTU.
    ///
    /// # Errors
    /// As [`send_udp`](Stack::send_udp).
    #[expect(
        clippy::too_many_arguments,
        reason = "these are the fields of the message"
    )]
    pub fn send_echo<S: PacketSink>(
        &mut self,
        sink: &mut S,
        from: IpAddr,
        to: IpAddr,
        request: bool,
        ident: u16,
        sequence: u16,
        payload: &[u8],
    ) -> Result<(), SendUdpError> {
        if from.is_ipv4() != to.is_ipv4() {
            return Err(SendUdpError::Family);
        }
        let protocol = if from.is_ipv4() {
            protocol::ICMP
        } else {
            protocol::ICMPV6
        };
        let header = self.next_header(from, to, protocol);
        let max = usize::from(u16::MAX) - ICMP_HEADER - header.len();
        if payload.len() > max {
            return Err(SendUdpError::TooLong {
                len: payload.len(),
                max,
            });
        }
        let len = header.len() + ICMP_HEADER + payload.len();
        if len <= usize::from(self.config.mtu) {
            let packet = sink.reserve(len).ok_or(SendUdpError::Full)?;
            header.write(packet);
            let message = packet.get_mut(header.len()..).unwrap_or_default();
            icmp::write_echo(message, &header, request, ident, sequence, payload);
            sink.commit(len, Offload::default());
            self.count_out(len);
            return Ok(());
        }
        let mut message = vec![0; ICMP_HEADER + payload.len()];
        icmp::write_echo(&mut message, &header, request, ident, sequence, payload);
        self.send_fragments(sink, &header, &message, &[])
    }

    /// Queues an ICMP error about an offending packet, in the name of the address it was for.
    ///
    /// It is rate-limited, and nothing is sent where RFC 1122 §3.2.2 or RFC 4443 §2.4 forbid it.
    pub fn send_unreachable(&mut self, about: &[u8], why: Unreachable) {
        let Ok(packet) = Packet::parse(about) else {
            return;
        };
        if !self.icmp_limit.allow(self.latest) {
            self.stats.icmp_errors_limited += 1;
            return;
        }
        let mut buffer = self.replies.buffer();
        if !icmp::unreachable(about, packet.destination, why, &mut buffer) {
            self.replies.recycle(buffer);
            return;
        }
        if self.replies.push(buffer, Offload::default()) {
            self.stats.icmp_errors_sent += 1;
        } else {
            self.stats.replies_dropped += 1;
        }
    }

    pub(super) fn ingress_udp(
        &mut self,
        bytes: &mut [u8],
        packet: &Packet,
        offload: Offload,
    ) -> Result<Outcome, Dropped> {
        let (source, destination) = packet.ports.ok_or(Dropped::Transport)?;
        let datagram = bytes.get(packet.header_len..).unwrap_or_default();
        let (head, _) = datagram
            .split_first_chunk::<UDP_HEADER>()
            .ok_or(Dropped::Transport)?;
        let len = usize::from(u16::from_be_bytes([head[4], head[5]]));
        if len < UDP_HEADER || len > datagram.len() || destination == 0 {
            return Err(Dropped::Transport);
        }
        if self.config.accept == Accept::Own && !self.ports.contains(&destination) {
            self.send_unreachable(bytes, Unreachable::Port);
            return Err(Dropped::NoPort);
        }
        let segment = match offload.gso {
            Gso::Udp { size } => usize::from(size),
            Gso::None | Gso::Tcp { .. } => len - UDP_HEADER,
        };
        Ok(Outcome::Udp {
            local: SocketAddr::new(packet.destination, destination),
            remote: SocketAddr::new(packet.source, source),
            payload: packet.header_len + UDP_HEADER..packet.header_len + len,
            segment: segment.max(1),
        })
    }

    /// Answers an echo request to one of our own addresses.
    pub(super) fn answer_echo(
        &mut self,
        packet: &Packet,
        ident: u16,
        sequence: u16,
        payload: &[u8],
    ) {
        let header = self.next_header(packet.destination, packet.source, packet.protocol);
        let len = header.len() + ICMP_HEADER + payload.len();
        let mut buffer = self.replies.buffer();
        if len <= usize::from(self.config.mtu) {
            buffer.resize(len, 0);
            header.write(&mut buffer);
            let message = buffer.get_mut(header.len()..).unwrap_or_default();
            icmp::write_echo(message, &header, false, ident, sequence, payload);
            self.stats.replies_dropped += u64::from(!self.replies.push(buffer, Offload::default()));
            return;
        }
        buffer.resize(ICMP_HEADER + payload.len(), 0);
        icmp::write_echo(&mut buffer, &header, false, ident, sequence, payload);
        for part in fragments::cut(&header, self.config.mtu, buffer.len()) {
            let mut packet = self.replies.buffer();
            packet.resize(part.packet, 0);
            part.write(&mut packet, &header, &buffer, &[]);
            self.stats.replies_dropped += u64::from(!self.replies.push(packet, Offload::default()));
        }
        self.replies.recycle(buffer);
    }

    fn send_fragments<S: PacketSink>(
        &mut self,
        sink: &mut S,
        header: &Header,
        head: &[u8],
        payload: &[u8],
    ) -> Result<(), SendUdpError> {
        for part in fragments::cut(header, self.config.mtu, head.len() + payload.len()) {
            let packet = sink.reserve(part.packet).ok_or(SendUdpError::Full)?;
            part.write(packet, header, head, payload);
            sink.commit(part.packet, Offload::default());
            self.count_out(part.packet);
        }
        Ok(())
    }

    fn next_header(&mut self, source: IpAddr, destination: IpAddr, protocol: u8) -> Header {
        self.ident = self.ident.wrapping_add(1);
        Header {
            source,
            destination,
            protocol,
            ident: self.ident,
        }
    }

    fn count_out(&mut self, len: usize) {
        self.stats.packets_out += 1;
        self.stats.bytes_out += len as u64;
    }
}

/// The length of a UDP header.
const UDP_HEADER: usize = 8;
/// Half of the ephemeral ports, so that a free one is found in a few tries.
const MAX_PORTS: usize = 16_384;
