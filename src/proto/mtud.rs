//! How long a datagram a lane carries, found by trying (RFC 8899, DPLPMTUD).
//!
//! ```text
//!           confirmed                 ceiling passes, or the gap is small
//!   Base ─────────────▶ Searching ───────────────────────────────────────▶ Found
//!    ▲                      ▲  ◀──────── ten minutes later, or a new ceiling ──┤
//!    │                      │                                                  │
//!    └──────────────────────┴──── black hole: back to the base ◀───────────────┘
//! ```
//!
//! A lane begins with [`BASE_DATAGRAM`] and tries the ceiling at once, since most paths are Ethernet
//! all the way; after that it halves the gap. A size has failed when [`MAX_PROBES`] probes of it
//! went unanswered. Probes carry nothing but padding, so nothing is lost with one.
//!
//! A path may come to carry less than it did. Two things show it: a probe of the present size, every
//! [`CONFIRM`] while it is above the base, unanswered [`MAX_CONFIRMS`] times; and the caller's word
//! that long datagrams are lost, again and again, while short ones arrive
//! ([`MtuDiscovery::handle_lost`]). Silence proves nothing about length, so nothing is concluded
//! while the lane hears nothing at all; nor does one run of losses, which is what a full queue makes.
//! Whatever it was, the ceiling is tried again at once, so a mistake costs a round trip. What the network says
//! is too big is not sent until the search begins again ([`MtuDiscovery::handle_too_big`]).

use std::time::{Duration, Instant};

use crate::wire::BASE_DATAGRAM;

/// The search on one lane.
#[derive(Clone, Debug)]
pub(super) struct MtuDiscovery {
    current: usize,
    ceiling: usize,
    /// The least length known to fail, or one more than the ceiling.
    failing: usize,
    phase: Phase,
    probe: Option<Probe>,
    serial: u32,
    /// Long datagrams lost since a long one arrived.
    long_losses: u32,
    /// Runs of such losses that a short one, which arrived, has ended.
    runs: u32,
    /// Whether a long one was lost since a short one arrived.
    in_run: bool,
    stats: MtuStats,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Not begun: the lane is not confirmed.
    Base,
    /// Looking between `current` and `failing`.
    Searching,
    /// Done; the present size is confirmed at `confirm` and the search begun again at `again`.
    Found { confirm: Instant, again: Instant },
}

/// A size under trial.
#[derive(Clone, Copy, Debug)]
struct Probe {
    size: usize,
    serial: u32,
    sent: u32,
    /// When the next one leaves, or the size has failed.
    next: Instant,
}

/// What a search has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MtuStats {
    /// Probes sent.
    pub probes: u64,
    /// Times a length that had passed no longer did.
    pub black_holes: u64,
}

impl MtuDiscovery {
    /// Starts with the base, and never tries more than `ceiling`.
    pub(super) const fn new(ceiling: usize) -> Self {
        let ceiling = if ceiling > BASE_DATAGRAM {
            ceiling
        } else {
            BASE_DATAGRAM
        };
        Self {
            current: BASE_DATAGRAM,
            ceiling,
            failing: ceiling + 1,
            phase: Phase::Base,
            probe: None,
            serial: 0,
            long_losses: 0,
            runs: 0,
            in_run: false,
            stats: MtuStats {
                probes: 0,
                black_holes: 0,
            },
        }
    }

    /// The longest datagram to send now.
    pub(super) const fn current(&self) -> usize {
        self.current
    }

    /// Whether the search is over, for now.
    pub(super) const fn is_settled(&self) -> bool {
        match self.phase {
            Phase::Base | Phase::Searching => false,
            Phase::Found { .. } => true,
        }
    }

    pub(super) const fn stats(&self) -> MtuStats {
        self.stats
    }

    /// The lane is confirmed: the search may begin.
    pub(super) fn begin(&mut self) {
        match self.phase {
            Phase::Base => self.phase = Phase::Searching,
            Phase::Searching | Phase::Found { .. } => {}
        }
    }

    /// The lane goes another way: nothing is known of it.
    pub(super) fn restart(&mut self) {
        let fresh = Self::new(self.ceiling);
        let phase = match self.phase {
            Phase::Base => Phase::Base,
            Phase::Searching | Phase::Found { .. } => Phase::Searching,
        };
        *self = Self {
            phase,
            // A probe of the old way, answered late, must not be taken for one of the new.
            serial: self.serial,
            stats: self.stats,
            ..fresh
        };
    }

    /// Sets the longest datagram worth sending, or that the interface takes.
    pub(super) fn set_ceiling(&mut self, ceiling: usize) {
        let ceiling = ceiling.max(BASE_DATAGRAM);
        if ceiling == self.ceiling {
            return;
        }
        self.ceiling = ceiling;
        self.current = self.current.min(ceiling);
        self.failing = ceiling + 1;
        self.probe = None;
        match self.phase {
            Phase::Base | Phase::Searching => {}
            Phase::Found { .. } => self.phase = Phase::Searching,
        }
    }

    /// The next probe: its whole length and its serial. `patience` is how long its answer may take.
    pub(super) fn poll(&mut self, now: Instant, patience: Duration) -> Option<(usize, u32)> {
        loop {
            match &mut self.probe {
                Some(probe) if probe.next > now => return None,
                Some(probe) if probe.sent < tries(probe.size, self.current) => {
                    probe.sent += 1;
                    probe.next = now + patience;
                    self.stats.probes += 1;
                    return Some((probe.size, probe.serial));
                }
                Some(probe) => {
                    let size = probe.size;
                    self.probe = None;
                    self.handle_failed(size);
                }
                None => {
                    let size = self.next_size(now)?;
                    self.serial = self.serial.wrapping_add(1);
                    self.probe = Some(Probe {
                        size,
                        serial: self.serial,
                        sent: 0,
                        next: now,
                    });
                }
            }
        }
    }

    /// A probe was answered; whether [`MtuDiscovery::current`] changed.
    pub(super) fn handle_answer(&mut self, now: Instant, serial: u32) -> bool {
        let Some(probe) = self.probe.take_if(|probe| probe.serial == serial) else {
            return false;
        };
        let grew = probe.size > self.current;
        self.current = self.current.max(probe.size);
        self.forget_losses();
        match self.phase {
            Phase::Base | Phase::Searching => {}
            Phase::Found { again, .. } => {
                let confirm = now + CONFIRM;
                self.phase = Phase::Found { confirm, again };
            }
        }
        grew
    }

    /// Nothing at all is heard on the lane: probes that go unanswered say nothing about length.
    pub(super) fn handle_silence(&mut self) {
        self.probe = None;
    }

    /// The other end has a datagram of `len` bytes.
    pub(super) fn handle_acknowledged(&mut self, len: usize) {
        if len > BASE_DATAGRAM {
            self.forget_losses();
        } else if std::mem::take(&mut self.in_run) {
            self.runs += 1;
        }
    }

    /// A datagram of `len` bytes is lost while later ones arrived; whether that makes so many long
    /// ones, in so many runs and with none between that arrived, that the base is gone back to.
    pub(super) fn handle_lost(&mut self, len: usize) -> bool {
        if len <= BASE_DATAGRAM || self.current <= BASE_DATAGRAM {
            return false;
        }
        self.long_losses += 1;
        self.in_run = true;
        let hole = self.long_losses >= HOLE_LOSSES && self.runs >= HOLE_RUNS;
        if hole {
            self.fall_back();
        }
        hole
    }

    /// The network says that no more than `len` bytes pass. Anybody could say so, so it is believed until the search
    /// begins again, and not below the base (RFC 8899, section 4.6).
    pub(super) fn handle_too_big(&mut self, len: usize) {
        let len = len.max(BASE_DATAGRAM);
        if len >= self.ceiling {
            return;
        }
        self.current = self.current.min(len);
        self.failing = self.failing.min(len + 1);
        self.probe = None;
    }

    /// When [`MtuDiscovery::poll`] has something next.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        match (&self.probe, self.phase) {
            (Some(probe), _) => Some(probe.next),
            (None, Phase::Base) => None,
            (None, Phase::Searching) => Some(now),
            (None, Phase::Found { confirm, again }) if self.current > BASE_DATAGRAM => {
                Some(confirm.min(again))
            }
            (None, Phase::Found { again, .. }) => Some(again),
        }
    }

    fn next_size(&mut self, now: Instant) -> Option<usize> {
        match self.phase {
            Phase::Base => None,
            Phase::Searching if self.current >= self.ceiling => self.settle(now),
            Phase::Searching if self.failing > self.ceiling => Some(self.ceiling),
            Phase::Searching if self.failing - self.current <= PRECISION => self.settle(now),
            Phase::Searching => Some(self.current + (self.failing - self.current) / 2),
            Phase::Found { again, .. } if again <= now => {
                self.phase = Phase::Searching;
                self.failing = self.ceiling + 1;
                self.next_size(now)
            }
            Phase::Found { confirm, .. } if confirm <= now && self.current > BASE_DATAGRAM => {
                Some(self.current)
            }
            Phase::Found { .. } => None,
        }
    }

    fn settle(&mut self, now: Instant) -> Option<usize> {
        self.phase = Phase::Found {
            confirm: now + CONFIRM,
            again: now + AGAIN,
        };
        None
    }

    fn handle_failed(&mut self, size: usize) {
        if size > self.current {
            self.failing = size;
        } else {
            // What had passed does not pass any more.
            self.fall_back();
        }
    }

    fn fall_back(&mut self) {
        self.stats.black_holes += 1;
        self.failing = self.ceiling + 1;
        self.current = BASE_DATAGRAM;
        self.forget_losses();
        self.probe = None;
        self.phase = Phase::Searching;
    }

    fn forget_losses(&mut self) {
        self.long_losses = 0;
        self.runs = 0;
        self.in_run = false;
    }
}

/// How many probes of a size must fail: more where it has passed before.
const fn tries(size: usize, current: usize) -> u32 {
    if size > current {
        MAX_PROBES
    } else {
        MAX_CONFIRMS
    }
}

/// Probes of one size that may go unanswered (RFC 8899, section 5.1.2).
const MAX_PROBES: u32 = 3;

/// How near the search comes: a packet header's worth is not worth three more probes.
const PRECISION: usize = 16;

/// How often a size above the base is confirmed, for as long as it holds.
const CONFIRM: Duration = Duration::from_secs(15);

/// How often a longer one is looked for (RFC 8899, section 5.1.1, PMTU_RAISE_TIMER).
const AGAIN: Duration = Duration::from_secs(600);

/// Probes of a size that has passed, before it is given up: where a tenth is lost each way, they all are
/// once in four thousand times.
const MAX_CONFIRMS: u32 = 5;

/// Long datagrams lost without one between that arrived, that make a black hole. Loss at random
/// does this to one in ten million at 20 %.
const HOLE_LOSSES: u32 = 10;

/// Runs of losses among them, each ended by a short datagram that arrived (quinn has as many).
const HOLE_RUNS: u32 = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(500);

    /// Runs a search on a path that carries `limit` bytes; returns the sizes tried.
    fn search(discovery: &mut MtuDiscovery, now: &mut Instant, limit: usize) -> Vec<usize> {
        let mut sizes = Vec::new();
        for _ in 0..100 {
            while let Some((size, serial)) = discovery.poll(*now, PATIENCE) {
                sizes.push(size);
                if size <= limit {
                    discovery.handle_answer(*now, serial);
                }
            }
            *now += PATIENCE;
        }
        sizes
    }

    #[test]
    fn an_ethernet_path_is_found_with_one_probe() {
        let mut now = Instant::now();
        let mut discovery = MtuDiscovery::new(1464);
        assert_eq!(
            discovery.poll(now, PATIENCE),
            None,
            "not before confirmation"
        );
        discovery.begin();
        now += PATIENCE;
        assert_eq!(discovery.poll(now, PATIENCE), Some((1464, 1)));
        assert!(discovery.handle_answer(now, 1));
        assert_eq!(discovery.poll(now, PATIENCE), None);
        assert_eq!(discovery.current(), 1464);
    }

    #[test]
    fn a_narrow_path_is_found_within_16_bytes() {
        let mut now = Instant::now();
        let mut discovery = MtuDiscovery::new(1472);
        discovery.begin();
        let sizes = search(&mut discovery, &mut now, 1392);
        assert!(
            (1376..=1392).contains(&discovery.current()),
            "{discovery:?}"
        );
        assert_eq!(sizes[..3], [1472, 1472, 1472]);
        assert!(sizes.len() <= 18, "{sizes:?}");
    }

    #[test]
    fn a_path_that_comes_to_carry_less_is_noticed_within_20_s() {
        let mut now = Instant::now();
        let mut discovery = MtuDiscovery::new(1464);
        discovery.begin();
        search(&mut discovery, &mut now, 1464);
        assert_eq!(discovery.current(), 1464);
        search(&mut discovery, &mut now, 1300);
        assert!(
            (1284..=1300).contains(&discovery.current()),
            "{discovery:?}"
        );
        assert_eq!(discovery.stats().black_holes, 1);
    }

    #[test]
    fn what_the_network_says_is_too_big_is_not_sent_until_the_search_begins_again() {
        let mut now = Instant::now();
        let mut discovery = MtuDiscovery::new(1464);
        discovery.begin();
        search(&mut discovery, &mut now, 1464);
        for (said, believed) in [(1500, 1464), (1300, 1300), (1400, 1300), (68, 1200)] {
            discovery.handle_too_big(said);
            assert_eq!(discovery.current(), believed, "{said}");
        }
        search(&mut discovery, &mut now, 1464);
        assert_eq!(discovery.current(), 1200);
        now += AGAIN;
        search(&mut discovery, &mut now, 1464);
        assert_eq!(discovery.current(), 1464);
        // Or while it goes on.
        discovery.restart();
        discovery.handle_too_big(1300);
        let sizes = search(&mut discovery, &mut now, 1464);
        assert!(sizes.iter().all(|size| *size <= 1300), "{sizes:?}");
        assert!(discovery.current() > 1300 - PRECISION, "{discovery:?}");
    }

    #[test]
    fn long_losses_among_short_ones_that_arrive_are_a_black_hole_and_one_long_run_is_not() {
        let mut now = Instant::now();
        let mut discovery = MtuDiscovery::new(1464);
        discovery.begin();
        search(&mut discovery, &mut now, 1464);
        // A full queue loses a run, whatever the length.
        for _ in 0..3 {
            for _ in 0..100 {
                assert!(!discovery.handle_lost(1433));
                assert!(!discovery.handle_lost(100));
            }
            discovery.handle_acknowledged(100);
            assert!(!discovery.handle_lost(1433));
            discovery.handle_acknowledged(1433);
        }
        let holes: Vec<bool> = (0..10)
            .map(|_| {
                discovery.handle_acknowledged(100);
                discovery.handle_lost(1433)
            })
            .collect();
        assert_eq!(holes, [[false; 9].as_slice(), &[true]].concat());
        assert_eq!(discovery.current(), BASE_DATAGRAM);
        assert_eq!(
            discovery.poll(now, PATIENCE).map(|(size, _)| size),
            Some(1464)
        );
    }

    #[test]
    fn a_longer_path_is_looked_for_after_ten_minutes() {
        let mut now = Instant::now();
        let mut discovery = MtuDiscovery::new(1464);
        discovery.begin();
        search(&mut discovery, &mut now, 1250);
        now += AGAIN;
        search(&mut discovery, &mut now, 1464);
        assert_eq!(discovery.current(), 1464);
    }

    #[test]
    fn a_probe_of_the_way_before_says_nothing_of_the_new_one() {
        let now = Instant::now();
        let mut discovery = MtuDiscovery::new(1464);
        discovery.begin();
        let (_, serial) = discovery.poll(now, PATIENCE).unwrap();
        discovery.restart();
        discovery.poll(now, PATIENCE).unwrap();
        assert!(!discovery.handle_answer(now, serial));
        assert_eq!(discovery.current(), BASE_DATAGRAM);
    }

    proptest! {
        #[test]
        fn what_is_found_passes_and_little_more_would(
            limit in 1200usize..1500, ceiling in 1000usize..1500,
        ) {
            let mut now = Instant::now();
            let mut discovery = MtuDiscovery::new(ceiling);
            discovery.begin();
            search(&mut discovery, &mut now, limit);
            let best = limit.min(ceiling.max(BASE_DATAGRAM));
            prop_assert!(discovery.current() <= best);
            prop_assert!(discovery.current() + PRECISION > best);
        }
    }
}
