//! Who takes what a carrier has opened.

use std::ops::Range;

use adit_netstack::Offload;

use crate::proto::relayed::Pieces;
use crate::wire::FlowFrame;

/// Takes packets and the frames of relayed flows as they are opened.
pub trait Deliver {
    /// Takes a packet: the whole frame, and where in it the packet stands.
    fn packet(&mut self, frame: &mut [u8], range: Range<usize>, offload: Offload);

    /// Takes a frame of a relayed flow, and the bytes behind its fields: for one of Data also those of others that follow
    /// it without a gap.
    fn flow(&mut self, frame: &FlowFrame, bytes: Pieces<'_>);
}

/// Takes packets, of a session that relays no flows.
pub(super) struct Packets<F>(pub(super) F);

impl<F: FnMut(&mut [u8], Range<usize>, Offload)> Deliver for Packets<F> {
    fn packet(&mut self, frame: &mut [u8], range: Range<usize>, offload: Offload) {
        (self.0)(frame, range, offload);
    }

    fn flow(&mut self, _: &FlowFrame, _: Pieces<'_>) {}
}
