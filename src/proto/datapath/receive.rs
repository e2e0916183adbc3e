//! The receiving half: datagrams in, packets out.

use std::ops::Range;
use std::time::{Duration, Instant};

use adit_fec::RepairOutcome;
use adit_netstack::Offload;

use super::lane::{Content, Datagram};
use super::send::{Datapath, checksum_of, gap_limits, offload_byte, plain};
use crate::proto::delivery::{Class, Fate};
use crate::proto::hold::Offer;
use crate::proto::path::DatagramPath;
use crate::proto::queue::QueuePacket;
use crate::proto::repair::{Circumstances, Outgoing, RepairScope, ScopeJudge};
use crate::proto::session::{OpenError, Opened, Session};
use crate::wire::{LaneId, RepairHeader, Report, expand_source};

impl<P: QueuePacket> Datapath<P> {
    /// Opens a datagram that arrived by `path` and hands every packet that this makes deliverable to
    /// `deliver`: bytes in which the packet stands at the range, with at least
    /// [`DELIVERY_HEADROOM`] bytes of room before it.
    ///
    /// # Errors
    /// [`OpenError`], as [`Session::open_datagram`].
    pub fn open(
        &mut self,
        session: &mut Session,
        now: Instant,
        path: DatagramPath,
        datagram: &mut [u8],
        ecn_ce: bool,
        deliver: &mut impl FnMut(&mut [u8], Range<usize>, Offload),
    ) -> Result<(), OpenError> {
        let len = datagram.len();
        let Some((lane, counter)) = session.datagram_number(datagram) else {
            // It does not open, and the session says and counts why.
            return session.open_datagram(now, path, datagram).map(|_| ());
        };
        let opened = session.open_datagram(now, path, datagram)?;
        if self.lane_mut(lane).is_none() {
            // What confirms a lane is the first that its reports tell of, or it would pass for lost.
            self.follow_lanes(session, now);
        }
        let class = match &opened {
            Opened::Report { range } => match Report::parse(&datagram[range.clone()]) {
                Ok(report) => {
                    self.handle_report(session, now, lane, &report);
                    if report.asks {
                        Class::Asking
                    } else {
                        Class::Report
                    }
                }
                Err(_) => {
                    self.drops.malformed_reports += 1;
                    Class::Report
                }
            },
            Opened::Packet { .. }
            | Opened::Repair { .. }
            | Opened::Flow { .. }
            | Opened::Control
            | Opened::Skipped => Class::Data,
        };
        if let Some(lane) = self.lane_mut(lane) {
            lane.received
                .handle_datagram(now, counter, len, ecn_ce, class);
        }
        match opened {
            Opened::Packet {
                number,
                kept,
                range,
                offload,
            } => {
                // One that was overtaken tells what was true before.
                if number >= self.incoming.gaps().next() {
                    self.set_kept(kept);
                }
                let packet = Received {
                    lane,
                    number,
                    frame: datagram,
                    range,
                    offload,
                };
                self.take(session, now, packet, deliver);
            }
            Opened::Repair { range } => {
                self.handle_repair(session, now, lane, &datagram[range]);
                self.repaired(session, now, lane, deliver);
            }
            // The session takes flows on stream lanes only.
            Opened::Report { .. } | Opened::Flow { .. } | Opened::Control => {}
            Opened::Skipped => self.joined(session, now, lane, deliver),
        }
        Ok(())
    }

    /// Takes a packet that came for the first time, over whichever lane: one of another kind may carry
    /// what a datagram lane is missing.
    pub fn take(
        &mut self,
        session: &mut Session,
        now: Instant,
        packet: Received<'_>,
        deliver: &mut impl FnMut(&mut [u8], Range<usize>, Offload),
    ) {
        let lane = packet.lane;
        self.note_source(session, now, &packet);
        self.offer(now, packet, deliver);
        self.repaired(session, now, lane, deliver);
    }

    /// Delivers packets that came in two pieces.
    fn joined(
        &mut self,
        session: &mut Session,
        now: Instant,
        lane: LaneId,
        deliver: &mut impl FnMut(&mut [u8], Range<usize>, Offload),
    ) {
        let mut frame = std::mem::take(&mut self.scratch);
        while let Some((number, packet, offload)) = session.poll_delivery() {
            frame.clear();
            frame.resize(DELIVERY_HEADROOM, 0);
            frame.extend_from_slice(packet);
            let range = DELIVERY_HEADROOM..frame.len();
            let packet = Received {
                lane,
                number,
                frame: &mut frame,
                range,
                offload,
            };
            self.note_source(session, now, &packet);
            self.offer(now, packet, deliver);
        }
        self.scratch = frame;
    }

    /// Shows a packet that came for the first time to repair.
    fn note_source(&mut self, session: &mut Session, now: Instant, packet: &Received<'_>) {
        let (lane, number) = (packet.lane, packet.number);
        self.used_at = Some(now);
        let bits = offload_byte(packet.offload.checksum);
        let bytes = &packet.frame[packet.range.clone()];
        let in_time = self.incoming.handle_source(now, lane, number, bits, bytes);
        session.count(lane).incoming.late += u64::from(!in_time);
        self.count_hopeless(session);
    }

    /// Counts what has been given up.
    fn count_hopeless(&mut self, session: &mut Session) {
        while let Some((lane, packets)) = self.incoming.gaps_mut().poll_hopeless() {
            session.count(lane).incoming.residual += packets;
        }
    }

    /// Does what is due by `now`; packets that were held may go then.
    pub fn handle_timeout(
        &mut self,
        session: &mut Session,
        now: Instant,
        deliver: &mut impl FnMut(&mut [u8], Range<usize>, Offload),
    ) {
        for lane in &mut self.lanes {
            if lane.flight.poll_timeout().is_some_and(|due| due <= now) {
                let id = lane.id;
                // Nothing is sent again unasked by a timer. Where none of what flew was answered, a queue that others
                // fill is as likely as a loss, and all of it again would fill that further.
                lane.probe |= lane.flight.handle_timeout(now, |datagram, fate| {
                    follow_fate(session, None, now, id, datagram, fate);
                });
                let report = lane.loss_report(0);
                if let Some(outgoing) = &mut self.outgoing
                    && self.carrier.is_none_or(|carrier| carrier == lane.id)
                {
                    outgoing.handle_report(now, &report);
                }
            }
        }
        self.rest_when_idle(now);
        self.incoming.handle_timeout(now);
        self.count_hopeless(session);
        if self.question_at().is_some_and(|due| due <= now) {
            // Something is to be asked for, and the next report may be far off.
            let mut lanes = self.lanes.iter_mut().rev();
            if let Some(lane) = lanes.find(|lane| lane.received.highest().is_some()) {
                lane.received.handle_missing();
            }
        }
        self.hold.handle_timeout(now);
        self.release(deliver);
    }

    /// When a lane is to be told that there is something to ask for: not while none has anything to report on, nor while
    /// one was told and has not reported yet.
    pub(super) fn question_at(&self) -> Option<Instant> {
        let mut lanes = self.lanes.iter().map(|lane| &lane.received);
        let wanted = lanes.clone().any(|received| received.highest().is_some())
            && !lanes.any(|received| received.is_urgent());
        self.incoming.gaps().question_at().filter(|_| wanted)
    }

    /// Takes note of whether the far end keeps what it sends. Where it does not, no packet is held
    /// back for another, and none is asked for.
    pub(super) fn set_kept(&mut self, kept: bool) {
        if self.kept == kept {
            return;
        }
        self.kept = kept;
        self.incoming.gaps_mut().set_asking(kept);
        self.follow(self.round_trip);
    }

    /// Follows the round-trip time.
    fn follow(&mut self, round_trip: Duration) {
        self.round_trip = round_trip;
        let limits = gap_limits(round_trip);
        // Where nothing is kept late packets still count as late, not as lost, but nobody waits for them.
        self.incoming.set_limits(limits);
        self.hold.set_wait(if self.kept {
            limits.give_up_after
        } else {
            Duration::ZERO
        });
    }

    pub(super) fn handle_report(
        &mut self,
        session: &mut Session,
        now: Instant,
        id: LaneId,
        report: &Report,
    ) {
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.id == id) else {
            return;
        };
        let mut unasked = unasked(&mut self.outgoing, &self.judge);
        lane.flight.handle_report(now, report, |datagram, fate| {
            follow_fate(session, unasked.as_deref_mut(), now, id, datagram, fate);
        });
        let mut unrepaired = 0;
        if let Some(outgoing) = &mut self.outgoing {
            for number in report.missing.below(session.next_source()) {
                unrepaired += u32::from(outgoing.handle_request(now, number));
            }
        }
        let loss = lane.loss_report(unrepaired);
        let sent = lane.flight.sent();
        let (round_trip, rate) = (sent.round_trip(), lane.flight.congestion().pacing_rate());
        let starting = lane.flight.congestion().is_starting();
        let rivals = lane.flight.congestion().has_rivals();
        let held = self.judge.scope() == RepairScope::All
            && (self.outgoing.as_ref()).is_some_and(|outgoing| outgoing.makes_flows_wait());
        lane.received.handle_round_trip(round_trip);
        // What another lane is like says nothing of the one that takes packets.
        if self.carrier.is_none_or(|carrier| carrier == id) {
            self.queue.set_pace(rate, round_trip);
            self.queue.set_starting(starting);
            self.queue.set_patient(rivals || held);
            self.follow(round_trip);
            if let Some(outgoing) = &mut self.outgoing {
                outgoing.handle_report(now, &loss);
            }
        }
        if self.carrier == Some(id) {
            self.judge(now, id);
        }
    }

    /// Decides anew what is repaired of the packets on a lane.
    fn judge(&mut self, now: Instant, id: LaneId) {
        let queue = self.queue.stats();
        let loss = self
            .outgoing
            .as_ref()
            .map_or(0.0, |outgoing| outgoing.loss());
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.id == id) else {
            return;
        };
        let congestion = lane.flight.congestion();
        let bytes = congestion.metrics().bandwidth as f64 * self.round_trip.as_secs_f64();
        let flying = bytes / congestion.datagram_size() as f64;
        let circumstances = Circumstances {
            sent: queue.sent,
            dropped: queue.drops.codel,
            own: queue.own,
            rivals: congestion.has_rivals(),
            flying,
            loss,
        };
        self.judge.judge(now, &circumstances);
        let scope = self.judge.scope();
        lane.flight.set_exposed(scope == RepairScope::Copies);
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.set_parity(scope == RepairScope::All);
        }
    }

    fn handle_repair(&mut self, session: &mut Session, now: Instant, lane: LaneId, body: &[u8]) {
        let Ok((header, parity)) = RepairHeader::parse(body) else {
            self.drops.malformed_repairs += 1;
            return;
        };
        let first = expand_source(header.first, session.highest_source());
        match self.incoming.handle_repair(now, first, header, parity) {
            // The decoder counts what contradicts itself.
            Ok(RepairOutcome::Useful | RepairOutcome::Malformed) => {}
            Ok(RepairOutcome::Redundant | RepairOutcome::Expired) => {
                session.count(lane).incoming.wasted += 1;
            }
            Err(_) => self.drops.malformed_repairs += 1,
        }
    }

    /// Delivers what parity has brought back.
    fn repaired(
        &mut self,
        session: &mut Session,
        now: Instant,
        lane: LaneId,
        deliver: &mut impl FnMut(&mut [u8], Range<usize>, Offload),
    ) {
        while let Some(arrived) = self.incoming.poll_repaired(now, lane) {
            if !session.take_source(arrived.number, arrived.packet.len()) {
                session.count(lane).incoming.wasted += 1;
                continue;
            }
            let counts = &mut session.count(arrived.missed.unwrap_or(lane)).incoming;
            counts.repaired += 1;
            counts.late += u64::from(arrived.missed.is_none());
            let end = DELIVERY_HEADROOM + arrived.packet.len();
            self.scratch.clear();
            self.scratch.resize(DELIVERY_HEADROOM, 0);
            self.scratch.extend_from_slice(arrived.packet);
            let offload = plain(checksum_of(arrived.offload));
            let number = arrived.number;
            let mut frame = std::mem::take(&mut self.scratch);
            let range = DELIVERY_HEADROOM..end;
            let packet = Received {
                lane,
                number,
                frame: &mut frame,
                range,
                offload,
            };
            self.offer(now, packet, deliver);
            self.scratch = frame;
        }
        self.count_hopeless(session);
    }

    /// Delivers a packet that came for the first time, now or when what is missing before it has
    /// come or is hopeless.
    fn offer(
        &mut self,
        now: Instant,
        packet: Received<'_>,
        deliver: &mut impl FnMut(&mut [u8], Range<usize>, Offload),
    ) {
        let Received {
            number,
            frame,
            range,
            offload,
            lane: _,
        } = packet;
        match self.hold.offer(now, number, &frame[range.clone()], offload) {
            Offer::Deliver => deliver(frame, range, offload),
            Offer::Held => {}
        }
        self.release(deliver);
    }

    fn release(&mut self, deliver: &mut impl FnMut(&mut [u8], Range<usize>, Offload)) {
        while let Some(delivery) = self.hold.poll_deliver() {
            deliver(delivery.frame, delivery.range, delivery.offload);
        }
    }
}

/// What sends again unasked what is lost: the ring of what was sent, where there is no parity to wait for.
fn unasked<'a>(
    outgoing: &'a mut Option<Box<Outgoing>>,
    judge: &ScopeJudge,
) -> Option<&'a mut Outgoing> {
    let left = judge.scope() == RepairScope::Copies;
    outgoing
        .as_deref_mut()
        .filter(|outgoing| outgoing.ratio() == 0.0 && !left)
}

/// Tells path MTU discovery, and what sends again unasked, what became of a datagram.
fn follow_fate(
    session: &mut Session,
    unasked: Option<&mut Outgoing>,
    now: Instant,
    id: LaneId,
    Datagram { len, content }: Datagram,
    fate: Fate,
) {
    session.count(id).outgoing.count_fate(fate);
    match fate {
        Fate::Delivered => session.handle_datagram_acknowledged(id, len.into()),
        Fate::Late => {}
        Fate::Lost => {
            session.handle_datagram_lost(id, len.into());
            if let (Content::Source { number } | Content::Resend { number }, Some(outgoing)) =
                (content, unasked)
            {
                outgoing.handle_request(now, number);
            }
        }
    }
}

/// A packet that came for the first time.
#[derive(Debug)]
pub struct Received<'a> {
    /// The lane that it came on.
    pub lane: LaneId,
    /// Its source number.
    pub number: u64,
    /// Bytes with room before the packet.
    pub frame: &'a mut [u8],
    /// Where in them it is.
    pub range: Range<usize>,
    /// What it owes: a claim to check.
    pub offload: Offload,
}

/// Room before a packet that is delivered: for the header of a TUN device.
pub const DELIVERY_HEADROOM: usize = 16;
