//! Datagrams: packets and control frames sealed one by one, opened in any order.
//!
//! The source number is the caller's here, unlike on a stream lane: a packet that is sent again
//! keeps its own, and only the counter of the datagram is new.

use std::time::Instant;

use adit_netstack::{Gso, Offload};

use super::error::{OpenError, SealError};
use super::open::Opened;
use super::state::{Session, State};
use crate::proto::epoch::Which;
use crate::proto::keys::Role;
use crate::proto::lane::LaneKind;
use crate::proto::outbox::Message;
use crate::proto::path::DatagramPath;
use crate::proto::pieces::Pieced;
use crate::proto::replay::Replayed;
use crate::wire::{
    Control, DATAGRAM_HEADER_LEN, DATAGRAM_OVERHEAD, DATAGRAM_PACKET_HEADER_LEN,
    DATAGRAM_PACKET_HEADROOM, DATAGRAM_PACKET_OVERHEAD, DatagramFormatError, DatagramHeader,
    DatagramPacketHeader, InnerType, LaneId, MAX_MTU, Piece, TAG_LEN, expand_source, is_skippable,
    nonce,
};

impl Session {
    /// Takes the next source number, for a packet of `len` bytes: they are contiguous, so whoever
    /// takes one sends it.
    pub fn alloc_source(&mut self, len: usize) -> u64 {
        let number = self.next_source;
        self.next_source += 1;
        self.stats.packets_sealed += 1;
        self.stats.packet_bytes_sealed += len as u64;
        number
    }

    /// The number that the next source packet to send will have.
    #[must_use]
    pub const fn next_source(&self) -> u64 {
        self.next_source
    }

    /// The highest number of a source packet that came.
    #[must_use]
    pub const fn highest_source(&self) -> Option<u64> {
        self.sources.highest()
    }

    /// Tells the lane that a sealed datagram names and its number on that lane, counted over all
    /// epochs: epoch << 32 | counter. Nothing is proven by it; ask before opening, since that may
    /// end an epoch.
    #[must_use]
    pub fn datagram_number(&mut self, datagram: &[u8]) -> Option<(LaneId, u64)> {
        let header = DatagramHeader::parse(datagram).ok()?;
        let lane = self.lanes[self.lane_of(header)?].id;
        let (epoch, _) = self.epochs.find(header.epoch)?;
        Some((lane, epoch.number << 32 | u64::from(header.counter)))
    }

    /// Seals a wire packet into a whole datagram, in place, for a confirmed datagram lane: a source
    /// packet, for the first time or again.
    ///
    /// `buf` is [`DATAGRAM_PACKET_HEADROOM`] bytes of room, the packet, and
    /// [`TAILROOM`](crate::wire::TAILROOM) bytes of room; all of it is the datagram afterwards. On
    /// an error nothing may be sent, and the same `buf` may be tried again.
    ///
    /// # Errors
    /// [`SealError`], with what stands in the way.
    pub fn seal_source(
        &mut self,
        now: Instant,
        lane: LaneId,
        number: u64,
        buf: &mut [u8],
        offload: Offload,
    ) -> Result<(), SealError> {
        if offload.gso != Gso::None {
            return Err(SealError::Length { len: buf.len() });
        }
        let header = DatagramPacketHeader {
            source: number as u32,
            checksum: offload.checksum,
            kept: false,
            piece: Piece::Whole,
        };
        self.seal_piece(now, lane, header, buf)
    }

    /// The same with a header of the caller's making: for a packet that is kept for repair, and for
    /// halves of one that is longer than the lane takes, of which
    /// [`Session::max_datagram`] less [`DATAGRAM_PACKET_OVERHEAD`] bytes are the most in each. Both
    /// halves bear the packet's one number.
    ///
    /// # Errors
    /// [`SealError`], with what stands in the way.
    pub fn seal_piece(
        &mut self,
        now: Instant,
        lane: LaneId,
        header: DatagramPacketHeader,
        buf: &mut [u8],
    ) -> Result<(), SealError> {
        let index = self.datagram_lane(lane)?;
        if buf.len() <= DATAGRAM_PACKET_OVERHEAD {
            return Err(SealError::Length { len: buf.len() });
        }
        self.check_room(index, buf.len())?;
        buf[DATAGRAM_HEADER_LEN] = InnerType::Packet.byte();
        buf[DATAGRAM_HEADER_LEN + 1..DATAGRAM_PACKET_HEADROOM].copy_from_slice(&header.to_bytes());
        self.seal(now, index, buf)?;
        if self.lanes[index].liveness.handle_sent(now) {
            self.arm_liveness(index);
        }
        self.schedule.on_sent(now, lane, buf.len());
        Ok(())
    }

    /// Seals a body of any other type, for a confirmed datagram lane, and returns the datagram's
    /// length. The body stands in `out` from [`DATAGRAM_HEADER_LEN`] + 1 on, `len` bytes long, with
    /// [`TAG_LEN`] bytes of room behind it.
    ///
    /// # Errors
    /// [`SealError`], with what stands in the way.
    pub fn seal_inside(
        &mut self,
        now: Instant,
        lane: LaneId,
        kind: InnerType,
        len: usize,
        out: &mut [u8],
    ) -> Result<usize, SealError> {
        let index = self.datagram_lane(lane)?;
        let whole = len.saturating_add(DATAGRAM_OVERHEAD);
        let short = SealError::Length { len: out.len() };
        let datagram = out.get_mut(..whole).ok_or(short)?;
        self.check_room(index, whole)?;
        datagram[DATAGRAM_HEADER_LEN] = kind.byte();
        self.seal(now, index, datagram)?;
        Ok(whole)
    }

    /// The same for a body that stands elsewhere.
    ///
    /// # Errors
    /// [`SealError`], with what stands in the way.
    pub fn seal_body(
        &mut self,
        now: Instant,
        lane: LaneId,
        kind: InnerType,
        body: &[u8],
        out: &mut [u8],
    ) -> Result<usize, SealError> {
        let short = SealError::Length { len: out.len() };
        out.get_mut(DATAGRAM_HEADER_LEN + 1..)
            .and_then(|room| room.get_mut(..body.len()))
            .ok_or(short)?
            .copy_from_slice(body);
        self.seal_inside(now, lane, kind, body.len(), out)
    }

    /// Opens a whole datagram, in place, that came by `path`; its lane is named in it. Safe for
    /// bytes of any length. **Afterwards call [`Session::poll_delivery`] until it has nothing**:
    /// what was whole only now is not in this datagram.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::scope`] says whether the datagram or the session ends. Nothing
    /// that somebody else sends ends more than itself.
    pub fn open_datagram(
        &mut self,
        now: Instant,
        path: DatagramPath,
        datagram: &mut [u8],
    ) -> Result<Opened, OpenError> {
        let result = self.open_datagram_inside(now, path, datagram);
        if let Err(error) = &result {
            self.handle_open_error(now, None, error);
        }
        result
    }

    /// The next packet that was put together from several datagrams: its source number, its bytes, and
    /// what was left undone on it.
    pub fn poll_delivery(&mut self) -> Option<(u64, &[u8], Offload)> {
        self.pieces.poll()
    }

    fn open_datagram_inside(
        &mut self,
        now: Instant,
        path: DatagramPath,
        datagram: &mut [u8],
    ) -> Result<Opened, OpenError> {
        if let State::Closed { reason } = self.state {
            return Err(OpenError::Closed { reason });
        }
        let header = DatagramHeader::parse(datagram)?;
        let index = self.lane_of(header).ok_or(OpenError::Lane {
            lane: LaneId(u32::from(header.lane)),
        })?;
        let (which, newest) = self.open_datagram_seal(index, header, datagram)?;
        let len = datagram.len();
        let generator = &mut self.generator;
        if let Some(lossy) = &mut self.lanes[index].lossy {
            lossy.paths.handle_opened(now, path, len, newest, generator);
        }
        let lane = self.lanes[index].id;
        let inside = datagram.get(DATAGRAM_HEADER_LEN..len - TAG_LEN);
        let inside = inside.and_then(<[u8]>::split_first);
        let kind = inside.and_then(|(kind, _)| InnerType::from_byte(*kind));
        let unasked = matches!(
            kind,
            Some(
                InnerType::Packet
                    | InnerType::Repair
                    | InnerType::Ping
                    | InnerType::Probe
                    | InnerType::PathChallenge
            )
        );
        self.handle_opened(now, index, which, len, !unasked);
        let (kind, body) = inside.ok_or(DatagramFormatError::Short { len })?;
        // What was opened may have confirmed or killed other lanes.
        let Some(index) = self.lane_index(lane) else {
            return Err(OpenError::Lane { lane });
        };
        if let Some(kind) = InnerType::from_byte(*kind) {
            self.check_guest(kind)?;
        }
        match InnerType::from_byte(*kind) {
            Some(InnerType::Packet) => Ok(self.take_datagram_packet(index, body)),
            Some(InnerType::Repair) => Ok(Opened::Repair {
                range: DATAGRAM_HEADER_LEN + 1..len - TAG_LEN,
            }),
            Some(InnerType::Report) => Ok(Opened::Report {
                range: DATAGRAM_HEADER_LEN + 1..len - TAG_LEN,
            }),
            Some(kind) if super::open::is_reserved(kind) => {
                Err(OpenError::UnknownType { kind: kind.byte() })
            }
            Some(kind) => {
                let control = Control::parse(kind, body)?;
                self.handle_datagram_control(now, index, path, &control)?;
                self.stats.control_opened += 1;
                Ok(Opened::Control)
            }
            None if is_skippable(*kind) => {
                self.stats.drops.skipped_frames += 1;
                Ok(Opened::Skipped)
            }
            None => Err(OpenError::UnknownType { kind: *kind }),
        }
    }

    /// The lane a datagram names by its low byte: of several the latest.
    fn lane_of(&self, header: DatagramHeader) -> Option<usize> {
        if header.handle != self.id.handle() {
            return None;
        }
        let named = self.lanes.iter().enumerate().filter(|(_, lane)| {
            lane.lossy.is_some() && !lane.is_dead() && lane.low_byte() == header.lane
        });
        named
            .max_by_key(|(_, lane)| lane.id)
            .map(|(index, _)| index)
    }

    fn open_datagram_seal(
        &mut self,
        index: usize,
        header: DatagramHeader,
        datagram: &mut [u8],
    ) -> Result<(Which, bool), OpenError> {
        let lane = &mut self.lanes[index];
        let missing = OpenError::Lane { lane: lane.id };
        let lossy = lane.lossy.as_mut().ok_or(missing)?;
        let (epoch, which) = self.epochs.find(header.epoch).ok_or(OpenError::Epoch {
            found: header.epoch,
        })?;
        let counter = u64::from(header.counter);
        lossy.check(epoch.number, counter)?;
        let (aad, body) = datagram.split_at_mut(DATAGRAM_HEADER_LEN);
        let opened = epoch.keys.open.open(nonce(lane.id, counter), aad, body);
        if opened.is_err() {
            epoch.usage.failed_opens += 1;
            lane.stats.incoming.failed_opens += 1;
            return Err(OpenError::Forged {
                failed: epoch.usage.failed_opens,
            });
        }
        let newest = lossy.accept(epoch.number, counter);
        Ok((which, newest))
    }

    fn take_datagram_packet(&mut self, index: usize, body: &[u8]) -> Opened {
        let drops = &mut self.stats.drops;
        let packet = body.get(DATAGRAM_PACKET_HEADER_LEN..).unwrap_or_default();
        let Ok(header) = DatagramPacketHeader::parse(body) else {
            drops.malformed_packets += 1;
            return Opened::Skipped;
        };
        if packet.is_empty() || packet.len() > MAX_WIRE_PACKET {
            drops.malformed_packets += 1;
            return Opened::Skipped;
        }
        if self.lanes[index].liveness.handle_packet() {
            self.arm_liveness(index);
        }
        let number = expand_source(header.source, self.sources.highest());
        match header.piece {
            Piece::Whole => {
                let new = self.take_source(number, packet.len());
                self.lanes[index].stats.incoming.count_packet(new);
                if !new {
                    return Opened::Skipped;
                }
                Opened::Packet {
                    number,
                    kept: header.kept,
                    range: DATAGRAM_PACKET_HEADROOM..DATAGRAM_PACKET_HEADROOM + packet.len(),
                    offload: header.offload(),
                }
            }
            Piece::First | Piece::Last => {
                let counts = &mut self.lanes[index].stats.incoming;
                if let Err(replayed) = self.sources.check(number) {
                    counts.count_packet(false);
                    self.count_replayed(replayed);
                    return Opened::Skipped;
                }
                match self.pieces.take(number, &header, packet) {
                    Pieced::Waits { dropped } => self.stats.drops.lost_pieces += dropped,
                    Pieced::Duplicate => {
                        counts.count_packet(false);
                        self.stats.drops.duplicate_packets += 1;
                    }
                    // Its number was free a moment ago.
                    Pieced::Whole { len, dropped } => {
                        counts.count_packet(true);
                        self.stats.drops.unfetched_packets += dropped;
                        self.take_source(number, len);
                    }
                }
                Opened::Skipped
            }
        }
    }

    /// Marks a source packet of `len` bytes as delivered; whether it had not been.
    pub fn take_source(&mut self, number: u64, len: usize) -> bool {
        match self.sources.take(number) {
            Ok(()) => {
                self.stats.packets_opened += 1;
                self.stats.packet_bytes_opened += len as u64;
                true
            }
            Err(replayed) => {
                self.count_replayed(replayed);
                false
            }
        }
    }

    fn count_replayed(&mut self, replayed: Replayed) {
        match replayed {
            Replayed::Seen { .. } => self.stats.drops.duplicate_packets += 1,
            Replayed::TooOld { .. } => self.stats.drops.stale_packets += 1,
        }
    }

    fn handle_datagram_control(
        &mut self,
        now: Instant,
        index: usize,
        path: DatagramPath,
        control: &Control<'_>,
    ) -> Result<(), OpenError> {
        match control {
            Control::PathChallenge { challenge } => {
                self.answer_path(self.lanes[index].id, path, *challenge);
                Ok(())
            }
            Control::PathResponse { challenge } => {
                self.handle_path_response(now, index, challenge);
                Ok(())
            }
            Control::JoinEcho { challenge } if self.role == Role::Responder => {
                self.handle_join_echo(now, index, Some(path), challenge);
                Ok(())
            }
            Control::Probe { serial, .. } => {
                self.answer_probe(index, *serial);
                Ok(())
            }
            Control::ProbeOk { serial } => {
                self.handle_probe_ok(now, index, *serial);
                Ok(())
            }
            Control::Part {
                serial,
                last,
                bytes,
            } => match self.parts.take(*serial, *last, bytes) {
                Some(whole) => self.handle_joined_control(now, index, &whole),
                None => Ok(()),
            },
            Control::Ping { .. }
            | Control::Pong { .. }
            | Control::Config { .. }
            | Control::ConfigOk { .. }
            | Control::Close { .. }
            | Control::RekeyAsk
            | Control::RekeyInit { .. }
            | Control::RekeyReply { .. }
            | Control::JoinOk { .. }
            | Control::JoinEcho { .. }
            | Control::Enrol { .. }
            | Control::Enrolled { .. }
            | Control::Beside { .. } => self.handle_control(now, index, control),
        }
    }

    fn handle_joined_control(
        &mut self,
        now: Instant,
        index: usize,
        whole: &[u8],
    ) -> Result<(), OpenError> {
        let Some((kind, body)) = whole.split_first() else {
            return Err(OpenError::UnknownType { kind: 0 });
        };
        let kind = InnerType::from_byte(*kind).ok_or(OpenError::UnknownType { kind: *kind })?;
        let control = Control::parse(kind, body)?;
        // Refuses what is for datagrams alone, a part of a part included.
        self.handle_control(now, index, &control)
    }

    /// Seals a datagram whose inside is in place between header and tag.
    pub(super) fn seal_datagram(
        &mut self,
        now: Instant,
        index: usize,
        datagram: &mut [u8],
    ) -> Result<(), SealError> {
        let len = datagram.len();
        if len < DATAGRAM_OVERHEAD {
            return Err(SealError::Length { len });
        }
        let lane = &mut self.lanes[index];
        let epoch = self.epochs.current();
        let exhausted = SealError::Exhausted {
            epoch: epoch.number,
        };
        if self.settings.rekey.is_over(epoch) {
            return Err(exhausted);
        }
        let counter = lane.next_datagram_counter(epoch.number).ok_or(exhausted)?;
        let header = DatagramHeader {
            epoch: epoch.low_byte(),
            lane: lane.low_byte(),
            handle: self.id.handle(),
            counter,
        };
        let (clear, body) = datagram.split_at_mut(DATAGRAM_HEADER_LEN);
        clear.copy_from_slice(&header.to_bytes());
        let (text, tag) = body.split_at_mut(body.len() - TAG_LEN);
        let nonce = nonce(lane.id, u64::from(counter));
        let made = epoch.keys.seal.seal(nonce, clear, text);
        tag.copy_from_slice(&made.map_err(|_| SealError::Length { len })?);
        epoch.usage.add(len);
        lane.stats.outgoing.sent += 1;
        lane.stats.outgoing.sent_bytes += len as u64;
        let worn = self.settings.rekey.is_worn(epoch) || lane.is_worn(epoch.number);
        if worn && !self.rekey.is_under_way() {
            self.begin_rekey(now);
        }
        Ok(())
    }

    /// Writes a control frame for a datagram lane up to where its tag will be. One that is too long
    /// for a datagram goes in two.
    pub(super) fn write_control_datagram(
        &mut self,
        index: usize,
        message: &Message,
        time: u64,
        out: &mut Vec<u8>,
    ) {
        out.resize(DATAGRAM_HEADER_LEN, 0);
        message.write(time, out);
        let lane = &self.lanes[index];
        let Some(lossy) = &lane.lossy else { return };
        let most = lossy.mtu.current() - TAG_LEN;
        if out.len() <= most {
            return;
        }
        let inside = out.split_off(DATAGRAM_HEADER_LEN);
        let serial = self.next_part;
        self.next_part = self.next_part.wrapping_add(1);
        // Type, serial and part stand in front of each half.
        let (first, rest) = inside.split_at(most - DATAGRAM_HEADER_LEN - 3);
        out.push(InnerType::Part.byte());
        out.extend_from_slice(&[serial, 0]);
        out.extend_from_slice(first);
        let bytes = rest.to_vec();
        self.outbox
            .push_front(lane.id, Message::Rest { serial, bytes });
    }

    /// A confirmed datagram lane that may be sent on.
    fn datagram_lane(&self, lane: LaneId) -> Result<usize, SealError> {
        match self.state {
            State::Open => {}
            State::Unconfirmed => return Err(SealError::Unconfirmed),
            State::Closed { reason } => return Err(SealError::Closed { reason }),
        }
        self.lane_index(lane)
            .filter(|index| {
                let lane = &self.lanes[*index];
                lane.is_confirmed() && lane.kind == LaneKind::Datagram
            })
            .ok_or(SealError::Lane { lane })
    }

    fn check_room(&self, index: usize, len: usize) -> Result<(), SealError> {
        let epoch = self.epochs.current_ref();
        if self.settings.rekey.is_spent(epoch) {
            let epoch = epoch.number;
            return Err(SealError::Exhausted { epoch });
        }
        let lossy = self.lanes[index].lossy.as_ref();
        let most = lossy.map_or(0, |lossy| lossy.mtu.current());
        if len > most {
            return Err(SealError::TooLong { len, most });
        }
        Ok(())
    }
}

/// Longest packet in a datagram: the largest inner MTU there is. It bounds what halves of packets
/// may hold.
const MAX_WIRE_PACKET: usize = MAX_MTU as usize;
