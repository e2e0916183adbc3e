//! What keeps the flows that a relay moves: the netstack, or the table of flows that are relayed without one.

use std::time::Instant;

use adit_netstack::{FlowId, RecvError, SendError, Stack};

use crate::proto::relayed::{Relayed, RelayedKey};

/// What keeps flows: their bytes in both directions, and their ends.
pub trait Flows {
    /// Names a flow.
    type Id: Copy + PartialEq + std::fmt::Debug;

    /// Gives a small number that no other living flow has.
    fn index(id: Self::Id) -> usize;

    /// Gives bytes that have come to `f`, which returns how many it took.
    ///
    /// # Errors
    /// [`RecvError`] when there are none.
    fn recv<R>(
        &mut self,
        now: Instant,
        id: Self::Id,
        f: impl FnOnce(&[u8]) -> (usize, R),
    ) -> Result<R, RecvError>;

    /// Lends room for bytes to send to `f`, which returns how many it wrote.
    ///
    /// # Errors
    /// [`SendError`] when there is no room.
    fn send<R>(
        &mut self,
        now: Instant,
        id: Self::Id,
        f: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> Result<R, SendError>;

    /// Ends our direction.
    fn finish(&mut self, now: Instant, id: Self::Id);

    /// Ends the flow at once.
    fn abort(&mut self, now: Instant, id: Self::Id);

    /// Lets go of the flow.
    fn release(&mut self, now: Instant, id: Self::Id);
}

impl Flows for Stack {
    type Id = FlowId;

    fn index(id: FlowId) -> usize {
        id.index()
    }

    fn recv<R>(
        &mut self,
        now: Instant,
        id: FlowId,
        f: impl FnOnce(&[u8]) -> (usize, R),
    ) -> Result<R, RecvError> {
        Stack::recv(self, now, id, |bytes| f(bytes))
    }

    fn send<R>(
        &mut self,
        now: Instant,
        id: FlowId,
        f: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> Result<R, SendError> {
        Stack::send(self, now, id, f)
    }

    fn finish(&mut self, now: Instant, id: FlowId) {
        Stack::finish(self, now, id);
    }

    fn abort(&mut self, now: Instant, id: FlowId) {
        Stack::abort(self, now, id);
    }

    fn release(&mut self, now: Instant, id: FlowId) {
        Stack::release(self, now, id);
    }
}

impl Flows for Relayed {
    type Id = RelayedKey;

    fn index(id: RelayedKey) -> usize {
        id.index()
    }

    fn recv<R>(
        &mut self,
        now: Instant,
        id: RelayedKey,
        f: impl FnOnce(&[u8]) -> (usize, R),
    ) -> Result<R, RecvError> {
        Relayed::recv(self, now, id, f)
    }

    fn send<R>(
        &mut self,
        now: Instant,
        id: RelayedKey,
        f: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> Result<R, SendError> {
        Relayed::send(self, now, id, f)
    }

    fn finish(&mut self, _: Instant, id: RelayedKey) {
        Relayed::finish(self, id);
    }

    fn abort(&mut self, _: Instant, id: RelayedKey) {
        Relayed::abort(self, id);
    }

    fn release(&mut self, _: Instant, id: RelayedKey) {
        Relayed::release(self, id);
    }
}
