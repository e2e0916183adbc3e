//! What applications do with a flow: they count in bytes and messages, and never look at a packet.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::measure::Samples;
use crate::link::Random;

/// A stream of messages that come back: their sender.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    next_at: Instant,
    from: Instant,
    until: Instant,
    asked: VecDeque<(u64, Instant)>,
    number: u64,
    /// Bytes of answers on a stream, of which whole messages are taken.
    answered: u64,
    pub(super) round_trips: Samples,
    pub(super) sent: u64,
    pub(super) lost: u64,
}

impl Asker {
    /// Begins at `start`; measures what is asked between `from` and `until`.
    pub(super) fn new(start: Instant, from: Instant, until: Instant) -> Self {
        Self {
            next_at: start,
            from,
            until,
            asked: VecDeque::new(),
            number: 0,
            answered: 0,
            round_trips: Samples::default(),
            sent: 0,
            lost: 0,
        }
    }

    /// Gives the number of a message that is due.
    pub(super) fn poll(&mut self, now: Instant) -> Option<u64> {
        if self.next_at > now {
            return None;
        }
        let number = self.number;
        self.number += 1;
        self.next_at += PERIOD;
        if now >= self.from && now < self.until {
            self.sent += 1;
        }
        self.asked.push_back((number, now));
        if self.asked.len() > OUTSTANDING {
            self.give_up();
        }
        Some(number)
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.next_at
    }

    /// Takes the answer to one message.
    pub(super) fn handle_message(&mut self, now: Instant, number: u64) {
        let Ok(index) = self
            .asked
            .binary_search_by_key(&number, |(number, _)| *number)
        else {
            return;
        };
        if let Some((_, asked)) = self.asked.remove(index) {
            self.note(now, asked);
        }
    }

    /// Takes bytes of answers on a stream.
    pub(super) fn handle_bytes(&mut self, now: Instant, bytes: u64) {
        self.answered += bytes;
        while self.answered >= MESSAGE as u64 {
            self.answered -= MESSAGE as u64;
            if let Some((_, asked)) = self.asked.pop_front() {
                self.note(now, asked);
            }
        }
    }

    /// Counts what has not come back as lost.
    pub(super) fn finish(&mut self) {
        while !self.asked.is_empty() {
            self.give_up();
        }
    }

    fn note(&mut self, now: Instant, asked: Instant) {
        if asked >= self.from && asked < self.until {
            self.round_trips.push(now.saturating_duration_since(asked));
        }
    }

    fn give_up(&mut self) {
        if let Some((_, asked)) = self.asked.pop_front() {
            self.lost += u64::from(asked >= self.from && asked < self.until);
        }
    }
}

/// A stream of datagrams that nobody answers: their sender.
#[derive(Clone, Debug)]
pub(super) struct Pulse {
    next_at: Instant,
    interval: Duration,
    /// The mean length of a burst and of a pause, and when the burst ends.
    bursts: Option<(Duration, Duration, Instant)>,
    random: Random,
    number: u64,
}

impl Pulse {
    pub(super) fn new(
        start: Instant,
        interval: Duration,
        bursts: Option<(Duration, Duration)>,
        seed: u64,
    ) -> Self {
        let mut random = Random::new(seed);
        let bursts = bursts.map(|(on, off)| {
            let length = Duration::from_secs_f64(random.exponential(on.as_secs_f64()));
            (on, off, start + length)
        });
        Self {
            next_at: start,
            // a rate beyond all sense is not a loop without end
            interval: interval.max(Duration::from_nanos(100)),
            bursts,
            random,
            number: 0,
        }
    }

    /// Gives the number of a datagram that is due.
    pub(super) fn poll(&mut self, now: Instant) -> Option<u64> {
        if self.next_at > now {
            return None;
        }
        self.next_at += self.interval;
        if let Some((on, off, ends)) = self.bursts.as_mut()
            && self.next_at >= *ends
        {
            let pause = self.random.exponential(off.as_secs_f64());
            self.next_at += Duration::from_secs_f64(pause);
            let length = self.random.exponential(on.as_secs_f64());
            *ends = self.next_at + Duration::from_secs_f64(length);
        }
        let number = self.number;
        self.number += 1;
        Some(number)
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.next_at
    }
}

/// Bytes of a message.
pub(super) const MESSAGE: usize = 200;
/// One voice frame.
const PERIOD: Duration = Duration::from_millis(20);
/// Twenty seconds of messages.
const OUTSTANDING: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn messages_are_asked_each_20_ms_and_matched_by_number() {
        let start = Instant::now();
        let mut asker = Asker::new(start, start, start + Duration::from_secs(60));
        for index in 0..10u32 {
            let now = start + index * 20 * MS;
            assert_eq!(asker.poll_timeout(), now);
            assert_eq!(asker.poll(now), Some(index.into()));
            assert_eq!(asker.poll(now), None);
        }
        asker.handle_message(start + 230 * MS, 9);
        asker.handle_message(start + 230 * MS, 9);
        asker.handle_message(start + 230 * MS, 77);
        asker.finish();
        assert_eq!((asker.sent, asker.lost), (10, 9));
        assert_eq!(asker.round_trips.percentiles().max, 50 * MS);
    }

    #[test]
    fn bytes_of_a_stream_answer_messages_in_order() {
        let start = Instant::now();
        let mut asker = Asker::new(start, start, start + Duration::from_secs(60));
        asker.poll(start);
        asker.poll(start + 20 * MS);
        asker.handle_bytes(start + 60 * MS, 199);
        assert_eq!(asker.round_trips.clone().percentiles().count, 0);
        asker.handle_bytes(start + 60 * MS, 201);
        let trips = asker.round_trips.percentiles();
        assert_eq!((trips.p50, trips.max), (40 * MS, 60 * MS));
    }

    #[test]
    fn bursts_send_as_much_of_the_time_as_their_means_say() {
        let start = Instant::now();
        let means = (100 * MS, 300 * MS);
        let mut pulse = Pulse::new(start, MS, Some(means), 5);
        let mut count = 0u32;
        while pulse.poll_timeout() < start + Duration::from_secs(400) {
            let now = pulse.poll_timeout();
            count += u32::from(pulse.poll(now).is_some());
        }
        // a quarter of 400,000; a thousand bursts with a deviation of their mean each
        assert!((85_000..115_000).contains(&count), "{count}");
    }
}
