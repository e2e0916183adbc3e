//! Which packets are lost: the chain of Gilbert and Elliott, of which independent losses are a special case.

use super::{path::Loss, random::Random};

/// Decides on one packet after another.
#[derive(Clone, Debug)]
pub(super) struct Losses {
    chain: Option<Chain>,
    state: State,
}

/// The four numbers of the model, in percent.
#[derive(Clone, Copy, Debug)]
struct Chain {
    to_bad: f64,
    to_good: f64,
    lost_in_bad: f64,
    lost_in_good: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Good,
    Bad,
}

impl Losses {
    /// Begins in the good state, as netem does.
    pub(super) fn new(loss: Loss) -> Self {
        let mut losses = Self {
            chain: None,
            state: State::Good,
        };
        losses.set(loss);
        losses
    }

    /// Changes the model and keeps the state.
    pub(super) fn set(&mut self, loss: Loss) {
        self.chain = loss
            .chain()
            .map(|(to_bad, to_good, lost_in_bad, lost_in_good)| Chain {
                to_bad,
                to_good,
                lost_in_bad,
                lost_in_good,
            });
    }

    /// Says whether the next packet is lost. As in netem, the state it finds decides, and the state moves on.
    pub(super) fn next_is_lost(&mut self, random: &mut Random) -> bool {
        let Some(chain) = self.chain else {
            return false;
        };
        let (moves, lost) = match self.state {
            State::Good => (chain.to_bad, chain.lost_in_good),
            State::Bad => (chain.to_good, chain.lost_in_bad),
        };
        if random.percent(moves) {
            self.state = match self.state {
                State::Good => State::Bad,
                State::Bad => State::Good,
            };
        }
        random.percent(lost)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The share of packets lost and the mean length of a run of losses.
    fn measure(loss: Loss, seed: u64, packets: u32) -> (f64, f64) {
        let (mut losses, mut random) = (Losses::new(loss), Random::new(seed));
        let (mut lost, mut runs, mut before) = (0u32, 0u32, false);
        for _ in 0..packets {
            let now = losses.next_is_lost(&mut random);
            lost += u32::from(now);
            runs += u32::from(now && !before);
            before = now;
        }
        (
            f64::from(lost) / f64::from(packets),
            f64::from(lost) / f64::from(runs.max(1)),
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn random_losses_come_at_their_rate(percent in 0.0..100.0f64, seed: u64) {
            let packets = 100_000;
            let (rate, _) = measure(Loss::Random { percent }, seed, packets);
            let share = percent / 100.0;
            // six standard deviations of a binomial share, and one packet
            let bound = 6.0 * (share * (1.0 - share) / f64::from(packets)).sqrt() + 1e-5;
            prop_assert!((rate - share).abs() < bound, "{} of {}", rate, share);
        }

        #[test]
        fn bursts_have_their_rate_and_mean_length(percent in 1.0..20.0f64, mean in 1.0..8.0f64, seed: u64) {
            let packets = 400_000;
            let (rate, length) = measure(Loss::Burst { percent, mean }, seed, packets);
            let share = percent / 100.0;
            let runs = f64::from(packets) * share / mean;
            // lengths are geometric: their deviation is at most their mean; six of them over the number of runs
            let bound = 6.0 * mean / runs.sqrt();
            prop_assert!((length - mean).abs() < bound, "runs of {} for {}", length, mean);
            // losses of one run hang together: the variance of the share is about twice the mean length times as large
            let bound = 6.0 * (2.0 * mean * share / f64::from(packets)).sqrt();
            prop_assert!((rate - share).abs() < bound, "{} of {}", rate, share);
        }

        #[test]
        fn equal_seeds_lose_equal_packets(p in 0.0..50.0f64, r in 1.0..100.0f64, bad in 0.0..100.0f64, seed: u64) {
            let loss = Loss::Gilbert { p, r, bad, good: 0.1 };
            let run = || {
                let (mut losses, mut random) = (Losses::new(loss), Random::new(seed));
                (0..1000).map(|_| losses.next_is_lost(&mut random)).collect::<Vec<_>>()
            };
            prop_assert_eq!(run(), run());
        }
    }

    #[test]
    fn gemodel_loses_in_both_states_by_its_numbers() {
        let loss = Loss::Gilbert {
            p: 1.0,
            r: 9.0,
            bad: 50.0,
            good: 1.0,
        };
        let (rate, _) = measure(loss, 3, 1_000_000);
        // a tenth of the time bad: 0.1 * 0.5 + 0.9 * 0.01
        assert!((rate - 0.059).abs() < 0.003, "{rate}");
    }

    #[test]
    fn runs_of_one_are_followed_by_a_packet_that_arrives() {
        let loss = Loss::Burst {
            percent: 20.0,
            mean: 1.0,
        };
        let (_, length) = measure(loss, 9, 100_000);
        assert!((length - 1.0).abs() < 1e-9, "{length}");
    }
}
