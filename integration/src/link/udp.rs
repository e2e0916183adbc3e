//! A relay of datagrams through an emulated link, between ordinary sockets: a lossy network without privilege.
//!
//! ```text
//!  client ──▶ listening socket ══ Emulator (up) ══▶ a socket for each client ──▶ server
//!         ◀──                  ◀═ Emulator (down) ═                          ◀──
//! ```
//!
//! All clients share the two emulators, as hosts behind one line do. A datagram of `n` bytes counts as a packet of
//! `n` plus the headers of UDP and IP. Marks of ECN are counted and go no further. What the kernel drops because the
//! relay was not scheduled in time is not among the counters: the relay asks for large socket buffers, and says by
//! [`UdpCounters::latest`] how late it was.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    emulator::{Counters, Emulator},
    path::{Link, LinkError},
};
use crate::namespaces::Place;

/// A running relay; it ends when dropped.
#[derive(Debug)]
pub struct UdpLink {
    address: SocketAddr,
    commands: mpsc::Sender<Command>,
    waker: UnixStream,
    counters: Arc<Mutex<UdpCounters>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What a relay has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpCounters {
    /// Client to server.
    pub up: Counters,
    /// Server to client.
    pub down: Counters,
    /// Addresses that datagrams came from and that are not forgotten.
    pub clients: usize,
    /// Datagrams of clients beyond [`MAX_CLIENTS`].
    pub refused: u64,
    /// Datagrams that a socket would not send, or that were for a client forgotten meanwhile.
    pub unsent: u64,
    /// How much later than due the worst datagram left.
    pub latest: Duration,
}

enum Command {
    Set(Box<Link>),
    Rebind,
    Stop,
}

impl UdpLink {
    /// Starts a relay from `listen` (port 0: a free one) to the server `to`.
    ///
    /// # Panics
    ///
    /// If the link is not one (see [`Link::check`]) or `listen` cannot be bound.
    pub fn start(link: Link, seed: u64, listen: SocketAddr, to: SocketAddr) -> Self {
        Self::start_in(&Place::here(), link, seed, listen, to)
    }

    /// As [`UdpLink::start`], with the sockets of `place`.
    ///
    /// # Panics
    ///
    /// As [`UdpLink::start`].
    pub fn start_in(
        place: &Place,
        link: Link,
        seed: u64,
        listen: SocketAddr,
        to: SocketAddr,
    ) -> Self {
        let (commands, inbox) = mpsc::channel();
        let (waker, woken) = UnixStream::pair().expect("a pair of sockets can be made");
        woken
            .set_nonblocking(true)
            .expect("a socket can be made non-blocking");
        let counters = Arc::new(Mutex::new(UdpCounters::default()));
        let shared = Arc::clone(&counters);
        let (answer, bound) = mpsc::channel();
        let thread = place.spawn(move || {
            // the default lets a timer be 50 µs late
            let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
            let mut relay = Relay::new(link, seed, listen, to).expect("the relay can be set up");
            let address = relay.listener.local_addr().expect("it is bound");
            let _ = answer.send(address);
            relay.run(&inbox, &woken, &shared);
        });
        let address = bound.recv().expect("the relay's thread answers");
        Self {
            address,
            commands,
            waker,
            counters,
            thread: Some(thread),
        }
    }

    /// Where the relay listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the link for datagrams that are yet to come, such as to [`Link::blocked`] and back.
    ///
    /// # Panics
    ///
    /// If the link is not one (see [`Link::check`]).
    pub fn set(&self, link: Link) {
        link.check().expect("a link has knobs in range");
        self.command(Command::Set(Box::new(link)));
    }

    /// Gives every client another address toward the server, as a NAT that has forgotten its table does.
    pub fn rebind(&self) {
        self.command(Command::Rebind);
    }

    /// What the relay has done so far.
    pub fn counters(&self) -> UdpCounters {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn command(&self, command: Command) {
        let _ = self.commands.send(command);
        let _ = io::Write::write(&mut &self.waker, &[0]);
    }
}

impl Drop for UdpLink {
    fn drop(&mut self) {
        self.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread owns.
struct Relay {
    listener: UdpSocket,
    to: SocketAddr,
    up: Emulator<Carried>,
    down: Emulator<Carried>,
    /// By the order in which they came.
    clients: BTreeMap<u64, Client>,
    by_address: HashMap<SocketAddr, u64>,
    next_client: u64,
    buffer: Vec<u8>,
    spare: Vec<Vec<u8>>,
    counters: UdpCounters,
}

struct Client {
    address: SocketAddr,
    upstream: UdpSocket,
    heard: Instant,
}

#[derive(Clone)]
struct Carried {
    client: u64,
    bytes: Vec<u8>,
}

impl Relay {
    fn new(link: Link, seed: u64, listen: SocketAddr, to: SocketAddr) -> Result<Self, SetupError> {
        let listener = UdpSocket::bind(listen)?;
        prepare(&listener)?;
        Ok(Self {
            listener,
            to,
            up: Emulator::new(link.up, seed.wrapping_mul(2))?,
            down: Emulator::new(link.down, seed.wrapping_mul(2).wrapping_add(1))?,
            clients: BTreeMap::new(),
            by_address: HashMap::new(),
            next_client: 0,
            buffer: vec![0; 65_536],
            spare: Vec::new(),
            counters: UdpCounters::default(),
        })
    }

    fn run(
        &mut self,
        inbox: &mpsc::Receiver<Command>,
        woken: &UnixStream,
        shared: &Mutex<UdpCounters>,
    ) {
        let mut readable = Vec::new();
        loop {
            self.deliver();
            *shared.lock().unwrap_or_else(PoisonError::into_inner) = self.report();
            let commanded = self.wait(woken, &mut readable);
            if commanded {
                let _ = io::Read::read(&mut &*woken, &mut [0; 64]);
                for command in inbox.try_iter() {
                    match command {
                        Command::Set(link) => {
                            // checked by the caller
                            let _ = self.up.set(link.up);
                            let _ = self.down.set(link.down);
                        }
                        Command::Rebind => self.rebind(),
                        Command::Stop => return,
                    }
                }
            }
            self.read_listener();
            for client in &readable {
                self.read_upstream(*client);
            }
        }
    }

    /// Waits until a packet is due or a socket is readable; names the clients whose sockets are, and says whether
    /// there is a command.
    fn wait(&self, woken: &UnixStream, readable: &mut Vec<u64>) -> bool {
        let due = [self.up.poll_timeout(), self.down.poll_timeout()];
        let timeout = due.into_iter().flatten().min().map(|due| {
            let wait = due.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            }
        });
        let mut polled = Vec::with_capacity(2 + self.clients.len());
        polled.push(PollFd::new(woken, PollFlags::IN));
        polled.push(PollFd::new(&self.listener, PollFlags::IN));
        polled.extend(
            self.clients
                .values()
                .map(|client| PollFd::new(&client.upstream, PollFlags::IN)),
        );
        // an interrupted wait is a short one
        let _ = poll(&mut polled, timeout.as_ref());
        readable.clear();
        readable.extend(
            self.clients
                .keys()
                .zip(polled.iter().skip(2))
                .filter(|(_, polled)| !polled.revents().is_empty())
                .map(|(client, _)| *client),
        );
        polled
            .first()
            .is_some_and(|polled| !polled.revents().is_empty())
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        while let Some(delivery) = self.up.poll_delivery(now) {
            self.counters.latest = self.counters.latest.max(now - delivery.at);
            let Carried { client, bytes } = delivery.packet;
            let sent = match self.clients.get(&client) {
                Some(client) => client.upstream.send(&bytes).is_ok(),
                None => false,
            };
            self.counters.unsent += u64::from(!sent);
            self.give_back(bytes);
        }
        while let Some(delivery) = self.down.poll_delivery(now) {
            self.counters.latest = self.counters.latest.max(now - delivery.at);
            let Carried { client, bytes } = delivery.packet;
            let sent = match self.clients.get(&client) {
                Some(client) => self.listener.send_to(&bytes, client.address).is_ok(),
                None => false,
            };
            self.counters.unsent += u64::from(!sent);
            self.give_back(bytes);
        }
    }

    fn read_listener(&mut self) {
        for _ in 0..BATCH {
            let Ok((length, address)) = self.listener.recv_from(&mut self.buffer) else {
                return;
            };
            let now = Instant::now();
            let Some(client) = self.client(now, address) else {
                self.counters.refused += 1;
                continue;
            };
            let bytes = self.take(length);
            self.up.send(
                now,
                length + headers(address),
                false,
                Carried { client, bytes },
            );
        }
    }

    fn read_upstream(&mut self, client: u64) {
        for _ in 0..BATCH {
            let Some(Client {
                upstream, address, ..
            }) = self.clients.get(&client)
            else {
                return;
            };
            let headers = headers(*address);
            // a refused connection is told by the socket as an error, and is no datagram
            let Ok(length) = upstream.recv(&mut self.buffer) else {
                return;
            };
            let bytes = self.take(length);
            self.down.send(
                Instant::now(),
                length + headers,
                false,
                Carried { client, bytes },
            );
        }
    }

    /// The client of an address; a new one if there is room, or if the one silent for longest is silent for long.
    fn client(&mut self, now: Instant, address: SocketAddr) -> Option<u64> {
        if let Some(id) = self.by_address.get(&address) {
            if let Some(client) = self.clients.get_mut(id) {
                client.heard = now;
            }
            return Some(*id);
        }
        if self.clients.len() >= MAX_CLIENTS {
            let (id, silent) = self.clients.iter().min_by_key(|(_, client)| client.heard)?;
            if now.saturating_duration_since(silent.heard) < FORGOTTEN_AFTER {
                return None;
            }
            let (id, address) = (*id, silent.address);
            self.by_address.remove(&address);
            self.clients.remove(&id);
        }
        let upstream = upstream(self.to).ok()?;
        let id = self.next_client;
        self.next_client += 1;
        self.by_address.insert(address, id);
        self.clients.insert(
            id,
            Client {
                address,
                upstream,
                heard: now,
            },
        );
        Some(id)
    }

    fn rebind(&mut self) {
        for client in self.clients.values_mut() {
            if let Ok(upstream) = upstream(self.to) {
                client.upstream = upstream;
            }
        }
    }

    fn report(&self) -> UdpCounters {
        UdpCounters {
            up: self.up.counters(),
            down: self.down.counters(),
            clients: self.clients.len(),
            ..self.counters
        }
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(&self.buffer[..length]);
        bytes
    }

    fn give_back(&mut self, bytes: Vec<u8>) {
        if self.spare.len() < SPARE {
            self.spare.push(bytes);
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum SetupError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Link(#[from] LinkError),
}

fn upstream(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    prepare(&socket)?;
    Ok(socket)
}

fn prepare(socket: &UdpSocket) -> io::Result<()> {
    use rustix::net::sockopt;
    socket.set_nonblocking(true)?;
    // beyond the system's limit only with CAP_NET_ADMIN; without, as much as is allowed
    if sockopt::set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER).is_err() {
        sockopt::set_socket_recv_buffer_size(socket, SOCKET_BUFFER)?;
    }
    Ok(())
}

/// The headers of UDP and IP.
fn headers(address: SocketAddr) -> usize {
    match address {
        SocketAddr::V4(_) => 28,
        SocketAddr::V6(_) => 48,
    }
}

/// The most addresses that datagrams may come from: each costs a descriptor, of which a process often has 1,024.
pub const MAX_CLIENTS: usize = 256;
/// A client silent for so long makes room for another: longer than any keepalive under test.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);
/// Datagrams read from one socket before what is due is sent: 64 take some 200 µs.
const BATCH: usize = 64;
/// Buffers kept for reuse: what is under way in 100 ms of 50 Mbit/s.
const SPARE: usize = 512;
/// Half a second at 50 Mbit/s.
const SOCKET_BUFFER: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    /// Nothing is decided by it: a test that waits so long has failed.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn socket() -> UdpSocket {
        let socket = UdpSocket::bind(HERE).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    fn relay(text: &str, server: &UdpSocket) -> UdpLink {
        UdpLink::start(text.parse().unwrap(), 1, HERE, server.local_addr().unwrap())
    }

    fn received(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        let mut buffer = vec![0; 2048];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        buffer.truncate(length);
        (buffer, from)
    }

    #[test]
    fn two_clients_reach_the_server_from_two_addresses_and_get_their_own_answers() {
        let server = socket();
        let link = relay("delay=5", &server);
        let clients = [socket(), socket()];
        let start = Instant::now();
        for (index, client) in clients.iter().enumerate() {
            client.send_to(&[index as u8; 100], link.address()).unwrap();
        }
        let mut addresses = Vec::new();
        for _ in &clients {
            let (bytes, from) = received(&server);
            server.send_to(&bytes, from).unwrap();
            addresses.push(from);
        }
        assert_ne!(addresses[0], addresses[1]);
        for (index, client) in clients.iter().enumerate() {
            assert_eq!(received(client).0, [index as u8; 100]);
        }
        assert!(start.elapsed() >= Duration::from_millis(10));
        let counters = link.counters();
        assert_eq!((counters.clients, counters.refused), (2, 0));
        assert_eq!(counters.up.sent_bytes, 2 * (100 + 28 + 14));
    }

    #[test]
    fn blocked_link_is_silent_and_a_mended_one_is_not() {
        let server = socket();
        let link = relay("", &server);
        let client = socket();
        link.set(Link::blocked());
        // commands and datagrams come by different ways: the loss is waited for
        let deadline = Instant::now() + PATIENCE;
        while link.counters().up.lost == 0 {
            assert!(Instant::now() < deadline, "{:?}", link.counters());
            client.send_to(b"lost", link.address()).unwrap();
            thread::sleep(Duration::from_millis(5));
        }
        link.set(Link::default());
        while link.counters().up.delivered == 0 {
            assert!(Instant::now() < deadline, "{:?}", link.counters());
            client.send_to(b"found", link.address()).unwrap();
            thread::sleep(Duration::from_millis(5));
        }
        assert!(matches!(&received(&server).0[..], b"lost" | b"found"));
    }

    #[test]
    fn rebinding_changes_the_address_the_server_sees() {
        let server = socket();
        let link = relay("", &server);
        let client = socket();
        client.send_to(b"a", link.address()).unwrap();
        let (_, before) = received(&server);
        link.rebind();
        let deadline = Instant::now() + PATIENCE;
        let after = loop {
            assert!(Instant::now() < deadline);
            client.send_to(b"b", link.address()).unwrap();
            let (_, from) = received(&server);
            if from != before {
                break from;
            }
        };
        server.send_to(b"c", after).unwrap();
        assert_eq!(received(&client).0, b"c");
    }

    #[test]
    fn clients_beyond_the_bound_are_refused() {
        let server = socket();
        let link = relay("", &server);
        let clients: Vec<_> = (0..=MAX_CLIENTS).map(|_| socket()).collect();
        let deadline = Instant::now() + PATIENCE;
        while link.counters().refused == 0 {
            assert!(Instant::now() < deadline, "{:?}", link.counters());
            for client in &clients {
                client.send_to(b"x", link.address()).unwrap();
            }
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(link.counters().clients, MAX_CLIENTS);
    }

    #[test]
    fn losses_of_a_relay_are_those_of_its_seed() {
        let server = socket();
        let lost = || {
            let link = relay("loss=20", &server);
            let client = socket();
            for sent in 1..=200u64 {
                client.send_to(&sent.to_be_bytes(), link.address()).unwrap();
                let deadline = Instant::now() + PATIENCE;
                while link.counters().up.sent < sent {
                    assert!(Instant::now() < deadline);
                    thread::yield_now();
                }
            }
            link.counters().up.lost
        };
        let first = lost();
        assert!(first > 10);
        assert_eq!(first, lost());
    }
}
