//! One CUBIC flow (RFC 9438) through the queue onto a lane, under virtual time: how busy it keeps the lane.

use std::collections::VecDeque;

use adit_netstack::{Checksum, Gso};

use super::tests::Owned;
use super::tests::craft::{sequence, tcp};
use super::*;

/// What a run gave.
#[derive(Debug)]
struct Outcome {
    /// The part of the time that the lane was sending.
    busy: f64,
    /// The mean wait in the queue.
    wait: Duration,
}

/// The sender.
struct Cubic {
    window: f64,
    /// The window before the last cut, and when that was.
    former: f64,
    cut_at: Instant,
    next: u32,
    /// Losses below this number were answered already.
    answered: u32,
    /// Sent, and not known to have come or to be lost.
    outstanding: VecDeque<u32>,
}

impl Cubic {
    /// An acknowledgement of one packet has come; a queue keeps the order of a flow, so those before it are lost.
    fn handle_ack(&mut self, now: Instant, number: u32, rtt: Duration) {
        let mut lost = false;
        while let Some(first) = self
            .outstanding
            .front()
            .copied()
            .filter(|first| *first <= number)
        {
            self.outstanding.pop_front();
            lost |= first != number && first >= self.answered;
        }
        if lost {
            self.former = self.window;
            self.window *= 0.7;
            self.cut_at = now;
            self.answered = self.next;
        }
        let since = now - self.cut_at + rtt;
        let plateau = (self.former * 0.3 / 0.4).cbrt();
        let goal = 0.4 * (since.as_secs_f64() - plateau).powi(3) + self.former;
        self.window += ((goal - self.window) / self.window).clamp(0.0, 0.5);
    }
}

/// Runs a flow that has just cut the window that the lane needs, for 30 s, and looks at the last 20.
fn run(rate: u64, rtt: Duration, segments: u32) -> Outcome {
    let start = Instant::now();
    let mut queue = FairQueue::new(1, QueueLimits::default());
    queue.set_pace(rate, rtt);
    let needed = rate as f64 * rtt.as_secs_f64() / 1_400.0;
    let mut flow = Cubic {
        window: needed * 0.7,
        former: needed,
        cut_at: start,
        next: 0,
        answered: 0,
        outstanding: VecDeque::new(),
    };
    let mut acks = VecDeque::<(Instant, u32)>::new();
    let mut out = [0; 1_500];
    let model = tcp(1, 0x10, segments as usize * 1_360);
    let (mut busy, mut waits, mut sent) = (Duration::ZERO, Duration::ZERO, 0u32);
    let (mut now, mut free) = (start, start);
    while now < start + Duration::from_secs(30) {
        while let Some((_, number)) = acks.front().copied().filter(|(at, _)| *at <= now) {
            acks.pop_front();
            flow.handle_ack(now, number, rtt);
        }
        while flow.outstanding.len() + segments as usize <= flow.window as usize {
            let mut bytes = model.clone();
            bytes[24..28].copy_from_slice(&(flow.next * 1_360).to_be_bytes());
            let gso = Gso::Tcp { size: 1_360 };
            let checksum = Checksum::Partial;
            let packet = Owned(bytes, Offload { gso, checksum });
            queue.enqueue(now, packet, Producer::Other);
            for _ in 0..segments {
                flow.outstanding.push_back(flow.next);
                flow.next += 1;
            }
        }
        if free <= now
            && let Some(packet) = queue.poll(now, 1_400, &mut out)
        {
            let time = Duration::from_micros(packet.len as u64 * 1_000_000 / rate);
            free = now + time;
            if now >= start + Duration::from_secs(10) {
                busy += time;
                waits += packet.wait;
                sent += 1;
            }
            acks.push_back((free + rtt, sequence(&out) / 1_360));
        }
        let ack = acks.front().map(|(at, _)| *at);
        now = match ack {
            Some(at) if free <= now || at < free => at,
            Some(_) | None => free,
        };
    }
    Outcome {
        busy: busy.as_secs_f64() / 20.0,
        wait: waits / sent,
    }
}

#[test]
fn one_cubic_flow_keeps_a_lane_busy_without_a_long_queue() {
    for (rate, rtt, segments) in [(2_500_000, 50, 1), (6_250_000, 20, 4), (6_250_000, 100, 4)] {
        let outcome = run(rate, Duration::from_millis(rtt), segments);
        let what = format!("{rate} B/s, {rtt} ms, {segments} segments: {outcome:?}");
        assert!(outcome.busy > 0.98, "{what}");
        assert!(outcome.wait < Duration::from_millis(20), "{what}");
    }
}
