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

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use adit_netstack::{FlowId, RecvError, SendError, Stack};
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;

use crate::proto::relayed::{Pieces, Relayed, RelayedKey};

use super::turns::Turns;

/// What keeps flows: their bytes in both directions, and their ends.
pub trait Flows {
    /// Names a flow.
    type Id: Copy + PartialEq + std::fmt::Debug;

    /// Gives a small number that no other living flow has.
    fn index(id: Self::Id) -> usize;

    /// Gives bytes that have come to `f`, which returns how many it took.
    ///
    /// # Errors
    /// [`RecvError`] when there are none.
    fn recv<R>(
        &mut self,
        now: Instant,
        id: Self::Id,
        f: impl FnOnce(&[u8]) -> (usize, R),
    ) -> Result<R, RecvError>;

    /// Lends room for bytes to send to `f`, which returns how many it wrote.
    ///
    /// # Errors
    /// [`SendError`] when there is no room.
    fn send<R>(
        &mut self,
        now: Instant,
        id: Self::Id,
        f: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> Result<R, SendError>;

    /// Ends our direction.
    fn finish(&mut self, now: Instant, id: Self::Id);

    /// Ends the flow at once.
    fn abort(&mut self, now: Instant, id: Self::Id);

    /// Lets go of the flow.
    fn release(&mut self, now: Instant, id: Self::Id);
}

impl Flows for Stack {
    type Id = FlowId;

    fn index(id: FlowId) -> usize {
        id.index()
    }

    fn recv<R>(
        &mut self,
        now: Instant,
        id: FlowId,
        f: impl FnOnce(&[u8]) -> (usize, R),
    ) -> Result<R, RecvError> {
        Stack::recv(self, now, id, |bytes| f(bytes))
    }

    fn send<R>(
        &mut self,
        now: Instant,
        id: FlowId,
        f: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> Result<R, SendError> {
        Stack::send(self, now, id, f)
    }

    fn finish(&mut self, now: Instant, id: FlowId) {
        Stack::finish(self, now, id);
    }

    fn abort(&mut self, now: Instant, id: FlowId) {
        Stack::abort(self, now, id);
    }

    fn release(&mut self, now: Instant, id: FlowId) {
        Stack::release(self, now, id);
    }
}

impl Flows for Relayed {
    type Id = RelayedKey;

    fn index(id: RelayedKey) -> usize {
        id.index()
    }

    fn recv<R>(
        &mut self,
        now: Instant,
        id: RelayedKey,
        f: impl FnOnce(&[u8]) -> (usize, R),
    ) -> Result<R, RecvError> {
        Relayed::recv(self, now, id, f)
    }

    fn send<R>(
        &mut self,
        now: Instant,
        id: RelayedKey,
        f: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> Result<R, SendError> {
        Relayed::send(self, now, id, f)
    }

    fn finish(&mut self, _: Instant, id: RelayedKey) {
        Relayed::finish(self, id);
    }

    fn abort(&mut self, _: Instant, id: RelayedKey) {
        Relayed::abort(self, id);
    }

    fn release(&mut self, _: Instant, id: RelayedKey) {
        Relayed::release(self, id);
    }
}

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

/// The outside end of a flow.
#[derive(Debug)]
pub enum Endpoint {
    /// A connected socket: an application's, or an origin's.
    Tcp(TcpStream),
    /// A connected Unix socket: an application's, or a service's near the client. It knows no resets: one shows as an end
    /// of both directions.
    Unix(UnixStream),
    /// One end of an in-memory pipe, for callers inside this process.
    Pipe(Box<dyn Pipe>),
}

/// One end of an in-memory pipe whose reader can be told that the flow has failed.
pub trait Pipe: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug {
    /// Drops the pipe so that its reader sees `kind` instead of a clean end, if it can.
    fn fail(self: Box<Self>, kind: io::ErrorKind);
}

impl Pipe for DuplexStream {
    fn fail(self: Box<Self>, _: io::ErrorKind) {}
}

impl Endpoint {
    fn poll_read(&mut self, cx: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(bytes);
        let read = match self {
            Endpoint::Tcp(socket) => Pin::new(socket).poll_read(cx, &mut buffer),
            Endpoint::Unix(socket) => Pin::new(socket).poll_read(cx, &mut buffer),
            Endpoint::Pipe(pipe) => Pin::new(pipe.as_mut()).poll_read(cx, &mut buffer),
        };
        read.map_ok(|()| buffer.filled().len())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Endpoint::Tcp(socket) => Pin::new(socket).poll_write(cx, bytes),
            Endpoint::Unix(socket) => Pin::new(socket).poll_write(cx, bytes),
            Endpoint::Pipe(pipe) => Pin::new(pipe.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Endpoint::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Endpoint::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Endpoint::Pipe(pipe) => Pin::new(pipe.as_mut()).poll_write_vectored(cx, slices),
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Endpoint::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Endpoint::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
            Endpoint::Pipe(pipe) => Pin::new(pipe.as_mut()).poll_shutdown(cx),
        }
    }

    /// Ends the connection so that the application sees a reset, as it would without us.
    pub fn reset(self) {
        match self {
            Endpoint::Tcp(socket) => {
                let handle = socket2::SockRef::from(&socket);
                // A zero linger makes close(2) send RST; where it cannot be set, a plain
                // close is the next best thing.
                if handle.set_linger(Some(std::time::Duration::ZERO)).is_err() {
                    let _ = handle.shutdown(Shutdown::Both);
                }
            }
            Endpoint::Unix(socket) => {
                // Also where another process has a copy of the descriptor, which a plain close would leave open.
                let _gone = socket2::SockRef::from(&socket).shutdown(Shutdown::Both);
            }
            Endpoint::Pipe(pipe) => pipe.fail(io::ErrorKind::ConnectionReset),
        }
    }
}

/// What a flow has to do with others than its two ends.
#[derive(Debug, Default)]
pub struct Ties {
    /// What must hold for it to go on: looked at by [`Relay::end_unfit`].
    pub terms: Option<Box<dyn Terms>>,
    /// Who wants to know how many flows are open, or how this one ends.
    pub watch: Option<FlowWatch>,
}

/// What must be true for a flow to go on, where that may change while it is open.
pub trait Terms: Send + std::fmt::Debug {
    /// Whether it is true now.
    fn hold(&self) -> bool;
}

/// Counts a flow as open for as long as it lives, and tells how the flow has ended.
///
/// It goes along with the socket that the flow is for, from before there is a flow until both are gone.
#[derive(Debug)]
pub struct FlowWatch {
    open: Arc<AtomicU64>,
    fate: Option<oneshot::Sender<Fate>>,
}

/// How a flow has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Both directions have ended in order.
    Finished,
    /// It was cut off: reset by either side, timed out, or lost with the tunnel.
    Cut,
}

impl FlowWatch {
    /// Counts one more in `open`.
    pub fn new(open: Arc<AtomicU64>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self { open, fate: None }
    }

    /// Gives the end of a flow to whoever waits for it; a receiver that finds no sender takes it as [`Fate::Cut`].
    pub fn fate(&mut self) -> oneshot::Receiver<Fate> {
        let (sender, receiver) = oneshot::channel();
        self.fate = Some(sender);
        receiver
    }

    fn finish(&mut self) {
        if let Some(fate) = self.fate.take() {
            // Nobody may want to know any more.
            let _gone = fate.send(Fate::Finished);
        }
    }
}

impl Drop for FlowWatch {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
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

/// The keys whose wakers have fired since the driver last looked.
///
/// Bounded by the number of keys: each key is in the queue at most once.
#[derive(Debug, Default)]
pub struct ReadySet {
    keys: Mutex<VecDeque<usize>>,
    driver: AtomicWaker,
}

impl ReadySet {
    /// Makes an empty set.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Registers the task to be woken when a key is added.
    pub fn register(&self, cx: &Context<'_>) {
        self.driver.register(cx.waker());
    }

    fn push(&self, key: usize) {
        self.keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(key);
    }

    /// Takes the oldest key.
    pub fn pop(&self) -> Option<usize> {
        self.keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    /// Returns whether no key waits.
    pub fn is_empty(&self) -> bool {
        self.keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }
}

/// A waker that names what it wakes: it adds one key to a [`ReadySet`].
#[derive(Debug)]
pub struct Notice {
    set: Arc<ReadySet>,
    key: usize,
    queued: AtomicBool,
}

impl Notice {
    /// Makes a notice for `key`, not queued.
    pub fn new(set: Arc<ReadySet>, key: usize) -> Self {
        Self {
            set,
            key,
            queued: AtomicBool::new(false),
        }
    }

    /// Allows the next wake-up to queue the key again; called when the key was taken.
    pub fn taken(&self) {
        self.queued.store(false, Ordering::Release);
    }

    /// Queues the key without a wake-up; returns whether it was not queued already.
    pub fn queue(&self) -> bool {
        let first = !self.queued.swap(true, Ordering::AcqRel);
        if first {
            self.set.push(self.key);
        }
        first
    }
}

impl Wake for Notice {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queue() {
            self.set.driver.wake();
        }
    }
}

#[derive(Debug)]
struct Link<Id> {
    flow: Id,
    endpoint: Endpoint,
    waker: Waker,
    notice: Arc<Notice>,
    /// Bytes the application sent before the flow was up; sent first.
    early: VecDeque<u8>,
    /// What must hold for the flow to go on.
    terms: Option<Box<dyn Terms>>,
    up: Half,
    down: Half,
    watch: Option<FlowWatch>,
}

impl<Id: Copy> Link<Id> {
    /// Flow to socket.
    fn pump_down<F: Flows<Id = Id>>(&mut self, now: Instant, flows: &mut F) -> Result<Moved, End> {
        let mut cx = Context::from_waker(&self.waker);
        let endpoint = &mut self.endpoint;
        let mut moved = Moved::default();
        while self.down == Half::Open {
            if moved.bytes >= PUMP_BYTES {
                moved.more = true;
                break;
            }
            let step = flows.recv(now, self.flow, |ring| {
                match endpoint.poll_write(&mut cx, ring) {
                    Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => (0, Step::Broken),
                    Poll::Ready(Ok(n)) => (n, Step::Moved(n)),
                    Poll::Pending => (0, Step::Blocked),
                }
            });
            match step {
                Ok(Step::Moved(n)) => moved.bytes += n,
                Ok(Step::Blocked) | Err(RecvError::Empty) => break,
                Ok(Step::Ended | Step::Broken) => return Err(End::Broken),
                Err(RecvError::Finished) => self.down = Half::Closing,
                Err(_) => return Err(End::Reset),
            }
        }
        if self.down == Half::Closing {
            match self.endpoint.poll_shutdown(&mut cx) {
                Poll::Ready(Ok(())) => self.down = Half::Finished,
                // The application is gone already: nothing is left to tell it.
                Poll::Ready(Err(_)) => self.down = Half::Finished,
                Poll::Pending => {}
            }
        }
        Ok(moved)
    }

    /// Socket to flow.
    fn pump_up<F: Flows<Id = Id>>(&mut self, now: Instant, flows: &mut F) -> Result<Moved, End> {
        let mut cx = Context::from_waker(&self.waker);
        let (endpoint, early) = (&mut self.endpoint, &mut self.early);
        let mut moved = Moved::default();
        while self.up == Half::Open {
            if moved.bytes >= PUMP_BYTES {
                moved.more = true;
                break;
            }
            let step = flows.send(now, self.flow, |ring| {
                if !early.is_empty() {
                    let (front, _) = early.as_slices();
                    let n = front.len().min(ring.len());
                    ring[..n].copy_from_slice(&front[..n]);
                    early.drain(..n);
                    return (n, Step::Moved(n));
                }
                match endpoint.poll_read(&mut cx, ring) {
                    Poll::Ready(Ok(0)) => (0, Step::Ended),
                    Poll::Ready(Ok(n)) => (n, Step::Moved(n)),
                    Poll::Ready(Err(_)) => (0, Step::Broken),
                    Poll::Pending => (0, Step::Blocked),
                }
            });
            match step {
                Ok(Step::Moved(n)) => moved.bytes += n,
                Ok(Step::Blocked) | Err(SendError::Full) => break,
                Ok(Step::Ended) => {
                    flows.finish(now, self.flow);
                    self.up = Half::Finished;
                }
                Ok(Step::Broken) => return Err(End::Broken),
                // The far end will read no more (it has reset or fully closed).
                Err(_) => return Err(End::Reset),
            }
        }
        Ok(moved)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Open,
    Closing,
    Finished,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Moved(usize),
    Blocked,
    Ended,
    Broken,
}

#[derive(Clone, Copy, Debug)]
enum End {
    /// Both halves closed in order.
    Clean,
    /// The socket failed: the flow is aborted.
    Broken,
    /// The flow failed: the socket is reset.
    Reset,
}

#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    bytes: usize,
    more: bool,
}

/// Pieces offered to a socket by one system call: as many frames as a lane hands on together.
const OFFERED: usize = 8;

/// Flows at once that leave enough memory behind for it to be given back.
const BURST: usize = 256;

/// The most one pump moves in one direction: a full receive ring, so that one wake-up can
/// empty it, and no more, so that 64 such flows still take turns.
pub const PUMP_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn registered(set: &ReadySet) -> Arc<Woken> {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        set.register(&Context::from_waker(&waker));
        woken
    }

    #[test]
    fn wake_up_names_its_key_once_until_it_is_taken() {
        let set = ReadySet::new();
        let woken = registered(&set);
        let notice = Arc::new(Notice::new(set.clone(), 7));
        let waker = Waker::from(notice.clone());
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert_eq!((set.pop(), set.pop()), (Some(7), None));
        waker.wake_by_ref();
        assert_eq!(set.pop(), None, "not taken yet");
        notice.taken();
        waker.wake_by_ref();
        assert_eq!(set.pop(), Some(7));
    }

    #[test]
    fn keys_are_served_in_the_order_in_which_they_became_ready() {
        let set = ReadySet::new();
        for key in [3, 1, 2] {
            Waker::from(Arc::new(Notice::new(set.clone(), key))).wake();
        }
        assert!(!set.is_empty());
        assert_eq!(
            [set.pop(), set.pop(), set.pop()],
            [Some(3), Some(1), Some(2)]
        );
    }

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
            assert_eq!(set.keys.lock().unwrap().len(), left);
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
