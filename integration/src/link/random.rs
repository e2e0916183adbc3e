//! A small seeded generator whose output is fixed for good, so that a seed in a report can be run again years later.

/// SplitMix64 (Steele, Lea, Flood 2014): passes BigCrush, one addition and two multiplications a draw.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Makes the generator of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Draws a number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Draws from 0 to 1, 1 excluded.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Is true in `percent` of 100 draws; never at 0, always at 100. Nothing is drawn at either.
    pub fn percent(&mut self, percent: f64) -> bool {
        if percent <= 0.0 {
            false
        } else if percent >= 100.0 {
            true
        } else {
            self.unit() * 100.0 < percent
        }
    }

    /// Draws from `low` to `high`, `high` excluded.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + self.unit() * (high - low)
    }

    /// Draws the waiting time of a Poisson process with this mean.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -(1.0 - self.unit()).ln() * mean
    }

    /// Makes a generator of its own from the next draw.
    #[must_use]
    pub fn child(&mut self) -> Self {
        Self(self.next_u64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_numbers_of_seed_1234567_are_those_of_the_reference() {
        let mut random = Random::new(1_234_567);
        assert_eq!(random.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(random.next_u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn units_lie_in_range_and_average_a_half() {
        let mut random = Random::new(7);
        let draws: Vec<f64> = (0..100_000).map(|_| random.unit()).collect();
        assert!(draws.iter().all(|draw| (0.0..1.0).contains(draw)));
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        // five standard deviations of the mean of 100,000 uniform draws
        assert!((mean - 0.5).abs() < 5.0 * 0.2887 / 316.2, "{mean}");
    }

    #[test]
    fn nothing_and_everything_are_certain() {
        let mut random = Random::new(1);
        assert!((0..1000).all(|_| !random.percent(0.0) && random.percent(100.0)));
    }
}
