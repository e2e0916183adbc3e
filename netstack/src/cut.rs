//! Cuts a super-packet into wire packets, one at a time, into memory that the caller lends.
//!
//! A [`Cut`] is what must be remembered between two pieces, 24 bytes that borrow nothing: a super-packet may wait half
//! cut in a queue while other flows have their turn. The bytes and the MTU are arguments of each call, so that the
//! rest of a super-packet can follow its session to a lane of another size.
//!
//! What a piece of a TCP super-packet has that the super-packet has not (RFC 9293, RFC 3168 §6.1.2, as Linux does it):
//!
//! | field | in piece *n* |
//! |---|---|
//! | IP length | its own |
//! | IPv4 identification | that of the super-packet plus *n* |
//! | sequence number | plus the payload of the pieces before it |
//! | FIN, PSH | only in the last |
//! | CWR | only in the first |
//! | checksum | owed ([`Checksum::Partial`]), the field is zero |
//!
//! TCP is cut again where a lane fits less than its sender supposed, even an ordinary packet: a byte stream has no
//! other boundaries. UDP is cut between datagrams only. What is longer than the MTU after that is for the caller to
//! split and to link.

use std::ops::Range;

use crate::checksum::verify_checksum;
use crate::ecn::rewrite_v4_checksum;
use crate::offload::{Checksum, Gso, Offload};
use crate::packet::{Packet, V6_HEADER, protocol};
use crate::segment::{FIN, RST, SYN, TCP_HEADER};

/// Remembers how far one packet has been cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    kind: Kind,
    /// What the whole packet says of its checksum.
    checksum: Checksum,
    v6: bool,
    /// Where the transport header starts.
    transport: u16,
    /// The length of all headers.
    headers: u16,
    /// Payload bytes per piece.
    size: u16,
    /// The length of the whole packet.
    len: u32,
    /// Payload bytes that were given.
    at: u32,
    /// Pieces that were given.
    given: u16,
    done: bool,
}

/// How a packet may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Not at all.
    Whole,
    /// An ordinary TCP packet: only if it has to be.
    Segment,
    /// A TCP super-packet.
    Tcp,
    /// Several UDP datagrams.
    Udp,
}

impl Cut {
    /// Begins to cut a packet that [`Packet::check_offload`] has accepted.
    ///
    /// `bytes` are those `packet` was parsed from.
    #[must_use]
    pub fn new(packet: &Packet, bytes: &[u8], offload: Offload) -> Cut {
        let plain = packet.fragment.is_none() && !packet.has_options;
        let tcp = || tcp_headers(bytes, packet.header_len).filter(|_| plain);
        let (kind, headers, size) = match (offload.gso, packet.protocol) {
            (Gso::Tcp { size }, protocol::TCP) => match tcp() {
                Some(headers) => (Kind::Tcp, headers, size),
                None => (Kind::Whole, 0, 0),
            },
            (Gso::Udp { size }, protocol::UDP) if plain => {
                (Kind::Udp, packet.header_len + UDP_HEADER, size)
            }
            (Gso::None, protocol::TCP) => match tcp() {
                Some(headers) => (Kind::Segment, headers, u16::MAX),
                None => (Kind::Whole, 0, 0),
            },
            (Gso::None | Gso::Tcp { .. } | Gso::Udp { .. }, _) => (Kind::Whole, 0, 0),
        };
        Cut {
            kind,
            checksum: offload.checksum,
            v6: packet.source.is_ipv6(),
            // Headers are at most 40 bytes of IPv6 and 60 of TCP here; a packet is at most 65,575 bytes.
            transport: packet.header_len as u16,
            headers: headers as u16,
            size: size.max(1),
            len: bytes.len() as u32,
            at: 0,
            given: 0,
            done: false,
        }
    }

    /// Writes the next piece to the start of `out` and says how long it is and what it still owes.
    ///
    /// `bytes` are the packet that `self` was made for, `mtu` the longest IP packet the lane carries. A piece is
    /// longer than `mtu` only if it cannot be cut: not TCP, or a fragment, with IP options, SYN, RST or URG, or with
    /// a complete checksum that is wrong. `None` means that all was given ([`Cut::is_done`]), or that `out` is shorter
    /// than the piece, which is then still to come: [`Cut::next_len`] bytes are always enough.
    pub fn next(&mut self, bytes: &[u8], mtu: usize, out: &mut [u8]) -> Option<(usize, Offload)> {
        let step = self.step(bytes, mtu)?;
        let written = match self.kind {
            Kind::Whole | Kind::Segment => copy(bytes, out),
            Kind::Tcp => self.write_tcp(&step, bytes, out),
            Kind::Udp => self.write_udp(&step, bytes, out),
        }?;
        self.advance(&step);
        let checksum = match self.kind {
            Kind::Whole | Kind::Segment => self.checksum,
            Kind::Tcp | Kind::Udp => Checksum::Partial,
        };
        let gso = Gso::None;
        Some((written, Offload { gso, checksum }))
    }

    /// Passes over the next piece without writing it and says how long it would have been; `None` when all was given.
    pub fn skip(&mut self, bytes: &[u8], mtu: usize) -> Option<usize> {
        let step = self.step(bytes, mtu)?;
        self.advance(&step);
        Some(usize::from(self.headers) + step.payload.len())
    }

    /// Says how long the next piece is at most, 0 when all was given.
    ///
    /// It is exact, but for an ordinary TCP packet above `mtu`, of which it tells the length as it is.
    #[must_use]
    pub fn next_len(&self, mtu: usize) -> usize {
        if self.done {
            return 0;
        }
        usize::from(self.headers) + self.payload(mtu).len()
    }

    /// Says how many bytes are still to come if the pieces are as large as their sender wished, headers included.
    #[must_use]
    pub fn remaining(&self) -> usize {
        if self.done {
            return 0;
        }
        let payload = self.end() - self.at as usize;
        let pieces = payload.div_ceil(usize::from(self.size)).max(1);
        payload + pieces * usize::from(self.headers)
    }

    /// Tells whether all pieces were given.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Tells whether a piece was given or passed over.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.given > 0
    }

    /// Finds the next piece, and whether an ordinary packet has to be cut after all.
    fn step(&mut self, bytes: &[u8], mtu: usize) -> Option<Step> {
        if self.done {
            return None;
        }
        if self.kind == Kind::Segment
            && self.len as usize > mtu
            && may_be_cut(bytes, self.transport, self.checksum)
        {
            self.kind = Kind::Tcp;
        }
        let payload = self.payload(mtu);
        Some(Step {
            last: payload.end == self.end(),
            payload,
        })
    }

    fn advance(&mut self, step: &Step) {
        self.at = step.payload.end as u32;
        self.given = self.given.saturating_add(1);
        self.done = step.last;
    }

    /// The payload of the next piece, counted from the end of the headers.
    fn payload(&self, mtu: usize) -> Range<usize> {
        let (start, end) = (self.at as usize, self.end());
        let most = match self.kind {
            Kind::Whole | Kind::Segment => end,
            Kind::Udp => usize::from(self.size),
            Kind::Tcp => {
                // An MTU without room for a byte of payload is no lane's; then the sender's size stands.
                match mtu.saturating_sub(usize::from(self.headers)) {
                    0 => usize::from(self.size),
                    room => room.min(usize::from(self.size)),
                }
            }
        };
        start..end.min(start + most)
    }

    /// The length of the whole payload.
    fn end(&self) -> usize {
        (self.len as usize).saturating_sub(usize::from(self.headers))
    }

    fn write_tcp(&self, step: &Step, bytes: &[u8], out: &mut [u8]) -> Option<usize> {
        let (len, transport) = self.write_ip(step, bytes, out)?;
        let head = transport.first_chunk_mut::<TCP_HEADER>()?;
        let sequence = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        let sequence = sequence.wrapping_add(step.payload.start as u32);
        head[4..8].copy_from_slice(&sequence.to_be_bytes());
        if self.given > 0 {
            head[13] &= !CWR;
        }
        if !step.last {
            head[13] &= !(FIN | PSH);
        }
        head[16..18].fill(0);
        Some(len)
    }

    fn write_udp(&self, step: &Step, bytes: &[u8], out: &mut [u8]) -> Option<usize> {
        let (len, transport) = self.write_ip(step, bytes, out)?;
        let own = u16::try_from(transport.len()).ok()?;
        let head = transport.first_chunk_mut::<UDP_HEADER>()?;
        head[4..6].copy_from_slice(&own.to_be_bytes());
        head[6..8].fill(0);
        Some(len)
    }

    /// Writes headers and payload, makes the IP header right, and gives the length of all and the transport's part.
    fn write_ip<'a>(
        &self,
        step: &Step,
        bytes: &[u8],
        out: &'a mut [u8],
    ) -> Option<(usize, &'a mut [u8])> {
        let headers = usize::from(self.headers);
        let len = headers + step.payload.len();
        let out = out.get_mut(..len)?;
        let (head, body) = out.split_at_mut(headers);
        head.copy_from_slice(bytes.get(..headers)?);
        body.copy_from_slice(bytes.get(headers + step.payload.start..headers + step.payload.end)?);
        if self.v6 {
            let payload = u16::try_from(len.saturating_sub(V6_HEADER)).ok()?;
            head.get_mut(4..6)?.copy_from_slice(&payload.to_be_bytes());
        } else {
            let fields = head.first_chunk_mut::<6>()?;
            let ident = u16::from_be_bytes([fields[4], fields[5]]).wrapping_add(self.given);
            fields[2..4].copy_from_slice(&u16::try_from(len).ok()?.to_be_bytes());
            fields[4..6].copy_from_slice(&ident.to_be_bytes());
            rewrite_v4_checksum(head);
        }
        Some((len, out.get_mut(usize::from(self.transport)..)?))
    }
}

/// One piece.
struct Step {
    /// Its payload, counted from the end of the headers.
    payload: Range<usize>,
    last: bool,
}

/// Measures IP and TCP headers together; none if they are not whole.
fn tcp_headers(bytes: &[u8], transport: usize) -> Option<usize> {
    let head = bytes.get(transport..)?.first_chunk::<TCP_HEADER>()?;
    let len = transport + usize::from(head[12] >> 4) * 4;
    (len >= transport + TCP_HEADER && len <= bytes.len()).then_some(len)
}

/// Says whether an ordinary TCP packet keeps its meaning when it is cut.
///
/// The pieces owe their checksums, so a complete one is verified: cutting must not make a broken packet look right.
fn may_be_cut(bytes: &[u8], transport: u16, checksum: Checksum) -> bool {
    let flags = bytes.get(usize::from(transport) + 13);
    flags.is_some_and(|flags| flags & (SYN | RST | URG) == 0)
        && match checksum {
            Checksum::Partial => true,
            Checksum::Full => verify_checksum(bytes).is_ok(),
        }
}

fn copy(bytes: &[u8], out: &mut [u8]) -> Option<usize> {
    out.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(bytes.len())
}

const UDP_HEADER: usize = 8;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const URG: u8 = 0x20;
pub(crate) const CWR: u8 = 0x80;

#[cfg(test)]
mod tests;
