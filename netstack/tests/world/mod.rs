//! Two stacks on a simulated link with virtual time.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use adit_netstack::{
    Accept, Cause, Config, Delivery, Dropped, Event, FlowId, Gso, Offload, PacketSink, RecvError,
    SendError, Stack,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub const A4: &str = "10.86.0.2";
pub const A6: &str = "fd86::2";
pub const ORIGIN4: &str = "203.0.113.7";
pub const ORIGIN6: &str = "2001:db8::7";

/// One direction of a link.
pub struct Link {
    packets: BTreeMap<(Instant, u64), (Vec<u8>, Offload)>,
    count: u64,
    bytes: usize,
    room: Vec<u8>,
    rng: StdRng,
    pub delay: Duration,
    /// Bytes in flight above which the link pushes back.
    pub capacity: usize,
    /// Probability of a packet to be lost.
    pub loss: f64,
    /// Probability of a packet to be delayed by up to five times the delay.
    pub reorder: f64,
    /// Everything that enters is lost.
    pub cut: bool,
    /// Nothing may enter.
    pub full: bool,
    now: Instant,
    /// Packets that entered, lost ones included.
    pub sent: u64,
    pub super_packets: u64,
    pub longest: usize,
}

impl Link {
    fn new(now: Instant, seed: u64) -> Link {
        Link {
            packets: BTreeMap::new(),
            count: 0,
            bytes: 0,
            room: vec![0; 65_536],
            rng: StdRng::seed_from_u64(seed),
            delay: Duration::from_millis(1),
            capacity: 4 << 20,
            loss: 0.0,
            reorder: 0.0,
            cut: false,
            full: false,
            now,
            sent: 0,
            super_packets: 0,
            longest: 0,
        }
    }

    pub fn next(&self) -> Option<Instant> {
        self.packets.keys().next().map(|(at, _)| *at)
    }

    pub fn pop(&mut self, now: Instant) -> Option<(Vec<u8>, Offload)> {
        if self.next()? > now {
            return None;
        }
        let (_, (packet, offload)) = self.packets.pop_first()?;
        self.bytes -= packet.len();
        Some((packet, offload))
    }
}

impl PacketSink for Link {
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.full || self.bytes + len > self.capacity {
            return None;
        }
        self.room.get_mut(..len)
    }

    fn commit(&mut self, len: usize, offload: Offload) {
        self.sent += 1;
        self.super_packets += u64::from(offload.gso != Gso::None);
        self.longest = self.longest.max(len);
        if self.cut || self.rng.random_bool(self.loss) {
            return;
        }
        let mut at = self.now + self.delay;
        if self.rng.random_bool(self.reorder) {
            at += self.delay.mul_f64(self.rng.random_range(0.0..5.0));
        }
        self.count += 1;
        self.bytes += len;
        self.packets
            .insert((at, self.count), (self.room[..len].to_vec(), offload));
    }
}

/// Something that was delivered beside TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Got {
    Udp {
        local: SocketAddr,
        remote: SocketAddr,
        payload: Vec<u8>,
        segment: usize,
    },
    Echo {
        request: bool,
        local: IpAddr,
        remote: IpAddr,
        ident: u16,
        sequence: u16,
        payload: Vec<u8>,
    },
    UdpFailed {
        local: SocketAddr,
        remote: SocketAddr,
        why: adit_netstack::Unreachable,
    },
}

/// A stack with what was heard from it.
pub struct Side {
    pub stack: Stack,
    pub events: Vec<Event>,
    pub got: Vec<Got>,
    pub dropped: Vec<Dropped>,
    /// Accept flows as they come.
    pub accept: bool,
}

impl Side {
    pub fn new(config: Config, seed: u64) -> Side {
        Side {
            stack: Stack::new(config, seed),
            events: Vec::new(),
            got: Vec::new(),
            dropped: Vec::new(),
            accept: true,
        }
    }

    pub fn handle(&mut self, now: Instant, packet: &mut [u8], offload: Offload) {
        match self.stack.handle_packet(now, packet, offload) {
            Ok(Delivery::Absorbed) => {}
            Ok(Delivery::Udp {
                local,
                remote,
                payload,
                segment,
            }) => self.got.push(Got::Udp {
                local,
                remote,
                payload: payload.to_vec(),
                segment,
            }),
            Ok(Delivery::Echo {
                request,
                local,
                remote,
                ident,
                sequence,
                payload,
            }) => self.got.push(Got::Echo {
                request,
                local,
                remote,
                ident,
                sequence,
                payload: payload.to_vec(),
            }),
            Ok(Delivery::UdpFailed { local, remote, why }) => {
                self.got.push(Got::UdpFailed { local, remote, why });
            }
            Err(reason) => self.dropped.push(reason),
        }
    }

    pub fn events(&mut self, now: Instant) {
        while let Some(event) = self.stack.poll_event() {
            if self.accept
                && let Event::Incoming { flow, .. } = event
            {
                self.stack.accept(now, flow);
            }
            self.events.push(event);
        }
    }

    pub fn incoming(&self) -> Option<FlowId> {
        self.events.iter().rev().find_map(|event| match event {
            Event::Incoming { flow, .. } => Some(*flow),
            Event::Established { .. } | Event::Progress { .. } | Event::Closed { .. } => None,
        })
    }

    pub fn is_established(&self, flow: FlowId) -> bool {
        self.events.contains(&Event::Established { flow })
    }

    pub fn closed(&self, flow: FlowId) -> Option<Cause> {
        self.events.iter().find_map(|event| match event {
            Event::Closed { flow: other, cause } if *other == flow => Some(*cause),
            Event::Closed { .. }
            | Event::Incoming { .. }
            | Event::Established { .. }
            | Event::Progress { .. } => None,
        })
    }
}

/// The client's stack `a`, and the network's stack `b`, which answers for every address.
pub struct World {
    pub start: Instant,
    pub now: Instant,
    pub a: Side,
    pub b: Side,
    pub ab: Link,
    pub ba: Link,
}

pub fn client_config() -> Config {
    Config {
        addresses: vec![A4.parse().unwrap(), A6.parse().unwrap()],
        ..Config::default()
    }
}

pub fn network_config() -> Config {
    Config {
        addresses: vec!["10.86.0.1".parse().unwrap(), "fd86::1".parse().unwrap()],
        accept: Accept::Any,
        ..Config::default()
    }
}

impl World {
    pub fn new() -> World {
        World::with(client_config(), network_config())
    }

    pub fn with(a: Config, b: Config) -> World {
        let now = Instant::now();
        World {
            start: now,
            now,
            a: Side::new(a, 1),
            b: Side::new(b, 2),
            ab: Link::new(now, 3),
            ba: Link::new(now, 4),
        }
    }

    /// Drains both stacks at the present time, then lets the time of the next thing come.
    pub fn step(&mut self) -> bool {
        self.drain();
        let next = [
            self.ab.next(),
            self.ba.next(),
            self.a.stack.poll_timeout(),
            self.b.stack.poll_timeout(),
        ];
        let Some(next) = next.into_iter().flatten().min() else {
            return false;
        };
        self.now = self.now.max(next);
        true
    }

    pub fn drain(&mut self) {
        self.ab.now = self.now;
        self.ba.now = self.now;
        while let Some((mut packet, offload)) = self.ab.pop(self.now) {
            self.b.handle(self.now, &mut packet, offload);
        }
        while let Some((mut packet, offload)) = self.ba.pop(self.now) {
            self.a.handle(self.now, &mut packet, offload);
        }
        self.a.stack.handle_timeout(self.now);
        self.b.stack.handle_timeout(self.now);
        self.a.events(self.now);
        self.b.events(self.now);
        self.a.stack.poll_transmit(self.now, &mut self.ab);
        self.b.stack.poll_transmit(self.now, &mut self.ba);
    }

    /// Runs for a time.
    pub fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            self.drain();
            let next = [
                self.ab.next(),
                self.ba.next(),
                self.a.stack.poll_timeout(),
                self.b.stack.poll_timeout(),
            ];
            match next.into_iter().flatten().min() {
                Some(next) if next <= until => self.now = self.now.max(next),
                Some(_) | None => break,
            }
        }
        self.now = until;
        self.drain();
    }

    /// Runs until something holds, at most for `limit` of virtual time.
    pub fn until(&mut self, limit: Duration, mut done: impl FnMut(&mut World) -> bool) {
        let until = self.now + limit;
        loop {
            self.drain();
            if done(self) {
                return;
            }
            assert!(self.step(), "nothing more will happen");
            assert!(self.now <= until, "it did not happen within {limit:?}");
        }
    }

    /// Opens a flow from `a` to an origin behind `b`, and gives both ends.
    pub fn open(&mut self, origin: &str) -> (FlowId, FlowId) {
        let remote = SocketAddr::new(origin.parse().unwrap(), 443);
        let flow = self.a.stack.connect(self.now, remote).unwrap();
        self.until(Duration::from_secs(40), |world| {
            world.a.is_established(flow)
        });
        let other = self.b.incoming().unwrap();
        self.until(Duration::from_secs(40), |world| {
            world.b.is_established(other)
        });
        (flow, other)
    }

    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }
}

/// The byte at a place of a stream.
pub fn byte(key: u64, at: u64) -> u8 {
    known(key, at)[0]
}

/// The bytes of a stream from a place on, some of them: random ones that repeat after a prime number of bytes.
fn known(key: u64, at: u64) -> &'static [u8] {
    const PERIOD: u64 = 1_000_003;
    static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut rng = StdRng::seed_from_u64(5);
        let mut bytes = vec![0; PERIOD as usize];
        rng.fill(&mut bytes[..]);
        bytes
    });
    let start = (at % PERIOD + key * 7919) % PERIOD;
    &BYTES[start as usize..]
}

/// Moves a stream of known bytes into a flow, as far as it goes.
pub struct Source {
    pub flow: FlowId,
    pub key: u64,
    pub at: u64,
    pub len: u64,
    pub finish: bool,
    finished: bool,
}

impl Source {
    pub fn new(flow: FlowId, key: u64, len: u64) -> Source {
        Source {
            flow,
            key,
            at: 0,
            len,
            finish: true,
            finished: false,
        }
    }

    pub fn pump(&mut self, now: Instant, stack: &mut Stack) {
        while self.at < self.len {
            let (key, at, left) = (self.key, self.at, self.len - self.at);
            let sent = stack.send(now, self.flow, |room| {
                let known = known(key, at);
                let left = usize::try_from(left).unwrap();
                let count = room.len().min(left).min(known.len());
                room[..count].copy_from_slice(&known[..count]);
                (count, count)
            });
            match sent {
                Ok(count) => self.at += count as u64,
                Err(SendError::Full) => return,
                Err(other) => panic!("send failed: {other}"),
            }
        }
        if self.finish && !self.finished {
            self.finished = true;
            stack.finish(now, self.flow);
        }
    }
}

/// Reads a stream of known bytes.
pub struct Drain {
    pub flow: FlowId,
    pub key: u64,
    pub at: u64,
    pub finished: bool,
}

impl Drain {
    pub fn new(flow: FlowId, key: u64) -> Drain {
        Drain {
            flow,
            key,
            at: 0,
            finished: false,
        }
    }

    /// Reads at most `most` bytes.
    pub fn pump(&mut self, now: Instant, stack: &mut Stack, most: usize) {
        let mut most = most;
        while most > 0 && !self.finished {
            let (key, at) = (self.key, self.at);
            let read = stack.recv(now, self.flow, |bytes| {
                let known = known(key, at);
                let count = bytes.len().min(most).min(known.len());
                assert!(bytes[..count] == known[..count], "wrong bytes after {at}");
                (count, count)
            });
            match read {
                Ok(count) => {
                    self.at += count as u64;
                    most -= count;
                }
                Err(RecvError::Empty) => return,
                Err(RecvError::Finished) => self.finished = true,
                Err(other) => panic!("recv failed at {}: {other}", self.at),
            }
        }
    }
}

/// Sends `len` bytes each way at once and checks every byte.
pub fn exchange(world: &mut World, flow: FlowId, other: FlowId, len: u64, limit: Duration) {
    let mut up = (Source::new(flow, 11, len), Drain::new(other, 11));
    let mut down = (Source::new(other, 22, len), Drain::new(flow, 22));
    world.until(limit, |world| {
        let now = world.now;
        up.0.pump(now, &mut world.a.stack);
        down.0.pump(now, &mut world.b.stack);
        up.1.pump(now, &mut world.b.stack, usize::MAX);
        down.1.pump(now, &mut world.a.stack, usize::MAX);
        up.1.finished && down.1.finished
    });
    assert_eq!((up.1.at, down.1.at), (len, len));
}
