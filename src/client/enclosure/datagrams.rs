//! What a command sends and is sent beside TCP: a task for each of its UDP ports, and for each identifier of its pings.

use std::future::{pending, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::ReadBuf;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::warn;

use crate::client::direct::DirectUdp;
use crate::client::forwards::UDP_IDLE;
use crate::client::peers::{Given, Peers};
use crate::client::proxy::Context as Proxy;
use crate::client::rules::{Blocked, Destination, Way};
use crate::client::tunnel::{Datagram, Tunnel, UdpPort};
use crate::config::Transport;

/// The UDP ports and the pings of one command.
#[derive(Debug)]
pub(super) struct Speakers {
    proxy: Arc<Proxy>,
    ports: Peers<Outgoing>,
    idents: Peers<Outgoing>,
    sender: mpsc::Sender<Arrival>,
    arrivals: mpsc::Receiver<Arrival>,
    stats: SpeakerStats,
}

/// What [`Speakers`] have counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpeakerStats {
    /// Datagrams and pings that rules block.
    pub(crate) blocked: u64,
    /// Pings that rules send directly, for which there is no way.
    pub(crate) pings_direct: u64,
    /// Datagrams and pings of a port or identifier that sends too fast.
    pub(crate) queue_full: u64,
    /// Tasks that have failed.
    pub(crate) panicked: u64,
}

/// A datagram of the command's, judged already.
#[derive(Debug)]
struct Outgoing {
    way: Way,
    /// Whom to; of an echo request, with its sequence number.
    to: SocketAddr,
    payload: Vec<u8>,
}

/// Something for the command.
#[derive(Debug)]
pub(super) enum Arrival {
    /// A datagram.
    Udp {
        /// Who sent it.
        from: SocketAddr,
        /// The command's port.
        to: SocketAddr,
        /// What it carries.
        payload: Vec<u8>,
    },
    /// An echo reply.
    Echo {
        /// Who sent it.
        from: IpAddr,
        /// The command's address.
        to: IpAddr,
        /// The command's identifier.
        ident: u16,
        /// The sequence number of the request.
        sequence: u16,
        /// What it carries.
        payload: Vec<u8>,
    },
}

impl Speakers {
    pub(super) fn new(proxy: Arc<Proxy>) -> Self {
        let (sender, arrivals) = mpsc::channel(ARRIVALS);
        Self {
            proxy,
            ports: Peers::default(),
            idents: Peers::default(),
            sender,
            arrivals,
            stats: SpeakerStats::default(),
        }
    }

    /// Sends a datagram of the command's port `from`.
    pub(super) fn send_udp(
        &mut self,
        now: Instant,
        from: SocketAddr,
        to: SocketAddr,
        payload: &[u8],
    ) {
        let Ok(way) = self.judge(to) else { return };
        let outgoing = Outgoing {
            way,
            to,
            payload: payload.to_vec(),
        };
        let (tunnel, sender) = (self.proxy.tunnel.clone(), self.sender.clone());
        let given = self.ports.give(now, from, outgoing, |queue| {
            let port = Port {
                tunnel,
                sender,
                own: from,
                inner: None,
                direct: DirectUdp::default(),
                scratch: Vec::new(),
            };
            port.serve(queue)
        });
        self.count(given);
    }

    /// Sends an echo request of the command's address `from`.
    pub(super) fn send_echo(
        &mut self,
        now: Instant,
        (from, ident): (IpAddr, u16),
        (to, sequence): (IpAddr, u16),
        payload: &[u8],
    ) {
        let to = SocketAddr::new(to, sequence);
        match self.judge(SocketAddr::new(to.ip(), 0)) {
            Ok(Way::Tunnel) => {}
            Ok(Way::Direct) => {
                self.stats.pings_direct += 1;
                return;
            }
            Err(_) => return,
        }
        let outgoing = Outgoing {
            way: Way::Tunnel,
            to,
            payload: payload.to_vec(),
        };
        let (tunnel, sender) = (self.proxy.tunnel.clone(), self.sender.clone());
        let given = self
            .idents
            .give(now, SocketAddr::new(from, ident), outgoing, |queue| {
                serve_echoes(tunnel, sender, (from, ident), queue)
            });
        self.count(given);
    }

    /// Takes the next thing for the command; without one, the task is woken when there is.
    pub(super) fn poll_arrival(&mut self, cx: &mut Context<'_>) -> Option<Arrival> {
        for peers in [&mut self.ports, &mut self.idents] {
            while let Poll::Ready(fine) = peers.poll_ended(cx) {
                if !fine {
                    self.stats.panicked += 1;
                    warn!("a UDP port of a command ended by a panic");
                }
            }
        }
        match self.arrivals.poll_recv(cx) {
            Poll::Ready(arrival) => arrival,
            Poll::Pending => None,
        }
    }

    pub(super) const fn stats(&self) -> SpeakerStats {
        self.stats
    }

    fn judge(&mut self, to: SocketAddr) -> Result<Way, Blocked> {
        let judged = self.proxy.settings.rules.now().of_address(&Destination {
            name: None,
            ip: to.ip(),
            port: to.port(),
            transport: Transport::Udp,
        });
        self.stats.blocked += u64::from(judged.is_err());
        judged
    }

    fn count(&mut self, given: Given) {
        match given {
            Given::Taken => {}
            Given::Full => self.stats.queue_full += 1,
        }
    }
}

/// One UDP port of the command.
struct Port {
    tunnel: Tunnel,
    sender: mpsc::Sender<Arrival>,
    own: SocketAddr,
    /// Where what goes through the tunnel leaves from, and answers come, whoever sends them.
    inner: Option<UdpPort>,
    direct: DirectUdp,
    /// Where direct answers are read to, from the first direct datagram on.
    scratch: Vec<u8>,
}

impl Port {
    /// Serves it until nothing has passed for [`UDP_IDLE`], or it has to begin anew.
    async fn serve(mut self, mut queue: mpsc::Receiver<Outgoing>) {
        while let Ok(Ok(())) = timeout(UDP_IDLE, self.turn(&mut queue)).await {}
    }

    async fn turn(&mut self, queue: &mut mpsc::Receiver<Outgoing>) -> io::Result<()> {
        let (from, payload) = tokio::select! {
            outgoing = queue.recv() => {
                let outgoing = outgoing.ok_or(io::ErrorKind::BrokenPipe)?;
                return self.send(outgoing).await;
            }
            datagram = received(self.inner.as_ref()) => {
                let Datagram { remote, payload } = datagram?;
                (remote, payload)
            }
            received = poll_fn(|cx| poll_direct(&self.direct, &mut self.scratch, cx)) => {
                // What an earlier datagram met with is of no interest.
                let Ok(received) = received else { return Ok(()) };
                received
            }
        };
        let arrival = Arrival::Udp {
            from,
            to: self.own,
            payload,
        };
        (self.sender.send(arrival).await).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    async fn send(&mut self, outgoing: Outgoing) -> io::Result<()> {
        let Outgoing { way, to, payload } = outgoing;
        match way {
            Way::Tunnel => {
                if self.inner.is_none() {
                    let inner = self.tunnel.forward_udp(None).await;
                    self.inner = Some(inner.map_err(io::Error::other)?);
                }
                let sent = self.inner.as_ref().map(|it| it.try_send_to(&payload, to));
                match sent {
                    // Dropped for want of room, as any network does.
                    Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
                    Some(Ok(_) | Err(_)) | None => Ok(()),
                }
            }
            Way::Direct => {
                self.scratch.resize(MAX_DATAGRAM, 0);
                // The system's refusal is the network's: the datagram is lost.
                let _lost = self.direct.send_to(&payload, to);
                Ok(())
            }
        }
    }
}

async fn received(inner: Option<&UdpPort>) -> io::Result<Datagram> {
    match inner {
        Some(inner) => inner.recv().await,
        None => pending().await,
    }
}

fn poll_direct(
    direct: &DirectUdp,
    scratch: &mut [u8],
    cx: &mut Context<'_>,
) -> Poll<io::Result<(SocketAddr, Vec<u8>)>> {
    let mut buffer = ReadBuf::new(scratch);
    let from = ready!(direct.poll_recv_from(cx, &mut buffer))?;
    Poll::Ready(Ok((from, buffer.filled().to_vec())))
}

/// Serves the pings of one identifier until nothing has passed for [`ECHO_IDLE`].
async fn serve_echoes(
    tunnel: Tunnel,
    sender: mpsc::Sender<Arrival>,
    (own, ident): (IpAddr, u16),
    mut queue: mpsc::Receiver<Outgoing>,
) {
    let Ok(inner) = tunnel.bind_echo().await else {
        return;
    };
    let mut turn = async || {
        tokio::select! {
            outgoing = queue.recv() => {
                let outgoing = outgoing.ok_or(io::ErrorKind::BrokenPipe)?;
                match inner.try_send_to(&outgoing.payload, outgoing.to) {
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
                    Ok(_) | Err(_) => Ok(()),
                }
            }
            reply = inner.recv() => {
                let Datagram { remote, payload } = reply?;
                let arrival = Arrival::Echo {
                    from: remote.ip(),
                    to: own,
                    ident,
                    sequence: remote.port(),
                    payload,
                };
                sender.send(arrival).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
            }
        }
    };
    while let Ok(io::Result::Ok(())) = timeout(ECHO_IDLE, turn()).await {}
}

/// Datagrams that wait to be written to the device; beyond them those who bring more wait.
pub const ARRIVALS: usize = 1024;

/// How long an identifier of pings may be silent: longer than people wait between two.
pub const ECHO_IDLE: Duration = Duration::from_secs(60);

/// The largest datagram there is.
const MAX_DATAGRAM: usize = 65_536;
