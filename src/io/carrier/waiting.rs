//! Packets that wait for a lane.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit_netstack::{Offload, mark_congestion};

use super::stream::QUIET;
use crate::io::pool::{Buffer, Pool};
use crate::proto::{FairQueue, Producer, QueueLimits, QueuePacket, QueueStats, Taken};
use crate::wire::{PACKET_HEADROOM, TAILROOM};

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
/// whole; one of which CoDel has dropped a segment leaves as the segments that are left.
#[derive(Debug, Default)]
pub struct Waiting {
    queue: Option<Box<FairQueue<Queued>>>,
    /// What has left in part, and since when it was in the queue.
    begun: Option<(Taken<Queued>, Instant)>,
    /// When a packet came last.
    used: Option<Instant>,
    /// When there is something to do; `None` while it holds no memory.
    look_at: Option<Instant>,
    /// Packets that were dropped because there was no lane for too long.
    expired: u64,
}

impl Waiting {
    /// Tells whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.begun.is_none() && self.queue.as_ref().is_none_or(|queue| queue.is_empty())
    }

    /// Puts a packet with the head- and tailroom of its frame behind its flow's: a full queue drops from the flow that has
    /// most in it. `rtt` is the round trip of the lane it waits for, if it is known.
    pub fn push(&mut self, now: Instant, buffer: Buffer, offload: Offload, rtt: Option<Duration>) {
        let end = buffer.len().saturating_sub(TAILROOM);
        let queued = Queued {
            buffer,
            packet: PACKET_HEADROOM..end,
            offload,
        };
        self.used = Some(now);
        self.look_at.get_or_insert(now + QUIET);
        let queue = self
            .queue
            .get_or_insert_with(|| Box::new(FairQueue::new(rand::random(), limits())));
        queue.set_pace(0, rtt.map_or(SUPPOSED_RTT, |rtt| rtt.max(SUPPOSED_RTT)));
        queue.enqueue(now, queued, Producer::Other);
    }

    /// Gives what leaves next, whole or the next segment of what is left; call only if there is room for it.
    pub fn next(&mut self, now: Instant, pool: &Arc<Pool>) -> Option<(Buffer, Offload)> {
        loop {
            let (mut taken, since) = match self.begun.take() {
                Some(begun) => begun,
                None => {
                    let taken = self.queue.as_deref_mut()?.take(now)?;
                    let since = now.checked_sub(taken.wait).unwrap_or(now);
                    (taken, since)
                }
            };
            if std::mem::take(&mut taken.mark)
                && let Some(bytes) = taken.packet.buffer.get_mut(taken.packet.packet.clone())
            {
                mark_congestion(bytes);
            }
            if !taken.cut.is_started() {
                return Some((taken.packet.buffer, taken.packet.offload));
            }
            let len = taken.cut.next_len(usize::MAX);
            let mut buffer = pool.sized(PACKET_HEADROOM + len + TAILROOM);
            let segment = &mut buffer[PACKET_HEADROOM..PACKET_HEADROOM + len];
            let cut = taken.cut.next(taken.packet.bytes(), usize::MAX, segment);
            if !taken.cut.is_done() {
                self.begun = Some((taken, since));
            }
            if let Some((len, offload)) = cut {
                buffer.truncate(PACKET_HEADROOM + len + TAILROOM);
                return Some((buffer, offload));
            }
        }
    }

    /// Returns when [`Waiting::handle_timeout`] has something to do.
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.look_at
    }

    /// Gives back what is kept for flows where none come, and drops what has waited for too long for a lane that there is
    /// not: it is too old to be of use, however much comes behind it.
    pub fn handle_timeout(&mut self, now: Instant, has_lane: bool) {
        if self.look_at.is_none_or(|at| now < at) {
            return;
        }
        let oldest = if has_lane { None } else { self.expire(now) };
        let quiet = self.used.map_or(now, |used| used + QUIET);
        self.look_at = if !self.is_empty() {
            // No later than the next is too old.
            Some(oldest.unwrap_or(now) + QUIET)
        } else if now < quiet {
            Some(quiet)
        } else {
            if let Some(queue) = self.queue.as_deref_mut() {
                queue.release_memory();
            }
            None
        };
    }

    /// Drops what is too old, and says since when the oldest that is left waits.
    fn expire(&mut self, now: Instant) -> Option<Instant> {
        let before = now.checked_sub(QUIET)?;
        self.expired += u64::from(self.begun.take_if(|(_, since)| *since <= before).is_some());
        let begun = self.begun.as_ref().map(|(_, since)| *since);
        let queued = self.queue.as_deref_mut().and_then(|queue| {
            let (expired, oldest) = queue.expire(before);
            self.expired += expired;
            oldest
        });
        begun.into_iter().chain(queued).min()
    }

    /// Returns how many packets were dropped because there was no lane for too long.
    pub const fn expired(&self) -> u64 {
        self.expired
    }

    /// Returns what was counted.
    pub fn stats(&self) -> QueueStats {
        let queue = self.queue.as_ref().map(|queue| queue.stats());
        queue.unwrap_or_default()
    }
}

/// The least round trip that flows are taken to have, and what it is if it is not known: that of the kernel's connection below is
/// only a part of theirs, and losses there, which it repairs, stand for a round trip before everything. So CoDel aims at
/// 30 ms of each flow's own queue, which no other flow waits behind.
const SUPPOSED_RTT: Duration = Duration::from_millis(100);

/// As in front of datagram lanes, but as much memory as many flows need whose super-packets do not fill their buffers.
fn limits() -> QueueLimits {
    QueueLimits {
        memory: 16 << 20,
        ..QueueLimits::default()
    }
}

#[cfg(test)]
mod tests {
    use adit_netstack::{Checksum, Gso};

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

    /// Takes what waits, at most so many; gives ports and numbers.
    fn drain(
        waiting: &mut Waiting,
        now: Instant,
        pool: &Arc<Pool>,
        most: usize,
    ) -> Vec<(u16, u32)> {
        let next = std::iter::from_fn(|| waiting.next(now, pool));
        next.take(most)
            .map(|(buffer, _)| {
                let packet = &buffer[PACKET_HEADROOM..];
                let number = packet[28..32].try_into().map(u32::from_be_bytes);
                (
                    u16::from_be_bytes([packet[20], packet[21]]),
                    number.unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn thin_flow_does_not_wait_behind_a_flow_in_bulk() {
        let (now, pool, mut waiting) =
            (Instant::now(), Pool::new("test", 4, 4), Waiting::default());
        for number in 0..50 {
            waiting.push(
                now,
                packet(&pool, 1, number, 60_000),
                Offload::default(),
                None,
            );
        }
        assert_eq!(drain(&mut waiting, now, &pool, 2), [(1, 0), (1, 1)]);
        waiting.push(now, packet(&pool, 2, 0, 100), Offload::default(), None);
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
        waiting.push(now, packet(&pool, 2, 0, 1_000), Offload::default(), None);
        for number in 0..500 {
            waiting.push(
                now,
                packet(&pool, 1, number, 60_000),
                Offload::default(),
                None,
            );
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
            waiting.push(
                now,
                packet(&pool, 1, number, 60_000),
                Offload::default(),
                None,
            );
        }
        for turn in 1..60 {
            drain(
                &mut waiting,
                now + turn * Duration::from_millis(30),
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
        waiting.push(now, packet(&pool, 1, 0, 100), Offload::default(), None);
        assert_eq!(waiting.poll_timeout(), Some(now + QUIET));
        waiting.handle_timeout(now + QUIET, true);
        assert_eq!(
            waiting.poll_timeout(),
            Some(now + 2 * QUIET),
            "it waits still"
        );
        drain(&mut waiting, now + QUIET, &pool, 9);
        waiting.handle_timeout(now + 2 * QUIET, true);
        assert_eq!(waiting.poll_timeout(), None);
    }

    #[test]
    fn what_waits_for_no_lane_is_dropped_after_5_s() {
        let (now, pool, mut waiting) =
            (Instant::now(), Pool::new("test", 4, 4), Waiting::default());
        for number in 0..9 {
            waiting.push(now, packet(&pool, 1, number, 100), Offload::default(), None);
        }
        waiting.handle_timeout(now + QUIET, false);
        assert!(waiting.is_empty());
        assert_eq!((waiting.expired(), waiting.poll_timeout()), (9, None));
    }

    #[test]
    fn each_packet_has_5_s_of_its_own_however_many_come_behind_it() {
        let (start, pool, mut waiting) =
            (Instant::now(), Pool::new("test", 4, 4), Waiting::default());
        for number in 0..20 {
            let now = start + number * Duration::from_secs(1);
            if waiting.poll_timeout().is_some_and(|due| due <= now) {
                waiting.handle_timeout(now, false);
            }
            waiting.push(now, packet(&pool, 1, number, 100), Offload::default(), None);
        }
        let now = start + Duration::from_secs(19);
        let left = drain(&mut waiting, now, &pool, 99);
        assert_eq!(left, [(1, 15), (1, 16), (1, 17), (1, 18), (1, 19)]);
        assert_eq!(waiting.expired(), 15);
        // What was taken meanwhile leaves nothing to be given back twice.
        waiting.handle_timeout(now + QUIET, false);
        assert_eq!((waiting.expired(), waiting.poll_timeout()), (15, None));
    }

    #[test]
    fn packets_that_wait_for_a_lane_that_is_there_are_not_too_old() {
        let (start, pool, mut waiting) =
            (Instant::now(), Pool::new("test", 4, 4), Waiting::default());
        waiting.push(start, packet(&pool, 1, 0, 100), Offload::default(), None);
        waiting.handle_timeout(start + QUIET, true);
        assert_eq!(waiting.expired(), 0);
        waiting.handle_timeout(start + 2 * QUIET, false);
        assert_eq!((waiting.expired(), waiting.poll_timeout()), (1, None));
    }

    #[test]
    fn super_packet_that_lost_a_segment_leaves_as_the_segments_that_are_left() {
        let (now, pool, mut waiting) =
            (Instant::now(), Pool::new("test", 4, 4), Waiting::default());
        let offload = Offload {
            gso: Gso::Udp { size: 1_000 },
            checksum: Checksum::Partial,
        };
        for number in 0..60 {
            waiting.push(now, packet(&pool, 1, number, 28 + 40_000), offload, None);
        }
        let (mut whole, mut segments) = (0, 0);
        for turn in 1..3_000 {
            let Some((buffer, offload)) = waiting.next(now + turn * 30 * MS, &pool) else {
                break;
            };
            let len = buffer.len() - PACKET_HEADROOM - TAILROOM;
            match offload.gso {
                Gso::None => {
                    segments += 1;
                    assert_eq!(len, 28 + 1_000);
                }
                Gso::Tcp { .. } | Gso::Udp { .. } => {
                    whole += 1;
                    assert_eq!(len, 28 + 40_000);
                }
            }
        }
        let dropped = waiting.stats().drops.codel;
        assert!(dropped > 0 && waiting.is_empty());
        assert_eq!(whole + dropped, 60, "one segment of each");
        assert_eq!(segments, dropped * 39);
    }

    const MS: Duration = Duration::from_millis(1);
}
