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
use crate::io::pool::{Buffer, MEDIUM, Pool};
use crate::io::tun::{Tun, VirtioHeader};
use crate::io::turns::Turns;
use crate::server::router::{Downlink, Queued, Router};
use crate::wire::{PACKET_HEADROOM, TAILROOM};
use adit_netstack::{Checksum, Gso, Offload, Packet, complete_checksum, virtio_fields};

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
    /// [`VirtioHeader::LEN`] bytes into it; `packet` is what was parsed of it.
    pub fn send(&self, frame: &mut [u8], range: Range<usize>, packet: &Packet, offload: Offload) {
        let Some(start) = range.start.checked_sub(VirtioHeader::LEN) else {
            self.stats.illegal_offload.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let Some(whole) = frame.get_mut(start..range.end) else {
            return;
        };
        let (header, bytes) = whole.split_at_mut(VirtioHeader::LEN);
        let Ok(fields) = virtio_fields(bytes, packet, offload) else {
            self.stats.illegal_offload.fetch_add(1, Ordering::Relaxed);
            return;
        };
        header.copy_from_slice(&VirtioHeader::from(fields).encode());
        let counter = match self.tun.try_write(whole) {
            Ok(_) => &self.stats.uplink,
            Err(_) => &self.stats.write_failed,
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
                let end = buffer.capacity() - TAILROOM;
                let room = &mut buffer[PACKET_HEADROOM - VirtioHeader::LEN..end];
                match self.tun.try_read(room) {
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
        let end = PACKET_HEADROOM - VirtioHeader::LEN + read;
        let bytes = &mut buffer[..];
        let parsed = bytes
            .get(PACKET_HEADROOM - VirtioHeader::LEN..end)
            .and_then(|read| VirtioHeader::split(read).ok())
            .and_then(|(header, packet)| {
                Some((header.offload().ok()?, Packet::parse(packet).ok()?))
            });
        let Some((mut offload, packet)) = parsed else {
            self.stats.unreadable.fetch_add(1, Ordering::Relaxed);
            return Some(buffer);
        };
        // The wire knows a checksum that is owed only for plain headers; the kernel, for all.
        if packet.has_options && offload.checksum == Checksum::Partial {
            if offload.gso != Gso::None
                || complete_checksum(&mut bytes[PACKET_HEADROOM..end]).is_err()
            {
                self.stats.unreadable.fetch_add(1, Ordering::Relaxed);
                return Some(buffer);
            }
            offload.checksum = Checksum::Full;
        }
        self.stats.downlink.fetch_add(1, Ordering::Relaxed);
        let Some(downlink) = router.route(packet.destination) else {
            return Some(buffer);
        };
        let len = end + TAILROOM;
        // A short packet must not hold a large buffer while it waits.
        let (buffer, free) = if len <= MEDIUM {
            let mut fitting = pool.sized(len);
            fitting[..end].copy_from_slice(&buffer[..end]);
            (fitting, Some(buffer))
        } else {
            buffer.truncate(len);
            (buffer, None)
        };
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
