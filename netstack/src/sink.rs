//! Where outgoing packets are written: memory that the caller owns.

use std::net::SocketAddr;

use crate::offload::Offload;

/// Takes packets by reserve and commit, so that they are written once, where they leave from.
///
/// A [`reserve`](PacketSink::reserve) without a commit is forgotten by the next one. The stack may reserve more than
/// it commits, and may reserve twice for one packet, so reserving should cost no more than finding the room.
pub trait PacketSink {
    /// Lends room for one packet: a slice of exactly `len` bytes (at most 65,535) with any content; none if the sink
    /// is full, which holds the stack back until it is called again.
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]>;

    /// Takes the packet that was written into the first `len` bytes of the room last reserved.
    fn commit(&mut self, len: usize, offload: Offload);

    /// Says whether the TCP flow from `local` to `remote` may write its next packet: one that may not is passed over,
    /// and asked again at the next call, while others write theirs. What is reserved next is for that flow.
    fn admit(&mut self, local: SocketAddr, remote: SocketAddr) -> bool {
        let _ = (local, remote);
        true
    }
}
