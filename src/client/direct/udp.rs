//! Datagrams by sockets of this host.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use crate::io::outside::Outside;

/// The sockets of one association beside the tunnel, at most one of each family.
///
/// One serves every destination, so that whoever knows its port may answer: endpoint-independent, as STUN and games need
/// it. It is opened with the first datagram that leaves by it.
#[derive(Debug, Default)]
pub(in crate::client) struct DirectUdp {
    outside: Outside,
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
}

impl DirectUdp {
    /// Opens none yet; they will leave the host as `outside` says.
    pub(in crate::client) fn leaving(outside: Outside) -> Self {
        Self {
            outside,
            ..Self::default()
        }
    }

    /// Counts those that are open.
    pub(in crate::client) fn sockets(&self) -> usize {
        usize::from(self.v4.is_some()) + usize::from(self.v6.is_some())
    }

    /// Sends one datagram; must be called inside a tokio runtime.
    ///
    /// After the first of a family, [`DirectUdp::poll_recv_from`] is to be polled once more, to hear of answers.
    ///
    /// # Errors
    /// The system does not take it.
    pub(in crate::client) fn send_to(&mut self, payload: &[u8], to: SocketAddr) -> io::Result<()> {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        let (socket, any) = match to {
            SocketAddr::V4(_) => (&mut self.v4, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
            SocketAddr::V6(_) => (&mut self.v6, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
        };
        let socket = match socket {
            Some(socket) => socket,
            None => socket.insert(open(any, &self.outside)?),
        };
        // Not by the runtime's `try_send_to`, which knows of no room before its first event.
        SockRef::from(&*socket)
            .send_to(payload, &to.into())
            .map(drop)
    }

    /// Takes a datagram, whoever sent it.
    ///
    /// Pending where no socket is open.
    ///
    /// # Errors
    /// What an earlier datagram met with.
    pub(in crate::client) fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<SocketAddr>> {
        let sockets = [&self.v4, &self.v6];
        for socket in sockets.into_iter().flatten() {
            if let Poll::Ready(received) = socket.poll_recv_from(cx, buffer) {
                return Poll::Ready(received);
            }
        }
        Poll::Pending
    }
}

fn open(any: IpAddr, outside: &Outside) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind((any, 0))?;
    outside.prepare(&socket)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::ready;

    use super::*;

    async fn receive(direct: &DirectUdp) -> (Vec<u8>, SocketAddr) {
        let mut bytes = [0; 64];
        poll_fn(|cx| {
            let mut buffer = ReadBuf::new(&mut bytes);
            let from = ready!(direct.poll_recv_from(cx, &mut buffer))?;
            Poll::Ready(io::Result::Ok((buffer.filled().to_vec(), from)))
        })
        .await
        .expect("a datagram")
    }

    #[tokio::test]
    async fn one_port_of_each_family_serves_every_destination() {
        let mut direct = DirectUdp::default();
        for host in ["127.0.0.1", "::1"] {
            let host: IpAddr = host.parse().expect("an address");
            let far = [(); 2].map(|()| std::net::UdpSocket::bind((host, 0)).expect("a socket"));
            let mut seen = Vec::new();
            for far in &far {
                direct
                    .send_to(b"out", far.local_addr().expect("bound"))
                    .expect("sent");
                let (len, from) = far.recv_from(&mut [0; 8]).expect("a datagram");
                assert_eq!(len, 3);
                seen.push(from);
            }
            assert_eq!(seen[0], seen[1], "the same port for both");
            // Whoever knows the port may answer.
            let third = std::net::UdpSocket::bind((host, 0)).expect("a socket");
            third.send_to(b"in", seen[0]).expect("sent");
            let (payload, from) = receive(&direct).await;
            assert_eq!(
                (&payload[..], from),
                (&b"in"[..], third.local_addr().expect("bound"))
            );
        }
    }

    #[tokio::test]
    async fn ipv4_in_an_ipv6_coat_leaves_as_ipv4() {
        let mut direct = DirectUdp::default();
        let far = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let port = far.local_addr().expect("bound").port();
        let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
        direct.send_to(b"out", (mapped, port).into()).expect("sent");
        assert!(far.recv_from(&mut [0; 8]).expect("a datagram").1.is_ipv4());
        assert!(direct.v6.is_none());
    }
}
