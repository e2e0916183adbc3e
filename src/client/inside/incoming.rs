//! Flows that peers open to the inner address: ports that are listened on, and offers to whoever listens.

use std::net::SocketAddr;
use std::time::Instant;

use adit_netstack::{FlowId, Rejection, Unreachable};

use super::Inside;
use super::flows::{Carried, Slot};
use crate::client::tunnel::{Arrivals, ConnectError, HandleId, Refusal, Reply};

impl Inside {
    /// Listens on a TCP port.
    pub(super) fn listen(&mut self, handle: HandleId, port: u16, arrivals: Arrivals, reply: Reply) {
        if !self.stack.listen(port) {
            reply.send(Err(ConnectError::PortTaken));
            return;
        }
        self.listeners.insert(handle, port);
        self.arrivals.insert(port, arrivals);
        reply.send(Ok(()));
    }

    /// Listens on a TCP port no more; the flows of those who came go on.
    pub(super) fn unlisten(&mut self, handle: HandleId) {
        if let Some(port) = self.listeners.remove(&handle) {
            self.arrivals.remove(&port);
            self.stack.unlisten(port);
        }
    }

    /// Tells a peer why there is no flow.
    pub(super) fn refuse(&mut self, now: Instant, handle: HandleId, refusal: Refusal) {
        let rejection = match refusal {
            Refusal::Refused => Rejection::Reset,
            Refusal::Unreachable => Rejection::Unreachable(Unreachable::Host),
        };
        if let Some(Slot::Incoming { flow }) = self.flows.remove(&handle) {
            self.handles.remove(&Carried::Inside(flow));
            self.stack.reject(now, flow, rejection);
        }
    }

    /// Offers a peer's flow to whoever listens there.
    pub(super) fn arrived(
        &mut self,
        now: Instant,
        flow: FlowId,
        local: SocketAddr,
        remote: SocketAddr,
    ) {
        let Some(arrivals) = self.arrivals.get(&local.port()) else {
            self.stats.incoming_refused += 1;
            self.stack.reject(now, flow, Rejection::Reset);
            return;
        };
        match arrivals.offer(remote) {
            Some(handle) => {
                self.flows.insert(handle, Slot::Incoming { flow });
                self.handles.insert(Carried::Inside(flow), handle);
            }
            None => {
                self.stats.incoming_full += 1;
                self.stack.reject(now, flow, Rejection::Silent);
            }
        }
    }
}
