//! What is said to the far end: whose turn it is, and its frames.

use super::super::FIRST_WINDOW;
use super::super::flow::{CreditDue, State};
use super::{Relayed, pending};
use crate::wire::{FlowFrame, LaneId, MAX_FLOW_HEAD, RelayedId};

impl Relayed {
    /// Takes note of which lane takes frames. On another one everything that the far end has not acknowledged
    /// is said again.
    pub fn set_lane(&mut self, lane: LaneId) {
        if self.lane.replace(lane) == Some(lane) {
            return;
        }
        self.stats.lane_changes += 1;
        let mut live: Vec<(Option<RelayedId>, usize)> = Vec::with_capacity(self.open);
        for (at, slot) in self.slots.iter_mut().enumerate() {
            let Some(flow) = slot.as_deref_mut() else {
                continue;
            };
            match &mut flow.state {
                State::Opening { said, .. } => *said = false,
                State::Asked | State::Over => continue,
                State::Open => {
                    flow.out.rewind();
                    flow.inc.forget_question();
                    flow.credit = CreditDue::Yes;
                }
            }
            live.push((flow.id, at));
        }
        // The far end sees every number for the first time in this order; those that have none yet come last.
        live.sort_unstable_by_key(|(id, _)| id.map_or(u64::MAX, |id| u64::from(id.0)));
        self.turns.clear();
        for (_, at) in live {
            self.queue(at);
        }
    }

    /// Hands the next frames to `put`, fields and bytes, until there are none or it has no room; returns whether there
    /// were any.
    pub fn poll_transmit(&mut self, mut put: impl FnMut(&[u8], &[u8]) -> bool) -> bool {
        let mut any = false;
        while let Some((flow, reason)) = self.resets.front().copied() {
            if write(&mut put, &FlowFrame::Reset { flow, reason }, &[]).is_none() {
                return any;
            }
            self.resets.pop_front();
            any = true;
        }
        while let Some(at) = self.turns.next(|at| pending(&self.slots, at)) {
            let turn = self.turn(at, &mut put);
            any |= turn.said > 0;
            if turn.blocked {
                return any;
            }
            self.turns.finish(turn.said);
            self.make_room(at);
            if turn.more {
                self.queue(at);
            } else {
                self.remove_if_complete(at);
            }
        }
        any
    }

    /// Tells the owner of a flow that waits for room when enough of what was read ahead has been sent.
    fn make_room(&mut self, at: usize) {
        if let Some(flow) = self.slots.get_mut(at).and_then(Option::as_deref_mut)
            && flow.wants_room
            && flow.state == State::Open
            && flow.out.has_room()
        {
            flow.wants_room = false;
            self.progress(at);
        }
    }

    /// Says what a flow has to say, one Data frame of it at most.
    fn turn(&mut self, at: usize, put: &mut impl FnMut(&[u8], &[u8]) -> bool) -> Turn {
        let mut turn = Turn::default();
        let Some(flow) = self.slots.get_mut(at).and_then(Option::as_deref_mut) else {
            return turn;
        };
        match &mut flow.state {
            State::Opening { said: true, .. } | State::Asked | State::Over => return turn,
            State::Opening { said, .. } => {
                let id = flow.id.unwrap_or(RelayedId(self.next_id));
                let open = FlowFrame::Open {
                    flow: id,
                    destination: flow.remote,
                    window: FIRST_WINDOW as u32,
                };
                turn.write(put, &open, &[]);
                if !turn.blocked {
                    *said = true;
                    if flow.id.replace(id).is_none() {
                        self.next_id = self.next_id.saturating_add(1);
                        self.by_id.insert(id, at);
                    }
                }
                return turn;
            }
            State::Open => {}
        }
        let Some(id) = flow.id else {
            return turn;
        };
        if flow.credit != CreditDue::No {
            let (received, limit) = flow.inc.credit();
            let again = flow.credit == CreditDue::Again;
            let credit = FlowFrame::Credit {
                flow: id,
                received,
                limit,
                again,
            };
            turn.write(put, &credit, &[]);
            if turn.blocked {
                return turn;
            }
            flow.credit = CreditDue::No;
            flow.inc.handle_credit_sent();
        }
        if let Some((offset, piece)) = flow.out.piece() {
            let len = piece.len();
            turn.write(put, &FlowFrame::Data { flow: id, offset }, piece);
            if turn.blocked {
                return turn;
            }
            flow.out.handle_sent(len);
        }
        if let Some(offset) = flow.out.fin() {
            turn.write(put, &FlowFrame::Fin { flow: id, offset }, &[]);
            if turn.blocked {
                return turn;
            }
            flow.out.handle_fin_sent();
        }
        turn.more = flow.out.piece().is_some();
        turn
    }
}

/// Writes a frame; returns how many bytes it took, or `None` without room.
fn write(
    put: &mut impl FnMut(&[u8], &[u8]) -> bool,
    frame: &FlowFrame,
    bytes: &[u8],
) -> Option<usize> {
    let mut head = [0; MAX_FLOW_HEAD];
    let len = frame.write(&mut head);
    put(&head[..len], bytes).then_some(len + bytes.len())
}

/// What a turn came to.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    /// Bytes, the fields of the frames included.
    said: usize,
    /// There was no room for the rest.
    blocked: bool,
    more: bool,
}

impl Turn {
    fn write(
        &mut self,
        put: &mut impl FnMut(&[u8], &[u8]) -> bool,
        frame: &FlowFrame,
        bytes: &[u8],
    ) {
        match write(put, frame, bytes) {
            Some(len) => self.said += len,
            None => self.blocked = true,
        }
    }
}
