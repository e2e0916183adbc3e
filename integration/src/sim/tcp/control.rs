//! What a congestion control is asked and told.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, Instant},
};

use super::{bbr::Bbr, cubic::Cubic, rate::RateSample};

/// A congestion control. It counts in segments, as Linux does.
pub(super) trait Control: fmt::Debug + Send {
    /// Takes an acknowledgement.
    fn on_ack(&mut self, ack: &Acked);

    /// Takes note that a recovery begins.
    fn on_loss(&mut self, now: Instant, in_flight: u32);

    /// Takes note that a recovery is over.
    fn on_recovered(&mut self, now: Instant);

    /// Takes note that the retransmission timeout has passed; `again` without anything acknowledged in between.
    fn on_timeout(&mut self, now: Instant, again: bool);

    /// Takes the last reduction back: nothing was lost.
    fn on_undo(&mut self);

    /// The window.
    fn window(&self) -> u32;

    /// Segments a second, where the control paces.
    fn pacing_rate(&self) -> Option<f64>;

    /// Says whether Proportional Rate Reduction rules the window while a loss is repaired.
    fn uses_reduction(&self) -> bool;
}

/// What an acknowledgement tells a control.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acked {
    pub(super) now: Instant,
    /// Segments delivered that were not known to be.
    pub(super) delivered: u32,
    /// Segments found lost by this acknowledgement.
    pub(super) lost: u32,
    /// Segments in flight after it.
    pub(super) in_flight: u32,
    /// Delivered in all, before and with this one.
    pub(super) total_delivered: u64,
    /// The lowest offset not acknowledged, and the next to be sent.
    pub(super) una: u64,
    pub(super) nxt: u64,
    /// The round trip of the newest segment sent once.
    pub(super) rtt: Option<Duration>,
    pub(super) smoothed: Option<Duration>,
    pub(super) rate: Option<RateSample>,
    /// The window, and not the application, has held the sender back.
    pub(super) window_limited: bool,
    pub(super) phase: Phase,
}

/// What the sender is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing is known to be lost.
    Open,
    /// Losses found by acknowledgements are repaired.
    Recovery,
    /// Losses found by the timeout are repaired.
    Loss,
}

/// The congestion controls there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ControlKind {
    /// CUBIC (RFC 9438) with HyStart++ (RFC 9406).
    #[default]
    Cubic,
    /// A model of BBR version 1.
    Bbr,
}

impl ControlKind {
    pub(super) fn start(self, now: Instant, seed: u64) -> Box<dyn Control> {
        match self {
            Self::Cubic => Box::new(Cubic::new()),
            Self::Bbr => Box::new(Bbr::new(now, seed)),
        }
    }
}

impl fmt::Display for ControlKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cubic => "cubic",
            Self::Bbr => "bbr",
        })
    }
}

impl FromStr for ControlKind {
    type Err = ControlNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "cubic" => Ok(Self::Cubic),
            "bbr" => Ok(Self::Bbr),
            other => Err(ControlNameError {
                name: other.to_owned(),
            }),
        }
    }
}

/// A name that is no congestion control's.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("there is no congestion control {name:?}: cubic or bbr")]
pub struct ControlNameError {
    /// What was asked for.
    pub name: String,
}

/// RFC 6928.
pub(super) const INITIAL_WINDOW: u32 = 10;
