//! What a connection's rings hold, and may hold: see [`memory`](crate::memory).

use std::time::{Duration, Instant};

use super::Conn;
use crate::extent::wrapped;
use crate::memory::Account;
use crate::rings::Ring;
use crate::segment::{RST, Segment, before};

impl Conn {
    /// Says how many bytes may wait in a ring.
    pub(super) fn allowed(&self, ring: Ring, account: &Account) -> usize {
        let tcp = self.socket.tcp();
        let capacity = match ring {
            Ring::Receive => tcp.recv_capacity(),
            Ring::Send => tcp.send_capacity(),
        };
        account.allowance().max(self.floor()).min(capacity)
    }

    /// Counts the memory that a segment takes which came; says of how many bytes of its payload, from the first on, there
    /// is any.
    ///
    /// There always is for the floor: what two stacks have to send could fill both otherwise, and none could take what
    /// the other has.
    pub(super) fn make_room(&mut self, parsed: Segment, account: &mut Account) -> usize {
        let payload = parsed.payload;
        let end = parsed.sequence.wrapping_add(payload as u32);
        let Some(next) = self
            .receive_next()
            .filter(|next| payload > 0 && before(*next, end) && !parsed.has(RST))
        else {
            return payload;
        };
        let tcp = self.socket.tcp();
        let (queue, capacity) = (tcp.recv_queue(), tcp.recv_capacity());
        let at = wrapped(self.read_at + queue, capacity);
        let count = (end.wrapping_sub(next) as usize).min(capacity - queue);
        let growth = |conn: &Conn| conn.socket.extent(Ring::Receive).growth(at, count);
        if growth(self) > 0 && !account.admits(growth(self)) {
            self.give_back_unused(Ring::Receive, account);
            if !account.admits(growth(self)) {
                // Nothing behind a gap, and in sequence no more than what makes the floor full.
                let known = next.wrapping_sub(parsed.sequence);
                let is_next = !before(next, parsed.sequence);
                let room = self.floor().saturating_sub(queue).min(count);
                if room == 0 || !is_next {
                    return 0;
                }
                self.socket.grow(Ring::Receive, at, room, account);
                return payload.min(known as usize + room);
            }
        }
        self.socket.grow(Ring::Receive, at, count, account);
        payload
    }

    /// Takes note of what the application has read.
    pub(super) fn note_read(&mut self, now: Instant, count: usize, account: &mut Account) {
        let most = self.allowed(Ring::Receive, account);
        self.window.advance(now, count, most);
        self.read_at = wrapped(self.read_at + count, self.socket.tcp().recv_capacity());
        self.economise(Ring::Receive, account);
    }

    /// Sets the send ring back to its start, where smoltcp begins with an empty one.
    pub(super) fn begin_send_ring(&mut self, account: &mut Account) {
        self.send_at = 0;
        // What lies elsewhere would count twice.
        if !self.socket.extent(Ring::Send).is_at_zero() {
            self.socket.give_back(Ring::Send, 0, 0, account);
        }
    }

    /// Says where the next byte to send lies, and how many of `space` there is memory for.
    pub(super) fn place_to_send(&mut self, space: usize, account: &mut Account) -> (usize, usize) {
        if space > 0 {
            self.economise(Ring::Send, account);
        }
        let tcp = self.socket.tcp();
        let at = wrapped(self.send_at + tcp.send_queue(), tcp.send_capacity());
        let extent = self.socket.extent(Ring::Send);
        let growth = extent.growth(at, space);
        if growth == 0 || account.admits(growth) {
            (at, space)
        } else {
            (at, extent.slack(at).min(space))
        }
    }

    /// Ends the wait for room to send, once there is enough; says whether it did.
    pub(crate) fn stops_waiting(&mut self, account: &Account) -> bool {
        let tcp = self.socket.tcp();
        // Not for every segment's worth: a writer that is woken for crumbs makes crumbs.
        let enough = self.allowed(Ring::Send, account) * 3 / 4;
        let has_memory = !self.starved || account.admits(self.floor());
        let stops = self.want_send && tcp.may_send() && tcp.send_queue() <= enough && has_memory;
        if stops {
            self.want_send = false;
            self.starved = false;
        }
        stops
    }

    /// Says whether only the stack can end a wait for room to send.
    pub(crate) fn is_starved(&self) -> bool {
        self.starved
    }

    /// Gives memory back that holds no bytes: of rings that are empty since `idle`, and of those that hold more than
    /// they are allowed; says of how many rings.
    pub(crate) fn give_back(&mut self, now: Instant, idle: Duration, account: &mut Account) -> u64 {
        let is_idle = now.saturating_duration_since(self.heard) >= idle;
        let mut count = 0;
        for ring in [Ring::Receive, Ring::Send] {
            let (_, live) = self.live(ring);
            let held = self.socket.extent(ring).len();
            if held > 0 && (is_idle && live == 0 || held > account.allowance()) {
                count += u64::from(self.give_back_unused(ring, account) > 0);
            }
        }
        count
    }

    /// Says whether a ring holds memory.
    pub(crate) fn is_warm(&self) -> bool {
        self.held() > 0
    }

    /// Says how much memory both rings hold.
    pub(crate) fn held(&self) -> usize {
        self.socket.held()
    }

    /// Gives back what half of a ring or more holds for nothing, if it is more than the flow is allowed.
    fn economise(&mut self, ring: Ring, account: &mut Account) {
        let held = self.socket.extent(ring).len();
        if held <= self.floor() || held <= account.allowance() {
            return;
        }
        let (_, live) = self.live(ring);
        if live <= held / 2 {
            self.give_back_unused(ring, account);
        }
    }

    fn give_back_unused(&mut self, ring: Ring, account: &mut Account) -> usize {
        let (at, live) = self.live(ring);
        self.socket.give_back(ring, at, live, account)
    }

    /// Says where in a ring there are bytes: where they begin, and how many from there on.
    fn live(&self, ring: Ring) -> (usize, usize) {
        let tcp = self.socket.tcp();
        match ring {
            Ring::Send => (self.send_at, tcp.send_queue()),
            Ring::Receive => {
                let behind_gap = match (self.receive_next(), self.seen_end) {
                    (Some(next), Some(seen)) if before(next, seen) => {
                        seen.wrapping_sub(next) as usize
                    }
                    (_, _) => 0,
                };
                let live = (tcp.recv_queue() + behind_gap).min(tcp.recv_capacity());
                (self.read_at, live)
            }
        }
    }

    /// Gives the sequence number of the first byte that has not come.
    pub(super) fn receive_next(&self) -> Option<u32> {
        let queue = self.socket.tcp().recv_queue();
        Some(self.window.next()?.wrapping_add(queue as u32))
    }

    /// What a flow may hold each way whatever others do: two segments, so that there is progress, and at least a page.
    fn floor(&self) -> usize {
        FLOOR.max(2 * usize::from(self.shape.own_mss))
    }
}

/// The usual page.
const FLOOR: usize = 4096;
