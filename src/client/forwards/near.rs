//! Hosts near the client: names are this host's to resolve, connections the kernel's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::time::timeout;

use crate::client::tunnel::Refusal;
use crate::config::{Host, NearTarget};
use crate::io::relay::Endpoint;
use crate::io::resolver;

/// Connects to `target`, whichever of its addresses answers.
///
/// # Errors
///
/// What the system says of the last address.
pub(super) async fn connect(target: &NearTarget) -> io::Result<Endpoint> {
    let connecting = async {
        match target {
            NearTarget::Unix(path) => UnixStream::connect(path).await.map(Endpoint::Unix),
            // Datagrams have no connections: `connect_udp` is for them.
            NearTarget::Udp(..) => Err(io::ErrorKind::InvalidInput.into()),
            NearTarget::Tcp(host, port) => {
                let mut failed = io::Error::from(io::ErrorKind::NotFound);
                for address in addresses(host, *port).await? {
                    match TcpStream::connect(address).await {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            return Ok(Endpoint::Tcp(stream));
                        }
                        Err(error) => failed = error,
                    }
                }
                Err(failed)
            }
        }
    };
    match timeout(CONNECT, connecting).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Makes a UDP socket that speaks with `host` alone.
///
/// # Errors
///
/// The name has no address, or the system has no socket.
pub(super) async fn connect_udp(host: &Host, port: u16) -> io::Result<UdpSocket> {
    let found = match timeout(CONNECT, addresses(host, port)).await {
        Ok(found) => found?,
        Err(_elapsed) => return Err(io::ErrorKind::TimedOut.into()),
    };
    let remote = (found.first()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let any: IpAddr = if remote.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(remote).await?;
    Ok(socket)
}

/// What a peer hears of a connection that could not be made near here.
pub(super) fn refusal(error: &io::Error) -> Refusal {
    // The last two: a Unix socket that is not there, or not for us.
    let refused = [
        io::ErrorKind::ConnectionRefused,
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied,
    ];
    if refused.contains(&error.kind()) {
        Refusal::Refused
    } else {
        Refusal::Unreachable
    }
}

async fn addresses(host: &Host, port: u16) -> io::Result<Vec<SocketAddr>> {
    match host {
        Host::Ip(ip) => Ok(vec![SocketAddr::new(*ip, port)]),
        Host::Name(name) => {
            let found = resolver::addresses(name).await?;
            Ok((found.into_iter().map(|ip| SocketAddr::new(ip, port))).collect())
        }
    }
}

/// How long a connection near here may take, its name included: less than the 20 s that the netstack waits for an answer.
const CONNECT: Duration = Duration::from_secs(10);
