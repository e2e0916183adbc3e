//! Where clients' packets leave the server: a TUN device or ordinary sockets.

pub mod echo;
pub mod tun;
pub mod udp;
pub mod watch;

use std::sync::Arc;

use self::tun::{TunEgress, TunStats};

/// Where a server's clients leave it.
#[derive(Clone, Debug)]
pub enum Egress {
    /// Through a TUN device.
    Tun(Arc<TunEgress>),
    /// Through ordinary sockets, by each session's netstack.
    User,
}

impl Egress {
    /// What was counted for all sessions together, where they share anything.
    pub fn stats(&self) -> Option<&TunStats> {
        match self {
            Self::Tun(tun) => Some(tun.stats()),
            Self::User => None,
        }
    }
}
