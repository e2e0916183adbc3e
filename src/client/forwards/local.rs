//! `-L` over TCP and Unix sockets: whoever connects here reaches a host beyond the server.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::counters::Counters;
use crate::client::ports::{self, ACCEPT_PAUSE, is_exhaustion};
use crate::client::resolve::{Host, Resolver};
use crate::io::relay::Endpoint;
use crate::io::unix;

/// A port or socket here that is listened on.
#[derive(Debug)]
pub(super) enum Near {
    Tcp(TcpListener),
    Unix(unix::Listener),
}

impl Near {
    /// Listens on a TCP port.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub(super) fn tcp(address: SocketAddr) -> io::Result<Self> {
        ports::listen(address).map(Self::Tcp)
    }

    /// Returns the port that it was given.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    async fn accept(&self) -> io::Result<Endpoint> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                ports::prepare(&stream);
                Ok(Endpoint::Tcp(stream))
            }
            Self::Unix(listener) => listener.accept().await.map(Endpoint::Unix),
        }
    }
}

/// Serves those who connect to `near` until `stop`.
pub(super) async fn serve(
    near: Near,
    host: Host,
    port: u16,
    resolver: Resolver,
    counters: Arc<Counters>,
    stop: CancellationToken,
) {
    let pending = Arc::new(Semaphore::new(MAX_PENDING));
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(done) = tasks.join_next() => {
                if done.is_err() {
                    counters.refuse("a fault of the client");
                    warn!("a forwarded connection ended by a panic");
                }
                continue;
            }
            accepted = near.accept() => accepted,
        };
        let endpoint = match accepted {
            Ok(endpoint) => endpoint,
            Err(error) if is_exhaustion(&error) => {
                counters.refuse(&error);
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = sleep(ACCEPT_PAUSE) => continue,
                }
            }
            // The connection went away before it was accepted.
            Err(error) => {
                debug!(%error, "accept failed");
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&pending).try_acquire_owned() else {
            counters.refuse("too many connections begin at once");
            endpoint.reset();
            continue;
        };
        let (resolver, counters, host) = (resolver.clone(), Arc::clone(&counters), host.clone());
        tasks.spawn(open(endpoint, host, port, resolver, counters, permit));
    }
    tasks.shutdown().await;
}

async fn open(
    endpoint: Endpoint,
    host: Host,
    port: u16,
    resolver: Resolver,
    counters: Arc<Counters>,
    _permit: OwnedSemaphorePermit,
) {
    match resolver.connect(&host, port).await {
        Ok(flow) => flow.attach_watched(endpoint, counters.open(), None),
        Err(error) => {
            counters.refuse(error);
            endpoint.reset();
        }
    }
}

/// Connections of one forward that do not stand yet: a browser's start, or a load test's.
pub const MAX_PENDING: usize = 2048;
