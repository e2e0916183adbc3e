//! A window over numbers that each may be taken once (RFC 6479).
//!
//! Source packets pass one, so that a packet that came twice, by two lanes or by repair, is
//! delivered once. Datagram lanes use it for their counters.
//!
//! Numbers begin at zero, and most sessions are idle before they have used many: the ring grows to what it has had to
//! remember, at most 4 KiB.

/// Remembers which of the last [`WINDOW`] numbers were taken.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// The ring's words, as many from the first on as were ever needed: a power of two.
    bits: Vec<u64>,
    highest: Option<u64>,
}

impl Default for ReplayWindow {
    /// Nothing is taken, and nothing is too old.
    fn default() -> Self {
        Self {
            bits: Vec::new(),
            highest: None,
        }
    }
}

impl ReplayWindow {
    /// Takes a number.
    ///
    /// # Errors
    /// [`Replayed`] when it was taken before, or is so old that this cannot be told.
    pub fn take(&mut self, number: u64) -> Result<(), Replayed> {
        self.check(number)?;
        let word = number / 64;
        match self.highest {
            None => self.highest = Some(number),
            Some(highest) if number > highest => {
                let last = highest / 64;
                // Words between the two come into the window empty.
                let entered = (word - last).min(WORDS as u64);
                for step in 1..=entered {
                    if let Some(bits) = self.bits.get_mut(slot(last.wrapping_add(step))) {
                        *bits = 0;
                    }
                }
                // A jump over the whole ring has emptied it, wherever the steps ended.
                self.highest = Some(number);
            }
            Some(_) => {}
        }
        let slot = slot(word);
        if slot >= self.bits.len() {
            let len = (slot + 1).next_power_of_two().max(LEAST_WORDS);
            self.bits.reserve_exact(len - self.bits.len());
            self.bits.resize(len, 0);
        }
        self.bits[slot] |= 1 << (number % 64);
        Ok(())
    }

    /// Forgets everything, and keeps its memory.
    pub fn clear(&mut self) {
        self.bits.fill(0);
        self.highest = None;
    }

    /// Whether a number could be taken; changes nothing.
    ///
    /// # Errors
    /// [`Replayed`] when it could not.
    pub fn check(&self, number: u64) -> Result<(), Replayed> {
        let Some(highest) = self.highest else {
            return Ok(());
        };
        if number > highest {
            return Ok(());
        }
        if highest - number >= WINDOW {
            return Err(Replayed::TooOld { number, highest });
        }
        let bits = self.bits.get(slot(number / 64)).copied().unwrap_or(0);
        if bits & (1 << (number % 64)) != 0 {
            return Err(Replayed::Seen { number });
        }
        Ok(())
    }

    /// The highest number taken.
    #[must_use]
    pub const fn highest(&self) -> Option<u64> {
        self.highest
    }
}

/// Why a number cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Replayed {
    /// It was taken before.
    #[error("number {number} came before")]
    Seen {
        /// The number.
        number: u64,
    },
    /// It is older than the window reaches.
    #[error("number {number} is older than the window below {highest}")]
    TooOld {
        /// The number.
        number: u64,
        /// The highest number taken.
        highest: u64,
    },
}

fn slot(word: u64) -> usize {
    (word % WORDS as u64) as usize
}

/// Words of the ring: 4 KiB. A power of two makes the remainder cheap.
const WORDS: usize = 512;
/// What the ring begins with: one line of the processor's cache.
const LEAST_WORDS: usize = 8;

/// Numbers the window reaches back: one word less than the ring, since the word of the highest
/// number is partly ahead of it. At 10 Gbit/s of 1,400-byte packets this is 37 ms of reordering.
pub const WINDOW: u64 = (WORDS as u64 - 1) * 64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_window_holds_16384_numbers_and_more() {
        let mut window = ReplayWindow::default();
        window.take(100_000).unwrap();
        assert_eq!(window.take(100_000 - 16_384), Ok(()));
    }

    #[test]
    fn a_number_is_taken_once_and_order_does_not_matter() {
        let mut window = ReplayWindow::default();
        for number in [5, 3, 100, 4, 0, 99] {
            assert_eq!(window.take(number), Ok(()));
            assert_eq!(window.take(number), Err(Replayed::Seen { number }));
        }
        assert_eq!(window.highest(), Some(100));
    }

    #[test]
    fn the_last_number_of_the_window_counts_and_the_next_is_too_old() {
        let mut window = ReplayWindow::default();
        let highest = WINDOW * 10 + 63;
        window.take(highest).unwrap();
        let last = highest - (WINDOW - 1);
        assert_eq!(window.take(last), Ok(()));
        let number = last - 1;
        assert_eq!(
            window.take(number),
            Err(Replayed::TooOld { number, highest })
        );
    }

    #[test]
    fn a_jump_over_everything_forgets_what_was_taken_before() {
        let mut window = ReplayWindow::default();
        for number in 0..2 * WINDOW {
            window.take(number).unwrap();
        }
        window.take(u64::MAX).unwrap();
        assert_eq!(window.take(u64::MAX - 1), Ok(()));
        assert_eq!(window.take(u64::MAX - WINDOW + 1), Ok(()));
        assert_eq!(
            window.take(u64::MAX),
            Err(Replayed::Seen { number: u64::MAX })
        );
    }

    #[test]
    fn the_ring_takes_no_more_memory_than_it_has_had_to_remember() {
        let mut window = ReplayWindow::default();
        assert_eq!(window.bits.capacity(), 0);
        for (number, words) in [(3, 8), (511, 8), (512, 16), (20_000, 512), (1 << 40, 512)] {
            window.take(number).unwrap();
            assert_eq!((window.bits.len(), window.bits.capacity()), (words, words));
        }
        window.clear();
        assert_eq!(window.bits.len(), 512);
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set(
            start in any::<u64>(),
            steps in proptest::collection::vec(prop_oneof![-40_000i64..40_000, -70i64..70], 1..300),
        ) {
            let mut window = ReplayWindow::default();
            let mut taken = BTreeSet::new();
            let mut number = start;
            for step in steps {
                number = number.saturating_add_signed(step);
                let highest = taken.last().copied().unwrap_or(0);
                let old = !taken.is_empty() && number < highest && highest - number >= WINDOW;
                let want = !old && !taken.contains(&number);
                prop_assert_eq!(window.take(number).is_ok(), want, "number {}", number);
                if want {
                    taken.insert(number);
                }
            }
        }
    }
}
