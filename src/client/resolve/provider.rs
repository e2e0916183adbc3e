//! Lends the tunnel to the DNS library as its network.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{DnsUdpSocket, RuntimeProvider, TokioHandle, TokioTime};

use crate::client::tunnel::{ConnectError, FlowStream, Tunnel, UdpPort};
use crate::io::outside::within;

/// Opens the DNS library's sockets inside the tunnel.
#[derive(Clone)]
pub(in crate::client) struct TunnelRuntime {
    tunnel: Tunnel,
    handle: TokioHandle,
    /// Whether the last port could not be bound because the tunnel is down: the library
    /// does not pass the reason on.
    down: Arc<AtomicBool>,
}

impl TunnelRuntime {
    pub(in crate::client) fn new(tunnel: Tunnel) -> Self {
        Self {
            tunnel,
            down: Arc::default(),
            handle: TokioHandle::default(),
        }
    }

    /// Whether the last port could not be had because the tunnel is down.
    pub(in crate::client) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }
}

impl RuntimeProvider for TunnelRuntime {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = TunnelUdp;
    type Tcp = AsyncIoTokioAsStd<FlowStream>;

    fn create_handle(&self) -> TokioHandle {
        self.handle.clone()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        _bind: Option<SocketAddr>,
        limit: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        let tunnel = self.tunnel.clone();
        let connect = async move {
            let flow = tunnel.connect(server).await.map_err(io::Error::other)?;
            Ok(flow.into_stream())
        };
        Box::pin(within(limit.unwrap_or(super::LOOKUP_LIMIT), connect))
    }

    fn bind_udp(
        &self,
        _local: SocketAddr,
        _server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Udp>>>> {
        let Self { tunnel, down, .. } = self.clone();
        Box::pin(async move {
            // The netstack chooses the port, at random.
            let bound = tunnel.bind_udp().await;
            let is_down = matches!(bound, Err(ConnectError::TunnelDown(_)));
            down.store(is_down, Ordering::Relaxed);
            bound.map(TunnelUdp).map_err(io::Error::other)
        })
    }
}

/// Returns what the tunnel said, if it is at the bottom of an IO error.
pub(in crate::client) fn connect_error(error: &io::Error) -> Option<ConnectError> {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref())
        .copied()
}

/// A UDP port of the inner address.
pub(in crate::client) struct TunnelUdp(UdpPort);

impl DnsUdpSocket for TunnelUdp {
    type Time = TokioTime;

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        self.0.poll_recv_from(cx, buf)
    }

    fn poll_send_to(
        &self,
        _cx: &mut Context<'_>,
        buf: &[u8],
        target: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        match self.0.try_send_to(buf, target) {
            // Lost as any datagram may be; the query is repeated.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Ready(Ok(buf.len())),
            outcome => Poll::Ready(outcome),
        }
    }
}
