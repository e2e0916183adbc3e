//! Names to addresses, and addresses to flows, all through the tunnel.
//!
//! ```text
//!            ┌ literal ─────────────────────────────────────┐
//!  Host ─────┼ localhost (RFC 6761) ────────────────────────┼─▶ Race ─▶ Tunnel::connect
//!            └ name ─▶ cache ─▶ A ∥ AAAA over UDP, then TCP ┘   (RFC 8305)
//!                               to the session's name servers
//! ```
//!
//! No name is ever asked of the system's resolver here: that would leak it (what a [rule](super::rules) sends there goes
//! [beside the tunnel](super::direct)). Answers are kept
//! for as long as their TTL says, at most [`CACHE_ENTRIES`] of them, refusals too. A
//! lookup takes [`LOOKUP_LIMIT`] at most, whatever the name servers do.

mod host;
mod known;
mod names;
mod provider;
mod race;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

pub use host::{Host, HostError};
pub(super) use known::Known;
pub use names::{NameQueries, NameQuery, name_service};

use super::rules::Blocked;
use super::tunnel::{ConnectError, Flow, Tunnel};
use crate::wire::InnerConfig;
use provider::TunnelRuntime;
use race::{Family, Race};

/// Resolves names and connects to them, through the tunnel; cheap to clone.
#[derive(Clone)]
pub struct Resolver {
    tunnel: Tunnel,
    shared: Arc<Shared>,
}

struct Shared {
    /// The backend and the name servers it was built for.
    backend: Mutex<Option<(Vec<IpAddr>, Backend)>>,
    queries: Semaphore,
    /// Whether the backend's last socket failed because the tunnel is down.
    down: Arc<AtomicBool>,
}

type Backend = hickory_resolver::Resolver<TunnelRuntime>;

impl Resolver {
    /// Makes a resolver that asks the name servers of the session of `tunnel`.
    pub fn new(tunnel: Tunnel) -> Self {
        Self {
            tunnel,
            shared: Arc::new(Shared {
                backend: Mutex::new(None),
                queries: Semaphore::new(CONCURRENT_QUERIES),
                down: Arc::default(),
            }),
        }
    }

    /// Finds the addresses of `host`: IPv6 and IPv4 in turn, only families that the
    /// session has.
    ///
    /// # Errors
    ///
    /// Why there is not one.
    pub async fn lookup(&self, host: &Host) -> Result<Vec<IpAddr>, ResolveError> {
        let name = match host.known()? {
            Known::Addresses(addresses) => return Ok(addresses),
            Known::Ask(name) => name,
        };
        let deadline = Instant::now() + LOOKUP_LIMIT;
        let inner = self.configured(deadline).await?;
        let (v6, v4) = tokio::join!(
            self.ask(&inner, name, Family::V6, deadline),
            self.ask(&inner, name, Family::V4, deadline),
        );
        let error = match (&v6, &v4) {
            (Err(v6), Err(v4)) => v6.clone().or_more_telling(v4.clone()),
            (Ok(_), _) | (_, Ok(_)) => ResolveError::NoAddress,
        };
        let mut v6 = v6.unwrap_or_default().into_iter();
        let mut v4 = v4.unwrap_or_default().into_iter();
        let mut all = Vec::with_capacity(v6.len() + v4.len());
        loop {
            let (six, four) = (v6.next(), v4.next());
            if six.is_none() && four.is_none() {
                break;
            }
            all.extend(six.into_iter().chain(four));
        }
        if all.is_empty() { Err(error) } else { Ok(all) }
    }

    /// Connects to `host`, racing its addresses as RFC 8305 says.
    ///
    /// A and AAAA are asked in parallel; a first attempt starts with the first AAAA
    /// answer, or with A when AAAA is 50 ms later; another attempt joins every 250 ms and
    /// whenever one fails; the first that succeeds wins and the others are given up.
    ///
    /// # Errors
    ///
    /// The most telling of all failures: that of a name server only if no connection
    /// could be tried.
    pub async fn connect(&self, host: &Host, port: u16) -> Result<Flow, OriginError> {
        let connect = async {
            let attempt = |address| self.tunnel.connect(SocketAddr::new(address, port));
            self.race(host.known()?, |_| true, attempt).await
        };
        match timeout(CONNECT_LIMIT, connect).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(OriginError::Connect(ConnectError::TimedOut)),
        }
    }

    /// Races what `attempt` makes of each address of a host that `admit` lets pass, as [`Resolver::connect`] does.
    ///
    /// # Errors
    ///
    /// As there; that the name has no address where none is let pass.
    pub(super) async fn race<T, A>(
        &self,
        host: Known<'_>,
        admit: impl Fn(&IpAddr) -> bool,
        attempt: impl Fn(IpAddr) -> A,
    ) -> Result<T, OriginError>
    where
        A: Future<Output = Result<T, ConnectError>>,
    {
        let (mut race, name) = match host {
            Known::Addresses(mut addresses) => {
                addresses.retain(&admit);
                (Race::of_addresses(&addresses), None)
            }
            Known::Ask(name) => (Race::of_name(), Some(name)),
        };
        let mut lookups = FuturesUnordered::new();
        if let Some(name) = name {
            let deadline = Instant::now() + LOOKUP_LIMIT;
            let inner = Arc::new(self.configured(deadline).await?);
            for family in [Family::V6, Family::V4] {
                let inner = Arc::clone(&inner);
                lookups
                    .push(async move { (family, self.ask(&inner, name, family, deadline).await) });
            }
        }
        let mut attempts = FuturesUnordered::new();
        loop {
            let now = Instant::now();
            while let Some(address) = race.poll_attempt(now) {
                attempts.push(attempt(address));
            }
            if let Some(error) = race.failure() {
                return Err(error);
            }
            // A race that is not over waits for at least one of these.
            let wake_at = race.poll_timeout();
            tokio::select! {
                Some((family, answer)) = lookups.next() => {
                    let answer = answer.map(|mut addresses: Vec<IpAddr>| {
                        addresses.retain(&admit);
                        addresses
                    });
                    race.handle_answer(Instant::now(), family, answer);
                }
                Some(outcome) = attempts.next() => match outcome {
                    Ok(flow) => return Ok(flow),
                    Err(error) => race.handle_failure(error),
                },
                () = sleep_until(wake_at.unwrap_or(now)), if wake_at.is_some() => {}
            }
        }
    }

    /// Waits for the session's addresses and name servers.
    async fn configured(&self, deadline: Instant) -> Result<InnerConfig, ResolveError> {
        let mut inner = self.tunnel.inner();
        let configured = inner.wait_for(Option::is_some);
        match timeout_at(deadline, configured).await {
            Ok(Ok(inner)) => inner.clone().ok_or(ResolveError::TunnelDown),
            Ok(Err(_gone)) => Err(ResolveError::TunnelDown),
            Err(_elapsed) => Err(ResolveError::TunnelDown),
        }
    }

    async fn ask(
        &self,
        inner: &InnerConfig,
        name: &str,
        family: Family,
        deadline: Instant,
    ) -> Result<Vec<IpAddr>, ResolveError> {
        let (has, record) = match family {
            Family::V4 => (inner.v4.is_some(), RecordType::A),
            Family::V6 => (inner.v6.is_some(), RecordType::AAAA),
        };
        if !has {
            return Err(ResolveError::NoAddress);
        }
        let backend = self.backend(&inner.dns)?;
        let mut name = Name::from_ascii(name).map_err(|_| ResolveError::InvalidName)?;
        name.set_fqdn(true);
        let query = async {
            // Never closed: the permit is there once somebody else has finished.
            let _permit = self.shared.queries.acquire().await;
            backend.lookup(name, record).await
        };
        let answer = timeout_at(deadline, query)
            .await
            .map_err(|_elapsed| ResolveError::TimedOut)?
            .map_err(|error| {
                let error = ResolveError::from_backend(&error);
                let down = self.shared.down.load(Ordering::Relaxed);
                if down && error == ResolveError::BadAnswer {
                    ResolveError::TunnelDown
                } else {
                    error
                }
            })?;
        let addresses: Vec<IpAddr> = answer
            .answers()
            .iter()
            .filter_map(|record| address(&record.data))
            .take(ADDRESSES_PER_FAMILY)
            .collect();
        if addresses.is_empty() {
            Err(ResolveError::NoAddress)
        } else {
            Ok(addresses)
        }
    }

    /// Returns the backend for these name servers, built anew (with an empty cache) when
    /// they have changed.
    fn backend(&self, servers: &[IpAddr]) -> Result<Backend, ResolveError> {
        let mut current = self
            .shared
            .backend
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((built_for, backend)) = &*current
            && built_for == servers
        {
            return Ok(backend.clone());
        }
        if servers.is_empty() {
            return Err(ResolveError::NoNameServer);
        }
        let configs = servers
            .iter()
            .map(|server| NameServerConfig::udp_and_tcp(*server))
            .collect();
        let backend = Backend::builder_with_config(
            ResolverConfig::from_name_servers(configs),
            TunnelRuntime::new(self.tunnel.clone(), Arc::clone(&self.shared.down)),
        )
        .with_options(options())
        .build()
        .map_err(|error| ResolveError::from_backend(&error))?;
        *current = Some((servers.to_vec(), backend.clone()));
        Ok(backend)
    }
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

/// Why a name has no address.
#[derive(Clone, Debug, Error, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ResolveError {
    /// The name is not a host name, or longer than DNS allows.
    #[error("the name is not a valid host name")]
    InvalidName,
    /// Names under `.onion` must not be asked of DNS (RFC 7686).
    #[error("names under .onion cannot be resolved by DNS")]
    Onion,
    /// The name does not exist.
    #[error("the name does not exist")]
    NotFound,
    /// The name exists but has no address of a family that the tunnel has.
    #[error("the name has no address of a family that the tunnel has")]
    NoAddress,
    /// The name server answered with an error.
    #[error("the name server answered with error {code} ({text})")]
    ServerFailed {
        /// The response code (RFC 6895).
        code: u16,
        /// What it means.
        text: &'static str,
    },
    /// No name server answered in time.
    #[error("the name server did not answer in {} s", LOOKUP_LIMIT.as_secs())]
    TimedOut,
    /// The name server's answer or the connection to it was broken.
    #[error("the name server's answer was of no use")]
    BadAnswer,
    /// The server pushed no name server.
    #[error("the tunnel has no name server")]
    NoNameServer,
    /// There is no session with the server.
    #[error("the tunnel is down")]
    TunnelDown,
    /// The name goes directly, and this host's own resolver has no address for it.
    #[error("this host's resolver has no address for the name, which a rule sends directly")]
    Host,
}

impl ResolveError {
    fn from_backend(error: &NetError) -> Self {
        if error.is_nx_domain() {
            return Self::NotFound;
        }
        if error.is_no_records_found() {
            return Self::NoAddress;
        }
        if let NetError::Dns(DnsError::ResponseCode(code)) = error {
            return Self::ServerFailed {
                code: u16::from(*code),
                text: code.to_str(),
            };
        }
        if let NetError::Io(error) = error {
            return match provider::connect_error(error) {
                Some(ConnectError::TunnelDown) => Self::TunnelDown,
                Some(ConnectError::TimedOut) => Self::TimedOut,
                Some(_) | None if error.kind() == std::io::ErrorKind::TimedOut => Self::TimedOut,
                Some(_) | None => Self::BadAnswer,
            };
        }
        if matches!(error, NetError::Timeout) {
            Self::TimedOut
        } else {
            Self::BadAnswer
        }
    }

    /// Returns whichever of two failures says more about the name.
    fn or_more_telling(self, other: Self) -> Self {
        if other.weight() > self.weight() {
            other
        } else {
            self
        }
    }

    fn weight(&self) -> u8 {
        match self {
            // One family without addresses says nothing about the other.
            Self::NoAddress => 0,
            Self::BadAnswer => 1,
            Self::TimedOut => 2,
            Self::ServerFailed { .. } => 3,
            // These are true of all families.
            Self::NotFound | Self::Host => 4,
            Self::TunnelDown | Self::NoNameServer => 5,
            Self::InvalidName | Self::Onion => 6,
        }
    }
}

/// Why there is no flow to a host.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum OriginError {
    /// The name has no address.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// No address could be connected to.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The rules of this client refuse it.
    #[error(transparent)]
    Blocked(#[from] Blocked),
}

/// Reads the address out of a record that has one.
fn address(data: &RData) -> Option<IpAddr> {
    if let RData::A(address) = data {
        Some(address.0.into())
    } else if let RData::AAAA(address) = data {
        Some(address.0.into())
    } else {
        None
    }
}

fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.ndots = 0;
    options.timeout = QUERY_LIMIT;
    options.attempts = QUERY_RETRIES;
    options.cache_size = CACHE_ENTRIES;
    options.use_hosts_file = ResolveHosts::Never;
    options.positive_max_ttl = Some(POSITIVE_TTL_LIMIT);
    options.negative_max_ttl = Some(NEGATIVE_TTL_LIMIT);
    // The backend retries a busy connection in a tight loop: keep it from being busy.
    options.max_active_requests = 2 * CONCURRENT_QUERIES;
    options.edns_payload_len = EDNS_PAYLOAD;
    options
}

/// How long a lookup may take in all: what a person waits before trying again.
pub const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

/// How long a connection may take in all, the lookup included. The netstack gives its
/// attempts up earlier; this bounds what several in a row add up to.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(60);

/// How many answers are kept: at about 500 bytes each, 2 MiB.
pub const CACHE_ENTRIES: u64 = 4096;

/// Three tries fit into [`LOOKUP_LIMIT`], so that two lost datagrams are made good.
const QUERY_LIMIT: Duration = Duration::from_millis(1600);
const QUERY_RETRIES: usize = 2;

/// Each takes a port of the inner address; more lookups wait.
const CONCURRENT_QUERIES: usize = 256;

/// No answer is kept longer: names of services move.
const POSITIVE_TTL_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// RFC 2308 section 5 advises hours at most; a name that was just made should not take
/// so long to be seen.
const NEGATIVE_TTL_LIMIT: Duration = Duration::from_secs(300);

/// The size that avoids fragments on nearly every path (DNS flag day 2020).
const EDNS_PAYLOAD: u16 = 1232;

/// More addresses of one name than this are not tried.
const ADDRESSES_PER_FAMILY: usize = 8;

#[cfg(test)]
mod tests;
