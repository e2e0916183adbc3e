//! A bounded queue of small packets that answer an incoming one: resets, acknowledgements, ICMP errors, echo replies.
//!
//! They arise while a packet is handled, when no [`PacketSink`] is at hand, and leave first when there is one. A full
//! queue drops: each of them is something the other side asks for again.

use std::collections::VecDeque;

use crate::offload::Offload;
use crate::sink::PacketSink;

/// The queue and the buffers it reuses.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    queue: VecDeque<(Vec<u8>, Offload)>,
    spare: Vec<Vec<u8>>,
    bytes: usize,
}

impl Replies {
    /// Lends an empty buffer, to be given back to `push` or `recycle`.
    pub(crate) fn buffer(&mut self) -> Vec<u8> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer
    }

    /// Queues a packet; false if the queue is full.
    pub(crate) fn push(&mut self, packet: Vec<u8>, offload: Offload) -> bool {
        if self.queue.len() >= MAX_PACKETS || self.bytes + packet.len() > MAX_BYTES {
            self.recycle(packet);
            return false;
        }
        self.bytes += packet.len();
        self.queue.push_back((packet, offload));
        true
    }

    /// Keeps a buffer for the next packet.
    pub(crate) fn recycle(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < MAX_SPARE && buffer.capacity() <= MAX_SPARE_CAPACITY {
            self.spare.push(buffer);
        }
    }

    /// Moves the oldest packet to the sink and says how long it was; none if there is none or the sink is full.
    pub(crate) fn drain_one<S: PacketSink>(&mut self, sink: &mut S) -> Option<usize> {
        let (packet, offload) = self.queue.front()?;
        let len = packet.len();
        sink.reserve(len)?.copy_from_slice(packet);
        sink.commit(len, *offload);
        self.bytes -= len;
        if let Some((buffer, _)) = self.queue.pop_front() {
            self.recycle(buffer);
        }
        Some(len)
    }

    /// Says whether anything waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

/// A few per flow in a burst; more than that is answered later or not at all.
const MAX_PACKETS: usize = 1024;
/// Room for four fragmented echo replies of the greatest length beside the usual small packets.
const MAX_BYTES: usize = 256 * 1024;
const MAX_SPARE: usize = 64;
/// Buffers of long echo replies are not kept.
const MAX_SPARE_CAPACITY: usize = 2048;
