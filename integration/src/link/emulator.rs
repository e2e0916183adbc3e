//! One direction of a link, without sockets and without a clock.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    loss::Losses,
    path::{Limit, LinkError, Path},
    random::Random,
};

/// A model of one direction: packets of type `P` go in by [`Emulator::send`] and come out by
/// [`Emulator::poll_delivery`] when [`Emulator::poll_timeout`] says so.
#[derive(Clone, Debug)]
pub struct Emulator<P> {
    path: Path,
    random: Random,
    losses: Losses,
    /// When the transmitter has sent what was accepted so far.
    free_at: Option<Instant>,
    /// What waits for the transmitter or is being sent: when it has left, and its bytes on the wire.
    queue: VecDeque<(Instant, u64)>,
    queued_bytes: u64,
    /// By time of arrival, in the order of sending where that is equal.
    under_way: VecDeque<Delivery<P>>,
    /// The arrival that nothing may overtake while jitter keeps the order.
    latest: Option<Instant>,
    since_reordered: u32,
    counters: Counters,
}

/// A packet that has arrived.
#[derive(Clone, Debug)]
pub struct Delivery<P> {
    /// What was sent.
    pub packet: P,
    /// When it was sent.
    pub sent: Instant,
    /// When it arrives.
    pub at: Instant,
    /// Whether the link has marked it (ECN: congestion experienced).
    pub marked: bool,
}

/// What becomes of a packet that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// At least one copy will arrive.
    UnderWay,
    /// Lost by chance.
    Lost,
    /// Dropped in front of a full queue.
    Full,
    /// Dropped because it is longer than the link carries.
    TooLong,
}

/// What happened so far, in packets where nothing else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Handed to [`Emulator::send`].
    pub sent: u64,
    /// Bytes of these on the wire, with the overhead of the path.
    pub sent_bytes: u64,
    /// Lost by chance, copies included.
    pub lost: u64,
    /// Dropped because the queue was full, copies included.
    pub full: u64,
    /// Longer than the link carries.
    pub too_long: u64,
    /// Sent twice.
    pub duplicated: u64,
    /// That skipped the delay.
    pub reordered: u64,
    /// Marked.
    pub marked: u64,
    /// Given out by [`Emulator::poll_delivery`].
    pub delivered: u64,
    /// The longest that a packet waited for the rate.
    pub longest_wait: Duration,
}

impl<P: Clone> Emulator<P> {
    /// Makes the emulator of `path`.
    ///
    /// # Errors
    ///
    /// As [`Path::check`].
    pub fn new(path: Path, seed: u64) -> Result<Self, LinkError> {
        path.check()?;
        Ok(Self {
            path,
            random: Random::new(seed),
            losses: Losses::new(path.loss),
            free_at: None,
            queue: VecDeque::new(),
            queued_bytes: 0,
            under_way: VecDeque::new(),
            latest: None,
            since_reordered: 0,
            counters: Counters::default(),
        })
    }

    /// Changes the knobs for packets that are yet to be sent; what is under way arrives as it would have.
    ///
    /// # Errors
    ///
    /// As [`Path::check`]; nothing changes then.
    pub fn set(&mut self, path: Path) -> Result<(), LinkError> {
        path.check()?;
        self.path = path;
        self.losses.set(path.loss);
        Ok(())
    }

    /// Sends a packet of `len` bytes; `ecn` says that its sender understands marks.
    pub fn send(&mut self, now: Instant, len: usize, ecn: bool, packet: P) -> Fate {
        self.counters.sent += 1;
        self.counters.sent_bytes += len as u64 + u64::from(self.path.overhead);
        if !self.random.percent(self.path.duplicate) {
            return self.send_copy(now, len, ecn, packet);
        }
        self.counters.duplicated += 1;
        let first = self.send_copy(now, len, ecn, packet.clone());
        let second = self.send_copy(now, len, ecn, packet);
        match first {
            Fate::UnderWay => Fate::UnderWay,
            Fate::Lost | Fate::Full | Fate::TooLong => second,
        }
    }

    /// Gives a packet that has arrived by `now`, in order of arrival.
    pub fn poll_delivery(&mut self, now: Instant) -> Option<Delivery<P>> {
        if self.under_way.front()?.at > now {
            return None;
        }
        self.counters.delivered += 1;
        self.under_way.pop_front()
    }

    /// Says when the next packet arrives.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.under_way.front().map(|delivery| delivery.at)
    }

    /// Says how long a packet sent `now` would wait for the rate.
    pub fn wait(&self, now: Instant) -> Duration {
        self.free_at
            .map_or(Duration::ZERO, |free| free.saturating_duration_since(now))
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The knobs as they are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn send_copy(&mut self, now: Instant, len: usize, ecn: bool, packet: P) -> Fate {
        if self.path.mtu > 0 && len > self.path.mtu as usize {
            self.counters.too_long += 1;
            return Fate::TooLong;
        }
        let lost = self.losses.next_is_lost(&mut self.random);
        if lost && !self.path.after {
            self.counters.lost += 1;
            return Fate::Lost;
        }
        let wait = self.wait(now);
        let wire = len as u64 + u64::from(self.path.overhead);
        if !self.has_room(now, wait, wire) {
            self.counters.full += 1;
            return Fate::Full;
        }
        self.counters.longest_wait = self.counters.longest_wait.max(wait);
        let sent = now + wait + self.path.transmission(len);
        if self.path.rate > 0 {
            self.free_at = Some(sent);
            self.queue.push_back((sent, wire));
            self.queued_bytes += wire;
        }
        if lost {
            self.counters.lost += 1;
            return Fate::Lost;
        }
        let marked = ecn && self.path.ecn.is_some_and(|threshold| wait > threshold);
        self.counters.marked += u64::from(marked);
        let at = self.arrival(sent);
        self.insert(Delivery {
            packet,
            sent: now,
            at,
            marked,
        });
        Fate::UnderWay
    }

    /// Says whether the queue takes `wire` bytes more, after what has left it is gone.
    fn has_room(&mut self, now: Instant, wait: Duration, wire: u64) -> bool {
        while let Some((left, bytes)) = self.queue.front().copied() {
            if left > now {
                break;
            }
            self.queue.pop_front();
            self.queued_bytes -= bytes;
        }
        if self.under_way.len() >= MAX_UNDER_WAY || self.queue.len() >= MAX_UNDER_WAY {
            return false;
        }
        match self.path.limit {
            Limit::Bytes(most) => self.queue.is_empty() || self.queued_bytes + wire <= most,
            Limit::Packets(most) => self.queue.is_empty() || (self.queue.len() as u64) < most,
            Limit::Time(most) => wait <= most,
        }
    }

    /// When a packet arrives that leaves the queue at `sent`.
    fn arrival(&mut self, sent: Instant) -> Instant {
        if self.path.reorder > 0.0 {
            self.since_reordered += 1;
            if self.since_reordered >= self.path.gap && self.random.percent(self.path.reorder) {
                self.since_reordered = 0;
                self.counters.reordered += 1;
                return sent;
            }
        }
        let mut delay = self.path.delay;
        if !self.path.jitter.is_zero() {
            let swing = self.path.jitter.mul_f64(2.0 * self.random.unit());
            delay = (delay + swing).saturating_sub(self.path.jitter);
        }
        let at = sent + delay;
        if self.path.overtaking {
            return at;
        }
        let at = self.latest.map_or(at, |latest| at.max(latest));
        self.latest = Some(at);
        at
    }

    fn insert(&mut self, delivery: Delivery<P>) {
        let ordered = self
            .under_way
            .back()
            .is_none_or(|last| last.at <= delivery.at);
        if ordered {
            self.under_way.push_back(delivery);
        } else {
            let index = self
                .under_way
                .partition_point(|other| other.at <= delivery.at);
            self.under_way.insert(index, delivery);
        }
    }
}

/// The most packets an emulator holds: 1.5 s of full packets at 2 Gbit/s.
pub const MAX_UNDER_WAY: usize = 1 << 18;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::link::Loss;

    fn emulator(text: &str, seed: u64) -> Emulator<u32> {
        let link: crate::link::Link = text.parse().unwrap();
        Emulator::new(link.up, seed).unwrap()
    }

    fn drain(emulator: &mut Emulator<u32>) -> Vec<Delivery<u32>> {
        let mut all = Vec::new();
        while let Some(at) = emulator.poll_timeout() {
            while let Some(delivery) = emulator.poll_delivery(at) {
                all.push(delivery);
            }
        }
        all
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn packet_arrives_after_its_transmission_and_the_delay_and_not_before() {
        let start = Instant::now();
        let mut emulator = emulator("delay=25,rate=12", 1);
        assert_eq!(emulator.send(start, 1486, false, 7), Fate::UnderWay);
        // 1,500 bytes with the header of Ethernet at 12 Mbit/s
        let due = start + 26 * MS;
        assert_eq!(emulator.poll_timeout(), Some(due));
        assert!(
            emulator
                .poll_delivery(due - Duration::from_nanos(1))
                .is_none()
        );
        let delivery = emulator.poll_delivery(due).unwrap();
        assert_eq!(
            (delivery.packet, delivery.sent, delivery.at),
            (7, start, due)
        );
        assert_eq!(emulator.poll_timeout(), None);
    }

    #[test]
    fn lost_packets_take_no_share_of_the_rate_unless_they_are_lost_after_it() {
        let start = Instant::now();
        for (text, free) in [("loss=100,rate=12", 0), ("loss=100,rate=12,after=1", 1)] {
            let mut emulator = emulator(text, 1);
            assert_eq!(emulator.send(start, 1486, false, 0), Fate::Lost);
            assert_eq!(emulator.wait(start), free * MS, "{text}");
            assert_eq!(emulator.poll_timeout(), None);
        }
    }

    #[test]
    fn queue_takes_what_its_limit_says_in_each_unit() {
        let start = Instant::now();
        for (text, taken) in [
            ("rate=12,limit=10p", 10),
            ("rate=12,limit=15000b", 10),
            ("rate=12,limit=10ms", 11),
            // what is larger than the whole queue passes an empty one
            ("rate=12,limit=100b", 1),
        ] {
            let mut emulator = emulator(text, 1);
            let fates: Vec<_> = (0..20)
                .map(|i| emulator.send(start, 1486, false, i))
                .collect();
            assert!(
                fates[..taken].iter().all(|fate| *fate == Fate::UnderWay),
                "{text}"
            );
            assert!(
                fates[taken..].iter().all(|fate| *fate == Fate::Full),
                "{text}"
            );
            // one has left after a millisecond, and leaves room
            assert_eq!(emulator.send(start + MS, 1486, false, 99), Fate::UnderWay);
        }
    }

    #[test]
    fn packets_longer_than_the_mtu_vanish() {
        let start = Instant::now();
        let mut emulator = emulator("mtu=1400", 1);
        assert_eq!(emulator.send(start, 1400, false, 1), Fate::UnderWay);
        assert_eq!(emulator.send(start, 1401, false, 2), Fate::TooLong);
        assert_eq!(drain(&mut emulator).len(), 1);
        assert_eq!(emulator.counters().too_long, 1);
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let start = Instant::now();
        let mut emulator = emulator("delay=5,limit=1p", 1);
        for i in 0..100 {
            assert_eq!(emulator.send(start, 1500, false, i), Fate::UnderWay);
        }
        assert!(drain(&mut emulator).iter().all(|d| d.at == start + 5 * MS));
    }

    #[test]
    fn only_packets_of_senders_that_understand_are_marked_and_only_when_they_wait() {
        let start = Instant::now();
        let mut emulator = emulator("rate=12,ecn=5,limit=100p", 1);
        for i in 0..20 {
            emulator.send(start, 1486, i % 2 == 0, i);
        }
        let marked: Vec<_> = drain(&mut emulator)
            .iter()
            .filter(|d| d.marked)
            .map(|d| d.packet)
            .collect();
        assert_eq!(marked, [6, 8, 10, 12, 14, 16, 18]);
        assert_eq!(emulator.counters().marked, 7);
    }

    #[test]
    fn reordered_packet_arrives_before_those_ahead_of_it() {
        let start = Instant::now();
        let mut emulator = emulator("delay=10,reorder=100,gap=4", 1);
        for i in 0..8 {
            emulator.send(start, 100, false, i);
        }
        let order: Vec<_> = drain(&mut emulator).iter().map(|d| d.packet).collect();
        assert_eq!(order, [3, 7, 0, 1, 2, 4, 5, 6]);
    }

    #[test]
    fn duplicates_arrive_twice_and_are_counted() {
        let start = Instant::now();
        let mut emulator = emulator("delay=10,duplicate=100", 1);
        emulator.send(start, 100, false, 5);
        let packets: Vec<_> = drain(&mut emulator).iter().map(|d| d.packet).collect();
        assert_eq!(packets, [5, 5]);
        assert_eq!(emulator.counters().duplicated, 1);
    }

    #[test]
    fn blocked_link_delivers_nothing_and_what_was_under_way_still_arrives() {
        let start = Instant::now();
        let mut emulator = emulator("delay=10", 1);
        emulator.send(start, 100, false, 1);
        emulator.set(crate::link::Link::blocked().up).unwrap();
        assert_eq!(emulator.send(start, 100, false, 2), Fate::Lost);
        assert_eq!(drain(&mut emulator).len(), 1);
    }

    #[test]
    fn knobs_out_of_range_are_refused() {
        let path = Path {
            loss: Loss::Random { percent: 101.0 },
            ..Path::default()
        };
        assert!(Emulator::<u32>::new(path, 1).is_err());
        let mut emulator = emulator("delay=1", 1);
        assert!(emulator.set(path).is_err());
        assert_eq!(emulator.path().loss, Loss::None);
    }

    /// Packets of one direction: the pause before each in µs, and its length.
    fn traffic() -> impl Strategy<Value = Vec<(u64, usize)>> {
        proptest::collection::vec((0u64..2000, 20usize..1500), 1..400)
    }

    fn play(emulator: &mut Emulator<u32>, traffic: &[(u64, usize)]) -> (Instant, Vec<Fate>) {
        let start = Instant::now();
        let mut now = start;
        let mut fates = Vec::new();
        for (index, (pause, len)) in traffic.iter().enumerate() {
            now += Duration::from_micros(*pause);
            fates.push(emulator.send(now, *len, false, index as u32));
        }
        (start, fates)
    }

    proptest! {
        #[test]
        fn order_is_kept_unless_overtaking_is_asked_for(traffic in traffic(), jitter in 0u64..50, loss in 0u32..50, seed: u64) {
            let mut emulator = emulator(&format!("loss={loss},delay=20,jitter={jitter},rate=20,limit=50ms"), seed);
            play(&mut emulator, &traffic);
            let packets: Vec<_> = drain(&mut emulator).iter().map(|d| d.packet).collect();
            prop_assert!(packets.is_sorted(), "{:?}", packets);
        }

        #[test]
        fn rate_is_never_exceeded_over_any_span(traffic in traffic(), rate in 1u32..100, seed: u64) {
            let mut emulator = emulator(&format!("loss=3,delay=20,rate={rate}"), seed);
            play(&mut emulator, &traffic);
            let arrivals: Vec<_> = drain(&mut emulator).iter().map(|d| (d.at, traffic[d.packet as usize].1)).collect();
            for (first, (begin, _)) in arrivals.iter().enumerate() {
                let mut bits = 0.0;
                for (end, len) in &arrivals[first + 1..] {
                    bits += (len + 14) as f64 * 8.0;
                    let allowed = (*end - *begin).as_secs_f64() * f64::from(rate) * 1e6;
                    prop_assert!(bits <= allowed * (1.0 + 1e-9) + 1e-3, "{} bits of {}", bits, allowed);
                }
            }
        }

        #[test]
        fn busy_transmitter_wastes_nothing(count in 2usize..200, len in 20usize..1500, rate in 1u32..1000) {
            let mut emulator = emulator(&format!("rate={rate}"), 1);
            let traffic = vec![(0, len); count];
            let (start, _) = play(&mut emulator, &traffic);
            let last = drain(&mut emulator).last().unwrap().at;
            let ideal = (count * (len + 14) * 8) as f64 / (f64::from(rate) * 1e6);
            let took = (last - start).as_secs_f64();
            // each transmission is rounded up to a nanosecond
            prop_assert!(took >= ideal - 1e-9 && took <= ideal + count as f64 * 1e-9 + 1e-9, "{} for {}", took, ideal);
        }

        #[test]
        fn jitter_stays_within_its_bounds(traffic in traffic(), seed: u64) {
            let mut emulator = emulator("delay=20,jitter=5,overtaking=1", seed);
            play(&mut emulator, &traffic);
            for delivery in drain(&mut emulator) {
                let took = delivery.at - delivery.sent;
                prop_assert!(took >= 15 * MS && took <= 25 * MS, "{:?}", took);
            }
        }

        #[test]
        fn equal_seeds_give_equal_outcomes_and_every_packet_has_a_fate(traffic in traffic(), seed: u64) {
            let run = || {
                let mut emulator = emulator("loss=5,burst=3,delay=20,jitter=5,overtaking=1,reorder=2,duplicate=2,rate=5,limit=20p", seed);
                let (start, fates) = play(&mut emulator, &traffic);
                let arrivals: Vec<_> = drain(&mut emulator).iter().map(|d| (d.packet, d.at - start)).collect();
                (fates, arrivals, emulator.counters())
            };
            let (fates, arrivals, counters) = run();
            let again = run();
            prop_assert_eq!(&fates, &again.0);
            prop_assert_eq!(&arrivals, &again.1);
            prop_assert_eq!(counters, again.2);
            prop_assert_eq!(counters.sent + counters.duplicated, counters.lost + counters.full + counters.delivered);
            prop_assert_eq!(counters.delivered, arrivals.len() as u64);
        }
    }
}
