//! Packets that wait for a lane.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use adit_netstack::{Offload, mark_congestion};

use super::stream::QUIET;
use crate::io::pool::{Buffer, Pool};
use crate::proto::{FairQueue, Producer, QueueLimits, QueuePacket, QueueStats};
use crate::wire::{DEFAULT_MTU, PACKET_HEADROOM, TAILROOM};

/// A packet that waits for its turn.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) buffer: Buffer,
    pub(super) packet: Range<usize>,
    pub(super) offload: Offload,
}

impl QueuePacket for Queued {
    fn bytes(&self) -> &[u8] {
        self.buffer.get(self.packet.clone()).unwrap_or_default()
    }

    fn offload(&self) -> Offload {
        self.offload
    }

    fn memory(&self) -> usize {
        self.buffer.capacity()
    }
}

/// The fair queue in front of a session's stream lanes.
///
/// What others than our own stack send waits here while the lanes have no room, each flow for its turn. Super-packets leave
/// whole; one of which CoDel has dropped a segment leaves as wire packets.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    queue: Option<Box<FairQueue<Queued>>>,
    /// When it was last of use; `None` while it holds no memory.
    used: Option<Instant>,
}

impl Waiting {
    /// Tells whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.as_ref().is_none_or(|queue| queue.is_empty())
    }

    /// Puts a packet with the head- and tailroom of its frame behind its flow's: a full queue drops from the flow that has
    /// most in it.
    pub(super) fn push(&mut self, now: Instant, buffer: Buffer, offload: Offload) {
        let end = buffer.len().saturating_sub(TAILROOM);
        let queued = Queued {
            buffer,
            packet: PACKET_HEADROOM..end,
            offload,
        };
        self.used = Some(now);
        let queue = self
            .queue
            .get_or_insert_with(|| Box::new(FairQueue::new(rand::random(), limits())));
        queue.enqueue(now, queued, Producer::Other);
    }

    /// Gives the packets whose turn it is to `send`, as long as `room` says that there is some.
    pub(super) fn drain<T>(
        &mut self,
        now: Instant,
        pool: &Arc<Pool>,
        to: &mut T,
        mut room: impl FnMut(&mut T) -> bool,
        mut send: impl FnMut(&mut T, Buffer, Offload),
    ) {
        let Some(queue) = self.queue.as_deref_mut() else {
            return;
        };
        while !queue.is_empty() && room(to) {
            let Some(mut taken) = queue.take(now) else {
                return;
            };
            if taken.mark
                && let Some(bytes) = taken.packet.buffer.get_mut(taken.packet.packet.clone())
            {
                mark_congestion(bytes);
            }
            if !taken.cut.is_started() {
                send(to, taken.packet.buffer, taken.packet.offload);
                continue;
            }
            loop {
                let len = taken.cut.next_len(usize::from(DEFAULT_MTU));
                let mut buffer = pool.sized(PACKET_HEADROOM + len + TAILROOM);
                let piece = &mut buffer[PACKET_HEADROOM..PACKET_HEADROOM + len];
                let bytes = taken.packet.bytes();
                let Some((len, offload)) = taken.cut.next(bytes, usize::from(DEFAULT_MTU), piece)
                else {
                    break;
                };
                buffer.truncate(PACKET_HEADROOM + len + TAILROOM);
                send(to, buffer, offload);
            }
        }
    }

    /// Returns when [`Waiting::handle_timeout`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.used.map(|used| used + QUIET)
    }

    /// Gives back what is kept for flows where none come.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.used.is_none_or(|used| now < used + QUIET) {
            return;
        }
        self.used = (!self.is_empty()).then_some(now);
        if let Some(queue) = self.queue.as_deref_mut() {
            queue.release_memory();
        }
    }

    /// Returns what was counted.
    pub(super) fn stats(&self) -> QueueStats {
        let queue = self.queue.as_ref().map(|queue| queue.stats());
        queue.unwrap_or_default()
    }
}

/// As in front of datagram lanes, but as much memory as many flows need whose super-packets do not fill their buffers.
fn limits() -> QueueLimits {
    QueueLimits {
        memory: 16 << 20,
        ..QueueLimits::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A packet of UDP from `port`, with a number behind its headers.
    fn packet(pool: &Arc<Pool>, port: u16, number: u32, len: usize) -> Buffer {
        let mut buffer = pool.sized(PACKET_HEADROOM + len + TAILROOM);
        let packet = &mut buffer[PACKET_HEADROOM..PACKET_HEADROOM + len];
        packet.fill(0);
        packet[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0]);
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        packet[12..20].copy_from_slice(&[192, 0, 2, 1, 10, 86, 0, 2]);
        packet[20..22].copy_from_slice(&port.to_be_bytes());
        packet[24..26].copy_from_slice(&(len as u16 - 20).to_be_bytes());
        packet[28..32].copy_from_slice(&number.to_be_bytes());
        let words = packet[..20].chunks(2);
        let sum: u32 = words
            .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
            .sum();
        let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        buffer
    }

    /// Takes what waits, as long as there is room for `most`; gives ports and numbers.
    fn drain(
        waiting: &mut Waiting,
        now: Instant,
        pool: &Arc<Pool>,
        most: usize,
    ) -> Vec<(u16, u32)> {
        let mut out = Vec::new();
        let send = |out: &mut Vec<_>, buffer: Buffer, _| {
            let packet = &buffer[PACKET_HEADROOM..];
            let port = u16::from_be_bytes([packet[20], packet[21]]);
            let number = packet[28..32].try_into().map(u32::from_be_bytes);
            out.push((port, number.unwrap()));
        };
        waiting.drain(now, pool, &mut out, |out| out.len() < most, send);
        out
    }

    #[test]
    fn thin_flow_does_not_wait_behind_a_flow_in_bulk() {
        let (now, pool, mut waiting) =
            (Instant::now(), Pool::new("test", 4, 4), Waiting::default());
        for number in 0..50 {
            waiting.push(now, packet(&pool, 1, number, 60_000), Offload::default());
        }
        assert_eq!(drain(&mut waiting, now, &pool, 2), [(1, 0), (1, 1)]);
        waiting.push(now, packet(&pool, 2, 0, 100), Offload::default());
        let next = drain(&mut waiting, now, &pool, 3);
        assert!(next.contains(&(2, 0)), "{next:?}");
        let bulk: Vec<u32> = drain(&mut waiting, now, &pool, 99)
            .into_iter()
            .map(|(_, number)| number)
            .collect();
        assert!(bulk.is_sorted() && bulk.ends_with(&[49]), "{bulk:?}");
        assert!(waiting.is_empty());
    }

    #[test]
    fn flow_that_fills_the_queue_loses_its_own_packets_and_no_others() {
        let (now, pool, mut waiting) =
            (Instant::now(), Pool::new("test", 4, 4), Waiting::default());
        waiting.push(now, packet(&pool, 2, 0, 1_000), Offload::default());
        for number in 0..500 {
            waiting.push(now, packet(&pool, 1, number, 60_000), Offload::default());
        }
        let dropped = waiting.stats().drops.overflow;
        assert!(dropped > 400, "{dropped}");
        let left = drain(&mut waiting, now, &pool, 999);
        assert!(left.contains(&(2, 0)));
        assert_eq!(left.len() as u64, 501 - dropped);
        assert_eq!(left.last(), Some(&(1, 499)), "the oldest are lost");
    }

    #[test]
    fn queue_that_stands_is_told_to_its_sender() {
        let (now, pool, mut waiting) =
            (Instant::now(), Pool::new("test", 4, 4), Waiting::default());
        for number in 0..60 {
            waiting.push(now, packet(&pool, 1, number, 60_000), Offload::default());
        }
        for turn in 1..60 {
            drain(
                &mut waiting,
                now + turn * Duration::from_millis(10),
                &pool,
                1,
            );
        }
        assert!(waiting.stats().drops.codel > 0);
    }

    #[test]
    fn empty_queue_holds_nothing_after_5_s() {
        let (now, pool, mut waiting) =
            (Instant::now(), Pool::new("test", 4, 4), Waiting::default());
        assert_eq!(waiting.poll_timeout(), None);
        waiting.push(now, packet(&pool, 1, 0, 100), Offload::default());
        assert_eq!(waiting.poll_timeout(), Some(now + QUIET));
        waiting.handle_timeout(now + QUIET);
        assert_eq!(
            waiting.poll_timeout(),
            Some(now + 2 * QUIET),
            "it waits still"
        );
        drain(&mut waiting, now + QUIET, &pool, 9);
        waiting.handle_timeout(now + 2 * QUIET);
        assert_eq!(waiting.poll_timeout(), None);
    }
}
