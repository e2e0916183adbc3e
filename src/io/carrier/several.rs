//! Several stream lanes side by side, as one place to write packets to.

use std::net::SocketAddr;
use std::time::Instant;

use adit_netstack::Offload;

use super::event::CarrierStats;
use super::stream::CarriedStream;
use crate::io::pool::Buffer;
use crate::proto::spread::{Choice, Spread};
use crate::proto::{Again, Session};
use crate::wire::{LaneId, PACKET_HEADROOM, TAILROOM};

/// Lanes side by side, and who chooses among them.
#[derive(Debug)]
pub(super) struct Several<'a> {
    spread: &'a mut Spread,
    streams: &'a mut [CarriedStream],
    /// What is to be copied, as it was before it was sealed.
    scratch: &'a mut Vec<u8>,
    /// The lane of the flow that was admitted last, for its packet.
    admitted: Option<LaneId>,
    /// Where room was lent.
    lent: Option<LaneId>,
}

impl<'a> Several<'a> {
    /// The lanes are to have been told to `spread`.
    pub(super) fn new(
        spread: &'a mut Spread,
        streams: &'a mut [CarriedStream],
        scratch: &'a mut Vec<u8>,
    ) -> Self {
        Self {
            spread,
            streams,
            scratch,
            admitted: None,
            lent: None,
        }
    }

    pub(super) fn admit(&mut self, now: Instant, local: SocketAddr, remote: SocketAddr) -> bool {
        self.admitted = self.spread.admit(now, local, remote);
        self.admitted.is_some()
    }

    pub(super) fn reserve(&mut self, now: Instant, len: usize) -> Option<&mut [u8]> {
        let lane = match self.admitted {
            Some(lane) => lane,
            None => self.spread.room(now, len)?,
        };
        self.lent = Some(lane);
        let stream = self.streams.iter_mut().find(|stream| stream.id == lane)?;
        let room = stream.io.reserve(PACKET_HEADROOM + len + TAILROOM)?;
        room.get_mut(PACKET_HEADROOM..PACKET_HEADROOM + len)
    }

    /// Seals the packet in the room last lent for the lanes that it is to take; returns whether one takes it.
    pub(super) fn commit(
        &mut self,
        now: Instant,
        session: &mut Session,
        stats: &mut CarrierStats,
        len: usize,
        offload: Offload,
    ) -> bool {
        self.admitted = None;
        let Some(lane) = self.lent.take() else {
            return false;
        };
        let Some(at) = self.position(lane) else {
            return false;
        };
        let whole = PACKET_HEADROOM + len + TAILROOM;
        let Some(room) = self.streams[at].io.reserve(whole) else {
            return false;
        };
        let packet = &room[PACKET_HEADROOM..PACKET_HEADROOM + len];
        let choice = self.spread.choose(now, lane, packet);
        self.scratch.clear();
        if choice.lanes().len() > 1 {
            self.scratch.extend_from_slice(packet);
        }
        let number = session.next_source();
        let first = choice.first();
        let sealed = if first == lane {
            let sealed = session.seal_packet(now, lane, room, offload).is_ok();
            if sealed {
                self.streams[at].io.commit(whole);
            }
            sealed
        } else {
            // Its flow has another lane.
            let Some(to) = self.position(first).filter(|to| *to != at) else {
                return false;
            };
            let Ok([from, to]) = self.streams.get_disjoint_mut([at, to]) else {
                return false;
            };
            let packet = from.io.reserve(whole).map(|room| &room[PACKET_HEADROOM..]);
            packet.is_some_and(|packet| {
                write(to, &packet[..len], |frame| {
                    session.seal_packet(now, first, frame, offload).is_ok()
                })
            })
        };
        if sealed {
            self.given(now, first, whole);
            self.copy(now, session, stats, number, &choice, offload);
        }
        sealed
    }

    /// Queues the packet in `buffer` on its lane, and copies on others; returns whether it is queued.
    pub(super) fn push(
        &mut self,
        now: Instant,
        session: &mut Session,
        stats: &mut CarrierStats,
        mut buffer: Buffer,
        offload: Offload,
    ) -> bool {
        let end = buffer.len().saturating_sub(TAILROOM);
        let Some(packet) = buffer.get(PACKET_HEADROOM..end) else {
            return false;
        };
        let Some(offered) = self.spread.room(now, packet.len()) else {
            return false;
        };
        let choice = self.spread.choose(now, offered, packet);
        self.scratch.clear();
        if choice.lanes().len() > 1 {
            self.scratch.extend_from_slice(packet);
        }
        let number = session.next_source();
        let first = choice.first();
        let whole = buffer.len();
        let Some(at) = self.position(first) else {
            return false;
        };
        let sealed = session.seal_packet(now, first, &mut buffer, offload);
        if sealed.is_err() || self.streams[at].io.push(buffer).is_err() {
            return false;
        }
        self.given(now, first, whole);
        self.copy(now, session, stats, number, &choice, offload);
        true
    }

    fn copy(
        &mut self,
        now: Instant,
        session: &mut Session,
        stats: &mut CarrierStats,
        number: u64,
        choice: &Choice,
        offload: Offload,
    ) {
        let packet = std::mem::take(self.scratch);
        for lane in &choice.lanes()[1..] {
            let stream = self.streams.iter_mut().find(|stream| stream.id == *lane);
            let sent = stream.is_some_and(|stream| {
                write(stream, &packet, |frame| {
                    let sealed =
                        session.seal_again(now, *lane, number, frame, offload, Again::Copy);
                    sealed.is_ok()
                })
            });
            if sent {
                self.spread.handle_copied(packet.len());
                self.given(now, *lane, PACKET_HEADROOM + packet.len() + TAILROOM);
            } else {
                stats.copies_refused += 1;
            }
        }
        *self.scratch = packet;
    }

    fn given(&mut self, now: Instant, lane: LaneId, bytes: usize) {
        if let Some(at) = self.position(lane) {
            let queued = self.streams[at].io.queued();
            self.spread.handle_given(now, lane, bytes, queued);
        }
    }

    fn position(&self, lane: LaneId) -> Option<usize> {
        self.streams
            .iter()
            .position(|stream| stream.id == lane && stream.broken.is_none())
    }
}

/// Queues a frame with a packet on a lane, if `seal` seals it; returns whether it is queued.
fn write(stream: &mut CarriedStream, packet: &[u8], seal: impl FnOnce(&mut [u8]) -> bool) -> bool {
    let whole = PACKET_HEADROOM + packet.len() + TAILROOM;
    let sealed = stream.io.reserve(whole).is_some_and(|room| {
        room[PACKET_HEADROOM..PACKET_HEADROOM + packet.len()].copy_from_slice(packet);
        seal(room)
    });
    if sealed {
        stream.io.commit(whole);
    }
    sealed
}
