//! Connecting to a server: name, address race, TCP, proxy, TLS, WebSocket; for datagrams, where to send them.
//!
//! A name is resolved anew by the system each time. Its addresses are tried as RFC 8305
//! ("happy eyeballs") says: IPv6 and IPv4 in turn, the next one started when the last has failed
//! or has not answered for [`STAGGER`]; the first connection wins and the others are dropped. TLS and WebSocket
//! follow on the winner. One time-out bounds it all, and an error names what was tried and why
//! each attempt failed. Through a proxy ([`via`]) it is the proxy's name that is resolved here and its
//! addresses that are raced; the server's name is the proxy's to resolve.

use std::collections::VecDeque;
use std::fmt;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use thiserror::Error;
#[cfg(test)]
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::lane::{LaneStream, prepare_socket};
use super::outside::Outside;
use super::pool::Pool;
use super::tls::{ClientTls, ClientTlsError, Verify, speaks_no_tls};
use super::via::{self, ViaError};
use super::websocket;
use crate::config::address::{Host, LaneAddr};
use crate::config::{ProxyAddr, ProxyScheme, Via};

/// Connects to servers, each time anew.
#[derive(Clone, Debug)]
pub struct Dialer {
    tls: ClientTls,
    via: Option<Via>,
    /// How the certificate of a proxy is checked that speaks TLS.
    proxy_tls: Option<ClientTls>,
    outside: Outside,
}

impl Dialer {
    /// Dials servers themselves, and checks their certificates as `tls` does.
    pub fn new(tls: ClientTls) -> Self {
        Self {
            tls,
            via: None,
            proxy_tls: None,
            outside: Outside::default(),
        }
    }

    /// Leaves the host as `outside` says.
    #[must_use]
    pub fn leaving(self, outside: Outside) -> Self {
        Self { outside, ..self }
    }

    /// Returns how its sockets leave the host.
    pub fn outside(&self) -> &Outside {
        &self.outside
    }

    /// Dials through a proxy.
    ///
    /// The certificate of one that speaks TLS is checked by the system's authorities, since it is given a password.
    ///
    /// # Errors
    ///
    /// The system has no authorities, and they are needed.
    pub fn through(self, via: Via) -> Result<Self, ClientTlsError> {
        let proxy_tls = match via.proxy.scheme {
            ProxyScheme::Https => Some(ClientTls::new(&Verify::System)?),
            ProxyScheme::Http | ProxyScheme::Socks5 => None,
        };
        Ok(Self {
            via: Some(via),
            proxy_tls,
            ..self
        })
    }

    /// Connects to `addr` within `timeout`: by TCP, through the proxy if there is one, and by what its scheme says.
    ///
    /// # Errors
    ///
    /// What failed: the name, every address, the proxy, TLS, or the WebSocket.
    pub async fn dial(
        &self,
        addr: &LaneAddr,
        pool: &Arc<Pool>,
        timeout: Duration,
    ) -> Result<LaneStream, DialError> {
        let deadline = Instant::now() + timeout;
        let mut stream = match self.proxy_for(&addr.host) {
            Some(proxy) => self.dial_through(proxy, addr, deadline).await?,
            None => {
                let addresses = self.resolve(&addr.host, addr.port, deadline).await?;
                let connected = race(addresses, deadline, |to| self.outside.connect(to)).await;
                let (tcp, address) = connected.map_err(|attempts| DialError::Connect {
                    addr: addr.clone(),
                    attempts,
                })?;
                prepare_socket(&tcp).map_err(|source| DialError::Broken { address, source })?;
                LaneStream::Tcp(tcp)
            }
        };
        if addr.scheme.is_tls() {
            let address = stream.peer_addr().map_err(DialError::Gone)?;
            let tls = async {
                if addr.scheme.is_websocket() {
                    self.tls.connect_web(&addr.host, stream).await
                } else {
                    self.tls.connect(&addr.host, stream).await
                }
            };
            stream = match timeout_at(deadline, tls).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(source)) => {
                    return Err(DialError::Tls {
                        addr: addr.clone(),
                        address,
                        source,
                    });
                }
                Err(_elapsed) => {
                    return Err(DialError::TlsTimedOut {
                        addr: addr.clone(),
                        address,
                    });
                }
            };
        }
        if !addr.scheme.is_websocket() {
            return Ok(stream);
        }
        let authority = addr.authority();
        let asking = websocket::connect(stream, &authority, &addr.path, pool.clone());
        match timeout_at(deadline, asking).await {
            Ok(Ok(socket)) => Ok(LaneStream::WebSocket(Box::new(socket))),
            Ok(Err(source)) => Err(DialError::WebSocket {
                addr: addr.clone(),
                source,
            }),
            Err(_elapsed) => Err(DialError::WebSocketTimedOut { addr: addr.clone() }),
        }
    }

    /// Returns the proxy through which `host` is dialled.
    pub fn proxy_for(&self, host: &Host) -> Option<&ProxyAddr> {
        self.via.as_ref()?.proxy_for(host)
    }

    /// Returns where datagrams to `addr` may be sent, in the order to try, within `timeout`.
    ///
    /// # Errors
    ///
    /// The name cannot be resolved.
    pub async fn addresses(
        &self,
        addr: &LaneAddr,
        timeout: Duration,
    ) -> Result<Vec<SocketAddr>, DialError> {
        self.resolve(&addr.host, addr.port, Instant::now() + timeout)
            .await
    }

    /// Returns the addresses of `host` in the order in which they are to be tried.
    async fn resolve(
        &self,
        host: &Host,
        port: u16,
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, DialError> {
        let name = match host {
            Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, port)]),
            Host::Name(name) => name,
        };
        // Dropping the look-up frees nothing at once: the system's resolver runs to its own end on
        // a thread of the runtime's. It ends, and the next dial starts a new one.
        let found = match timeout_at(deadline, self.outside.resolve(name, port)).await {
            Ok(Ok(found)) => found,
            Ok(Err(source)) => {
                return Err(DialError::Resolve {
                    name: name.clone(),
                    source,
                });
            }
            Err(_elapsed) => return Err(DialError::ResolveTimedOut { name: name.clone() }),
        };
        if found.is_empty() {
            return Err(DialError::NoAddress { name: name.clone() });
        }
        Ok(interleave(found))
    }

    /// Asks a proxy for a connection to `addr`.
    async fn dial_through(
        &self,
        proxy: &ProxyAddr,
        addr: &LaneAddr,
        deadline: Instant,
    ) -> Result<LaneStream, DialError> {
        let addresses = self.resolve(&proxy.host, proxy.port, deadline).await?;
        let connected = race(addresses, deadline, |to| self.outside.connect(to)).await;
        let (tcp, address) = connected.map_err(|attempts| DialError::Proxy {
            proxy: proxy.to_string(),
            attempts,
        })?;
        prepare_socket(&tcp).map_err(|source| DialError::Broken { address, source })?;
        let failed = |source| DialError::Via {
            proxy: proxy.to_string(),
            addr: addr.clone(),
            source,
        };
        let asking = async {
            let mut stream = LaneStream::Tcp(tcp);
            if let Some(tls) = &self.proxy_tls {
                stream = tls.connect_web(&proxy.host, stream).await?;
            }
            via::ask(stream, proxy, &addr.host, addr.port).await
        };
        match timeout_at(deadline, asking).await {
            Ok(asked) => asked.map_err(failed),
            Err(_elapsed) => Err(DialError::ViaTimedOut {
                proxy: proxy.to_string(),
                addr: addr.clone(),
            }),
        }
    }
}

/// Why there is no connection to a server.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DialError {
    /// The name cannot be resolved.
    #[error("cannot resolve {name}: {source}")]
    Resolve {
        /// The name.
        name: String,
        /// What the system's resolver says.
        source: io::Error,
    },
    /// The resolver did not answer in time.
    #[error("cannot resolve {name}: no answer in time")]
    ResolveTimedOut {
        /// The name.
        name: String,
    },
    /// The name exists and has no address.
    #[error("cannot resolve {name}: it has no address")]
    NoAddress {
        /// The name.
        name: String,
    },
    /// No address could be connected to.
    #[error("cannot connect to {addr}: {attempts}{}", attempts.remedy())]
    Connect {
        /// What was dialled.
        addr: LaneAddr,
        /// Each address tried.
        attempts: Attempts,
    },
    /// The connection was lost right after it was made.
    #[error("connection to {address} lost: {source}")]
    Broken {
        /// The address connected to.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The proxy could not be connected to.
    #[error("cannot connect to the proxy {proxy}, which `via` names: {attempts}")]
    Proxy {
        /// The proxy.
        proxy: String,
        /// Each address tried.
        attempts: Attempts,
    },
    /// The proxy gave no connection.
    #[error("no way to {addr} through the proxy {proxy}: {source}")]
    Via {
        /// The proxy.
        proxy: String,
        /// What was dialled.
        addr: LaneAddr,
        /// What it says.
        source: ViaError,
    },
    /// The proxy did not answer in time.
    #[error("no way to {addr} through the proxy {proxy}: no answer in time")]
    ViaTimedOut {
        /// The proxy.
        proxy: String,
        /// What was dialled.
        addr: LaneAddr,
    },
    /// Datagrams were to go through a proxy.
    #[error("{addr} cannot be reached through a proxy, which carries no datagrams")]
    NoDatagrams {
        /// What was dialled.
        addr: LaneAddr,
    },
    /// The connection was lost before TLS began.
    #[error("the connection was lost: {0}")]
    Gone(io::Error),
    /// There is no WebSocket.
    #[error("no WebSocket at {addr}: {source}")]
    WebSocket {
        /// What was dialled.
        addr: LaneAddr,
        /// What came instead.
        source: websocket::ConnectError,
    },
    /// Nobody answered the request for the WebSocket in time.
    #[error("no WebSocket at {addr}: no answer in time")]
    WebSocketTimedOut {
        /// What was dialled.
        addr: LaneAddr,
    },
    /// The TLS handshake failed.
    #[error("no TLS with {addr} ({address}): {source}{}", other_scheme(source))]
    Tls {
        /// What was dialled.
        addr: LaneAddr,
        /// The address connected to.
        address: SocketAddr,
        /// What TLS says.
        source: io::Error,
    },
    /// The TLS handshake was not finished in time.
    #[error("no TLS with {addr} ({address}): no answer in time{OTHER_SCHEME}")]
    TlsTimedOut {
        /// What was dialled.
        addr: LaneAddr,
        /// The address connected to.
        address: SocketAddr,
    },
}

impl DialError {
    /// Returns whether nothing is known but that nobody answered.
    pub fn is_silence(&self) -> bool {
        match self {
            DialError::Connect { attempts, .. } => attempts
                .0
                .iter()
                .any(|(_, error)| matches!(error, AttemptError::TimedOut)),
            DialError::Resolve { .. }
            | DialError::ResolveTimedOut { .. }
            | DialError::NoAddress { .. }
            | DialError::Broken { .. }
            | DialError::Proxy { .. }
            | DialError::Via { .. }
            | DialError::ViaTimedOut { .. }
            | DialError::NoDatagrams { .. }
            | DialError::Gone(_)
            | DialError::WebSocket { .. }
            | DialError::WebSocketTimedOut { .. }
            | DialError::Tls { .. }
            | DialError::TlsTimedOut { .. } => false,
        }
    }
}

/// Adds what may be the matter where the other end speaks no TLS.
fn other_scheme(error: &io::Error) -> &'static str {
    if speaks_no_tls(error) {
        OTHER_SCHEME
    } else {
        ""
    }
}

/// The addresses that were tried, each with why it failed.
#[derive(Debug)]
pub struct Attempts(Vec<(SocketAddr, AttemptError)>);

impl Attempts {
    /// Returns the addresses in the order in which their attempts ended.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().map(|(address, _)| *address)
    }

    /// Returns whether somebody said that nothing listens.
    pub fn any_refused(&self) -> bool {
        self.0.iter().any(|(_, error)| match error {
            AttemptError::Failed(error) => error.kind() == io::ErrorKind::ConnectionRefused,
            AttemptError::TimedOut | AttemptError::NotTried => false,
        })
    }

    /// Returns what may be the matter where somebody said that nothing listens.
    fn remedy(&self) -> &'static str {
        if self.any_refused() {
            NOT_LISTENING
        } else {
            ""
        }
    }
}

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (address, error)) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{address}: {error}")?;
        }
        Ok(())
    }
}

#[derive(Debug)]
enum AttemptError {
    Failed(io::Error),
    TimedOut,
    NotTried,
}

impl fmt::Display for AttemptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttemptError::Failed(error) => error.fmt(f),
            AttemptError::TimedOut => f.write_str("no answer in time"),
            AttemptError::NotTried => f.write_str("not tried, the time was up"),
        }
    }
}

/// Orders addresses by family in turn, starting with the family that the resolver put first, without repetitions,
/// [`MAX_ATTEMPTS`] at most (RFC 8305, section 4).
fn interleave(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (mut turn, mut other): (VecDeque<_>, VecDeque<_>) = found
        .into_iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let mut ordered = Vec::new();
    while let Some(address) = turn.pop_front().or_else(|| other.pop_front()) {
        if !ordered.contains(&address) {
            ordered.push(address);
        }
        std::mem::swap(&mut turn, &mut other);
    }
    ordered.truncate(MAX_ATTEMPTS);
    ordered
}

/// Connects to the first of `addresses` that answers, by whatever `connect` does.
///
/// # Errors
///
/// What became of each address.
pub async fn race<F, C, T>(
    addresses: Vec<SocketAddr>,
    deadline: Instant,
    connect: C,
) -> Result<(T, SocketAddr), Attempts>
where
    C: Fn(SocketAddr) -> F,
    F: Future<Output = io::Result<T>>,
{
    let mut waiting: VecDeque<SocketAddr> = addresses.into();
    let mut running = FuturesUnordered::new();
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut attempts: Vec<(SocketAddr, AttemptError)> = Vec::new();
    let mut next_at = Instant::now();
    loop {
        let start_next = async {
            if waiting.is_empty() {
                pending::<()>().await;
            }
            sleep_until(next_at).await;
        };
        tokio::select! {
            biased;
            Some((address, result)) = running.next() => match result {
                Ok(connected) => return Ok((connected, address)),
                Err(error) => {
                    attempts.push((address, AttemptError::Failed(error)));
                    // A failure leaves nothing to wait for (RFC 8305, section 5).
                    next_at = Instant::now();
                }
            },
            () = sleep_until(deadline) => break,
            () = start_next => {
                if let Some(address) = waiting.pop_front() {
                    tried.push(address);
                    let attempt = connect(address);
                    running.push(async move { (address, attempt.await) });
                    next_at = Instant::now() + STAGGER;
                }
            }
        }
        if running.is_empty() && waiting.is_empty() {
            break;
        }
    }
    for address in tried {
        if !attempts.iter().any(|(failed, _)| *failed == address) {
            attempts.push((address, AttemptError::TimedOut));
        }
    }
    attempts.extend(
        waiting
            .into_iter()
            .map(|address| (address, AttemptError::NotTried)),
    );
    Err(Attempts(attempts))
}

/// A `tcp://` port says nothing to a TLS hello, and then closes.
const OTHER_SCHEME: &str = " (a tcp:// port, perhaps?)";

/// Nothing listens at a port that refuses.
const NOT_LISTENING: &str =
    " (either the server is down, or its `listen` has not this scheme, address and port)";

/// How long an attempt may stay unanswered before the next one starts beside it: the
/// "Connection Attempt Delay" of RFC 8305, section 8.
pub const STAGGER: Duration = Duration::from_millis(250);

/// How many addresses of one name are tried. More than a dozen at one stagger each would
/// outlast any sensible time-out.
const MAX_ATTEMPTS: usize = 12;

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;

    use super::*;
    use crate::config::address::Scheme;
    use crate::io::listen::Listener;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect()
    }

    fn lane_addr(scheme: Scheme, host: Host, port: u16) -> LaneAddr {
        LaneAddr::new(scheme, host, port)
    }

    /// Dials for a minute at most.
    async fn dial(addr: &LaneAddr) -> Result<LaneStream, DialError> {
        let tls = ClientTls::new(&Verify::Unchecked).expect("needs nothing");
        let pool = Pool::new("test", 4, 4);
        let dialer = Dialer::new(tls);
        dialer.dial(addr, &pool, Duration::from_secs(60)).await
    }

    fn runtime() -> tokio::runtime::Builder {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all();
        builder
    }

    /// Runs on virtual time: it passes only while everything waits.
    fn on_virtual_time<F: Future>(future: F) -> F::Output {
        let runtime = runtime().start_paused(true).build();
        runtime.expect("a runtime").block_on(future)
    }

    fn on_real_time<F: Future>(future: F) -> F::Output {
        runtime().build().expect("a runtime").block_on(future)
    }

    #[test]
    fn families_take_turns_from_the_one_the_system_prefers() {
        let found = addresses(&[
            "[::1]:1",
            "[::2]:1",
            "[::3]:1",
            "1.1.1.1:1",
            "2.2.2.2:1",
            "1.1.1.1:1",
        ]);
        assert_eq!(
            interleave(found),
            addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"])
        );
        let found = addresses(&["1.1.1.1:1", "2.2.2.2:1", "[::1]:1"]);
        assert_eq!(
            interleave(found),
            addresses(&["1.1.1.1:1", "[::1]:1", "2.2.2.2:1"])
        );
    }

    #[test]
    fn name_with_many_addresses_is_tried_at_a_dozen() {
        let found = (0..100)
            .map(|i| SocketAddr::from((Ipv4Addr::new(10, 0, 0, i), 1)))
            .collect();
        assert_eq!(interleave(found).len(), MAX_ATTEMPTS);
    }

    #[test]
    fn silent_address_delays_the_next_by_one_stagger() {
        on_virtual_time(async {
            let started = Instant::now();
            let deadline = started + Duration::from_secs(10);
            let order = addresses(&["[::1]:443", "127.0.0.1:443"]);
            let connect = async |address: SocketAddr| {
                if address.is_ipv6() {
                    pending::<()>().await;
                }
                Ok(address)
            };
            let won = race(order, deadline, connect).await;
            let (connected, address) = won.expect("one of them answers");
            assert_eq!(connected, address);
            assert!(address.is_ipv4());
            let waited = started.elapsed();
            assert!(waited >= STAGGER && waited < STAGGER * 2, "{waited:?}");
        });
    }

    #[test]
    fn slow_first_address_still_wins_over_a_slower_second() {
        on_virtual_time(async {
            let deadline = Instant::now() + Duration::from_secs(10);
            let order = addresses(&["[::1]:443", "127.0.0.1:443"]);
            let connect = async |address: SocketAddr| {
                tokio::time::sleep(STAGGER * 2).await;
                Ok(address)
            };
            let won = race(order, deadline, connect).await;
            assert!(won.expect("both answer").1.is_ipv6());
        });
    }

    #[test]
    fn refused_address_is_followed_at_once() {
        on_virtual_time(async {
            let started = Instant::now();
            let deadline = started + Duration::from_secs(10);
            let order = addresses(&["[::1]:443", "127.0.0.1:443"]);
            let connect = async |address: SocketAddr| match address {
                SocketAddr::V6(_) => Err(io::ErrorKind::ConnectionRefused.into()),
                SocketAddr::V4(_) => Ok(()),
            };
            race(order, deadline, connect)
                .await
                .expect("the second answers");
            assert!(started.elapsed() < STAGGER);
        });
    }

    #[test]
    fn error_names_every_address_and_why_it_failed() {
        on_virtual_time(async {
            let deadline = Instant::now() + STAGGER + STAGGER / 2;
            let order = addresses(&["[::1]:443", "127.0.0.1:443", "[::2]:443", "[::3]:443"]);
            let tried = RefCell::new(Vec::new());
            let connect = async |address: SocketAddr| {
                tried.borrow_mut().push(address);
                match address {
                    SocketAddr::V6(_) => pending::<io::Result<()>>().await,
                    SocketAddr::V4(_) => Err(io::ErrorKind::ConnectionRefused.into()),
                }
            };
            let attempts = race(order, deadline, connect)
                .await
                .expect_err("nobody answers");
            let addr = lane_addr(Scheme::Tcp, Host::Name("vpn.example".to_owned()), 443);
            let error = DialError::Connect { addr, attempts };
            assert_eq!(
                error.to_string(),
                "cannot connect to tcp://vpn.example:443: \
                 127.0.0.1:443: connection refused; \
                 [::1]:443: no answer in time; \
                 [::2]:443: no answer in time; \
                 [::3]:443: not tried, the time was up \
                 (either the server is down, or its `listen` has not this scheme, address and port)"
            );
            assert_eq!(
                tried.into_inner(),
                addresses(&["[::1]:443", "127.0.0.1:443", "[::2]:443"])
            );
        });
    }

    #[test]
    fn black_holed_address_does_not_keep_the_other_from_winning() {
        on_real_time(async {
            // A listener whose backlog is full drops every further SYN: a black hole.
            let hole = socket2::Socket::new(
                socket2::Domain::IPV4,
                socket2::Type::STREAM,
                Some(socket2::Protocol::TCP),
            )
            .expect("a socket");
            hole.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
                .expect("a free port");
            hole.listen(0).expect("listens");
            let silent = hole.local_addr().expect("bound").as_socket().expect("inet");
            let mut fill = Vec::new();
            loop {
                let connect = TcpStream::connect(silent);
                match tokio::time::timeout(Duration::from_millis(300), connect).await {
                    Ok(filling) => fill.push(filling.expect("the backlog takes it")),
                    Err(_elapsed) => break,
                }
            }
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
            let answering = listener.local_addr().expect("bound");
            let deadline = Instant::now() + Duration::from_secs(60);
            let (_tcp, address) = race(vec![silent, answering], deadline, TcpStream::connect)
                .await
                .expect("one of them answers");
            assert_eq!(address, answering);
        });
    }

    #[test]
    fn tcp_lane_is_dialled_by_name_and_by_address() {
        on_real_time(async {
            let listener =
                Listener::bind("127.0.0.1:0".parse().expect("an address"), &[]).expect("free");
            let port = listener.local_addr().port();
            let permits = Arc::new(tokio::sync::Semaphore::new(4));
            for host in [
                Host::Name("localhost".to_owned()),
                Host::Ip(Ipv4Addr::LOCALHOST.into()),
            ] {
                let addr = lane_addr(Scheme::Tcp, host, port);
                let (stream, accepted) = tokio::join!(dial(&addr), listener.accept(&permits));
                let stream = stream.expect("it listens");
                assert!(!stream.is_tls());
                assert!(stream.tcp().nodelay().expect("an open socket"));
                let accepted = accepted.expect("the semaphore is open");
                let near = stream.tcp().local_addr().expect("connected");
                assert_eq!(accepted.peer, near);
            }
        });
    }

    #[test]
    fn refused_port_is_said_with_its_address() {
        on_real_time(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
            let port = listener.local_addr().expect("bound").port();
            drop(listener);
            let addr = lane_addr(Scheme::Tls, Host::Ip(Ipv4Addr::LOCALHOST.into()), port);
            let error = match dial(&addr).await {
                Ok(_) => panic!("nobody listens there"),
                Err(error) => error.to_string(),
            };
            assert!(
                error.contains(&format!("127.0.0.1:{port}: Connection refused")),
                "{error}"
            );
        });
    }

    #[test]
    fn name_that_does_not_exist_is_said() {
        on_real_time(async {
            // A label of 70 characters is no legal name: no resolver is asked about it.
            let name = format!("{}.invalid", "x".repeat(70));
            let addr = lane_addr(Scheme::Tcp, Host::Name(name.clone()), 1);
            match dial(&addr).await {
                Err(DialError::Resolve { name: said, .. }) => assert_eq!(said, name),
                Err(other) => panic!("{other}"),
                Ok(_) => panic!("there is no such name"),
            }
        });
    }

    #[test]
    fn server_that_never_answers_the_tls_handshake_times_out() {
        on_real_time(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
            let port = listener.local_addr().expect("bound").port();
            let addr = lane_addr(Scheme::Tls, Host::Ip(Ipv4Addr::LOCALHOST.into()), port);
            let silence = async {
                let (peer, _) = listener.accept().await.expect("somebody dials");
                peer.readable().await.expect("open");
                // The hello is there; from here on only time passes.
                tokio::time::pause();
                tokio::time::advance(Duration::from_secs(61)).await;
                peer
            };
            let (result, _peer) = tokio::join!(dial(&addr), silence);
            let error = result.err().expect("nobody answers");
            assert!(matches!(error, DialError::TlsTimedOut { .. }), "{error}");
            assert!(error.to_string().ends_with(OTHER_SCHEME), "{error}");
        });
    }

    #[test]
    fn server_that_speaks_no_tls_is_said() {
        on_real_time(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
            let port = listener.local_addr().expect("bound").port();
            let addr = lane_addr(Scheme::Tls, Host::Ip(Ipv4Addr::LOCALHOST.into()), port);
            let answer = async {
                use tokio::io::AsyncWriteExt;
                let (mut peer, _) = listener.accept().await.expect("somebody dials");
                peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    .await
                    .expect("open");
                peer
            };
            let (result, _peer) = tokio::join!(dial(&addr), answer);
            let error = result.err().expect("that was no TLS");
            assert!(matches!(error, DialError::Tls { .. }), "{error}");
            assert!(error.to_string().ends_with(OTHER_SCHEME), "{error}");
        });
    }
}
