//! Super-packets and owed checksums: what may be claimed of a packet, and what the kernel is told about it.
//!
//! A peer's virtio header never travels. What travels is [`Offload`]; it is checked against the packet itself by
//! [`Packet::check_offload`], and [`virtio_fields`] derives every other number from the packet.

use crate::checksum;
use crate::packet::{Packet, PacketError, V4_HEADER, V6_HEADER, protocol};

/// Says whether a packet is to be cut into segments, and how long their payloads are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    /// An ordinary packet.
    #[default]
    None,
    /// A TCP super-packet.
    Tcp {
        /// Payload bytes per segment.
        size: u16,
    },
    /// Several UDP datagrams of one flow behind one header.
    Udp {
        /// Payload bytes per datagram.
        size: u16,
    },
}

/// Says what the transport checksum field holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// The right checksum.
    #[default]
    Full,
    /// Nothing yet: whoever hands the packet to a network completes it.
    Partial,
}

/// Carries what must be known of a packet beside its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// How it is to be cut.
    pub gso: Gso,
    /// What its checksum field holds.
    pub checksum: Checksum,
}

impl Packet {
    /// Checks what is claimed of a packet, so that nothing a peer says reaches a kernel or a stack unchecked.
    ///
    /// An ordinary packet is at most `mtu` bytes. A super-packet is TCP or UDP, no fragment, without options or
    /// extension headers, its transport header is whole, it has no SYN, RST or URG, its checksum is partial, its
    /// segment size lies between one byte and `mtu` less the headers, and it makes at most 64 segments. A partial
    /// checksum is only for TCP and UDP under the same conditions of shape.
    ///
    /// `bytes` are those `self` was parsed from.
    ///
    /// # Errors
    /// The rule that is broken, with its numbers.
    pub fn check_offload(
        &self,
        bytes: &[u8],
        offload: Offload,
        mtu: u16,
    ) -> Result<(), PacketError> {
        let mtu = usize::from(mtu);
        if offload.checksum == Checksum::Partial {
            self.check_shape()?;
            checksum::checksum_offset(self, bytes.len())?;
        }
        let (size, expected) = match offload.gso {
            Gso::None => {
                return if bytes.len() > mtu {
                    Err(PacketError::TooLong {
                        len: bytes.len(),
                        mtu,
                    })
                } else {
                    Ok(())
                };
            }
            Gso::Tcp { size } => (usize::from(size), protocol::TCP),
            Gso::Udp { size } => (usize::from(size), protocol::UDP),
        };
        if self.protocol != expected {
            return Err(PacketError::OffloadShape {
                protocol: self.protocol,
            });
        }
        self.check_shape()?;
        if offload.checksum != Checksum::Partial {
            return Err(PacketError::SegmentChecksum);
        }
        let headers = self.header_len + self.transport_header(bytes)?;
        let max = mtu.saturating_sub(headers);
        if size < MIN_SEGMENT || size > max {
            return Err(PacketError::SegmentSize {
                size,
                min: MIN_SEGMENT,
                max,
            });
        }
        let segments = bytes.len().saturating_sub(headers).div_ceil(size);
        if segments > MAX_SEGMENTS {
            return Err(PacketError::SegmentCount {
                segments,
                max: MAX_SEGMENTS,
            });
        }
        Ok(())
    }

    fn check_shape(&self) -> Result<(), PacketError> {
        if self.fragment.is_some() || self.has_options {
            return Err(PacketError::OffloadShape {
                protocol: self.protocol,
            });
        }
        debug_assert!(self.header_len == V4_HEADER || self.header_len == V6_HEADER);
        Ok(())
    }

    /// Measures the transport header of what claims to be a super-packet.
    fn transport_header(&self, bytes: &[u8]) -> Result<usize, PacketError> {
        let segment = bytes.get(self.header_len..).unwrap_or_default();
        let truncated = PacketError::Truncated {
            needed: self.header_len + 20,
            len: bytes.len(),
        };
        if self.protocol == protocol::UDP {
            let (head, _) = segment.split_first_chunk::<8>().ok_or(truncated)?;
            let len = usize::from(u16::from_be_bytes([head[4], head[5]]));
            if len != segment.len() {
                return Err(PacketError::OffloadHeader {
                    header: len,
                    flags: 0,
                });
            }
            return Ok(8);
        }
        let (head, _) = segment.split_first_chunk::<20>().ok_or(truncated)?;
        let header = usize::from(head[12] >> 4) * 4;
        let flags = head[13];
        if header < 20 || header > segment.len() || flags & NEVER_IN_SUPER_PACKETS != 0 {
            return Err(PacketError::OffloadHeader { header, flags });
        }
        Ok(header)
    }
}

/// Holds what a `virtio_net_hdr` must say about a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioFields {
    /// `VIRTIO_NET_HDR_F_NEEDS_CSUM` (1) or nothing.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_NONE` (0), `_TCPV4` (1), `_TCPV6` (4) or `_UDP_L4` (5).
    pub gso_type: u8,
    /// The length of all headers.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where the checksum starts: at the transport header.
    pub csum_start: u16,
    /// Where it is stored, from there.
    pub csum_offset: u16,
}

/// Rebuilds the fields of a `virtio_net_hdr` from a packet that [`Packet::check_offload`] has accepted.
///
/// For a partial checksum the pseudo-header sum is written into the checksum field, as the kernel expects
/// (virtio 1.2 §5.1.6.2); a full one is left alone.
///
/// # Errors
/// [`PacketError`] if the packet does not have the shape it was checked for.
pub fn virtio_fields(
    bytes: &mut [u8],
    packet: &Packet,
    offload: Offload,
) -> Result<VirtioFields, PacketError> {
    if offload.checksum == Checksum::Full {
        return match offload.gso {
            Gso::None => Ok(VirtioFields::default()),
            Gso::Tcp { .. } | Gso::Udp { .. } => Err(PacketError::SegmentChecksum),
        };
    }
    let at = checksum::checksum_offset(packet, bytes.len())?;
    let len = bytes.len().saturating_sub(packet.header_len);
    let sum = checksum::fold(checksum::pseudo_header(
        packet.source,
        packet.destination,
        packet.protocol,
        len,
    ));
    let too_long = |len| PacketError::TooLong {
        len,
        mtu: usize::from(u16::MAX),
    };
    let short = |len: usize| u16::try_from(len).map_err(|_| too_long(len));
    let mut fields = VirtioFields {
        flags: NEEDS_CSUM,
        csum_start: short(packet.header_len)?,
        csum_offset: short(at)?,
        ..VirtioFields::default()
    };
    let (size, kind) = match (offload.gso, packet.source.is_ipv4()) {
        (Gso::None, _) => (0, GSO_NONE),
        (Gso::Tcp { size }, true) => (size, GSO_TCPV4),
        (Gso::Tcp { size }, false) => (size, GSO_TCPV6),
        (Gso::Udp { size }, _) => (size, GSO_UDP_L4),
    };
    if kind != GSO_NONE {
        let headers = packet.header_len + packet.transport_header(bytes)?;
        // What fits one segment is no super-packet to the kernel, which refuses it as one.
        if bytes.len() - headers > usize::from(size) {
            fields.gso_type = kind;
            fields.gso_size = size;
            fields.hdr_len = short(headers)?;
        }
    }
    let field = packet.header_len + at;
    if let Some(field) = bytes.get_mut(field..field + 2) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    Ok(fields)
}

/// The least segment size. Kernels really make small ones: 488 bytes for a host that announces an MSS of 500, and
/// whatever a run of equal small segments had when the receive side joined them. What a peer can make of one
/// packet is bounded by [`MAX_SEGMENTS`].
pub const MIN_SEGMENT: usize = 1;
/// The most segments of a super-packet: what a 64 KiB one has at the smallest common MTU, rounded up.
pub const MAX_SEGMENTS: usize = 64;
/// SYN, RST and URG: their meaning does not survive being cut into segments.
const NEVER_IN_SUPER_PACKETS: u8 = 0x02 | 0x04 | 0x20;
const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
