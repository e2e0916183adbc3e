//! The stack: its table of flows, and what its driver calls.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use slab::Slab;

use crate::clock::Clock;
use crate::config::{Accept, Config};
use crate::conn::Conn;
use crate::event::{Cause, ConnectError, Delivery, Event, FlowId, RecvError, Rejection, SendError};
use crate::flow::{Flow, Owed, State, Tuple};
use crate::fragments::Reassembly;
use crate::icmp::Unreachable;
use crate::limiter::Limiter;
use crate::memory::{Account, Memory};
use crate::offload::Offload;
use crate::packet::is_unicast;
use crate::replies::Replies;
use crate::rings::RingPool;
use crate::stats::{Dropped, Stats};
use crate::timers::Timers;
use crate::waits::Waits;

#[cfg(test)]
mod bounds;
mod datagrams;
mod ingress;
mod schedule;
mod tcp;

/// Many TCP, UDP and ICMP flows of one virtual host. See the crate's page for the order of calls.
pub struct Stack {
    config: Config,
    clock: Option<Clock>,
    /// The last time the stack was told, for the one call that is not told.
    latest: Option<Instant>,
    rng: StdRng,
    flows: Slab<Flow>,
    table: HashMap<Tuple, u32, SeedableRandomState>,
    generation: u32,
    timers: Timers,
    /// Flows that have something to send, in the order in which they get their turn.
    dirty: VecDeque<u32>,
    /// Flows that owe events, by slot and generation.
    owing: VecDeque<(u32, u32)>,
    replies: Replies,
    waits: Waits,
    pool: RingPool,
    /// What all rings hold, and may hold.
    account: Account,
    fragments: Reassembly,
    /// The datagram last put together, while it is delivered.
    reassembled: Vec<u8>,
    icmp_limit: Limiter,
    ports: HashSet<u16, SeedableRandomState>,
    /// TCP ports on which flows of peers are reported.
    listening: HashSet<u16, SeedableRandomState>,
    ident: u32,
    /// Where the sweep for idle rings goes on, and when.
    sweep_at: usize,
    next_sweep: Option<Instant>,
    /// This round has seen a ring that may hold memory.
    sweep_found: bool,
    /// The first slot that [`Stack::probe`] has not looked at yet.
    probe_from: Option<usize>,
    stats: Stats,
}

/// Where in a packet the payload of a delivery lies.
enum Outcome {
    Absorbed,
    Udp {
        local: SocketAddr,
        remote: SocketAddr,
        payload: Range<usize>,
        segment: usize,
    },
    Echo {
        request: bool,
        local: IpAddr,
        remote: IpAddr,
        ident: u16,
        sequence: u16,
        payload: Range<usize>,
    },
    UdpFailed {
        local: SocketAddr,
        remote: SocketAddr,
        why: Unreachable,
    },
    /// A datagram is whole now; it lies in `reassembled`.
    Reassembled,
}

impl Outcome {
    fn deliver<'a>(self, bytes: &'a [u8]) -> Delivery<'a> {
        match self {
            Outcome::Absorbed | Outcome::Reassembled => Delivery::Absorbed,
            Outcome::Udp {
                local,
                remote,
                payload,
                segment,
            } => Delivery::Udp {
                local,
                remote,
                payload: bytes.get(payload).unwrap_or_default(),
                segment,
            },
            Outcome::Echo {
                request,
                local,
                remote,
                ident,
                sequence,
                payload,
            } => Delivery::Echo {
                request,
                local,
                remote,
                ident,
                sequence,
                payload: bytes.get(payload).unwrap_or_default(),
            },
            Outcome::UdpFailed { local, remote, why } => Delivery::UdpFailed { local, remote, why },
        }
    }
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack")
            .field("flows", &self.flows.len())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl Stack {
    /// Makes a stack without flows.
    ///
    /// `seed` must be unpredictable: ports and initial sequence numbers come from it.
    pub fn new(config: Config, seed: u64) -> Stack {
        let config = config.bounded();
        let mut rng = StdRng::seed_from_u64(seed);
        let hasher = SeedableRandomState::with_seed(rng.next_u64(), SharedSeed::global_random());
        Stack {
            clock: None,
            latest: None,
            flows: Slab::new(),
            table: HashMap::with_hasher(hasher.clone()),
            generation: 0,
            timers: Timers::default(),
            dirty: VecDeque::new(),
            owing: VecDeque::new(),
            replies: Replies::default(),
            waits: Waits::new(hasher.clone()),
            pool: RingPool::new(config.receive_ring, config.send_ring),
            account: Account::default(),
            fragments: Reassembly::new(hasher.clone()),
            reassembled: Vec::new(),
            icmp_limit: Limiter::new(ICMP_ERRORS_PER_SECOND, ICMP_ERROR_BURST),
            ports: HashSet::with_hasher(hasher.clone()),
            listening: HashSet::with_hasher(hasher),
            ident: rng.next_u32(),
            sweep_at: 0,
            next_sweep: None,
            sweep_found: false,
            probe_from: None,
            stats: Stats::default(),
            rng,
            config,
        }
    }

    /// Sets the account that says how much memory rings may hold, and that is told what they do; without one they may
    /// hold all that they have room for.
    pub fn set_memory(&mut self, memory: Box<dyn Memory>) {
        self.account.set(memory);
    }

    /// Sets the stack's own addresses, as a new lease does.
    ///
    /// Under [`Accept::Own`] and for flows made by [`connect`](Stack::connect), flows of an address that is gone fail
    /// with [`Cause::AddressLost`]; no reset is sent, since the address may be another's by now.
    pub fn set_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.config.addresses = addresses;
        let lost: Vec<usize> = self
            .flows
            .iter()
            .filter(|(_, flow)| flow.outgoing || self.config.accept == Accept::Own)
            .filter(|(_, flow)| !self.config.addresses.contains(&flow.tuple.local.0))
            .map(|(slot, _)| slot)
            .collect();
        for slot in lost {
            self.fail(slot, Cause::AddressLost);
        }
    }

    /// Asks the peer of every idle flow whether it still knows the flow, by a keepalive probe each.
    ///
    /// To be called when the path was interrupted by something that may have made peers forget: one that waits for
    /// data of a peer that is gone would wait for ever. Such a flow ends with [`Cause::Reset`]; a living peer answers
    /// by an acknowledgement, and nothing changes. An unanswered probe is not repeated.
    pub fn probe(&mut self, now: Instant) {
        self.clock(now);
        self.probe_from = Some(0);
        self.queue_probes();
    }

    /// Takes one packet from the tunnel, and says what is in it for the driver.
    ///
    /// The packet may be changed in place. What smoltcp answers at once is queued for
    /// [`poll_transmit`](Stack::poll_transmit); [`poll_event`](Stack::poll_event) may have news.
    ///
    /// # Errors
    /// Why the packet was dropped; it is counted in [`Stats::dropped`] too.
    pub fn handle_packet<'a>(
        &'a mut self,
        now: Instant,
        packet: &'a mut [u8],
        offload: Offload,
    ) -> Result<Delivery<'a>, Dropped> {
        self.clock(now);
        self.stats.packets_in += 1;
        self.stats.bytes_in += packet.len() as u64;
        let outcome = match self.ingress(now, packet, offload) {
            Ok(Outcome::Reassembled) => {
                let mut whole = std::mem::take(&mut self.reassembled);
                let outcome = self.ingress_whole(now, &mut whole);
                self.reassembled = whole;
                match outcome {
                    Ok(outcome) => return Ok(outcome.deliver(&self.reassembled)),
                    Err(reason) => Err(reason),
                }
            }
            outcome => outcome,
        };
        match outcome {
            Ok(outcome) => Ok(outcome.deliver(packet)),
            Err(reason) => {
                self.stats.dropped.count(reason);
                Err(reason)
            }
        }
    }

    /// Begins a flow to `remote` from the own address of its family and a random free port.
    ///
    /// [`Event::Established`] or [`Event::Closed`] will follow. Either way the driver releases the flow in the end.
    ///
    /// # Errors
    /// [`ConnectError`], and no flow is made.
    pub fn connect(&mut self, now: Instant, remote: SocketAddr) -> Result<FlowId, ConnectError> {
        let address = remote.ip();
        let local = self
            .config
            .addresses
            .iter()
            .copied()
            .find(|own| own.is_ipv4() == address.is_ipv4())
            .ok_or(ConnectError::NoAddress { remote: address })?;
        if !is_unicast(address) || !is_unicast(local) || remote.port() == 0 {
            return Err(ConnectError::BadAddress { remote });
        }
        if self.flows.len() >= self.config.max_flows {
            return Err(ConnectError::TooManyFlows {
                limit: self.config.max_flows,
            });
        }
        if self.account.is_short() {
            self.stats.refused_for_memory += 1;
            return Err(ConnectError::NoMemory);
        }
        let tuple = self
            .free_tuple(local, remote)
            .ok_or(ConnectError::NoPort { remote })?;
        let socket = self.pool.take().map_err(|_| {
            self.stats.ring_failures += 1;
            ConnectError::NoMemory
        })?;
        let clock = self.clock(now);
        let seed = self.rng.next_u64();
        let conn = Conn::connect(socket, &self.config, tuple, seed, now, &clock)
            .ok_or(ConnectError::BadAddress { remote })?;
        let slot = self.insert(tuple, State::Open(Box::new(conn)), true);
        self.stats.connects += 1;
        self.touch(slot, now);
        Ok(self.flows[slot].id(slot))
    }

    /// Listens on a TCP port of the own addresses of both families: a SYN for it is reported as [`Event::Incoming`]
    /// under [`Accept::Own`] too, whatever [`Config::incoming`] says of the others. False if it is listened on already,
    /// or no port.
    pub fn listen(&mut self, port: u16) -> bool {
        port != 0 && self.listening.insert(port)
    }

    /// Stops listening on a TCP port; flows that were reported go on.
    pub fn unlisten(&mut self, port: u16) {
        self.listening.remove(&port);
    }

    /// Answers the SYN of a flow that [`Event::Incoming`] told of; [`Event::Established`] follows.
    ///
    /// If there is no memory for it, the peer is reset and [`Event::Closed`] follows instead.
    pub fn accept(&mut self, now: Instant, flow: FlowId) {
        let Some(slot) = self.find(flow) else {
            return;
        };
        let clock = self.clock(now);
        let entry = &mut self.flows[slot];
        let State::Waiting(syn) = &mut entry.state else {
            return;
        };
        self.stats.half_open_now -= 1;
        let mut packet = std::mem::take(&mut syn.packet);
        let seed = self.rng.next_u64();
        let made = match self.pool.take() {
            Ok(socket) => Conn::accept(
                socket,
                &self.config,
                entry.tuple,
                &mut packet,
                seed,
                now,
                &clock,
            )
            .ok_or(Cause::Internal),
            Err(_) => {
                self.stats.ring_failures += 1;
                Err(Cause::NoMemory)
            }
        };
        match made {
            Ok(conn) => {
                entry.state = State::Open(Box::new(conn));
                self.touch(slot, now);
            }
            Err(cause) => {
                entry.state = State::Failed(cause);
                self.answer_syn_with_reset(&packet);
                self.owe(slot, |owed| owed.closed = Some(cause));
            }
        }
    }

    /// Refuses a flow that was not accepted yet, and forgets it.
    pub fn reject(&mut self, now: Instant, flow: FlowId, rejection: Rejection) {
        let Some(slot) = self.find(flow) else {
            return;
        };
        self.clock(now);
        if let State::Waiting(syn) = &mut self.flows[slot].state {
            let packet = std::mem::take(&mut syn.packet);
            self.stats.half_open_now -= 1;
            self.flows[slot].state = State::Failed(Cause::Aborted);
            match rejection {
                Rejection::Reset => self.answer_syn_with_reset(&packet),
                Rejection::Unreachable(why) => self.send_unreachable(&packet, why),
                Rejection::Silent => {}
            }
        }
        self.release(now, flow);
    }

    /// Lends what a flow has received to `f`, which says how many bytes of it it took.
    ///
    /// What is lent is contiguous and not empty; because the ring wraps, there may be more after it. What arrived
    /// before a failure can still be read.
    ///
    /// # Errors
    /// [`RecvError`]; `f` was not called then.
    pub fn recv<R>(
        &mut self,
        now: Instant,
        flow: FlowId,
        f: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> Result<R, RecvError> {
        let slot = self.find(flow).ok_or(RecvError::Unknown)?;
        let conn = match &mut self.flows[slot].state {
            State::Waiting(_) => return Err(RecvError::Empty),
            State::Failed(cause) => return Err(RecvError::Failed(*cause)),
            State::Open(conn) => conn,
        };
        match conn.recv(now, &mut self.account, f) {
            Some(result) => {
                // The window may have opened.
                self.update_window(slot);
                self.touch(slot, now);
                Ok(result)
            }
            None if conn.peer_finished() => Err(RecvError::Finished),
            None => Err(conn.failed.map_or(RecvError::Empty, RecvError::Failed)),
        }
    }

    /// Lends room in a flow's send ring to `f`, which says how many bytes it wrote.
    ///
    /// What is lent is contiguous and not empty; because the ring wraps, there may be more after it.
    ///
    /// # Errors
    /// [`SendError`]; `f` was not called then.
    pub fn send<R>(
        &mut self,
        now: Instant,
        flow: FlowId,
        f: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> Result<R, SendError> {
        let slot = self.find(flow).ok_or(SendError::Unknown)?;
        let conn = match &mut self.flows[slot].state {
            State::Waiting(_) => return Err(SendError::Full),
            State::Failed(cause) => return Err(SendError::Failed(*cause)),
            State::Open(conn) => conn,
        };
        if let Some(cause) = conn.failed {
            return Err(SendError::Failed(cause));
        }
        if conn.is_finished() {
            return Err(SendError::Closed);
        }
        let Some(result) = conn.send(now, &mut self.account, f) else {
            if conn.is_starved() {
                // Nothing but the sweep will find memory for it.
                self.next_sweep.get_or_insert(now + SHORT_SWEEP);
            }
            return Err(SendError::Full);
        };
        self.touch(slot, now);
        Ok(result)
    }

    /// Says how many bytes a flow has received that were not read.
    pub fn recv_len(&self, flow: FlowId) -> usize {
        self.conn(flow).map_or(0, Conn::recv_len)
    }

    /// Says how many bytes a flow may send now; zero before it is established and after `finish`.
    pub fn send_space(&self, flow: FlowId) -> usize {
        self.conn(flow)
            .map_or(0, |conn| conn.send_space(&self.account))
    }

    /// Says how many bytes were sent or wait to be and are not acknowledged.
    pub fn send_queue(&self, flow: FlowId) -> usize {
        self.conn(flow).map_or(0, Conn::send_queue)
    }

    /// Ends our stream of a flow: the peer sees its end after what is queued. Reading goes on.
    pub fn finish(&mut self, now: Instant, flow: FlowId) {
        let Some(slot) = self.find(flow) else {
            return;
        };
        if let State::Open(conn) = &mut self.flows[slot].state {
            if !conn.is_established() {
                // There is no stream to end yet; smoltcp would forget a SYN-SENT socket without a word.
                self.abort(now, flow);
                return;
            }
            conn.finish(now);
            self.touch(slot, now);
        }
    }

    /// Resets a flow. What it has received can still be read; the driver still releases it.
    pub fn abort(&mut self, now: Instant, flow: FlowId) {
        let Some(slot) = self.find(flow) else {
            return;
        };
        match &mut self.flows[slot].state {
            State::Waiting(_) => self.reject(now, flow, Rejection::Reset),
            State::Open(conn) => {
                conn.abort(Cause::Aborted);
                self.touch(slot, now);
            }
            State::Failed(_) => {}
        }
    }

    /// Forgets a flow on the driver's side; its id is stale from now on.
    ///
    /// The flow ends its stream and closes in the background, under [`Config::close_timeout`]. If anything is unread
    /// or arrives later, it is reset instead, so that the peer learns that nobody reads (RFC 2525 §2.17).
    pub fn release(&mut self, now: Instant, flow: FlowId) {
        let Some(slot) = self.find(flow) else {
            return;
        };
        let entry = &mut self.flows[slot];
        entry.released = Some(now);
        entry.owed = Owed {
            queued: entry.owed.queued,
            ..Owed::default()
        };
        match &mut entry.state {
            State::Waiting(_) => {
                self.stats.half_open_now -= 1;
                self.remove(slot, now);
            }
            State::Failed(_) => self.remove(slot, now),
            State::Open(conn) => {
                if conn.recv_len() > 0 || !conn.is_established() {
                    conn.abort(Cause::Aborted);
                } else {
                    conn.finish(now);
                }
                self.touch(slot, now);
            }
        }
    }

    /// Says what was counted.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Says how many bytes of memory all rings hold, those of ended flows included that wait for the next.
    pub fn held(&self) -> usize {
        self.account.held()
    }

    /// Says how many flows there are, half-open and closing ones included.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Says whether there is no flow at all.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Says whether [`poll_transmit`](Stack::poll_transmit) has something to send.
    pub fn wants_transmit(&self) -> bool {
        !self.dirty.is_empty() || !self.replies.is_empty()
    }

    /// Says whether nothing is to be sent, told or timed.
    pub fn is_idle(&self) -> bool {
        !self.wants_transmit() && self.owing.is_empty() && self.poll_timeout().is_none()
    }

    /// Gives the own address of the family of `like`, if there is one.
    pub fn own_address(&self, like: IpAddr) -> Option<IpAddr> {
        let same = |own: &&IpAddr| own.is_ipv4() == like.is_ipv4();
        self.config.addresses.iter().find(same).copied()
    }

    /// Gives the addresses of a living flow: local, then remote.
    pub fn addresses(&self, flow: FlowId) -> Option<(SocketAddr, SocketAddr)> {
        let tuple = &self.flows[self.find(flow)?].tuple;
        Some((tuple.local(), tuple.remote()))
    }

    /// Fetches the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        while let Some(&(slot, generation)) = self.owing.front() {
            let event = match self.flows.get_mut(slot as usize) {
                Some(flow) if flow.generation == generation => next_event(flow, slot as usize),
                Some(_) | None => None,
            };
            if event.is_some() {
                return event;
            }
            self.owing.pop_front();
            if let Some(flow) = self.flows.get_mut(slot as usize)
                && flow.generation == generation
            {
                flow.owed.queued = false;
            }
        }
        None
    }

    fn clock(&mut self, now: Instant) -> Clock {
        self.latest = Some(now);
        *self.clock.get_or_insert(Clock::new(now))
    }

    fn find(&self, flow: FlowId) -> Option<usize> {
        let slot = flow.slot as usize;
        let entry = self.flows.get(slot)?;
        (entry.generation == flow.generation && entry.released.is_none()).then_some(slot)
    }

    fn conn(&self, flow: FlowId) -> Option<&Conn> {
        match &self.flows[self.find(flow)?].state {
            State::Open(conn) => Some(conn),
            State::Waiting(_) | State::Failed(_) => None,
        }
    }

    /// Puts a flow into the table; the caller has checked the limits.
    fn insert(&mut self, tuple: Tuple, state: State, outgoing: bool) -> usize {
        self.generation = self.generation.wrapping_add(1);
        let slot = self.flows.insert(Flow {
            tuple,
            generation: self.generation,
            state,
            outgoing,
            released: None,
            dirty: false,
            owed: Owed::default(),
        });
        self.table.insert(tuple, slot as u32);
        self.stats.flows_now = self.flows.len() as u64;
        self.waits.remove(&tuple);
        slot
    }

    /// Finds a port that makes a 5-tuple which neither lives nor rests.
    fn free_tuple(&mut self, local: IpAddr, remote: SocketAddr) -> Option<Tuple> {
        let remote = (remote.ip(), remote.port());
        let first = self.rng.random_range(EPHEMERAL);
        (0..PORT_TRIES)
            .map(|step| {
                // A stride that is coprime to the count of ports visits each once; the start is random.
                let count = u32::from(*EPHEMERAL.end() - *EPHEMERAL.start()) + 1;
                let at = (u32::from(first - *EPHEMERAL.start()) + step * PORT_STRIDE) % count;
                Tuple {
                    local: (local, EPHEMERAL.start() + at as u16),
                    remote,
                }
            })
            .find(|tuple| !self.table.contains_key(tuple) && self.waits.find(tuple).is_none())
    }

    /// Notes an event that a flow owes; released flows owe none.
    fn owe(&mut self, slot: usize, note: impl FnOnce(&mut Owed)) {
        let flow = &mut self.flows[slot];
        if flow.released.is_some() {
            return;
        }
        note(&mut flow.owed);
        if !flow.owed.queued {
            flow.owed.queued = true;
            self.owing.push_back((slot as u32, flow.generation));
            // Entries of flows that are gone are skipped when fetched; a driver that fetches nothing must not let
            // them pile up.
            if self.owing.len() > 2 * self.flows.len() + 64 {
                let flows = &self.flows;
                self.owing.retain(|(slot, generation)| {
                    flows
                        .get(*slot as usize)
                        .is_some_and(|flow| flow.generation == *generation)
                });
            }
        }
    }
}

fn next_event(flow: &mut Flow, slot: usize) -> Option<Event> {
    let id = flow.id(slot);
    let owed = &mut flow.owed;
    if !owed.any() {
        return None;
    }
    if std::mem::take(&mut owed.incoming) {
        return Some(Event::Incoming {
            flow: id,
            local: flow.tuple.local(),
            remote: flow.tuple.remote(),
        });
    }
    if std::mem::take(&mut owed.established) {
        return Some(Event::Established { flow: id });
    }
    if std::mem::take(&mut owed.progress) {
        return Some(Event::Progress { flow: id });
    }
    owed.closed
        .take()
        .map(|cause| Event::Closed { flow: id, cause })
}

/// Half of the port space, above what services use; the other end sees them translated anyway.
const EPHEMERAL: std::ops::RangeInclusive<u16> = 32_768..=65_535;
/// With half of the ports in use, all tries fail once in 2^64.
const PORT_TRIES: u32 = 64;
/// Odd, and so coprime to the 32,768 ports.
const PORT_STRIDE: u32 = 10_007;
/// What Linux sends at most; a host that scans us learns no faster.
const ICMP_ERRORS_PER_SECOND: u32 = 1000;
const ICMP_ERROR_BURST: u32 = 50;
/// A flow that heard nothing for so long has its empty rings given back.
const RING_IDLE: Duration = Duration::from_secs(10);
/// How often some flows are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// The same while memory is short, when others wait for what is found.
const SHORT_SWEEP: Duration = Duration::from_millis(100);
/// How many flows and how many spare rings one sweep looks at: a `madvise` costs a few microseconds.
const SWEEP_FLOWS: usize = 1024;
const SWEEP_RINGS: usize = 16;
/// Every flow has its turn within this time in the worst case of smoltcp wanting to send and sending nothing.
const STUCK_RETRY: Duration = Duration::from_millis(50);
