//! What stands at the inner address in place of a netstack: a TUN device, whose packets go straight into the session.
//!
//! ```text
//!  TUN ──▶ read ──┬──────────────────────────▶ carrier ──▶ server
//!                 └─ no lane ──▶ fair queue ─▶
//!  TUN ◀── write, in place, from the buffer it was opened in ◀── carrier
//! ```
//!
//! Packets of up to 64 KiB cross as they are, with their virtio headers, in the buffers that they are sealed or opened in.
//!
//! The kernel behind the device cannot be held back: what it finds no room for it drops, after a queue of hundreds of
//! super-packets. So the device is read whatever the lanes do, and what has no room waits in the fair queue in front of them.
//! While there is no session, and no lane, packets wait in a queue of the same kind here. They go nowhere else.
//!
//! # Limits
//!
//! [`BATCH`] packets are read in one turn. What waits is bounded as [`QueueLimits`](crate::proto::QueueLimits) say; beyond
//! that, the flow that has most there loses.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use adit_netstack::{Offload, Packet};
use tokio::sync::watch;

use crate::io::carrier::{Carrier, Waiting};
use crate::io::pool::{Buffer, Pool};
use crate::io::tun::Tun;
use crate::io::tun::exchange::{self, WriteError};
use crate::proto::QueueStats;
use crate::wire::CloseReason;

/// A TUN device as the inner end of a session.
#[derive(Debug)]
pub struct Device {
    tun: Tun,
    pool: Arc<Pool>,
    /// A large buffer for the next read.
    spare: Option<Buffer>,
    /// Packets for which there is no lane.
    waiting: Waiting,
    /// Told why the server has closed a session.
    closed: watch::Sender<Option<CloseReason>>,
    is_gone: bool,
    stats: DeviceStats,
}

/// What a [`Device`] has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceStats {
    /// Packets read from the device.
    pub outgoing: u64,
    /// Packets written to it.
    pub incoming: u64,
    /// Packets from the device that are no IP packets or carry an unknown offload.
    pub unreadable: u64,
    /// Packets of the server that are no IP packets, or whose offload is not legal.
    pub illegal: u64,
    /// Packets of the server that the device did not take.
    pub write_failed: u64,
}

impl Device {
    /// Puts `tun` at the inner end; `closed` is told why the server has closed a session.
    pub fn new(tun: Tun, pool: Arc<Pool>, closed: watch::Sender<Option<CloseReason>>) -> Self {
        Self {
            tun,
            spare: None,
            waiting: Waiting::default(),
            pool,
            closed,
            is_gone: false,
            stats: DeviceStats::default(),
        }
    }

    /// Tells the owner why the server has closed the session.
    pub(super) fn handle_closed(&mut self, reason: CloseReason) {
        self.closed.send_replace(Some(reason));
    }

    /// Writes a packet of the server to the device; it stands at `range` of its frame.
    pub(super) fn write(&mut self, frame: &mut [u8], range: Range<usize>, offload: Offload) {
        let packet = frame.get(range.clone()).and_then(|p| Packet::parse(p).ok());
        let Some(packet) = packet else {
            self.stats.illegal += 1;
            return;
        };
        match exchange::write(&self.tun, frame, range, &packet, offload) {
            Ok(()) => self.stats.incoming += 1,
            Err(WriteError::Illegal) => self.stats.illegal += 1,
            Err(WriteError::Refused(_)) => self.stats.write_failed += 1,
        }
    }

    /// Sends what waits as far as there is room, and reads the device; returns whether there was anything to read.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        mut carrier: Option<&mut Carrier>,
    ) -> bool {
        if let Some(carrier) = carrier.as_deref_mut() {
            self.send_waiting(now, carrier);
        }
        let mut read = 0;
        while read < BATCH && !self.is_gone {
            // Asked before each read: one that finds nothing has this task woken by the next packet.
            match self.tun.poll_read_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.lose(&error);
                    break;
                }
                Poll::Pending => break,
            }
            let mut buffer = self.spare.take().unwrap_or_else(|| self.pool.large());
            match self.tun.try_read(exchange::read_room(&mut buffer)) {
                Ok(length) => {
                    read += 1;
                    self.handle_read(now, buffer, length, carrier.as_deref_mut());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.spare = Some(buffer);
                }
                Err(error) => self.lose(&error),
            }
        }
        read > 0
    }

    /// Returns when [`Device::handle_timeout`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.poll_timeout()
    }

    /// Drops what has waited for a lane for too long, where there is none, and gives back what is kept for flows.
    pub(super) fn handle_timeout(&mut self, now: Instant, has_lane: bool) {
        self.waiting.handle_timeout(now, has_lane);
    }

    /// What was counted, and how many packets waited for too long, for the log at the end.
    pub(super) fn counters(&self) -> (DeviceStats, QueueStats, u64) {
        (self.stats, self.waiting.stats(), self.waiting.expired())
    }

    fn handle_read(
        &mut self,
        now: Instant,
        mut buffer: Buffer,
        length: usize,
        carrier: Option<&mut Carrier>,
    ) {
        let Some((_, offload)) = exchange::parse(&mut buffer, length) else {
            self.stats.unreadable += 1;
            self.spare = Some(buffer);
            return;
        };
        self.stats.outgoing += 1;
        let (buffer, spare) = exchange::fit(&self.pool, buffer, length);
        self.spare = spare;
        if self.waiting.is_empty()
            && let Some(carrier) = carrier
            && carrier.takes_packets(now)
        {
            carrier.push(now, buffer, offload);
        } else {
            self.waiting.push(now, buffer, offload, None);
        }
    }

    /// Gives what waited for a lane to the one there is now.
    fn send_waiting(&mut self, now: Instant, carrier: &mut Carrier) {
        while carrier.takes_packets(now)
            && let Some((buffer, offload)) = self.waiting.next(now, &self.pool)
        {
            carrier.push(now, buffer, offload);
        }
    }

    fn lose(&mut self, error: &io::Error) {
        tracing::warn!(%error, "the TUN device is gone");
        self.is_gone = true;
    }
}

/// Packets read in one turn, before the lanes get theirs.
const BATCH: usize = 64;
