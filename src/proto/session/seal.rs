//! Sealing: packets and control frames become frames on a lane.

use std::time::Instant;

use adit_netstack::Offload;

use super::error::SealError;
use super::state::{Session, State};
use crate::proto::lane::LaneKind;
use crate::proto::outbox::{Message, Route};
use crate::proto::schedule::PacketMeta;
use crate::proto::stats::Again;
use crate::wire::{
    DATAGRAM_HEADER_LEN, DATAGRAM_PACKET_OVERHEAD, InnerType, LENGTH_LEN, LaneId, MAX_FRAME,
    PACKET_HEADROOM, PacketHeader, SEALED_HEADER_LEN, SealedHeader, TAG_LEN, TAILROOM, nonce,
};

impl Session {
    /// Seals a packet into a whole frame, in place, for a confirmed lane.
    ///
    /// `buf` is [`PACKET_HEADROOM`] bytes of room, the packet, and [`TAILROOM`] bytes of room; all
    /// of it is the frame afterwards. On an error nothing may be sent. On a datagram lane the room
    /// in front is [`DATAGRAM_PACKET_HEADROOM`](crate::wire::DATAGRAM_PACKET_HEADROOM) bytes, and
    /// the packet a wire packet: it goes at once, with the next source number.
    ///
    /// # Errors
    /// [`SealError`], with what stands in the way.
    pub fn seal_packet(
        &mut self,
        now: Instant,
        lane: LaneId,
        buf: &mut [u8],
        offload: Offload,
    ) -> Result<(), SealError> {
        let index = self.confirmed_lane(lane)?;
        match self.lanes[index].kind {
            LaneKind::Stream => {}
            LaneKind::Datagram => {
                self.seal_source(now, lane, self.next_source, buf, offload)?;
                self.lanes[index].stats.outgoing.packets += 1;
                self.next_source += 1;
                self.stats.packets_sealed += 1;
                self.stats.packet_bytes_sealed += (buf.len() - DATAGRAM_PACKET_OVERHEAD) as u64;
                return Ok(());
            }
        }
        self.seal_numbered(now, index, self.next_source, buf, offload)?;
        self.lanes[index].stats.outgoing.packets += 1;
        self.next_source += 1;
        self.stats.packets_sealed += 1;
        self.stats.packet_bytes_sealed += (buf.len() - PACKET_HEADROOM - TAILROOM) as u64;
        Ok(())
    }

    /// The same for a packet that was sent before under `number`, on a lane that
    /// may have lost it, or on another that may be slow.
    ///
    /// # Errors
    /// [`SealError`], with what stands in the way.
    pub fn seal_again(
        &mut self,
        now: Instant,
        lane: LaneId,
        number: u64,
        buf: &mut [u8],
        offload: Offload,
        again: Again,
    ) -> Result<(), SealError> {
        let index = self.confirmed_lane(lane)?;
        match self.lanes[index].kind {
            LaneKind::Stream => self.seal_numbered(now, index, number, buf, offload)?,
            LaneKind::Datagram => self.seal_source(now, lane, number, buf, offload)?,
        }
        self.lanes[index].stats.outgoing.count_again(again);
        Ok(())
    }

    /// Seals a frame of a relayed flow for a confirmed stream lane: `head` is its type and fields, `data` the bytes
    /// behind them, which stay where they are. `buf` is as long as the whole frame:
    /// [`SEALED_HEADER_LEN`], both, [`TAG_LEN`].
    ///
    /// # Errors
    /// [`SealError`], with what stands in the way; nothing may be sent then.
    pub fn seal_flow(
        &mut self,
        now: Instant,
        lane: LaneId,
        head: &[u8],
        data: &[u8],
        buf: &mut [u8],
    ) -> Result<(), SealError> {
        let index = self.confirmed_lane(lane)?;
        if self.lanes[index].kind != LaneKind::Stream || !self.relays {
            return Err(SealError::Lane { lane });
        }
        if self.settings.rekey.is_spent(self.epochs.current_ref()) {
            let epoch = self.epoch();
            return Err(SealError::Exhausted { epoch });
        }
        let len = SEALED_HEADER_LEN + head.len() + data.len() + TAG_LEN;
        if buf.len() != len || len - LENGTH_LEN > MAX_FRAME {
            return Err(SealError::Length { len });
        }
        buf[SEALED_HEADER_LEN..SEALED_HEADER_LEN + head.len()].copy_from_slice(head);
        self.seal_behind(now, index, buf, data)?;
        self.stats.flow_frames_sealed += 1;
        self.stats.flow_bytes_sealed += data.len() as u64;
        if self.lanes[index].liveness.handle_sent(now) {
            self.arm_liveness(index);
        }
        self.schedule.on_sent(now, lane, len);
        Ok(())
    }

    fn confirmed_lane(&self, lane: LaneId) -> Result<usize, SealError> {
        match self.state {
            State::Open => {}
            State::Unconfirmed => return Err(SealError::Unconfirmed),
            State::Closed { reason } => return Err(SealError::Closed { reason }),
        }
        self.lane_index(lane)
            .filter(|index| self.lanes[*index].is_confirmed())
            .ok_or(SealError::Lane { lane })
    }

    fn seal_numbered(
        &mut self,
        now: Instant,
        index: usize,
        number: u64,
        buf: &mut [u8],
        offload: Offload,
    ) -> Result<(), SealError> {
        buf.len()
            .checked_sub(PACKET_HEADROOM + TAILROOM)
            .filter(|len| *len > 0 && buf.len() - LENGTH_LEN <= MAX_FRAME)
            .ok_or(SealError::Length { len: buf.len() })?;
        let epoch = self.epochs.current_ref();
        if self.settings.rekey.is_spent(epoch) {
            let epoch = epoch.number;
            return Err(SealError::Exhausted { epoch });
        }
        let header = PacketHeader {
            source: number,
            offload,
        };
        buf[SEALED_HEADER_LEN] = InnerType::Packet.byte();
        buf[SEALED_HEADER_LEN + 1..PACKET_HEADROOM].copy_from_slice(&header.to_bytes());
        self.seal(now, index, buf)?;
        if self.lanes[index].liveness.handle_sent(now) {
            self.arm_liveness(index);
        }
        let lane = self.lanes[index].id;
        self.schedule.on_sent(now, lane, buf.len());
        Ok(())
    }

    /// Asks the policy which lane a packet should take; `None` while there is none, or while the
    /// epoch has sealed all it may and the next one is not agreed: packets wait.
    pub fn lane_for(&mut self, now: Instant, packet: PacketMeta) -> Option<LaneId> {
        match self.state {
            State::Open if self.settings.rekey.is_spent(self.epochs.current_ref()) => None,
            State::Open => self.schedule.lane(now, &packet),
            State::Unconfirmed | State::Closed { .. } => None,
        }
    }

    /// Writes the next whole control frame to send into `out`, which it clears first, and returns
    /// the lane to send it on. **Call until `None`.**
    pub fn poll_control(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<LaneId> {
        out.clear();
        loop {
            if self.outbox.is_empty() || self.state == State::Unconfirmed {
                return None;
            }
            let best = self.schedule.lane(now, &PacketMeta::default());
            let waiting = self.outbox.pop(|waiting| match waiting.route {
                Route::Lane(_) => true,
                Route::Best => best.is_some(),
            })?;
            let lane = match waiting.route {
                Route::Lane(lane) => lane,
                Route::Best => best?,
            };
            let Some(index) = self.lane_index(lane).filter(|i| !self.lanes[*i].is_dead()) else {
                self.stats.drops.control_without_lane += 1;
                continue;
            };
            let time = self.micros(now);
            if self
                .seal_control(now, index, &waiting.message, time, out)
                .is_err()
            {
                self.stats.drops.control_without_key += 1;
                out.clear();
                continue;
            }
            return Some(lane);
        }
    }

    pub(super) fn seal_control(
        &mut self,
        now: Instant,
        index: usize,
        message: &Message,
        time: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), SealError> {
        match (self.lanes[index].kind, message) {
            (LaneKind::Datagram, Message::Join) => {
                let exhausted = SealError::Exhausted {
                    epoch: self.epoch(),
                };
                self.seal_join(index, out).ok_or(exhausted)?;
            }
            (kind, _) => {
                match kind {
                    LaneKind::Stream => {
                        out.resize(SEALED_HEADER_LEN, 0);
                        message.write(time, out);
                    }
                    LaneKind::Datagram => self.write_control_datagram(index, message, time, out),
                }
                out.resize(out.len() + TAG_LEN, 0);
                self.seal(now, index, out)?;
            }
        }
        self.stats.control_sealed += 1;
        if self.lanes[index].kind == LaneKind::Datagram {
            self.note_sent(now, index, message);
        }
        let lane = &mut self.lanes[index];
        if let Message::Ping = message {
            lane.rtt.handle_ping(time);
        }
        if message.wants_answer() {
            lane.liveness.handle_ping_sent(now);
            self.arm_liveness(index);
        }
        Ok(())
    }

    /// Seals bytes of any kind, as a peer that has the keys and no manners could: for fuzzing.
    pub(crate) fn seal_anything(
        &mut self,
        now: Instant,
        lane: LaneId,
        inside: &[u8],
    ) -> Option<Vec<u8>> {
        let index = self.lane_index(lane)?;
        let mut frame = match self.lanes[index].kind {
            LaneKind::Stream => vec![0; SEALED_HEADER_LEN],
            LaneKind::Datagram => vec![0; DATAGRAM_HEADER_LEN],
        };
        frame.extend_from_slice(inside);
        frame.resize(frame.len() + TAG_LEN, 0);
        self.seal(now, index, &mut frame).ok()?;
        Some(frame)
    }

    /// Seals a frame whose inside is in place between header and tag.
    pub(super) fn seal(
        &mut self,
        now: Instant,
        index: usize,
        frame: &mut [u8],
    ) -> Result<(), SealError> {
        match self.lanes[index].kind {
            LaneKind::Stream => self.seal_behind(now, index, frame, &[]),
            LaneKind::Datagram => self.seal_datagram(now, index, frame),
        }
    }

    /// Seals a frame of a stream lane whose inside is in place behind the header, but for `data`, which is its end and
    /// stands elsewhere.
    fn seal_behind(
        &mut self,
        now: Instant,
        index: usize,
        frame: &mut [u8],
        data: &[u8],
    ) -> Result<(), SealError> {
        let lane = &mut self.lanes[index];
        let epoch = self.epochs.current();
        if self.settings.rekey.is_over(epoch) {
            return Err(SealError::Exhausted {
                epoch: epoch.number,
            });
        }
        let len = frame.len();
        let counter = lane.next_counter(epoch.number);
        SealedHeader {
            epoch: epoch.low_byte(),
            counter,
        }
        .write(frame)
        .map_err(|_| SealError::Length { len })?;
        let (header, body) = frame.split_at_mut(SEALED_HEADER_LEN);
        let nonce = nonce(lane.id, counter);
        (epoch.keys.seal)
            .seal_gathered(nonce, header, body, data)
            .map_err(|_| SealError::Length { len })?;
        epoch.usage.add(len);
        lane.stats.outgoing.sent += 1;
        lane.stats.outgoing.sent_bytes += len as u64;
        let worn = self.settings.rekey.is_worn(epoch);
        if worn && !self.rekey.is_under_way() {
            self.begin_rekey(now);
        }
        Ok(())
    }
}
