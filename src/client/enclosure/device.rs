//! The TUN device of a namespace, as the netstack's wire.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};

use adit_netstack::{Offload, Packet, PacketSink};
use tracing::debug;

use crate::io::pool::{Buffer, Pool};
use crate::io::tun::exchange::{self, WriteError};
use crate::io::tun::{Tun, VirtioHeader};
use crate::wire::PACKET_HEADROOM;

/// A TUN device whose packets end here.
#[derive(Debug)]
pub(super) struct Device {
    tun: Tun,
    pool: Arc<Pool>,
    /// For the next read.
    spare: Option<Buffer>,
    /// For the next write.
    outgoing: Option<Buffer>,
    is_gone: bool,
    stats: DeviceStats,
}

/// What a [`Device`] has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeviceStats {
    /// Packets read.
    pub(crate) outgoing: u64,
    /// Packets written.
    pub(crate) incoming: u64,
    /// Packets that were read and are no IP packets or carry an unknown offload.
    pub(crate) unreadable: u64,
    /// Packets that the device did not take.
    pub(crate) write_failed: u64,
}

/// A packet that was read; its buffer is to be [given back](Device::give_back).
#[derive(Debug)]
pub(super) struct Read {
    pub(super) buffer: Buffer,
    pub(super) packet: Range<usize>,
    pub(super) offload: Offload,
}

impl Device {
    pub(super) fn new(tun: Tun, pool: Arc<Pool>) -> Self {
        Self {
            tun,
            pool,
            spare: None,
            outgoing: None,
            is_gone: false,
            stats: DeviceStats::default(),
        }
    }

    /// Reads the next packet; without one, the task is woken when there is.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Option<Read> {
        while !self.is_gone {
            match self.tun.poll_read_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.lose(&error);
                    return None;
                }
                Poll::Pending => return None,
            }
            let mut buffer = self.spare.take().unwrap_or_else(|| self.pool.large());
            match self.tun.try_read(exchange::read_room(&mut buffer)) {
                Ok(length) => match exchange::parse(&mut buffer, length) {
                    Some((_, offload)) => {
                        self.stats.outgoing += 1;
                        let length = length - VirtioHeader::LEN;
                        return Some(Read {
                            buffer,
                            packet: PACKET_HEADROOM..PACKET_HEADROOM + length,
                            offload,
                        });
                    }
                    None => {
                        self.stats.unreadable += 1;
                        self.spare = Some(buffer);
                    }
                },
                Err(error) => {
                    self.spare = Some(buffer);
                    // Else the readiness was used up: asked again, it waits.
                    if error.kind() != io::ErrorKind::WouldBlock {
                        self.lose(&error);
                    }
                }
            }
        }
        None
    }

    /// Takes the buffer of a packet back that was dealt with.
    pub(super) fn give_back(&mut self, buffer: Buffer) {
        self.spare = Some(buffer);
    }

    /// Lets go of what is kept for the next packet, since none came for a while.
    pub(super) fn rest(&mut self) {
        self.spare = None;
        self.outgoing = None;
    }

    /// Whether the device, with its namespace, is gone.
    pub(super) const fn is_gone(&self) -> bool {
        self.is_gone
    }

    pub(super) const fn stats(&self) -> DeviceStats {
        self.stats
    }

    fn lose(&mut self, error: &io::Error) {
        debug!(%error, "the TUN device of a command is gone");
        self.is_gone = true;
    }
}

impl PacketSink for Device {
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        let buffer = self.outgoing.get_or_insert_with(|| self.pool.large());
        buffer.get_mut(PACKET_HEADROOM..PACKET_HEADROOM + len)
    }

    fn commit(&mut self, len: usize, offload: Offload) {
        let range = PACKET_HEADROOM..PACKET_HEADROOM + len;
        let written = self.outgoing.as_deref_mut().and_then(|frame| {
            let packet = Packet::parse(frame.get(range.clone())?).ok()?;
            Some(exchange::write(&self.tun, frame, range, &packet, offload))
        });
        match written {
            Some(Ok(())) => self.stats.incoming += 1,
            None | Some(Err(WriteError::Illegal | WriteError::Refused(_))) => {
                self.stats.write_failed += 1;
            }
        }
    }
}
