//! The egress `tun`: packets leave through a TUN device, and come back from it.
//!
//! # Theory of operation
//!
//! Uplink, a session's driver writes each packet straight from the buffer it was opened in:
//! the ten bytes in front of it, no longer needed, become the virtio header. Downlink, one
//! task drains the device: each packet is read behind the headroom of its later frame, its
//! destination looked up, and the buffer queued for that session. Sessions are woken once
//! per batch.
//!
//! # Limits
//!
//! A batch is at most `BATCH` packets. The device never goes unread because a session is
//! slow: full queues drop (see [`crate::server::router`]).

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::io::clock;
use crate::io::pool::{Buffer, Pool};
use crate::io::tun::Tun;
use crate::io::tun::exchange::{self, WriteError};
use crate::io::turns::Turns;
use crate::server::router::{Downlink, Queued, Router};
use adit_netstack::{Offload, Packet};

/// A TUN device that the sessions share.
#[derive(Debug)]
pub struct TunEgress {
    tun: Arc<Tun>,
    stats: TunStats,
}

/// What a [`TunEgress`] has counted.
#[derive(Debug, Default)]
pub struct TunStats {
    /// Packets of clients written to the device.
    pub uplink: AtomicU64,
    /// Packets for clients read from the device.
    pub downlink: AtomicU64,
    /// Packets of clients that the device did not take.
    pub write_failed: AtomicU64,
    /// Packets of clients whose offload request was not legal.
    pub illegal_offload: AtomicU64,
    /// Packets from the device that are no IP packets or carry an unknown offload.
    pub unreadable: AtomicU64,
}

impl TunEgress {
    /// Wraps an open device.
    pub fn new(tun: Arc<Tun>) -> Self {
        Self {
            tun,
            stats: TunStats::default(),
        }
    }

    /// Writes the packet at `range` of `frame`, which must start at least
    /// [`VirtioHeader::LEN`](crate::io::tun::VirtioHeader::LEN) bytes into it; `packet` is what was parsed of it.
    pub fn send(&self, frame: &mut [u8], range: Range<usize>, packet: &Packet, offload: Offload) {
        let counter = match exchange::write(&self.tun, frame, range, packet, offload) {
            Ok(()) => &self.stats.uplink,
            Err(WriteError::Illegal) => &self.stats.illegal_offload,
            Err(WriteError::Refused(_)) => &self.stats.write_failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns what was counted.
    pub fn stats(&self) -> &TunStats {
        &self.stats
    }

    /// Reads the device and queues each packet for its session, until reading fails.
    pub async fn drain(&self, router: &Router, pool: &Arc<Pool>) -> io::Error {
        let mut touched: Vec<Arc<Downlink>> = Vec::with_capacity(BATCH);
        let mut spare: Option<Buffer> = None;
        let mut turns = Turns::begin();
        loop {
            if let Err(error) = poll_fn(|cx| self.tun.poll_read_ready(cx)).await {
                return error;
            }
            let mut full = true;
            for _ in 0..BATCH {
                let mut buffer = spare.take().unwrap_or_else(|| pool.large());
                match self.tun.try_read(exchange::read_room(&mut buffer)) {
                    Ok(read) => spare = self.queue(router, pool, buffer, read, &mut touched),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        spare = Some(buffer);
                        full = false;
                        break;
                    }
                    Err(error) => return error,
                }
            }
            for downlink in touched.drain(..) {
                downlink.wake();
            }
            if !full {
                turns = Turns::begin();
            } else if turns.are_over(clock::now()) {
                // Whom they are for have their turn, or queues would fill behind which nobody is.
                tokio::task::yield_now().await;
                turns = Turns::begin();
            }
        }
    }

    /// Queues what was read for its session; gives the buffer back if it is free again.
    fn queue(
        &self,
        router: &Router,
        pool: &Arc<Pool>,
        mut buffer: Buffer,
        read: usize,
        touched: &mut Vec<Arc<Downlink>>,
    ) -> Option<Buffer> {
        let Some((packet, offload)) = exchange::parse(&mut buffer, read) else {
            self.stats.unreadable.fetch_add(1, Ordering::Relaxed);
            return Some(buffer);
        };
        self.stats.downlink.fetch_add(1, Ordering::Relaxed);
        let Some(downlink) = router.route(packet.destination) else {
            return Some(buffer);
        };
        let (buffer, free) = exchange::fit(pool, buffer, read);
        if downlink.push(Queued { buffer, offload })
            && !touched
                .last()
                .is_some_and(|last| Arc::ptr_eq(last, &downlink))
        {
            touched.push(downlink);
        }
        free
    }
}

/// Packets read per wake-up before the sessions get their turn.
const BATCH: usize = 64;
