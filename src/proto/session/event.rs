//! What a session tells its driver.

use std::collections::VecDeque;

use crate::wire::{CloseReason, InnerConfig, LaneId, Token, Verdict};

/// What happened to a session, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEvent {
    /// Server: the client's first sealed frame opened. An older session of the same instance may
    /// go.
    Confirmed,
    /// Client: the server gave a configuration, the first or a changed one.
    Configured(InnerConfig),
    /// A lane may be sent on.
    LaneConfirmed(LaneId),
    /// Nobody answered on a lane: close its connection and call
    /// [`Session::remove_lane`](super::Session::remove_lane).
    LaneDead(LaneId),
    /// Nobody answers on a datagram lane, for a second or so: it may be worth trying another. It is
    /// still asked, and packets take it where no other lane speaks.
    LaneSilent(LaneId),
    /// A datagram lane that was silent is not any more.
    LaneHeard(LaneId),
    /// A datagram lane goes to another address from now: what was known of its rate and delay is
    /// not known any more.
    LaneMoved(LaneId),
    /// Server: a guest wants to be enrolled; to be answered by
    /// [`Session::answer_enrol`](super::Session::answer_enrol), however often it comes.
    Enrol(Token),
    /// Client: what became of it.
    Enrolled {
        /// What the server makes of the token.
        verdict: Verdict,
        /// The name that this client has there from now on; empty unless it was enrolled.
        name: String,
    },
    /// The other end closed the session.
    PeerClosed(CloseReason),
}

/// The events that wait for the driver.
#[derive(Debug, Default)]
pub(super) struct Events(VecDeque<SessionEvent>);

impl Events {
    /// Queues an event; `false` if there is no room. A configuration takes the place of an older
    /// one that still waits, since only the newest counts.
    pub(super) fn push(&mut self, event: SessionEvent) -> bool {
        if let SessionEvent::Configured(_) = event {
            self.0
                .retain(|waiting| !matches!(waiting, SessionEvent::Configured(_)));
        }
        let room = self.0.len() < MAX_EVENTS;
        if room {
            self.0.push_back(event);
        }
        room
    }

    pub(super) fn pop(&mut self) -> Option<SessionEvent> {
        self.0.pop_front()
    }
}

/// Events that may wait: a session drained after each call has a few, and lanes are bounded.
const MAX_EVENTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_configuration_waits_and_the_queue_is_bounded() {
        let mut events = Events::default();
        for mtu in 1280..2000 {
            let config = InnerConfig {
                mtu,
                ..InnerConfig::default()
            };
            assert!(events.push(SessionEvent::Configured(config)));
        }
        let newest = InnerConfig {
            mtu: 1999,
            ..InnerConfig::default()
        };
        assert_eq!(events.pop(), Some(SessionEvent::Configured(newest)));
        assert_eq!(events.pop(), None);
        for _ in 0..MAX_EVENTS {
            assert!(events.push(SessionEvent::Confirmed));
        }
        assert!(!events.push(SessionEvent::Confirmed));
    }
}
