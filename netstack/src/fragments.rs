//! IP fragments: datagrams put together under a bound, and cut.
//!
//! Overlapping fragments drop the whole datagram (RFC 5722), for IPv4 too: nobody honest sends them. A datagram is
//! kept for 15 s at most, 64 at a time, 1 MiB in all; the oldest gives way.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use foldhash::quality::SeedableRandomState;

use crate::header::Header;
use crate::packet::{Fragment, Packet};

/// Unfinished datagrams.
#[derive(Debug)]
pub(crate) struct Reassembly {
    table: HashMap<Key, Partial, SeedableRandomState>,
    bytes: usize,
    /// How many gave way or were dropped since last asked.
    dropped: u64,
}

/// What the fragments of one datagram share (RFC 791, RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    ident: u32,
    protocol: u8,
}

#[derive(Debug)]
struct Partial {
    expires: Instant,
    /// The payload so far; bytes between pieces are zero.
    payload: Vec<u8>,
    /// What was received, sorted and disjoint.
    pieces: Vec<(u16, u16)>,
    /// The length, once the last fragment has come.
    total: Option<usize>,
    /// The protocol that the first fragment names.
    next: u8,
}

/// What became of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fragmented {
    /// The datagram is whole.
    Whole,
    /// More are needed.
    Kept,
    /// It overlaps, contradicts or exceeds.
    Dropped,
}

impl Reassembly {
    pub(crate) fn new(hasher: SeedableRandomState) -> Reassembly {
        Reassembly {
            table: HashMap::with_hasher(hasher),
            bytes: 0,
            dropped: 0,
        }
    }

    /// Adds a fragment; if its datagram is whole now, writes it to `out` as a packet without options.
    pub(crate) fn add(
        &mut self,
        now: Instant,
        packet: &Packet,
        fragment: Fragment,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Fragmented {
        let piece = bytes.get(fragment.payload_at..).unwrap_or_default();
        let protocol = if packet.source.is_ipv4() {
            fragment.next
        } else {
            0
        };
        let key = Key {
            source: packet.source,
            destination: packet.destination,
            ident: fragment.ident,
            protocol,
        };
        if fragment.offset == 0 && !fragment.more {
            // RFC 6946: an atomic fragment is a whole datagram and does not touch others of its identification.
            return finish(&key, fragment.next, piece, out);
        }
        if !self.table.contains_key(&key) {
            while self.table.len() >= MAX_DATAGRAMS && self.drop_oldest(&key) {}
            let partial = Partial {
                expires: now + MAX_AGE,
                payload: Vec::new(),
                pieces: Vec::new(),
                total: None,
                next: fragment.next,
            };
            self.table.insert(key, partial);
        }
        let end = usize::from(fragment.offset) + piece.len();
        let before = self
            .table
            .get(&key)
            .map_or(0, |partial| partial.payload.len());
        let growth = end.saturating_sub(before);
        while self.bytes + growth > MAX_BYTES && self.drop_oldest(&key) {}
        let Some(partial) = self.table.get_mut(&key) else {
            return Fragmented::Dropped;
        };
        let added = partial.add(fragment, piece);
        self.bytes += partial.payload.len() - before;
        if added.is_none() {
            self.forget(&key);
            self.dropped += 1;
            return Fragmented::Dropped;
        }
        let Some(total) = partial.whole() else {
            return Fragmented::Kept;
        };
        let result = finish(
            &key,
            partial.next,
            partial.payload.get(..total).unwrap_or_default(),
            out,
        );
        self.forget(&key);
        result
    }

    /// Drops what is too old, and says how many datagrams were dropped for any reason since last asked.
    pub(crate) fn expire(&mut self, now: Instant) -> u64 {
        let before = self.table.len();
        self.table.retain(|_, partial| {
            let keep = partial.expires > now;
            if !keep {
                self.bytes -= partial.payload.len();
            }
            keep
        });
        std::mem::take(&mut self.dropped) + (before - self.table.len()) as u64
    }

    /// Says when the next datagram becomes too old.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.table.values().map(|partial| partial.expires).min()
    }

    fn forget(&mut self, key: &Key) {
        if let Some(partial) = self.table.remove(key) {
            self.bytes -= partial.payload.len();
        }
    }

    /// Drops the oldest datagram but `spared`; false if there is no other.
    fn drop_oldest(&mut self, spared: &Key) -> bool {
        let others = self.table.iter().filter(|(key, _)| *key != spared);
        let Some(key) = others
            .min_by_key(|(_, partial)| partial.expires)
            .map(|(key, _)| *key)
        else {
            return false;
        };
        self.forget(&key);
        self.dropped += 1;
        true
    }
}

impl Partial {
    fn add(&mut self, fragment: Fragment, piece: &[u8]) -> Option<()> {
        let start = fragment.offset;
        // Parsing has checked that no fragment reaches beyond 65,535 bytes.
        let end = start.checked_add(u16::try_from(piece.len()).ok()?)?;
        if self
            .total
            .is_some_and(|total| usize::from(end) > total || !fragment.more)
        {
            return None;
        }
        if !fragment.more {
            if self.pieces.last().is_some_and(|(_, last)| *last > end) {
                return None;
            }
            self.total = Some(usize::from(end));
        }
        let at = self.pieces.partition_point(|(other, _)| *other < start);
        let before = at.checked_sub(1).and_then(|before| self.pieces.get(before));
        if before.is_some_and(|(_, other_end)| *other_end > start)
            || self.pieces.get(at).is_some_and(|(other, _)| *other < end)
            || self.pieces.len() >= MAX_PIECES
        {
            return None;
        }
        self.pieces.insert(at, (start, end));
        if start == 0 {
            self.next = fragment.next;
        }
        let (start, end) = (usize::from(start), usize::from(end));
        if self.payload.len() < end {
            self.payload.resize(end, 0);
        }
        self.payload.get_mut(start..end)?.copy_from_slice(piece);
        Some(())
    }

    fn whole(&self) -> Option<usize> {
        let total = self.total?;
        let covered: usize = self
            .pieces
            .iter()
            .map(|(start, end)| usize::from(end - start))
            .sum();
        (covered == total).then_some(total)
    }
}

fn finish(key: &Key, next: u8, payload: &[u8], out: &mut Vec<u8>) -> Fragmented {
    let header = Header {
        source: key.source,
        destination: key.destination,
        protocol: next,
        ident: key.ident,
    };
    let len = header.len() + payload.len();
    if len > usize::from(u16::MAX) {
        return Fragmented::Dropped;
    }
    out.clear();
    out.resize(header.len(), 0);
    out.extend_from_slice(payload);
    header.write(out);
    Fragmented::Whole
}

/// One fragment of a datagram to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Where its payload starts in the datagram's.
    pub(crate) offset: usize,
    /// Its payload.
    pub(crate) len: usize,
    /// The whole packet.
    pub(crate) packet: usize,
    pub(crate) more: bool,
}

impl Part {
    /// Writes the fragment; the datagram's payload is `head` and then `body`.
    pub(crate) fn write(&self, packet: &mut [u8], header: &Header, head: &[u8], body: &[u8]) {
        header.write_fragment(packet, self.offset, self.more);
        copy_at(
            packet.get_mut(header.fragment_len()..).unwrap_or_default(),
            self.offset,
            head,
            body,
        );
    }
}

/// Cuts a payload of `total` bytes into fragments of at most `mtu` bytes.
pub(crate) fn cut(header: &Header, mtu: u16, total: usize) -> impl Iterator<Item = Part> {
    let headers = header.fragment_len();
    // The MTU is at least 1,280, so this is never zero.
    let room = (usize::from(mtu) - headers) / 8 * 8;
    (0..total).step_by(room).map(move |offset| {
        let len = room.min(total - offset);
        Part {
            offset,
            len,
            packet: headers + len,
            more: offset + len < total,
        }
    })
}

/// Fills `to` from the bytes of `head` and then `body`, starting at `offset`.
pub(crate) fn copy_at(to: &mut [u8], offset: usize, head: &[u8], body: &[u8]) {
    let from_head = head.get(offset..).unwrap_or_default();
    let count = from_head.len().min(to.len());
    let (first, rest) = to.split_at_mut(count);
    first.copy_from_slice(&from_head[..count]);
    let body = body
        .get((offset + count).saturating_sub(head.len())..)
        .unwrap_or_default();
    let count = body.len().min(rest.len());
    rest[..count].copy_from_slice(&body[..count]);
}

/// RFC 8200 says 60 s, made for the Internet; between two ends of a tunnel a quarter is long.
const MAX_AGE: Duration = Duration::from_secs(15);
const MAX_DATAGRAMS: usize = 64;
const MAX_BYTES: usize = 1 << 20;
/// A 64 KiB datagram in fragments of the least MTU, 576 bytes, has 119.
const MAX_PIECES: usize = 128;
