//! The emulated link between two network devices: whatever crosses it, at the rates of a real one.
//!
//! ```text
//!  client's host                     a host in between                    server's host
//!   c0 ═══════════════════ a ──▶ Emulator (up) ──▶ b ══════════════════════ s0
//!                            ◀── Emulator (down) ◀──
//! ```
//!
//! Two packet sockets (packet(7)) carry Ethernet frames whole, ARP and neighbour discovery included: they are subject
//! to the link as all else is. The hosts at both ends must send packets as the wire has them, with checksums and not
//! larger than its MTU: [`without_offload`] tells their devices so, or a loss would hit 64 KiB at once.

use std::{
    collections::VecDeque,
    io,
    num::NonZeroU32,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice,
        socket_with,
    },
};

use super::{
    emulator::{Counters, Emulator},
    path::Link,
};
use crate::namespaces::Place;

/// A link between two devices; it ends when dropped.
#[derive(Debug)]
pub struct WireLink {
    commands: mpsc::Sender<Command>,
    waker: UnixStream,
    counters: Arc<Mutex<WireCounters>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What a link between devices has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireCounters {
    /// From the first device to the second.
    pub up: Counters,
    /// From the second device to the first.
    pub down: Counters,
    /// Frames that a device would not send.
    pub unsent: u64,
    /// How much later than due the worst frame left.
    pub latest: Duration,
}

enum Command {
    Set(Box<Link>),
    Stop,
}

impl WireLink {
    /// Joins the devices `a`, at the client's side, and `b`, at the server's, in `place`.
    ///
    /// # Panics
    ///
    /// If the link is not one (see [`Link::check`]) or the devices cannot be opened, for which it takes root.
    pub fn start(place: &Place, link: Link, seed: u64, a: &str, b: &str) -> Self {
        let (commands, inbox) = mpsc::channel();
        let (waker, woken) = UnixStream::pair().expect("a pair of sockets can be made");
        woken
            .set_nonblocking(true)
            .expect("a socket can be made non-blocking");
        let counters = Arc::new(Mutex::new(WireCounters::default()));
        let shared = Arc::clone(&counters);
        let (answer, ready) = mpsc::channel();
        let devices = [a.to_owned(), b.to_owned()];
        let thread = place.spawn(move || {
            let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
            let ports =
                devices.map(|device| Port::open(&device).expect("the device can be opened"));
            let emulator =
                |path, seed| Emulator::new(path, seed).expect("a link has knobs in range");
            let mut wire = Wire {
                ports,
                emulators: [
                    emulator(link.up, seed.wrapping_mul(2)),
                    emulator(link.down, seed.wrapping_mul(2).wrapping_add(1)),
                ],
                buffer: vec![0; LONGEST],
                spare: VecDeque::new(),
                unsent: 0,
                latest: Duration::ZERO,
            };
            let _ = answer.send(());
            wire.run(&inbox, &woken, &shared);
        });
        ready.recv().expect("the link's thread answers");
        Self {
            commands,
            waker,
            counters,
            thread: Some(thread),
        }
    }

    /// Changes the link for frames that are yet to come.
    ///
    /// # Panics
    ///
    /// If the link is not one (see [`Link::check`]).
    pub fn set(&self, link: Link) {
        link.check().expect("a link has knobs in range");
        self.command(Command::Set(Box::new(link)));
    }

    /// What the link has done so far.
    pub fn counters(&self) -> WireCounters {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn command(&self, command: Command) {
        let _ = self.commands.send(command);
        let _ = io::Write::write(&mut &self.waker, &[0]);
    }
}

impl Drop for WireLink {
    fn drop(&mut self) {
        self.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Lets a device at the end of an emulated link send packets as the wire has them.
///
/// # Panics
///
/// If `ethtool` is missing or refused.
pub fn without_offload(place: &Place, device: &str) {
    place.run(&format!(
        "ethtool -K {device} tx off tso off gso off gro off"
    ));
}

/// What the thread owns.
struct Wire {
    ports: [Port; 2],
    /// From the first port, from the second.
    emulators: [Emulator<Vec<u8>>; 2],
    buffer: Vec<u8>,
    spare: VecDeque<Vec<u8>>,
    unsent: u64,
    latest: Duration,
}

/// A packet socket on one device.
struct Port(OwnedFd);

impl Wire {
    fn run(
        &mut self,
        inbox: &mpsc::Receiver<Command>,
        woken: &UnixStream,
        shared: &Mutex<WireCounters>,
    ) {
        loop {
            self.deliver();
            *shared.lock().unwrap_or_else(PoisonError::into_inner) = self.report();
            if self.wait(woken) {
                let _ = io::Read::read(&mut &*woken, &mut [0; 64]);
                for command in inbox.try_iter() {
                    match command {
                        Command::Set(link) => {
                            // checked by the caller
                            let _ = self.emulators[0].set(link.up);
                            let _ = self.emulators[1].set(link.down);
                        }
                        Command::Stop => return,
                    }
                }
            }
            for side in [0, 1] {
                self.read(side);
            }
        }
    }

    /// Waits until a frame is due or has come; says whether there is a command.
    fn wait(&self, woken: &UnixStream) -> bool {
        let due = self
            .emulators
            .iter()
            .filter_map(Emulator::poll_timeout)
            .min();
        let timeout = due.map(|due| {
            let wait = due.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            }
        });
        let mut polled = [
            PollFd::new(woken, PollFlags::IN),
            PollFd::new(&self.ports[0].0, PollFlags::IN),
            PollFd::new(&self.ports[1].0, PollFlags::IN),
        ];
        // an interrupted wait is a short one
        let _ = poll(&mut polled, timeout.as_ref());
        !polled[0].revents().is_empty()
    }

    fn read(&mut self, side: usize) {
        for _ in 0..BATCH {
            let Some(length) = self.ports[side].receive(&mut self.buffer) else {
                return;
            };
            let mut bytes = self.spare.pop_front().unwrap_or_default();
            bytes.clear();
            bytes.extend_from_slice(&self.buffer[..length]);
            // the emulator adds the header of Ethernet itself
            let packet = length.saturating_sub(ETHERNET);
            self.emulators[side].send(Instant::now(), packet, false, bytes);
        }
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        for side in [0, 1] {
            while let Some(delivery) = self.emulators[side].poll_delivery(now) {
                self.latest = self.latest.max(now - delivery.at);
                let sent = self.ports[1 - side].send(&delivery.packet);
                self.unsent += u64::from(!sent);
                if self.spare.len() < SPARE {
                    self.spare.push_back(delivery.packet);
                }
            }
        }
    }

    fn report(&self) -> WireCounters {
        WireCounters {
            up: self.emulators[0].counters(),
            down: self.emulators[1].counters(),
            unsent: self.unsent,
            latest: self.latest,
        }
    }
}

impl Port {
    fn open(device: &str) -> io::Result<Self> {
        let every = u32::from((libc::ETH_P_ALL as u16).to_be());
        let protocol = NonZeroU32::new(every).map(Protocol::from_raw);
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, protocol)?;
        let index = netdevice::name_to_index(&socket, device)?;
        // beyond the system's limit only with CAP_NET_ADMIN, which whoever opens packet sockets has as well
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER)?;
        rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER)?;
        // what is sent here must not come back as received
        let one: libc::c_int = 1;
        // SAFETY: the option takes an int, which lives until the call returns; the descriptor is open.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                IGNORE_OUTGOING,
                (&raw const one).cast(),
                size_of_val(&one) as libc::socklen_t,
            )
        };
        // SAFETY: every field of the structure may be zero.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = every as u16;
        address.sll_ifindex = i32::try_from(index).unwrap_or(-1);
        // SAFETY: the address is of the family and length given, and lives until the call returns.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if set != 0 || bound != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(socket))
    }

    /// Reads a frame, if one has come.
    fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        let (length, _) = rustix::net::recv(&self.0, buffer, RecvFlags::DONTWAIT).ok()?;
        Some(length)
    }

    fn send(&self, frame: &[u8]) -> bool {
        rustix::net::send(&self.0, frame, SendFlags::DONTWAIT).is_ok()
    }
}

/// PACKET_IGNORE_OUTGOING of linux/if_packet.h.
const IGNORE_OUTGOING: libc::c_int = 23;
/// The header of Ethernet.
const ETHERNET: usize = 14;
/// The largest packet with that header, should somebody have left offload on.
const LONGEST: usize = 65_536 + ETHERNET;
/// Frames read from one device before what is due is sent: 64 take some 100 µs.
const BATCH: usize = 64;
/// Buffers kept for reuse: what is under way in 50 ms of 1 Gbit/s.
const SPARE: usize = 4096;
/// A tenth of a second at 1 Gbit/s.
const SOCKET_BUFFER: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        namespaces::Lab,
        skip::{Need, can_run},
    };

    /// A broadcast with a protocol for experiments, which no host answers.
    fn frame(number: u32, length: usize) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend_from_slice(&[2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
        frame.extend_from_slice(&number.to_be_bytes());
        frame.resize(length, 0);
        frame
    }

    /// Frames of this test that come within `patience`, until there are `most`.
    fn collect(port: &Port, most: usize, patience: Duration) -> Vec<u32> {
        let (mut numbers, mut buffer) = (Vec::new(), vec![0; 2048]);
        let deadline = Instant::now() + patience;
        while numbers.len() < most && Instant::now() < deadline {
            match port.receive(&mut buffer) {
                Some(length) if length >= 18 && buffer[12..14] == [0x88, 0xb5] => {
                    numbers.push(u32::from_be_bytes([
                        buffer[14], buffer[15], buffer[16], buffer[17],
                    ]));
                }
                Some(_) => {}
                None => thread::sleep(Duration::from_micros(200)),
            }
        }
        numbers
    }

    #[test]
    fn frames_cross_between_two_devices_late_and_some_never() {
        if !can_run(&[Need::Root]) {
            return;
        }
        let lab = Lab::new();
        let place = lab.client.clone();
        for (near, far) in [("wa", "ea"), ("wb", "eb")] {
            place.run(&format!("ip link add {near} type veth peer name {far}"));
            for device in [near, far] {
                place.run(&format!("ip link set {device} up"));
            }
        }
        let link: Link = "loss=20,delay=30".parse().expect("a link");
        let wire = WireLink::start(&place, link, 1, "wa", "wb");
        let ends = place.spawn(move || {
            let (client, server) = (
                Port::open("ea").expect("opens"),
                Port::open("eb").expect("opens"),
            );
            let begin = Instant::now();
            for number in 0..500 {
                assert!(client.send(&frame(number, 100)));
            }
            let first = collect(&server, 1, Duration::from_secs(20));
            let took = begin.elapsed();
            let rest = collect(&server, 499, Duration::from_secs(1));
            for number in 0..40 {
                assert!(server.send(&frame(number, 100)));
            }
            let back = collect(&client, 1, Duration::from_secs(20));
            (first, took, rest, back)
        });
        let (first, took, rest, back) = ends.join().expect("no frame is refused");
        assert!(took >= Duration::from_millis(30), "{took:?}");
        let all = [first, rest].concat();
        assert!(all.is_sorted(), "{all:?}");
        let counters = wire.counters();
        assert!(counters.up.lost >= 50 && all.len() <= 450, "{counters:?}");
        assert_eq!(back.len(), 1, "{counters:?}");
    }
}
