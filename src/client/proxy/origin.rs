//! Opens what a client of the proxy asks for, by the way that the rules give it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context as TaskContext, Poll};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::listen::Context;
use crate::client::direct::DirectFlow;
use crate::client::resolve::{CONNECT_LIMIT, Host, Known, OriginError, ResolveError};
use crate::client::rules::{Blocked, Destination, Judged, ResolvedBy, Rules, Way};
use crate::client::tunnel::{ConnectError, Flow, FlowStream};
use crate::config::Transport;
use crate::io::relay::{Endpoint, Fate, FlowWatch, Pipe};

/// A connection to an origin, and what was judged of it.
pub(in crate::client) struct Opened {
    flow: Carried,
    judged: Judged,
}

/// A connection to an origin.
enum Carried {
    Tunnel(Flow),
    Direct(DirectFlow),
}

impl Context {
    /// Connects to `host` as the rules in force now have it.
    pub(in crate::client) async fn open(
        &self,
        host: &Host,
        port: u16,
    ) -> Result<Opened, OriginError> {
        let rules = self.settings.rules.now();
        match timeout(CONNECT_LIMIT, self.open_by(&rules, host, port)).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(OriginError::Connect(ConnectError::TimedOut)),
        }
    }

    async fn open_by(&self, rules: &Rules, host: &Host, port: u16) -> Result<Opened, OriginError> {
        let name = match host {
            Host::Name(name) => Some(name.as_str()),
            Host::Ip(_) => None,
        };
        let by = match name {
            Some(name) => rules.of_name(name, port, Transport::Tcp)?,
            None => ResolvedBy::Tunnel,
        };
        let (known, by) = match self.resolver.known(host, by)? {
            (known @ Known::Ask(_), ResolvedBy::Host) => {
                let addresses = self.settings.direct.lookup(known).await?;
                (Known::Addresses(addresses), by)
            }
            known => known,
        };
        let judge = |ip: IpAddr| {
            rules.of_address(&Destination {
                name: name.map(|name| (name, by)),
                ip,
                port,
                transport: Transport::Tcp,
            })
        };
        let refused = OnceLock::new();
        let admit = |ip: &IpAddr| match judge(*ip) {
            Ok(_) => true,
            Err(blocked) => {
                let _first = refused.set(blocked);
                false
            }
        };
        let attempt = |ip| self.attempt(judge(ip), SocketAddr::new(ip, port));
        let opened = self.resolver.race(known, admit, attempt).await;
        let flow = opened.map_err(|error| match (error, refused.get()) {
            // It has addresses, and not one that it may have.
            (OriginError::Resolve(ResolveError::NoAddress), Some(blocked)) => (*blocked).into(),
            (error, _) => error,
        })?;
        let (remote, way) = match &flow {
            Carried::Tunnel(flow) => (flow.remote(), Way::Tunnel),
            Carried::Direct(flow) => (flow.remote(), Way::Direct),
        };
        let judged = Judged::new(&self.settings.rules, name, remote, way);
        if way == Way::Direct {
            self.settings.stats.direct.add();
        }
        Ok(Opened { flow, judged })
    }

    async fn attempt(
        &self,
        way: Result<Way, Blocked>,
        remote: SocketAddr,
    ) -> Result<Carried, ConnectError> {
        match way {
            Ok(Way::Tunnel) => self.tunnel.connect(remote).await.map(Carried::Tunnel),
            Ok(Way::Direct) => (self.settings.direct.connect(remote).await).map(Carried::Direct),
            Err(_) => Err(ConnectError::NotAllowed),
        }
    }

    /// Counts a request that came to nothing.
    pub(in crate::client) fn count_failure(&self, error: &OriginError) {
        match error {
            OriginError::Blocked(_) => self.settings.stats.blocked.add(),
            OriginError::Resolve(_) | OriginError::Connect(_) => {
                self.settings.stats.origin_failed.add();
            }
        }
    }
}

impl Opened {
    /// Carries the application's bytes: the driver does where they go through the tunnel, and this call where they do not.
    pub(super) async fn carry(self, application: TcpStream, early: Vec<u8>) {
        let Self { flow, judged } = self;
        match flow {
            Carried::Tunnel(flow) => flow.attach_judged(application, early, judged),
            Carried::Direct(flow) => {
                flow.relay(application, &early, &judged).await;
            }
        }
    }

    /// Connects a Unix socket, which `watch` counts; what is returned tells how it ends, and carries the bytes of what goes
    /// beside the tunnel.
    pub(in crate::client) fn carry_watched(
        self,
        application: UnixStream,
        mut watch: FlowWatch,
    ) -> BoxFuture<'static, Fate> {
        let Self { flow, judged } = self;
        match flow {
            Carried::Tunnel(flow) => {
                let fate = watch.fate();
                flow.attach_watched(Endpoint::Unix(application), watch, Some(judged));
                async move { fate.await.unwrap_or(Fate::Cut) }.boxed()
            }
            Carried::Direct(flow) => async move {
                let fate = flow.relay(application, &[], &judged).await;
                drop(watch);
                fate
            }
            .boxed(),
        }
    }

    /// Turns the connection into a stream of bytes, for those who must look at them.
    pub(in crate::client) fn into_stream(self) -> (OriginStream, Judged) {
        let stream = match self.flow {
            Carried::Tunnel(flow) => OriginStream::Tunnel(flow.into_stream()),
            Carried::Direct(flow) => {
                let (socket, permit) = flow.into_parts();
                OriginStream::Direct(socket, permit)
            }
        };
        (stream, self.judged)
    }
}

/// A connection to an origin as a stream of bytes.
#[derive(Debug)]
pub(in crate::client) enum OriginStream {
    Tunnel(FlowStream),
    Direct(
        TcpStream,
        #[expect(dead_code, reason = "held while the flow is open")] OwnedSemaphorePermit,
    ),
}

impl Pipe for OriginStream {
    fn fail(self: Box<Self>, _: io::ErrorKind) {
        match *self {
            // Dropped, it aborts the flow.
            Self::Tunnel(stream) => drop(stream),
            Self::Direct(socket, _) => Endpoint::Tcp(socket).reset(),
        }
    }
}

impl AsyncRead for OriginStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Direct(stream, _) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for OriginStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Direct(stream, _) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Direct(stream, _) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tunnel(stream) => stream.is_write_vectored(),
            Self::Direct(stream, _) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_flush(cx),
            Self::Direct(stream, _) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Direct(stream, _) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
