//! Accepts connections and finds out which protocol they speak.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::auth::Credentials;
use super::stats::ProxyStats;
use super::{http, socks, socks_client};
use crate::client::direct::Direct;
use crate::client::ports::{self, ACCEPT_PAUSE, is_exhaustion};
use crate::client::resolve::Resolver;
use crate::client::rules::InForce;
use crate::client::tunnel::Tunnel;

/// What the proxy is told.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProxySettings {
    /// What clients must present, if anything.
    pub credentials: Option<Credentials>,
    /// Connections that the proxy itself holds at once: those that wait for a flow, plain
    /// HTTP, and control connections of UDP relays. Attached flows are not among them.
    pub max_connections: usize,
    /// Connections at once that have not said yet what they want.
    pub max_handshakes: usize,
    /// How long a connection may take to say what it wants.
    pub handshake_timeout: Duration,
    /// How long an HTTP connection may be idle, or take for the head of a later request.
    pub idle_timeout: Duration,
    /// Where requests go.
    pub rules: InForce,
    /// What opens those that go directly.
    pub direct: Direct,
    /// Where the proxy counts.
    pub stats: Arc<ProxyStats>,
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            credentials: None,
            max_connections: 8192,
            max_handshakes: 2048,
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            rules: InForce::default(),
            direct: Direct::new(),
            stats: Arc::new(ProxyStats::default()),
        }
    }
}

/// What a connection's task needs.
#[derive(Debug)]
pub(in crate::client) struct Context {
    pub(in crate::client) settings: ProxySettings,
    pub(in crate::client) tunnel: Tunnel,
    pub(in crate::client) resolver: Resolver,
}

/// Serves the proxy on `listener` until `stop` is cancelled, then closes what it holds.
///
/// Attached flows live on: they are the driver's.
pub async fn serve(
    listener: TcpListener,
    settings: ProxySettings,
    tunnel: Tunnel,
    resolver: Resolver,
    stop: CancellationToken,
) {
    let connections = Arc::new(Semaphore::new(settings.max_connections));
    let handshakes = Arc::new(Semaphore::new(settings.max_handshakes));
    let context = Arc::new(Context {
        settings,
        tunnel,
        resolver,
    });
    let stats = &context.settings.stats;
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(done) = tasks.join_next() => {
                if done.is_err() {
                    stats.panicked.add();
                    warn!("a proxy connection ended by a panic");
                }
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_exhaustion(&error) => {
                stats.accept_paused.add();
                warn!(%error, "accepting paused");
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
        stats.accepted.add();
        let permits = Arc::clone(&connections)
            .try_acquire_owned()
            .and_then(|connection| {
                let handshake = Arc::clone(&handshakes).try_acquire_owned()?;
                Ok((connection, handshake))
            });
        match permits {
            Ok((connection, handshake)) => {
                let context = Arc::clone(&context);
                tasks.spawn(async move {
                    converse(stream, peer, &context, handshake).await;
                    drop(connection);
                });
            }
            Err(_full) => {
                stats.refused_full.add();
                refuse(&stream);
            }
        }
    }
    tasks.shutdown().await;
    debug!(proxy = ?context.settings.stats, "counters");
}

/// Sniffs the protocol and serves it.
async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    context: &Arc<Context>,
    handshake: OwnedSemaphorePermit,
) {
    let settings = &context.settings;
    ports::prepare(&stream);
    let mut first = [0];
    let first = match timeout(settings.handshake_timeout, stream.peek(&mut first)).await {
        Ok(Ok(1)) => first[0],
        Ok(Ok(_) | Err(_)) => return settings.stats.client_gone.add(),
        Err(_elapsed) => return settings.stats.handshake_timed_out.add(),
    };
    match first {
        socks::VERSION5 | socks::VERSION4 => {
            socks_client::serve(stream, peer, context, handshake).await;
        }
        _ => http::serve(stream, context, handshake).await,
    }
}

/// Says "busy" in the client's protocol, if it has spoken already, without waiting.
fn refuse(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    // Peeking would need an uninitialised buffer; the byte is not needed afterwards.
    let mut first = [0];
    let Ok(1) = (&*socket).read(&mut first) else {
        return;
    };
    let answer: &[u8] = match first[0] {
        // No method is acceptable: the only "no" there is before the request.
        socks::VERSION5 => &[socks::VERSION5, 0xff],
        socks::VERSION4 => &[0, 0x5b, 0, 0, 0, 0, 0, 0],
        _ => http::BUSY,
    };
    // A fresh socket has room for these few bytes; if not, the client gets a bare close.
    let _refused = (&*socket).write(answer);
}
