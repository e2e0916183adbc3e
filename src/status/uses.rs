//! What a running program has of its host. By it one is told from another, also of the same key: `adit doctor` asks.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What a running program has of its host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uses {
    /// The configuration file that it was started with; none where flags or variables said all.
    pub file: Option<PathBuf>,
    /// The folder of its state; a client that does not lead its host has none.
    pub state_dir: Option<PathBuf>,
    /// Its TUN device.
    pub tun: Option<String>,
    /// Whether it leads its host, and lets nothing leave past the tunnel, whether that is up or not.
    #[serde(default)]
    pub kill_switch: bool,
    /// Where it listens: lanes of a server, proxies and the local resolver of a client.
    pub listens: Vec<Port>,
    /// The network namespace that it is in, as [`World`](crate::io::journal::World) has it; empty where that is not known.
    pub network: String,
}

/// An address that is listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The address.
    pub address: SocketAddr,
    /// Whether for datagrams, not for connections.
    pub datagrams: bool,
}

impl Port {
    /// Whether one of two programs in one network namespace cannot have it because of the other.
    pub fn collides(&self, other: &Self) -> bool {
        let (ip, its) = (self.address.ip(), other.address.ip());
        self.datagrams == other.datagrams
            && self.address.port() == other.address.port()
            && self.address.port() != 0
            && (ip == its || ip.is_unspecified() || its.is_unspecified())
    }
}

/// The path as it is from everywhere, without links, where it is there.
pub fn whole(path: &Path) -> PathBuf {
    let absolute = || std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.canonicalize().unwrap_or_else(|_| absolute())
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.datagrams { "udp" } else { "tcp" };
        write!(f, "{protocol} {}", self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_of_all_interfaces_collides_with_each_of_one() {
        for (one, other, datagrams, collides) in [
            ("127.0.0.1:7443", "127.0.0.1:7443", false, true),
            ("0.0.0.0:7443", "127.0.0.1:7443", false, true),
            ("127.0.0.1:7443", "[::]:7443", false, true),
            ("127.0.0.1:7443", "127.0.0.2:7443", false, false),
            ("127.0.0.1:7443", "127.0.0.1:7444", false, false),
            ("127.0.0.1:7443", "127.0.0.1:7443", true, false),
            ("127.0.0.1:0", "127.0.0.1:0", false, false),
        ] {
            let port = |address: &str, datagrams| Port {
                address: address.parse().unwrap(),
                datagrams,
            };
            let (one, other) = (port(one, false), port(other, datagrams));
            assert_eq!(one.collides(&other), collides, "{one} {other}");
            assert_eq!(other.collides(&one), collides, "{other} {one}");
        }
    }
}
