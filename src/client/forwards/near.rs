//! Hosts near the client: names are this host's to resolve, connections the kernel's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::time::timeout;

use crate::client::ports;
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
                let found = addresses(host, *port).await?;
                let stream = one_of(&found, CONNECT, TcpStream::connect).await?;
                ports::prepare(&stream);
                Ok(Endpoint::Tcp(stream))
            }
        }
    };
    match timeout(CONNECT, connecting).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Gives what the first of `addresses` that answers gives. Each has its share of `limit`, so that one that is silent costs
/// no other its turn.
async fn one_of<T, A: Future<Output = io::Result<T>>>(
    addresses: &[SocketAddr],
    limit: Duration,
    attempt: impl Fn(SocketAddr) -> A,
) -> io::Result<T> {
    let mut failed = io::Error::from(io::ErrorKind::NotFound);
    let share = limit / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    for address in addresses {
        match timeout(share, attempt(*address)).await {
            Ok(Ok(made)) => return Ok(made),
            Ok(Err(error)) => failed = error,
            Err(_elapsed) => failed = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failed)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silent_address_costs_no_other_its_turn() {
        let address = |last| SocketAddr::from(([192, 0, 2, last], 80));
        let silent = address(1);
        let attempt = |to: SocketAddr| async move {
            if to == silent {
                std::future::pending::<()>().await;
            }
            Ok(to)
        };
        let found = [silent, silent, address(2)];
        assert_eq!(one_of(&found, CONNECT, attempt).await.unwrap(), address(2));
        let error = one_of(&found[..2], CONNECT, attempt).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let error = one_of(&[], CONNECT, attempt).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
