//! What happens to datagrams: to the session they belong to, or to the handshakes.
//!
//! # Theory of operation
//!
//! ```text
//!            ┌─ Sealed, Join ─▶ Inboxes: handle ─▶ the session's inbox ─▶ its driver
//!  socket ───┤
//!            └─ Init ─▶ bounded queue ─▶ handshakes ─▶ Cookie, Challenge, Reply
//!                                             └─▶ a new session's driver, unconfirmed
//! ```
//!
//! One task a socket reads and sorts, and does nothing else: no cryptography stands between the
//! network and a session's inbox. Datagrams cross in whole messages, as the kernel joined them, and
//! a session is woken once for all that one read has brought it.
//!
//! Another task a socket answers handshakes. Nothing is kept for a stranger before its Init has
//! opened under the server's key, bears the key of a client, and is fresh; under load it has to
//! have shown besides that it receives at its address. A flood fills this task's queue and no
//! other.
//!
//! # Limits
//!
//! [`HANDSHAKES`] handshakes wait, and [`MAX_UNCONFIRMED`] sessions that no client has confirmed,
//! [`MAX_UNCONFIRMED_OF_CLIENT`] of one client, each for [`CONFIRM_TIMEOUT`] at most. What is beyond that is dropped and
//! counted.
//!
//! [`MAX_UNCONFIRMED`]: super::unconfirmed::MAX_UNCONFIRMED
//! [`MAX_UNCONFIRMED_OF_CLIENT`]: super::unconfirmed::MAX_UNCONFIRMED_OF_CLIENT

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use tracing::{debug, trace};

use super::leases::Owner;
use super::session::{Guest, SessionDriver};
use super::shared::Shared;
use super::unconfirmed::{Full, Unconfirmed};
use crate::io::clock;
use crate::io::pool::{Pool, SMALL};
use crate::io::turns::Turns;
use crate::io::udp::{Arrival, Feedback, Inbox, Receiver, SendBatch, Sender, Target, UdpIo};
use crate::proto::{
    Answer, DatagramPath, DatagramResponder, LoadLimits, Reception, Short, Silence, StrangerDrop,
};
use crate::wire::{DatagramType, SessionId, datagram_handle, datagram_type, join_datagram_session};

/// The inboxes of all sessions, by the number that their datagrams bear.
#[derive(Debug, Default)]
pub struct Inboxes {
    table: RwLock<HashMap<u32, Arc<Inbox>, foldhash::fast::RandomState>>,
}

impl Inboxes {
    /// Makes the inbox of session `id`; `None` when another has the same handle.
    pub fn open(&self, id: SessionId) -> Option<Arc<Inbox>> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        match table.entry(id.handle()) {
            std::collections::hash_map::Entry::Occupied(_) => None,
            std::collections::hash_map::Entry::Vacant(place) => {
                Some(place.insert(Arc::default()).clone())
            }
        }
    }

    /// Removes the inbox of session `id`.
    pub fn close(&self, id: SessionId) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.remove(&id.handle());
    }

    /// Returns whether a session has the handle of `id`.
    pub fn is_taken(&self, id: SessionId) -> bool {
        self.find(id.handle()).is_some()
    }

    /// Returns the number of sessions.
    pub fn len(&self) -> usize {
        self.table
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Returns whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn find(&self, handle: u32) -> Option<Arc<Inbox>> {
        self.table
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&handle)
            .cloned()
    }
}

/// What became of datagrams before they reached a session.
#[derive(Debug, Default)]
pub struct DatagramStats {
    /// Datagrams of a session that is not there.
    pub no_session: AtomicU64,
    /// Datagrams that are none of ours.
    pub garbage: AtomicU64,
    /// Handshakes that found the queue full.
    pub handshakes_full: AtomicU64,
    /// Handshakes answered by a session.
    pub handshakes: AtomicU64,
    /// Handshakes of clients that were refused in words.
    pub handshakes_refused: AtomicU64,
    /// Handshakes dropped because no session could be begun for them.
    pub handshakes_dropped: AtomicU64,
    /// Handshakes that are malformed.
    pub malformed: AtomicU64,
    /// Handshakes with a wrong mac1: whoever sent them does not know this server's key.
    pub wrong_mac: AtomicU64,
    /// Handshakes from an address that had its share.
    pub limited: AtomicU64,
    /// Handshakes answered by silence: they do not open, or bear a key that is not listed.
    pub silent: AtomicU64,
    /// Cookies sent, under load.
    pub cookies: AtomicU64,
    /// Challenges sent, for a time that is stale.
    pub challenges: AtomicU64,
    /// Handshakes dropped because too many sessions wait to be confirmed.
    pub unconfirmed_full: AtomicU64,
    /// Handshakes dropped because too many sessions of their client wait to be confirmed.
    pub unconfirmed_of_client_full: AtomicU64,
}

/// Serves one socket until the server stops.
pub async fn serve(shared: Arc<Shared>, io: Arc<UdpIo>, tasks: TaskTracker) {
    let (queue, handshakes) = mpsc::channel(HANDSHAKES);
    let mut answering = JoinSet::new();
    answering.spawn(answer(shared.clone(), io.clone(), handshakes, tasks));
    let mut sorter = Sorter {
        receiver: Receiver::new(io, shared.pool.clone()),
        queue,
        woken: Vec::new(),
        inboxes: shared.inboxes.clone(),
        stats: shared.datagram_stats.clone(),
        pool: shared.pool.clone(),
    };
    tokio::select! {
        () = shared.stop.cancelled() => {}
        // The turns are bounded by the sorter itself.
        () = tokio::task::unconstrained(poll_fn(|cx| sorter.poll(cx))) => {}
        Some(Err(error)) = answering.join_next() => {
            // Deaf to handshakes, the socket is of no use: whoever watches this task is to know.
            if let Ok(panic) = error.try_into_panic() {
                std::panic::resume_unwind(panic);
            }
        }
    }
    debug!(socket = ?sorter.receiver.io().stats(), "counters");
}

/// Reads a socket and gives everybody what is theirs.
struct Sorter {
    receiver: Receiver,
    queue: mpsc::Sender<Arrival>,
    /// Inboxes that something was put into in this turn.
    woken: Vec<Arc<Inbox>>,
    inboxes: Arc<Inboxes>,
    stats: Arc<DatagramStats>,
    pool: Arc<Pool>,
}

impl Sorter {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..READS_PER_TURN {
            match self.receiver.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {
                    while let Some(arrival) = self.receiver.take_message() {
                        self.sort(arrival);
                    }
                    for inbox in self.woken.drain(..) {
                        inbox.wake();
                    }
                }
                // About answers to strangers, which nobody waits for.
                Poll::Ready(Err(
                    Feedback::TooBig { .. }
                    | Feedback::Refused
                    | Feedback::Unreachable
                    | Feedback::Forbidden,
                )) => {}
            }
        }
        Turns::give_way(cx);
        Poll::Pending
    }

    fn sort(&mut self, arrival: Arrival) {
        let mut datagrams = arrival.buffer.chunks(arrival.stride);
        let Some(first) = datagrams.next().map(whose) else {
            return;
        };
        let alone = arrival.buffer.len() <= arrival.stride;
        if alone || first != Whose::Stranger && datagrams.all(|datagram| whose(datagram) == first) {
            return self.deliver(first, arrival);
        }
        // Of several sessions, or of one and of none: one by one. Handshakes too, since what waits of
        // them is counted, and a whole message would be 64 KiB for one.
        for datagram in arrival.buffer.chunks(arrival.stride) {
            let mut buffer = self.pool.sized(datagram.len());
            buffer.copy_from_slice(datagram);
            let alone = Arrival {
                stride: buffer.len(),
                buffer,
                io: arrival.io.clone(),
                ..arrival
            };
            self.deliver(whose(datagram), alone);
        }
    }

    fn deliver(&mut self, whose: Whose, arrival: Arrival) {
        let stats = &self.stats;
        let datagrams = arrival.buffer.len().div_ceil(arrival.stride.max(1)) as u64;
        match whose {
            Whose::Session(handle) => match self.inboxes.find(handle) {
                Some(inbox) => {
                    inbox.push(arrival);
                    if !self.woken.iter().any(|woken| Arc::ptr_eq(woken, &inbox)) {
                        self.woken.push(inbox);
                    }
                }
                None => {
                    stats.no_session.fetch_add(datagrams, Ordering::Relaxed);
                }
            },
            Whose::Stranger => {
                if self.queue.try_send(arrival).is_err() {
                    stats.handshakes_full.fetch_add(1, Ordering::Relaxed);
                }
            }
            Whose::Nobody => {
                stats.garbage.fetch_add(datagrams, Ordering::Relaxed);
            }
        }
    }
}

/// Whose a datagram says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// A session's with this handle.
    Session(u32),
    /// A handshake.
    Stranger,
    /// None of ours.
    Nobody,
}

fn whose(datagram: &[u8]) -> Whose {
    match datagram_type(datagram) {
        Some(DatagramType::Sealed) => {
            datagram_handle(datagram).map_or(Whose::Nobody, Whose::Session)
        }
        Some(DatagramType::Join) => join_datagram_session(datagram)
            .map_or(Whose::Nobody, |session| Whose::Session(session.handle())),
        // Longer than any handshake is.
        Some(DatagramType::Init) if datagram.len() > SMALL => Whose::Nobody,
        Some(DatagramType::Init) => Whose::Stranger,
        Some(DatagramType::Reply | DatagramType::Challenge | DatagramType::Cookie) | None => {
            Whose::Nobody
        }
    }
}

/// Answers the handshakes of one socket until the server stops.
async fn answer(
    shared: Arc<Shared>,
    io: Arc<UdpIo>,
    mut handshakes: mpsc::Receiver<Arrival>,
    tasks: TaskTracker,
) {
    let mut desk = Desk {
        responder: DatagramResponder::new(
            shared.responder.clone(),
            LoadLimits::default(),
            &mut rand::rng(),
        ),
        unconfirmed: Unconfirmed::default(),
        sender: Sender::new(io),
        batch: SendBatch::new(shared.pool.clone()),
        tasks,
        shared: shared.clone(),
    };
    loop {
        let arrival = tokio::select! {
            () = shared.stop.cancelled() => break,
            arrival = handshakes.recv() => arrival,
        };
        let Some(mut arrival) = arrival else { break };
        let path = DatagramPath {
            remote: arrival.from,
            local: arrival.to,
            socket: arrival.io.id(),
        };
        for datagram in arrival.datagrams() {
            desk.handle(path, datagram.bytes);
        }
        poll_fn(|cx| desk.sender.poll_flush(cx, &mut desk.batch)).await;
    }
    debug!(strangers = ?desk.responder.stats(), "counters");
}

/// Where handshakes are answered.
struct Desk {
    responder: DatagramResponder,
    unconfirmed: Unconfirmed,
    sender: Sender,
    batch: SendBatch,
    tasks: TaskTracker,
    shared: Arc<Shared>,
}

impl Desk {
    fn handle(&mut self, path: DatagramPath, datagram: &[u8]) {
        let (now, shared) = (clock::now(), &self.shared);
        let stats = &shared.datagram_stats;
        let waiting = self.unconfirmed.len();
        let reception = self.responder.handle(now, path, datagram, waiting, |key| {
            shared.handshake_entry(key)
        });
        match reception {
            Reception::Answer(short) => {
                let counter = match short {
                    Short::Cookie(_) => &stats.cookies,
                    Short::Handshake(_) => &stats.challenges,
                };
                counter.fetch_add(1, Ordering::Relaxed);
                self.send(path, short.as_bytes());
            }
            Reception::Handshake(Answer::Accept {
                reply,
                session,
                peer,
                instance,
                guest,
                ..
            }) => {
                let guest = match guest.map(|id| Guest::admit(shared, id)) {
                    Some(None) => return,
                    Some(Some(guest)) => Some(guest),
                    None => None,
                };
                let place = match self.unconfirmed.admit(peer) {
                    Ok(place) => place,
                    Err(full) => {
                        let dropped = match full {
                            Full::All => &stats.unconfirmed_full,
                            Full::Client => &stats.unconfirmed_of_client_full,
                        };
                        dropped.fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                };
                let owner = Owner {
                    key: peer,
                    instance,
                };
                let Some(driver) =
                    SessionDriver::over_datagrams(shared.clone(), *session, owner, place, guest)
                else {
                    stats.handshakes_dropped.fetch_add(1, Ordering::Relaxed);
                    return;
                };
                stats.handshakes.fetch_add(1, Ordering::Relaxed);
                self.tasks.spawn(driver.run());
                self.send(path, &reply);
            }
            Reception::Handshake(Answer::Refuse {
                reply,
                reason,
                peer,
            }) => {
                stats.handshakes_refused.fetch_add(1, Ordering::Relaxed);
                shared.tell_refused(&peer, reason);
                self.send(path, &reply);
            }
            Reception::Handshake(Answer::Challenge(reply)) => {
                stats.challenges.fetch_add(1, Ordering::Relaxed);
                self.send(path, &reply);
            }
            Reception::Drop(reason) => {
                let counter = match &reason {
                    StrangerDrop::Format(_) => &stats.malformed,
                    StrangerDrop::Mac => &stats.wrong_mac,
                    StrangerDrop::Limited => &stats.limited,
                    StrangerDrop::Silence(_) => &stats.silent,
                };
                counter.fetch_add(1, Ordering::Relaxed);
                trace!(%reason, "a handshake was not answered");
                if let StrangerDrop::Silence(Silence::UnknownKey { key }) = &reason {
                    shared.unlisted.tell(key);
                }
            }
            // Only Inits come here.
            Reception::Sealed { .. } | Reception::Join { .. } => {
                stats.garbage.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn send(&mut self, path: DatagramPath, bytes: &[u8]) {
        // Emptied after each handshake.
        if let Some(room) = self.batch.reserve(bytes.len()) {
            room.copy_from_slice(bytes);
            self.batch.commit(
                bytes.len(),
                Target {
                    to: path.remote,
                    source: path.local,
                    ecn: None,
                },
            );
        }
    }
}

/// Handshakes that may wait: half a second of work, in 2 MiB of small buffers.
pub const HANDSHAKES: usize = 1024;

/// How long they may wait: an honest client's ping follows the reply by one round trip, or comes
/// again within two seconds.
pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads before the runtime gets the thread back.
const READS_PER_TURN: usize = 16;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::task::Waker;

    use super::*;
    use crate::wire::{DatagramHeader, JOIN_DATAGRAM_LEN, JoinDatagram, LaneId};

    const FROM: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

    fn sorter(room: usize) -> (Sorter, mpsc::Receiver<Arrival>) {
        let io = UdpIo::bind(SocketAddr::from(([127, 0, 0, 1], 0)), false).expect("a free port");
        let (queue, handshakes) = mpsc::channel(room);
        let pool = Pool::new("test", 16, 4);
        let sorter = Sorter {
            receiver: Receiver::new(Arc::new(io), pool.clone()),
            queue,
            woken: Vec::new(),
            inboxes: Arc::default(),
            stats: Arc::default(),
            pool,
        };
        (sorter, handshakes)
    }

    /// A sealed datagram of a session, as far as anybody can see.
    fn sealed(session: SessionId, len: usize) -> Vec<u8> {
        let header = DatagramHeader {
            epoch: 0,
            lane: 0,
            handle: session.handle(),
            counter: 7,
        };
        let mut datagram = header.to_bytes().to_vec();
        datagram.resize(len, 0xAA);
        datagram
    }

    fn join(session: SessionId) -> Vec<u8> {
        let header = JoinDatagram {
            epoch: 0,
            session,
            lane: LaneId(1),
        };
        let mut datagram = header.to_bytes().to_vec();
        datagram.resize(JOIN_DATAGRAM_LEN, 0xAA);
        datagram
    }

    fn init(len: usize) -> Vec<u8> {
        let mut datagram = vec![0x55; len];
        datagram[0] = DatagramType::Init.byte();
        datagram
    }

    /// One message of these datagrams, of one length but the last.
    fn message(sorter: &Sorter, datagrams: &[Vec<u8>]) -> Arrival {
        let bytes = datagrams.concat();
        let mut buffer = sorter.pool.sized(bytes.len());
        buffer.copy_from_slice(&bytes);
        Arrival {
            buffer,
            stride: datagrams[0].len(),
            from: FROM,
            to: None,
            ecn: None,
            io: sorter.receiver.io().clone(),
        }
    }

    fn taken(inbox: &Inbox) -> Vec<(usize, usize)> {
        let cx = Context::from_waker(Waker::noop());
        let mut taken = Vec::new();
        while let Poll::Ready(arrival) = inbox.poll_pop(&cx) {
            taken.push((arrival.buffer.len(), arrival.stride));
        }
        taken
    }

    fn read(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    #[test]
    fn handle_belongs_to_one_session_at_a_time() {
        let inboxes = Inboxes::default();
        let (one, other) = (SessionId(0x1_0000_0007), SessionId(0x2_0000_0007));
        assert!(inboxes.open(one).is_some());
        assert!(inboxes.is_taken(other));
        assert!(inboxes.open(other).is_none());
        inboxes.close(one);
        assert!(inboxes.is_empty());
        assert!(inboxes.open(other).is_some());
    }

    #[tokio::test]
    async fn message_of_one_session_crosses_whole() {
        let (mut sorter, _handshakes) = sorter(1);
        let session = SessionId(7);
        let inbox = sorter.inboxes.open(session).expect("free");
        let datagrams = [
            sealed(session, 1400),
            sealed(session, 1400),
            sealed(session, 90),
        ];
        sorter.sort(message(&sorter, &datagrams));
        sorter.sort(message(&sorter, &[join(session)]));
        assert_eq!(
            taken(&inbox),
            [(2890, 1400), (JOIN_DATAGRAM_LEN, JOIN_DATAGRAM_LEN)]
        );
        assert_eq!(sorter.woken.len(), 1, "once for all of it");
    }

    #[tokio::test]
    async fn message_of_several_sessions_is_taken_apart() {
        let (mut sorter, mut handshakes) = sorter(1);
        let (one, other) = (SessionId(7), SessionId(8));
        let inboxes = [one, other].map(|id| sorter.inboxes.open(id).expect("free"));
        let datagrams = [
            sealed(one, 1300),
            sealed(other, 1300),
            init(1300),
            vec![0xFF; 1300],
            sealed(SessionId(9), 1300),
            sealed(one, 50),
        ];
        sorter.sort(message(&sorter, &datagrams));
        assert_eq!(taken(&inboxes[0]), [(1300, 1300), (50, 50)]);
        assert_eq!(taken(&inboxes[1]), [(1300, 1300)]);
        assert_eq!(handshakes.try_recv().expect("the Init").buffer.len(), 1300);
        assert_eq!(read(&sorter.stats.garbage), 1);
        assert_eq!(read(&sorter.stats.no_session), 1);
    }

    #[tokio::test]
    async fn flood_of_handshakes_fills_its_own_queue_and_no_inbox() {
        let (mut sorter, _handshakes) = sorter(2);
        let session = SessionId(7);
        let inbox = sorter.inboxes.open(session).expect("free");
        for _ in 0..1000 {
            sorter.sort(message(&sorter, &[init(1300)]));
        }
        assert_eq!(read(&sorter.stats.handshakes_full), 998);
        sorter.sort(message(&sorter, &[sealed(session, 100)]));
        assert_eq!(taken(&inbox), [(100, 100)]);
    }

    #[tokio::test]
    async fn handshakes_that_came_joined_wait_in_small_buffers() {
        let (mut sorter, mut handshakes) = sorter(64);
        sorter.sort(message(&sorter, &vec![init(1300); 40]));
        sorter.sort(message(&sorter, &[init(SMALL + 1)]));
        let mut waiting = 0;
        while let Ok(arrival) = handshakes.try_recv() {
            assert_eq!(arrival.buffer.capacity(), SMALL);
            waiting += 1;
        }
        assert_eq!(waiting, 40);
        assert_eq!(read(&sorter.stats.garbage), 1, "longer than any handshake");
    }

    #[tokio::test]
    async fn datagrams_that_came_joined_are_counted_one_by_one() {
        let (mut sorter, _handshakes) = sorter(1);
        sorter.sort(message(&sorter, &vec![vec![0xFF; 100]; 5]));
        sorter.sort(message(&sorter, &vec![sealed(SessionId(9), 100); 3]));
        assert_eq!(read(&sorter.stats.garbage), 5);
        assert_eq!(read(&sorter.stats.no_session), 3);
    }

    #[test]
    fn what_only_servers_send_is_nobodys() {
        for kind in [
            DatagramType::Reply,
            DatagramType::Challenge,
            DatagramType::Cookie,
        ] {
            let mut datagram = vec![0; 200];
            datagram[0] = kind.byte();
            assert_eq!(whose(&datagram), Whose::Nobody);
        }
        for len in 0..11 {
            assert_eq!(
                whose(&sealed(SessionId(1), 40)[..len]),
                Whose::Nobody,
                "{len}"
            );
        }
        assert_eq!(whose(&[]), Whose::Nobody);
    }
}
