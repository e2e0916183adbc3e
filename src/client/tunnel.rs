//! The handle by which the proxy and the resolver use the tunnel.
//!
//! One task, the client's driver, owns the netstack and the session. Everybody else
//! holds a [`Tunnel`] and asks; the driver takes the requests from [`Commands`].
//!
//! ```text
//!  proxy ──┐  Tunnel            bounded queue             Commands
//!  resolver┼─ connect, bind_udp ──────────────────────▶ ┌──────────┐
//!  forwards┤  associate, listen                         │  driver  │
//!          │  Flow, UdpPort, Association ──last words──▶│          │
//!          └──────────◀── Reply, Datagram, Arrivals ─── └──────────┘
//! ```
//!
//! # Ownership
//!
//! The asker names what it asks for by a [`HandleId`] before the driver has it, so that
//! both can speak of it at any time. A handle ([`Flow`], [`UdpPort`], [`Association`])
//! says its *last words* when it is dropped, or when a flow is attached. Last words do
//! not go through the bounded queue, so they can neither block nor be lost: they lie in
//! a list that holds at most two entries for each handle that was ever granted and not
//! yet given up, and the driver takes them before any other command.
//!
//! A caller that goes away while it waits leaks nothing: its reply channel closes first
//! and its last words follow. A request whose caller has gone before the driver saw it
//! is skipped by [`Commands`]; the last words about it then name an id that the driver
//! does not know, which it ignores.

mod command;
mod flow;
mod handle;
mod incoming;
mod port;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use thiserror::Error;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::command::{Attachment, Command, Commands, Lifeline, Reply};
pub use self::flow::{Flow, FlowStream, Pipe};
pub use self::handle::HandleId;
use self::handle::{Asked, Handle, Kind, LastWords};
pub use self::incoming::{Arrivals, IncomingFlow, Listener, Refusal};
pub use self::port::{Association, Datagram, UdpPort};
use super::down::Down;
use super::resolve::{Found, ResolveError};
use super::rules::InForce;
use super::status::Look;
use crate::wire::InnerConfig;

/// Asks the driver for flows, UDP ports and associations; cheap to clone.
#[derive(Clone, Debug)]
pub struct Tunnel {
    commands: mpsc::Sender<Command>,
    last_words: Arc<LastWords>,
    inner: watch::Receiver<Option<InnerConfig>>,
    down: watch::Receiver<Option<Down>>,
}

/// Makes a tunnel handle and the driver's end of it.
///
/// `inner` tells the addresses that the session has: `None` until the server has pushed
/// them.
pub fn tunnel(inner: watch::Receiver<Option<InnerConfig>>) -> (Tunnel, Commands) {
    let (sender, receiver) = mpsc::channel(COMMAND_QUEUE);
    let (down, watching) = watch::channel(Some(Down::Connecting));
    let last_words = Arc::new(LastWords::default());
    let tunnel = Tunnel {
        commands: sender,
        last_words: Arc::clone(&last_words),
        inner,
        down: watching,
    };
    let commands = Commands {
        receiver,
        last_words,
        down,
    };
    (tunnel, commands)
}

impl Tunnel {
    /// Opens a TCP flow to `remote` through the tunnel.
    ///
    /// Waits for as long as the driver tries; dropping the future gives the attempt up.
    ///
    /// # Errors
    ///
    /// Why the flow is not there, as precisely as the network told.
    pub async fn connect(&self, remote: SocketAddr) -> Result<Flow, ConnectError> {
        let handle = self
            .ask(Kind::Flow, |flow, reply| Command::Connect {
                flow,
                remote,
                reply,
            })
            .await?;
        Ok(Flow { handle, remote })
    }

    /// Binds a UDP port of the inner address, for a few datagrams such as DNS queries.
    ///
    /// # Errors
    ///
    /// As [`Tunnel::connect`].
    pub async fn bind_udp(&self) -> Result<UdpPort, ConnectError> {
        self.bind(None, UDP_QUEUE).await
    }

    /// Binds a UDP port of the inner address, that number or any, for as many datagrams as somebody may forward.
    ///
    /// # Errors
    ///
    /// [`ConnectError::PortTaken`] when that number is bound already; else as [`Tunnel::connect`].
    pub async fn forward_udp(&self, number: Option<u16>) -> Result<UdpPort, ConnectError> {
        self.bind(number, FORWARD_QUEUE).await
    }

    async fn bind(&self, number: Option<u16>, queue: usize) -> Result<UdpPort, ConnectError> {
        let (inbound, datagrams) = mpsc::channel(queue);
        let handle = self
            .ask(Kind::UdpPort, |port, reply| Command::BindUdp {
                port,
                number,
                inbound,
                reply,
            })
            .await?;
        Ok(UdpPort {
            handle,
            commands: self.commands.clone(),
            datagrams: Mutex::new(datagrams),
        })
    }

    /// Takes an identifier of echo requests (ping) of the inner address. What is sent and received is a UDP port's, but that
    /// the sequence number stands where ports do.
    ///
    /// # Errors
    ///
    /// As [`Tunnel::connect`].
    pub async fn bind_echo(&self) -> Result<UdpPort, ConnectError> {
        let (inbound, datagrams) = mpsc::channel(UDP_QUEUE);
        let handle = self
            .ask(Kind::UdpPort, |port, reply| Command::BindEcho {
                port,
                inbound,
                reply,
            })
            .await?;
        Ok(UdpPort {
            handle,
            commands: self.commands.clone(),
            datagrams: Mutex::new(datagrams),
        })
    }

    /// Hands a SOCKS5 UDP relay socket to the driver, which serves it until the
    /// association is dropped.
    ///
    /// `client` is the only address whose datagrams are taken from `socket`; `rules` tell where each goes.
    ///
    /// # Errors
    ///
    /// As [`Tunnel::connect`].
    pub async fn associate(
        &self,
        socket: UdpSocket,
        client: IpAddr,
        rules: InForce,
    ) -> Result<Association, ConnectError> {
        let (alive, ended) = oneshot::channel();
        let handle = self
            .ask(Kind::Association, |association, reply| Command::Associate {
                association,
                socket,
                client,
                rules,
                alive: Lifeline(alive),
                reply,
            })
            .await?;
        Ok(Association { ended, handle })
    }

    /// Tells the driver what became of a name it asked the resolver for.
    ///
    /// Waits while the driver's queue is full; does nothing when the driver has gone.
    pub async fn resolved(&self, query: u64, found: Result<Found, ResolveError>) {
        // A driver that has gone has no use for the answer.
        let _gone = self.commands.send(Command::Resolved { query, found }).await;
    }

    /// Has the flows that [`Flow::attach_judged`] gave away judged again, since rules have changed.
    ///
    /// Waits while the driver's queue is full; does nothing when the driver has gone.
    pub async fn judge_again(&self) {
        // A driver that has gone has no flows.
        let _gone = self.commands.send(Command::JudgeAgain).await;
    }

    /// Asks how the session is; `None` from a driver that has gone.
    pub async fn look(&self) -> Option<Box<Look>> {
        let (answer, look) = oneshot::channel();
        self.commands.send(Command::Look { answer }).await.ok()?;
        look.await.ok()
    }

    /// Waits until no flow is left, those that still close in the background among them: what was sent has arrived.
    pub async fn idle(&self) {
        let (reply, idle) = oneshot::channel();
        let reply = Reply(reply);
        if self.commands.send(Command::Idle { reply }).await.is_ok() {
            // A driver that has gone has no flows.
            let _gone = idle.await;
        }
    }

    /// Watches the inner addresses, name servers and MTU of the session.
    pub fn inner(&self) -> watch::Receiver<Option<InnerConfig>> {
        self.inner.clone()
    }

    /// Says why nothing goes through the tunnel now; `None` while it is up.
    pub fn down(&self) -> Option<Down> {
        // A driver that has gone says nothing any more.
        if self.down.has_changed().is_err() {
            return Some(Down::Ended);
        }
        *self.down.borrow()
    }

    /// Watches that.
    pub fn downs(&self) -> watch::Receiver<Option<Down>> {
        self.down.clone()
    }

    /// Says of a request that has failed whether the tunnel is why.
    fn blame(&self, error: ConnectError) -> ConnectError {
        match (error, self.down()) {
            // Nobody has asked the origin.
            (ConnectError::TunnelDown(_) | ConnectError::TimedOut, Some(down)) => {
                ConnectError::TunnelDown(down)
            }
            _ => error,
        }
    }

    async fn ask(
        &self,
        kind: Kind,
        command: impl FnOnce(HandleId, Reply) -> Command,
    ) -> Result<Handle, ConnectError> {
        let permit = self
            .commands
            .reserve()
            .await
            .map_err(|_closed| ConnectError::TunnelDown(Down::Ended))?;
        let (reply, answer) = oneshot::channel();
        let handle = Handle::new(kind, &self.last_words);
        permit.send(command(handle.id, Reply(reply)));
        let asked = Asked { answer, handle };
        asked.outcome().await.map_err(|error| self.blame(error))
    }
}

/// Why there is no flow, port or association.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectError {
    /// The origin answered with a reset.
    #[error("the origin refused the connection")]
    Refused,
    /// A router or the origin's host said that the host or port cannot be reached.
    #[error("the origin's host is unreachable")]
    Unreachable,
    /// A router or the server said that there is no route to the network.
    #[error("the origin's network is unreachable")]
    NetworkUnreachable,
    /// Nobody answered in time.
    #[error("the origin did not answer in time")]
    TimedOut,
    /// The server's policy, or a firewall on the way, forbids the destination.
    #[error("the server does not allow this destination")]
    NotAllowed,
    /// The tunnel carries nothing now.
    #[error(transparent)]
    TunnelDown(Down),
    /// The client's or the server's limit of flows is reached.
    #[error("too many flows are open")]
    TooManyFlows,
    /// The session has no address of the origin's family (IPv4 or IPv6).
    #[error("the tunnel has no address of the origin's family")]
    NoAddress,
    /// Somebody has this port of the inner address already.
    #[error("the port of the inner address is in use")]
    PortTaken,
}

/// Requests that wait for the driver: enough for a browser's burst of connections;
/// beyond that the askers wait.
const COMMAND_QUEUE: usize = 1024;

/// Datagrams that wait for the owner of a [`UdpPort`]: one DNS query has one answer,
/// the rest is room for duplicates and forgeries.
const UDP_QUEUE: usize = 16;

/// Datagrams that wait for a forward: what arrives in one turn of a fast lane.
const FORWARD_QUEUE: usize = 256;

#[cfg(test)]
mod tests;
