//! Connecting to a server: name, address race, TCP, TLS.
//!
//! A name is resolved anew by the system each time. Its addresses are tried as RFC 8305
//! ("happy eyeballs") says: IPv6 and IPv4 in turn, the next one started when the last has failed
//! or has not answered for [`STAGGER`]; the first connection wins and the others are dropped. TLS
//! follows on the winner. One time-out bounds it all, and an error names what was tried and why
//! each attempt failed.

use std::collections::VecDeque;
use std::fmt;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use thiserror::Error;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::lane::{LaneStream, prepare_socket};
use super::tls::ClientTls;
use crate::config::address::{Host, LaneAddr, Scheme};

/// Connects to `addr` within `timeout`.
///
/// # Errors
///
/// What failed: the name, every address, or the TLS handshake.
pub async fn dial(
    addr: &LaneAddr,
    tls: &ClientTls,
    timeout: Duration,
) -> Result<LaneStream, DialError> {
    let deadline = Instant::now() + timeout;
    let addresses = resolve(&addr.host, addr.port, deadline).await?;
    let (tcp, address) = race(addresses, addr, deadline, TcpStream::connect).await?;
    let broken = |source| DialError::Broken { address, source };
    prepare_socket(&tcp).map_err(broken)?;
    match addr.scheme {
        Scheme::Tcp => Ok(LaneStream::Tcp(tcp)),
        Scheme::Tls => match timeout_at(deadline, tls.connect(&addr.host, tcp)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(DialError::Tls {
                addr: addr.clone(),
                address,
                source,
            }),
            Err(_elapsed) => Err(DialError::TlsTimedOut {
                addr: addr.clone(),
                address,
            }),
        },
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
    #[error("cannot connect to {addr}: {attempts}")]
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
    /// The TLS handshake failed.
    #[error("no TLS with {addr} ({address}): {source}")]
    Tls {
        /// What was dialled.
        addr: LaneAddr,
        /// The address connected to.
        address: SocketAddr,
        /// What TLS says.
        source: io::Error,
    },
    /// The TLS handshake was not finished in time.
    #[error("no TLS with {addr} ({address}): no answer in time")]
    TlsTimedOut {
        /// What was dialled.
        addr: LaneAddr,
        /// The address connected to.
        address: SocketAddr,
    },
}

/// The addresses that were tried, each with why it failed.
#[derive(Debug)]
pub struct Attempts(Vec<(SocketAddr, AttemptError)>);

impl Attempts {
    /// Returns the addresses in the order in which their attempts ended.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().map(|(address, _)| *address)
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

/// Returns the addresses of `host` in the order in which they are to be tried.
async fn resolve(host: &Host, port: u16, deadline: Instant) -> Result<Vec<SocketAddr>, DialError> {
    let name = match host {
        Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, port)]),
        Host::Name(name) => name,
    };
    // Dropping the look-up frees nothing at once: the system's resolver runs to its own end on
    // a thread of the runtime's. It ends, and the next dial starts a new one.
    let found = match timeout_at(deadline, lookup_host((name.as_str(), port))).await {
        Ok(Ok(found)) => found.collect::<Vec<_>>(),
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

/// Orders addresses by family in turn, starting with the family the system put first (its order
/// is that of RFC 6724), without repetitions, [`MAX_ATTEMPTS`] at most (RFC 8305, section 4).
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

/// Connects to the first of `addresses` that answers.
async fn race<F, C, T>(
    addresses: Vec<SocketAddr>,
    addr: &LaneAddr,
    deadline: Instant,
    connect: C,
) -> Result<(T, SocketAddr), DialError>
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
    Err(DialError::Connect {
        addr: addr.clone(),
        attempts: Attempts(attempts),
    })
}

/// How long an attempt may stay unanswered before the next one starts beside it: the
/// "Connection Attempt Delay" of RFC 8305, section 8.
pub const STAGGER: Duration = Duration::from_millis(250);

/// How many addresses of one name are tried. More than a dozen at one stagger each would
/// outlast any sensible time-out.
const MAX_ATTEMPTS: usize = 12;
