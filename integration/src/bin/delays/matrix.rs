//! What a lane gets beside flows of others: every rate, round trip, queue, number and kind of rivals, both ways round.

use std::{fmt, time::Duration};

use adit_integration::sim::{ControlKind, FlowSpec, Scenario, Traffic, Via};

/// One row of the table: the same flows on queues of different lengths.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Mbit/s.
    rate: u32,
    /// Milliseconds.
    round_trip: u32,
    rivals: usize,
    kind: ControlKind,
    /// The rivals begin first.
    last: bool,
}

/// What the lane got on one queue, over an equal share, by seed.
#[derive(Clone, Debug)]
pub(super) struct Shares(pub(super) Vec<f64>);

impl Row {
    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let kinds = [ControlKind::Cubic, ControlKind::Bbr];
        RATES.into_iter().flat_map(move |rate| {
            ROUND_TRIPS.into_iter().flat_map(move |round_trip| {
                kinds.into_iter().flat_map(move |kind| {
                    RIVALS.into_iter().flat_map(move |rivals| {
                        [false, true].into_iter().map(move |last| Self {
                            rate,
                            round_trip,
                            rivals,
                            kind,
                            last,
                        })
                    })
                })
            })
        })
    }

    /// The scenarios of the row, one for each of [`QUEUES`].
    pub(super) fn scenarios(&self, seed: u64, secs: u64) -> impl Iterator<Item = Scenario> {
        QUEUES
            .map(|queue| self.scenario(queue, seed, secs))
            .into_iter()
    }

    fn scenario(&self, queue: f64, seed: u64, secs: u64) -> Scenario {
        let delay = f64::from(self.round_trip) / 2.0;
        let limit = f64::from(self.round_trip) * queue;
        let link = format!("delay={delay},rate={},limit={limit}ms", self.rate);
        let link = match link.parse() {
            Ok(link) => link,
            Err(error) => panic!("{link}: {error}"),
        };
        let mut scenario = Scenario::new(link, seed).lasting(Duration::from_secs(secs));
        scenario.warm_up = Duration::from_secs(secs) / 3;
        scenario.mtu = 1400;
        let (first, second) = (Duration::ZERO, LATER);
        let (ours, theirs) = if self.last {
            (second, first)
        } else {
            (first, second)
        };
        scenario.flows.push(FlowSpec {
            traffic: Traffic::download(ControlKind::Cubic),
            via: Via::Tunnel,
            start: ours,
        });
        // Connections that begin in the same instant move in step, which no others do.
        scenario
            .flows
            .extend((0..self.rivals).map(|rival| FlowSpec {
                traffic: Traffic::download(self.kind),
                via: Via::Beside,
                start: theirs + APART * rival as u32,
            }));
        scenario
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>3} Mbit/s, {:>3} ms, {} {}, {} first",
            self.rate,
            self.round_trip,
            self.rivals,
            self.kind,
            if self.last { "they" } else { "we" },
        )
    }
}

impl Shares {
    /// The geometric mean: half and twice are equally far from one.
    fn mean(&self) -> f64 {
        let sum: f64 = self.0.iter().map(|share| share.max(1e-3).ln()).sum();
        (sum / self.0.len().max(1) as f64).exp()
    }

    /// Whether the mean is within a factor of two.
    pub(super) fn is_fair(&self) -> bool {
        (0.5..=2.0).contains(&self.mean())
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(0.0, f64::max);
        let mark = if self.is_fair() { ' ' } else { '!' };
        write!(f, "{:.2}{mark}({least:.2}-{most:.2})", self.mean())
    }
}

/// Lengths of the queue, in products of rate and round trip.
pub(super) const QUEUES: [f64; 4] = [0.5, 1.0, 2.0, 5.0];
const RATES: [u32; 3] = [10, 50, 200];
const ROUND_TRIPS: [u32; 4] = [10, 25, 50, 100];
const RIVALS: [usize; 2] = [1, 3];

/// When those begin that do not begin first.
const LATER: Duration = Duration::from_secs(3);
const APART: Duration = Duration::from_millis(130);
