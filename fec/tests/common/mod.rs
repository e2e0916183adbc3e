//! Channels that lose packets, seeded.

/// SplitMix64: small, seeded, and good enough to lose packets by.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a number from 0 to below 1.
    pub(crate) fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A channel that loses a share of the packets, in bursts.
///
/// In its bad state it loses everything (the model of Gilbert). With a mean burst length of 1 each packet
/// is lost by itself (Bernoulli); then bursts have the mean length 1 / (1 - loss) by chance.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    pub(crate) loss: f64,
    /// The mean length of a burst in packets, 1 for independent losses.
    pub(crate) burst: f64,
    bad: bool,
    random: Random,
}

impl Channel {
    pub(crate) fn new(loss: f64, burst: f64, seed: u64) -> Self {
        Self {
            loss,
            burst,
            bad: false,
            random: Random::new(seed),
        }
    }

    /// Tells whether the next packet is lost.
    pub(crate) fn loses(&mut self) -> bool {
        let change = if self.burst <= 1.0 {
            self.bad = false;
            self.loss
        } else if self.bad {
            1.0 / self.burst
        } else {
            self.loss / (self.burst * (1.0 - self.loss))
        };
        self.bad ^= self.random.unit() < change;
        self.bad
    }

    /// Returns how it is written in tables.
    pub(crate) fn name(&self) -> String {
        let percent = self.loss * 100.0;
        if self.burst <= 1.0 {
            format!("{percent} % random")
        } else {
            format!("{percent} % in bursts of {}", self.burst)
        }
    }
}
