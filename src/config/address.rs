//! Where a lane leads: scheme, host and port.

use std::fmt;
use std::net::IpAddr;

/// How a lane is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `tcp://`: frames on a bare TCP connection.
    Tcp,
    /// `tls://`: frames on a TLS connection.
    Tls,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scheme::Tcp => "tcp",
            Scheme::Tls => "tls",
        })
    }
}

/// A host, by name or by address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name, resolved anew each time it is used.
    Name(String),
    /// An address.
    Ip(IpAddr),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}"),
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
        }
    }
}

/// The address of a lane, as in `tls://vpn.example.com:8443`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LaneAddr {
    /// How the lane is carried.
    pub scheme: Scheme,
    /// The host to connect to, or to listen on.
    pub host: Host,
    /// The TCP port.
    pub port: u16,
}

impl fmt::Display for LaneAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.scheme, self.host, self.port)
    }
}
