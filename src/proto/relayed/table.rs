//! The relayed flows of one session.

mod arrivals;
mod speech;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use adit_netstack::{Cause, RecvError, SendError};

use super::bytes::Spares;
use super::flow::{CreditDue, Flow, State};
use super::turns::Turns;
use super::{ACK_DELAY, AGAIN_AFTER, CONNECT_TIMEOUT, MAX_RESETS, MAX_TELLING, SPARES_REST};
use crate::proto::budget::Share;
use crate::proto::keys::Role;
use crate::wire::{LaneId, RelayedId, ResetReason};

/// The relayed flows of one session, at either end.
#[derive(Debug)]
pub struct Relayed {
    role: Role,
    most: usize,
    slots: Vec<Option<Box<Flow>>>,
    free: Vec<usize>,
    open: usize,
    /// Flows that were asked for and are not answered.
    half_open: usize,
    serial: u32,
    by_id: HashMap<RelayedId, usize, foldhash::fast::RandomState>,
    /// The least number that no flow has had.
    next_id: u32,
    /// The lane that takes frames.
    lane: Option<LaneId>,
    /// Whose turn is next.
    turns: Turns,
    /// Resets that are to be sent.
    resets: VecDeque<(RelayedId, ResetReason)>,
    /// Flows that acknowledge what came when their time has come, the same after each arrival.
    late: VecDeque<(Instant, RelayedKey)>,
    /// When to look for opens that nobody answers.
    look_at: Option<Instant>,
    /// Flows that found no memory, each once, and when they try again.
    starved: Vec<RelayedKey>,
    again_at: Option<Instant>,
    events: VecDeque<RelayedEvent>,
    spares: Spares,
    /// When to see whether spares are of use.
    rest_at: Option<Instant>,
    stats: RelayedStats,
}

/// Names a flow to its owner, at one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RelayedKey {
    slot: usize,
    serial: u32,
}

impl RelayedKey {
    /// Gives a small number that no other living flow of the table has.
    #[must_use]
    pub const fn index(self) -> usize {
        self.slot
    }
}

/// What became of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayedEvent {
    /// Server: the client asks for a connection, and waits for [`Relayed::accept`] or [`Relayed::refuse`].
    Incoming {
        /// The flow.
        flow: RelayedKey,
        /// Where it is to lead.
        destination: SocketAddr,
    },
    /// Client: the connection stands.
    Established {
        /// The flow.
        flow: RelayedKey,
    },
    /// There is something to read, or room to write, that was missing before.
    Progress {
        /// The flow.
        flow: RelayedKey,
    },
    /// The flow is over; it is to be [released](Relayed::release).
    Closed {
        /// The flow.
        flow: RelayedKey,
        /// Why.
        reason: ResetReason,
    },
}

/// What a [`Relayed`] has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayedStats {
    /// Flows opened: asked for by a client, taken by a server.
    pub opened: u64,
    /// Flows refused: too many.
    pub refused: u64,
    /// Flows refused because the soft bound of memory was reached.
    pub refused_for_memory: u64,
    /// Flows ended because bytes came that would have been held beyond the hard bound of memory.
    pub ended_for_memory: u64,
    /// Flows that ended in order.
    pub finished: u64,
    /// Flows that were reset by the far end.
    pub reset: u64,
    /// Flows that the far end did not answer in time.
    pub timed_out: u64,
    /// Flows whose far end broke the rules.
    pub violations: u64,
    /// Frames of flows that are not known.
    pub unknown: u64,
    /// Data and Fin frames that brought nothing new.
    pub duplicates: u64,
    /// Data and Fin frames dropped beyond a gap.
    pub gaps: u64,
    /// Resets that were not said: too many waited.
    pub resets_dropped: u64,
    /// Times that another lane took over.
    pub lane_changes: u64,
    /// Chunks of memory allocated, ever.
    pub chunks_made: u64,
}

impl Relayed {
    /// Makes an empty table of at most `most` flows, which hold as much as `share` lets them.
    #[must_use]
    pub fn new(role: Role, most: usize, share: Share) -> Self {
        Self {
            role,
            most,
            slots: Vec::new(),
            free: Vec::new(),
            open: 0,
            half_open: 0,
            serial: 0,
            by_id: HashMap::default(),
            next_id: 0,
            lane: None,
            turns: Turns::default(),
            resets: VecDeque::new(),
            late: VecDeque::new(),
            look_at: None,
            starved: Vec::new(),
            again_at: None,
            events: VecDeque::new(),
            spares: Spares::new(share),
            rest_at: None,
            stats: RelayedStats::default(),
        }
    }

    // ---- the owner's side --------------------------------------------------------------

    /// Client: asks for a connection; [`RelayedEvent::Established`] or [`RelayedEvent::Closed`] follows. `None` at the
    /// limit of flows or of memory.
    pub fn connect(&mut self, now: Instant, destination: SocketAddr) -> Option<RelayedKey> {
        if self.open >= self.most || self.next_id == u32::MAX {
            self.stats.refused += 1;
            return None;
        }
        if self.spares.share().is_short() {
            self.stats.refused_for_memory += 1;
            return None;
        }
        let until = now + CONNECT_TIMEOUT;
        let key = self.insert(destination, State::Opening { until, said: false });
        self.half_open += 1;
        self.look_at.get_or_insert(until);
        self.queue(key.slot);
        Some(key)
    }

    /// Server: says that the connection stands.
    pub fn accept(&mut self, key: RelayedKey) {
        if let Some(flow) = self.flow_mut(key)
            && flow.state == State::Asked
        {
            flow.state = State::Open;
            flow.credit = CreditDue::Yes;
            self.half_open -= 1;
            self.queue(key.slot);
        }
    }

    /// Server: says that there is no connection, and why, and forgets the flow.
    pub fn refuse(&mut self, key: RelayedKey, reason: ResetReason) {
        self.end(key, reason);
        self.release(key);
    }

    /// Gives the bytes that have come to `f`, which returns how many it took.
    ///
    /// # Errors
    /// [`RecvError`] when there are none.
    pub fn recv<R>(
        &mut self,
        now: Instant,
        key: RelayedKey,
        f: impl FnOnce(&[u8]) -> (usize, R),
    ) -> Result<R, RecvError> {
        let (flow, spares) = find(&mut self.slots, &mut self.spares, key);
        let flow = flow.ok_or(RecvError::Unknown)?;
        if flow.state == State::Over {
            return Err(RecvError::Failed(Cause::Reset));
        }
        let waiting = flow.inc.waiting();
        if waiting.is_empty() {
            return Err(if flow.inc.has_ended() {
                RecvError::Finished
            } else {
                RecvError::Empty
            });
        }
        let (taken, result) = f(waiting);
        flow.inc.consume(now, spares, taken);
        self.credit_if_worth(key.slot);
        self.rest_later(now);
        Ok(result)
    }

    /// Lends room for bytes to send to `f`, which returns how many it wrote.
    ///
    /// # Errors
    /// [`SendError`] when there is no room, or never will be.
    pub fn send<R>(
        &mut self,
        now: Instant,
        key: RelayedKey,
        f: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> Result<R, SendError> {
        let (flow, spares) = find(&mut self.slots, &mut self.spares, key);
        let flow = flow.ok_or(SendError::Unknown)?;
        match flow.state {
            State::Opening { .. } | State::Asked => return Err(SendError::Full),
            State::Over => return Err(SendError::Failed(Cause::Reset)),
            State::Open if flow.out.is_finished() => return Err(SendError::Closed),
            State::Open => {}
        }
        let room = flow.out.room(spares);
        if room.is_empty() {
            flow.wants_room = true;
            if flow.out.is_starved() && !std::mem::replace(&mut flow.starved, true) {
                self.starved.push(key);
                self.again_at.get_or_insert(now + AGAIN_AFTER);
            }
            return Err(SendError::Full);
        }
        let (written, result) = f(room);
        flow.out.advance(spares, written);
        if written > 0 {
            self.queue(key.slot);
        }
        Ok(result)
    }

    /// Ends our direction behind what was sent.
    pub fn finish(&mut self, key: RelayedKey) {
        if let Some(flow) = self.flow_mut(key)
            && flow.state == State::Open
        {
            flow.out.finish();
            self.queue(key.slot);
        }
    }

    /// Ends the flow at once; the far end sees a reset.
    pub fn abort(&mut self, key: RelayedKey) {
        self.end(key, ResetReason::Aborted);
    }

    /// Forgets the flow, once the far end has what it is owed.
    pub fn release(&mut self, key: RelayedKey) {
        let Some(flow) = self.flow_mut(key) else {
            return;
        };
        flow.released = true;
        match flow.state {
            State::Over => self.remove(key.slot),
            // Nobody would read or write any more.
            State::Opening { .. } | State::Asked => {
                self.abort(key);
                self.remove(key.slot);
            }
            State::Open if !(flow.out.is_finished() && flow.inc.has_ended()) => {
                self.abort(key);
                self.remove(key.slot);
            }
            State::Open => self.remove_if_complete(key.slot),
        }
    }

    /// Returns whether a flow waits for [`Relayed::accept`] or [`Relayed::refuse`].
    #[must_use]
    pub fn is_asked(&self, key: RelayedKey) -> bool {
        let flow = self.slots.get(key.slot).and_then(Option::as_deref);
        flow.is_some_and(|flow| flow.serial == key.serial && flow.state == State::Asked)
    }

    /// Returns where the flow leads that a frame of the far end is about.
    #[must_use]
    pub fn remote_of(&self, id: RelayedId) -> Option<(RelayedKey, SocketAddr)> {
        let slot = *self.by_id.get(&id)?;
        let flow = self.slots.get(slot)?.as_deref()?;
        let serial = flow.serial;
        Some((RelayedKey { slot, serial }, flow.remote))
    }

    /// Ends a flow for a reason, at both ends: its owner is told, too.
    pub fn fail(&mut self, key: RelayedKey, reason: ResetReason) {
        let Some(flow) = self.flow_mut(key) else {
            return;
        };
        let released = flow.released;
        self.end(key, reason);
        if released {
            self.remove(key.slot);
        } else {
            self.events
                .push_back(RelayedEvent::Closed { flow: key, reason });
        }
    }

    /// Returns the next thing that became of a flow.
    pub fn poll_event(&mut self) -> Option<RelayedEvent> {
        let event = self.events.pop_front()?;
        if let RelayedEvent::Progress { flow } = event
            && let Some(flow) = self.flow_mut(flow)
        {
            flow.told = false;
        }
        Some(event)
    }

    /// Returns when [`Relayed::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let late = self.late.front().map(|(due, _)| *due);
        let due = [late, self.look_at, self.again_at, self.rest_at];
        due.into_iter().flatten().min()
    }

    /// Does what is due by `now`: acknowledges, gives up on opens, and looks after memory.
    pub fn handle_timeout(&mut self, now: Instant) {
        while self.late.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, key)) = self.late.pop_front() else {
                break;
            };
            if let Some(flow) = self.flow_mut(key) {
                flow.late = false;
                if flow.inc.is_untold() && flow.state == State::Open {
                    if flow.credit == CreditDue::No {
                        flow.credit = CreditDue::Yes;
                    }
                    self.queue(key.slot);
                }
            }
        }
        if self.look_at.is_some_and(|due| due <= now) {
            self.look_at = None;
            self.give_up_opens(now);
        }
        if self.again_at.is_some_and(|due| due <= now) {
            self.again_at = None;
            self.feed();
        }
        if self.rest_at.is_some_and(|due| due <= now) {
            self.rest_at = None;
            self.spares.rest();
            self.rest_later(now);
        }
    }

    /// Ends every flow: their session is gone. Each is told to be closed, and numbers begin anew. What a client asked for
    /// and was not answered it asks for in the next session.
    pub fn reset_all(&mut self, now: Instant) {
        for slot in 0..self.slots.len() {
            let Some(flow) = self.slots.get_mut(slot).and_then(Option::as_deref_mut) else {
                continue;
            };
            // It will be another's.
            flow.id = None;
            let serial = flow.serial;
            match &mut flow.state {
                State::Opening { said, .. } => *said = false,
                State::Over => {}
                State::Asked | State::Open => {
                    self.fail(RelayedKey { slot, serial }, ResetReason::Aborted);
                }
            }
        }
        self.resets.clear();
        self.by_id.clear();
        self.next_id = 0;
        self.lane = None;
        // Nothing else may come that would see to it.
        self.rest_later(now);
    }

    /// Returns the number of flows, those included that are over for their owner.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.open
    }

    /// Returns whether there is no flow at all.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// Returns whether there is no flow and no memory kept for any.
    #[must_use]
    pub const fn is_at_rest(&self) -> bool {
        self.open == 0 && self.spares.is_empty()
    }

    /// Returns the number of flows that were asked for and are not answered.
    #[must_use]
    pub const fn half_open(&self) -> usize {
        self.half_open
    }

    /// Returns the memory that the queues of all flows take, in both directions.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.spares.held()
    }

    /// Returns what was counted.
    #[must_use]
    pub fn stats(&self) -> RelayedStats {
        RelayedStats {
            chunks_made: self.spares.made(),
            ..self.stats
        }
    }

    // ---- inside ------------------------------------------------------------------------

    fn give_up_opens(&mut self, now: Instant) {
        let mut next = None;
        for slot in 0..self.slots.len() {
            let Some(flow) = self.slots.get(slot).and_then(Option::as_deref) else {
                continue;
            };
            let State::Opening { until, .. } = flow.state else {
                continue;
            };
            if until <= now {
                let serial = flow.serial;
                self.stats.timed_out += 1;
                self.fail(RelayedKey { slot, serial }, ResetReason::TimedOut);
            } else {
                next = Some(next.map_or(until, |next: Instant| next.min(until)));
            }
        }
        // A look costs what all flows cost.
        self.look_at = next.map(|until| until.max(now + LOOK_APART));
    }

    /// Ends a flow at this end and tells the far one.
    fn end(&mut self, key: RelayedKey, reason: ResetReason) {
        let (flow, spares) = find(&mut self.slots, &mut self.spares, key);
        let Some(flow) = flow else {
            return;
        };
        match flow.state {
            State::Over => return,
            State::Opening { .. } | State::Asked => self.half_open -= 1,
            State::Open => {}
        }
        flow.state = State::Over;
        flow.out.clear(spares);
        flow.inc.clear(spares);
        if let Some(id) = flow.id {
            self.say_reset(id, reason);
        }
    }

    fn say_reset(&mut self, id: RelayedId, reason: ResetReason) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back((id, reason));
        } else {
            self.stats.resets_dropped += 1;
        }
    }

    fn credit_if_worth(&mut self, slot: usize) {
        let flow = self.slots[slot].as_deref();
        if flow.is_some_and(|flow| flow.inc.is_credit_worth()) {
            self.credit_now(slot, CreditDue::Yes);
        }
    }

    fn credit_now(&mut self, slot: usize, due: CreditDue) {
        if let Some(flow) = self.slots[slot].as_deref_mut()
            && flow.state == State::Open
        {
            if flow.credit != CreditDue::Again {
                flow.credit = due;
            }
            self.queue(slot);
        }
    }

    fn acknowledge_later(&mut self, now: Instant, key: RelayedKey) {
        if self.late.len() < MAX_TELLING
            && let Some(flow) = self.flow_mut(key)
            && !std::mem::replace(&mut flow.late, true)
        {
            self.late.push_back((now + ACK_DELAY, key));
        }
    }

    fn progress(&mut self, slot: usize) {
        if let Some(flow) = self.slots[slot].as_deref_mut()
            && !flow.released
            && !std::mem::replace(&mut flow.told, true)
        {
            let serial = flow.serial;
            let flow = RelayedKey { slot, serial };
            self.events.push_back(RelayedEvent::Progress { flow });
        }
    }

    fn insert(&mut self, remote: SocketAddr, state: State) -> RelayedKey {
        self.serial = self.serial.wrapping_add(1);
        let flow = Box::new(Flow::new(self.serial, remote, state));
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(flow);
        self.open += 1;
        self.stats.opened += 1;
        RelayedKey {
            slot,
            serial: self.serial,
        }
    }

    fn remove_if_complete(&mut self, slot: usize) {
        let flow = self.slots.get(slot).and_then(Option::as_deref);
        if flow.is_some_and(Flow::is_complete) {
            self.stats.finished += 1;
            self.remove(slot);
        }
    }

    fn remove(&mut self, slot: usize) {
        let Some(mut flow) = self.slots[slot].take() else {
            return;
        };
        flow.out.clear(&mut self.spares);
        flow.inc.clear(&mut self.spares);
        if let Some(id) = flow.id {
            self.by_id.remove(&id);
        }
        self.open -= 1;
        self.free.push(slot);
        if self.open == 0 && self.slots.len() > SLOTS_KEPT {
            // A burst of flows must not leave its high-water mark behind.
            self.slots = Vec::new();
            self.free = Vec::new();
            self.turns = Turns::default();
            self.by_id = HashMap::default();
        }
    }

    fn queue(&mut self, at: usize) {
        self.turns.add(at, pending(&self.slots, at));
    }

    /// Lets those try again that found no memory.
    fn feed(&mut self) {
        let mut starved = std::mem::take(&mut self.starved);
        for key in starved.drain(..) {
            if let Some(flow) = self.flow_mut(key) {
                flow.starved = false;
                if std::mem::take(&mut flow.wants_room) {
                    self.progress(key.slot);
                }
            }
        }
        self.starved = starved;
    }

    fn rest_later(&mut self, now: Instant) {
        if !self.spares.is_empty() {
            self.rest_at.get_or_insert(now + SPARES_REST);
        }
    }

    fn flow_mut(&mut self, key: RelayedKey) -> Option<&mut Flow> {
        find(&mut self.slots, &mut self.spares, key).0
    }
}

/// The flow, and the spares beside it, so that both can be used at once.
fn find<'a>(
    slots: &'a mut [Option<Box<Flow>>],
    spares: &'a mut Spares,
    key: RelayedKey,
) -> (Option<&'a mut Flow>, &'a mut Spares) {
    let flow = slots
        .get_mut(key.slot)
        .and_then(Option::as_deref_mut)
        .filter(|flow| flow.serial == key.serial);
    (flow, spares)
}

/// What a flow has to say: bytes alone count.
fn pending(slots: &[Option<Box<Flow>>], at: usize) -> usize {
    let flow = slots.get(at).and_then(Option::as_deref);
    flow.map_or(0, |flow| flow.out.pending())
}

/// Slots that are kept when no flow is left.
const SLOTS_KEPT: usize = 64;

/// How far apart looks for opens that nobody answers are, at least.
const LOOK_APART: Duration = Duration::from_secs(1);
