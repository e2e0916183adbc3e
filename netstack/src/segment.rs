//! Reads the few fields of a TCP header that the stack acts on beside smoltcp, and writes bare segments.

use crate::header::{self, Header};
use crate::packet::protocol;

/// The fields of one TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) sequence: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    /// The length of the header with its options.
    pub(crate) header: usize,
    /// Payload bytes.
    pub(crate) payload: usize,
}

impl Segment {
    /// Reads a TCP header; none if it is cut short or its data offset leaves the segment.
    pub(crate) fn parse(segment: &[u8]) -> Option<Segment> {
        let (head, _) = segment.split_first_chunk::<TCP_HEADER>()?;
        let header = usize::from(head[12] >> 4) * 4;
        if header < TCP_HEADER || header > segment.len() {
            return None;
        }
        Some(Segment {
            sequence: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
            ack: u32::from_be_bytes([head[8], head[9], head[10], head[11]]),
            flags: head[13],
            header,
            payload: segment.len() - header,
        })
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Says how much sequence space the segment takes, and so where the next one starts.
    pub(crate) fn end(&self) -> u32 {
        let control = u32::from(self.has(SYN)) + u32::from(self.has(FIN));
        // A payload is at most 65,515 bytes.
        self.sequence
            .wrapping_add(self.payload as u32)
            .wrapping_add(control)
    }
}

/// Finds the maximum segment size option of a TCP header (RFC 9293 §3.7.1) and lends its value.
pub(crate) fn mss_option(segment: &mut [u8]) -> Option<&mut [u8; 2]> {
    let at = find_option(segment, 2, 4)?;
    segment.get_mut(at + 2..at + 4)?.first_chunk_mut::<2>()
}

/// Says whether a SYN tells a scale of windows (RFC 7323 §2.2); without one in both, none is scaled.
pub(crate) fn has_window_scale(segment: &[u8]) -> bool {
    find_option(segment, 3, 3).is_some()
}

/// Finds where an option of this kind and length begins.
fn find_option(segment: &[u8], wanted: u8, wanted_len: usize) -> Option<usize> {
    let header = Segment::parse(segment)?.header;
    let mut at = TCP_HEADER;
    while at < header {
        match *segment.get(at)? {
            0 => return None,
            1 => at += 1,
            kind => {
                let len = usize::from(*segment.get(at + 1)?);
                if len < 2 || at + len > header {
                    return None;
                }
                if kind == wanted && len == wanted_len {
                    return Some(at);
                }
                at += len;
            }
        }
    }
    None
}

/// Lowers the option of a SYN to `most` and says which size counts: RFC 9293 makes it 536 where there is none.
pub(crate) fn clamp_mss(segment: &mut [u8], most: u16) -> u16 {
    let Some(option) = mss_option(segment) else {
        return DEFAULT_MSS.min(most);
    };
    match u16::from_be_bytes(*option) {
        0 => DEFAULT_MSS.min(most),
        size => {
            let size = size.min(most);
            *option = size.to_be_bytes();
            size.max(MIN_MSS)
        }
    }
}

/// Writes a segment without options as a whole packet into `out`, with `zeros` bytes of payload; its checksum is left
/// partial.
pub(crate) fn write_bare(
    out: &mut Vec<u8>,
    header: &Header,
    ports: (u16, u16),
    numbers: (u32, u32),
    flags: u8,
    window: u16,
    zeros: usize,
) {
    let at = header.len();
    let (sequence, ack) = numbers;
    out.clear();
    out.resize(at + TCP_HEADER + zeros, 0);
    header.write(out);
    let Some((head, _)) = out
        .get_mut(at..)
        .and_then(<[u8]>::split_first_chunk_mut::<TCP_HEADER>)
    else {
        return;
    };
    head[0..2].copy_from_slice(&ports.0.to_be_bytes());
    head[2..4].copy_from_slice(&ports.1.to_be_bytes());
    head[4..8].copy_from_slice(&sequence.to_be_bytes());
    head[8..12].copy_from_slice(&ack.to_be_bytes());
    head[12] = ((TCP_HEADER / 4) << 4) as u8;
    head[13] = flags;
    head[14..16].copy_from_slice(&window.to_be_bytes());
}

/// Cuts a whole packet, whose TCP header begins at `at`, so that it carries `payload` bytes of what it did; an end that
/// came behind them is no longer told.
pub(crate) fn shorten(packet: &mut [u8], at: usize, parsed: Segment, payload: usize) -> &mut [u8] {
    if let Some(flags) = packet.get_mut(at + 13) {
        *flags &= !FIN;
    }
    let len = (at + parsed.header + payload).min(packet.len());
    let packet = &mut packet[..len];
    header::set_length(packet);
    packet
}

/// Makes the header of a segment that answers one between these two addresses.
pub(crate) fn answer(source: std::net::IpAddr, destination: std::net::IpAddr) -> Header {
    Header {
        source,
        destination,
        protocol: protocol::TCP,
        ident: 0,
    }
}

/// Says whether sequence number `a` lies before `b` (RFC 9293 §3.4: compared modulo 2^32).
pub(crate) fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// The length of a TCP header without options.
pub(crate) const TCP_HEADER: usize = 20;
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;
/// RFC 3168 §6.1: marks were seen; and, with a SYN, marks are offered.
pub(crate) const ECE: u8 = 0x40;
/// RFC 9293 §3.7.1: what counts if a SYN names no size.
pub(crate) const DEFAULT_MSS: u16 = 536;
/// What smoltcp raises a smaller size to.
const MIN_MSS: u16 = 48;
