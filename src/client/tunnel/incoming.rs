//! Flows that peers open to the inner address: a port that is listened on, and who comes there.
//!
//! ```text
//!  Tunnel::listen ── Listen ──▶ driver ── Arrivals::offer ──▶ Listener::accept ──▶ IncomingFlow
//!                               (nothing has been answered yet)                      │
//!                               ◀── Attach ──────────────────────────── accept ──────┤
//!                               ◀── Refuse ──────────────────────────── refuse ──────┤
//!                               ◀── Abort (a reset) ─────────────────── dropped ─────┘
//! ```
//!
//! The peer waits for the answer to its SYN until the flow is accepted: by then whoever accepts has a connection to the
//! host it is for, so that a refusal nearby is a refusal to the peer.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Attachment, Command, ConnectError, Handle, HandleId, Kind, LastWords, Tunnel};
use crate::io::relay::{Endpoint, FlowWatch};

impl Tunnel {
    /// Listens on a TCP port of the inner address, whatever address that is from session to session.
    ///
    /// # Errors
    ///
    /// [`ConnectError::PortTaken`] when it is listened on already; else as [`Tunnel::connect`].
    pub async fn listen(&self, port: u16) -> Result<Listener, ConnectError> {
        let (sender, incoming) = mpsc::channel(BACKLOG);
        let arrivals = Arrivals {
            sender,
            last_words: Arc::clone(&self.last_words),
        };
        let handle = self
            .ask(Kind::Listener, |listener, reply| Command::Listen {
                listener,
                port,
                arrivals,
                reply,
            })
            .await?;
        Ok(Listener { handle, incoming })
    }
}

/// A TCP port of the inner address that is listened on; dropping it refuses all who come from then on.
#[derive(Debug)]
pub struct Listener {
    incoming: mpsc::Receiver<IncomingFlow>,
    #[expect(dead_code, reason = "held for its last words")]
    handle: Handle,
}

impl Listener {
    /// Waits for a flow of a peer's; `None` when the tunnel has ended, or has begun anew and wants to be asked again.
    pub async fn accept(&mut self) -> Option<IncomingFlow> {
        self.incoming.recv().await
    }
}

/// A flow that a peer wants to open; dropping it resets the peer.
#[derive(Debug)]
pub struct IncomingFlow {
    handle: Handle,
    remote: SocketAddr,
}

impl IncomingFlow {
    /// Returns the peer's address.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Answers the peer, and gives the flow and the socket it is for to the driver, which moves the bytes from here on.
    pub fn accept(self, endpoint: Endpoint, watch: FlowWatch) {
        self.handle
            .attach(Attachment::Watched { endpoint, watch }, Vec::new(), None);
    }

    /// Tells the peer why there is no flow.
    pub fn refuse(mut self, refusal: Refusal) {
        self.handle.armed = false;
        self.handle.last_words.say(Command::Refuse {
            flow: self.handle.id,
            refusal,
        });
    }
}

/// What the peer of a flow that is not accepted hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A reset: the connection is refused.
    Refused,
    /// That the host cannot be reached.
    Unreachable,
}

/// The driver's end of a [`Listener`].
#[derive(Debug)]
pub struct Arrivals {
    sender: mpsc::Sender<IncomingFlow>,
    last_words: Arc<LastWords>,
}

impl Arrivals {
    /// Offers a flow of `remote`'s, under a name of its own; `None` when too many wait already, or nobody listens.
    pub(in crate::client) fn offer(&self, remote: SocketAddr) -> Option<HandleId> {
        let permit = self.sender.try_reserve().ok()?;
        let handle = Handle::new(Kind::Flow, &self.last_words);
        let id = handle.id;
        permit.send(IncomingFlow { handle, remote });
        Some(id)
    }
}

/// Flows of peers that wait for the task that listens: a burst of connections. Those beyond it are not answered, and
/// their peers try again.
const BACKLOG: usize = 256;
