//! What a link is: the knobs of netem, for each direction.

use std::time::Duration;

use thiserror::Error;

/// Two directions between a client side and a server side.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Link {
    /// Client to server.
    pub up: Path,
    /// Server to client.
    pub down: Path,
}

/// One direction of a link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Path {
    /// Which packets are lost, before they take their share of the rate.
    pub loss: Loss,
    /// Losses happen behind the bottleneck: what is lost has taken its share of the rate.
    pub after: bool,
    /// How long a packet is under way once it has left the queue.
    pub delay: Duration,
    /// The delay varies evenly by as much as this, both ways.
    pub jitter: Duration,
    /// A packet with little jitter may overtake one with much; otherwise jitter keeps the order.
    pub overtaking: bool,
    /// In percent: packets that skip the delay altogether, and so arrive before those ahead of them.
    pub reorder: f64,
    /// Only each so-manieth packet is a candidate for `reorder`; at least 1.
    pub gap: u32,
    /// In percent: packets that are sent twice.
    pub duplicate: f64,
    /// In bits per second, with [`Path::overhead`]; 0 is without limit.
    pub rate: u64,
    /// Bytes that a packet takes on the wire beside its own: 14 for the header of Ethernet, as a kernel counts.
    pub overhead: u32,
    /// The longest packet that passes, in bytes without [`Path::overhead`]; longer ones vanish. 0 is without limit.
    pub mtu: u32,
    /// How much may wait for the rate.
    pub limit: Limit,
    /// A packet whose sender speaks ECN is marked instead of delayed in silence when it has to wait longer than this.
    pub ecn: Option<Duration>,
}

/// Which packets are lost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Loss {
    /// None.
    #[default]
    None,
    /// Each on its own.
    Random {
        /// In percent.
        percent: f64,
    },
    /// In runs, and every packet of a run.
    Burst {
        /// In percent, over all packets.
        percent: f64,
        /// The mean length of a run, in packets; at least 1.
        mean: f64,
    },
    /// The chain of two states of Gilbert and Elliott, with the parameters of netem's `gemodel`, each in percent.
    Gilbert {
        /// From good to bad after a packet.
        p: f64,
        /// From bad to good after a packet.
        r: f64,
        /// Lost while bad (netem: 1-h).
        bad: f64,
        /// Lost while good (netem: 1-k).
        good: f64,
    },
}

/// How much may wait in front of the bottleneck before more is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Bytes on the wire.
    Bytes(u64),
    /// Packets.
    Packets(u64),
    /// The time that a packet would have to wait.
    Time(Duration),
}

impl Link {
    /// The same both ways.
    pub fn symmetric(path: Path) -> Self {
        Self {
            up: path,
            down: path,
        }
    }

    /// Checks the knobs of both directions.
    ///
    /// # Errors
    ///
    /// The first knob that is out of its range.
    pub fn check(&self) -> Result<(), LinkError> {
        self.up.check()?;
        self.down.check()
    }

    /// The round trip of a small packet that waits for nobody.
    pub fn round_trip(&self) -> Duration {
        self.up.delay + self.down.delay
    }

    /// A link on which everything is lost.
    pub fn blocked() -> Self {
        Self::symmetric(Path {
            loss: Loss::Random { percent: 100.0 },
            ..Path::default()
        })
    }
}

impl Path {
    /// Checks every knob.
    ///
    /// # Errors
    ///
    /// The first knob that is out of its range.
    pub fn check(&self) -> Result<(), LinkError> {
        let percent = |name, value: f64| {
            if (0.0..=100.0).contains(&value) {
                Ok(())
            } else {
                Err(LinkError::Percent { name, value })
            }
        };
        match self.loss {
            Loss::None => {}
            Loss::Random { percent: loss } => percent("loss", loss)?,
            Loss::Burst {
                percent: loss,
                mean,
            } => {
                percent("loss", loss)?;
                // each run of lost packets is followed by at least one that is not
                if !(mean >= 1.0 && mean.is_finite() && loss <= 100.0 * mean / (mean + 1.0)) {
                    return Err(LinkError::Burst {
                        percent: loss,
                        mean,
                    });
                }
            }
            Loss::Gilbert { p, r, bad, good } => {
                percent("gemodel p", p)?;
                percent("gemodel r", r)?;
                percent("gemodel 1-h", bad)?;
                percent("gemodel 1-k", good)?;
            }
        }
        percent("reorder", self.reorder)?;
        percent("duplicate", self.duplicate)?;
        if self.gap == 0 {
            return Err(LinkError::Gap);
        }
        if self.overhead > MAX_OVERHEAD {
            return Err(LinkError::Overhead {
                bytes: self.overhead,
            });
        }
        let longest = self.delay.max(self.jitter);
        let longest = match self.limit {
            Limit::Bytes(_) | Limit::Packets(_) => longest,
            Limit::Time(wait) => longest.max(wait),
        };
        if longest > MAX_DELAY {
            return Err(LinkError::Delay { delay: longest });
        }
        Ok(())
    }

    /// How long `len` bytes of a packet keep the transmitter busy; zero without a rate.
    ///
    /// Rounded up to a nanosecond, so that the rate is never exceeded.
    pub fn transmission(&self, len: usize) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let bits = (len as u64 + u64::from(self.overhead)) * 8;
        Duration::from_nanos((bits * 1_000_000_000).div_ceil(self.rate))
    }

    /// The share of packets that are lost in the long run, from 0 to 1.
    pub fn loss_rate(&self) -> f64 {
        match self.loss {
            Loss::None => 0.0,
            Loss::Random { percent } | Loss::Burst { percent, .. } => percent / 100.0,
            Loss::Gilbert { p, r, bad, good } => {
                let in_bad = if p + r > 0.0 { p / (p + r) } else { 0.0 };
                (in_bad * bad + (1.0 - in_bad) * good) / 100.0
            }
        }
    }
}

impl Default for Path {
    fn default() -> Self {
        Self {
            loss: Loss::None,
            after: false,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            overtaking: false,
            reorder: 0.0,
            gap: 1,
            duplicate: 0.0,
            rate: 0,
            overhead: ETHERNET,
            mtu: 0,
            limit: Limit::Packets(NETEM_LIMIT),
            ecn: None,
        }
    }
}

impl Loss {
    /// The chain of two states that gives these losses, as `(p, r, bad, good)` in percent; none without loss.
    pub(super) fn chain(self) -> Option<(f64, f64, f64, f64)> {
        match self {
            Self::None => None,
            Self::Random { percent } => Some((0.0, 100.0, 100.0, percent)),
            Self::Burst { percent, mean } => {
                let r = 100.0 / mean;
                let p = if percent > 0.0 {
                    r * percent / (100.0 - percent)
                } else {
                    0.0
                };
                Some((p.min(100.0), r, 100.0, 0.0))
            }
            Self::Gilbert { p, r, bad, good } => Some((p, r, bad, good)),
        }
    }
}

/// A knob that is out of its range.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum LinkError {
    /// A share that is none.
    #[error("{name} is {value} %, and lies between 0 and 100")]
    Percent {
        /// Which.
        name: &'static str,
        /// What it is.
        value: f64,
    },
    /// Runs that cannot be.
    #[error(
        "losses of {percent} % do not come in runs of {mean} on average: at least one packet lies between two runs"
    )]
    Burst {
        /// The share of packets lost.
        percent: f64,
        /// The mean length of a run.
        mean: f64,
    },
    /// A gap of nothing.
    #[error("the gap of reordering is 0, and is at least 1")]
    Gap,
    /// More beside a packet than any packet.
    #[error("an overhead of {bytes} bytes a packet is more than a packet holds")]
    Overhead {
        /// What it is.
        bytes: u32,
    },
    /// A delay that no test waits for.
    #[error("a delay of {delay:?} is longer than 60 s")]
    Delay {
        /// What it is.
        delay: Duration,
    },
}

/// The header of Ethernet, which a kernel's shaper counts with each packet.
const ETHERNET: u32 = 14;
/// The limit of netem where none is given.
const NETEM_LIMIT: u64 = 1000;
/// The longest IP packet.
const MAX_OVERHEAD: u32 = 65_535;
/// Twice around the Earth by the slowest satellite is a fiftieth of this; beyond is a mistake of units.
const MAX_DELAY: Duration = Duration::from_secs(60);
