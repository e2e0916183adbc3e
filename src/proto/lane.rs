//! One lane of a session: its state, counters, liveness and round-trip time.

use std::time::{Duration, Instant};

use super::aead::same_secret;
use super::cookie::{address_bytes, mac};
use super::liveness::{Liveness, LivenessLimits};
use super::lossy::Lossy;
use super::path::DatagramPath;
use super::stats::LaneStats;
use crate::wire::{DATAGRAM_COUNTER_LIMIT, JOIN_CHALLENGE_LEN, LaneId};

/// What kind of pipe a lane is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LaneKind {
    /// Delivers every frame, in order, or breaks.
    Stream,
    /// Loses, delays and copies datagrams.
    Datagram,
}

/// How far a lane has got.
#[derive(Clone, Debug)]
pub(super) enum LaneState {
    /// Client: the Join frame is made, nothing came back.
    Joining,
    /// Server: nothing has opened on it yet; it is the handshake's own lane.
    Unproven,
    /// Server: the Join opened; the challenge is to come back.
    Challenged {
        /// What JoinOk carries; on a datagram lane, what that is made from for each address.
        challenge: [u8; JOIN_CHALLENGE_LEN],
    },
    /// Both ends know that the other is there.
    Confirmed,
    /// Given up, or broken. Nothing passes any more.
    Dead,
}

/// A lane.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) id: LaneId,
    pub(super) kind: LaneKind,
    pub(super) state: LaneState,
    pub(super) liveness: Liveness,
    pub(super) rtt: RoundTrip,
    pub(super) stats: LaneStats,
    /// The first lane of the group in which it carries packets beside others.
    pub(super) group: Option<LaneId>,
    /// What only a datagram lane has.
    pub(super) lossy: Option<Box<Lossy>>,
    counters: [Counters; SLOTS],
}

impl Lane {
    /// A stream lane.
    pub(super) fn new(now: Instant, id: LaneId, state: LaneState, limits: LivenessLimits) -> Self {
        Self {
            id,
            kind: LaneKind::Stream,
            state,
            liveness: Liveness::new(now, limits),
            rtt: RoundTrip::default(),
            stats: LaneStats::default(),
            group: None,
            lossy: None,
            counters: Default::default(),
        }
    }

    /// A datagram lane.
    pub(super) fn datagram(
        now: Instant,
        id: LaneId,
        path: DatagramPath,
        state: LaneState,
        limits: LivenessLimits,
    ) -> Self {
        Self {
            kind: LaneKind::Datagram,
            lossy: Some(Box::new(Lossy::new(path))),
            ..Self::new(now, id, state, limits)
        }
    }

    /// The byte by which datagrams name it.
    pub(super) const fn low_byte(&self) -> u8 {
        self.id.0 as u8
    }

    /// Whether packets may be sent on it.
    pub(super) const fn is_confirmed(&self) -> bool {
        match self.state {
            LaneState::Confirmed => true,
            LaneState::Joining
            | LaneState::Unproven
            | LaneState::Challenged { .. }
            | LaneState::Dead => false,
        }
    }

    /// Whether anything may still pass.
    pub(super) const fn is_dead(&self) -> bool {
        match self.state {
            LaneState::Dead => true,
            LaneState::Joining
            | LaneState::Unproven
            | LaneState::Challenged { .. }
            | LaneState::Confirmed => false,
        }
    }

    /// Server: what JoinOk carries now; `None` if no echo is waited for.
    ///
    /// Each address from which the Join of a datagram lane comes is sent another: a Join can be
    /// sent on from anywhere, and the echo shows which of them receives.
    pub(super) fn join_challenge(&self) -> Option<[u8; JOIN_CHALLENGE_LEN]> {
        let challenge = self.challenge()?;
        let lossy = self.lossy.as_ref();
        Some(lossy.map_or(challenge, |lossy| {
            challenge_for(&challenge, lossy.paths.current())
        }))
    }

    /// Server: takes the echo of a challenge, which came by `from` if in a datagram; whether it is
    /// a right one. A datagram lane then goes where it is proven that somebody receives.
    pub(super) fn accept_echo(
        &mut self,
        from: Option<DatagramPath>,
        echo: &[u8; JOIN_CHALLENGE_LEN],
    ) -> bool {
        let Some(challenge) = self.challenge() else {
            return false;
        };
        let right = match (&mut self.lossy, from) {
            (None, None) => same_secret(&challenge, echo),
            (Some(lossy), Some(from)) => {
                let current = lossy.paths.current();
                let received = |path| same_secret(&challenge_for(&challenge, path), echo);
                if from.remote != current.remote && received(from) {
                    // Its Join came by another way as well, or somebody sent on a copy.
                    lossy.paths.set(from);
                    true
                } else {
                    received(current)
                }
            }
            (Some(_), None) | (None, Some(_)) => false,
        };
        if right {
            self.state = LaneState::Confirmed;
        }
        right
    }

    /// Gives the next counter to seal with. 2^64 frames do not pass in an epoch; its limits are
    /// far below.
    pub(super) fn next_counter(&mut self, epoch: u64) -> u64 {
        let counters = self.counters(epoch);
        let counter = counters.send;
        counters.send += 1;
        counter
    }

    /// The next counter to seal a datagram with; `None` when the 32 bits are used up.
    pub(super) fn next_datagram_counter(&mut self, epoch: u64) -> Option<u32> {
        let counters = self.counters(epoch);
        if counters.send >= DATAGRAM_COUNTER_LIMIT {
            return None;
        }
        let counter = counters.send as u32;
        counters.send += 1;
        Some(counter)
    }

    /// Counter 0 belongs to the Join.
    pub(super) fn claim_counter_0(&mut self, epoch: u64) {
        let counters = self.counters(epoch);
        counters.send = counters.send.max(1);
    }

    /// Whether so many counters are used that another epoch is wanted: three quarters.
    pub(super) fn is_worn(&self, epoch: u64) -> bool {
        let counters = &self.counters[slot(epoch)];
        counters.epoch == epoch && counters.send >= DATAGRAM_COUNTER_LIMIT / 4 * 3
    }

    /// Whether a counter may be opened: strictly increasing, since a stream keeps its order.
    pub(super) fn check_counter(&mut self, epoch: u64, counter: u64) -> Result<(), u64> {
        let least = self.counters(epoch).receive;
        // The last counter of all would leave no next one.
        if counter < least || counter == u64::MAX {
            Err(least)
        } else {
            Ok(())
        }
    }

    /// Remembers a counter whose frame opened.
    pub(super) fn accept_counter(&mut self, epoch: u64, counter: u64) {
        self.counters(epoch).receive = counter.saturating_add(1);
    }

    /// Forgets the counters of an epoch whose keys were replaced before they were ever used.
    pub(super) fn reset_counters(&mut self, epoch: u64) {
        self.counters[slot(epoch)] = Counters {
            epoch,
            ..Counters::default()
        };
        if let Some(lossy) = &mut self.lossy {
            lossy.forget(epoch);
        }
    }

    #[cfg(test)]
    pub(super) fn skip_counters(&mut self, epoch: u64, to: u64) {
        self.counters(epoch).send = to;
    }

    fn challenge(&self) -> Option<[u8; JOIN_CHALLENGE_LEN]> {
        match &self.state {
            LaneState::Challenged { challenge } => Some(*challenge),
            LaneState::Joining | LaneState::Unproven | LaneState::Confirmed | LaneState::Dead => {
                None
            }
        }
    }

    fn counters(&mut self, epoch: u64) -> &mut Counters {
        let counters = &mut self.counters[slot(epoch)];
        if counters.epoch != epoch {
            *counters = Counters {
                epoch,
                ..Counters::default()
            };
        }
        counters
    }
}

/// The counters of one epoch, both directions.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    epoch: u64,
    send: u64,
    receive: u64,
}

/// The challenge of a joining lane for one address: a MAC, so that nothing need be kept for it.
fn challenge_for(
    challenge: &[u8; JOIN_CHALLENGE_LEN],
    path: DatagramPath,
) -> [u8; JOIN_CHALLENGE_LEN] {
    let (address, port) = address_bytes(path.remote);
    mac(challenge, &[&address, &port])
}

fn slot(epoch: u64) -> usize {
    (epoch % SLOTS as u64) as usize
}

/// Epochs whose counters are kept: former, current and next live at once; four make the slot a
/// mask.
const SLOTS: usize = 4;

/// Smoothed round-trip time (RFC 6298, section 2).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RoundTrip {
    smoothed: Option<Duration>,
    pending: Option<u64>,
}

impl RoundTrip {
    /// A ping with that time is on its way.
    pub(super) fn handle_ping(&mut self, time: u64) {
        self.pending = Some(time);
    }

    /// A pong came back at `now`, both in microseconds of our clock; `None` if nobody asked for it.
    pub(super) fn handle_pong(&mut self, time: u64, now: u64) -> Option<Duration> {
        if self.pending != Some(time) {
            return None;
        }
        self.pending = None;
        let sample = Duration::from_micros(now.checked_sub(time)?);
        let smoothed = self
            .smoothed
            .map_or(sample, |smoothed| (smoothed * 7 + sample) / 8);
        self.smoothed = Some(smoothed);
        self.smoothed
    }

    pub(super) const fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(state: LaneState) -> Lane {
        Lane::new(Instant::now(), LaneId(1), state, LivenessLimits::default())
    }

    #[test]
    fn counters_start_at_0_in_every_epoch_and_never_repeat() {
        let mut lane = lane(LaneState::Confirmed);
        assert_eq!([lane.next_counter(0), lane.next_counter(0)], [0, 1]);
        assert_eq!([lane.next_counter(1), lane.next_counter(0)], [0, 2]);
        assert_eq!(
            lane.next_counter(4),
            0,
            "epoch 0 is long gone, its slot is epoch 4's"
        );
    }

    #[test]
    fn a_counter_opens_only_above_the_last() {
        let mut lane = lane(LaneState::Confirmed);
        assert_eq!(lane.check_counter(0, 5), Ok(()));
        lane.accept_counter(0, 5);
        assert_eq!(lane.check_counter(0, 5), Err(6));
        assert_eq!(lane.check_counter(0, 6), Ok(()));
        assert_eq!(lane.check_counter(1, 0), Ok(()));
        assert_eq!(lane.check_counter(0, u64::MAX), Err(6));
    }

    #[test]
    fn only_the_right_echo_confirms() {
        let mut lane = lane(LaneState::Challenged { challenge: [7; 16] });
        assert!(!lane.accept_echo(None, &[8; 16]));
        assert!(!lane.is_confirmed());
        assert!(lane.accept_echo(None, &[7; 16]));
        assert!(lane.is_confirmed());
        assert!(!lane.accept_echo(None, &[7; 16]), "an echo confirms once");
    }

    #[test]
    fn a_pong_counts_once_and_only_if_asked_for() {
        let mut rtt = RoundTrip::default();
        assert_eq!(rtt.handle_pong(5, 9), None);
        rtt.handle_ping(1000);
        assert_eq!(rtt.handle_pong(999, 2000), None);
        assert_eq!(rtt.handle_pong(1000, 9000), Some(Duration::from_millis(8)));
        assert_eq!(rtt.handle_pong(1000, 9000), None);
        rtt.handle_ping(10_000);
        assert_eq!(
            rtt.handle_pong(10_000, 10_000),
            Some(Duration::from_millis(7))
        );
        rtt.handle_ping(50_000);
        assert_eq!(
            rtt.handle_pong(50_000, 10),
            None,
            "an echo from the future is none"
        );
    }
}
