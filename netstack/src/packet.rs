//! Parses IP packets once, at the edge, into what everybody downstream needs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum;

/// Names the IP protocol numbers this crate acts on.
pub mod protocol {
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const DESTINATION: u8 = 60;
}

/// Describes one whole IP packet whose headers were checked.
///
/// It borrows nothing: offsets refer to the bytes it was parsed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Packet {
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The transport protocol: what follows the last header that was walked.
    pub protocol: u8,
    /// The length of the IP header with its options or extension headers; the transport header starts here.
    pub header_len: usize,
    /// The time to live or hop limit.
    pub hop_limit: u8,
    /// What the packet is a part of, if it is a fragment.
    pub fragment: Option<Fragment>,
    /// Source and destination port of TCP and UDP; none for a later fragment.
    pub ports: Option<(u16, u16)>,
    /// True if there are IPv4 options or IPv6 extension headers.
    pub has_options: bool,
}

/// Places a fragment in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fragment {
    /// The identification that all fragments of a datagram share.
    pub ident: u32,
    /// Where the payload belongs, in bytes.
    pub offset: u16,
    /// True unless this is the last fragment.
    pub more: bool,
    /// Where in the packet the fragment's payload starts, in bytes.
    pub(crate) payload_at: usize,
    /// The protocol of the datagram's first payload byte.
    pub(crate) next: u8,
}

impl Packet {
    /// Parses and checks one whole IPv4 or IPv6 packet.
    ///
    /// Checked are: version, header length, total length equal to `bytes.len()`, the IPv4 header checksum, at most
    /// eight extension headers, and that an unfragmented TCP or UDP packet holds its ports.
    ///
    /// # Errors
    /// The first thing found wrong, with its numbers.
    pub fn parse(bytes: &[u8]) -> Result<Packet, PacketError> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => parse_v4(bytes),
            Some(6) => parse_v6(bytes),
            Some(version) => Err(PacketError::Version { version }),
            None => Err(PacketError::Truncated { needed: 20, len: 0 }),
        }
    }
}

/// Says why a packet is not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PacketError {
    /// Fewer bytes than the headers need.
    #[error("packet has {len} bytes where its headers need {needed}")]
    Truncated {
        /// Bytes needed.
        needed: usize,
        /// Bytes there.
        len: usize,
    },
    /// Neither IPv4 nor IPv6.
    #[error("ip version {version} is neither 4 nor 6")]
    Version {
        /// The version found.
        version: u8,
    },
    /// The length in the header is not that of the buffer.
    #[error("ip header says {header} bytes, the packet has {len}")]
    Length {
        /// What the header says.
        header: usize,
        /// Bytes there.
        len: usize,
    },
    /// The IPv4 header checksum does not fit.
    #[error("ipv4 header checksum is wrong")]
    HeaderChecksum,
    /// More extension headers than are walked.
    #[error("more than {limit} ipv6 extension headers")]
    ExtensionHeaders {
        /// How many are walked.
        limit: usize,
    },
    /// A fragment that cannot be part of any datagram.
    #[error("fragment at offset {offset} with {len} bytes is malformed")]
    Fragment {
        /// Its offset in bytes.
        offset: usize,
        /// Its payload in bytes.
        len: usize,
    },
    /// The TCP, UDP or ICMP checksum does not fit.
    #[error("checksum of protocol {protocol} is wrong")]
    TransportChecksum {
        /// The IP protocol number.
        protocol: u8,
    },
    /// A transport checksum was asked for where there is none.
    #[error("protocol {protocol} has no transport checksum here")]
    NoTransportChecksum {
        /// The IP protocol number.
        protocol: u8,
    },
    /// Longer than the inner MTU without being a super-packet.
    #[error("packet of {len} bytes exceeds the mtu of {mtu}")]
    TooLong {
        /// Its length.
        len: usize,
        /// The inner MTU.
        mtu: usize,
    },
    /// Offload asked for on a fragment, on options or extension headers, or on another protocol.
    #[error("offload is not allowed on this kind of packet (protocol {protocol})")]
    OffloadShape {
        /// The IP protocol number.
        protocol: u8,
    },
    /// A super-packet whose transport header is not acceptable.
    #[error("super-packet has a transport header of {header} bytes and flags {flags:#04x}")]
    OffloadHeader {
        /// What its data offset or length says.
        header: usize,
        /// The TCP flags.
        flags: u8,
    },
    /// A segment size outside what the inner MTU allows.
    #[error("segment size {size} is outside {min}..={max}")]
    SegmentSize {
        /// The size asked for.
        size: usize,
        /// The least allowed.
        min: usize,
        /// The most allowed.
        max: usize,
    },
    /// More segments than a super-packet may have.
    #[error("super-packet of {segments} segments, at most {max} are allowed")]
    SegmentCount {
        /// How many it has.
        segments: usize,
        /// How many it may have.
        max: usize,
    },
    /// A super-packet whose checksum is not marked partial.
    #[error("super-packet without a partial checksum")]
    SegmentChecksum,
}

/// The length of an IPv6 header without extension headers.
pub(crate) const V6_HEADER: usize = 40;
/// The length of an IPv4 header without options.
pub(crate) const V4_HEADER: usize = 20;
/// Real packets have one to three; walking is bounded so that a packet of nothing but headers costs little.
const MAX_EXTENSION_HEADERS: usize = 8;

fn parse_v4(bytes: &[u8]) -> Result<Packet, PacketError> {
    let len = bytes.len();
    let Some((fixed, _)) = bytes.split_first_chunk::<V4_HEADER>() else {
        return Err(PacketError::Truncated {
            needed: V4_HEADER,
            len,
        });
    };
    let header_len = usize::from(fixed[0] & 0x0f) * 4;
    let Some(header) = bytes
        .get(..header_len)
        .filter(|header| header.len() >= V4_HEADER)
    else {
        return Err(PacketError::Truncated {
            needed: header_len.max(V4_HEADER),
            len,
        });
    };
    let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if total != len {
        return Err(PacketError::Length { header: total, len });
    }
    if checksum::fold(checksum::sum(header)) != 0xffff {
        return Err(PacketError::HeaderChecksum);
    }
    let flags = u16::from_be_bytes([fixed[6], fixed[7]]);
    let (offset, more) = (usize::from(flags & 0x1fff) * 8, flags & 0x2000 != 0);
    let protocol = fixed[9];
    let fragment = if more || offset != 0 {
        let ident = u32::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        Some(check_fragment(
            ident, offset, more, header_len, protocol, len,
        )?)
    } else {
        None
    };
    Ok(Packet {
        source: IpAddr::V4(Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15])),
        destination: IpAddr::V4(Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19])),
        protocol,
        header_len,
        hop_limit: fixed[8],
        fragment,
        ports: ports(bytes, header_len, protocol, fragment)?,
        has_options: header_len > V4_HEADER,
    })
}

fn parse_v6(bytes: &[u8]) -> Result<Packet, PacketError> {
    let len = bytes.len();
    let Some((fixed, _)) = bytes.split_first_chunk::<V6_HEADER>() else {
        return Err(PacketError::Truncated {
            needed: V6_HEADER,
            len,
        });
    };
    let total = V6_HEADER + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    if total != len {
        return Err(PacketError::Length { header: total, len });
    }
    let mut protocol = fixed[6];
    let mut header_len = V6_HEADER;
    let mut fragment = None;
    let mut walked = 0;
    while matches!(
        protocol,
        protocol::HOP_BY_HOP | protocol::ROUTING | protocol::FRAGMENT | protocol::DESTINATION
    ) {
        if walked == MAX_EXTENSION_HEADERS {
            return Err(PacketError::ExtensionHeaders {
                limit: MAX_EXTENSION_HEADERS,
            });
        }
        walked += 1;
        let Some((head, _)) = bytes
            .get(header_len..)
            .and_then(<[u8]>::split_first_chunk::<8>)
        else {
            return Err(PacketError::Truncated {
                needed: header_len + 8,
                len,
            });
        };
        if protocol == protocol::FRAGMENT {
            if fragment.is_some() {
                return Err(PacketError::ExtensionHeaders { limit: 1 });
            }
            let place = u16::from_be_bytes([head[2], head[3]]);
            let (offset, more) = (usize::from(place & 0xfff8), place & 1 != 0);
            let ident = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
            header_len += 8;
            fragment = Some(check_fragment(
                ident, offset, more, header_len, head[0], len,
            )?);
            protocol = head[0];
            if offset != 0 {
                // What follows is the middle of a datagram and no header, whatever its first byte says.
                break;
            }
        } else {
            header_len += 8 + usize::from(head[1]) * 8;
            if header_len > len {
                return Err(PacketError::Truncated {
                    needed: header_len,
                    len,
                });
            }
            protocol = head[0];
        }
    }
    Ok(Packet {
        source: IpAddr::V6(address_v6(fixed, 8)),
        destination: IpAddr::V6(address_v6(fixed, 24)),
        protocol,
        header_len,
        hop_limit: fixed[7],
        fragment,
        ports: ports(bytes, header_len, protocol, fragment)?,
        has_options: walked > 0,
    })
}

fn address_v6(header: &[u8; V6_HEADER], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&header[at..at + 16]);
    Ipv6Addr::from(octets)
}

fn check_fragment(
    ident: u32,
    offset: usize,
    more: bool,
    payload_at: usize,
    next: u8,
    len: usize,
) -> Result<Fragment, PacketError> {
    let payload = len.saturating_sub(payload_at);
    let malformed = Err(PacketError::Fragment {
        offset,
        len: payload,
    });
    // RFC 791, RFC 8200 §4.5: all but the last carry a multiple of eight bytes, and no datagram exceeds 65,535.
    if payload == 0
        || (more && !payload.is_multiple_of(8))
        || offset + payload > usize::from(u16::MAX)
    {
        return malformed;
    }
    let Ok(offset) = u16::try_from(offset) else {
        return malformed;
    };
    Ok(Fragment {
        ident,
        offset,
        more,
        payload_at,
        next,
    })
}

fn ports(
    bytes: &[u8],
    header_len: usize,
    protocol: u8,
    fragment: Option<Fragment>,
) -> Result<Option<(u16, u16)>, PacketError> {
    if !matches!(protocol, protocol::TCP | protocol::UDP)
        || fragment.is_some_and(|fragment| fragment.offset != 0)
    {
        return Ok(None);
    }
    match bytes
        .get(header_len..)
        .and_then(<[u8]>::split_first_chunk::<4>)
    {
        Some((ports, _)) => Ok(Some((
            u16::from_be_bytes([ports[0], ports[1]]),
            u16::from_be_bytes([ports[2], ports[3]]),
        ))),
        None if fragment.is_some() => Ok(None),
        None => Err(PacketError::Truncated {
            needed: header_len + 4,
            len: bytes.len(),
        }),
    }
}

/// Says whether an address can be one end of a flow: neither unspecified, nor multicast, nor broadcast.
pub(crate) fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !(address.is_unspecified() || address.is_multicast() || address.is_broadcast())
        }
        IpAddr::V6(address) => !(address.is_unspecified() || address.is_multicast()),
    }
}
