//! Flows that the client opens: whose each is, from the order to open it until nobody holds a handle to it.
//!
//! The states are drawn in the [module above](super); a flow of a peer's joins them when it is [accepted](super::incoming).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use adit_netstack::{Cause, ConnectError as StackError, FlowId, Rejection, Unreachable};

use super::Inside;
use crate::client::down::Down;
use crate::client::rules::Judged;
use crate::client::tunnel::{Attachment, ConnectError, HandleId, Reply};
use crate::io::relay::{Endpoint, FlowWatch, Terms, Ties};
use crate::proto::relayed::RelayedKey;
use crate::wire::ResetReason;

/// A flow whose handle is still held outside.
#[derive(Debug)]
pub(super) enum Slot {
    Connecting {
        flow: Carried,
        reply: Reply,
    },
    Open {
        flow: Carried,
    },
    Piped {
        flow: Carried,
    },
    /// A peer's, which has had no answer yet.
    Incoming {
        flow: FlowId,
    },
    /// A peer's, which has had an answer; its socket waits for the handshake to end.
    Accepting {
        flow: FlowId,
        endpoint: Endpoint,
        watch: FlowWatch,
    },
}

/// Who keeps a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Carried {
    /// The netstack.
    Inside(FlowId),
    /// The table of those that are relayed.
    Relayed(RelayedKey),
}

impl Inside {
    /// Whether a flow to there is relayed: one that leaves the tunnel, and that the netstack would not refuse.
    fn is_relayed(&self, remote: SocketAddr) -> bool {
        let ip = remote.ip();
        let is_host = match ip {
            IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
            IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast(),
        };
        self.session.is_some_and(|(_, relays)| relays)
            && is_host
            && remote.port() != 0
            && self.stack.own_address(ip).is_some()
            && !self.networks.iter().any(|network| network.contains(&ip))
    }

    /// Opens a flow; the reply follows when it stands or has failed.
    pub(super) fn connect(
        &mut self,
        now: Instant,
        handle: HandleId,
        remote: SocketAddr,
        reply: Reply,
    ) {
        if self.is_relayed(remote) {
            match self.relayed.connect(now, remote) {
                Some(flow) => {
                    let flow = Carried::Relayed(flow);
                    self.flows.insert(handle, Slot::Connecting { flow, reply });
                    self.handles.insert(flow, handle);
                }
                None => reply.send(Err(ConnectError::TooManyFlows)),
            }
            return;
        }
        match self.stack.connect(now, remote) {
            Ok(flow) => {
                let flow = Carried::Inside(flow);
                self.flows.insert(handle, Slot::Connecting { flow, reply });
                self.handles.insert(flow, handle);
            }
            Err(error) => reply.send(Err(match error {
                StackError::NoAddress { .. } if self.is_unaddressed() => {
                    ConnectError::TunnelDown(Down::Ended)
                }
                StackError::NoAddress { .. } => ConnectError::NoAddress,
                StackError::BadAddress { .. } => ConnectError::Unreachable,
                StackError::TooManyFlows { .. }
                | StackError::NoPort { .. }
                | StackError::NoMemory
                | _ => ConnectError::TooManyFlows,
            })),
        }
    }

    /// Tells whether there is no address of any family: the server has taken them back, and given none since.
    fn is_unaddressed(&self) -> bool {
        let any = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        any.iter().all(|ip| self.stack.own_address(*ip).is_none())
    }

    /// Binds a flow to its application.
    ///
    /// A flow that has ended with its inner address meanwhile shows as a reset: to the application,
    /// an orderly end would mean that the origin had nothing to say. The same becomes of one that rules, which have
    /// changed since it was `judged`, send another way.
    pub(super) fn attach(
        &mut self,
        now: Instant,
        handle: HandleId,
        attachment: Attachment,
        early: Vec<u8>,
        judged: Option<Box<Judged>>,
    ) {
        let is_pipe = matches!(attachment, Attachment::Pipe(_));
        let (endpoint, watch) = match attachment {
            Attachment::Tcp(socket) => (Endpoint::Tcp(socket), None),
            Attachment::Pipe(pipe) => (Endpoint::Pipe(Box::new(pipe)), None),
            Attachment::Watched { endpoint, watch } => (endpoint, Some(watch)),
        };
        if judged.as_ref().is_some_and(|judged| !judged.holds()) {
            self.abort(now, handle);
        }
        let (flow, watch) = match (self.flows.remove(&handle), watch) {
            (Some(Slot::Open { flow }), watch) => {
                if is_pipe {
                    self.flows.insert(handle, Slot::Piped { flow });
                } else {
                    self.handles.remove(&flow);
                }
                (flow, watch)
            }
            (Some(Slot::Incoming { flow }), Some(watch)) => {
                let accepting = Slot::Accepting {
                    flow,
                    endpoint,
                    watch,
                };
                self.flows.insert(handle, accepting);
                self.stack.accept(now, flow);
                return;
            }
            // Nobody attaches twice; what was not open has ended.
            (
                Some(
                    Slot::Connecting { .. }
                    | Slot::Piped { .. }
                    | Slot::Incoming { .. }
                    | Slot::Accepting { .. },
                )
                | None,
                _,
            ) => {
                endpoint.reset();
                return;
            }
        };
        let ties = Ties {
            terms: judged.map(|judged| judged as Box<dyn Terms>),
            watch,
        };
        match flow {
            Carried::Inside(flow) => self.relay.attach_tied(flow, endpoint, early, ties),
            Carried::Relayed(flow) => {
                (self.relayed_relay).attach_tied(flow, endpoint, early, ties);
            }
        }
    }

    /// Ends the flows that rules, which have changed, send another way.
    pub(super) fn end_unfit(&mut self, now: Instant) {
        self.relay.end_unfit(now, &mut self.stack);
        self.relayed_relay.end_unfit(now, &mut self.relayed);
    }

    /// Ends a flow whose owner has gone, in whatever state it is.
    pub(super) fn abort(&mut self, now: Instant, handle: HandleId) {
        let flow = match self.flows.remove(&handle) {
            Some(Slot::Connecting { flow, .. } | Slot::Open { flow } | Slot::Piped { flow }) => {
                flow
            }
            Some(Slot::Incoming { flow }) => {
                self.handles.remove(&Carried::Inside(flow));
                self.stack.reject(now, flow, Rejection::Reset);
                return;
            }
            Some(Slot::Accepting { flow, endpoint, .. }) => {
                endpoint.reset();
                Carried::Inside(flow)
            }
            None => return,
        };
        self.handles.remove(&flow);
        match flow {
            Carried::Inside(flow) => {
                self.relay.reset(flow);
                self.stack.abort(now, flow);
                self.stack.release(now, flow);
            }
            Carried::Relayed(flow) => {
                self.relayed_relay.reset(flow);
                self.relayed.abort(flow);
                self.relayed.release(flow);
            }
        }
    }

    pub(super) fn established(&mut self, flow: Carried) {
        let Some(&handle) = self.handles.get(&flow) else {
            return;
        };
        match self.flows.remove(&handle) {
            Some(Slot::Connecting { reply, .. }) => {
                self.flows.insert(handle, Slot::Open { flow });
                reply.send(Ok(()));
            }
            Some(Slot::Accepting {
                flow,
                endpoint,
                watch,
            }) => {
                self.handles.remove(&Carried::Inside(flow));
                let ties = Ties {
                    terms: None,
                    watch: Some(watch),
                };
                (self.relay).attach_tied(flow, endpoint, Vec::new(), ties);
            }
            Some(slot @ (Slot::Open { .. } | Slot::Piped { .. } | Slot::Incoming { .. })) => {
                self.flows.insert(handle, slot);
            }
            None => {}
        }
    }

    fn release(&mut self, now: Instant, flow: Carried) {
        match flow {
            Carried::Inside(flow) => self.stack.release(now, flow),
            Carried::Relayed(flow) => self.relayed.release(flow),
        }
    }

    pub(super) fn closed(&mut self, now: Instant, flow: Carried, error: ConnectError) {
        let Some(&handle) = self.handles.get(&flow) else {
            self.release(now, flow);
            return;
        };
        match self.flows.remove(&handle) {
            Some(Slot::Connecting { reply, .. }) => {
                reply.send(Err(error));
            }
            // Its owner has not attached yet, and learns it when it does.
            Some(Slot::Open { flow }) => {
                self.flows.insert(handle, Slot::Open { flow });
                return;
            }
            Some(Slot::Accepting { endpoint, .. }) => endpoint.reset(),
            // Who was offered it learns it when it is accepted.
            Some(Slot::Piped { .. } | Slot::Incoming { .. }) | None => {}
        }
        self.handles.remove(&flow);
        self.release(now, flow);
    }
}

/// What a proxy tells its application about a flow that could not be opened.
pub(super) fn connect_error(cause: Cause, linked: bool) -> ConnectError {
    match cause {
        Cause::Refused | Cause::Reset => ConnectError::Refused,
        // Without a lane it is not the origin that did not answer.
        Cause::TimedOut if !linked => ConnectError::TunnelDown(Down::Ended),
        Cause::TimedOut => ConnectError::TimedOut,
        Cause::Unreachable(Unreachable::AdminProhibited) => ConnectError::NotAllowed,
        Cause::Unreachable(Unreachable::Network) => ConnectError::NetworkUnreachable,
        Cause::Unreachable(Unreachable::Port) => ConnectError::Refused,
        Cause::Unreachable(_) => ConnectError::Unreachable,
        Cause::NoMemory => ConnectError::TooManyFlows,
        Cause::Aborted | Cause::AddressLost | Cause::Internal | _ => {
            ConnectError::TunnelDown(Down::Ended)
        }
    }
}

/// The same about a flow that was to be relayed.
pub(super) fn relayed_error(reason: ResetReason, linked: bool) -> ConnectError {
    match reason {
        ResetReason::Refused => ConnectError::Refused,
        ResetReason::HostUnreachable => ConnectError::Unreachable,
        ResetReason::NetworkUnreachable => ConnectError::NetworkUnreachable,
        // Without a lane it is not the origin that did not answer.
        ResetReason::TimedOut if !linked => ConnectError::TunnelDown(Down::Ended),
        ResetReason::TimedOut => ConnectError::TimedOut,
        ResetReason::NotAllowed => ConnectError::NotAllowed,
        ResetReason::TooMany => ConnectError::TooManyFlows,
        ResetReason::Aborted
        | ResetReason::Unknown
        | ResetReason::Violation
        | ResetReason::Other(_) => ConnectError::TunnelDown(Down::Ended),
    }
}
