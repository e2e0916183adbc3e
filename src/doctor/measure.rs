//! Measures a way by a session of its own, which ends by a goodbye whatever comes of it.

use std::sync::Arc;
use std::time::Duration;

use super::client::{ATTEMPT, Allowed, Over};
use super::finding::{Check, Finding};
use super::path::{self, Carries, Direction, Echoes, Losses};
use super::prober::{GOODBYE, ProbeError, Prober};
use crate::client::connect::{Connected, Connector};
use crate::config::{LaneAddr, Repair};
use crate::proto::datapath::{LaneCounts, Spending};
use crate::wire::LaneId;

/// What is measured of a way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan<'a> {
    /// Where it leads.
    pub(super) server: &'a LaneAddr,
    /// What this client does about losses.
    pub(super) repair: Repair,
    /// Whether it is the way that a client takes, which alone is loaded.
    pub(super) best: bool,
}

/// Measures a way; returns what the session spent on repair.
pub(super) async fn measure(
    connector: &Arc<Connector>,
    plan: Plan<'_>,
    allowed: &Allowed,
    tell: &mut impl FnMut(Finding),
) -> Result<Option<Spending>, Measuring> {
    let attempt = connector.clone().attempt(plan.server.clone(), None, true);
    let carrier = match allowed.within(GOODBYE, attempt).await? {
        Ok(Connected::Fresh(carrier)) => *carrier,
        Ok(Connected::Joined { .. } | Connected::Ways(_)) => return Err(Measuring::Strange),
        Err(failure) => return Err(Measuring::Connect(failure.to_string())),
    };
    let mut prober = Prober::new(carrier);
    let probed = probe(&mut prober, plan, allowed, tell);
    let probed = allowed.within(GOODBYE, probed).await;
    prober.leave().await;
    Ok(probed??)
}

async fn probe(
    prober: &mut Prober,
    plan: Plan<'_>,
    allowed: &Allowed,
    tell: &mut impl FnMut(Finding),
) -> Result<Option<Spending>, ProbeError> {
    let inner_mtu = prober.configured(ATTEMPT).await?;
    let stream = plan.server.scheme.is_stream();
    let count = if stream { FEW_ECHOES } else { ECHOES };
    let before = counts(prober);
    let idle = prober.echoes(count, APART).await?;
    let after = counts(prober);
    let spending = prober.carrier().spending();
    tell(path::round_trip(plan.server, &idle));
    if let (Some(before), Some(after)) = (before, after) {
        for (direction, losses) in losses(&before, &after) {
            tell(path::loss(direction, &losses, plan.repair));
        }
    }
    if !stream && let Some(carries) = carried(prober, inner_mtu).await? {
        tell(path::path_mtu(plan.server, &carries));
    }
    if plan.best {
        tell(bufferbloat(prober, plan, &idle, allowed).await?);
    }
    Ok(spending)
}

async fn bufferbloat(
    prober: &mut Prober,
    plan: Plan<'_>,
    idle: &Echoes,
    allowed: &Allowed,
) -> Result<Finding, ProbeError> {
    let skipped = |why| Finding::skipped(Check::Bufferbloat, why).about(plan.server);
    if !allowed.load {
        return Ok(skipped("nothing is loaded (--no-load)"));
    }
    if allowed.left() < LOAD * 2 {
        return Ok(skipped("no time is left for it"));
    }
    let load = prober.load(LOAD_BYTES, LOAD).await?;
    Ok(path::bufferbloat(plan.server, idle, &load))
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

async fn carried(prober: &mut Prober, inner_mtu: u16) -> Result<Option<Carries>, ProbeError> {
    let settled = prober.settle(SETTLE).await?;
    let session = prober.carrier().session();
    let path = session.datagram_path(LaneId::FIRST);
    let datagram = session.max_datagram(LaneId::FIRST);
    Ok(path.zip(datagram).map(|(path, datagram)| Carries {
        datagram,
        settled,
        remote: path.remote.ip(),
        inner_mtu,
    }))
}

/// Why a way is not measured.
#[derive(Debug, thiserror::Error)]
pub(super) enum Measuring {
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error("{0}")]
    Connect(String),
    #[error(transparent)]
    Over(#[from] Over),
    #[error("the server has joined a lane that nobody asked for")]
    Strange,
}

/// Short echoes by datagrams, and how far apart they are: 4 s of 100 kbit/s, in which a loss of 5 % is 20 datagrams.
const ECHOES: u64 = 400;
const APART: Duration = Duration::from_millis(10);

/// Short echoes by a stream, which shows no loss.
const FEW_ECHOES: u64 = 50;

/// How long the search for the path MTU may go on after that.
const SETTLE: Duration = Duration::from_secs(3);

/// How long, and by how many bytes each way, the way is loaded.
const LOAD: Duration = Duration::from_secs(3);
const LOAD_BYTES: u64 = 8_000_000;
