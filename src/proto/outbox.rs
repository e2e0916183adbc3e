//! Control frames that wait to be sealed. They are sealed when they leave, so that counters leave
//! in order.

use std::collections::VecDeque;
use std::mem::discriminant;

use super::retry::{CLOSES, UNTIL_ANSWERED};
use crate::wire::{
    CloseReason, Control, InnerConfig, InnerType, JOIN_CHALLENGE_LEN, LaneId, Token, Verdict,
};

/// A control frame that waits.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) route: Route,
    pub(super) message: Message,
}

/// Where a control frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// On that lane or not at all.
    Lane(LaneId),
    /// On whatever lane the session prefers; waits until there is one.
    Best,
}

/// A control frame that owns its bytes.
#[derive(Clone, Debug)]
pub(super) enum Message {
    Ping,
    Pong {
        time: u64,
    },
    Config {
        serial: u32,
        config: InnerConfig,
    },
    ConfigOk {
        serial: u32,
    },
    Close {
        reason: CloseReason,
    },
    RekeyAsk,
    RekeyInit {
        epoch: u8,
        message: Vec<u8>,
    },
    RekeyReply {
        epoch: u8,
        message: Vec<u8>,
    },
    JoinOk {
        challenge: [u8; JOIN_CHALLENGE_LEN],
    },
    JoinEcho {
        challenge: [u8; JOIN_CHALLENGE_LEN],
    },
    Enrol {
        token: Token,
    },
    Enrolled {
        verdict: Verdict,
        name: String,
    },
    ProbeOk {
        serial: u32,
    },
    Beside {
        first: LaneId,
    },
    /// The second half of a frame whose first half has left.
    Rest {
        serial: u8,
        bytes: Vec<u8>,
    },
    /// A Join datagram, which is no control frame and has a form of its own.
    Join,
}

impl Message {
    /// Appends the inside of the seal; `time` is what a ping carries.
    pub(super) fn write(&self, time: u64, out: &mut Vec<u8>) {
        let control = match self {
            Self::Ping => Control::Ping { time },
            Self::Pong { time } => Control::Pong { time: *time },
            Self::Config { serial, config } => Control::Config {
                serial: *serial,
                config: config.clone(),
            },
            Self::ConfigOk { serial } => Control::ConfigOk { serial: *serial },
            Self::Close { reason } => Control::Close { reason: *reason },
            Self::RekeyAsk => Control::RekeyAsk,
            Self::RekeyInit { epoch, message } => Control::RekeyInit {
                epoch: *epoch,
                message,
            },
            Self::RekeyReply { epoch, message } => Control::RekeyReply {
                epoch: *epoch,
                message,
            },
            Self::JoinOk { challenge } => Control::JoinOk {
                challenge: *challenge,
            },
            Self::JoinEcho { challenge } => Control::JoinEcho {
                challenge: *challenge,
            },
            Self::Enrol { token } => Control::Enrol {
                token: token.clone(),
            },
            Self::Enrolled { verdict, name } => Control::Enrolled {
                verdict: *verdict,
                name,
            },
            Self::ProbeOk { serial } => Control::ProbeOk { serial: *serial },
            Self::Beside { first } => Control::Beside { first: *first },
            Self::Rest { serial, bytes } => Control::Part {
                serial: *serial,
                last: true,
                bytes,
            },
            Self::Join => {
                out.push(InnerType::Join.byte());
                return;
            }
        };
        control.write(out);
    }

    /// Whether the other end is to answer, so that silence means something.
    pub(super) const fn wants_answer(&self) -> bool {
        match self {
            Self::Ping | Self::JoinOk { .. } | Self::Enrol { .. } | Self::Join => true,
            Self::Pong { .. }
            | Self::Config { .. }
            | Self::ConfigOk { .. }
            | Self::Close { .. }
            | Self::RekeyAsk
            | Self::RekeyInit { .. }
            | Self::RekeyReply { .. }
            | Self::JoinEcho { .. }
            | Self::Enrolled { .. }
            | Self::ProbeOk { .. }
            | Self::Beside { .. }
            | Self::Rest { .. } => false,
        }
    }

    /// How often it is sent in all on a lane that loses, unless it is answered before.
    pub(super) const fn sendings(&self) -> u32 {
        match self {
            Self::Join
            | Self::JoinOk { .. }
            | Self::Config { .. }
            | Self::Enrol { .. }
            | Self::RekeyInit { .. } => UNTIL_ANSWERED,
            Self::Close { .. } => CLOSES,
            // Asked again by liveness, by the rekey timer, or by what it answers.
            Self::Ping
            | Self::Pong { .. }
            | Self::ConfigOk { .. }
            | Self::RekeyAsk
            | Self::RekeyReply { .. }
            | Self::JoinEcho { .. }
            | Self::Enrolled { .. }
            | Self::ProbeOk { .. }
            | Self::Beside { .. }
            | Self::Rest { .. } => 1,
        }
    }
}

/// The queue. Of each kind, one frame waits for a route: a newer one takes its place, since one
/// pong, one configuration, one rekey says all that the older ones would have.
#[derive(Debug, Default)]
pub(super) struct Outbox(VecDeque<Waiting>);

impl Outbox {
    /// Queues a frame; `false` if there is no room, and it is not queued.
    pub(super) fn push(&mut self, route: Route, message: Message) -> bool {
        let kind = discriminant(&message);
        self.0
            .retain(|waiting| waiting.route != route || discriminant(&waiting.message) != kind);
        let room = self.0.len() < LIMIT;
        if room {
            self.0.push_back(Waiting { route, message });
        }
        room
    }

    /// Puts a frame in front of all others, for the lane where its first half went.
    pub(super) fn push_front(&mut self, lane: LaneId, message: Message) {
        let route = Route::Lane(lane);
        self.0.push_front(Waiting { route, message });
    }

    /// Takes the first frame that `ready` lets go.
    pub(super) fn pop(&mut self, ready: impl Fn(&Waiting) -> bool) -> Option<Waiting> {
        let index = self.0.iter().position(ready)?;
        self.0.remove(index)
    }

    /// Drops every frame that `keep` does not want; returns how many.
    pub(super) fn retain(&mut self, keep: impl FnMut(&Waiting) -> bool) -> u64 {
        let before = self.0.len();
        self.0.retain(keep);
        (before - self.0.len()) as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Frames that may wait: more than all kinds for [`MAX_LANES`](super::MAX_LANES) lanes are.
const LIMIT: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    const LANE: Route = Route::Lane(LaneId(1));

    #[test]
    fn one_frame_of_a_kind_waits_for_a_route_and_it_is_the_newest() {
        let mut outbox = Outbox::default();
        for time in 0..1000 {
            assert!(outbox.push(LANE, Message::Pong { time }));
            assert!(outbox.push(Route::Best, Message::Pong { time }));
            assert!(outbox.push(LANE, Message::Ping));
        }
        assert_eq!(outbox.0.len(), 3);
        let newest = outbox.pop(|waiting| waiting.route == LANE).unwrap();
        assert!(matches!(newest.message, Message::Pong { time: 999 }));
    }

    #[test]
    fn a_frame_that_must_wait_does_not_hold_up_the_others() {
        let mut outbox = Outbox::default();
        outbox.push(Route::Best, Message::RekeyAsk);
        outbox.push(LANE, Message::Ping);
        let ready = outbox.pop(|waiting| waiting.route != Route::Best).unwrap();
        assert!(matches!(ready.message, Message::Ping));
        assert!(outbox.pop(|waiting| waiting.route != Route::Best).is_none());
        assert!(!outbox.is_empty());
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut outbox = Outbox::default();
        let taken = (0..1000).filter(|lane| outbox.push(Route::Lane(LaneId(*lane)), Message::Ping));
        assert_eq!(taken.count(), LIMIT);
        assert_eq!(outbox.retain(|_| false), LIMIT as u64);
    }
}
