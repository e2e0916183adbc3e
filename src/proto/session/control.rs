//! Control frames: what the two ends say to each other beside packets.

use std::time::Instant;

use super::error::OpenError;
use super::event::SessionEvent;
use super::state::{Session, State};
use crate::proto::keys::Role;
use crate::proto::lane::LaneKind;
use crate::proto::outbox::{Message, Route};
use crate::wire::{CloseReason, Control, InnerConfig, LaneId};

impl Session {
    /// Server: gives the client its configuration, once the session is confirmed, and again if it
    /// may have been lost. A newer one replaces it.
    pub fn configure(&mut self, config: InnerConfig) {
        self.config.serial = self.config.serial.wrapping_add(1);
        self.inner_mtu = usize::from(config.mtu);
        self.config.unacknowledged = Some(config);
        self.retries.config.stop();
        self.limit_datagrams();
        if self.state == State::Open {
            self.send_config();
        }
    }

    /// Ends the session; its Close frame is next from [`Session::poll_control`], for every lane.
    pub fn close(&mut self, _now: Instant, reason: CloseReason) {
        let confirmed = self.state == State::Open;
        if let State::Closed { .. } = self.state {
            return;
        }
        self.shut(reason);
        if confirmed {
            let lanes = self.lanes.iter().filter(|lane| lane.is_confirmed());
            for id in lanes.map(|lane| lane.id).collect::<Vec<_>>() {
                self.queue(Route::Lane(id), Message::Close { reason });
            }
        }
    }

    /// Asks on every confirmed lane whether the other end is there, without waiting for the
    /// keepalive: to be called when the host's network has changed.
    pub fn probe(&mut self) {
        if self.state != State::Open {
            return;
        }
        let lanes: Vec<LaneId> = self.lanes().collect();
        for lane in lanes {
            self.queue(Route::Lane(lane), Message::Ping);
        }
    }

    /// Asks on one lane whether the other end is there.
    pub fn ping(&mut self, lane: LaneId) {
        if self.state == State::Open {
            self.queue(Route::Lane(lane), Message::Ping);
        }
    }

    pub(super) fn handle_control(
        &mut self,
        now: Instant,
        index: usize,
        control: &Control<'_>,
    ) -> Result<(), OpenError> {
        let lane = self.lanes[index].id;
        match (control, self.role) {
            (Control::Ping { time }, _) => {
                self.queue(Route::Lane(lane), Message::Pong { time: *time });
            }
            (Control::Pong { time }, _) => self.handle_pong(now, index, *time),
            (Control::Config { serial, config }, Role::Initiator) => {
                if self.config.received != Some(*serial) {
                    self.config.received = Some(*serial);
                    self.inner_mtu = usize::from(config.mtu);
                    self.limit_datagrams();
                    self.report(SessionEvent::Configured(config.clone()));
                }
                self.queue(Route::Best, Message::ConfigOk { serial: *serial });
            }
            (Control::ConfigOk { serial }, Role::Responder) => {
                if *serial == self.config.serial {
                    self.config.unacknowledged = None;
                    self.retries.config.stop();
                }
            }
            (Control::Close { reason }, _) => {
                self.shut(*reason);
                self.report(SessionEvent::PeerClosed(*reason));
            }
            (Control::RekeyAsk, Role::Initiator) => {
                if !self.rekey.is_under_way() {
                    self.begin_rekey(now);
                }
            }
            (Control::RekeyInit { epoch, message }, Role::Responder) => {
                self.handle_rekey_init(now, *epoch, message);
            }
            (Control::RekeyReply { epoch, message }, Role::Initiator) => {
                self.handle_rekey_reply(now, *epoch, message);
            }
            (Control::JoinOk { challenge }, Role::Initiator) => {
                self.handle_join_ok(now, index, *challenge)?;
            }
            (Control::JoinEcho { challenge }, Role::Responder) => {
                self.handle_join_echo(now, index, None, challenge);
            }
            (Control::Beside { first }, Role::Responder)
                if self.lanes[index].kind == LaneKind::Stream =>
            {
                self.lanes[index].group = Some(*first);
                self.regroup();
            }
            (Control::Enrol { .. } | Control::Enrolled { .. }, _) => {
                self.handle_enrolment(control)?;
            }
            (
                Control::Config { .. }
                | Control::Beside { .. }
                | Control::RekeyAsk
                | Control::RekeyReply { .. }
                | Control::JoinOk { .. },
                Role::Responder,
            )
            | (
                // Those that may come on a datagram lane are dealt with there.
                Control::PathChallenge { .. }
                | Control::PathResponse { .. }
                | Control::Part { .. }
                | Control::Probe { .. }
                | Control::ProbeOk { .. },
                _,
            )
            | (
                Control::ConfigOk { .. }
                | Control::RekeyInit { .. }
                | Control::JoinEcho { .. }
                | Control::Beside { .. },
                Role::Initiator,
            ) => {
                return Err(OpenError::Misplaced {
                    kind: control.inner_type(),
                });
            }
        }
        Ok(())
    }

    pub(super) fn handle_pong(&mut self, now: Instant, index: usize, time: u64) {
        let micros = self.micros(now);
        let lane = &mut self.lanes[index];
        match lane.rtt.handle_pong(time, micros) {
            Some(rtt) => {
                lane.liveness.handle_rtt(rtt);
                self.schedule.on_rtt(now, lane.id, rtt);
            }
            None => self.stats.drops.stray_answers += 1,
        }
    }

    pub(super) fn send_config(&mut self) {
        let serial = self.config.serial;
        if let Some(config) = self.config.unacknowledged.clone() {
            self.queue(Route::Best, Message::Config { serial, config });
        }
    }

    pub(super) fn queue(&mut self, route: Route, message: Message) {
        if !self.outbox.push(route, message) {
            self.stats.drops.control_overflow += 1;
        }
    }
}

/// The configuration as it goes from server to client.
#[derive(Debug, Default)]
pub(super) struct ConfigExchange {
    /// Server: number of the newest.
    pub(super) serial: u32,
    /// Server: the newest, until the client has it.
    pub(super) unacknowledged: Option<InnerConfig>,
    /// Client: number of the last.
    pub(super) received: Option<u32>,
}
