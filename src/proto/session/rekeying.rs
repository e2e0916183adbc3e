//! New epochs: the rekey handshake within the session.

use std::time::Instant;

use super::state::{Session, State};
use crate::proto::epoch::{Which, overlap};
use crate::proto::keys::Role;
use crate::proto::lane::Lane;
use crate::proto::outbox::{Message, Route};
use crate::proto::rekey::RekeyAnswer;
use crate::proto::timers::Timer;

impl Session {
    pub(super) fn arm_rekey(&mut self) {
        let due = self
            .settings
            .rekey
            .due(self.epochs.current_ref(), self.role);
        self.timers.set(Timer::Rekey, due);
    }

    /// Begins a rekey, or asks for one, if there is a lane to do it on.
    pub(super) fn begin_rekey(&mut self, now: Instant) {
        if self.state != State::Open || !self.lanes.iter().any(Lane::is_confirmed) {
            return;
        }
        match self.role {
            Role::Responder => {
                if self.rekey.ask() {
                    self.queue(Route::Best, Message::RekeyAsk);
                }
            }
            Role::Initiator => {
                let number = self.epochs.next_number();
                // Fails only for a peer's key of low order, with which there would be no session.
                let Ok(message) = self.rekey.start(number, &mut self.generator) else {
                    return;
                };
                self.retries.rekey.stop();
                self.queue(
                    Route::Best,
                    Message::RekeyInit {
                        epoch: number as u8,
                        message,
                    },
                );
            }
        }
        self.timers
            .set(Timer::RekeyRetry, now + self.settings.rekey.patience);
    }

    /// A lane came or went: a rekey that was due, or under way, may begin anew.
    pub(super) fn restart_rekey(&mut self, now: Instant) {
        let due = self
            .settings
            .rekey
            .due(self.epochs.current_ref(), self.role);
        if self.state == State::Open && (self.rekey.awaits_answer() || due <= now) {
            self.rekey.reset();
            self.begin_rekey(now);
        }
    }

    pub(super) fn handle_rekey_init(&mut self, now: Instant, low_byte: u8, message: &[u8]) {
        let number = self.epochs.next_number();
        let answer = self
            .rekey
            .handle_init(now, number, low_byte, message, &mut self.generator);
        let reply = match answer {
            Some(RekeyAnswer::New { reply, secrets }) => {
                self.epochs
                    .propose(now, secrets.derive(self.aead, self.role));
                for lane in &mut self.lanes {
                    lane.reset_counters(number);
                }
                reply
            }
            Some(RekeyAnswer::Again { reply }) => reply,
            None => {
                self.stats.drops.stray_rekeys += 1;
                return;
            }
        };
        self.timers.stop(Timer::RekeyRetry);
        self.queue(
            Route::Best,
            Message::RekeyReply {
                epoch: low_byte,
                message: reply,
            },
        );
    }

    pub(super) fn handle_rekey_reply(&mut self, now: Instant, low_byte: u8, message: &[u8]) {
        let Some(secrets) = self.rekey.handle_reply(low_byte, message) else {
            self.stats.drops.stray_rekeys += 1;
            return;
        };
        self.epochs
            .advance(now, secrets.derive(self.aead, self.role));
        self.handle_new_epoch();
        // The first frame of the new epoch, so that the responder may use it too.
        self.queue(Route::Best, Message::Ping);
    }

    pub(super) fn handle_new_epoch(&mut self) {
        self.rekey.reset();
        self.retries.rekey.stop();
        self.timers.stop(Timer::RekeyRetry);
        self.timers.stop(Timer::FormerEpoch);
        self.arm_rekey();
        self.stats.rekeys += 1;
    }

    pub(super) fn handle_epoch_used(&mut self, now: Instant, which: Which) {
        match which {
            Which::Former => {}
            Which::Next => {
                if self.epochs.confirm_next(now) {
                    self.handle_new_epoch();
                    self.arm_former(now);
                }
            }
            // The other end has switched too: what it sealed before is on its way at most.
            Which::Current => self.arm_former(now),
        }
    }

    /// The newer epoch is in use at both ends: the former one has a while to live.
    pub(super) fn arm_former(&mut self, now: Instant) {
        if self.epochs.has_former() {
            let delays = self.lanes.iter().filter(|lane| !lane.is_dead());
            let largest = delays.filter_map(|lane| lane.rtt.smoothed()).max();
            self.timers
                .set_earlier(Timer::FormerEpoch, now + overlap(largest));
        }
    }
}
