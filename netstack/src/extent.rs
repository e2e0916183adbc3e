//! Which part of a ring holds memory: the pages written since they were last given back, as one arc.
//!
//! ```text
//!     0                                             capacity
//!     │·····│#########│====== live ======│#########│····│
//!          start                                  start + len
//!           └── dead ─┘                  └── dead ─┘
//! ```
//!
//! Bytes are written behind each other, so that what was touched is an arc without holes: from the page at which the first
//! was written to the page of the furthest. An arc as long as the ring is all of it. It may be longer than what was
//! touched (what waits behind a gap counts with the gap), never shorter.

/// The arc of a ring that holds memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// A multiple of the page, below the capacity.
    start: usize,
    /// A multiple of the page, at most the capacity.
    len: usize,
    /// A multiple of the page.
    capacity: usize,
    /// A power of two.
    page: usize,
}

/// A range of a ring that may wrap: where it starts, and its length.
pub(crate) type Span = (usize, usize);

impl Extent {
    /// Makes the extent of a ring that nobody has written to.
    pub(crate) fn new(capacity: usize, page: usize) -> Extent {
        Extent {
            start: 0,
            len: 0,
            capacity,
            page,
        }
    }

    /// Says how many bytes it would grow by if `count` were written from `at` on.
    pub(crate) fn growth(&self, at: usize, count: usize) -> usize {
        let (_, reach) = self.reach(at, count);
        reach.saturating_sub(self.len)
    }

    /// Grows to hold `count` bytes from `at` on.
    pub(crate) fn grow(&mut self, at: usize, count: usize) {
        let (start, reach) = self.reach(at, count);
        self.start = start;
        self.len = self.len.max(reach);
    }

    /// Says how many bytes from `at` on can be written without growth, if some part holds memory.
    pub(crate) fn slack(&self, at: usize) -> usize {
        match self.len {
            0 => 0,
            len if len == self.capacity => len,
            len => len.saturating_sub(self.distance(at)),
        }
    }

    /// Finds what is dead while `count` bytes from `at` on are live: what lies before them, and what lies behind.
    pub(crate) fn dead(&self, at: usize, count: usize) -> (Span, Span) {
        if count == 0 || self.len == 0 {
            return ((self.start, self.len), (self.start, 0));
        }
        let (live, live_len) = self.live(at, count);
        // An arc that is the whole ring starts wherever it suits.
        let before = if self.len == self.capacity {
            0
        } else {
            self.distance(live)
        };
        let behind = self.len.saturating_sub(before + live_len);
        let end = wrapped(live + live_len, self.capacity);
        ((self.start, before), (end, behind))
    }

    /// Shrinks to the `count` bytes from `at` on that are live.
    pub(crate) fn shrink(&mut self, at: usize, count: usize) {
        let (start, len) = match count {
            0 => (0, 0),
            _ => self.live(at, count),
        };
        (self.start, self.len) = (start, len.min(self.len));
    }

    /// Says how many bytes hold memory.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Says whether the arc starts where a new flow does.
    pub(crate) fn is_at_zero(&self) -> bool {
        self.start == 0
    }

    /// The pages of a range.
    fn live(&self, at: usize, count: usize) -> Span {
        let start = at & !(self.page - 1);
        let len = (at - start + count).next_multiple_of(self.page);
        (start, len.min(self.capacity))
    }

    fn reach(&self, at: usize, count: usize) -> Span {
        let start = match self.len {
            0 => at & !(self.page - 1),
            _ => self.start,
        };
        let from = wrapped(at + self.capacity - start, self.capacity);
        let reach = (from + count).next_multiple_of(self.page);
        (start, reach.min(self.capacity))
    }

    fn distance(&self, at: usize) -> usize {
        wrapped(at + self.capacity - self.start, self.capacity)
    }
}

/// Brings a place less than twice the capacity into the ring.
pub(crate) fn wrapped(at: usize, capacity: usize) -> usize {
    if at < capacity { at } else { at - capacity }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 16;
    const CAPACITY: usize = 8 * PAGE;

    #[test]
    fn pages_that_were_written_count_once() {
        let mut extent = Extent::new(CAPACITY, PAGE);
        assert_eq!(extent.growth(20, 1), PAGE);
        extent.grow(20, 1);
        assert_eq!((extent.len(), extent.growth(21, 11)), (PAGE, 0));
        assert_eq!(extent.slack(21), 11);
        assert_eq!(extent.growth(21, 12), PAGE);
        extent.grow(120, 10);
        assert_eq!(extent.len(), 8 * PAGE, "the first page is the ring's last");
    }

    #[test]
    fn what_is_read_is_dead_and_the_rest_stays() {
        let mut extent = Extent::new(CAPACITY, PAGE);
        extent.grow(0, 70);
        assert_eq!(extent.dead(40, 10), ((0, 32), (64, 16)));
        assert_eq!(extent.dead(40, 0), ((0, 80), (0, 0)));
        extent.shrink(40, 10);
        assert_eq!(extent.len(), 32);
        assert_eq!(extent.dead(40, 10), ((32, 0), (64, 0)));
    }

    #[test]
    fn whole_ring_keeps_what_wraps() {
        let mut extent = Extent::new(CAPACITY, PAGE);
        extent.grow(0, CAPACITY);
        assert_eq!(
            (extent.growth(50, CAPACITY), extent.slack(50)),
            (0, CAPACITY)
        );
        assert_eq!(extent.dead(120, 10), ((0, 0), (16, 96)));
        extent.shrink(120, 10);
        assert_eq!(extent.dead(120, 10), ((112, 0), (16, 0)));
        assert_eq!(extent.len(), 32);
    }
}
