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
/// bursts of four loses a quarter of its own accord once in thirty times, and half once in a thousand.
const FLOOD_DATAGRAMS: u64 = 48;

/// Heavy losses in a row that are no chance: a call of minutes before the first download must not end the start.
const FLOODED: u32 = 3;
