//! One packet from the device into the room of a frame, and one frame's packet back, without a copy.
//!
//! ```text
//!            PACKET_HEADROOM                                TAILROOM
//!  ┌─────────────────┬────────┬────────────────────────────┬────────┐
//!  │ frame's header  │ virtio │ packet                     │ tag    │
//!  └─────────────────┴────────┴────────────────────────────┴────────┘
//!                    └── one read, or one write ───────────┘
//! ```
//!
//! The ten bytes of the virtio header stand where the frame's header ends: it is written after they were read, and
//! no longer needed when they are written.

use std::ops::Range;
use std::sync::Arc;

use adit_netstack::{Checksum, Gso, Offload, Packet, complete_checksum, virtio_fields};

use super::device::Tun;
use super::virtio::VirtioHeader;
use crate::io::pool::{Buffer, MEDIUM, Pool};
use crate::wire::{PACKET_HEADROOM, TAILROOM};

/// Lends the part of a large buffer that a read of the device goes to.
pub fn read_room(buffer: &mut Buffer) -> &mut [u8] {
    let end = buffer.capacity() - TAILROOM;
    buffer.reset();
    &mut buffer[START..end]
}

/// Says what stands in `buffer` after a read of `read` bytes into [`read_room`]; `None` if it is no IP packet, or
/// one with an offload that was not asked for.
pub fn parse(buffer: &mut [u8], read: usize) -> Option<(Packet, Offload)> {
    let bytes = buffer.get_mut(START..START + read)?;
    let (header, packet) = VirtioHeader::split(bytes).ok()?;
    let mut offload = header.offload().ok()?;
    let packet = Packet::parse(packet).ok()?;
    // The wire knows a checksum that is owed only for plain headers; the kernel, for all.
    if packet.has_options && offload.checksum == Checksum::Partial {
        if offload.gso != Gso::None {
            return None;
        }
        complete_checksum(bytes.get_mut(VirtioHeader::LEN..)?).ok()?;
        offload.checksum = Checksum::Full;
    }
    Some((packet, offload))
}

/// Cuts `buffer` to the frame of a packet of which `read` bytes were read; a short packet moves to a buffer of its
/// size, or it would hold a large one while it waits. Gives the large one back if it is free again.
pub fn fit(pool: &Arc<Pool>, mut buffer: Buffer, read: usize) -> (Buffer, Option<Buffer>) {
    let end = START + read;
    let len = end + TAILROOM;
    if len <= MEDIUM {
        let mut fitting = pool.sized(len);
        fitting[..end].copy_from_slice(&buffer[..end]);
        (fitting, Some(buffer))
    } else {
        buffer.truncate(len);
        (buffer, None)
    }
}

/// Writes the packet at `range` of `frame`, which must start at least [`VirtioHeader::LEN`] bytes into it; `packet` is
/// what was parsed of it.
///
/// # Errors
/// [`WriteError`].
pub fn write(
    tun: &Tun,
    frame: &mut [u8],
    range: Range<usize>,
    packet: &Packet,
    offload: Offload,
) -> Result<(), WriteError> {
    let start = range.start.checked_sub(VirtioHeader::LEN);
    let whole = start.and_then(|start| frame.get_mut(start..range.end));
    let whole = whole.ok_or(WriteError::Illegal)?;
    let (header, bytes) = whole.split_at_mut(VirtioHeader::LEN);
    let fields = virtio_fields(bytes, packet, offload).map_err(|_| WriteError::Illegal)?;
    header.copy_from_slice(&VirtioHeader::from(fields).encode());
    tun.try_write(whole).map_err(WriteError::Refused)
}

/// Why a packet was not written to the device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// What it owes is not legal for such a packet.
    #[error("the packet asks for an offload that is not legal")]
    Illegal,
    /// The kernel did not take it.
    #[error("the device did not take the packet: {0}")]
    Refused(std::io::Error),
}

/// Where a read begins in a buffer.
const START: usize = PACKET_HEADROOM - VirtioHeader::LEN;
