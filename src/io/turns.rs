//! How long a driver's turns may follow each other.

use std::future::Future as _;
use std::pin::pin;
use std::task::Context;
use std::time::{Duration, Instant};

use super::clock;

/// A run of a driver's turns.
///
/// A driver with a flow in bulk always has more to do, and would never hear of anything else: only the runtime learns which
/// sockets became ready, once no task is left that is to run. So a run of turns ends after [`RUN`], and goes on when the
/// sockets were looked at.
#[derive(Clone, Copy, Debug)]
pub struct Turns {
    until: Instant,
}

impl Turns {
    /// Begins a run.
    #[must_use]
    pub fn begin() -> Self {
        Self {
            until: clock::now() + RUN,
        }
    }

    /// Tells whether the run is over; [`Turns::give_way`] comes next then.
    #[must_use]
    pub fn are_over(&self, now: Instant) -> bool {
        now >= self.until
    }

    /// Has the task of `cx` run again after the runtime has looked at the sockets and other tasks have run.
    pub fn give_way(cx: &mut Context<'_>) {
        // Tokio keeps the waker, and not the future.
        let _ = pin!(tokio::task::yield_now()).poll(cx);
    }
}

/// How long a run lasts: 400 KiB at 13 Gbit/s. A look at the sockets costs about a microsecond.
const RUN: Duration = Duration::from_micros(250);
