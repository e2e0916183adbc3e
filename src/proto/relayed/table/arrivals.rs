//! What the far end says of flows.

use std::net::SocketAddr;
use std::time::Instant;

use super::super::flow::{CreditDue, State};
use super::super::incoming::{Arrival, Fault};
use super::super::outgoing::Unsent;
use super::super::pieces::Pieces;
use super::{Relayed, RelayedEvent, RelayedKey, find};
use crate::proto::keys::Role;
use crate::wire::{FlowFrame, RelayedId, ResetReason};

impl Relayed {
    /// Takes a frame that was opened, and the bytes behind its fields: for one of Data also those of others that follow
    /// it without a gap. `take` is offered those that are new and have none waiting before them, and returns how many
    /// the socket took.
    pub fn handle_frame(
        &mut self,
        now: Instant,
        frame: &FlowFrame,
        bytes: Pieces<'_>,
        take: impl FnOnce(RelayedKey, Pieces<'_>) -> usize,
    ) {
        let id = frame.flow();
        let slot = self.by_id.get(&id).copied();
        match (*frame, slot) {
            (
                FlowFrame::Open {
                    destination,
                    window,
                    ..
                },
                None,
            ) => self.handle_open(id, destination, window),
            // Sent again because a lane was lost; the answer is, too.
            (FlowFrame::Open { .. }, Some(_)) => {}
            (FlowFrame::Data { offset, .. }, Some(slot)) => {
                self.handle_data(now, slot, offset, bytes, take);
            }
            (
                FlowFrame::Credit {
                    received,
                    limit,
                    again,
                    ..
                },
                Some(slot),
            ) => self.handle_credit(slot, received, limit, again),
            (FlowFrame::Fin { offset, .. }, Some(slot)) => self.handle_fin(slot, offset),
            (FlowFrame::Reset { reason, .. }, Some(slot)) => self.handle_reset(slot, reason),
            (FlowFrame::Data { .. } | FlowFrame::Credit { .. } | FlowFrame::Fin { .. }, None) => {
                self.stats.unknown += 1;
                self.say_reset(id, ResetReason::Unknown);
            }
            (FlowFrame::Reset { .. }, None) => {}
        }
        self.rest_later(now);
    }

    fn handle_open(&mut self, id: RelayedId, destination: SocketAddr, window: u32) {
        // One that was here and is over, or a peer that counts backwards.
        if id.0 < self.next_id || self.role != Role::Responder {
            self.stats.unknown += 1;
            self.say_reset(id, ResetReason::Unknown);
            return;
        }
        self.next_id = id.0.saturating_add(1);
        if self.open >= self.most {
            self.stats.refused += 1;
            self.say_reset(id, ResetReason::TooMany);
            return;
        }
        if self.spares.share().is_short() {
            self.stats.refused_for_memory += 1;
            self.say_reset(id, ResetReason::TooMany);
            return;
        }
        let key = self.insert(destination, State::Asked);
        self.half_open += 1;
        self.by_id.insert(id, key.slot);
        let (flow, spares) = find(&mut self.slots, &mut self.spares, key);
        if let Some(flow) = flow {
            flow.id = Some(id);
            // Nothing was sent, so nothing can be acknowledged that was not.
            let _ = flow.out.handle_credit(spares, 0, u64::from(window), false);
        }
        self.events.push_back(RelayedEvent::Incoming {
            flow: key,
            destination,
        });
    }

    fn handle_data(
        &mut self,
        now: Instant,
        slot: usize,
        offset: u64,
        bytes: Pieces<'_>,
        take: impl FnOnce(RelayedKey, Pieces<'_>) -> usize,
    ) {
        let Some(flow) = self.slots[slot].as_deref_mut() else {
            return;
        };
        let key = RelayedKey {
            slot,
            serial: flow.serial,
        };
        match flow.state {
            State::Open => {}
            // Its owner has ended it, and the far end has not heard of that.
            State::Over => return,
            State::Opening { .. } | State::Asked => return self.violated(key),
        }
        let take = |bytes: Pieces<'_>| take(key, bytes);
        match (flow.inc).handle_data(now, &mut self.spares, offset, bytes, take) {
            Ok(Arrival::News) => {
                if !flow.inc.waiting().is_empty() {
                    self.progress(slot);
                }
                self.credit_if_worth(slot);
                self.acknowledge_later(now, key);
            }
            Ok(other) => self.arrived_in_vain(slot, other),
            Err(fault) => self.faulted(key, fault),
        }
    }

    fn handle_fin(&mut self, slot: usize, offset: u64) {
        let Some(flow) = self.slots[slot].as_deref_mut() else {
            return;
        };
        let serial = flow.serial;
        match flow.state {
            State::Open => {}
            State::Over => return,
            State::Opening { .. } | State::Asked => {
                return self.violated(RelayedKey { slot, serial });
            }
        }
        match flow.inc.handle_fin(offset) {
            Ok(Arrival::News) => {
                self.credit_now(slot, CreditDue::Yes);
                self.progress(slot);
            }
            Ok(other) => self.arrived_in_vain(slot, other),
            Err(fault) => self.faulted(RelayedKey { slot, serial }, fault),
        }
    }

    fn arrived_in_vain(&mut self, slot: usize, arrival: Arrival) {
        match arrival {
            Arrival::News => {}
            Arrival::Duplicate => {
                self.stats.duplicates += 1;
                // What said that it had arrived is lost, perhaps.
                self.credit_now(slot, CreditDue::Yes);
            }
            Arrival::Gap { ask } => {
                self.stats.gaps += 1;
                if ask {
                    self.credit_now(slot, CreditDue::Again);
                }
            }
        }
    }

    fn handle_credit(&mut self, slot: usize, received: u64, limit: u64, again: bool) {
        let Some(flow) = self.slots[slot].as_deref_mut() else {
            return;
        };
        let key = RelayedKey {
            slot,
            serial: flow.serial,
        };
        let answers = match flow.state {
            State::Opening { .. } => true,
            State::Open => false,
            State::Over => return,
            State::Asked => return self.violated(key),
        };
        match (flow.out).handle_credit(&mut self.spares, received, limit, again) {
            Ok(room) => {
                if answers {
                    flow.state = State::Open;
                    self.half_open -= 1;
                    self.events
                        .push_back(RelayedEvent::Established { flow: key });
                } else if room && std::mem::take(&mut flow.wants_room) {
                    self.progress(slot);
                }
                if again {
                    self.queue(slot);
                }
                self.remove_if_complete(slot);
            }
            Err(Unsent) => self.violated(key),
        }
    }

    fn handle_reset(&mut self, slot: usize, reason: ResetReason) {
        let Some(flow) = self.slots[slot].as_deref() else {
            return;
        };
        let key = RelayedKey {
            slot,
            serial: flow.serial,
        };
        if flow.state == State::Over {
            return;
        }
        self.stats.reset += 1;
        // The far end has forgotten it, and needs no answer.
        if let Some(flow) = self.flow_mut(key)
            && let Some(id) = flow.id.take()
        {
            self.by_id.remove(&id);
        }
        self.fail(key, reason);
    }

    fn faulted(&mut self, key: RelayedKey, fault: Fault) {
        match fault {
            Fault::BeyondBounds => self.violated(key),
            Fault::NoMemory => {
                self.stats.ended_for_memory += 1;
                self.fail(key, ResetReason::TooMany);
            }
        }
    }

    fn violated(&mut self, key: RelayedKey) {
        self.stats.violations += 1;
        self.fail(key, ResetReason::Violation);
    }
}
