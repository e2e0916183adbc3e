//! Who sends next, and who is called when.

use std::time::Instant;

use super::{RING_IDLE, SHORT_SWEEP, STUCK_RETRY, SWEEP_FLOWS, SWEEP_INTERVAL, SWEEP_RINGS, Stack};
use crate::conn::Due;
use crate::event::Cause;
use crate::flow::State;
use crate::offload::Gso;
use crate::sink::PacketSink;
use crate::waits::Wait;

impl Stack {
    /// Writes packets until there is nothing to send or the sink is full.
    ///
    /// Small replies go first. Then the flows that have something to send take turns, one packet each, so that a bulk
    /// flow delays an echo by one packet of each other flow at most. A full sink keeps everybody's place; a flow that
    /// the sink does not [admit](PacketSink::admit) is passed over.
    pub fn poll_transmit<S: PacketSink>(&mut self, now: Instant, sink: &mut S) {
        loop {
            while let Some(len) = self.replies.drain_one(sink) {
                self.stats.packets_out += 1;
                self.stats.bytes_out += len as u64;
            }
            if !self.replies.is_empty() {
                return;
            }
            if self.probe_from.is_none() {
                break;
            }
            self.queue_probes();
        }
        let clock = self.clock(now);
        // Flows in a row that the sink does not want to hear of now.
        let mut passed_over = 0;
        while let Some(&slot) = self.dirty.front() {
            if passed_over >= self.dirty.len() {
                return;
            }
            let slot = slot as usize;
            let Some(flow) = self.flows.get_mut(slot) else {
                self.dirty.pop_front();
                continue;
            };
            let State::Open(conn) = &mut flow.state else {
                flow.dirty = false;
                self.dirty.pop_front();
                continue;
            };
            if !sink.admit(flow.tuple.local(), flow.tuple.remote()) {
                self.dirty.rotate_left(1);
                passed_over += 1;
                continue;
            }
            passed_over = 0;
            if sink_is_full(conn.bound(), sink) {
                // smoltcp is not asked for what there is no room for: it stops its retransmission timer and takes
                // note of a fast retransmission as made before it asks for room, so that a segment which found
                // none would never be sent again.
                return;
            }
            let written = match conn.egress(now, &clock, sink, &self.account) {
                Ok(written) => written,
                Err(_) => {
                    self.stats.internal_failures += 1;
                    self.fail(slot, Cause::Internal);
                    continue;
                }
            };
            if written.lost {
                self.stats.sink_failures += 1;
            }
            match written.packet {
                Some((len, offload, _)) => {
                    self.stats.packets_out += 1;
                    self.stats.bytes_out += len as u64;
                    self.stats.super_packets_out += u64::from(offload.gso != Gso::None);
                    self.rotate();
                    self.touch(slot, now);
                }
                None if conn.due(now, &clock) == Due::Now => {
                    // smoltcp wants to send and does not; it is asked again, but not in a loop.
                    self.rotate();
                    self.timers.arm(slot as u32, now + STUCK_RETRY);
                }
                None => {
                    self.rotate();
                    self.touch(slot, now);
                }
            }
        }
    }

    /// Lets time pass: retransmissions, time-outs, TIME-WAIT, fragments, idle rings.
    pub fn handle_timeout(&mut self, now: Instant) {
        // Each flow once: one that asked to be called in the past again must not keep the stack here.
        for _ in 0..=self.flows.len() {
            let Some(slot) = self.timers.pop(now) else {
                break;
            };
            self.serve(slot as usize, now);
        }
        self.waits.expire(now);
        self.stats.waits_now = self.waits.len() as u64;
        self.stats.reassembly_dropped += self.fragments.expire(now);
        if self.next_sweep.is_some_and(|at| at <= now) {
            self.sweep(now);
        }
    }

    /// Says when [`handle_timeout`](Stack::handle_timeout) is to be called next.
    ///
    /// What is ready to be sent does not count: see [`wants_transmit`](Stack::wants_transmit).
    pub fn poll_timeout(&self) -> Option<Instant> {
        [
            self.timers.next(),
            self.waits.next(),
            self.fragments.next(),
            self.next_sweep,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Takes the flow at the head of the queue out of it.
    fn rotate(&mut self) {
        if let Some(slot) = self.dirty.pop_front()
            && let Some(flow) = self.flows.get_mut(slot as usize)
        {
            flow.dirty = false;
        }
    }

    /// Sees to it that a flow is called when it needs to be, and freed when it is over.
    pub(super) fn touch(&mut self, slot: usize, now: Instant) {
        let clock = self.clock(now);
        let Some(flow) = self.flows.get_mut(slot) else {
            return;
        };
        let conn = match &mut flow.state {
            State::Waiting(syn) => {
                self.timers.arm(slot as u32, syn.expires);
                return;
            }
            State::Failed(_) => {
                if flow.released.is_some() {
                    self.remove(slot, now);
                }
                return;
            }
            State::Open(conn) => conn,
        };
        let due = conn.due(now, &clock);
        let resting = conn.time_wait().is_some();
        if flow.released.is_some() && (conn.is_over() || resting && due != Due::Now) {
            self.remove(slot, now);
            return;
        }
        let own = conn.expires(&self.config, flow.released);
        let at = match due {
            Due::Now => {
                if !flow.dirty {
                    flow.dirty = true;
                    self.dirty.push_back(slot as u32);
                }
                // The sink may be full for as long as a lane is away: the stack's own time-outs do not wait for it.
                own
            }
            Due::At(at) => Some(own.map_or(at, |own| own.min(at))),
            Due::Never => own,
        };
        if let Some(at) = at {
            self.timers.arm(slot as u32, at);
        }
        if self.next_sweep.is_none() {
            self.next_sweep = Some(now + SWEEP_INTERVAL);
        }
    }

    /// Calls a flow whose time has come.
    fn serve(&mut self, slot: usize, now: Instant) {
        let Some(flow) = self.flows.get_mut(slot) else {
            return;
        };
        let released = flow.released;
        match &mut flow.state {
            State::Waiting(syn) if syn.expires <= now => {
                self.stats.half_open_now -= 1;
                self.stats.timed_out += 1;
                self.end_waiting(slot, now, Cause::TimedOut);
            }
            State::Waiting(_) | State::Failed(_) => self.touch(slot, now),
            State::Open(conn) => {
                if conn
                    .expires(&self.config, released)
                    .is_some_and(|at| at <= now)
                {
                    if conn.is_gone() {
                        self.remove(slot, now);
                        return;
                    }
                    self.stats.timed_out += 1;
                    let handshake = !conn.is_established();
                    conn.abort(Cause::TimedOut);
                    if handshake {
                        self.fail(slot, Cause::TimedOut);
                    } else {
                        self.owe(slot, |owed| owed.closed = Some(Cause::TimedOut));
                    }
                }
                self.touch(slot, now);
            }
        }
    }

    /// Ends a flow that was not accepted: its owner hears of it, if it heard of the flow.
    pub(super) fn end_waiting(&mut self, slot: usize, now: Instant, cause: Cause) {
        let flow = &mut self.flows[slot];
        flow.state = State::Failed(cause);
        if flow.owed.incoming {
            self.remove(slot, now);
        } else {
            self.owe(slot, |owed| owed.closed = Some(cause));
        }
    }

    /// Ends a flow at once, without a word to the peer; what it had received is gone.
    pub(super) fn fail(&mut self, slot: usize, cause: Cause) {
        let Some(flow) = self.flows.get_mut(slot) else {
            return;
        };
        match std::mem::replace(&mut flow.state, State::Failed(cause)) {
            State::Open(conn) => {
                if cause == Cause::Internal {
                    self.account.sub(conn.held());
                } else {
                    self.pool.put(conn.into_socket(), &mut self.account);
                }
            }
            State::Waiting(_) => self.stats.half_open_now -= 1,
            State::Failed(earlier) => {
                flow.state = State::Failed(earlier);
                return;
            }
        }
        self.timers.disarm(slot as u32);
        if self.flows[slot].released.is_some() {
            self.forget(slot, None);
        } else {
            self.owe(slot, |owed| owed.closed = Some(cause));
        }
    }

    /// Frees a flow, and lays its addresses to rest where that is needed.
    pub(super) fn remove(&mut self, slot: usize, now: Instant) {
        self.forget(slot, Some(now));
    }

    fn forget(&mut self, slot: usize, now: Option<Instant>) {
        let Some(flow) = self.flows.try_remove(slot) else {
            return;
        };
        self.table.remove(&flow.tuple);
        self.timers.disarm(slot as u32);
        if flow.dirty {
            self.dirty.retain(|dirty| *dirty as usize != slot);
        }
        let wait = match flow.state {
            State::Open(conn) => {
                let wait = conn
                    .time_wait()
                    .map(|(sequence, ack)| Wait::TimeWait { sequence, ack });
                self.pool.put(conn.into_socket(), &mut self.account);
                wait
            }
            State::Waiting(_) | State::Failed(_) => None,
        };
        let wait = wait.or(flow.outgoing.then_some(Wait::Quiet));
        if let (Some(wait), Some(now)) = (wait, now) {
            self.stats.waits_evicted += u64::from(self.waits.insert(now, flow.tuple, wait));
        }
        self.stats.waits_now = self.waits.len() as u64;
        self.stats.flows_now = self.flows.len() as u64;
        // What a burst of flows needed is not kept.
        if self.flows.is_empty() && self.flows.capacity() > KEPT_SLOTS {
            self.flows.shrink_to_fit();
            self.table.shrink_to_fit();
            self.dirty.shrink_to_fit();
        }
    }

    /// Gives memory back, of some spare rings and of what some flows do not use, and wakes flows that wait for it.
    ///
    /// It goes on once a second, oftener while memory is short, until a whole round has found nothing that is still in
    /// memory, and nobody who waits.
    fn sweep(&mut self, now: Instant) {
        self.stats.rings_given_back += self.pool.cool(SWEEP_RINGS, &mut self.account) as u64;
        let end = self.sweep_at + SWEEP_FLOWS;
        for slot in self.sweep_at..end.min(self.flows.capacity()) {
            if let Some(flow) = self.flows.get_mut(slot)
                && let State::Open(conn) = &mut flow.state
            {
                self.stats.rings_given_back += conn.give_back(now, RING_IDLE, &mut self.account);
                self.sweep_found |= conn.is_warm() || conn.is_starved();
                if conn.is_starved() && conn.stops_waiting(&self.account) {
                    self.owe(slot, |owed| owed.progress = true);
                }
            }
        }
        let mut more = self.pool.is_warm();
        if end < self.flows.capacity() {
            self.sweep_at = end;
            more = true;
        } else {
            self.sweep_at = 0;
            more |= std::mem::take(&mut self.sweep_found);
        }
        let interval = if self.account.is_short() {
            SHORT_SWEEP
        } else {
            SWEEP_INTERVAL
        };
        self.next_sweep = more.then_some(now + interval);
    }
}

fn sink_is_full<S: PacketSink>(bound: usize, sink: &mut S) -> bool {
    sink.reserve(bound).is_none()
}

/// A stack without flows keeps room for so many.
const KEPT_SLOTS: usize = 64;
