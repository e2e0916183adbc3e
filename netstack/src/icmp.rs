//! ICMP and ICMPv6: errors built and understood, echo built and understood.

use std::net::IpAddr;

use crate::checksum;
use crate::header::Header;
use crate::packet::{Packet, is_unicast, protocol};

/// Says why something could not be reached, in words that both ICMP versions share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unreachable {
    /// No route to the network.
    Network,
    /// The host does not answer.
    Host,
    /// The host does not speak the protocol.
    Protocol,
    /// Nothing listens on the port.
    Port,
    /// A filter or policy forbids it.
    AdminProhibited,
}

/// Writes an ICMP or ICMPv6 "destination unreachable" about `original`, sent by `from`, into `out`.
///
/// `original` is the offending packet from its first byte; it may be longer than what is quoted. `out` is replaced by
/// one whole packet with a right checksum, at most 576 bytes for IPv4 (RFC 1812 §4.3.2.3) and 1,280 for IPv6
/// (RFC 4443 §2.4).
///
/// Returns false and leaves `out` empty where no error may be sent: about ICMP errors, later fragments, multicast,
/// broadcast or unspecified addresses, and malformed packets (RFC 1122 §3.2.2, RFC 4443 §2.4), or if `from` is of
/// the other family.
pub fn unreachable(original: &[u8], from: IpAddr, why: Unreachable, out: &mut Vec<u8>) -> bool {
    let (kind, code) = match (from.is_ipv4(), why) {
        (true, Unreachable::Network) => (3, 0),
        (true, Unreachable::Host) => (3, 1),
        (true, Unreachable::Protocol) => (3, 2),
        (true, Unreachable::Port) => (3, 3),
        (true, Unreachable::AdminProhibited) => (3, 13),
        (false, Unreachable::Network) => (1, 0),
        (false, Unreachable::AdminProhibited) => (1, 1),
        (false, Unreachable::Host) => (1, 3),
        (false, Unreachable::Port) => (1, 4),
        // ICMPv6 says it as a parameter problem: unrecognised next header.
        (false, Unreachable::Protocol) => (4, 1),
    };
    let word = if kind == 4 { NEXT_HEADER_FIELD } else { 0 };
    error(original, from, kind, code, word, out)
}

/// Writes an ICMP "fragmentation needed" (RFC 1191) or ICMPv6 "packet too big" about `original`, sent by `from`.
///
/// As for [`unreachable()`]; false where no error may be sent.
pub fn too_big(original: &[u8], from: IpAddr, mtu: u16, out: &mut Vec<u8>) -> bool {
    let (kind, code) = if from.is_ipv4() { (3, 4) } else { (2, 0) };
    error(original, from, kind, code, u32::from(mtu), out)
}

/// Writes an echo request or reply with a right checksum into `message`: what follows the IP header, [`ICMP_HEADER`]
/// bytes and the payload.
pub(crate) fn write_echo(
    message: &mut [u8],
    header: &Header,
    request: bool,
    ident: u16,
    sequence: u16,
    payload: &[u8],
) {
    let kind = match (header.source.is_ipv4(), request) {
        (true, true) => 8,
        (true, false) => 0,
        (false, true) => 128,
        (false, false) => 129,
    };
    let Some((head, body)) = message.split_first_chunk_mut::<ICMP_HEADER>() else {
        return;
    };
    *head = [kind, 0, 0, 0, 0, 0, 0, 0];
    head[4..6].copy_from_slice(&ident.to_be_bytes());
    head[6..8].copy_from_slice(&sequence.to_be_bytes());
    for (to, from) in body.iter_mut().zip(payload) {
        *to = *from;
    }
    write_checksum(message, header);
}

/// What an incoming ICMP message means to the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// Echo; the payload starts eight bytes after the ICMP header's start.
    Echo {
        request: bool,
        ident: u16,
        sequence: u16,
    },
    /// One of our packets did not get through.
    Unreachable { why: Unreachable, quoted: Quoted },
    /// One of our packets was longer than a link on its way.
    TooBig { quoted: Quoted },
    /// Anything else that is well-formed.
    Other,
}

/// What the quotation in an ICMP error says about the packet that caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quoted {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) ports: (u16, u16),
    /// The sequence number, if the packet was TCP.
    pub(crate) sequence: u32,
}

/// Understands the ICMP message that `packet` carries; none if it is malformed or truncated.
pub(crate) fn parse(bytes: &[u8], packet: &Packet) -> Option<Message> {
    let message = bytes.get(packet.header_len..)?;
    let (head, body) = message.split_first_chunk::<ICMP_HEADER>()?;
    let ident = u16::from_be_bytes([head[4], head[5]]);
    let sequence = u16::from_be_bytes([head[6], head[7]]);
    let v4 = packet.protocol == protocol::ICMP;
    if v4 != packet.source.is_ipv4() {
        return None;
    }
    let why = match (v4, head[0], head[1]) {
        (true, 8, _) | (false, 128, _) => {
            return Some(Message::Echo {
                request: true,
                ident,
                sequence,
            });
        }
        (true, 0, _) | (false, 129, _) => {
            return Some(Message::Echo {
                request: false,
                ident,
                sequence,
            });
        }
        (true, 3, 4) | (false, 2, _) => {
            return Some(Message::TooBig {
                quoted: quoted(body)?,
            });
        }
        (true, 3, 0 | 6 | 8 | 11) | (false, 1, 0 | 2) => Unreachable::Network,
        (true, 3, 1 | 5 | 7 | 12) | (false, 1, 3) => Unreachable::Host,
        (true, 3, 2) | (false, 4, 1) => Unreachable::Protocol,
        (true, 3, 3) | (false, 1, 4) => Unreachable::Port,
        (true, 3, 9 | 10 | 13 | 14 | 15) | (false, 1, 1 | 5 | 6) => Unreachable::AdminProhibited,
        (_, _, _) => return Some(Message::Other),
    };
    Some(Message::Unreachable {
        why,
        quoted: quoted(body)?,
    })
}

/// Reads the head of a quoted packet, which is cut short and so cannot be parsed as a whole one.
fn quoted(bytes: &[u8]) -> Option<Quoted> {
    let (source, destination, protocol, transport) = match bytes.first()? >> 4 {
        4 => {
            let (head, _) = bytes.split_first_chunk::<20>()?;
            let len = usize::from(head[0] & 0x0f) * 4;
            if len < 20 || u16::from_be_bytes([head[6], head[7]]) & 0x1fff != 0 {
                return None;
            }
            let source = IpAddr::from([head[12], head[13], head[14], head[15]]);
            let destination = IpAddr::from([head[16], head[17], head[18], head[19]]);
            (source, destination, head[9], bytes.get(len..)?)
        }
        6 => {
            let (head, rest) = bytes.split_first_chunk::<40>()?;
            let mut source = [0; 16];
            let mut destination = [0; 16];
            source.copy_from_slice(&head[8..24]);
            destination.copy_from_slice(&head[24..40]);
            // Our own packets have no extension headers but that of a first fragment.
            let (protocol, rest) = match head[6] {
                protocol::FRAGMENT => {
                    let (fragment, rest) = rest.split_first_chunk::<8>()?;
                    if u16::from_be_bytes([fragment[2], fragment[3]]) & 0xfff8 != 0 {
                        return None;
                    }
                    (fragment[0], rest)
                }
                other => (other, rest),
            };
            (
                IpAddr::from(source),
                IpAddr::from(destination),
                protocol,
                rest,
            )
        }
        _ => return None,
    };
    let (head, _) = transport.split_first_chunk::<8>()?;
    Some(Quoted {
        source,
        destination,
        protocol,
        ports: (
            u16::from_be_bytes([head[0], head[1]]),
            u16::from_be_bytes([head[2], head[3]]),
        ),
        sequence: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
    })
}

fn error(original: &[u8], from: IpAddr, kind: u8, code: u8, word: u32, out: &mut Vec<u8>) -> bool {
    out.clear();
    let Some(to) = answerable(original) else {
        return false;
    };
    if to.is_ipv4() != from.is_ipv4() {
        return false;
    }
    let protocol = if from.is_ipv4() {
        protocol::ICMP
    } else {
        protocol::ICMPV6
    };
    let header = Header {
        source: from,
        destination: to,
        protocol,
        ident: 0,
    };
    let limit = if from.is_ipv4() {
        MAX_ERROR_V4
    } else {
        MAX_ERROR_V6
    };
    let room = limit - header.len() - ICMP_HEADER;
    let quote = original.get(..room).unwrap_or(original);
    out.resize(header.len() + ICMP_HEADER, 0);
    out.extend_from_slice(quote);
    header.write(out);
    let message = out.get_mut(header.len()..).unwrap_or_default();
    if let Some((head, _)) = message.split_first_chunk_mut::<ICMP_HEADER>() {
        head[0] = kind;
        head[1] = code;
        head[4..8].copy_from_slice(&word.to_be_bytes());
    }
    write_checksum(message, &header);
    true
}

/// Says to whom an error about this packet may be sent, if to anybody.
fn answerable(original: &[u8]) -> Option<IpAddr> {
    let packet = Packet::parse(original).ok()?;
    if !is_unicast(packet.source) || !is_unicast(packet.destination) {
        return None;
    }
    if packet.fragment.is_some_and(|fragment| fragment.offset != 0) {
        return None;
    }
    if matches!(packet.protocol, protocol::ICMP | protocol::ICMPV6) {
        let kind = *original.get(packet.header_len)?;
        // Only of echo is it known that it is no error.
        if !matches!(
            (packet.protocol, kind),
            (protocol::ICMP, 0 | 8) | (protocol::ICMPV6, 128 | 129)
        ) {
            return None;
        }
    }
    Some(packet.source)
}

fn write_checksum(message: &mut [u8], header: &Header) {
    if let Some(field) = message.get_mut(2..4) {
        field.fill(0);
    }
    let sum = if header.source.is_ipv4() {
        checksum::fold(checksum::sum(message))
    } else {
        checksum::transport_sum(header.source, header.destination, protocol::ICMPV6, message)
    };
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&(!sum).to_be_bytes());
    }
}

/// The length of an ICMP header.
pub(crate) const ICMP_HEADER: usize = 8;
/// RFC 1812 §4.3.2.3: an error of at most 576 bytes passes everywhere.
const MAX_ERROR_V4: usize = 576;
/// RFC 4443 §2.4 (c): the minimum IPv6 MTU.
const MAX_ERROR_V6: usize = 1280;
/// Where the next-header field of an IPv6 header lies.
const NEXT_HEADER_FIELD: u32 = 6;
