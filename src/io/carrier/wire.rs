//! A lane for tests of what stands in front of one.

use adit_netstack::{Offload, PacketSink};

/// A lane that has room or not.
#[derive(Default)]
pub(crate) struct Wire {
    pub(crate) full: bool,
    pub(crate) room: Vec<u8>,
    pub(crate) packets: Vec<(Vec<u8>, Offload)>,
}

impl PacketSink for Wire {
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.full {
            return None;
        }
        self.room.resize(len, 0);
        Some(&mut self.room[..len])
    }

    fn commit(&mut self, len: usize, offload: Offload) {
        self.packets.push((self.room[..len].to_vec(), offload));
    }
}
