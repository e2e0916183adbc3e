//! Looks at a client, from its names to what its way is like under load.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::clock::{self as clocks, Clock, FarEnd};
use super::finding::{Check, Finding};
use super::host;
use super::measure::{Measuring, Plan, measure};
use super::path::{self, Choice};
use super::program::Program;
use super::running::{Running, Wants};
use super::way::{self, Trouble, Unreached, Way, millis};
use crate::client::connect::Connector;
use crate::client::control;
use crate::client::run::{connector, uses};
use crate::config::{CertificateCheck, ClientConfig, Host, Kind, LaneAddr};
use crate::io::clock;
use crate::io::host::{MARK, Traces};
use crate::io::listen;
use crate::io::outside::Outside;
use crate::io::privilege::administers_network;
use crate::status::{Uses, whole};

/// What may be done to find out.
#[derive(Clone, Debug)]
pub struct Allowed {
    /// Whether the way may be loaded for a while.
    pub load: bool,
    /// When everything is over.
    pub until: Instant,
    /// Cancelled when somebody wants the end before.
    pub stop: CancellationToken,
}

impl Allowed {
    /// Does some work for as long as is allowed, but for `reserve`.
    pub(super) async fn within<T>(
        &self,
        reserve: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, Over> {
        let until = self.until.checked_sub(reserve).unwrap_or(self.until);
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Over::Stopped),
            done = timeout_at(until, work) => done.map_err(|_elapsed| Over::Time),
        }
    }

    /// How much time is left.
    pub(super) fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

/// Why no more may be done.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(super) enum Over {
    #[error("the time for everything was over")]
    Time,
    #[error("it was stopped")]
    Stopped,
}

/// What a client with this configuration, of this file, wants of its host.
pub fn wants(config: &ClientConfig, file: Option<&Path>) -> Wants {
    Wants {
        kind: Kind::Client,
        sockets: control::place(config).paths().to_vec(),
        uses: Uses {
            file: file.map(whole),
            ..uses(config, None)
        },
    }
}

/// Looks at a client of this configuration, beside the programs that run, on a host with these traces of a tunnel; each
/// finding is told as it is made.
pub async fn examine(
    config: &ClientConfig,
    (running, traces): (&Running, Traces),
    allowed: &Allowed,
    tell: &mut impl FnMut(Finding),
) {
    ports(config, running, tell);
    let administers = administers_network();
    let is_led = traces.device || running.leads();
    if let Some(finding) = way::enclosed(is_led, traces.device, administers) {
        tell(finding);
    }
    // As the client itself leaves a host that goes through the tunnel, whoever has put it there, and past a kill switch, which
    // is there before the first session; elsewhere the mark means nothing.
    let outside = if administers && (traces.routing || traces.table) {
        Outside::marked(MARK)
    } else {
        Outside::default()
    };
    // Of each attempt its own, with an instance of its own: of two at once of one instance, one would seem stale.
    let ask = || {
        connector(config, false, outside.clone()).map(|connector| Connector {
            time: config.connect_timeout.min(ATTEMPT),
            ..connector
        })
    };
    let asking: Result<Vec<Connector>, _> = config.servers.iter().map(|_| ask()).collect();
    let (asking, connector) = match asking.and_then(|asking| Ok((asking, Arc::new(ask()?)))) {
        Ok(both) => both,
        Err(error) => {
            let next = "correct `tls` or `via` of the configuration";
            return tell(Finding::failed(
                Check::Configuration,
                error.to_string(),
                next,
            ));
        }
    };
    names(&connector, config, allowed, tell).await;
    let doubted: Vec<Arc<AtomicBool>> = asking.iter().map(|one| one.doubted.clone()).collect();
    let ways = greet(asking, config, allowed).await;
    let key = config.secret_key.public();
    let known_revoked = running.own().is_some_and(Program::is_revoked);
    let judged = way::judge(&ways, &key, known_revoked);
    judged.into_iter().for_each(&mut *tell);
    let asked = (ways.iter()).any(|way| way.server.scheme.is_stream() && way.outcome.is_ok());
    let doubted = doubted.iter().any(|one| one.load(Ordering::Relaxed));
    let far = match (asked, doubted) {
        (true, true) => FarEnd::Doubts,
        (true, false) => FarEnd::Takes,
        (false, _) => FarEnd::Unasked,
    };
    tell(clocks::judge(&Clock {
        now: clock::unix(),
        in_step: clock::in_step(),
        far,
        certificates: checks_dates(&config.tls),
    }));
    let Some(best) = way::best(&ways) else {
        for check in [
            Check::RoundTrip,
            Check::Loss,
            Check::PathMtu,
            Check::Bufferbloat,
            Check::Choice,
        ] {
            tell(Finding::skipped(check, "no way leads to the server"));
        }
        return;
    };
    let mut spending = None;
    for server in measured(&ways, &best.server) {
        let is_best = *server == best.server;
        let plan = Plan {
            server,
            repair: config.repair,
            best: is_best,
        };
        match measure(&connector, plan, allowed, tell).await {
            Ok(found) => spending = spending.or(found),
            Err(Measuring::Over(over)) => {
                tell(Finding::skipped(Check::RoundTrip, over.to_string()).about(server));
            }
            Err(error) => tell(Finding::warning(
                Check::RoundTrip,
                format!("cannot be measured: {error}"),
                "look at the server's log, and how many sessions this client's key has (adit status at the server)",
            )
            .about(server)),
        }
    }
    if !ways
        .iter()
        .any(|way| !way.server.scheme.is_stream() && way.outcome.is_ok())
    {
        let why =
            "no way by datagrams answers, and TCP hides what is lost and how long packets pass";
        tell(Finding::skipped(Check::Loss, why));
        tell(Finding::skipped(Check::PathMtu, why));
    }
    let others: Vec<LaneAddr> = (ways.iter())
        .filter(|way| way.outcome.is_ok() && way.server != best.server)
        .map(|way| way.server.clone())
        .collect();
    tell(path::choice(&Choice {
        best: &best.server,
        others: &others,
        lanes: config.lanes,
        repair: config.repair,
        spending,
    }));
}

/// Resolves each name once, all at a time, or that of the proxy which resolves the others.
async fn names(
    connector: &Connector,
    config: &ClientConfig,
    allowed: &Allowed,
    tell: &mut impl FnMut(Finding),
) {
    let mut seen: Vec<(String, LaneAddr)> = Vec::new();
    for server in &config.servers {
        let proxy = connector.dialer.proxy_for(&server.host);
        let host = proxy.map_or(&server.host, |proxy| &proxy.host);
        if let Host::Name(name) = host
            && seen.iter().all(|(known, _)| known != name)
        {
            let host = host.clone();
            let asked = LaneAddr {
                host,
                ..server.clone()
            };
            seen.push((name.clone(), asked));
        }
    }
    if seen.is_empty() {
        let why = "the configuration names addresses only";
        tell(Finding::skipped(Check::Name, why));
    }
    let look_up = |(name, asked): (String, LaneAddr)| async move {
        let began = clock::now();
        let found = connector.dialer.addresses(&asked, LOOK_UP);
        let found = allowed.within(Duration::ZERO, found).await;
        let ms = millis(clock::now() - began);
        let finding = match found {
            Err(over) => Finding::skipped(Check::Name, over.to_string()),
            Ok(Ok(found)) => {
                let shown: Vec<String> = found.iter().map(|one| one.ip().to_string()).collect();
                Finding::ok(Check::Name, format!("{} ({ms} ms)", shown.join(", ")))
                    .figure("addresses", shown)
                    .figure("milliseconds", ms)
            }
            Ok(Err(error)) => Finding::failed(
                Check::Name,
                error.to_string(),
                "compare the name with what the server's operator gave you, and see /etc/resolv.conf",
            ),
        };
        finding.about(name)
    };
    for finding in join_all(seen.into_iter().map(look_up)).await {
        tell(finding);
    }
}

/// Asks for a handshake by each way, all at a time. A handshake alone changes nothing at the server.
async fn greet(asking: Vec<Connector>, config: &ClientConfig, allowed: &Allowed) -> Vec<Way> {
    let attempts = asking
        .into_iter()
        .zip(&config.servers)
        .map(|(connector, server)| async move {
            let began = clock::now();
            let attempt = Arc::new(connector).attempt(server.clone(), None, true);
            let attempt = allowed.within(Duration::ZERO, attempt).await;
            let took = clock::now() - began;
            let outcome = match attempt {
                Ok(Ok(_)) => Ok(took),
                Ok(Err(failure)) => Err(Unreached::of(&failure)),
                Err(over) => Err(Unreached {
                    trouble: Trouble::Silence,
                    words: format!("no answer, and {over}"),
                }),
            };
            Way {
                server: server.clone(),
                outcome,
            }
        });
    join_all(attempts).await
}

/// The ways that are measured: the one that a client takes, and the first of the other kind.
fn measured<'a>(ways: &'a [Way], best: &'a LaneAddr) -> Vec<&'a LaneAddr> {
    let other = ways.iter().find(|way| {
        way.outcome.is_ok() && way.server.scheme.is_stream() != best.scheme.is_stream()
    });
    std::iter::once(best)
        .chain(other.map(|way| &way.server))
        .collect()
}

/// Looks where the client listens.
fn ports(config: &ClientConfig, running: &Running, tell: &mut impl FnMut(Finding)) {
    for port in wants(config, None).uses.listens {
        let free = listen::look(port.address, port.datagrams, &[]);
        let own_runs = running.own().is_some();
        tell(host::port(free, running.of_port(port), own_runs).about(port));
    }
}

fn checks_dates(check: &CertificateCheck) -> bool {
    match check {
        CertificateCheck::Unchecked | CertificateCheck::Pins(_) => false,
        CertificateCheck::CaFile(_) | CertificateCheck::System => true,
    }
}

/// How long one attempt may take: two losses of a SYN.
pub(super) const ATTEMPT: Duration = Duration::from_secs(5);

/// How long a name may take.
const LOOK_UP: Duration = Duration::from_secs(3);
