//! TCP flows by sockets of this host.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy_bidirectional_with_sizes};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tracing::debug;

use super::Direct;
use crate::client::ports;
use crate::client::proxy::Counter;
use crate::client::rules::Judged;
use crate::client::tunnel::ConnectError;
use crate::io::relay::Fate;

impl Direct {
    /// Connects to `remote`.
    ///
    /// # Errors
    /// It cannot be reached, or [`MAX_FLOWS`] are open.
    pub async fn connect(&self, remote: SocketAddr) -> Result<DirectFlow, ConnectError> {
        let Ok(permit) = Arc::clone(&self.flows).try_acquire_owned() else {
            self.stats.too_many.add();
            return Err(ConnectError::TooManyFlows);
        };
        let failed = |error| {
            self.stats.failed.add();
            error
        };
        let socket = match timeout(CONNECT_TIMEOUT, self.outside.connect(remote)).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => return Err(failed(connect_error(&error))),
            Err(_elapsed) => return Err(failed(ConnectError::TimedOut)),
        };
        ports::prepare(&socket);
        self.stats.connected.add();
        Ok(DirectFlow {
            socket,
            remote,
            stats: Arc::clone(&self.stats),
            permit,
        })
    }
}

/// A connection to an origin beside the tunnel.
#[derive(Debug)]
pub struct DirectFlow {
    socket: TcpStream,
    remote: SocketAddr,
    stats: Arc<DirectStats>,
    permit: OwnedSemaphorePermit,
}

impl DirectFlow {
    /// Returns the address that it is connected to.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Moves bytes between the application and the origin until both have ended, one has failed, or the rules end it;
    /// `early` is what the application has sent already.
    pub(in crate::client) async fn relay(
        self,
        application: impl Application,
        early: &[u8],
        judged: &Judged,
    ) -> Fate {
        let Self {
            socket,
            stats,
            permit,
            ..
        } = self;
        let mut pair = Pair {
            application,
            origin: socket,
            in_order: false,
        };
        let copied = async {
            pair.origin.write_all(early).await?;
            copy_bidirectional_with_sizes(&mut pair.application, &mut pair.origin, BUFFER, BUFFER)
                .await
        };
        tokio::select! {
            copied = copied => match copied {
                Ok(_bytes) => {
                    pair.in_order = true;
                    stats.finished.add();
                }
                Err(error) => {
                    debug!(%error, "direct flow broken");
                    stats.broken.add();
                }
            },
            () = judged.overruled() => stats.overruled.add(),
        }
        drop(permit);
        if pair.in_order {
            Fate::Finished
        } else {
            Fate::Cut
        }
    }

    /// Gives the connection to somebody who looks at the bytes, and what counts it as open.
    pub fn into_parts(self) -> (TcpStream, OwnedSemaphorePermit) {
        (self.socket, self.permit)
    }
}

/// Two sockets of one flow: unless it has ended in order, each end sees a reset, as it would without us.
struct Pair<A: Application> {
    application: A,
    origin: TcpStream,
    in_order: bool,
}

impl<A: Application> Drop for Pair<A> {
    fn drop(&mut self) {
        if self.in_order {
            return;
        }
        self.application.cut();
        self.origin.cut();
    }
}

/// A socket of whoever has asked for a connection.
pub(in crate::client) trait Application: AsyncRead + AsyncWrite + Unpin {
    /// Has the other end see a reset when this one is dropped, or what comes next to one.
    fn cut(&self);
}

impl Application for TcpStream {
    fn cut(&self) {
        let socket = SockRef::from(self);
        // A zero linger makes close(2) send RST; where it cannot be set, a plain close is the next best thing.
        if socket.set_linger(Some(Duration::ZERO)).is_err() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Application for UnixStream {
    fn cut(&self) {
        // Also where another process has a copy of the descriptor, which a plain close would leave open.
        let _gone = SockRef::from(self).shutdown(Shutdown::Both);
    }
}

/// What went beside the tunnel.
#[derive(Debug, Default)]
pub struct DirectStats {
    /// TCP flows that were connected.
    pub connected: Counter,
    /// Attempts that failed.
    pub failed: Counter,
    /// Attempts that were refused because [`MAX_FLOWS`] were open.
    pub too_many: Counter,
    /// Flows that ended with both halves closed in order.
    pub finished: Counter,
    /// Flows that ended because a socket failed.
    pub broken: Counter,
    /// Flows that other rules ended.
    pub overruled: Counter,
}

/// What a proxy tells its application about a connection that this host could not open.
fn connect_error(error: &io::Error) -> ConnectError {
    let is = |kind| error.kind() == kind;
    if is(io::ErrorKind::ConnectionRefused) || is(io::ErrorKind::ConnectionReset) {
        ConnectError::Refused
    } else if is(io::ErrorKind::TimedOut) {
        ConnectError::TimedOut
    } else if is(io::ErrorKind::NetworkUnreachable) {
        ConnectError::NetworkUnreachable
    } else if matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL)
    ) {
        ConnectError::TooManyFlows
    } else {
        ConnectError::Unreachable
    }
}

/// TCP flows of one client beside the tunnel: at [`BUFFER`] each way, 64 MiB of buffers.
pub const MAX_FLOWS: usize = 2048;

/// Bytes copied at once, each way: a quarter of a pipe's worth, so that many flows stay cheap.
pub const BUFFER: usize = 16 * 1024;

/// How long the handshake of a flow may take: as long as through the tunnel.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::client::rules::{InForce, Rules, Way, listed};

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    /// A flow to an origin, and that.
    async fn flow(direct: &Direct) -> (DirectFlow, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (flow, origin) = tokio::join!(direct.connect(address), listener.accept());
        (flow.unwrap(), origin.unwrap().0)
    }

    fn judged(rules: &InForce, flow: &DirectFlow) -> Judged {
        Judged::new(rules, None, flow.remote(), Way::Direct)
    }

    #[tokio::test]
    async fn bytes_go_both_ways_those_sent_ahead_first_and_both_halves_end() {
        let direct = Direct::new();
        let (flow, mut origin) = flow(&direct).await;
        let rules = InForce::new(listed(&["direct 127.0.0.0/8"])).1;
        let judged = judged(&rules, &flow);
        let (near, mut application) = pair().await;
        let relay = tokio::spawn(async move { flow.relay(near, b"early ", &judged).await });
        application.write_all(b"bytes").await.unwrap();
        application.shutdown().await.unwrap();
        let mut got = String::new();
        origin.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "early bytes");
        origin.write_all(b"answer").await.unwrap();
        drop(origin);
        got.clear();
        application.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "answer");
        relay.await.unwrap();
        assert_eq!(direct.stats().finished.value(), 1);
        assert_eq!(direct.flows.available_permits(), MAX_FLOWS);
    }

    #[tokio::test]
    async fn reset_at_one_end_is_a_reset_at_the_other() {
        let direct = Direct::new();
        let (flow, origin) = flow(&direct).await;
        let rules = InForce::new(listed(&["direct 127.0.0.0/8"])).1;
        let judged = judged(&rules, &flow);
        let (near, mut application) = pair().await;
        let relay = tokio::spawn(async move { flow.relay(near, b"", &judged).await });
        SockRef::from(&origin)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(origin);
        let error = application.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        relay.await.unwrap();
        assert_eq!(direct.stats().broken.value(), 1);
    }

    #[tokio::test]
    async fn rules_that_say_otherwise_reset_both_ends_and_others_neither() {
        let direct = Direct::new();
        let (flow, mut origin) = flow(&direct).await;
        let (replace, rules) = InForce::new(listed(&["direct 127.0.0.0/8"]));
        let judged = judged(&rules, &flow);
        let (near, mut application) = pair().await;
        let relay = tokio::spawn(async move { flow.relay(near, b"", &judged).await });
        replace.put(listed(&["block 10.0.0.0/8", "direct 127.0.0.1"]));
        application.write_all(b"on").await.unwrap();
        let mut got = [0; 2];
        origin.read_exact(&mut got).await.unwrap();
        replace.put(Rules::default());
        for end in [&mut application, &mut origin] {
            let error = end.read(&mut got).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        relay.await.unwrap();
        assert_eq!(direct.stats().overruled.value(), 1);
    }

    #[tokio::test]
    async fn flows_are_bounded_and_failures_say_what_they_are() {
        let direct = Direct {
            flows: Arc::new(tokio::sync::Semaphore::new(1)),
            ..Direct::new()
        };
        let closed = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        let refused = direct.connect(closed).await.map(drop);
        assert_eq!(refused, Err(ConnectError::Refused));
        let (flow, _origin) = flow(&direct).await;
        let refused = direct.connect(closed).await.map(drop);
        assert_eq!(refused, Err(ConnectError::TooManyFlows));
        drop(flow);
        let refused = direct.connect(closed).await.map(drop);
        assert_eq!(refused, Err(ConnectError::Refused));
        let stats = direct.stats();
        let counted = [&stats.connected, &stats.failed, &stats.too_many].map(Counter::value);
        assert_eq!(counted, [1, 2, 1]);
    }
}
