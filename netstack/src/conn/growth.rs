//! How fast a connection sends: a first flight of ten segments, and windows that grow by what was acknowledged.

use smoltcp::socket::tcp;
use smoltcp::time::Instant as SmolInstant;

use super::{Conn, Failed};
use crate::header::Header;
use crate::packet::{V6_HEADER, protocol};
use crate::segment::{ACK, FIN, RST, SYN, Segment, TCP_HEADER};

impl Conn {
    /// Shows smoltcp an acknowledgement of many segments as the many it stands for.
    ///
    /// smoltcp grows its congestion window by at most one segment for each acknowledgement. A receiver of
    /// super-packets acknowledges 45 segments at once, so slow start would take as many round trips as it otherwise
    /// takes acknowledgements. RFC 3465 counts bytes for this reason; this is the same from outside. It is done only
    /// while the window is what holds the flow back, and small against the send ring.
    pub(super) fn divide_ack(
        &mut self,
        now: SmolInstant,
        packet: &[u8],
        parsed: Segment,
    ) -> Result<(), Failed> {
        let Some(sent_next) = self.sent_next else {
            return Ok(());
        };
        if parsed.flags & (SYN | RST | FIN) != 0 || !parsed.has(ACK) || !self.established {
            return Ok(());
        }
        let step_len = u32::from(self.shape.mss.min(CUBIC_SEGMENT));
        let acked = parsed.ack.wrapping_sub(self.sent_una);
        let flight = sent_next.wrapping_sub(self.sent_una);
        if acked > flight || acked == 0 {
            return Ok(());
        }
        let tcp = self.socket.tcp_mut();
        let (queue, capacity) = (tcp.send_queue() as u64, tcp.send_capacity() as u64);
        let mut held_back = queue > u64::from(flight) && u64::from(flight) < capacity / 2;
        if std::mem::take(&mut self.first_flight) {
            // Each segment of the first flight that has arrived lets the new window grow.
            tcp.set_congestion_control(tcp::CongestionControl::Cubic);
            held_back = true;
        }
        if acked <= step_len || !held_back {
            return Ok(());
        }
        let count = ((acked - 1) / step_len).min(MAX_DIVISION);
        for step in 1..=count {
            let ack = self.sent_una.wrapping_add(step * step_len);
            self.feed_bare(now, packet, parsed.sequence, ack)?;
        }
        Ok(())
    }

    /// Shows smoltcp of a segment that it acknowledges as much as `ack`, as if it stood at `sequence`, and nothing else.
    pub(super) fn feed_bare(
        &mut self,
        now: SmolInstant,
        packet: &[u8],
        sequence: u32,
        ack: u32,
    ) -> Result<(), Failed> {
        let at = self.shape.ip_header;
        let mut bare = [0; V6_HEADER + TCP_HEADER];
        let len = at + TCP_HEADER;
        let (Some(bare), Some(head)) = (bare.get_mut(..len), packet.get(at..at + TCP_HEADER))
        else {
            return Ok(());
        };
        let header = Header {
            source: self.tuple.remote.0,
            destination: self.tuple.local.0,
            protocol: protocol::TCP,
            ident: 0,
        };
        header.write(bare);
        bare[at..].copy_from_slice(head);
        bare[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
        bare[at + 8..at + 12].copy_from_slice(&ack.to_be_bytes());
        bare[at + 12] = ((TCP_HEADER / 4) << 4) as u8;
        bare[at + 13] = ACK;
        // What it would answer is not sent.
        self.feed(now, bare, 0, None)?;
        Ok(())
    }

    /// Says how much may be sent before anything is acknowledged (RFC 6928 §2).
    pub(super) fn first_flight_len(&self) -> usize {
        let mss = usize::from(self.shape.mss);
        (10 * mss).min((2 * mss).max(14_600))
    }
}

/// smoltcp's CUBIC grows by at most this for an acknowledgement, if it is chosen after the handshake.
const CUBIC_SEGMENT: u16 = 1024;
/// More than a super-packet has of the least common segments, so that all of one counts.
const MAX_DIVISION: u32 = 128;
