//! What travels beside a packet: how it is to be cut, and whether its checksum is complete.

/// How a packet is to be cut into wire packets: its segmentation offload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    /// It is a wire packet already.
    #[default]
    None,
    /// TCP segments of `size` payload bytes.
    Tcp {
        /// Payload bytes of each segment but the last.
        size: u16,
    },
    /// UDP datagrams of `size` payload bytes.
    Udp {
        /// Payload bytes of each datagram but the last.
        size: u16,
    },
}

/// The state of a packet's transport checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// It is there and right.
    #[default]
    Full,
    /// It is owed: whoever puts the packet on a wire completes it.
    Partial,
}

/// The offload metadata of one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// How it is to be cut.
    pub gso: Gso,
    /// The state of its transport checksum.
    pub checksum: Checksum,
}

/// What a virtio-net header says about a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioFields {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Length of all headers in bytes.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where the transport checksum begins to cover, from the start of the packet.
    pub csum_start: u16,
    /// Where the checksum field is, from `csum_start`.
    pub csum_offset: u16,
}
