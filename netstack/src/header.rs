//! Writes IP headers in front of what this crate sends beside smoltcp.

use std::net::IpAddr;

use crate::checksum;
use crate::packet::{V4_HEADER, V6_HEADER, protocol};

/// What goes into an IP header that is not told by its payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    /// Identification; used by IPv4 always (its packets may be fragmented on the way), by IPv6 in fragments.
    pub(crate) ident: u32,
}

impl Header {
    /// Says how long the header of a whole packet is.
    pub(crate) fn len(&self) -> usize {
        if self.source.is_ipv4() {
            V4_HEADER
        } else {
            V6_HEADER
        }
    }

    /// Writes the header of a whole packet of `packet.len()` bytes.
    ///
    /// `packet` has room for the header and at most 65,535 bytes, and both addresses are of one family: callers
    /// have checked it.
    pub(crate) fn write(&self, packet: &mut [u8]) {
        let len = packet.len();
        match (self.source, self.destination) {
            (IpAddr::V4(_), IpAddr::V4(_)) => self.write_v4(packet, 0),
            (source, destination) => {
                write_v6(
                    packet,
                    octets(source),
                    octets(destination),
                    self.protocol,
                    len.saturating_sub(V6_HEADER),
                );
            }
        }
    }

    /// Says how long the headers of a fragment are.
    pub(crate) fn fragment_len(&self) -> usize {
        if self.source.is_ipv4() {
            V4_HEADER
        } else {
            V6_HEADER + 8
        }
    }

    /// Writes the headers of the fragment at `offset` (a multiple of eight, in bytes).
    pub(crate) fn write_fragment(&self, packet: &mut [u8], offset: usize, more: bool) {
        // Callers keep datagrams within 65,535 bytes, so the offset fits its field.
        let place = u16::try_from(offset).unwrap_or(u16::MAX);
        match (self.source, self.destination) {
            (IpAddr::V4(_), IpAddr::V4(_)) => {
                self.write_v4(packet, place >> 3 | u16::from(more) << 13)
            }
            (source, destination) => {
                let payload = packet.len().saturating_sub(V6_HEADER);
                write_v6(
                    packet,
                    octets(source),
                    octets(destination),
                    protocol::FRAGMENT,
                    payload,
                );
                if let Some(header) = packet.get_mut(V6_HEADER..V6_HEADER + 8) {
                    header[0] = self.protocol;
                    header[1] = 0;
                    header[2..4].copy_from_slice(&(place & 0xfff8 | u16::from(more)).to_be_bytes());
                    header[4..8].copy_from_slice(&self.ident.to_be_bytes());
                }
            }
        }
    }

    fn write_v4(&self, packet: &mut [u8], place: u16) {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (self.source, self.destination) else {
            return;
        };
        let total = u16::try_from(packet.len()).unwrap_or(u16::MAX);
        let Some((header, _)) = packet.split_first_chunk_mut::<V4_HEADER>() else {
            return;
        };
        header[0] = 0x45;
        header[1] = 0;
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[4..6].copy_from_slice(&((self.ident & 0xffff) as u16).to_be_bytes());
        header[6..8].copy_from_slice(&place.to_be_bytes());
        header[8] = HOP_LIMIT;
        header[9] = self.protocol;
        header[10..12].fill(0);
        header[12..16].copy_from_slice(&source.octets());
        header[16..20].copy_from_slice(&destination.octets());
        let sum = !checksum::fold(checksum::sum(header));
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Writes an IPv6 header without extension headers into the first 40 bytes of `packet`.
pub(crate) fn write_v6(
    packet: &mut [u8],
    source: [u8; 16],
    destination: [u8; 16],
    next: u8,
    payload: usize,
) {
    let Some((header, _)) = packet.split_first_chunk_mut::<V6_HEADER>() else {
        return;
    };
    header[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    header[4..6].copy_from_slice(&u16::try_from(payload).unwrap_or(u16::MAX).to_be_bytes());
    header[6] = next;
    header[7] = HOP_LIMIT;
    header[8..24].copy_from_slice(&source);
    header[24..40].copy_from_slice(&destination);
}

/// Gives the 16 bytes of an address in an IPv6 header.
pub(crate) fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The default of IANA's registry, as hosts use it.
const HOP_LIMIT: u8 = 64;

/// Makes the length in the header that of a packet that was cut short.
pub(crate) fn set_length(packet: &mut [u8]) {
    let len = packet.len();
    match packet.first().map(|first| first >> 4) {
        Some(4) => {
            let Ok(parsed_len) = u16::try_from(len) else {
                return;
            };
            let header_len = packet
                .first()
                .map_or(0, |first| usize::from(first & 0x0f) * 4);
            if let Some(header) = packet
                .get_mut(..header_len)
                .filter(|header| header.len() >= 20)
            {
                header[2..4].copy_from_slice(&parsed_len.to_be_bytes());
                header[10..12].fill(0);
                let sum = !checksum::fold(checksum::sum(header));
                header[10..12].copy_from_slice(&sum.to_be_bytes());
            }
        }
        Some(_) | None => {
            if let (Some(field), Ok(payload)) = (
                packet.get_mut(4..6),
                u16::try_from(len.saturating_sub(V6_HEADER)),
            ) {
                field.copy_from_slice(&payload.to_be_bytes());
            }
        }
    }
}
