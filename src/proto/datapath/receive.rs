//! The receiving half: datagrams in, packets out.

use std::ops::Range;
use std::time::Instant;

use adit_netstack::Offload;

use super::lane::DatapathLane;
use super::send::{Datapath, checksum_of, datagram_number, gap_limits, offload_byte, plain};
use crate::proto::delivery::Class;
use crate::proto::queue::QueuePacket;
use crate::proto::session::{OpenError, OpenedDatagram, Session};
use crate::wire::{LaneId, RepairHeader, Report, expand_source};

impl<P: QueuePacket> Datapath<P> {
    /// Opens a datagram that arrived on a lane and hands every packet that this makes deliverable to
    /// `deliver`: bytes in which the packet stands at the range, with at least
    /// [`DELIVERY_HEADROOM`] bytes of room before it.
    ///
    /// # Errors
    /// [`OpenError`], as [`Session::open_datagram`].
    pub fn open(
        &mut self,
        session: &mut Session,
        now: Instant,
        id: LaneId,
        datagram: &mut [u8],
        ecn_ce: bool,
        deliver: &mut impl FnMut(&mut [u8], Range<usize>, Offload),
    ) -> Result<(), OpenError> {
        let len = datagram.len();
        let opened = session.open_datagram(now, id, datagram)?;
        let class = match &opened.kind {
            OpenedDatagram::Report { range } => match Report::parse(&datagram[range.clone()]) {
                Ok(report) => {
                    let asks = report.asks;
                    self.handle_report(session, now, id, &report);
                    if asks { Class::Asking } else { Class::Report }
                }
                Err(_) => {
                    self.drops.malformed_reports += 1;
                    Class::Report
                }
            },
            OpenedDatagram::Packet { .. }
            | OpenedDatagram::Repair { .. }
            | OpenedDatagram::Control
            | OpenedDatagram::Skipped => Class::Data,
        };
        let number = datagram_number(opened.epoch, opened.counter);
        if let Some(lane) = self.lane_mut(id) {
            lane.received.handle_datagram(now, number, len, ecn_ce, class);
        }
        match opened.kind {
            OpenedDatagram::Packet {
                number,
                range,
                offload,
            } => {
                let bits = offload_byte(offload.checksum);
                self.incoming
                    .handle_source(now, number, bits, &datagram[range.clone()]);
                self.offer(now, number, datagram, range, offload, deliver);
                self.repaired(session, now, deliver);
            }
            OpenedDatagram::Repair { range } => {
                self.handle_repair(session, now, &datagram[range]);
                self.repaired(session, now, deliver);
            }
            OpenedDatagram::Report { .. }
            | OpenedDatagram::Control
            | OpenedDatagram::Skipped => {}
        }
        Ok(())
    }

    /// Does what is due by `now`; packets that were held may go then.
    pub fn handle_timeout(
        &mut self,
        now: Instant,
        deliver: &mut impl FnMut(&mut [u8], Range<usize>, Offload),
    ) {
        for lane in &mut self.lanes {
            if lane
                .flight
                .poll_timeout()
                .is_some_and(|due| due <= now)
            {
                lane.probe |= lane.flight.handle_timeout(now, |_, _| {});
                let report = lane.loss_report(0);
                if let Some(outgoing) = &mut self.outgoing {
                    outgoing.handle_report(now, &report);
                }
            }
        }
        self.rest_when_idle(now);
        self.incoming.handle_timeout(now);
        if self.incoming.gaps().poll_timeout().is_some_and(|due| due <= now) {
            // Something is to be asked for, and the next report may be far off.
            if let Some(lane) = self.lanes.last_mut() {
                lane.received.handle_missing();
            }
        }
        self.release(now, deliver);
    }
}
