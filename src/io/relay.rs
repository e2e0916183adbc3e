//! Moves bytes between flows, of the netstack or relayed, and the sockets they stand for.
//!
//! # Theory of operation
//!
//! A [`Relay`] owns one [`Endpoint`] per flow: the application's socket on a client, the
//! origin's socket on a server with egress `user`, or one end of an in-memory pipe. There is
//! no task and no buffer per flow. The driver that owns the netstack calls
//!
//! 1. [`Relay::attach`] once a flow is established,
//! 2. [`Relay::pump`] for each flow the netstack reports progress on, and
//! 3. [`Relay::poll_ready`] for those whose sockets became ready.
//!
//! A pump copies from the flow's ring straight into the socket (`recv(|ring| write(ring))`)
//! and from the socket straight into the ring (`send(|ring| read(ring))`), until either side
//! would block. A socket that would block has then registered the flow's own waker, which
//! puts the flow's number into the [`ReadySet`] and wakes the driver: readiness is waited
//! for only after `WouldBlock`, and a wake-up names the flow it is for.
//!
//! What keeps the flows is behind [`Flows`]: the netstack, or the table of flows that are
//! [relayed](crate::proto::relayed) without one. Of these, bytes that arrive are offered to
//! the socket from where they were opened ([`Relay::offer`]); only what it does not take
//! waits in a ring.
//!
//! ```text
//!            ring ── recv ──▶ poll_write ──▶ socket        down
//!            ring ◀── send ── poll_read  ◀── socket        up
//! ```
//!
//! # Limits
//!
//! One pump moves at most [`PUMP_BYTES`] each way; what is left waits for the flow's next
//! turn, so a fast flow cannot starve the others. The number of flows is bounded by the
//! netstack.

mod endpoint;
mod flows;
mod link;
mod ready;
mod ties;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use adit_netstack::Stack;

pub use self::endpoint::{Endpoint, Pipe};
pub use self::flows::Flows;
pub use self::link::PUMP_BYTES;
use self::link::{End, Half, Link};
pub use self::ready::{Notice, ReadySet};
pub use self::ties::{Fate, FlowWatch, Terms, Ties};
use super::turns::Turns;
use crate::proto::relayed::Pieces;

/// The flows of one netstack, or of one table of relayed ones, and the sockets they stand for.
#[derive(Debug)]
pub struct Relay<F: Flows = Stack> {
    links: Vec<Option<Link<F::Id>>>,
    open: usize,
    /// The most that were open since the last burst was over.
    peak: usize,
    ended: VecDeque<F::Id>,
    ready: Arc<ReadySet>,
    stats: RelayStats,
}

impl<F: Flows> Relay<F> {
    /// Makes an empty relay that reports readiness to `ready`.
    pub fn new(ready: Arc<ReadySet>) -> Self {
        Self {
            links: Vec::new(),
            open: 0,
            peak: 0,
            ended: VecDeque::new(),
            ready,
            stats: RelayStats::default(),
        }
    }

    /// Binds `endpoint` to the established `flow`; `early` are bytes already read from it.
    ///
    /// The flow must not have an endpoint yet. The flow is queued for its first pump.
    pub fn attach(&mut self, flow: F::Id, endpoint: Endpoint, early: Vec<u8>) {
        self.attach_tied(flow, endpoint, early, Ties::default());
    }

    /// Like [`Relay::attach`], for a flow that has [`Ties`].
    pub fn attach_tied(&mut self, flow: F::Id, endpoint: Endpoint, early: Vec<u8>, ties: Ties) {
        let key = F::index(flow);
        if self.links.len() <= key {
            self.links.resize_with(key + 1, || None);
        }
        let notice = Arc::new(Notice::new(self.ready.clone(), key));
        let link = Link {
            flow,
            endpoint,
            waker: Waker::from(notice.clone()),
            notice,
            early: VecDeque::from(early),
            terms: ties.terms,
            up: Half::Open,
            down: Half::Open,
            watch: ties.watch,
        };
        if self.links[key].replace(link).is_none() {
            self.open += 1;
            self.peak = self.peak.max(self.open);
        }
        self.stats.attached += 1;
        self.requeue(key);
    }

    /// Moves what can be moved for `flow` both ways; returns whether anything moved.
    pub fn pump(&mut self, now: Instant, flows: &mut F, flow: F::Id) -> bool {
        match self.links.get_mut(F::index(flow)) {
            Some(Some(link)) if link.flow == flow => self.pump_key(now, flows, F::index(flow)),
            _ => false,
        }
    }

    /// Pumps at most `budget` flows whose sockets became ready, one at least and no more than `turns` has time for; returns
    /// whether any were.
    pub fn poll_ready(&mut self, now: Instant, flows: &mut F, budget: usize, turns: Turns) -> bool {
        let mut any = false;
        for _ in 0..budget {
            let Some(key) = self.ready.pop() else { break };
            any = true;
            if let Some(Some(link)) = self.links.get(key) {
                link.notice.taken();
                self.pump_key(now, flows, key);
                if turns.are_over_by_now() {
                    break;
                }
            }
        }
        any
    }

    /// Offers bytes that have come for `flow`, and before which none wait, to its socket; returns how many it took.
    pub fn offer(&mut self, flow: F::Id, bytes: Pieces<'_>) -> usize {
        let Some(Some(link)) = self.links.get_mut(F::index(flow)) else {
            return 0;
        };
        if link.flow != flow || link.down != Half::Open {
            return 0;
        }
        let mut cx = Context::from_waker(&link.waker);
        let mut taken = 0;
        loop {
            let mut slices = [IoSlice::new(&[]); OFFERED];
            let mut offered = 0;
            for (slice, piece) in slices.iter_mut().zip(bytes.skip(taken).iter()) {
                *slice = IoSlice::new(piece);
                offered += 1;
            }
            if offered == 0 {
                break;
            }
            match (link.endpoint).poll_write_vectored(&mut cx, &slices[..offered]) {
                Poll::Ready(Ok(n)) if n > 0 => taken += n,
                Poll::Pending => break,
                // The pump finds the same, and ends the flow.
                Poll::Ready(Ok(_) | Err(_)) => {
                    link.notice.queue();
                    break;
                }
            }
        }
        self.stats.bytes_down += taken as u64;
        taken
    }

    /// Lets go of `flow`, whose conversation has ended; the socket is reset.
    pub fn reset(&mut self, flow: F::Id) {
        if matches!(self.links.get(F::index(flow)), Some(Some(link)) if link.flow == flow) {
            self.detach(F::index(flow), End::Reset);
        }
    }

    /// Ends every flow whose terms hold no longer; both its ends see a reset.
    pub fn end_unfit(&mut self, now: Instant, flows: &mut F) {
        for key in 0..self.links.len() {
            let Some(Some(link)) = self.links.get(key) else {
                continue;
            };
            let flow = link.flow;
            if link.terms.as_ref().is_some_and(|terms| !terms.hold()) {
                flows.abort(now, flow);
                flows.release(now, flow);
                self.stats.unfit += 1;
                self.detach(key, End::Reset);
            }
        }
    }

    /// Resets every socket: their flows are gone.
    pub fn reset_all(&mut self) {
        for key in 0..self.links.len() {
            if self.links[key].is_some() {
                self.detach(key, End::Reset);
            }
        }
    }

    /// Returns the next flow with a pipe that has ended since the last call; its owner
    /// inside this process may still hold its handle. To be drained after every turn.
    pub fn poll_ended(&mut self) -> Option<F::Id> {
        self.ended.pop_front()
    }

    /// Tells, once after each burst, that so many flows came and went that memory is to be given
    /// back. To be asked when the netstack is idle.
    pub fn burst_is_over(&mut self) -> bool {
        let over = self.open == 0 && self.peak > BURST;
        if over {
            self.peak = 0;
        }
        over
    }

    /// Returns the number of flows that have a socket.
    pub fn len(&self) -> usize {
        self.open
    }

    /// Counts the TCP sockets among what flows have; a walk over all of them.
    pub fn tcp_sockets(&self) -> usize {
        let links = self.links.iter().flatten();
        links
            .filter(|link| matches!(link.endpoint, Endpoint::Tcp(_)))
            .count()
    }

    /// Returns whether no flow has a socket.
    pub fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// Returns what was counted.
    pub fn stats(&self) -> &RelayStats {
        &self.stats
    }

    fn pump_key(&mut self, now: Instant, flows: &mut F, key: usize) -> bool {
        let Some(Some(link)) = self.links.get_mut(key) else {
            return false;
        };
        let down = link.pump_down(now, flows);
        let up = match down {
            Ok(_) => link.pump_up(now, flows),
            Err(end) => Err(end),
        };
        let done = link.up == Half::Finished && link.down == Half::Finished;
        let flow = link.flow;
        if let Ok(moved) = down {
            self.stats.bytes_down += moved.bytes as u64;
        }
        if let Ok(moved) = up {
            self.stats.bytes_up += moved.bytes as u64;
        }
        match (down, up) {
            (Ok(down), Ok(up)) => {
                if done {
                    flows.release(now, flow);
                    self.detach(key, End::Clean);
                } else if down.more || up.more {
                    self.requeue(key);
                }
                down.bytes + up.bytes > 0
            }
            (Err(end), _) | (_, Err(end)) => {
                match end {
                    End::Reset => {}
                    End::Broken => flows.abort(now, flow),
                    End::Clean => {}
                }
                flows.release(now, flow);
                self.detach(key, end);
                true
            }
        }
    }

    fn requeue(&self, key: usize) {
        if let Some(Some(link)) = self.links.get(key) {
            link.notice.queue();
        }
    }

    fn detach(&mut self, key: usize, end: End) {
        let Some(mut link) = self.links[key].take() else {
            return;
        };
        if let (Some(watch), End::Clean) = (link.watch.as_mut(), end) {
            watch.finish();
        }
        self.open -= 1;
        if matches!(link.endpoint, Endpoint::Pipe(_)) {
            self.ended.push_back(link.flow);
        }
        match end {
            End::Clean => self.stats.finished += 1,
            End::Broken => self.stats.broken_sockets += 1,
            End::Reset => {
                self.stats.reset_flows += 1;
                link.endpoint.reset();
            }
        }
        while matches!(self.links.last(), Some(None)) {
            self.links.pop();
        }
        // A burst of flows must not leave its high-water mark behind.
        if self.links.capacity() > 64 && self.links.len() < self.links.capacity() / 4 {
            self.links.shrink_to(self.links.len() * 2);
        }
    }
}

impl<F: Flows> Drop for Relay<F> {
    /// Flows that are cut off in the middle must not look like such that have ended.
    fn drop(&mut self) {
        self.reset_all();
    }
}

/// What a [`Relay`] has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayStats {
    /// Flows that were given a socket.
    pub attached: u64,
    /// Flows that ended with both halves closed in order.
    pub finished: u64,
    /// Flows ended because their socket failed.
    pub broken_sockets: u64,
    /// Flows ended because the flow itself was reset or timed out.
    pub reset_flows: u64,
    /// Those of them that were ended here, because their terms held no longer.
    pub unfit: u64,
    /// Bytes moved from flows to sockets.
    pub bytes_down: u64,
    /// Bytes moved from sockets to flows.
    pub bytes_up: u64,
}

/// Pieces offered to a socket by one system call: as many frames as a lane hands on together.
const OFFERED: usize = 8;

/// Flows at once that leave enough memory behind for it to be given back.
const BURST: usize = 256;

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;

    #[test]
    fn turn_without_time_serves_one_flow() {
        let set = ReadySet::new();
        let mut relay = Relay::new(set.clone());
        let mut stack = Stack::new(adit_netstack::Config::default(), 1);
        let config = adit_netstack::Config {
            addresses: vec![[10, 86, 0, 2].into()],
            ..adit_netstack::Config::default()
        };
        let now = Instant::now();
        stack.set_addresses(config.addresses);
        let ends: Vec<DuplexStream> = (0..3)
            .map(|_| {
                let (near, far) = tokio::io::duplex(64);
                let flow = stack.connect(now, ([192, 0, 2, 1], 80).into()).unwrap();
                relay.attach(flow, Endpoint::Pipe(Box::new(near)), Vec::new());
                far
            })
            .collect();
        for left in [2, 1, 0] {
            assert!(relay.poll_ready(now, &mut stack, 8, Turns::for_test(true)));
            assert_eq!(set.len(), left);
        }
        drop(ends);
    }

    #[test]
    fn key_of_a_flow_that_is_gone_is_passed_over() {
        let set = ReadySet::new();
        let mut relay = Relay::new(set.clone());
        let mut stack = Stack::new(adit_netstack::Config::default(), 1);
        Waker::from(Arc::new(Notice::new(set.clone(), 9))).wake();
        assert!(relay.poll_ready(Instant::now(), &mut stack, 8, Turns::for_test(false)));
        assert!(!relay.poll_ready(Instant::now(), &mut stack, 8, Turns::for_test(false)));
    }
}
