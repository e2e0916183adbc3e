//! Where a netstack writes its packets.

use std::net::SocketAddr;
use std::time::Instant;

use adit_netstack::{Offload, PacketSink};

use super::datagram::Datagrams;
use super::event::CarrierStats;
use super::several::Several;
use super::stream::CarriedStream;
use crate::proto::Session;
use crate::wire::{DEFAULT_MTU, PACKET_HEADROOM, TAILROOM};

/// Room for packets of the lane that the session's scheduler has named.
#[derive(Debug)]
pub struct LaneSink<'a> {
    pub(super) session: &'a mut Session,
    pub(super) room: Room<'a>,
    pub(super) stats: &'a mut CarrierStats,
    pub(super) now: Instant,
}

/// Where the packets go.
#[derive(Debug)]
pub(super) enum Room<'a> {
    /// There is no lane.
    None,
    /// Into the write buffer of a stream lane, sealed there as they are committed.
    Stream(&'a mut CarriedStream),
    /// Into the write buffers of several stream lanes.
    Several(Several<'a>),
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
            Room::Several(several) => several.reserve(self.now, len),
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
            Room::Several(several) => {
                several.commit(self.now, self.session, self.stats, len, offload)
            }
            Room::Datagrams(datagrams) => datagrams.commit(self.now, len, offload),
        };
        if !sealed {
            self.stats.unsealed += 1;
        }
    }

    fn admit(&mut self, local: SocketAddr, remote: SocketAddr) -> bool {
        match &mut self.room {
            Room::Several(several) => several.admit(self.now, local, remote),
            Room::None | Room::Stream(_) | Room::Datagrams(_) => true,
        }
    }
}

/// Returns whether `sink` has room for a packet: for those who would rather leave a datagram
/// where it is than read and drop it.
pub fn has_room<S: PacketSink>(sink: &mut S) -> bool {
    sink.reserve(usize::from(DEFAULT_MTU)).is_some()
}
