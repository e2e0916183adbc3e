//! The highest value of a window, in constant space.

/// Kathleen Nichols' windowed maximum: the best three values, each later than the one before. What it
/// returns is the window's maximum, or a little less for a moment when that leaves the window.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Highest {
    best: [(u64, u64); 3],
}

impl Highest {
    pub(super) const fn get(&self) -> u64 {
        self.best[0].1
    }

    /// Takes a value; `time` never goes back and counts in the unit of `window`.
    pub(super) fn on_sample(&mut self, window: u64, time: u64, value: u64) {
        let new = (time, value);
        let [first, second, third] = self.best;
        if value >= first.1 || time.saturating_sub(third.0) > window {
            self.best = [new; 3];
            return;
        }
        if value >= second.1 {
            self.best = [first, new, new];
        } else if value >= third.1 {
            self.best = [first, second, new];
        }
        let [first, second, third] = self.best;
        let age = time.saturating_sub(first.0);
        if age > window {
            self.best = if time.saturating_sub(second.0) > window {
                [third, new, new]
            } else {
                [second, third, new]
            };
        } else if second.0 == first.0 && age > window / 4 {
            self.best = [first, new, new];
        } else if third.0 == second.0 && age > window / 2 {
            self.best = [first, second, new];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_highest_is_forgotten_after_the_window() {
        let mut highest = Highest::default();
        highest.on_sample(10, 0, 100);
        for time in 1..=10 {
            highest.on_sample(10, time, 40);
            assert_eq!(highest.get(), 100);
        }
        highest.on_sample(10, 11, 40);
        assert_eq!(highest.get(), 40);
    }

    proptest! {
        #[test]
        fn it_is_the_maximum_of_what_the_window_may_hold(
            values in vec((0_u64..4, 1_u64..1000), 1..100),
        ) {
            let mut highest = Highest::default();
            let mut time = 0;
            let mut seen: Vec<(u64, u64)> = Vec::new();
            for (step, value) in values {
                time += step;
                highest.on_sample(10, time, value);
                seen.push((time, value));
                let recent = seen.iter().filter(|(at, _)| time - at <= 10);
                let exact = recent.map(|(_, value)| *value).max().unwrap();
                // At least the newest, and never more than what was there within two windows.
                prop_assert!(highest.get() >= value);
                let older = seen.iter().filter(|(at, _)| time - at <= 20);
                prop_assert!(highest.get() <= older.map(|(_, value)| *value).max().unwrap());
                prop_assert!(highest.get() <= exact || time > 10);
            }
        }
    }
}
