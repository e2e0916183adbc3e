//! Whether the start makes a queue of a few datagrams overflow before it is seen, by the bursts of an application that
//! fills no window: of some datagrams in a row a quarter or half is lost again and again.

use crate::proto::congestion::model::Round;

/// What the start has lost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flood {
    decided: u64,
    lost: u64,
    /// Of how many in a row much was lost: one for a quarter, two for half.
    heavy: u32,
}

impl Flood {
    /// Takes a round in; returns whether it is one.
    pub(super) fn on_round(&mut self, round: &Round) -> bool {
        self.decided += round.decided;
        self.lost += round.lost;
        if self.decided < FLOOD_DATAGRAMS {
            return false;
        }
        let heavy = if self.lost * 2 > self.decided {
            self.heavy + 2
        } else if self.lost * 4 > self.decided {
            self.heavy + 1
        } else {
            0
        };
        *self = Self {
            heavy,
            ..Self::default()
        };
        heavy >= FLOODED
    }
}

/// Datagrams by which it is judged whether the start makes a short queue overflow. Of so many, a link that loses 5 % in
/// bursts of four loses more than a quarter of its own accord once in 36 times, and more than half once in 1,152: the
/// tests compute it.
const FLOOD_DATAGRAMS: u64 = 48;

/// Heavy losses in a row that are no chance: on that link a hundred times [`FLOOD_DATAGRAMS`], a call of minutes before the
/// first download, end the start once in 151 calls.
const FLOODED: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn round(decided: u64, lost: u64) -> Round {
        Round {
            decided,
            lost,
            ..Round::default()
        }
    }

    /// Whether the last of these batches, lost of [`FLOOD_DATAGRAMS`], is a flood, and none before it.
    fn flooded(lost: &[u64]) -> bool {
        let mut flood = Flood::default();
        let judged: Vec<bool> = (lost.iter())
            .map(|lost| flood.on_round(&round(FLOOD_DATAGRAMS, *lost)))
            .collect();
        let (last, before) = judged.split_last().unwrap();
        assert!(!before.contains(&true), "{lost:?}: {judged:?}");
        *last
    }

    #[test]
    fn no_burst_ends_the_start_but_heavy_losses_in_a_row_do() {
        for chance in [&[48][..], &[25, 0, 25, 0, 25], &[13, 13, 12, 13, 13]] {
            assert!(!flooded(chance), "{chance:?}");
        }
        for flood in [
            &[13, 13, 13][..],
            &[25, 13],
            &[13, 25],
            &[0, 48, 12, 25, 25],
        ] {
            assert!(flooded(flood), "{flood:?}");
        }
    }

    #[test]
    fn what_few_datagrams_lose_is_judged_with_those_that_follow() {
        // More than half of eight each: six rounds are a batch, and two such batches a flood.
        let mut flood = Flood::default();
        let judged: Vec<bool> = (0..12).map(|_| flood.on_round(&round(8, 5))).collect();
        let first = judged.iter().position(|flooded| *flooded);
        assert_eq!(first, Some(11));
    }

    /// How likely it is that so many datagrams in a row lose 0, 1, 2, ... where a share `loss` is lost in bursts of the
    /// mean length `burst`: by the chain of two states of Gilbert, whose burst may have begun before them.
    fn distribution(loss: f64, burst: f64, datagrams: u64) -> Vec<f64> {
        let (end, begin) = (1.0 / burst, loss / burst / (1.0 - loss));
        let none = vec![0.0; datagrams as usize + 1];
        let (mut good, mut bad) = (none.clone(), none);
        (good[0], bad[1]) = (1.0 - loss, loss);
        for _ in 1..datagrams {
            let last = bad.len() - 1;
            let stays = |lost: usize| good[lost] * (1.0 - begin) + bad[lost] * end;
            let next_good = (0..=last).map(stays).collect();
            let loses = |lost: usize| good[lost] * begin + bad[lost] * (1.0 - end);
            let next_bad = (0..=last).map(|lost| lost.checked_sub(1).map_or(0.0, loses));
            (bad, good) = (next_bad.collect(), next_good);
        }
        good.iter().zip(&bad).map(|(a, b)| a + b).collect()
    }

    #[test]
    fn chance_makes_a_flood_as_seldom_as_the_constants_say() {
        let lost = distribution(0.05, 4.0, FLOOD_DATAGRAMS);
        let sum: f64 = lost.iter().sum();
        assert!((sum - 1.0).abs() < 1e-12, "{sum}");
        let above = |least: u64| lost.iter().skip(least as usize + 1).sum::<f64>();
        let (quarter, half) = (above(FLOOD_DATAGRAMS / 4), above(FLOOD_DATAGRAMS / 2));
        assert_eq!((1.0 / quarter).round(), 36.0);
        assert_eq!((1.0 / half).round(), 1_152.0);
        // How likely a row is of 0, 1 and 2, and that a flood was found.
        let (mut heavy, mut found) = ([1.0, 0.0, 0.0], 0.0);
        for _ in 0..100 {
            let [none, one, two] = heavy;
            found += one * half + two * quarter;
            heavy = [
                (none + one + two) * (1.0 - quarter),
                none * (quarter - half),
                none * half + one * (quarter - half),
            ];
        }
        assert_eq!((1.0 / found).round(), 151.0);
    }
}
