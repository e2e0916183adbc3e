//! Makes the report of a running client.

use std::sync::Arc;
use std::time::Instant;

use tokio::time::timeout;

use super::direct::Direct;
use super::dns::Dns;
use super::down::Down;
use super::enclosure::Book;
use super::forwards::{Forwards, State};
use super::proxy::ProxyStats;
use super::tunnel::Tunnel;
use crate::io::admin::Observed;
use crate::io::clock;
use crate::io::control::ControlStats;
use crate::reload::ReloadCounts;
use crate::status::metrics::{CONTENT_TYPE, render};
use crate::status::{
    Carries, Counters, Forwarding, Outage, PATIENCE, ProcessReport, Program, Report, SessionReport,
    Tally, Uses, tasks,
};

/// What the driver says of the session.
#[derive(Debug)]
pub struct Look {
    /// The session, if there is one.
    pub session: Option<SessionReport>,
    /// The numbers of all sessions there were.
    pub tally: Tally,
    /// Why nothing goes through the tunnel now, if so.
    pub down: Option<Down>,
    /// What the last attempt at a server came to, where it brought no lane.
    pub last_failure: Option<String>,
}

/// How many sockets listen, of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listening {
    /// TCP ports.
    pub tcp: usize,
    /// UDP ports.
    pub udp: usize,
    /// Unix sockets.
    pub unix: usize,
}

/// Makes reports.
#[derive(Debug)]
pub struct Reporter {
    tunnel: Tunnel,
    /// Of the session of the whole host, with `tun`.
    host: Option<Tunnel>,
    dns: Dns,
    direct: Direct,
    forwards: Forwards,
    proxies: Vec<Arc<ProxyStats>>,
    listening: Listening,
    commands: Arc<Book>,
    uses: Uses,
    control: Arc<ControlStats>,
    reloads: Arc<ReloadCounts>,
    started: Instant,
}

impl Reporter {
    /// Makes one of a client that has these parts, and perhaps the session of the whole host beside its own; `listening`
    /// is what listens beside the forwards, `uses` what it has of its host.
    pub fn new(
        (tunnel, host): (Tunnel, Option<Tunnel>),
        (dns, direct): (Dns, Direct),
        forwards: Forwards,
        (proxies, listening): (Vec<Arc<ProxyStats>>, Listening),
        (commands, uses): (Arc<Book>, Uses),
        control: Arc<ControlStats>,
        reloads: Arc<ReloadCounts>,
    ) -> Self {
        Self {
            tunnel,
            host,
            dns,
            direct,
            forwards,
            proxies,
            listening,
            commands,
            uses,
            control,
            reloads,
            started: clock::now(),
        }
    }

    /// Asks the driver and sums up what there is.
    pub async fn report(&self) -> Report {
        let looks = self.look().await;
        let ready = state(&looks);
        let sessions_left_out = looks.iter().filter(|(_, look)| look.is_none()).count();
        let down = outage(&looks);
        let (mut sessions, mut tally) = (Vec::new(), Tally::default());
        for (of, look) in looks {
            let Some(look) = look else { continue };
            tally.add(&look.tally);
            sessions.extend(look.session.map(|session| SessionReport {
                carries: self.host.as_ref().map(|_| of),
                ..session
            }));
        }
        let mut counters = tally.counters;
        self.count(&mut counters);
        counters.merge(&self.commands.counters().await);
        Report {
            kind: Program::Client,
            version: env!("CARGO_PKG_VERSION"),
            ready: ready.is_ok(),
            state: ready.unwrap_or_else(|state| state),
            down,
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            uses: self.uses.clone(),
            reloads: self.reloads.counts(),
            clients: None,
            forwards: Some(self.forwarding()),
            sessions_left_out,
            sessions,
            total: tally.numbers,
            counters,
            process: ProcessReport::now(),
        }
    }

    /// Tells whether the session has a lane, in words either way.
    ///
    /// # Errors
    ///
    /// It has not.
    pub async fn ready(&self) -> Result<String, String> {
        state(&self.look().await)
    }

    /// Asks the drivers, that of the whole host first.
    async fn look(&self) -> Vec<(Carries, Option<Box<Look>>)> {
        let ask = async |tunnel: &Tunnel| timeout(PATIENCE, tunnel.look()).await.ok().flatten();
        let mut looks = Vec::new();
        if let Some(host) = &self.host {
            looks.push((Carries::Host, ask(host).await));
        }
        looks.push((Carries::Proxy, ask(&self.tunnel).await));
        looks
    }

    /// Tells why this client's own tunnel is down, if it is; that of the whole host is another, for which it waits at first.
    pub fn down(&self) -> Option<Down> {
        match self.tunnel.down() {
            Some(Down::Connecting) => {
                let host = self.host.as_ref().and_then(Tunnel::down);
                host.or(Some(Down::Connecting))
            }
            own => own,
        }
    }

    fn forwarding(&self) -> Forwarding {
        let mut sum = Forwarding::default();
        for forward in self.forwards.list() {
            sum.forwards += 1;
            sum.listening += usize::from(forward.state == State::Listening);
            sum.open += forward.counts.open;
            sum.refused += forward.counts.refused.values().sum::<u64>();
        }
        sum
    }

    fn count(&self, counters: &mut Counters) {
        counters.level("runtime", "tasks_now", tasks());
        counters.add("resolver", self.dns.stats());
        counters.add("direct", self.direct.stats());
        counters.count_now("direct", "flows_now", self.direct.flows());
        counters.add("control", &*self.control);
        for proxy in &self.proxies {
            counters.add("proxy", &**proxy);
        }
        let (own, forwards) = (self.listening, self.forwards.listening());
        for (name, now) in [
            ("tcp_now", own.tcp + forwards.tcp),
            ("udp_now", own.udp + forwards.udp),
            ("unix_now", own.unix + forwards.unix),
        ] {
            counters.count_now("listen", name, now);
        }
    }
}

impl Observed for Reporter {
    async fn ready(&self) -> Result<String, String> {
        Reporter::ready(self).await
    }

    async fn metrics(&self) -> (&'static str, String) {
        (CONTENT_TYPE, render(&self.report().await))
    }
}

/// How the client is, in words either way; a driver that does not answer has no look.
fn state(looks: &[(Carries, Option<Box<Look>>)]) -> Result<String, String> {
    if looks.iter().any(|(_, look)| look.is_none()) {
        return Err("the tunnel's driver does not answer".to_owned());
    }
    match looks.iter().find_map(|(_, look)| look.as_ref()?.down) {
        Some(down) => Err(down.state()),
        None => Ok("connected".to_owned()),
    }
}

/// Why a tunnel is down, the whole host's first.
fn outage(looks: &[(Carries, Option<Box<Look>>)]) -> Option<Outage> {
    looks.iter().find_map(|(_, look)| {
        let look = look.as_ref()?;
        Some(look.down?.outage(look.last_failure.clone()))
    })
}
