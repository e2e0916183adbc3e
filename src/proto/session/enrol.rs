//! Enrolment: all that a guest's session is for.

use std::time::Instant;

use super::error::OpenError;
use super::event::SessionEvent;
use super::state::{Session, State};
use crate::proto::keys::Role;
use crate::proto::outbox::{Message, Route};
use crate::wire::{Control, InnerType, Token, Verdict};

impl Session {
    /// Client, in a guest's session: asks to be enrolled, again and again where that may be lost. The answer is
    /// [`SessionEvent::Enrolled`].
    pub fn enrol(&mut self, _now: Instant, token: Token) {
        if self.guest && self.role == Role::Initiator && self.state == State::Open {
            self.token = Some(token.clone());
            self.queue(Route::Best, Message::Enrol { token });
        }
    }

    /// Server: answers an [`SessionEvent::Enrol`]; `name` is the client's, if it was enrolled.
    pub fn answer_enrol(&mut self, verdict: Verdict, name: &str) {
        if self.guest && self.role == Role::Responder && self.state == State::Open {
            let name = match verdict {
                Verdict::Enrolled => name.to_owned(),
                Verdict::Used
                | Verdict::Late
                | Verdict::WrongToken
                | Verdict::Withdrawn
                | Verdict::KnownKey
                | Verdict::Full
                | Verdict::NotKept
                | Verdict::NameTaken
                | Verdict::Unknown(_) => String::new(),
            };
            self.queue(Route::Best, Message::Enrolled { verdict, name });
        }
    }

    /// Whether a frame of this type may come here: a guest has nothing to say but its token and what keeps its lane up.
    pub(super) fn check_guest(&self, kind: InnerType) -> Result<(), OpenError> {
        if !self.guest {
            return Ok(());
        }
        match kind {
            InnerType::Enrol
            | InnerType::Enrolled
            | InnerType::Ping
            | InnerType::Pong
            | InnerType::Close
            | InnerType::PathChallenge
            | InnerType::PathResponse
            | InnerType::Probe
            | InnerType::ProbeOk
            | InnerType::Report => Ok(()),
            InnerType::Packet
            | InnerType::Config
            | InnerType::ConfigOk
            | InnerType::RekeyAsk
            | InnerType::RekeyInit
            | InnerType::RekeyReply
            | InnerType::Join
            | InnerType::JoinOk
            | InnerType::JoinEcho
            | InnerType::FlowOpen
            | InnerType::FlowData
            | InnerType::FlowCredit
            | InnerType::FlowFin
            | InnerType::FlowReset
            | InnerType::Part
            | InnerType::Repair
            | InnerType::Beside => Err(OpenError::Misplaced { kind }),
        }
    }

    pub(super) fn handle_enrolment(&mut self, control: &Control<'_>) -> Result<(), OpenError> {
        match (control, self.role) {
            (Control::Enrol { token }, Role::Responder) if self.guest => {
                self.report(SessionEvent::Enrol(token.clone()));
                Ok(())
            }
            (Control::Enrolled { verdict, name }, Role::Initiator) if self.guest => {
                // Answers to repeats say the same again.
                if self.token.take().is_some() {
                    self.retries.enrol.stop();
                    self.report(SessionEvent::Enrolled {
                        verdict: *verdict,
                        name: (*name).to_owned(),
                    });
                }
                Ok(())
            }
            _ => Err(OpenError::Misplaced {
                kind: control.inner_type(),
            }),
        }
    }

    pub(super) fn enrol_again(&mut self) {
        if let Some(token) = self.token.clone() {
            self.queue(Route::Best, Message::Enrol { token });
        }
    }
}
