//! How long things took, in bounded memory: a histogram whose classes grow with what they hold.
//!
//! Each power of two of nanoseconds is divided into `CLASSES` equal classes, so that a quantile is less than 1 % above
//! the sample that it stands for, however many there are; the largest is kept as it is.

use std::time::Duration;

use serde::Serialize;

/// A histogram of durations.
#[derive(Clone, Debug)]
pub struct Samples {
    classes: Box<[u64]>,
    count: u64,
    max: Duration,
}

/// What is told of them, in milliseconds; `None` where there is not one sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    /// How many samples there are.
    pub samples: u64,
    /// Half of them took this long at most.
    pub p50_ms: Option<f64>,
    /// 99 of 100 took this long at most.
    pub p99_ms: Option<f64>,
    /// The longest.
    pub max_ms: Option<f64>,
}

impl Samples {
    /// Without a sample.
    #[must_use]
    pub fn new() -> Self {
        Self {
            classes: vec![0; class_of(LONGEST) + 1].into_boxed_slice(),
            count: 0,
            max: Duration::ZERO,
        }
    }

    /// Adds a sample; beyond a quarter of an hour they are no longer told apart.
    pub fn add(&mut self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(LONGEST);
        self.classes[class_of(nanos.min(LONGEST))] += 1;
        self.count += 1;
        self.max = self.max.max(took);
    }

    /// Returns how many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns what `percent` of 100 samples took at most, rounded up to the end of its class; `None` without a sample.
    #[must_use]
    pub fn quantile(&self, percent: u8) -> Option<Duration> {
        let wanted = (self.count * u64::from(percent)).div_ceil(100).max(1);
        let mut passed = 0;
        let class = self.classes.iter().position(|count| {
            passed += count;
            passed >= wanted
        })?;
        Some(Duration::from_nanos(end_of(class)).min(self.max))
    }

    /// Returns what is told of them.
    #[must_use]
    pub fn quantiles(&self) -> Quantiles {
        let millis = |took: Duration| took.as_secs_f64() * 1e3;
        Quantiles {
            samples: self.count,
            p50_ms: self.quantile(50).map(millis),
            p99_ms: self.quantile(99).map(millis),
            max_ms: (self.count > 0).then(|| millis(self.max)),
        }
    }
}

impl Default for Samples {
    fn default() -> Self {
        Self::new()
    }
}

/// The class of a duration in nanoseconds. Those below [`CLASSES`] have one each.
fn class_of(nanos: u64) -> usize {
    let shift = (u64::BITS - nanos.leading_zeros()).saturating_sub(CLASSES.ilog2() + 1);
    // At most 64 times 128 classes, and two more.
    (u64::from(shift) * CLASSES + (nanos >> shift)) as usize
}

/// The last nanosecond of a class.
fn end_of(class: usize) -> u64 {
    let class = class as u64;
    let shift = (class / CLASSES).saturating_sub(1);
    ((class - shift * CLASSES + 1) << shift) - 1
}

/// Classes for each power of two: less than 1 % apart.
const CLASSES: u64 = 128;

/// Nobody waits longer, about 18 minutes: 35 KiB for all classes.
const LONGEST: u64 = (1 << 40) - 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_samples_there_is_nothing_to_tell() {
        let quantiles = Samples::new().quantiles();
        assert_eq!(quantiles.samples, 0);
        assert_eq!(
            (quantiles.p50_ms, quantiles.p99_ms, quantiles.max_ms),
            (None, None, None)
        );
    }

    #[test]
    fn classes_follow_each_other_without_a_gap() {
        let mut before = None;
        for class in 0..=class_of(LONGEST) {
            let first = before.map_or(0, |end: u64| end + 1);
            assert_eq!(class_of(first), class, "{first} ns");
            assert_eq!(class_of(end_of(class)), class);
            before = Some(end_of(class));
        }
        assert_eq!(before, Some(LONGEST));
    }

    #[test]
    fn what_lasts_for_ever_counts_as_the_longest() {
        let mut samples = Samples::new();
        samples.add(Duration::MAX);
        assert_eq!(samples.count(), 1);
        assert_eq!(samples.quantile(50), Some(Duration::from_nanos(LONGEST)));
    }

    proptest! {
        #[test]
        fn quantile_is_the_sample_of_its_rank_or_a_hundredth_more(
            mut nanos in prop::collection::vec(0..LONGEST, 1..300),
            percent in 1u8..=100,
        ) {
            let mut samples = Samples::new();
            for &nanos in &nanos {
                samples.add(Duration::from_nanos(nanos));
            }
            nanos.sort_unstable();
            let rank = (nanos.len() * usize::from(percent)).div_ceil(100);
            let exact = nanos[rank - 1];
            let told = samples.quantile(percent).expect("there are samples").as_nanos() as u64;
            prop_assert!(told >= exact, "{told} < {exact}");
            prop_assert!(told - exact <= exact / 100, "{told} for {exact}");
        }
    }
}
