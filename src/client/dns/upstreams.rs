//! Whom a question goes to: the upstream, or those of a `split` entry; through the tunnel, or by the host's own network.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use tokio::time::{Instant, timeout_at};

use super::answer::{Kept, Question};
use super::policy::Policy;
use super::upstream::{Bootstrap, Failure, Group, Net};
use crate::client::down::Down;
use crate::client::resolve::TunnelRuntime;
use crate::client::tunnel::Tunnel;
use crate::config::{DnsConfig, DnsUpstream, SplitTarget};
use crate::io::outside::{Outside, OutsideRuntime, RESOLV_CONF};
use crate::io::resolver::{Stamp, stamp};
use crate::wire::InnerConfig;

/// Where a question goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// To the upstream.
    Upstream,
    /// To those of the `split` suffix with this number.
    Split(usize),
}

/// All name servers.
pub(super) struct Upstreams {
    tunnel: Tunnel,
    runtime: TunnelRuntime,
    /// Those of the configuration; `None`: those that the server names.
    fixed: Option<Group<TunnelRuntime>>,
    pushed: Mutex<Option<Pushed>>,
    split: Vec<SplitMembers>,
    system: System,
}

/// The name servers that the server names, and who they are.
#[derive(Clone)]
struct Pushed {
    servers: Vec<IpAddr>,
    group: Arc<Group<TunnelRuntime>>,
}

enum SplitMembers {
    Tunnel(Group<TunnelRuntime>),
    System,
}

impl Upstreams {
    pub(super) fn new(
        tunnel: Tunnel,
        config: &DnsConfig,
        policy: &Policy,
        tls: Option<Arc<rustls::ClientConfig>>,
        outside: Outside,
    ) -> Self {
        let runtime = TunnelRuntime::new(tunnel.clone());
        let net = Net {
            provider: runtime.clone(),
            tls,
            mixes_case: true,
        };
        let fixed =
            (!config.upstream.is_empty()).then(|| Group::new(config.upstream.clone(), &net));
        let split = policy.split_groups().iter().map(|group| {
            let upstreams = group.targets.iter().filter_map(|target| match target {
                SplitTarget::System => None,
                SplitTarget::Upstream(upstream) => Some(upstream.clone()),
            });
            // A rule that names the system names nobody else.
            if group.targets.contains(&SplitTarget::System) {
                SplitMembers::System
            } else {
                SplitMembers::Tunnel(Group::new(upstreams, &net))
            }
        });
        Self {
            split: split.collect(),
            tunnel,
            runtime,
            fixed,
            pushed: Mutex::new(None),
            system: System::new(PathBuf::from(RESOLV_CONF), config.listen, outside),
        }
    }

    /// Asks whoever `route` leads to, once there is a session if it leads through the tunnel.
    ///
    /// `changed` is called when the server names others than before: what they said may not hold any more.
    pub(super) async fn ask(
        &self,
        route: Route,
        question: &Question,
        deadline: Instant,
        changed: impl Fn() + Sync,
    ) -> Result<Kept, Failure> {
        let group = match route {
            Route::Upstream => self.fixed.as_ref(),
            Route::Split(index) => match self.split.get(index) {
                Some(SplitMembers::Tunnel(group)) => Some(group),
                Some(SplitMembers::System) => {
                    let group = self.system.group()?;
                    return group.ask(question, &Nowhere, deadline).await;
                }
                None => return Err(Failure::NoNameServer),
            },
        };
        let inner = self.configured(deadline).await?;
        let pushes = Pushes {
            upstreams: self,
            inner: &inner,
            changed,
        };
        let outcome = match group {
            Some(group) => group.ask(question, &pushes, deadline).await,
            None => pushes.group().ask(question, &Nowhere, deadline).await,
        };
        // The library does not pass on why there was no port.
        outcome.map_err(|failure| self.blame(route, failure))
    }

    /// Says of a question that has no answer whether the tunnel is why.
    pub(super) fn blame(&self, route: Route, failure: Failure) -> Failure {
        if !self.is_through_tunnel(route) {
            return failure;
        }
        match (failure, self.down()) {
            (Failure::BadAnswer | Failure::TimedOut | Failure::TunnelDown(_), Some(down)) => {
                Failure::TunnelDown(down)
            }
            _ => failure,
        }
    }

    /// Takes over the name servers that the server names, and calls `changed` where they are others than before.
    pub(super) fn follow(&self, inner: &InnerConfig, changed: impl Fn()) {
        self.pushed(inner, changed);
    }

    /// Why the tunnel gives no answer, if it is down.
    fn down(&self) -> Option<Down> {
        let is_down = self.runtime.is_down() || self.tunnel.inner().borrow().is_none();
        (self.tunnel.down()).or(is_down.then_some(Down::Ended))
    }

    /// Why asking is in vain, where it is.
    pub(super) fn is_in_vain(&self, route: Route) -> Option<Failure> {
        let down = (self.tunnel.down()).filter(|down| down.is_final())?;
        (self.is_through_tunnel(route)).then_some(Failure::TunnelDown(down))
    }

    fn is_through_tunnel(&self, route: Route) -> bool {
        match route {
            Route::Upstream => true,
            Route::Split(index) => !matches!(self.split.get(index), Some(SplitMembers::System)),
        }
    }

    /// Waits for the session's addresses and name servers.
    async fn configured(&self, deadline: Instant) -> Result<InnerConfig, Failure> {
        let mut inner = self.tunnel.inner();
        match timeout_at(deadline, inner.wait_for(Option::is_some)).await {
            Ok(Ok(inner)) => inner.clone().ok_or(Failure::TunnelDown(Down::Ended)),
            Ok(Err(_)) | Err(_) => Err(Failure::TunnelDown(self.down().unwrap_or_default())),
        }
    }

    /// The name servers that the server names, made anew when they have changed.
    fn pushed(&self, inner: &InnerConfig, changed: impl Fn()) -> Arc<Group<TunnelRuntime>> {
        let mut current = self.pushed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pushed) = &*current
            && pushed.servers == inner.dns
        {
            return Arc::clone(&pushed.group);
        }
        if current.is_some() {
            changed();
        }
        let plain = |ip: &IpAddr| DnsUpstream::Plain(SocketAddr::new(*ip, DNS_PORT));
        let net = Net {
            provider: self.runtime.clone(),
            tls: None,
            // They are inside the tunnel: nobody stands between.
            mixes_case: false,
        };
        let group = Arc::new(Group::new(inner.dns.iter().map(plain), &net));
        *current = Some(Pushed {
            servers: inner.dns.clone(),
            group: Arc::clone(&group),
        });
        group
    }
}

/// Those that the server names, who know the names of others.
struct Pushes<'a, C> {
    upstreams: &'a Upstreams,
    inner: &'a InnerConfig,
    /// Called when they are others than before, whoever notices.
    changed: C,
}

impl<C: Fn()> Pushes<'_, C> {
    fn group(&self) -> Arc<Group<TunnelRuntime>> {
        // Those of now, not of when the question came: else each that waits would bring back the ones it knows.
        let now = self.upstreams.tunnel.inner().borrow().clone();
        let inner = now.as_ref().unwrap_or(self.inner);
        self.upstreams.pushed(inner, &self.changed)
    }
}

impl<C: Fn() + Sync> Bootstrap for Pushes<'_, C> {
    async fn find(&self, name: &str, deadline: Instant) -> Vec<IpAddr> {
        let Ok(name) = Name::from_ascii(name) else {
            return Vec::new();
        };
        let group = self.group();
        let has = [
            (RecordType::A, self.inner.v4.is_some()),
            (RecordType::AAAA, self.inner.v6.is_some()),
        ];
        let mut addresses = Vec::new();
        for (kind, _) in has.into_iter().filter(|(_, has)| *has) {
            let question = Question::new(&name, kind);
            let Ok(kept) = group.ask(&question, &Nowhere, deadline).await else {
                continue;
            };
            let answers = kept
                .message()
                .map_or_else(Vec::new, |message| message.answers);
            addresses.extend(answers.iter().filter_map(|record| address(&record.data)));
            if !addresses.is_empty() {
                break;
            }
        }
        addresses
    }
}

/// For name servers that are written by their addresses.
struct Nowhere;

impl Bootstrap for Nowhere {
    async fn find(&self, _name: &str, _deadline: Instant) -> Vec<IpAddr> {
        Vec::new()
    }
}

/// Reads the address out of a record that has one.
pub(in crate::client) fn address(data: &RData) -> Option<IpAddr> {
    if let RData::A(address) = data {
        Some(address.0.into())
    } else if let RData::AAAA(address) = data {
        Some(address.0.into())
    } else {
        None
    }
}

/// The resolvers that the host itself asks, as its file names them.
struct System {
    file: PathBuf,
    /// Where the local resolver listens, which is not to ask itself.
    own: Option<SocketAddr>,
    outside: Outside,
    current: Mutex<Option<Read>>,
}

struct Read {
    group: Arc<Group<OutsideRuntime>>,
    /// Whether there is somebody other than ourselves.
    loops: bool,
    stamp: Option<Stamp>,
    look_at: Instant,
}

impl System {
    fn new(file: PathBuf, own: Option<SocketAddr>, outside: Outside) -> Self {
        Self {
            file,
            own,
            outside,
            current: Mutex::new(None),
        }
    }

    /// Reads the file anew where it has changed since, looking at most once a second.
    fn group(&self) -> Result<Arc<Group<OutsideRuntime>>, Failure> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let as_it_was = current.as_mut().is_some_and(|read| {
            let looked =
                now < read.look_at || !self.outside.is_marked() && stamp(&self.file) == read.stamp;
            if looked && now >= read.look_at {
                read.look_at = now + LOOK_EVERY;
            }
            looked
        });
        if !as_it_was {
            *current = Some(self.read(now));
        }
        match &*current {
            Some(read) if read.loops => Err(Failure::Loop),
            Some(read) => Ok(Arc::clone(&read.group)),
            None => Err(Failure::NoNameServer),
        }
    }

    fn read(&self, now: Instant) -> Read {
        let stamp = stamp(&self.file);
        // Where the host goes through the tunnel, that file may name a server behind it.
        let own = self.outside.name_servers();
        let own = own.map(|list| {
            list.into_iter()
                .map(|ip| SocketAddr::new(ip, DNS_PORT))
                .collect()
        });
        let from_file = || {
            fs::read(&self.file)
                .map_err(|error| error.to_string())
                .and_then(|text| parse_resolv_conf(text).map_err(|error| error.to_string()))
                .map(|(config, _)| {
                    let address = |server: &hickory_resolver::config::NameServerConfig| {
                        let port = (server.connections.first()).map_or(DNS_PORT, |way| way.port);
                        SocketAddr::new(server.ip, port)
                    };
                    config
                        .name_servers()
                        .iter()
                        .map(address)
                        .collect::<Vec<_>>()
                })
                .unwrap_or_else(|error| {
                    tracing::warn!(
                        error,
                        "the host's resolvers cannot be read from /etc/resolv.conf"
                    );
                    Vec::new()
                })
        };
        let servers: Vec<SocketAddr> = own.unwrap_or_else(from_file);
        let others: Vec<SocketAddr> = servers
            .iter()
            .copied()
            .filter(|server| Some(*server) != self.own)
            .collect();
        let net = Net {
            provider: OutsideRuntime::new(self.outside.clone()),
            tls: None,
            mixes_case: false,
        };
        Read {
            loops: others.is_empty() && !servers.is_empty(),
            group: Arc::new(Group::new(others.into_iter().map(DnsUpstream::Plain), &net)),
            stamp,
            look_at: now + LOOK_EVERY,
        }
    }
}

/// How often it is looked at, at most: people do not wait longer after a change.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// RFC 1035, section 4.2.
const DNS_PORT: u16 = 53;
