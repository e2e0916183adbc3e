//! Makes the report of a running client.

use std::sync::Arc;
use std::time::Instant;

use tokio::time::timeout;

use super::direct::Direct;
use super::dns::Dns;
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
    Counters, Forwarding, PATIENCE, ProcessReport, Program, Report, SessionReport, Tally, Uses,
    tasks,
};

/// What the driver says of the session.
#[derive(Debug)]
pub struct Look {
    /// The session, if there is one.
    pub session: Option<SessionReport>,
    /// The numbers of all sessions there were.
    pub tally: Tally,
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
    /// Makes one of a client that has these parts; `listening` is what listens beside the forwards, `uses` what it has of
    /// its host.
    pub fn new(
        (tunnel, dns, direct): (Tunnel, Dns, Direct),
        forwards: Forwards,
        (proxies, listening): (Vec<Arc<ProxyStats>>, Listening),
        (commands, uses): (Arc<Book>, Uses),
        control: Arc<ControlStats>,
        reloads: Arc<ReloadCounts>,
    ) -> Self {
        Self {
            tunnel,
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
        let look = timeout(PATIENCE, self.tunnel.look()).await.ok().flatten();
        let silent = look.is_none();
        let (session, tally) =
            look.map_or((None, Tally::default()), |look| (look.session, look.tally));
        let ready = state(session.as_ref(), silent);
        let mut counters = tally.counters;
        self.count(&mut counters);
        counters.merge(&self.commands.counters().await);
        Report {
            kind: Program::Client,
            version: env!("CARGO_PKG_VERSION"),
            ready: ready.is_ok(),
            state: ready.unwrap_or_else(|state| state),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            uses: self.uses.clone(),
            reloads: self.reloads.counts(),
            clients: None,
            forwards: Some(self.forwarding()),
            sessions_left_out: usize::from(silent),
            sessions: session.into_iter().collect(),
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
        match timeout(PATIENCE, self.tunnel.look()).await {
            Ok(Some(look)) => state(look.session.as_ref(), false),
            Ok(None) | Err(_) => state(None, true),
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

fn state(session: Option<&SessionReport>, silent: bool) -> Result<String, String> {
    // One that has not been answered yet is none.
    let has_lane = session.map(|session| session.lanes.iter().any(|lane| lane.in_use));
    match (silent, has_lane) {
        (true, _) => Err("the tunnel's driver does not answer".to_owned()),
        (false, None) => Err("connecting: there is no session yet, or no more".to_owned()),
        (false, Some(false)) => Err("connecting again: the session has no lane".to_owned()),
        (false, Some(true)) => Ok("connected".to_owned()),
    }
}
