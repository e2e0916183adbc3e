//! What a datagram lane has beside what every lane has: paths, path MTU, replay windows.

use std::time::{Duration, Instant};

use super::mtud::MtuDiscovery;
use super::path::{DatagramPath, Paths};
use super::replay::{ReplayWindow, Replayed};
use super::retry::Retry;

/// The datagram half of a lane.
#[derive(Debug)]
pub(super) struct Lossy {
    pub(super) paths: Paths,
    pub(super) mtu: MtuDiscovery,
    /// The Join or JoinOk that makes the lane, until it is answered.
    pub(super) retry: Retry,
    /// Longest datagram the way takes, as far as the driver knows.
    pub(super) interface: usize,
    windows: [EpochWindow; WINDOWS],
    newest: Option<(u64, u64)>,
}

/// Which counters of one epoch were opened. The window comes with the first.
#[derive(Debug, Default)]
struct EpochWindow {
    epoch: u64,
    taken: Option<ReplayWindow>,
}

impl Lossy {
    pub(super) fn new(path: DatagramPath) -> Self {
        let interface = path.ethernet_datagram();
        Self {
            paths: Paths::new(path),
            mtu: MtuDiscovery::new(interface),
            retry: Retry::default(),
            interface,
            windows: Default::default(),
            newest: None,
        }
    }

    /// Whether a counter may be opened: each once, in any order.
    pub(super) fn check(&self, epoch: u64, counter: u64) -> Result<(), Replayed> {
        let window = &self.windows[slot(epoch)];
        match &window.taken {
            Some(taken) if window.epoch == epoch => taken.check(counter),
            Some(_) | None => Ok(()),
        }
    }

    /// Remembers a counter whose datagram opened; whether no later one has.
    pub(super) fn accept(&mut self, epoch: u64, counter: u64) -> bool {
        let window = &mut self.windows[slot(epoch)];
        let taken = window.taken.get_or_insert_default();
        if window.epoch != epoch {
            window.epoch = epoch;
            taken.clear();
        }
        // What was checked can be taken.
        let _ = taken.take(counter);
        let newest = self.newest.is_none_or(|newest| newest < (epoch, counter));
        if newest {
            self.newest = Some((epoch, counter));
        }
        newest
    }

    /// Forgets the counters of an epoch whose keys were replaced before they were ever used.
    pub(super) fn forget(&mut self, epoch: u64) {
        let window = &mut self.windows[slot(epoch)];
        if window.epoch == epoch
            && let Some(taken) = &mut window.taken
        {
            taken.clear();
        }
    }
}

/// How long an answer over a lane may take before the question is asked again.
pub(super) fn patience(rtt: Option<Duration>) -> Duration {
    rtt.map_or(UNKNOWN, |rtt| (rtt * 2).clamp(SHORTEST, LONGEST))
}

/// Longest patience in hand at `now`, as a deadline.
pub(super) fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    [a, b].into_iter().flatten().min()
}

fn slot(epoch: u64) -> usize {
    (epoch % WINDOWS as u64) as usize
}

/// Epochs that open at once: former, current, next; four make the slot a mask.
const WINDOWS: usize = 4;

/// Patience where no round trip was measured.
const UNKNOWN: Duration = Duration::from_millis(500);

/// Least patience: a delayed answer is more likely than a lost one.
const SHORTEST: Duration = Duration::from_millis(250);

/// Most patience.
const LONGEST: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn lossy() -> Lossy {
        Lossy::new(DatagramPath::to(SocketAddr::from(([192, 0, 2, 1], 1))))
    }

    #[test]
    fn a_counter_opens_once_in_each_epoch_in_any_order() {
        let mut lossy = lossy();
        for epoch in [0, 1, 0, 1] {
            let _ = lossy.accept(epoch, 5);
            assert_eq!(lossy.check(epoch, 5), Err(Replayed::Seen { number: 5 }));
            assert_eq!(lossy.check(epoch, 3), Ok(()));
            assert_eq!(lossy.check(epoch + 2, 5), Ok(()));
        }
        assert!(lossy.accept(4, 5), "the slot of epoch 0 is epoch 4's");
        assert_eq!(lossy.check(0, 5), Ok(()));
    }

    #[test]
    fn the_newest_is_the_highest_counter_of_the_latest_epoch() {
        let mut lossy = lossy();
        assert!(lossy.accept(0, 5));
        assert!(!lossy.accept(0, 4));
        assert!(lossy.accept(1, 0));
        assert!(!lossy.accept(0, 9));
    }

    #[test]
    fn counters_of_keys_that_were_replaced_are_forgotten() {
        let mut lossy = lossy();
        lossy.accept(1, 0);
        lossy.forget(2);
        assert!(lossy.check(1, 0).is_err());
        lossy.forget(1);
        assert_eq!(lossy.check(1, 0), Ok(()));
    }
}
