//! Reads what the hold must know of a TCP segment.

use adit_netstack::{Packet, protocol};

/// The place of a segment in its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) sequence: u32,
    /// The sequence number that continues it.
    pub(super) end: u32,
    /// It begins or breaks off its flow.
    pub(super) control: Control,
}

/// What a segment does to its flow as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    Data,
    Syn,
    Rst,
}

impl Segment {
    /// Reads a segment that takes sequence space, or resets; none for everything else.
    pub(super) fn parse(packet: &Packet, bytes: &[u8]) -> Option<Segment> {
        if packet.protocol != protocol::TCP || packet.fragment.is_some() {
            return None;
        }
        let segment = bytes.get(packet.header_len..)?;
        let head = segment.first_chunk::<20>()?;
        let payload = segment.len().checked_sub(usize::from(head[12] >> 4) * 4)?;
        let flags = head[13];
        let control = match (flags & RST != 0, flags & SYN != 0) {
            (true, _) => Control::Rst,
            (false, true) => Control::Syn,
            (false, false) => Control::Data,
        };
        let phantom = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let len = u32::try_from(payload).ok()? + phantom;
        if len == 0 && control == Control::Data {
            return None;
        }
        let sequence = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        Some(Segment {
            sequence,
            end: sequence.wrapping_add(len),
            control,
        })
    }
}

/// Says whether sequence number `a` lies before `b` (RFC 9293 §3.4: compared modulo 2^32).
pub(super) fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
