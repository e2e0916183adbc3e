//! Where a netstack writes its packets.

use std::time::Instant;

use adit_netstack::{Offload, PacketSink};

use super::datagram::Datagrams;
use super::stream::CarriedStream;
use crate::proto::Session;
use crate::wire::{DEFAULT_MTU, PACKET_HEADROOM, TAILROOM};

/// Room for packets of the lane that the session's scheduler has named.
#[derive(Debug)]
pub struct LaneSink<'a> {
    pub(super) session: &'a mut Session,
    pub(super) room: Room<'a>,
    pub(super) unsealed: &'a mut u64,
    pub(super) now: Instant,
}

/// Where the packets go.
#[derive(Debug)]
pub(super) enum Room<'a> {
    /// There is no lane.
    None,
    /// Into the write buffer of a stream lane, sealed there as they are committed.
    Stream(&'a mut CarriedStream),
    /// To be cut, and sealed into datagrams.
    Datagrams(&'a mut Datagrams),
}

impl PacketSink for LaneSink<'_> {
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        match &mut self.room {
            Room::None => None,
            Room::Stream(lane) => {
                let room = lane.io.reserve(PACKET_HEADROOM + len + TAILROOM)?;
                room.get_mut(PACKET_HEADROOM..PACKET_HEADROOM + len)
            }
            Room::Datagrams(datagrams) => datagrams.reserve(len),
        }
    }

    fn commit(&mut self, len: usize, offload: Offload) {
        let sealed = match &mut self.room {
            Room::None => return,
            Room::Stream(lane) => {
                let whole = PACKET_HEADROOM + len + TAILROOM;
                let sealed = lane.io.reserve(whole).is_some_and(|room| {
                    self.session
                        .seal_packet(self.now, lane.id, &mut room[..whole], offload)
                        .is_ok()
                });
                if sealed {
                    lane.io.commit(whole);
                }
                sealed
            }
            Room::Datagrams(datagrams) => datagrams.commit(self.now, len, offload),
        };
        if !sealed {
            *self.unsealed += 1;
        }
    }
}

/// Returns whether `sink` has room for a packet: for those who would rather leave a datagram
/// where it is than read and drop it.
pub fn has_room<S: PacketSink>(sink: &mut S) -> bool {
    sink.reserve(usize::from(DEFAULT_MTU)).is_some()
}
