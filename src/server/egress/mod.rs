//! Where clients' packets leave the server: a TUN device or ordinary sockets.

pub mod echo;
pub mod tun;
pub mod udp;

use std::sync::Arc;

use self::tun::TunEgress;

/// Where a server's clients leave it.
#[derive(Clone, Debug)]
pub enum Egress {
    /// Through a TUN device.
    Tun(Arc<TunEgress>),
    /// Through ordinary sockets, by each session's netstack.
    User,
}
