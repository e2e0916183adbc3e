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

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::task::AtomicWaker;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot, watch};

use super::resolve::ResolveError;
use super::rules::{InForce, Judged};
use super::status::Look;
use crate::io::relay::{self, Endpoint, FlowWatch};
use crate::wire::InnerConfig;

mod incoming;

pub use incoming::{Arrivals, IncomingFlow, Listener, Refusal};

/// Asks the driver for flows, UDP ports and associations; cheap to clone.
#[derive(Clone, Debug)]
pub struct Tunnel {
    commands: mpsc::Sender<Command>,
    last_words: Arc<LastWords>,
    inner: watch::Receiver<Option<InnerConfig>>,
}

/// Makes a tunnel handle and the driver's end of it.
///
/// `inner` tells the addresses that the session has: `None` until the server has pushed
/// them.
pub fn tunnel(inner: watch::Receiver<Option<InnerConfig>>) -> (Tunnel, Commands) {
    let (sender, receiver) = mpsc::channel(COMMAND_QUEUE);
    let last_words = Arc::new(LastWords::default());
    let tunnel = Tunnel {
        commands: sender,
        last_words: Arc::clone(&last_words),
        inner,
    };
    let commands = Commands {
        receiver,
        last_words,
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
    pub async fn resolved(&self, query: u64, addresses: Result<Vec<IpAddr>, ResolveError>) {
        // A driver that has gone has no use for the answer.
        let _gone = self
            .commands
            .send(Command::Resolved { query, addresses })
            .await;
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

    async fn ask(
        &self,
        kind: Kind,
        command: impl FnOnce(HandleId, Reply) -> Command,
    ) -> Result<Handle, ConnectError> {
        let permit = self
            .commands
            .reserve()
            .await
            .map_err(|_closed| ConnectError::TunnelDown)?;
        let (reply, answer) = oneshot::channel();
        let handle = Handle::new(kind, &self.last_words);
        permit.send(command(handle.id, Reply(reply)));
        let asked = Asked { answer, handle };
        asked.outcome().await
    }
}

/// A TCP flow through the tunnel that nobody reads yet; dropping it aborts it.
#[derive(Debug)]
pub struct Flow {
    handle: Handle,
    remote: SocketAddr,
}

impl Flow {
    /// Returns the address that the flow is connected to.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Gives the flow and the application's socket to the driver, which moves the bytes
    /// from here on and closes both.
    ///
    /// `early` is what was read from `socket` before and belongs to the flow.
    pub fn attach(self, socket: TcpStream, early: Vec<u8>) {
        let Self { handle, remote: _ } = self;
        handle.attach(Attachment::Tcp(socket), early, None);
    }

    /// Like [`Flow::attach`], for a flow that the driver ends when rules send it another way than `judged` tells.
    pub fn attach_judged(self, socket: TcpStream, early: Vec<u8>, judged: Judged) {
        let Self { handle, remote: _ } = self;
        handle.attach(Attachment::Tcp(socket), early, Some(Box::new(judged)));
    }

    /// The same for any socket, and for somebody who wants to know how the flow ends.
    pub fn attach_watched(self, endpoint: Endpoint, early: Vec<u8>, watch: FlowWatch) {
        let Self { handle, remote: _ } = self;
        handle.attach(Attachment::Watched { endpoint, watch }, early, None);
    }

    /// Turns the flow into a stream of bytes, for those who must look at them.
    pub fn into_stream(self) -> FlowStream {
        let (near, far) = tokio::io::duplex(PIPE);
        let fate = Arc::new(OnceLock::new());
        let mut guard = Handle {
            id: self.handle.id,
            kind: Kind::Flow,
            last_words: Arc::clone(&self.handle.last_words),
            armed: true,
        };
        let pipe = Pipe {
            stream: far,
            fate: Arc::clone(&fate),
        };
        if !self.handle.attach(Attachment::Pipe(pipe), Vec::new(), None) {
            guard.armed = false;
        }
        FlowStream {
            stream: near,
            fate,
            handle: guard,
        }
    }
}

/// A flow as a stream of bytes.
///
/// `shutdown` ends the sending half. Dropping the stream without it aborts the flow;
/// after it, what was written is still delivered.
#[derive(Debug)]
pub struct FlowStream {
    stream: DuplexStream,
    fate: Arc<OnceLock<io::ErrorKind>>,
    handle: Handle,
}

impl AsyncRead for FlowStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() == before
            && buf.remaining() > 0
            && let Some(kind) = self.fate.get()
        {
            return Poll::Ready(Err(io::Error::from(*kind)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for FlowStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        // The driver reads what is left and then the end: nothing to abort any more.
        self.handle.armed = false;
        Poll::Ready(Ok(()))
    }
}

/// A UDP port of the inner address; dropping it unbinds it.
#[derive(Debug)]
pub struct UdpPort {
    handle: Handle,
    commands: mpsc::Sender<Command>,
    datagrams: Mutex<mpsc::Receiver<Datagram>>,
}

impl UdpPort {
    /// Sends one datagram.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when the driver's queue is full (the datagram is not sent),
    /// `BrokenPipe` when the tunnel has gone.
    pub fn try_send_to(&self, payload: &[u8], remote: SocketAddr) -> io::Result<usize> {
        let command = Command::SendUdp {
            port: self.handle.id,
            remote,
            payload: payload.to_vec(),
        };
        match self.commands.try_send(command) {
            Ok(()) => Ok(payload.len()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(io::ErrorKind::WouldBlock.into()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Waits for a datagram and copies it into `buf`; what does not fit is cut off.
    ///
    /// Returns the number of bytes copied and the sender. One task may wait at a time.
    ///
    /// # Errors
    ///
    /// `BrokenPipe` when the tunnel has gone or has given the port up.
    pub fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let datagram = ready!(self.poll_recv(cx))?;
        let len = datagram.payload.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..len), datagram.payload.get(..len)) {
            to.copy_from_slice(from);
        }
        Poll::Ready(Ok((len, datagram.remote)))
    }
}

impl UdpPort {
    /// Waits for a datagram. One task may wait at a time; safe to cancel.
    ///
    /// # Errors
    ///
    /// As [`UdpPort::poll_recv_from`].
    pub async fn recv(&self) -> io::Result<Datagram> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<Datagram>> {
        let datagram = ready!(lock(&self.datagrams).poll_recv(cx));
        Poll::Ready(datagram.ok_or_else(|| io::ErrorKind::BrokenPipe.into()))
    }
}

/// One UDP payload and who sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// The sender.
    pub remote: SocketAddr,
    /// The payload.
    pub payload: Vec<u8>,
}

/// A SOCKS5 UDP relay that the driver serves; dropping it ends the relay.
#[derive(Debug)]
pub struct Association {
    ended: oneshot::Receiver<()>,
    #[expect(dead_code, reason = "held for its last words")]
    handle: Handle,
}

impl Association {
    /// Waits until the driver has given the relay up.
    pub async fn ended(&mut self) {
        // The lifeline carries no value: its end is the message.
        let _cut = (&mut self.ended).await;
    }
}

/// Names a flow, a UDP port or an association between the asker and the driver.
///
/// Never reused while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandleId(u64);

#[cfg(test)]
impl HandleId {
    /// Makes an id for a test that plays the asker.
    pub(super) const fn numbered(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for HandleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The driver's end: what the askers want, in order, last words first.
#[derive(Debug)]
pub struct Commands {
    receiver: mpsc::Receiver<Command>,
    last_words: Arc<LastWords>,
}

impl Commands {
    /// Takes the next command.
    ///
    /// `Ready(None)` when no [`Tunnel`] and no [`UdpPort`] is left: nothing can be asked any
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

    /// Waits for the next command; see [`Commands::poll_recv`]. Safe to cancel.
    pub async fn recv(&mut self) -> Option<Command> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
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
        /// The addresses, at least one, best first.
        addresses: Result<Vec<IpAddr>, ResolveError>,
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

/// The driver's end of a [`FlowStream`].
#[derive(Debug)]
pub struct Pipe {
    stream: DuplexStream,
    fate: Arc<OnceLock<io::ErrorKind>>,
}

impl Pipe {
    /// Drops the pipe so that the reader sees `kind` instead of a clean end.
    pub fn fail(self, kind: io::ErrorKind) {
        // Set at most once: `self` is consumed.
        let _first = self.fate.set(kind);
    }
}

impl relay::Pipe for Pipe {
    fn fail(self: Box<Self>, kind: io::ErrorKind) {
        Pipe::fail(*self, kind);
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Where the driver says how a request went; dropping it says [`ConnectError::TunnelDown`].
#[derive(Debug)]
pub struct Reply(oneshot::Sender<Result<(), ConnectError>>);

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
    pub(super) fn pair() -> (Self, oneshot::Receiver<Result<(), ConnectError>>) {
        let (sender, receiver) = oneshot::channel();
        (Self(sender), receiver)
    }
}

/// Tells an [`Association`] of its end by being dropped.
#[derive(Debug)]
pub struct Lifeline(#[expect(dead_code, reason = "held for its drop")] oneshot::Sender<()>);

#[cfg(test)]
impl Lifeline {
    /// Makes a lifeline for a test that plays the asker.
    pub(super) fn pair() -> (Self, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        (Self(sender), receiver)
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
    /// There is no session with the server.
    #[error("the tunnel is down")]
    TunnelDown,
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

/// What a [`Handle`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Flow,
    UdpPort,
    Association,
    Listener,
}

/// Says its last words when it is dropped while armed.
#[derive(Debug)]
struct Handle {
    id: HandleId,
    kind: Kind,
    last_words: Arc<LastWords>,
    armed: bool,
}

impl Handle {
    fn new(kind: Kind, last_words: &Arc<LastWords>) -> Self {
        Self {
            id: HandleId(last_words.next_id.fetch_add(1, Ordering::Relaxed)),
            kind,
            last_words: Arc::clone(last_words),
            armed: true,
        }
    }

    /// Says `Attach` instead of `Abort`; false when the driver has gone.
    fn attach(
        mut self,
        attachment: Attachment,
        early: Vec<u8>,
        judged: Option<Box<Judged>>,
    ) -> bool {
        self.armed = false;
        self.last_words.say(Command::Attach {
            flow: self.id,
            attachment,
            early,
            judged,
        })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let id = self.id;
        self.last_words.say(match self.kind {
            Kind::Flow => Command::Abort { flow: id },
            Kind::UdpPort => Command::UnbindUdp { port: id },
            Kind::Association => Command::Dissociate { association: id },
            Kind::Listener => Command::Unlisten { listener: id },
        });
    }
}

/// A request that waits for its answer.
///
/// The fields are dropped in this order: the reply channel is closed before the last
/// words are said, so a driver that takes the words first will skip the request.
struct Asked {
    answer: oneshot::Receiver<Result<(), ConnectError>>,
    handle: Handle,
}

impl Asked {
    async fn outcome(mut self) -> Result<Handle, ConnectError> {
        let outcome = (&mut self.answer).await;
        match outcome {
            Ok(Ok(())) => Ok(self.handle),
            Ok(Err(error)) => {
                // The driver has nothing under this id.
                self.handle.armed = false;
                Err(error)
            }
            Err(_dropped) => Err(ConnectError::TunnelDown),
        }
    }
}

/// The list of last words: never full, never blocking.
#[derive(Debug, Default)]
struct LastWords {
    next_id: AtomicU64,
    words: Mutex<Words>,
    waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct Words {
    queue: VecDeque<Command>,
    closed: bool,
}

impl LastWords {
    fn say(&self, command: Command) -> bool {
        {
            let mut words = lock(&self.words);
            if words.closed {
                return false;
            }
            words.queue.push_back(command);
        }
        self.waker.wake();
        true
    }

    fn take(&self) -> Option<Command> {
        lock(&self.words).queue.pop_front()
    }

    fn close(&self) {
        let dropped = {
            let mut words = lock(&self.words);
            words.closed = true;
            std::mem::take(&mut words.queue)
        };
        // Outside the lock: what is dropped here may say words of its own.
        drop(dropped);
    }
}

/// Locks a mutex whose data stays whole even if a holder panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Requests that wait for the driver: enough for a browser's burst of connections;
/// beyond that the askers wait.
const COMMAND_QUEUE: usize = 1024;

/// Datagrams that wait for the owner of a [`UdpPort`]: one DNS query has one answer,
/// the rest is room for duplicates and forgeries.
const UDP_QUEUE: usize = 16;

/// Datagrams that wait for a forward: what arrives in one turn of a fast lane.
const FORWARD_QUEUE: usize = 256;

/// Bytes in flight per direction of a [`FlowStream`]: one super-packet.
const PIPE: usize = 64 * 1024;

#[cfg(test)]
mod tests;
