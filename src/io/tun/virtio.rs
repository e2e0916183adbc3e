//! The header in front of every packet of a TUN device opened with `IFF_VNET_HDR`.
//!
//! ```text
//!  0       1        2        4         6           8            10
//!  ┌───────┬────────┬────────┬─────────┬───────────┬────────────┬─────────────
//!  │ flags │gso_type│ hdr_len│ gso_size│ csum_start│ csum_offset│ packet …        little endian
//!  └───────┴────────┴────────┴─────────┴───────────┴────────────┴─────────────
//! ```
//!
//! Source: `struct virtio_net_hdr` of the Virtual I/O Device specification 1.2, section 5.1.6, which the kernel's TUN
//! driver borrows. What the kernel says here is trusted as far as the kernel is; what a peer says is never put here
//! unchecked: the header toward the kernel is rebuilt from the packet itself.

use adit_netstack::{Checksum, Gso, Offload, VirtioFields};

/// A decoded virtio-net header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioHeader {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Length of all headers of the packet in bytes; a hint.
    pub hdr_len: u16,
    /// Payload bytes per segment of a super-packet, else 0.
    pub gso_size: u16,
    /// Where the owed checksum begins to cover, in bytes from the start of the packet.
    pub csum_start: u16,
    /// Where the checksum field is, in bytes from `csum_start`.
    pub csum_offset: u16,
}

impl VirtioHeader {
    /// Length in bytes.
    pub const LEN: usize = 10;

    /// Splits what was read from the device into header and packet.
    ///
    /// # Errors
    /// [`VirtioError::Truncated`] when there are fewer than [`VirtioHeader::LEN`] bytes.
    pub fn split(bytes: &[u8]) -> Result<(Self, &[u8]), VirtioError> {
        let truncated = VirtioError::Truncated {
            length: bytes.len(),
        };
        let (header, packet) = bytes
            .split_first_chunk::<{ Self::LEN }>()
            .ok_or(truncated)?;
        Ok((Self::decode(header), packet))
    }

    /// Decodes the ten bytes.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = *bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        }
    }

    /// Encodes into the ten bytes.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }

    /// Says what the wire says about the packet: how it is to be cut, and whether its checksum is owed.
    ///
    /// `NEEDS_CSUM` means owed. `DATA_VALID` and no flag at all mean that the checksum is complete.
    ///
    /// # Errors
    /// [`VirtioError::GsoType`] for a kind of offload that was not asked for (UDP fragmentation, a future one) and
    /// [`VirtioError::GsoSize`] for a super-packet of segments without payload.
    pub fn offload(&self) -> Result<Offload, VirtioError> {
        let checksum = if self.flags & NEEDS_CSUM != 0 {
            Checksum::Partial
        } else {
            Checksum::Full
        };
        let size = self.gso_size;
        // The bit for ECN changes how the kernel sets CWR on the segments and nothing about where they are cut.
        let gso = match self.gso_type & !GSO_ECN {
            GSO_NONE => Gso::None,
            GSO_TCPV4 | GSO_TCPV6 => Gso::Tcp { size },
            GSO_UDP_L4 => Gso::Udp { size },
            gso_type => return Err(VirtioError::GsoType { gso_type }),
        };
        if gso != Gso::None && size == 0 {
            return Err(VirtioError::GsoSize);
        }
        Ok(Offload { gso, checksum })
    }
}

impl From<VirtioFields> for VirtioHeader {
    fn from(fields: VirtioFields) -> Self {
        let VirtioFields {
            flags,
            gso_type,
            hdr_len,
            gso_size,
            csum_start,
            csum_offset,
        } = fields;
        Self {
            flags,
            gso_type,
            hdr_len,
            gso_size,
            csum_start,
            csum_offset,
        }
    }
}

/// Why a virtio-net header from the device cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VirtioError {
    /// The device gave less than a header.
    #[error("{length} bytes are less than a header of 10")]
    Truncated {
        /// Bytes read.
        length: usize,
    },
    /// A kind of segmentation offload that was not asked for.
    #[error("segmentation offload of unknown kind {gso_type}")]
    GsoType {
        /// The kind without the ECN bit.
        gso_type: u8,
    },
    /// Segments of no payload.
    #[error("super-packet with segments of 0 bytes")]
    GsoSize,
}

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
pub const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`.
pub const DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_NONE`.
pub const GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
pub const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`.
pub const GSO_TCPV6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`.
pub const GSO_UDP_L4: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`, a bit beside the kinds.
pub const GSO_ECN: u8 = 0x80;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn header_is_little_endian_in_the_specified_order() {
        let header = VirtioHeader {
            flags: 1,
            gso_type: 4,
            hdr_len: 0x0302,
            gso_size: 0x0504,
            csum_start: 0x0706,
            csum_offset: 0x0908,
        };
        assert_eq!(header.encode(), [1, 4, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(VirtioHeader::decode(&header.encode()), header);
    }

    #[test]
    fn owed_checksum_is_partial_and_all_else_full() {
        let with = |flags| {
            VirtioHeader {
                flags,
                ..VirtioHeader::default()
            }
            .offload()
            .unwrap()
            .checksum
        };
        assert_eq!(with(NEEDS_CSUM), Checksum::Partial);
        assert_eq!(with(DATA_VALID), Checksum::Full);
        assert_eq!(with(0), Checksum::Full);
        assert_eq!(with(NEEDS_CSUM | DATA_VALID), Checksum::Partial);
    }

    #[test]
    fn kinds_of_offload_are_told_apart_and_ecn_is_ignored() {
        let with = |gso_type| {
            VirtioHeader {
                gso_type,
                gso_size: 1348,
                ..VirtioHeader::default()
            }
            .offload()
        };
        assert_eq!(with(GSO_NONE).unwrap().gso, Gso::None);
        assert_eq!(with(GSO_TCPV4).unwrap().gso, Gso::Tcp { size: 1348 });
        assert_eq!(
            with(GSO_TCPV6 | GSO_ECN).unwrap().gso,
            Gso::Tcp { size: 1348 }
        );
        assert_eq!(with(GSO_UDP_L4).unwrap().gso, Gso::Udp { size: 1348 });
        // UDP fragmentation offload was never asked for.
        assert_eq!(with(3), Err(VirtioError::GsoType { gso_type: 3 }));
        assert_eq!(with(0x7f), Err(VirtioError::GsoType { gso_type: 0x7f }));
    }

    #[test]
    fn super_packet_without_a_segment_size_is_refused() {
        let header = VirtioHeader {
            gso_type: GSO_TCPV4,
            ..VirtioHeader::default()
        };
        assert_eq!(header.offload(), Err(VirtioError::GsoSize));
    }

    #[test]
    fn short_read_is_refused() {
        assert_eq!(
            VirtioHeader::split(&[0; 9]),
            Err(VirtioError::Truncated { length: 9 })
        );
        assert_eq!(
            VirtioHeader::split(&[0; 10]),
            Ok((VirtioHeader::default(), &[][..]))
        );
    }

    proptest! {
        #[test]
        fn any_ten_bytes_decode_and_encode_to_themselves(bytes: [u8; 10], rest: Vec<u8>) {
            let whole = [&bytes[..], &rest].concat();
            let (header, packet) = VirtioHeader::split(&whole).unwrap();
            prop_assert_eq!(header.encode(), bytes);
            prop_assert_eq!(packet, &rest[..]);
            let _ = header.offload();
        }
    }
}
