//! Tells which flow a packet belongs to, and whether losing it would be felt at once.

use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, SocketAddr};

use adit_netstack::{Packet, protocol};
use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;

/// How dear a packet is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Class {
    /// DNS, handshakes, pings, and small packets of flows with a low rate: calls, games, keystrokes.
    Thin,
    /// Everything else.
    #[default]
    Bulk,
}

/// Hashes what a flow's packets have in common: addresses, protocol and ports, in one direction.
///
/// Fragments have no ports after the first, so those of a datagram are told apart from other packets by
/// addresses and protocol alone. Without the seed nobody can make flows that meet.
#[must_use]
pub fn flow_hash(packet: &Packet, seed: u64) -> u64 {
    let ports = packet.ports.filter(|_| packet.fragment.is_none());
    hash(
        (packet.source, packet.destination),
        packet.protocol,
        ports,
        seed,
    )
}

/// The same for a flow whose packet is still to be written.
pub(in crate::proto) fn flow_hash_of(
    source: SocketAddr,
    destination: SocketAddr,
    protocol: u8,
    seed: u64,
) -> u64 {
    let ports = Some((source.port(), destination.port()));
    hash((source.ip(), destination.ip()), protocol, ports, seed)
}

fn hash(addresses: (IpAddr, IpAddr), protocol: u8, ports: Option<(u16, u16)>, seed: u64) -> u64 {
    let state = SeedableRandomState::with_seed(seed, SharedSeed::global_fixed());
    let mut hasher = state.build_hasher();
    match addresses {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            hasher.write_u32(source.to_bits());
            hasher.write_u32(destination.to_bits());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            hasher.write_u128(source.to_bits());
            hasher.write_u128(destination.to_bits());
        }
        // No packet has addresses of two families.
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
    }
    hasher.write_u8(protocol);
    if let Some((source, destination)) = ports {
        hasher.write_u32(u32::from(source) << 16 | u32::from(destination));
    }
    hasher.finish()
}

/// Classifies a packet of a flow whose rate is low, or is not.
pub(super) fn classify(packet: &Packet, bytes: &[u8], low_rate: bool) -> Class {
    if !low_rate || packet.fragment.is_some() {
        return Class::Bulk;
    }
    let dns = packet
        .ports
        .is_some_and(|(source, destination)| source == DNS_PORT || destination == DNS_PORT);
    let urgent = match packet.protocol {
        protocol::UDP => dns || bytes.len() <= SMALL,
        protocol::TCP => (dns || bytes.len() <= SMALL) && !is_pure_ack(packet, bytes),
        _ => bytes.len() <= SMALL,
    };
    if urgent { Class::Thin } else { Class::Bulk }
}

/// Tells whether a TCP packet carries neither payload nor SYN, FIN or RST.
fn is_pure_ack(packet: &Packet, bytes: &[u8]) -> bool {
    let segment = bytes.get(packet.header_len..).unwrap_or_default();
    segment.first_chunk::<20>().is_none_or(|head| {
        usize::from(head[12] >> 4) * 4 >= segment.len() && head[13] & (SYN | FIN | RST) == 0
    })
}

/// The longest packet that is small: 200-byte messages with their headers, voice frames, a keystroke, and the
/// smallest datagram every host must take (RFC 791), but not the full segments of a transfer.
const SMALL: usize = 576;
const DNS_PORT: u16 = 53;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::queue::fair::tests::craft::{seal, tcp, udp};

    fn class(bytes: &[u8], low_rate: bool) -> Class {
        classify(&Packet::parse(bytes).unwrap(), bytes, low_rate)
    }

    #[test]
    fn small_packets_of_low_rate_flows_are_thin() {
        assert_eq!(class(&udp(5_000, 200), true), Class::Thin);
        assert_eq!(class(&udp(5_000, 200), false), Class::Bulk);
        assert_eq!(class(&udp(5_000, 1_200), true), Class::Bulk);
        assert_eq!(class(&tcp(5_000, 0x18, 200), true), Class::Thin);
        assert_eq!(class(&tcp(5_000, 0x18, 1_200), true), Class::Bulk);
    }

    #[test]
    fn dns_is_thin_at_any_size() {
        assert_eq!(class(&udp(53, 1_200), true), Class::Thin);
        assert_eq!(class(&tcp(53, 0x18, 1_200), true), Class::Thin);
    }

    #[test]
    fn handshakes_are_thin_and_pure_acknowledgements_are_not() {
        for flags in [SYN, SYN | 0x10, FIN | 0x10, RST] {
            assert_eq!(class(&tcp(5_000, flags, 0), true), Class::Thin);
        }
        assert_eq!(class(&tcp(5_000, 0x10, 0), true), Class::Bulk);
    }

    #[test]
    fn pings_are_thin_and_fragments_are_not() {
        let mut ping = udp(5_000, 56);
        ping[9] = protocol::ICMP;
        seal(&mut ping);
        assert_eq!(class(&ping, true), Class::Thin);
        let mut fragment = udp(5_000, 200);
        fragment[6] = 0x20;
        seal(&mut fragment);
        assert_eq!(class(&fragment, true), Class::Bulk);
    }

    #[test]
    fn the_hash_tells_flows_apart_and_depends_on_the_seed() {
        let hash = |bytes: &[u8], seed| flow_hash(&Packet::parse(bytes).unwrap(), seed);
        let one = udp(5_000, 200);
        assert_eq!(hash(&one, 1), hash(&udp(5_000, 900), 1));
        assert_ne!(hash(&one, 1), hash(&udp(5_001, 200), 1));
        assert_ne!(hash(&one, 1), hash(&tcp(5_000, 0x10, 200), 1));
        assert_ne!(hash(&one, 1), hash(&one, 2));
    }

    #[test]
    fn flow_has_the_hash_of_its_packets() {
        let packet = tcp(5_000, 0x10, 200);
        let parsed = Packet::parse(&packet).unwrap();
        let (from, to) = parsed.ports.unwrap();
        let source = SocketAddr::new(parsed.source, from);
        let destination = SocketAddr::new(parsed.destination, to);
        assert_eq!(
            flow_hash_of(source, destination, protocol::TCP, 9),
            flow_hash(&parsed, 9)
        );
    }

    #[test]
    fn all_fragments_of_a_datagram_are_one_flow() {
        let mut first = udp(5_000, 200);
        first[6] = 0x20;
        seal(&mut first);
        let mut second = first.clone();
        second[6..8].copy_from_slice(&[0, 26]);
        second[20..24].fill(0xab);
        seal(&mut second);
        let hash = |bytes: &[u8]| flow_hash(&Packet::parse(bytes).unwrap(), 3);
        assert_eq!(hash(&first), hash(&second));
    }
}
