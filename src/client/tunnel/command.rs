//! What the driver is asked to do, and its end of the queue.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot, watch};

use super::flow::Pipe;
use super::handle::LastWords;
use super::port::Datagram;
use super::{Arrivals, ConnectError, HandleId, Refusal};
use crate::client::down::Down;
use crate::client::resolve::{Found, ResolveError};
use crate::client::rules::{InForce, Judged};
use crate::client::status::Look;
use crate::io::relay::{Endpoint, FlowWatch};

/// The driver's end: what the askers want, in order, last words first.
#[derive(Debug)]
pub struct Commands {
    pub(super) receiver: mpsc::Receiver<Command>,
    pub(super) last_words: Arc<LastWords>,
    pub(super) down: watch::Sender<Option<Down>>,
}

impl Commands {
    /// Takes the next command.
    ///
    /// `Ready(None)` when no [`Tunnel`](super::Tunnel) and no [`UdpPort`](super::UdpPort) is left: nothing can be asked any
    /// more.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Command>> {
        // Registered before looking, so that words said in between wake this task.
        self.last_words.waker.register(cx.waker());
        if let Some(command) = self.last_words.take() {
            return Poll::Ready(Some(command));
        }
        loop {
            match ready!(self.receiver.poll_recv(cx)) {
                Some(command) if command.is_abandoned() => {}
                Some(command) => return Poll::Ready(Some(command)),
                // The last sender may have spoken its last words just now.
                None => return Poll::Ready(self.last_words.take()),
            }
        }
    }

    /// Tells all askers why nothing goes through the tunnel, or that it is up.
    pub fn tell(&self, down: Option<Down>) {
        self.down.send_replace(down);
    }

    /// What a test tells it by that plays the driver.
    #[cfg(test)]
    pub(in crate::client) fn telling(&self) -> watch::Sender<Option<Down>> {
        self.down.clone()
    }

    /// Waits for the next command; see [`Commands::poll_recv`]. Safe to cancel.
    pub async fn recv(&mut self) -> Option<Command> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }
}

impl Command {
    /// Whether it asks for something that would be waited for while the tunnel is down. Listeners are not: they serve when it
    /// is back.
    pub fn wants_tunnel(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. } | Self::BindUdp { .. } | Self::BindEcho { .. }
        )
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        self.last_words.close();
    }
}

/// What the driver is asked to do.
///
/// Ids that the driver does not know (any more) are to be ignored.
#[derive(Debug)]
#[non_exhaustive]
pub enum Command {
    /// Open a TCP flow to `remote`, and reply once it is there or has failed.
    Connect {
        /// The new flow.
        flow: HandleId,
        /// Whom to connect to.
        remote: SocketAddr,
        /// Where to say how it went.
        reply: Reply,
    },
    /// From here on, move the bytes between an established flow and `attachment`.
    Attach {
        /// The flow.
        flow: HandleId,
        /// The application's end.
        attachment: Attachment,
        /// Bytes for the origin that come before those of `attachment`.
        early: Vec<u8>,
        /// What rules have judged of it, where they may judge otherwise later.
        judged: Option<Box<Judged>>,
    },
    /// Abort a flow: its owner has gone, in whatever state it is.
    Abort {
        /// The flow.
        flow: HandleId,
    },
    /// Bind a UDP port of the inner address.
    BindUdp {
        /// The new port.
        port: HandleId,
        /// The number it must have, if that matters.
        number: Option<u16>,
        /// Where to put what arrives; full means drop and count.
        inbound: mpsc::Sender<Datagram>,
        /// Where to say how it went.
        reply: Reply,
    },
    /// Take an identifier of echo requests.
    BindEcho {
        /// What names it, as a UDP port is named.
        port: HandleId,
        /// Where to put the replies; full means drop and count.
        inbound: mpsc::Sender<Datagram>,
        /// Where to say how it went.
        reply: Reply,
    },
    /// Send one datagram from a UDP port, or an echo request.
    SendUdp {
        /// The port.
        port: HandleId,
        /// Whom to.
        remote: SocketAddr,
        /// The payload.
        payload: Vec<u8>,
    },
    /// Unbind a UDP port, or give an identifier back.
    UnbindUdp {
        /// The port.
        port: HandleId,
    },
    /// Listen on a TCP port of the inner address.
    Listen {
        /// The new listener.
        listener: HandleId,
        /// The port.
        port: u16,
        /// Where to offer the flows of peers.
        arrivals: Arrivals,
        /// Where to say how it went.
        reply: Reply,
    },
    /// Listen there no more.
    Unlisten {
        /// The listener.
        listener: HandleId,
    },
    /// Refuse a flow that a peer wants to open.
    Refuse {
        /// The flow.
        flow: HandleId,
        /// What the peer hears.
        refusal: Refusal,
    },
    /// Serve a SOCKS5 UDP relay on `socket`.
    Associate {
        /// The new association.
        association: HandleId,
        /// The socket that the application sends to.
        socket: UdpSocket,
        /// The only address to take datagrams from.
        client: IpAddr,
        /// Where each datagram goes.
        rules: InForce,
        /// To be kept while the relay is served; dropping it tells the proxy.
        alive: Lifeline,
        /// Where to say how it went.
        reply: Reply,
    },
    /// End a SOCKS5 UDP relay.
    Dissociate {
        /// The association.
        association: HandleId,
    },
    /// Judge attached flows again: rules have changed.
    JudgeAgain,
    /// Say how the session is.
    Look {
        /// Where to say it.
        answer: oneshot::Sender<Box<Look>>,
    },
    /// Say when no flow is left.
    Idle {
        /// Where to say it.
        reply: Reply,
    },
    /// What became of a name that the driver asked the resolver for.
    Resolved {
        /// The driver's number of the query.
        query: u64,
        /// The addresses.
        found: Result<Found, ResolveError>,
    },
}

impl Command {
    /// Whether this is a request whose asker has gone.
    ///
    /// [`Commands`] skips such requests. Whoever keeps a request for later must ask again
    /// before serving it: the last words about it have been said already.
    pub fn is_abandoned(&self) -> bool {
        match self {
            Self::Connect { reply, .. }
            | Self::BindUdp { reply, .. }
            | Self::BindEcho { reply, .. }
            | Self::Listen { reply, .. }
            | Self::Idle { reply }
            | Self::Associate { reply, .. } => reply.is_abandoned(),
            Self::Look { answer } => answer.is_closed(),
            Self::Attach { .. }
            | Self::Abort { .. }
            | Self::SendUdp { .. }
            | Self::UnbindUdp { .. }
            | Self::Unlisten { .. }
            | Self::Refuse { .. }
            | Self::Dissociate { .. }
            | Self::JudgeAgain
            | Self::Resolved { .. } => false,
        }
    }
}

/// The application's end of a flow.
#[derive(Debug)]
pub enum Attachment {
    /// The application's own socket.
    Tcp(TcpStream),
    /// Any endpoint, and who watches the flow.
    Watched {
        /// The application's end.
        endpoint: Endpoint,
        /// Lives as long as the flow.
        watch: FlowWatch,
    },
    /// A pipe to a task of this process.
    Pipe(Pipe),
}

/// Where the driver says how a request went; dropping it says [`ConnectError::TunnelDown`].
#[derive(Debug)]
pub struct Reply(pub(super) oneshot::Sender<Result<(), ConnectError>>);

impl Reply {
    /// Answers the asker.
    ///
    /// If it has gone, its last words say so: nothing else is to be done here.
    pub fn send(self, outcome: Result<(), ConnectError>) {
        // Refused only when the asker has gone.
        let _gone = self.0.send(outcome);
    }

    /// Whether the asker has gone.
    pub fn is_abandoned(&self) -> bool {
        self.0.is_closed()
    }

    /// Makes a reply for a test that plays the asker.
    #[cfg(test)]
    pub(in crate::client) fn pair() -> (Self, oneshot::Receiver<Result<(), ConnectError>>) {
        let (sender, receiver) = oneshot::channel();
        (Self(sender), receiver)
    }
}

/// Tells an [`Association`](super::Association) of its end by being dropped.
#[derive(Debug)]
pub struct Lifeline(
    #[expect(dead_code, reason = "held for its drop")] pub(super) oneshot::Sender<()>,
);

#[cfg(test)]
impl Lifeline {
    /// Makes a lifeline for a test that plays the asker.
    pub(in crate::client) fn pair() -> (Self, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        (Self(sender), receiver)
    }
}
