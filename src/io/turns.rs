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

    /// Tells whether the run is over now: for those who do many things in one turn, each of which may take a while. They do one
    /// in any case, or a turn might do nothing, and nobody would take the next.
    #[must_use]
    pub fn are_over_by_now(&self) -> bool {
        self.are_over(clock::now())
    }

    /// A run that is over, or one without an end, for a test.
    #[cfg(test)]
    pub(crate) fn for_test(over: bool) -> Self {
        let hour = Duration::from_secs(3600);
        let until = clock::now() + hour;
        Self {
            until: if over { clock::now() } else { until },
        }
    }

    /// Has the task of `cx` run again after the runtime has looked at the sockets and other tasks have run.
    pub fn give_way(cx: &mut Context<'_>) {
        // Tokio keeps the waker, and not the future.
        let _ = pin!(tokio::task::yield_now()).poll(cx);
    }
}

/// How long a run lasts: 400 KiB at 13 Gbit/s. A look at the sockets costs about a microsecond.
const RUN: Duration = Duration::from_micros(250);

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Poll;

    use super::*;

    #[test]
    fn run_is_over_after_its_time_and_not_before() {
        let turns = Turns::begin();
        let begun = turns.until - RUN;
        assert!(!turns.are_over(begun));
        assert!(!turns.are_over(turns.until - Duration::from_nanos(1)));
        assert!(turns.are_over(turns.until));
        assert!(Turns::for_test(true).are_over_by_now());
        assert!(!Turns::for_test(false).are_over_by_now());
    }

    /// Two tasks on one thread, one of which always has more to do: the other has its turn each time that gives way.
    #[tokio::test]
    async fn task_that_gives_way_runs_again_after_the_others() {
        const TURNS: usize = 10;
        let others = Arc::new(AtomicUsize::new(0));
        let counted = others.clone();
        let other = tokio::spawn(async move {
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        let mut seen = Vec::new();
        std::future::poll_fn(|cx| {
            seen.push(others.load(Ordering::Relaxed));
            if seen.len() == TURNS {
                return Poll::Ready(());
            }
            Turns::give_way(cx);
            Poll::Pending
        })
        .await;
        other.abort();
        assert!(
            seen.is_sorted_by(|before, after| before < after),
            "{seen:?}"
        );
    }
}
