//! The packets of the inner endpoints: real IPv4 with TCP or UDP, with valid checksums and payloads of zeros.

use std::net::Ipv4Addr;

use thiserror::Error;

/// An end of the link, of the tunnel and of every flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Where the uplink begins.
    Client,
    /// Where the downlink begins.
    Server,
}

impl Side {
    /// The end at the other side.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    /// 0 for the client, 1 for the server.
    pub fn index(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Server => 1,
        }
    }

    /// The address of the host at this end.
    pub fn address(self) -> Ipv4Addr {
        match self {
            Self::Client => Ipv4Addr::new(10, 9, 0, 1),
            Self::Server => Ipv4Addr::new(10, 9, 0, 2),
        }
    }
}

/// An IP packet on its way into or out of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The packet, from its IP header on.
    pub bytes: Vec<u8>,
    /// For a super-packet: payload bytes of each of its segments. Its transport checksum is partial then.
    pub segment: Option<u16>,
}

impl Packet {
    /// Cuts a TCP super-packet into wire packets with whole checksums and numbers of their own; another packet is
    /// given as it is.
    pub fn cut(self) -> Vec<Vec<u8>> {
        let (Some(size), Ok(inner)) = (self.segment, Inner::read(&self.bytes, false)) else {
            return vec![self.bytes];
        };
        let Transport::Tcp(whole) = inner.transport else {
            return vec![self.bytes];
        };
        let size = usize::from(size.max(1));
        (0..whole.payload.div_ceil(size))
            .map(|index| {
                let at = index * size;
                let segment = Segment {
                    sequence: whole.sequence.wrapping_add(at as u32),
                    payload: size.min(whole.payload - at),
                    ..whole
                };
                let part = Inner {
                    ident: inner.ident.wrapping_add(index as u16),
                    transport: Transport::Tcp(segment),
                    ..inner
                };
                part.write()
            })
            .collect()
    }
}

/// What the endpoints read of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inner {
    /// The flow: both ports say it.
    pub(super) flow: usize,
    /// Where it comes from.
    pub(super) from: Side,
    /// Of the IP header: a number per flow and direction.
    pub(super) ident: u16,
    pub(super) transport: Transport,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp(Segment),
    Udp(Message),
}

/// A TCP segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) sequence: u32,
    pub(super) ack: u32,
    pub(super) syn: bool,
    pub(super) has_ack: bool,
    pub(super) window: u16,
    pub(super) mss: Option<u16>,
    pub(super) scale: Option<u8>,
    pub(super) sack_permitted: bool,
    /// Value and echo (RFC 7323, section 3).
    pub(super) timestamps: Option<(u32, u32)>,
    pub(super) sack: SackBlocks,
    /// Payload bytes.
    pub(super) payload: usize,
}

/// At most four ranges of sequence numbers, of which three fit beside timestamps (RFC 2018, section 3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SackBlocks {
    blocks: [(u32, u32); 4],
    len: usize,
}

/// A UDP datagram of a talker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// The number of the message: the first eight bytes of its payload.
    pub(super) number: u64,
    /// Payload bytes, these included.
    pub(super) payload: usize,
}

impl SackBlocks {
    pub(super) fn push(&mut self, block: (u32, u32)) {
        if let Some(slot) = self.blocks.get_mut(self.len) {
            *slot = block;
            self.len += 1;
        }
    }

    pub(super) fn as_slice(&self) -> &[(u32, u32)] {
        &self.blocks[..self.len]
    }
}

impl Inner {
    /// Payload bytes of the transport.
    pub(super) fn payload(&self) -> usize {
        match &self.transport {
            Transport::Tcp(segment) => segment.payload,
            Transport::Udp(message) => message.payload,
        }
    }

    /// Writes the packet.
    pub(super) fn write(&self) -> Vec<u8> {
        match &self.transport {
            Transport::Tcp(segment) => self.write_tcp(segment),
            Transport::Udp(message) => self.write_udp(message),
        }
    }

    /// Reads a packet and checks both checksums; the transport's only where `check_transport` asks for it.
    ///
    /// # Errors
    ///
    /// What is wrong with the packet.
    pub(super) fn read(bytes: &[u8], check_transport: bool) -> Result<Self, PacketError> {
        let (header, transport) = bytes
            .split_first_chunk::<IP_HEADER>()
            .ok_or(PacketError::Short { len: bytes.len() })?;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header[0] != 0x45 || total != bytes.len() {
            return Err(PacketError::Header);
        }
        if fold(sum(header)) != 0xffff {
            return Err(PacketError::Checksum);
        }
        let from = match header[12..16] {
            [10, 9, 0, 1] => Side::Client,
            [10, 9, 0, 2] => Side::Server,
            _ => return Err(PacketError::Header),
        };
        let protocol = header[9];
        if check_transport && fold(pseudo(protocol, transport.len()) + sum(transport)) != 0xffff {
            return Err(PacketError::Checksum);
        }
        let (ports, _) = transport
            .split_first_chunk::<4>()
            .ok_or(PacketError::Short { len: bytes.len() })?;
        let port = u16::from_be_bytes([ports[0], ports[1]]);
        if ports[..2] != ports[2..] || port < FIRST_PORT {
            return Err(PacketError::Header);
        }
        let transport = match protocol {
            TCP => Transport::Tcp(read_tcp(transport).ok_or(PacketError::Header)?),
            UDP => Transport::Udp(read_udp(transport).ok_or(PacketError::Header)?),
            _ => return Err(PacketError::Header),
        };
        Ok(Self {
            flow: usize::from(port - FIRST_PORT),
            from,
            ident: u16::from_be_bytes([header[4], header[5]]),
            transport,
        })
    }

    fn write_tcp(&self, segment: &Segment) -> Vec<u8> {
        let mut options = [0u8; 40];
        let mut used = 0;
        let mut put = |bytes: &[u8]| {
            options[used..used + bytes.len()].copy_from_slice(bytes);
            used += bytes.len();
        };
        if let Some(mss) = segment.mss {
            let [high, low] = mss.to_be_bytes();
            put(&[2, 4, high, low]);
        }
        if let Some(scale) = segment.scale {
            put(&[1, 3, 3, scale]);
        }
        if segment.sack_permitted {
            put(&[1, 1, 4, 2]);
        }
        if let Some((value, echo)) = segment.timestamps {
            put(&[1, 1, 8, 10]);
            put(&value.to_be_bytes());
            put(&echo.to_be_bytes());
        }
        let blocks = segment.sack.as_slice();
        if !blocks.is_empty() {
            put(&[1, 1, 5, 2 + 8 * blocks.len() as u8]);
            for (start, end) in blocks {
                put(&start.to_be_bytes());
                put(&end.to_be_bytes());
            }
        }
        let header = TCP_HEADER + used;
        let mut bytes = self.begin(TCP, header + segment.payload);
        let at = &mut bytes[IP_HEADER..IP_HEADER + header];
        at[4..8].copy_from_slice(&segment.sequence.to_be_bytes());
        at[8..12].copy_from_slice(&segment.ack.to_be_bytes());
        at[12] = ((header / 4) << 4) as u8;
        let push = segment.payload > 0;
        at[13] = (u8::from(segment.has_ack) * ACK)
            | (u8::from(segment.syn) * SYN)
            | (u8::from(push) * PSH);
        at[14..16].copy_from_slice(&segment.window.to_be_bytes());
        at[20..20 + used].copy_from_slice(&options[..used]);
        // the payload is zeros, which add nothing
        let checksum = !fold(pseudo(TCP, header + segment.payload) + sum(at));
        at[16..18].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    fn write_udp(&self, message: &Message) -> Vec<u8> {
        let payload = message.payload.max(8);
        let mut bytes = self.begin(UDP, UDP_HEADER + payload);
        let at = &mut bytes[IP_HEADER..IP_HEADER + UDP_HEADER + 8];
        at[4..6].copy_from_slice(&((UDP_HEADER + payload) as u16).to_be_bytes());
        at[8..16].copy_from_slice(&message.number.to_be_bytes());
        let checksum = !fold(pseudo(UDP, UDP_HEADER + payload) + sum(at));
        let checksum = if checksum == 0 { 0xffff } else { checksum };
        at[6..8].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    /// A packet of zeros behind an IP header, with both ports.
    fn begin(&self, protocol: u8, transport: usize) -> Vec<u8> {
        let mut bytes = vec![0; IP_HEADER + transport];
        let header = &mut bytes[..IP_HEADER];
        header[0] = 0x45;
        header[2..4].copy_from_slice(&((IP_HEADER + transport) as u16).to_be_bytes());
        header[4..6].copy_from_slice(&self.ident.to_be_bytes());
        header[6] = 0x40;
        header[8] = 64;
        header[9] = protocol;
        header[12..16].copy_from_slice(&self.from.address().octets());
        header[16..20].copy_from_slice(&self.from.other().address().octets());
        let checksum = !fold(sum(header));
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        let port = (FIRST_PORT + self.flow as u16).to_be_bytes();
        bytes[IP_HEADER..IP_HEADER + 2].copy_from_slice(&port);
        bytes[IP_HEADER + 2..IP_HEADER + 4].copy_from_slice(&port);
        bytes
    }
}

/// A packet that is not one of the simulator's.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PacketError {
    /// Cut off.
    #[error("{len} bytes are no packet")]
    Short {
        /// What is there.
        len: usize,
    },
    /// A checksum that does not fit.
    #[error("a checksum does not fit")]
    Checksum,
    /// A header that no endpoint writes.
    #[error("a header that no endpoint of the simulator writes")]
    Header,
}

fn read_tcp(bytes: &[u8]) -> Option<Segment> {
    let (head, _) = bytes.split_first_chunk::<TCP_HEADER>()?;
    let header = usize::from(head[12] >> 4) * 4;
    let mut options = bytes.get(TCP_HEADER..header)?;
    let word = |at: &[u8]| Some(u32::from_be_bytes(*at.first_chunk::<4>()?));
    let mut segment = Segment {
        sequence: word(&head[4..])?,
        ack: word(&head[8..])?,
        syn: head[13] & SYN != 0,
        has_ack: head[13] & ACK != 0,
        window: u16::from_be_bytes([head[14], head[15]]),
        payload: bytes.len() - header,
        ..Segment::default()
    };
    while let Some((kind, rest)) = options.split_first() {
        if *kind == 1 {
            options = rest;
            continue;
        }
        let len = usize::from(*rest.first()?);
        let value = options.get(2..len)?;
        match *kind {
            2 => segment.mss = Some(u16::from_be_bytes(*value.first_chunk::<2>()?)),
            3 => segment.scale = Some(*value.first()?),
            4 => segment.sack_permitted = true,
            5 => {
                for block in value.chunks_exact(8) {
                    segment.sack.push((word(block)?, word(&block[4..])?));
                }
            }
            8 => segment.timestamps = Some((word(value)?, word(value.get(4..)?)?)),
            _ => {}
        }
        options = options.get(len..)?;
    }
    Some(segment)
}

fn read_udp(bytes: &[u8]) -> Option<Message> {
    let (head, _) = bytes.split_first_chunk::<{ UDP_HEADER + 8 }>()?;
    if usize::from(u16::from_be_bytes([head[4], head[5]])) != bytes.len() {
        return None;
    }
    Some(Message {
        number: u64::from_be_bytes(*head[8..].first_chunk::<8>()?),
        payload: bytes.len() - UDP_HEADER,
    })
}

/// The pseudo-header of the two hosts, whose sum does not depend on the direction.
fn pseudo(protocol: u8, len: usize) -> u64 {
    let (a, b) = (
        Side::Client.address().octets(),
        Side::Server.address().octets(),
    );
    sum(&a) + sum(&b) + u64::from(u16::from(protocol).to_be()) + u64::from((len as u16).to_be())
}

/// The sum of RFC 1071 in the machine's own order, unfolded.
fn sum(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; 4];
    let mut blocks = bytes.chunks_exact(16);
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

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::from_be(sum as u16)
}

/// The most flows of a world.
pub(super) const MAX_FLOWS: usize = 50_000;
/// The length of an IPv4 header without options.
pub(super) const IP_HEADER: usize = 20;
/// The length of a TCP header without options.
pub(super) const TCP_HEADER: usize = 20;
/// The length of a UDP header.
pub(super) const UDP_HEADER: usize = 8;
/// Flow 0.
const FIRST_PORT: u16 = 10_000;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 0x02;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment() -> impl Strategy<Value = Segment> {
        let numbers = (
            any::<u32>(),
            any::<u32>(),
            any::<bool>(),
            any::<bool>(),
            any::<u16>(),
        );
        let options = (
            proptest::option::of(any::<u16>()),
            proptest::option::of(any::<u8>()),
            any::<bool>(),
            proptest::option::of(any::<(u32, u32)>()),
        );
        (numbers, options, any::<[(u32, u32); 2]>(), 0usize..1400).prop_map(
            |(numbers, options, blocks, payload)| {
                let mut sack = SackBlocks::default();
                for block in &blocks[..usize::from(payload % 2 == 0)] {
                    sack.push(*block);
                }
                Segment {
                    sequence: numbers.0,
                    ack: numbers.1,
                    syn: numbers.2,
                    has_ack: numbers.3,
                    window: numbers.4,
                    mss: options.0,
                    scale: options.1,
                    sack_permitted: options.2,
                    timestamps: options.3,
                    sack,
                    payload,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn written_segment_is_read_back(segment in segment(), flow in 0usize..100, ident: u16) {
            let inner = Inner { flow, from: Side::Server, ident, transport: Transport::Tcp(segment) };
            let bytes = inner.write();
            prop_assert_eq!(bytes.len(), usize::from(u16::from_be_bytes([bytes[2], bytes[3]])));
            prop_assert_eq!(Inner::read(&bytes, true), Ok(inner));
        }

        #[test]
        fn written_message_is_read_back(number: u64, payload in 8usize..1400) {
            let message = Message { number, payload };
            let inner = Inner { flow: 3, from: Side::Client, ident: 9, transport: Transport::Udp(message) };
            prop_assert_eq!(Inner::read(&inner.write(), true), Ok(inner));
        }

        #[test]
        fn any_flipped_bit_is_noticed(segment in segment(), at: prop::sample::Index, bit in 0u8..8) {
            let inner = Inner { flow: 1, from: Side::Client, ident: 1, transport: Transport::Tcp(segment) };
            let mut bytes = inner.write();
            let index = at.index(bytes.len());
            bytes[index] ^= 1 << bit;
            prop_assert!(Inner::read(&bytes, true).is_err());
        }

        #[test]
        fn super_packet_is_cut_into_segments_that_cover_it(count in 2usize..40, last in 1usize..1348) {
            let segment = Segment { sequence: u32::MAX - 5000, has_ack: true, payload: (count - 1) * 1348 + last, ..Segment::default() };
            let inner = Inner { flow: 1, from: Side::Client, ident: 65_530, transport: Transport::Tcp(segment) };
            let packet = Packet { bytes: inner.write(), segment: Some(1348) };
            let (mut next, mut ident) = (segment.sequence, 65_530u16);
            for bytes in packet.cut() {
                let part = Inner::read(&bytes, true).unwrap();
                let Transport::Tcp(segment) = part.transport else { panic!("{part:?}") };
                prop_assert_eq!((segment.sequence, part.ident), (next, ident));
                next = next.wrapping_add(segment.payload as u32);
                ident = ident.wrapping_add(1);
            }
            prop_assert_eq!(next, segment.sequence.wrapping_add(segment.payload as u32));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Inner::read(&bytes, false);
        }
    }
}
