//! Why there is no tunnel at this moment, in words for whoever waits for it.
//!
//! The driver knows and tells; the proxy, the resolver, `adit status` and the health checks say it. Without it all of them
//! would blame the origin, or its name server, which nobody has asked.

use std::time::Duration;

use thiserror::Error;

use crate::status::Outage;
use crate::wire::CloseReason;

/// Why nothing goes through the tunnel now.
#[derive(Clone, Copy, Debug, Default, Error, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Down {
    /// No server has let the client in yet.
    #[default]
    #[error("the tunnel is down: no server has answered yet")]
    Connecting,
    /// A server answers, and the handshake does not succeed.
    #[error("the tunnel is down: the server refuses the handshake")]
    Handshake,
    /// Nobody answers on the lane there is.
    #[error("the tunnel is down: the server does not answer any more")]
    Silent,
    /// There was a session with a lane, and there is none now.
    #[error("the tunnel is down: the connection to the server is lost")]
    Lost,
    /// The server lets this client's key in no more.
    #[error("the tunnel is down: the server has revoked this client")]
    Revoked,
    /// The server has ended the session, and would end the next for the same reason.
    #[error("the tunnel is down: the server refuses this client: {0}")]
    Refused(CloseReason),
    /// A request was in the middle of it when the flow's end was given up, or the client stops.
    #[error("the tunnel is down")]
    Ended,
}

/// How long a request waits for a tunnel that is down, to a name as to an address, before the first session as after a
/// loss: a restart of the server or another network takes less, and whoever waits for longer takes the proxy for dead. It
/// is as long as the handshake of a flow may take with the tunnel up.
pub const TUNNEL_WAIT: Duration = Duration::from_secs(20);

impl Down {
    /// What a session that the server has closed is down for, if that is more than a loss.
    pub const fn of(reason: CloseReason) -> Option<Self> {
        match reason {
            CloseReason::ShuttingDown | CloseReason::Idle => None,
            CloseReason::Revoked => Some(Self::Revoked),
            CloseReason::Superseded
            | CloseReason::PoolExhausted
            | CloseReason::TooManyInstances
            | CloseReason::ProtocolError
            | CloseReason::Unknown(_) => Some(Self::Refused(reason)),
        }
    }

    /// Whether whoever waits for the tunnel waits in vain: only the server's operator can change it.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Revoked => true,
            Self::Connecting
            | Self::Handshake
            | Self::Silent
            | Self::Lost
            | Self::Refused(_)
            | Self::Ended => false,
        }
    }

    /// Whether a command that waits for its tunnel before it starts is better told than left waiting: the server refuses, and
    /// goes on to until somebody does something about it.
    pub const fn ends_a_wait(self) -> bool {
        matches!(
            self,
            Self::Revoked
                | Self::Refused(CloseReason::TooManyInstances | CloseReason::PoolExhausted)
        )
    }

    /// One word for it, as programs read it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Handshake => "handshake_refused",
            Self::Silent => "silent",
            Self::Lost => "lost",
            Self::Revoked => "revoked",
            Self::Refused(_) => "refused",
            Self::Ended => "ended",
        }
    }

    /// How the client is, for `adit status` and the health checks.
    pub fn state(self) -> String {
        match self {
            Self::Connecting => "connecting: no server has answered yet".to_owned(),
            Self::Handshake => "connecting: the server refuses the handshake".to_owned(),
            Self::Silent => "connecting again: the server does not answer any more".to_owned(),
            Self::Lost => "connecting again: the connection to the server is lost".to_owned(),
            Self::Revoked => {
                "revoked: the server lets this client's key in no more, until whoever runs it says `adit clients restore` or invites it anew"
                    .to_owned()
            }
            Self::Refused(reason) => format!("refused by the server: {reason}; asking again"),
            Self::Ended => "ending".to_owned(),
        }
    }

    /// The same for programs; `last_failure` is what the last attempt at a server came to.
    pub fn outage(self, last_failure: Option<String>) -> Outage {
        Outage {
            why: self.word(),
            last_failure,
        }
    }
}
