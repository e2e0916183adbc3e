//! How a flow of a command comes to an origin, and what the command hears if it does not.

use std::net::SocketAddr;
use std::sync::Arc;

use adit_netstack::{Rejection, Unreachable};

use crate::client::proxy::{Context, OriginStream};
use crate::client::resolve::{Host, OriginError};
use crate::client::rules::Judged;
use crate::client::tunnel::ConnectError;

/// What became of an attempt to open a flow's other half.
pub(super) type Outcome = Result<(OriginStream, Judged), Rejection>;

/// Opens the other half of a flow to `to`, by the way that the rules give it.
pub(super) async fn open(proxy: Arc<Context>, to: SocketAddr) -> Outcome {
    let opened = proxy.open(&Host::Ip(to.ip()), to.port()).await;
    let opened = opened.map_err(|error| {
        proxy.count_failure(&error);
        rejection(&error)
    })?;
    Ok(opened.into_stream())
}

/// Says in TCP or ICMP why there is no flow.
fn rejection(error: &OriginError) -> Rejection {
    match error {
        OriginError::Blocked(_) => Rejection::Unreachable(Unreachable::AdminProhibited),
        OriginError::Resolve(_) => Rejection::Unreachable(Unreachable::Host),
        OriginError::Connect(error) => match error {
            ConnectError::Refused | ConnectError::TooManyFlows | ConnectError::PortTaken => {
                Rejection::Reset
            }
            ConnectError::Unreachable => Rejection::Unreachable(Unreachable::Host),
            ConnectError::NetworkUnreachable | ConnectError::NoAddress => {
                Rejection::Unreachable(Unreachable::Network)
            }
            ConnectError::NotAllowed => Rejection::Unreachable(Unreachable::AdminProhibited),
            // The kernel asks again, and gives up in its own time.
            ConnectError::TimedOut | ConnectError::TunnelDown(_) => Rejection::Silent,
        },
    }
}
