//! Forwards of UDP ports, in both directions: a task and a socket, or an inner port, for each peer.
//!
//! Datagrams are sent at once, whether or not the runtime has seen a socket writable yet.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::counters::{Counters, State};
use super::near;
use super::remote::{failed, session};
use crate::client::peers::{Given, Peers};
use crate::client::resolve::{Host, Resolver};
use crate::client::tunnel::{Tunnel, UdpPort};
use crate::config;
use crate::io::clock;

/// Serves the peers that send to `socket`, here, until `stop`.
pub(super) async fn serve_local(
    socket: UdpSocket,
    host: Host,
    port: u16,
    (tunnel, resolver): (Tunnel, Resolver),
    counters: Arc<Counters>,
    stop: CancellationToken,
) {
    let socket = Arc::new(socket);
    let mut peers = Peers::default();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => break,
            fine = peers.ended() => {
                note(fine, &counters);
                continue;
            }
            received = socket.recv_from(&mut buffer) => received,
        };
        let (len, from) = match received {
            Ok(received) => received,
            // What an earlier datagram met with.
            Err(error) => {
                counters.refuse(&error);
                continue;
            }
        };
        let payload = buffer.get(..len).unwrap_or_default().to_vec();
        let given = peers.give(clock::now(), from, payload, |queue| {
            let local = Local {
                socket: Arc::clone(&socket),
                peer: from,
                counters: Arc::clone(&counters),
            };
            let (tunnel, resolver, host) = (tunnel.clone(), resolver.clone(), host.clone());
            async move { local.serve(&tunnel, &resolver, &host, port, queue).await }
        });
        count(given, &counters);
    }
    peers.end().await;
}

/// One peer of a UDP port here.
struct Local {
    socket: Arc<UdpSocket>,
    peer: SocketAddr,
    counters: Arc<Counters>,
}

impl Local {
    async fn serve(
        self,
        tunnel: &Tunnel,
        resolver: &Resolver,
        host: &Host,
        port: u16,
        mut queue: mpsc::Receiver<Vec<u8>>,
    ) {
        let remote = match resolver.lookup(host).await {
            Ok(addresses) => addresses.first().map(|ip| SocketAddr::new(*ip, port)),
            Err(error) => {
                self.counters.refuse(error);
                None
            }
        };
        let Some(remote) = remote else { return };
        let inner = match tunnel.forward_udp(None).await {
            Ok(inner) => inner,
            Err(error) => return self.counters.refuse(error),
        };
        let _open = self.counters.open();
        loop {
            let moved = timeout(UDP_IDLE, async {
                tokio::select! {
                    payload = queue.recv() => match payload {
                        Some(payload) => into_tunnel(&inner, &payload, remote, &self.counters),
                        None => Err(io::ErrorKind::BrokenPipe.into()),
                    },
                    datagram = inner.recv() => {
                        let datagram = datagram?;
                        if datagram.remote != remote {
                            self.counters.refuse("a datagram of somebody else");
                        } else if let Err(error) = SockRef::from(self.socket.as_ref()).send_to(&datagram.payload, &self.peer.into()) {
                            self.counters.refuse(error);
                        }
                        Ok(())
                    }
                }
            });
            // Idle for too long, or the tunnel has begun anew: the next datagram begins anew, too.
            let Ok(Ok(())) = moved.await else { return };
        }
    }
}

/// Serves the peers that send to the inner `port` until `stop`.
pub(super) async fn serve_remote(
    port: u16,
    host: config::Host,
    near_port: u16,
    tunnel: Tunnel,
    counters: Arc<Counters>,
    stop: CancellationToken,
) {
    let scratch = Arc::new(Mutex::new(vec![0; MAX_DATAGRAM]));
    let mut peers = Peers::default();
    loop {
        let binding = bind(&tunnel, port, &counters);
        let Some(inner) = stop.run_until_cancelled(binding).await else {
            break;
        };
        let inner = Arc::new(inner);
        let serving = async {
            loop {
                let datagram = tokio::select! {
                    fine = peers.ended() => {
                        note(fine, &counters);
                        continue;
                    }
                    datagram = inner.recv() => datagram,
                };
                let Ok(datagram) = datagram else { return };
                let now = clock::now();
                let given = peers.give(now, datagram.remote, datagram.payload, |queue| {
                    let remote = Remote {
                        inner: Arc::clone(&inner),
                        peer: datagram.remote,
                        scratch: Arc::clone(&scratch),
                        counters: Arc::clone(&counters),
                    };
                    let host = host.clone();
                    async move { remote.serve(&host, near_port, queue).await }
                });
                count(given, &counters);
            }
        };
        if stop.run_until_cancelled(serving).await.is_none() {
            break;
        }
        // Their inner port is gone.
        peers.end().await;
        counters.set(State::Waiting);
    }
    peers.end().await;
}

/// Binds the inner `port`, as soon as that can be had.
async fn bind(tunnel: &Tunnel, port: u16, counters: &Counters) -> UdpPort {
    loop {
        session(tunnel).await;
        match tunnel.forward_udp(Some(port)).await {
            Ok(inner) => {
                counters.set(State::Listening);
                return inner;
            }
            Err(error) => failed(error, counters).await,
        }
    }
}

/// One peer of an inner UDP port.
struct Remote {
    inner: Arc<UdpPort>,
    peer: SocketAddr,
    /// Where datagrams are read to, by one peer at a time and never across a wait.
    scratch: Arc<Mutex<Vec<u8>>>,
    counters: Arc<Counters>,
}

impl Remote {
    async fn serve(self, host: &config::Host, port: u16, mut queue: mpsc::Receiver<Vec<u8>>) {
        let socket = match near::connect_udp(host, port).await {
            Ok(socket) => socket,
            Err(error) => return self.counters.refuse(error),
        };
        let _open = self.counters.open();
        loop {
            let moved = timeout(UDP_IDLE, async {
                tokio::select! {
                    payload = queue.recv() => match payload {
                        Some(payload) => {
                            if let Err(error) = SockRef::from(&socket).send(&payload) {
                                self.counters.refuse(error);
                            }
                            Ok(())
                        }
                        None => Err(io::ErrorKind::BrokenPipe.into()),
                    },
                    ready = socket.readable() => {
                        ready?;
                        self.read(&socket)
                    }
                }
            });
            let Ok(Ok(())) = moved.await else { return };
        }
    }

    /// Moves what has come into the tunnel.
    fn read(&self, socket: &UdpSocket) -> io::Result<()> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..DATAGRAMS_PER_TURN {
            match socket.try_recv(&mut scratch) {
                Ok(len) => {
                    let payload = scratch.get(..len).unwrap_or_default();
                    into_tunnel(&self.inner, payload, self.peer, &self.counters)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // What an earlier datagram met with: nobody there, most often.
                Err(error) => {
                    self.counters.refuse(error);
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Sends a datagram into the tunnel, or counts it.
///
/// # Errors
///
/// The inner port is gone.
fn into_tunnel(
    inner: &UdpPort,
    payload: &[u8],
    to: SocketAddr,
    counters: &Counters,
) -> io::Result<()> {
    match inner.try_send_to(payload, to) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            counters.refuse("a datagram for which the tunnel had no room");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn count(given: Given, counters: &Counters) {
    match given {
        Given::Taken => {}
        Given::Full => counters.refuse("a datagram of a peer that sends too fast"),
    }
}

/// Notes the end of a peer's task.
fn note(fine: bool, counters: &Counters) {
    if !fine {
        counters.refuse("a fault of the client");
        warn!("a peer of a UDP forward ended by a panic");
    }
}

/// How long a peer may be silent (RFC 4787 REQ-5 asks for at least two minutes).
pub const UDP_IDLE: Duration = Duration::from_secs(180);

/// The largest datagram there is.
const MAX_DATAGRAM: usize = 65_536;

/// Datagrams read of one peer and turn.
const DATAGRAMS_PER_TURN: usize = 64;
