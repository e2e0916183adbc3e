//! The Internet checksum (RFC 1071): of bytes, of a pseudo-header, of a whole transport segment.

use std::net::IpAddr;

use crate::packet::{Packet, PacketError, protocol};

/// Completes a [`Checksum::Partial`](crate::Checksum::Partial) transport checksum in software.
///
/// `bytes` is one whole IP packet that carries TCP or UDP. Whatever stood in the checksum field is overwritten.
///
/// # Errors
/// What [`Packet::parse`] finds wrong; [`PacketError::NoTransportChecksum`] for a fragment or for another protocol.
pub fn complete_checksum(bytes: &mut [u8]) -> Result<(), PacketError> {
    let packet = Packet::parse(bytes)?;
    let at = checksum_offset(&packet, bytes.len())?;
    let segment = bytes.get_mut(packet.header_len..).unwrap_or_default();
    let Some(field) = segment.get_mut(at..at + 2) else {
        return Err(PacketError::NoTransportChecksum {
            protocol: packet.protocol,
        });
    };
    field.fill(0);
    let sum = !transport_sum(packet.source, packet.destination, packet.protocol, segment);
    // RFC 768: a UDP checksum that computes to zero is sent as all ones; for TCP both mean the same.
    let sum = if sum == 0 && packet.protocol == protocol::UDP {
        0xffff
    } else {
        sum
    };
    if let Some(field) = segment.get_mut(at..at + 2) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    Ok(())
}

/// Verifies the transport checksum of one whole TCP, UDP, ICMP or ICMPv6 packet.
///
/// A UDP datagram over IPv4 without a checksum is right (RFC 768); over IPv6 it is not (RFC 8200 §8.1).
///
/// # Errors
/// What [`Packet::parse`] finds wrong; [`PacketError::TransportChecksum`] if the sum does not fit;
/// [`PacketError::NoTransportChecksum`] for a fragment or for another protocol.
pub fn verify_checksum(bytes: &[u8]) -> Result<(), PacketError> {
    let packet = Packet::parse(bytes)?;
    verify_parsed(bytes, &packet)
}

/// Verifies the transport checksum of a packet that is parsed already.
pub(crate) fn verify_parsed(bytes: &[u8], packet: &Packet) -> Result<(), PacketError> {
    let segment = bytes.get(packet.header_len..).unwrap_or_default();
    let sum = match packet.protocol {
        protocol::ICMP => {
            if packet.fragment.is_some() {
                return Err(PacketError::NoTransportChecksum {
                    protocol: packet.protocol,
                });
            }
            fold(sum(segment))
        }
        protocol::ICMPV6 => {
            if packet.fragment.is_some() {
                return Err(PacketError::NoTransportChecksum {
                    protocol: packet.protocol,
                });
            }
            transport_sum(packet.source, packet.destination, packet.protocol, segment)
        }
        _ => {
            let at = checksum_offset(packet, bytes.len())?;
            if packet.protocol == protocol::UDP && segment.get(at..at + 2) == Some(&[0, 0]) {
                return match packet.source {
                    IpAddr::V4(_) => Ok(()),
                    IpAddr::V6(_) => Err(PacketError::TransportChecksum {
                        protocol: packet.protocol,
                    }),
                };
            }
            transport_sum(packet.source, packet.destination, packet.protocol, segment)
        }
    };
    if sum == 0xffff {
        Ok(())
    } else {
        Err(PacketError::TransportChecksum {
            protocol: packet.protocol,
        })
    }
}

/// Says where in the transport header the checksum lies, if all of that header is there.
pub(crate) fn checksum_offset(packet: &Packet, len: usize) -> Result<usize, PacketError> {
    let (offset, header) = match packet.protocol {
        protocol::TCP => (16, 20),
        protocol::UDP => (6, 8),
        other => return Err(PacketError::NoTransportChecksum { protocol: other }),
    };
    if packet.fragment.is_some() || len < packet.header_len + header {
        return Err(PacketError::NoTransportChecksum {
            protocol: packet.protocol,
        });
    }
    Ok(offset)
}

/// Sums a pseudo-header and a segment, folded but not inverted; all ones when a stored checksum fits.
pub(crate) fn transport_sum(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    segment: &[u8],
) -> u16 {
    fold(pseudo_header(source, destination, protocol, segment.len()) + sum(segment))
}

/// Sums a pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1).
pub(crate) fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u64 {
    let mut tail = [0; 8];
    // A segment is never longer than 65,535 bytes: the length of the packet was checked against its 16-bit field.
    tail[..4].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    tail[7] = protocol;
    let addresses = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            sum(&source.octets()) + sum(&destination.octets())
        }
        (source, destination) => sum(&octets16(source)) + sum(&octets16(destination)),
    };
    addresses + sum(&tail)
}

/// Sums bytes as 16-bit words without folding.
///
/// The words are read in the machine's own order: the sum of RFC 1071 does not depend on it until it is written out.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    // Eight independent lanes, so that the compiler turns the loop into vector instructions.
    let mut lanes = [0u64; 8];
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(4)) {
            *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    let mut total: u64 = lanes.iter().sum();
    let mut pairs = blocks.remainder().chunks_exact(2);
    for pair in &mut pairs {
        total += u64::from(u16::from_ne_bytes([pair[0], pair[1]]));
    }
    if let [last] = pairs.remainder() {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    total
}

/// Folds a sum to 16 bits, in network order.
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::from_be((sum & 0xffff) as u16)
}

fn octets16(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn example_of_rfc_1071_sums_to_ddf2() {
        assert_eq!(
            fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])),
            0xddf2
        );
    }

    proptest! {
        #[test]
        fn wide_sum_equals_the_naive_one(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert_eq!(fold(sum(&bytes)), naive(&bytes));
        }
    }
}
