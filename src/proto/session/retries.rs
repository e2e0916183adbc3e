//! What is said again on lanes that lose, until it is answered.
//!
//! | message | until | again by |
//! |---|---|---|
//! | Join | JoinOk | the client's timer |
//! | JoinOk | JoinEcho | the server's timer, and each repeated Join |
//! | JoinEcho | | each repeated JoinOk |
//! | Config | ConfigOk | the server's timer |
//! | ConfigOk | | each repeated Config |
//! | RekeyInit | RekeyReply | the client's timer; beyond it the rekey begins anew |
//! | RekeyReply | | each repeated RekeyInit |
//! | RekeyAsk | RekeyInit | the rekey's own timer |
//! | Enrol | Enrolled | the client's timer |
//! | Enrolled | | each repeated Enrol |
//! | Ping | anything | liveness |
//! | Close | | the timer, twice |

use std::time::Instant;

use super::state::{Session, State};
use crate::proto::lane::LaneState;
use crate::proto::lossy::earliest;
use crate::proto::outbox::{Message, Route};
use crate::proto::retry::Retry;
use crate::proto::timers::Timer;

/// Schedules of what belongs to no lane.
#[derive(Debug, Default)]
pub(super) struct Retries {
    pub(super) config: Retry,
    pub(super) rekey: Retry,
    pub(super) enrol: Retry,
}

impl Session {
    /// A frame left on a datagram lane.
    pub(super) fn note_sent(&mut self, now: Instant, index: usize, message: &Message) {
        let lane = &mut self.lanes[index];
        let rtt = lane.rtt.smoothed();
        let retry = match message {
            Message::Config { .. } => &mut self.retries.config,
            Message::RekeyInit { .. } => &mut self.retries.rekey,
            Message::Enrol { .. } => &mut self.retries.enrol,
            Message::Join | Message::JoinOk { .. } | Message::Close { .. } => {
                let Some(lossy) = &mut lane.lossy else { return };
                &mut lossy.retry
            }
            Message::Ping
            | Message::Pong { .. }
            | Message::ConfigOk { .. }
            | Message::RekeyAsk
            | Message::RekeyReply { .. }
            | Message::JoinEcho { .. }
            | Message::Enrolled { .. }
            | Message::ProbeOk { .. }
            | Message::Beside { .. }
            | Message::Rest { .. } => return,
        };
        retry.handle_sent(now, rtt, message.sendings());
        self.arm_retries();
    }

    /// Says again what is due.
    pub(super) fn check_retries(&mut self, now: Instant) {
        if self.state == State::Open {
            if self.retries.config.take_due(now) {
                self.stats.control_resent += 1;
                self.send_config();
            }
            if self.retries.enrol.take_due(now) {
                self.stats.control_resent += 1;
                self.enrol_again();
            }
            if self.retries.rekey.take_due(now)
                && let Some((epoch, message)) = self.rekey.pending()
            {
                self.stats.control_resent += 1;
                self.queue(Route::Best, Message::RekeyInit { epoch, message });
            }
        }
        for index in 0..self.lanes.len() {
            let lane = &mut self.lanes[index];
            let id = lane.id;
            let due = lane.lossy.as_mut().is_some_and(|l| l.retry.take_due(now));
            if !due {
                continue;
            }
            let message = match (self.state, &lane.state) {
                (State::Open, LaneState::Joining) => Message::Join,
                (State::Open, LaneState::Challenged { .. }) => {
                    let Some(challenge) = lane.join_challenge() else {
                        continue;
                    };
                    Message::JoinOk { challenge }
                }
                (State::Closed { reason }, LaneState::Confirmed) => Message::Close { reason },
                (
                    State::Open | State::Closed { .. } | State::Unconfirmed,
                    LaneState::Joining
                    | LaneState::Challenged { .. }
                    | LaneState::Unproven
                    | LaneState::Confirmed
                    | LaneState::Dead,
                ) => continue,
            };
            self.stats.control_resent += 1;
            self.queue(Route::Lane(id), message);
        }
        self.arm_retries();
    }

    fn arm_retries(&mut self) {
        let session = earliest(
            self.retries.config.deadline(),
            self.retries.rekey.deadline(),
        );
        let session = earliest(session, self.retries.enrol.deadline());
        let next = self.lanes.iter().fold(session, |next, lane| {
            let lossy = lane.lossy.as_ref();
            earliest(next, lossy.and_then(|lossy| lossy.retry.deadline()))
        });
        match next {
            Some(at) => self.timers.set(Timer::Retry, at),
            None => self.timers.stop(Timer::Retry),
        }
    }

    /// Nothing of before is said again.
    pub(super) fn stop_retries(&mut self) {
        self.retries = Retries::default();
        for lane in &mut self.lanes {
            if let Some(lossy) = &mut lane.lossy {
                lossy.retry.stop();
            }
        }
    }
}
