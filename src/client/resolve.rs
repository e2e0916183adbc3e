//! Names to addresses, and addresses to flows, all through the tunnel.
//!
//! ```text
//!            ┌ literal ─────────────────────────────────────┐
//!  Host ─────┼ localhost (RFC 6761) ────────────────────────┼─▶ Race ─▶ Tunnel::connect
//!            └ name ─▶ A ∥ AAAA, answered by Dns ───────────┘   (RFC 8305)
//! ```
//!
//! Names are answered by the same [`Dns`] as those that come to the local resolver, with its rules and its cache. So no
//! name is asked of the system's resolver here, which would leak it, unless a `split` entry says so (what a [rule](super::rules)
//! of the proxy sends there goes [beside the tunnel](super::direct)). A lookup takes [`LOOKUP_LIMIT`] at most, whatever the
//! name servers do.

mod host;
mod known;
mod names;
mod provider;
mod race;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use thiserror::Error;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

pub use host::{Host, HostError};
pub(super) use known::Known;
pub use names::{Found, NameQueries, NameQuery, name_service};
pub(in crate::client) use provider::{TunnelRuntime, connect_error as tunnel_error};

use super::dns::{ANSWER_LIMIT, Dns, Failure, Own, Question, Reply, address};
use super::down::{Down, TUNNEL_WAIT};
use super::rules::{Blocked, ResolvedBy};
use super::tunnel::{ConnectError, Flow, Tunnel};
use crate::wire::InnerConfig;
use race::{Family, Race};

/// Resolves names and connects to them, through the tunnel; cheap to clone.
#[derive(Clone)]
pub struct Resolver {
    tunnel: Tunnel,
    dns: Dns,
}

impl Resolver {
    /// Makes a resolver that asks the name servers of the session of `tunnel`.
    pub fn new(tunnel: Tunnel) -> Self {
        let dns = Dns::plain(tunnel.clone());
        Self::over(tunnel, dns)
    }

    /// Makes a resolver whose names `dns` answers.
    pub fn over(tunnel: Tunnel, dns: Dns) -> Self {
        Self { tunnel, dns }
    }

    /// Tells what is known of `host` without asking, where `by` is to resolve it, and who has said so: records of this
    /// client's configuration go before everybody, and its lists of names to block do.
    ///
    /// # Errors
    ///
    /// It has no address, whoever is asked.
    pub(super) fn known<'a>(
        &self,
        host: &'a Host,
        by: ResolvedBy,
    ) -> Result<(Known<'a>, ResolvedBy), ResolveError> {
        let known = host.known()?;
        let Known::Ask(name) = &known else {
            return Ok((known, by));
        };
        let written = Name::from_ascii(name).map_err(|_| ResolveError::InvalidName)?;
        match self.dns.own(&written) {
            Own::Addresses(none) if none.is_empty() => Err(ResolveError::NoAddress),
            Own::Addresses(addresses) => Ok((Known::Addresses(addresses), ResolvedBy::Record)),
            Own::Blocked => Err(ResolveError::Blocked),
            Own::Never => Err(ResolveError::NotFound),
            Own::Alias(target) => Ok((Known::Ask(target.into()), by)),
            Own::Nothing => Ok((known, by)),
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
        let name = name.as_ref();
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
            let until = Instant::now() + TUNNEL_WAIT;
            let inner = Arc::new(self.configured(until).await?);
            for family in [Family::V6, Family::V4] {
                let (inner, name) = (Arc::clone(&inner), name.clone());
                lookups.push(async move {
                    (
                        family,
                        self.ask_patiently(&inner, &name, family, until).await,
                    )
                });
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
        let down = tokio::select! {
            biased;
            configured = inner.wait_for(Option::is_some) => {
                let inner = configured.ok().and_then(|inner| inner.clone());
                return inner.ok_or(ResolveError::TunnelDown(Down::Ended));
            }
            Some(down) = self.up(deadline) => down,
            () = sleep_until(deadline) => self.tunnel.down().unwrap_or_default(),
        };
        Err(ResolveError::TunnelDown(down))
    }

    /// Waits until the tunnel is up; else says why it is not, at once where waiting is in vain.
    async fn up(&self, deadline: Instant) -> Option<Down> {
        let mut downs = self.tunnel.downs();
        let settled = downs.wait_for(|down| down.is_none_or(Down::is_final));
        match timeout_at(deadline, settled).await {
            Ok(Ok(down)) => *down,
            Ok(Err(_gone)) => Some(Down::Ended),
            Err(_elapsed) => Some(self.tunnel.down().unwrap_or_default()),
        }
    }

    /// Asks as [`Resolver::ask`] does, and again when a tunnel is back that was down: a name is waited for as an address is,
    /// unless it was answered without the tunnel.
    async fn ask_patiently(
        &self,
        inner: &InnerConfig,
        name: &str,
        family: Family,
        until: Instant,
    ) -> Result<Vec<IpAddr>, ResolveError> {
        for _ in 1..ASKS {
            let asked = self.ask(inner, name, family, Instant::now() + LOOKUP_LIMIT);
            match asked.await {
                Err(ResolveError::TunnelDown(_)) => {}
                answer => return answer,
            }
            if let Some(down) = self.up(until).await {
                return Err(ResolveError::TunnelDown(down));
            }
        }
        self.ask(inner, name, family, Instant::now() + LOOKUP_LIMIT)
            .await
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
        let mut name = Name::from_ascii(name).map_err(|_| ResolveError::InvalidName)?;
        for _ in 0..MAX_ALIASES {
            let question = Question::new(&name, record);
            let reply = self.dns.ask(&question, deadline).await?;
            let answers = reply.answers();
            let addresses: Vec<IpAddr> = answers
                .iter()
                .filter_map(|record| address(&record.data))
                .take(ADDRESSES_PER_FAMILY)
                .collect();
            if let Some(error) = ResolveError::of(&reply) {
                return Err(error);
            }
            if !addresses.is_empty() {
                return Ok(addresses);
            }
            // A name server that does not follow an alias itself.
            match alias(&name, &answers) {
                Some(target) => name = target,
                None => return Err(ResolveError::NoAddress),
            }
        }
        Err(ResolveError::NoAddress)
    }
}

/// Follows the aliases of an answer from `name` to where nothing is said any more; `None` where it begins there.
fn alias(name: &Name, answers: &[Record]) -> Option<Name> {
    let next = |name: &Name| {
        answers.iter().find_map(|record| {
            if let RData::CNAME(target) = &record.data
                && record.name.eq_ignore_root(name)
            {
                Some(target.0.clone())
            } else {
                None
            }
        })
    };
    let mut target = next(name)?;
    for _ in 0..MAX_ALIASES {
        match next(&target) {
            Some(further) => target = further,
            None => break,
        }
    }
    Some(target)
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
    #[error("the name server did not answer in {} s", LOOKUP_LIMIT.as_secs_f32())]
    TimedOut,
    /// The name server's answer or the connection to it was broken.
    #[error("the name server's answer was of no use")]
    BadAnswer,
    /// The server pushed no name server.
    #[error("the tunnel has no name server")]
    NoNameServer,
    /// The tunnel carries nothing now.
    #[error(transparent)]
    TunnelDown(Down),
    /// The name goes directly, and this host's own resolver has no address for it.
    #[error("this host's resolver has no address for the name, which a rule sends directly")]
    Host,
    /// A list under `block` has the name.
    #[error("the name is blocked by a list")]
    Blocked,
}

impl ResolveError {
    /// What an answer says against there being an address, if anything.
    fn of(reply: &Reply) -> Option<Self> {
        if reply.is_blocked() {
            return Some(Self::Blocked);
        }
        let code = reply.code();
        if code == ResponseCode::NoError {
            None
        } else if code == ResponseCode::NXDomain {
            Some(Self::NotFound)
        } else {
            Some(Self::ServerFailed {
                code: u16::from(code),
                text: code.to_str(),
            })
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
            Self::NotFound | Self::Host | Self::Blocked => 4,
            Self::TunnelDown(_) | Self::NoNameServer => 5,
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

impl From<Failure> for ResolveError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::TimedOut => Self::TimedOut,
            Failure::TunnelDown(down) => Self::TunnelDown(down),
            Failure::NoNameServer => Self::NoNameServer,
            Failure::BadAnswer | Failure::Loop => Self::BadAnswer,
        }
    }
}

/// How often a name is asked for of which the tunnel went down meanwhile.
const ASKS: usize = 3;

/// How long a lookup may take in all, with the tunnel up: what a person waits before trying again.
pub const LOOKUP_LIMIT: Duration = ANSWER_LIMIT;

/// How long a connection may take in all, the lookup included. The netstack gives its
/// attempts up earlier; this bounds what several in a row add up to.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(60);

/// Aliases that are followed where name servers do not (as many as they themselves follow).
const MAX_ALIASES: usize = 8;

/// More addresses of one name than this are not tried.
const ADDRESSES_PER_FAMILY: usize = 8;

#[cfg(test)]
mod tests;
