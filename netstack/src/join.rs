//! Joins the wire packets of TCP flows to super-packets, before they are handed to a stack or a kernel (GRO).
//!
//! ```text
//!  wire packets ──▶ push ──┬─ next in a flow's slot? ──▶ appended
//!                          ├─ may begin a super-packet? ──▶ a slot of its own
//!                          └─ else ──▶ the flow's slot is emptied, then the packet passes as it came
//!  end of a batch ─▶ flush ──▶ every slot is emptied, the oldest first
//! ```
//!
//! The rules are those of Linux (`tcp_gro_receive`, `inet_gro_receive`): a segment is appended when its flow, IP
//! header, acknowledgement, window, flags and options are those of the segments before, its sequence number continues
//! them, and it is no longer than they are. A shorter one and one with PSH end the super-packet. An IPv4
//! identification has to count up, unless DF says that nobody will look (RFC 6864 §4.1). So what comes out, cut
//! again by [`Cut`](crate::Cut), is what went in, but for such identifications and for checksums.
//!
//! Segments without payload, with SYN, FIN, RST or URG, with a wrong checksum, and everything that is not plain TCP
//! pass unjoined. The order within a flow never changes; between flows it may, by at most a batch.
//!
//! Memory: a slot grows to [`MAX_JOINED`] bytes with use, at most [`SLOTS`] of them, and slots fill from the first, so
//! that one bulk flow touches one. [`Join::release_memory`] gives it back.

use std::net::IpAddr;
use std::ops::Range;

use crate::checksum::verify_parsed;
use crate::cut::{CWR, PSH};
use crate::ecn::rewrite_v4_checksum;
use crate::offload::{Checksum, Gso, MAX_SEGMENTS, Offload};
use crate::packet::{Packet, V4_HEADER, V6_HEADER, protocol};
use crate::segment::{ACK, ECE, Segment};

/// Joins packets in slots, one for each flow that is being joined.
#[derive(Debug)]
pub struct Join {
    headroom: usize,
    slots: Vec<Slot>,
    /// Counts slots that were taken, to tell the oldest.
    births: u64,
    stats: JoinStats,
}

/// Counts what was joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JoinStats {
    /// Packets that went in.
    pub packets: u64,
    /// Of them, packets that became part of a super-packet.
    pub joined: u64,
    /// Super-packets of two packets or more that came out.
    pub super_packets: u64,
}

impl Join {
    /// Makes a join whose own frames have `headroom` bytes in front of the packet, for a device's header.
    #[must_use]
    pub fn new(headroom: usize) -> Join {
        Join {
            headroom,
            slots: Vec::with_capacity(SLOTS),
            births: 0,
            stats: JoinStats::default(),
        }
    }

    /// Takes the packet at `range` of `frame` and hands to `sink` what is ready.
    ///
    /// `sink` is given a frame, where in it the packet is, and what the packet owes: either a frame of the join's own
    /// with its headroom, or `frame` as it came. It may write to both.
    pub fn push(
        &mut self,
        frame: &mut [u8],
        range: Range<usize>,
        offload: Offload,
        sink: &mut impl FnMut(&mut [u8], Range<usize>, Offload),
    ) {
        self.stats.packets += 1;
        let bytes = frame.get(range.clone()).unwrap_or_default();
        let (key, candidate) = match Candidate::parse(bytes, offload) {
            Verdict::Other => return sink(frame, range, offload),
            Verdict::Odd => {
                self.flush(sink);
                return sink(frame, range, offload);
            }
            Verdict::Tcp { key, candidate } => (key, candidate),
        };
        let slot = self.slots.iter().position(|slot| slot.is_of(key));
        let Some(candidate) = candidate else {
            self.flush_slot(slot, sink);
            return sink(frame, range, offload);
        };
        if let Some(slot) = slot.and_then(|slot| self.slots.get_mut(slot))
            && slot.fits(bytes, &candidate)
        {
            if slot.append(bytes, &candidate) {
                self.flush_slot(self.slots.iter().position(|slot| slot.is_of(key)), sink);
            }
            return;
        }
        self.flush_slot(slot, sink);
        if candidate.push {
            return sink(frame, range, offload);
        }
        let slot = self.free_slot(sink);
        self.births += 1;
        let (births, headroom) = (self.births, self.headroom);
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.begin(bytes, key, &candidate, offload, headroom, births);
        }
    }

    /// Empties all slots into `sink`, those that were begun first at first: at the end of every batch.
    pub fn flush(&mut self, sink: &mut impl FnMut(&mut [u8], Range<usize>, Offload)) {
        while let Some(oldest) = self.oldest() {
            self.flush_slot(Some(oldest), sink);
        }
    }

    /// Tells whether nothing waits for a [`Join::flush`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.iter().all(|slot| slot.flow.is_none())
    }

    /// Gives the memory of empty slots back, for a session that has become idle.
    pub fn release_memory(&mut self) {
        for slot in &mut self.slots {
            if slot.flow.is_none() {
                slot.frame = Vec::new();
            }
        }
    }

    /// Returns what was counted.
    #[must_use]
    pub fn stats(&self) -> JoinStats {
        self.stats
    }

    fn oldest(&self) -> Option<usize> {
        let taken = self.slots.iter().enumerate();
        taken
            .filter(|(_, slot)| slot.flow.is_some())
            .min_by_key(|(_, slot)| slot.born)
            .map(|(index, _)| index)
    }

    /// Finds the first empty slot; empties the oldest if there is none.
    fn free_slot(&mut self, sink: &mut impl FnMut(&mut [u8], Range<usize>, Offload)) -> usize {
        if let Some(index) = self.slots.iter().position(|slot| slot.flow.is_none()) {
            return index;
        }
        if self.slots.len() < SLOTS {
            self.slots.push(Slot::default());
            return self.slots.len() - 1;
        }
        let oldest = self.oldest();
        self.flush_slot(oldest, sink);
        oldest.unwrap_or(0)
    }

    fn flush_slot(
        &mut self,
        slot: Option<usize>,
        sink: &mut impl FnMut(&mut [u8], Range<usize>, Offload),
    ) {
        let Some(slot) = slot.and_then(|slot| self.slots.get_mut(slot)) else {
            return;
        };
        if slot.flow.take().is_none() {
            return;
        }
        if slot.segments > 1 {
            self.stats.joined += u64::from(slot.segments);
            self.stats.super_packets += 1;
        }
        let offload = slot.finish(self.headroom);
        let range = self.headroom..slot.frame.len();
        sink(&mut slot.frame, range, offload);
    }
}

/// A super-packet in the making.
#[derive(Debug, Default)]
struct Slot {
    /// The headroom and the packet; its headers are those of the first segment until it is finished.
    frame: Vec<u8>,
    /// None if the slot is empty.
    flow: Option<Key>,
    /// Where the packet starts in the frame.
    start: usize,
    transport: usize,
    headers: usize,
    /// Payload bytes of the first segment.
    size: usize,
    segments: u16,
    /// The sequence number that continues it.
    next: u32,
    /// The last segment had PSH.
    push: bool,
    /// What was said of the first segment.
    offload: Offload,
    born: u64,
}

impl Slot {
    fn is_of(&self, key: Key) -> bool {
        self.flow == Some(key)
    }

    fn begin(
        &mut self,
        bytes: &[u8],
        key: Key,
        candidate: &Candidate,
        offload: Offload,
        headroom: usize,
        born: u64,
    ) {
        self.frame.clear();
        self.frame.resize(headroom, 0);
        self.frame.extend_from_slice(bytes);
        self.flow = Some(key);
        self.start = headroom;
        self.transport = candidate.transport;
        self.headers = candidate.headers;
        self.size = candidate.payload;
        self.segments = 1;
        self.next = candidate.next;
        self.push = false;
        self.offload = offload;
        self.born = born;
    }

    /// Says whether a segment continues the super-packet.
    fn fits(&self, bytes: &[u8], candidate: &Candidate) -> bool {
        let joined = self.frame.len() - self.start;
        candidate.sequence == self.next
            && candidate.payload <= self.size
            && candidate.headers == self.headers
            && candidate.transport == self.transport
            && usize::from(self.segments) < MAX_SEGMENTS
            && joined + candidate.payload <= MAX_JOINED
            && self
                .frame
                .get(self.start..self.start + self.headers)
                .zip(bytes.get(..self.headers))
                .is_some_and(|(first, head)| {
                    same_ip(first, head, self.transport, self.segments)
                        && same_tcp(&first[self.transport..], &head[self.transport..])
                })
    }

    /// Appends a segment that fits; returns whether the super-packet ends with it.
    fn append(&mut self, bytes: &[u8], candidate: &Candidate) -> bool {
        let payload = bytes.get(candidate.headers..).unwrap_or_default();
        self.frame.extend_from_slice(payload);
        self.next = candidate.next;
        self.segments += 1;
        self.push = candidate.push;
        candidate.push
            || candidate.payload < self.size
            || usize::from(self.segments) == MAX_SEGMENTS
    }

    /// Makes the headers those of a super-packet and says what it owes; a lone packet stays what it was.
    fn finish(&mut self, headroom: usize) -> Offload {
        if self.segments < 2 {
            return self.offload;
        }
        let packet = self.frame.get_mut(headroom..).unwrap_or_default();
        let len = packet.len();
        let (ip, transport) = packet.split_at_mut(self.transport.min(len));
        // What was joined is at most MAX_JOINED bytes long.
        if self.transport == V4_HEADER {
            ip[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            rewrite_v4_checksum(ip);
        } else {
            ip[4..6].copy_from_slice(&((len - V6_HEADER) as u16).to_be_bytes());
        }
        if let Some(flags) = transport.get_mut(13)
            && self.push
        {
            *flags |= PSH;
        }
        if let Some(field) = transport.get_mut(16..18) {
            field.fill(0);
        }
        Offload {
            gso: Gso::Tcp {
                size: self.size as u16,
            },
            checksum: Checksum::Partial,
        }
    }
}

/// Compares two IP headers without options, `apart` segments from one another.
fn same_ip(first: &[u8], head: &[u8], len: usize, apart: u16) -> bool {
    let same = |range: Range<usize>| first.get(range.clone()) == head.get(range);
    if len != V4_HEADER {
        // Version, traffic class, flow label; next header, hop limit. Addresses are the flow's.
        return same(0..4) && same(6..8);
    }
    let ident = |header: &[u8]| u16::from_be_bytes([header[4], header[5]]);
    // Version, header length, traffic class; flags; time to live, protocol.
    same(0..2)
        && same(6..10)
        && (first[6] & DONT_FRAGMENT != 0 || ident(head) == ident(first).wrapping_add(apart))
}

/// Compares two TCP headers but for sequence number, checksum, CWR of the first and PSH of the second.
fn same_tcp(first: &[u8], head: &[u8]) -> bool {
    let same = |range: Range<usize>| first.get(range.clone()) == head.get(range);
    // Acknowledgement, data offset; window; urgent pointer and options.
    same(8..13)
        && same(14..16)
        && same(18..first.len())
        && first[13] & !(CWR | PSH) == head[13] & !PSH
}

/// Both ends of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    ports: (u16, u16),
}

/// What may be joined.
struct Candidate {
    transport: usize,
    headers: usize,
    payload: usize,
    sequence: u32,
    next: u32,
    push: bool,
}

/// What a packet is to a join.
enum Verdict {
    /// Not TCP: it has no order to keep.
    Other,
    /// TCP of which the flow or the place in it cannot be told: a fragment, or with options in its IP header.
    Odd,
    /// TCP.
    Tcp {
        key: Key,
        /// None if it may not be joined.
        candidate: Option<Candidate>,
    },
}

impl Candidate {
    fn parse(bytes: &[u8], offload: Offload) -> Verdict {
        let Ok(packet) = Packet::parse(bytes) else {
            return Verdict::Other;
        };
        if packet.protocol != protocol::TCP {
            return Verdict::Other;
        }
        let (Some(ports), None, false) = (packet.ports, packet.fragment, packet.has_options) else {
            return Verdict::Odd;
        };
        let key = Key {
            source: packet.source,
            destination: packet.destination,
            ports,
        };
        let segment = bytes.get(packet.header_len..).unwrap_or_default();
        let candidate = Segment::parse(segment)
            .filter(|segment| {
                offload.gso == Gso::None
                    && segment.payload > 0
                    && segment.flags & !(PSH | ECE | CWR) == ACK
            })
            .filter(|_| match offload.checksum {
                Checksum::Partial => true,
                // What is joined owes its checksum, so a wrong one would come out right.
                Checksum::Full => verify_parsed(bytes, &packet).is_ok(),
            })
            .map(|segment| Candidate {
                transport: packet.header_len,
                headers: packet.header_len + segment.header,
                payload: segment.payload,
                sequence: segment.sequence,
                next: segment.end(),
                push: segment.has(PSH),
            });
        Verdict::Tcp { key, candidate }
    }
}

/// The most bytes of a joined packet: with the headroom and tailroom of any frame it still lies within 64 KiB.
pub const MAX_JOINED: usize = 65_535 - 64;
/// Flows that are joined at a time, as many as Linux has buckets for.
const SLOTS: usize = 8;
/// The flag in the upper byte of an IPv4 header's flags.
const DONT_FRAGMENT: u8 = 0x40;

#[cfg(test)]
mod tests;
