//! Looks at a client, from its names to what its way is like under load.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::clock::{self as clocks, Clock, FarEnd};
use super::finding::{Check, Finding};
use super::path::{self, Carries, Choice, Direction, Echoes, Losses};
use super::prober::{ProbeError, Prober};
use super::way::{self, Unreached, Way, millis};
use crate::client::connect::{Connected, Connector};
use crate::client::run::connector;
use crate::config::{CertificateCheck, ClientConfig, Host, LaneAddr};
use crate::io::clock;
use crate::io::host::MARK;
use crate::io::outside::Outside;
use crate::io::privilege::administers_network;
use crate::proto::datapath::{LaneCounts, Spending};
use crate::wire::LaneId;

/// What may be done to find out.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// Whether the way may be loaded for a while.
    pub load: bool,
    /// When everything is over.
    pub until: Instant,
}

/// Looks at a client of this configuration; each finding is told as it is made.
pub async fn examine(config: &ClientConfig, allowed: Allowed, tell: &mut impl FnMut(Finding)) {
    let administers = administers_network();
    let tunnel = config.tun.as_ref().map(|tunnel| tunnel.name.as_str());
    if let Some(finding) = tunnel.and_then(|name| way::enclosed(name, exists(name), administers)) {
        tell(finding);
    }
    // As the client itself leaves a host that goes through the tunnel; where it does not, the mark means nothing.
    let outside = match tunnel {
        Some(_) if administers => Outside::marked(MARK),
        Some(_) | None => Outside::default(),
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
    names(&connector, config, tell).await;
    let doubted: Vec<Arc<AtomicBool>> = asking.iter().map(|one| one.doubted.clone()).collect();
    let ways = greet(asking, config, allowed).await;
    let key = config.secret_key.public();
    way::judge(&ways, &key).into_iter().for_each(&mut *tell);
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
            best: is_best,
            load: allowed.load && is_best,
        };
        let left = allowed.until.saturating_duration_since(Instant::now());
        let measured = timeout(left, measure(&connector, config, plan, allowed, tell)).await;
        match measured.unwrap_or(Err(Measuring::Over)) {
            Ok(found) => spending = spending.or(found),
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
async fn names(connector: &Connector, config: &ClientConfig, tell: &mut impl FnMut(Finding)) {
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
        let found = connector.dialer.addresses(&asked, LOOK_UP).await;
        let ms = millis(clock::now() - began);
        let finding = match found {
            Ok(found) => {
                let shown: Vec<String> = found.iter().map(|one| one.ip().to_string()).collect();
                Finding::ok(Check::Name, format!("{} ({ms} ms)", shown.join(", ")))
                    .figure("addresses", shown)
                    .figure("milliseconds", ms)
            }
            Err(error) => Finding::failed(
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
async fn greet(asking: Vec<Connector>, config: &ClientConfig, allowed: Allowed) -> Vec<Way> {
    let attempts = asking
        .into_iter()
        .zip(&config.servers)
        .map(|(connector, server)| async move {
            let began = clock::now();
            let limit = allowed.until.saturating_duration_since(Instant::now());
            let attempt = Arc::new(connector).attempt(server.clone(), None, true);
            let attempt = timeout(limit, attempt).await;
            let took = clock::now() - began;
            let outcome = match attempt {
                Ok(Ok(_)) => Ok(took),
                Ok(Err(failure)) => Err(Unreached::of(&failure)),
                Err(_elapsed) => Err(Unreached {
                    trouble: way::Trouble::Silence,
                    words: "no answer in time".to_owned(),
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

/// What is measured of a way.
#[derive(Clone, Copy)]
struct Plan<'a> {
    server: &'a LaneAddr,
    best: bool,
    load: bool,
}

/// Measures a way by a session of its own; returns what that spent on repair.
async fn measure(
    connector: &Arc<Connector>,
    config: &ClientConfig,
    plan: Plan<'_>,
    allowed: Allowed,
    tell: &mut impl FnMut(Finding),
) -> Result<Option<Spending>, Measuring> {
    let server = plan.server;
    let left = || allowed.until.saturating_duration_since(Instant::now());
    let attempt = connector.clone().attempt(server.clone(), None, true);
    let carrier = match timeout(left().min(ATTEMPT), attempt).await {
        Ok(Ok(Connected::Fresh(carrier))) => *carrier,
        Ok(Ok(Connected::Joined { .. } | Connected::Ways(_))) => return Err(Measuring::Strange),
        Ok(Err(failure)) => return Err(Measuring::Connect(failure.to_string())),
        Err(_elapsed) => return Err(Measuring::Late),
    };
    let mut prober = Prober::begin(carrier, left().min(ATTEMPT)).await?;
    let stream = server.scheme.is_stream();
    let count = if stream { FEW_ECHOES } else { ECHOES };
    let before = counts(&prober);
    let idle = prober.echoes(count, APART).await?;
    let after = counts(&prober);
    let spending = prober.carrier().spending();
    tell(path::round_trip(server, &idle));
    if let (Some(before), Some(after)) = (before, after) {
        for (direction, losses) in losses(&before, &after) {
            tell(path::loss(direction, &losses, config.repair));
        }
    }
    if !stream && let Some(carries) = carried(&mut prober, left()).await? {
        tell(path::path_mtu(server, &carries));
    }
    if plan.best {
        bufferbloat(&mut prober, plan, &idle, left(), tell).await?;
    }
    prober.leave().await;
    Ok(spending)
}

async fn bufferbloat(
    prober: &mut Prober,
    plan: Plan<'_>,
    idle: &Echoes,
    left: Duration,
    tell: &mut impl FnMut(Finding),
) -> Result<(), Measuring> {
    let skipped = |why| Finding::skipped(Check::Bufferbloat, why).about(plan.server);
    if !plan.load {
        tell(skipped("nothing is loaded (--no-load)"));
        return Ok(());
    }
    if left < LOAD * 2 {
        tell(skipped("no time is left for it"));
        return Ok(());
    }
    let load = prober.load(LOAD_BYTES, LOAD).await?;
    tell(path::bufferbloat(plan.server, idle, &load));
    Ok(())
}

fn counts(prober: &Prober) -> Option<LaneCounts> {
    prober.carrier().lane_counts(LaneId::FIRST)
}

fn losses(before: &LaneCounts, after: &LaneCounts) -> [(Direction, Losses); 2] {
    let up = after.loss.since(before.loss);
    let missed = after.missed.since(before.missed);
    let came = after.received.saturating_sub(before.received);
    [
        (
            Direction::Uplink,
            Losses {
                decided: up.decided,
                lost: up.lost,
                runs: up.bursts,
            },
        ),
        (
            Direction::Downlink,
            Losses {
                decided: came + missed.datagrams,
                lost: missed.datagrams,
                runs: missed.runs,
            },
        ),
    ]
}

async fn carried(prober: &mut Prober, left: Duration) -> Result<Option<Carries>, ProbeError> {
    let settled = prober.settle(left.min(SETTLE)).await?;
    let session = prober.carrier().session();
    let path = session.datagram_path(LaneId::FIRST);
    let datagram = session.max_datagram(LaneId::FIRST);
    Ok(path.zip(datagram).map(|(path, datagram)| Carries {
        datagram,
        settled,
        remote: path.remote.ip(),
        inner_mtu: prober.config().mtu,
    }))
}

/// Whether the host has an interface of that name.
fn exists(interface: &str) -> bool {
    Path::new("/sys/class/net").join(interface).exists()
}

fn checks_dates(check: &CertificateCheck) -> bool {
    match check {
        CertificateCheck::Unchecked | CertificateCheck::Pins(_) => false,
        CertificateCheck::CaFile(_) | CertificateCheck::System => true,
    }
}

/// Why a way is not measured.
#[derive(Debug, thiserror::Error)]
enum Measuring {
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error("{0}")]
    Connect(String),
    #[error("no second handshake was answered in time")]
    Late,
    #[error("the time for everything was over")]
    Over,
    #[error("the server has joined a lane that nobody asked for")]
    Strange,
}

/// How long one attempt may take: two losses of a SYN.
const ATTEMPT: Duration = Duration::from_secs(5);

/// How long a name may take.
const LOOK_UP: Duration = Duration::from_secs(3);

/// Short echoes by datagrams, and how far apart they are: 4 s of 100 kbit/s, in which a loss of 5 % is 20 datagrams.
const ECHOES: u64 = 400;
const APART: Duration = Duration::from_millis(10);

/// Short echoes by a stream, which shows no loss.
const FEW_ECHOES: u64 = 50;

/// How long the search for the path MTU may go on after that.
const SETTLE: Duration = Duration::from_secs(3);

/// How long, and by how many bytes each way, the way is loaded.
pub(crate) const LOAD: Duration = Duration::from_secs(3);
pub(crate) const LOAD_BYTES: u64 = 8 << 20;
