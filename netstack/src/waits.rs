//! Flows that are over but whose addresses must rest: TIME-WAIT in a few words instead of a socket with rings.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use foldhash::quality::SeedableRandomState;

use crate::flow::Tuple;

/// What is kept of a flow that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// TIME-WAIT (RFC 9293 §3.6.1): the peer may not have our last acknowledgement and asks for it again.
    TimeWait {
        /// Our next sequence number.
        sequence: u32,
        /// What we acknowledge.
        ack: u32,
    },
    /// Over for both sides; only that its addresses are not used again at once.
    Quiet,
}

/// A bounded table in order of time.
#[derive(Debug)]
pub(crate) struct Waits {
    table: HashMap<Tuple, (Wait, Instant), SeedableRandomState>,
    /// In the order of expiry, since every entry rests equally long.
    order: VecDeque<(Tuple, Instant)>,
}

impl Waits {
    pub(crate) fn new(hasher: SeedableRandomState) -> Waits {
        Waits {
            table: HashMap::with_hasher(hasher),
            order: VecDeque::new(),
        }
    }

    /// Lays a flow to rest; true if an older one had to give way.
    pub(crate) fn insert(&mut self, now: Instant, tuple: Tuple, wait: Wait) -> bool {
        let expires = now + REST;
        self.table.insert(tuple, (wait, expires));
        self.order.push_back((tuple, expires));
        if self.order.len() <= MAX_WAITS {
            return false;
        }
        self.drop_oldest();
        true
    }

    pub(crate) fn find(&self, tuple: &Tuple) -> Option<Wait> {
        self.table.get(tuple).map(|(wait, _)| *wait)
    }

    /// Forgets a flow, since its addresses are in use again.
    pub(crate) fn remove(&mut self, tuple: &Tuple) {
        self.table.remove(tuple);
    }

    pub(crate) fn expire(&mut self, now: Instant) {
        while self
            .order
            .front()
            .is_some_and(|(_, expires)| *expires <= now)
        {
            self.drop_oldest();
        }
        // What a burst of flows needed is not kept.
        if self.order.is_empty() && self.order.capacity() > KEPT {
            self.table.shrink_to_fit();
            self.order.shrink_to_fit();
        }
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.order.front().map(|(_, expires)| *expires)
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    fn drop_oldest(&mut self) {
        let Some((tuple, expires)) = self.order.pop_front() else {
            return;
        };
        // The same addresses may have come to rest a second time since.
        if self
            .table
            .get(&tuple)
            .is_some_and(|(_, newest)| *newest == expires)
        {
            self.table.remove(&tuple);
        }
    }
}

/// Twice a maximum segment lifetime of 7.5 s: the inner network is one hop that replays nothing, and RFC 9293 §3.4.2
/// leaves the time to the network there is.
const REST: Duration = Duration::from_secs(15);
/// An empty table keeps room for so many.
const KEPT: usize = 64;
/// Half of the ports of one pair of addresses; about 4 MB, table and order together.
const MAX_WAITS: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(port: u16) -> Tuple {
        Tuple {
            local: ([10, 0, 0, 1].into(), port),
            remote: ([10, 0, 0, 2].into(), 80),
        }
    }

    fn waits() -> Waits {
        Waits::new(SeedableRandomState::random())
    }

    #[test]
    fn rests_for_15_s() {
        let start = Instant::now();
        let mut waits = waits();
        waits.insert(start, tuple(1), Wait::Quiet);
        waits.expire(start + REST - Duration::from_millis(1));
        assert_eq!(waits.find(&tuple(1)), Some(Wait::Quiet));
        assert_eq!(waits.next(), Some(start + REST));
        waits.expire(start + REST);
        assert_eq!(waits.find(&tuple(1)), None);
        assert_eq!(waits.next(), None);
    }

    #[test]
    fn second_rest_outlives_the_first() {
        let start = Instant::now();
        let mut waits = waits();
        waits.insert(start, tuple(1), Wait::Quiet);
        waits.remove(&tuple(1));
        waits.insert(
            start + Duration::from_secs(10),
            tuple(1),
            Wait::TimeWait {
                sequence: 1,
                ack: 2,
            },
        );
        waits.expire(start + REST);
        assert_eq!(
            waits.find(&tuple(1)),
            Some(Wait::TimeWait {
                sequence: 1,
                ack: 2
            })
        );
    }

    #[test]
    fn oldest_gives_way_when_full() {
        let start = Instant::now();
        let mut waits = waits();
        for port in 0..MAX_WAITS {
            assert!(!waits.insert(start, tuple(port as u16), Wait::Quiet));
        }
        assert!(waits.insert(start, tuple(60_000), Wait::Quiet));
        assert_eq!(waits.find(&tuple(0)), None);
        assert_eq!(waits.len(), MAX_WAITS);
    }
}
