use std::collections::VecDeque;
use std::sync::LazyLock;
use std::time::Instant;

use adit_netstack::{RecvError, SendError};
use proptest::prelude::*;

use super::bytes::{LARGE, SMALL};
use super::*;
use crate::proto::budget::{Budget, HARD, PROCESS, SESSION, Share};
use crate::proto::keys::Role;
use crate::wire::{FlowFrame, InnerType, LaneId, RelayedId, ResetReason};

/// A frame on its way: its type, and what follows.
type Sealed = Vec<u8>;

/// One end, the bytes its sockets were given, and whether they take any at once.
struct End {
    table: Relayed,
    now: Instant,
    got: Vec<u8>,
    ended: bool,
    direct: usize,
}

impl End {
    fn new(role: Role, now: Instant, session: usize) -> Self {
        Self {
            table: Relayed::new(role, 128, Share::new(Budget::new(PROCESS / HARD), session)),
            now,
            got: Vec::new(),
            ended: false,
            direct: usize::MAX,
        }
    }

    fn handle(&mut self, now: Instant, frame: &[u8]) {
        let (kind, body) = frame.split_first().unwrap();
        let kind = InnerType::from_byte(*kind).unwrap();
        let (frame, bytes) = FlowFrame::parse(kind, body).unwrap();
        let (got, direct) = (&mut self.got, self.direct);
        let (front, back) = bytes.split_at(bytes.len() / 3);
        (self.table).handle_frame(now, &frame, Pieces::new(&[front, back]), |_, bytes| {
            let taken = bytes.len().min(direct);
            got.extend(bytes.iter().flatten().take(taken));
            taken
        });
    }

    /// Up to `most` frames.
    fn say(&mut self, most: usize) -> Vec<Sealed> {
        let mut said = Vec::new();
        self.table.poll_transmit(|head, bytes| {
            if said.len() == most {
                return false;
            }
            said.push([head, bytes].concat());
            true
        });
        said
    }

    fn drain(&mut self, key: RelayedKey, most: usize) {
        let mut left = most;
        while left > 0 {
            let got = &mut self.got;
            match self.table.recv(self.now, key, |bytes| {
                let taken = bytes.len().min(left);
                got.extend_from_slice(&bytes[..taken]);
                (taken, taken)
            }) {
                Ok(taken) => left -= taken,
                Err(RecvError::Finished) => {
                    self.ended = true;
                    return;
                }
                Err(_) => return,
            }
        }
    }

    /// Writes what there is room for; returns how much.
    fn write(&mut self, key: RelayedKey, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() {
            match self.table.send(self.now, key, |room| {
                let len = room.len().min(bytes.len() - written);
                room[..len].copy_from_slice(&bytes[written..written + len]);
                (len, len)
            }) {
                Ok(len) => written += len,
                Err(_) => break,
            }
        }
        written
    }
}

/// Two ends and the lanes between them.
struct Pair {
    client: End,
    server: End,
    now: Instant,
    /// What the client's lane has taken.
    taken: Vec<Sealed>,
}

impl Pair {
    fn new() -> Self {
        Self::with_memory(SESSION / HARD)
    }

    fn with_memory(session: usize) -> Self {
        let now = Instant::now();
        let mut pair = Self {
            client: End::new(Role::Initiator, now, session),
            server: End::new(Role::Responder, now, session),
            now,
            taken: Vec::new(),
        };
        pair.client.table.set_lane(LaneId(0));
        pair.server.table.set_lane(LaneId(0));
        pair
    }

    /// Writes what the client has room for, while the lane takes all that it says; returns how much.
    fn fill(&mut self, near: RelayedKey, bytes: &[u8]) -> usize {
        let mut written = 0;
        loop {
            let more = self.client.write(near, &bytes[written..]);
            let said = self.client.say(usize::MAX);
            if more == 0 && said.is_empty() {
                return written;
            }
            written += more;
            self.taken.extend(said);
        }
    }

    fn settle(&mut self) {
        for frame in std::mem::take(&mut self.taken) {
            self.server.handle(self.now, &frame);
        }
        loop {
            let (up, down) = (self.client.say(usize::MAX), self.server.say(usize::MAX));
            if up.is_empty() && down.is_empty() {
                return;
            }
            for frame in up {
                self.server.handle(self.now, &frame);
            }
            for frame in down {
                self.client.handle(self.now, &frame);
            }
        }
    }

    /// Lets acknowledgements become due.
    fn wait(&mut self) {
        self.now += ACK_DELAY;
        (self.client.now, self.server.now) = (self.now, self.now);
        self.client.table.handle_timeout(self.now);
        self.server.table.handle_timeout(self.now);
        self.settle();
    }

    fn open(&mut self) -> (RelayedKey, RelayedKey) {
        let destination = "192.0.2.1:80".parse().unwrap();
        let near = self.client.table.connect(self.now, destination).unwrap();
        self.settle();
        let asked = self.server.table.poll_event();
        let Some(RelayedEvent::Incoming { flow: far, .. }) = asked else {
            panic!("{asked:?}");
        };
        self.server.table.accept(far);
        self.settle();
        let told = self.client.table.poll_event();
        assert_eq!(told, Some(RelayedEvent::Established { flow: near }));
        (near, far)
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 977) as u8).collect()
}

#[test]
fn bytes_cross_both_ways_and_nothing_is_left() {
    let mut pair = Pair::new();
    let (near, far) = pair.open();
    let up = pattern(300_000);
    let mut written = 0;
    while written < up.len() {
        written += pair.client.write(near, &up[written..]);
        pair.settle();
    }
    pair.client.table.finish(near);
    pair.settle();
    assert!(pair.server.got == up);
    pair.server.drain(far, 1);
    assert!(pair.server.ended);
    pair.server.write(far, b"answer");
    pair.server.table.finish(far);
    pair.settle();
    pair.client.drain(near, 1);
    assert_eq!(pair.client.got, b"answer");
    assert!(pair.client.ended);
    pair.client.table.release(near);
    pair.server.table.release(far);
    pair.settle();
    assert!(pair.client.table.is_empty() && pair.server.table.is_empty());
    assert_eq!(pair.client.table.stats().finished, 1);
    assert_eq!(pair.server.table.stats().finished, 1);
    assert_eq!(pair.client.table.stats().unknown, 0);
}

#[test]
fn refusal_is_told_with_its_reason() {
    let mut pair = Pair::new();
    let destination = "192.0.2.1:80".parse().unwrap();
    let near = pair.client.table.connect(pair.now, destination).unwrap();
    pair.settle();
    let Some(RelayedEvent::Incoming { flow, .. }) = pair.server.table.poll_event() else {
        panic!("nothing asked");
    };
    pair.server.table.refuse(flow, ResetReason::Refused);
    pair.settle();
    let reason = ResetReason::Refused;
    let told = pair.client.table.poll_event();
    assert_eq!(told, Some(RelayedEvent::Closed { flow: near, reason }));
    pair.client.table.release(near);
    assert!(pair.client.table.is_empty() && pair.server.table.is_empty());
    assert_eq!(
        pair.client.table.half_open() + pair.server.table.half_open(),
        0
    );
}

#[test]
fn open_that_nobody_answers_times_out() {
    let mut pair = Pair::new();
    let destination = "192.0.2.1:80".parse().unwrap();
    let flow = pair.client.table.connect(pair.now, destination).unwrap();
    let due = pair.client.table.poll_timeout().unwrap();
    assert_eq!(due, pair.now + CONNECT_TIMEOUT);
    pair.client.table.handle_timeout(due);
    let reason = ResetReason::TimedOut;
    let told = pair.client.table.poll_event();
    assert_eq!(told, Some(RelayedEvent::Closed { flow, reason }));
    pair.client.table.release(flow);
    assert_eq!(pair.client.table.half_open(), 0);
    assert!(pair.client.say(9).is_empty(), "it was never said");
}

#[test]
fn flow_beyond_the_limit_is_refused() {
    let mut pair = Pair::new();
    for _ in 0..128 {
        pair.open();
    }
    let destination = "192.0.2.1:80".parse().unwrap();
    assert!(pair.client.table.connect(pair.now, destination).is_none());
    let open = FlowFrame::Open {
        flow: RelayedId(900),
        destination,
        window: 1,
    };
    let table = &mut pair.server.table;
    table.handle_frame(pair.now, &open, Pieces::new(&[]), |_, _| 0);
    assert_eq!((table.len(), table.stats().refused), (128, 1));
    assert_eq!(pair.server.say(9), [[0x14, 0, 0, 3, 0x84, 7]]);
}

#[test]
fn socket_that_takes_nothing_stops_the_sender_at_the_first_window() {
    let mut pair = Pair::new();
    let (near, far) = pair.open();
    pair.server.direct = 0;
    let sent = pattern(3 << 20);
    let mut written = pair.client.write(near, &sent);
    assert_eq!(written as u64, FIRST_WINDOW);
    let full = pair.client.table.send(pair.now, near, |_| (0, ()));
    assert_eq!(full, Err(SendError::Full));
    pair.settle();
    pair.wait();
    assert_eq!(pair.server.table.held(), SMALL + LARGE);
    assert_eq!(pair.client.table.held(), 0, "acknowledged, if not taken");
    assert_eq!(pair.client.write(near, &sent[written..]), 0, "no credit");
    while written < sent.len() {
        pair.server.drain(far, 100_000);
        pair.settle();
        pair.wait();
        written += pair.client.write(near, &sent[written..]);
        pair.settle();
        assert!(pair.server.table.held() <= WINDOW as usize + SMALL + LARGE);
    }
    pair.server.drain(far, usize::MAX);
    assert!(pair.server.got == sent);
}

/// How much a client can write at once.
fn window(pair: &mut Pair, near: RelayedKey) -> u64 {
    let written = pair.fill(near, &ALL[..2 * WINDOW as usize]);
    pair.settle();
    pair.wait();
    written as u64
}

#[test]
fn window_doubles_while_the_socket_takes_what_it_lets_in() {
    let mut pair = Pair::new();
    let (near, _) = pair.open();
    let windows = [(); 7].map(|()| window(&mut pair, near));
    let doubled = [1, 2, 4, 8, 16, 16, 16].map(|times| times * FIRST_WINDOW);
    assert_eq!(windows, doubled);
    assert_eq!(windows[6], WINDOW);
}

#[test]
fn window_of_a_slow_flow_stays() {
    let mut pair = Pair::new();
    let (near, _) = pair.open();
    for _ in 0..200 {
        pair.client.write(near, &[7; 10_000]);
        pair.settle();
        pair.wait();
    }
    assert_eq!(window(&mut pair, near), FIRST_WINDOW);
}

#[test]
fn window_does_not_grow_beyond_what_memory_allows() {
    let mut pair = Pair::with_memory(1 << 20);
    let (near, _) = pair.open();
    let windows = [(); 7].map(|()| window(&mut pair, near));
    assert!(windows[6] <= 1 << 19, "{windows:?}");
    assert!(pair.client.table.held() + pair.server.table.held() == 0);
}

#[test]
fn flows_that_nobody_acknowledges_share_what_memory_there_is() {
    const MEMORY: usize = 4 << 20;
    let mut pair = Pair::with_memory(MEMORY);
    let flows = [(); 100].map(|()| pair.open());
    for (near, _) in flows {
        for _ in 0..5 {
            window(&mut pair, near);
        }
    }
    let (wide, before) = (&ALL[..2 << 20], pair.server.got.len());
    let mut sent = flows.map(|(near, _)| pair.fill(near, wide));
    assert!(pair.client.table.held() <= MEMORY + flows.len() * SMALL);
    assert!(*sent.iter().min().unwrap() >= SMALL, "{sent:?}");
    assert!(sent[0] <= MEMORY / 3 && sent[0] > 10 * LARGE, "{sent:?}");
    while pair.client.table.poll_event().is_some() {}
    // Whoever found no room is told when its bytes are acknowledged.
    for _ in 0..2 {
        pair.settle();
        pair.wait();
    }
    let told = std::iter::from_fn(|| pair.client.table.poll_event()).count();
    assert_eq!(told, flows.len());
    for ((near, _), sent) in flows.iter().zip(&mut sent) {
        *sent += pair.client.write(*near, &wide[..1]);
    }
    pair.settle();
    assert_eq!(pair.server.got.len() - before, sent.iter().sum::<usize>());
}

#[test]
fn flow_that_finds_no_memory_at_all_tries_again() {
    let all = Budget::new(1 << 20);
    let mut other = Share::new(all.clone(), 1 << 30);
    let mut pair = Pair::new();
    pair.client.table = Relayed::new(Role::Initiator, 8, Share::new(all, SESSION / HARD));
    pair.client.table.set_lane(LaneId(0));
    let (near, _) = pair.open();
    other.add(2 << 20);
    assert_eq!(pair.client.write(near, b"abc"), 0);
    assert_eq!(
        pair.client.table.poll_timeout(),
        Some(pair.now + AGAIN_AFTER)
    );
    let told = RelayedEvent::Progress { flow: near };
    pair.now += AGAIN_AFTER;
    pair.client.now = pair.now;
    pair.client.table.handle_timeout(pair.now);
    assert_eq!(pair.client.table.poll_event(), Some(told));
    assert_eq!(pair.client.write(near, b"abc"), 0, "still none");
    drop(other);
    pair.now += AGAIN_AFTER;
    pair.client.table.handle_timeout(pair.now);
    assert_eq!(pair.client.table.poll_event(), Some(told));
    assert_eq!(pair.client.write(near, b"abc"), 3);
    pair.settle();
    assert_eq!(pair.server.got, b"abc");
}

#[test]
fn new_flows_are_refused_while_memory_is_short() {
    let mut pair = Pair::new();
    pair.server = End::new(Role::Responder, pair.now, LARGE);
    pair.server.table.set_lane(LaneId(0));
    pair.server.direct = 0;
    let (near, far) = pair.open();
    pair.client.write(near, &[7; SMALL]);
    pair.settle();
    pair.client.write(near, &[7; SMALL]);
    pair.settle();
    assert_eq!(pair.server.table.held(), SMALL + LARGE);
    let destination = "192.0.2.1:80".parse().unwrap();
    let refused = pair.client.table.connect(pair.now, destination).unwrap();
    pair.settle();
    let reason = ResetReason::TooMany;
    let told = std::iter::from_fn(|| pair.client.table.poll_event());
    let closed = RelayedEvent::Closed {
        flow: refused,
        reason,
    };
    assert!(told.into_iter().any(|event| event == closed));
    pair.client.table.release(refused);
    let stats = pair.server.table.stats();
    assert_eq!((stats.refused_for_memory, stats.refused), (1, 0));
    while pair.server.table.poll_event().is_some() {}
    pair.server.drain(far, usize::MAX);
    pair.settle();
    while pair.client.table.poll_event().is_some() {}
    pair.open();
}

#[test]
fn client_that_is_short_of_memory_opens_nothing() {
    let mut pair = Pair::with_memory(0);
    let destination = "192.0.2.1:80".parse().unwrap();
    assert_eq!(pair.client.table.connect(pair.now, destination), None);
    assert_eq!(pair.client.table.stats().refused_for_memory, 1);
}

#[test]
fn bytes_beyond_the_hard_bound_end_their_flow() {
    const MEMORY: usize = 1 << 20;
    let mut pair = Pair::new();
    pair.server = End::new(Role::Responder, pair.now, MEMORY);
    pair.server.table.set_lane(LaneId(0));
    pair.server.direct = 0;
    // Flows that were there before memory ran short, and that nobody reads.
    let flows = [(); 100].map(|()| pair.open());
    for (near, _) in flows {
        pair.client.write(near, &[7; FIRST_WINDOW as usize]);
        pair.settle();
        assert!(pair.server.table.held() <= 2 * MEMORY);
    }
    let ended = pair.server.table.stats().ended_for_memory;
    assert!((60..100).contains(&ended), "{ended}");
    let reason = ResetReason::TooMany;
    let is_end = |event: &RelayedEvent| matches!(event, RelayedEvent::Closed { reason: why, .. } if *why == reason);
    let ends = |end: &mut End| {
        let events = std::iter::from_fn(|| end.table.poll_event());
        events.filter(is_end).count() as u64
    };
    assert_eq!(ends(&mut pair.server), ended);
    assert_eq!(ends(&mut pair.client), ended);
    assert_eq!(pair.server.table.stats().violations, 0);
}

#[test]
fn spares_of_an_idle_session_are_given_back() {
    let all = Budget::new(PROCESS / HARD);
    let mut pair = Pair::new();
    pair.client.table = Relayed::new(Role::Initiator, 8, Share::new(all.clone(), SESSION / HARD));
    pair.client.table.set_lane(LaneId(0));
    let (near, _) = pair.open();
    pair.client.write(near, &pattern(60_000));
    pair.settle();
    pair.wait();
    assert_eq!((pair.client.table.held(), all.held()), (0, SMALL + LARGE));
    pair.now += 2 * SPARES_REST;
    while let Some(due) = (pair.client.table.poll_timeout()).filter(|due| *due <= pair.now) {
        pair.client.table.handle_timeout(due);
    }
    assert_eq!(all.held(), 0);
}

#[test]
fn spares_of_a_session_that_has_gone_are_given_back() {
    let all = Budget::new(PROCESS / HARD);
    let mut pair = Pair::new();
    pair.client.table = Relayed::new(Role::Initiator, 8, Share::new(all.clone(), SESSION / HARD));
    pair.client.table.set_lane(LaneId(0));
    let (near, _) = pair.open();
    pair.client.write(near, &pattern(60_000));
    pair.client.table.reset_all(pair.now);
    assert_eq!((pair.client.table.held(), all.held()), (0, SMALL + LARGE));
    pair.now += 3 * SPARES_REST;
    while let Some(due) = (pair.client.table.poll_timeout()).filter(|due| *due <= pair.now) {
        pair.client.table.handle_timeout(due);
    }
    assert_eq!(all.held(), 0);
}

#[test]
fn owner_that_found_no_room_is_told_of_some() {
    let mut pair = Pair::new();
    let (near, _) = pair.open();
    pair.client.write(near, &pattern(2 << 20));
    assert!(pair.client.table.poll_event().is_none());
    pair.settle();
    let told = pair.client.table.poll_event();
    assert_eq!(told, Some(RelayedEvent::Progress { flow: near }));
}

#[test]
fn what_waits_for_the_lane_is_bounded_and_is_read_in_large_parts() {
    let mut pair = Pair::new();
    let (near, _) = pair.open();
    while window(&mut pair, near) < WINDOW {}
    while pair.client.table.poll_event().is_some() {}
    let waiting = pair.client.write(near, &ALL[..2 * WINDOW as usize]);
    assert!(
        (READ_AHEAD / 2..=READ_AHEAD).contains(&waiting),
        "{waiting}"
    );
    assert_eq!(pair.client.say(1).len(), 1);
    assert_eq!(pair.client.table.poll_event(), None, "too little has left");
    pair.client.say(usize::MAX);
    let told = RelayedEvent::Progress { flow: near };
    assert_eq!(pair.client.table.poll_event(), Some(told));
    assert!(pair.client.write(near, &ALL[..2 * WINDOW as usize]) >= READ_AHEAD / 2);
}

#[test]
fn idle_flow_holds_nothing_and_warm_flows_allocate_nothing() {
    let mut pair = Pair::new();
    let (near, _) = pair.open();
    for _ in 0..10 {
        pair.fill(near, &pattern(900_000));
        pair.settle();
        pair.wait();
        assert_eq!(pair.client.table.held() + pair.server.table.held(), 0);
    }
    let warm = pair.client.table.stats().chunks_made;
    for _ in 0..20 {
        pair.fill(near, &pattern(900_000));
        pair.settle();
        pair.wait();
    }
    assert_eq!(pair.client.table.stats().chunks_made, warm);
}

#[test]
fn flows_take_turns() {
    let mut pair = Pair::new();
    let (first, _) = pair.open();
    let (second, _) = pair.open();
    pair.client.write(first, &pattern(60_000));
    pair.client.write(second, &pattern(60_000));
    let said = pair.client.say(4);
    let whose: Vec<u8> = said.iter().map(|frame| frame[4]).collect();
    assert_eq!(whose, [0, 1, 0, 1]);
}

#[test]
fn echo_does_not_wait_for_downloads() {
    let mut pair = Pair::new();
    let downloads = [(); 64].map(|()| pair.open());
    let (_, echo) = pair.open();
    for (_, far) in downloads {
        pair.server.write(far, &pattern(60_000));
    }
    pair.server.say(10);
    for _ in 0..20 {
        pair.server.write(echo, b"echo");
        let said = pair.server.say(2);
        assert_eq!(said[0][4], 64, "before all downloads that wait");
        assert_ne!(said[1][4], 64);
    }
}

#[test]
fn opens_and_ends_do_not_wait_for_uploads() {
    let mut pair = Pair::new();
    let uploads = [(); 8].map(|()| pair.open());
    let (done, _) = pair.open();
    for (near, _) in uploads {
        pair.client.write(near, &pattern(60_000));
    }
    pair.client.table.finish(done);
    let destination = "192.0.2.1:80".parse().unwrap();
    pair.client.table.connect(pair.now, destination).unwrap();
    let said = pair.client.say(2);
    let kinds: Vec<u8> = said.iter().map(|frame| frame[0]).collect();
    assert_eq!(
        kinds,
        [InnerType::FlowFin.byte(), InnerType::FlowOpen.byte()]
    );
}

#[test]
fn data_beyond_the_limit_resets_the_flow() {
    let mut pair = Pair::new();
    let (near, far) = pair.open();
    let flow = RelayedId(0);
    let data = FlowFrame::Data {
        flow,
        offset: FIRST_WINDOW,
    };
    (pair.server.table).handle_frame(pair.now, &data, Pieces::new(&[&[1]]), |_, _| 0);
    assert_eq!(pair.server.table.stats().violations, 1);
    let reason = ResetReason::Violation;
    let told = pair.server.table.poll_event();
    assert_eq!(told, Some(RelayedEvent::Closed { flow: far, reason }));
    pair.settle();
    let told = pair.client.table.poll_event();
    assert_eq!(told, Some(RelayedEvent::Closed { flow: near, reason }));
}

#[test]
fn credit_for_what_was_never_sent_resets_the_flow() {
    let mut pair = Pair::new();
    pair.open();
    let credit = FlowFrame::Credit {
        flow: RelayedId(0),
        received: 1,
        limit: 9,
        again: false,
    };
    (pair.server.table).handle_frame(pair.now, &credit, Pieces::new(&[]), |_, _| 0);
    assert_eq!(pair.server.table.stats().violations, 1);
}

#[test]
fn second_end_resets_the_flow() {
    let mut pair = Pair::new();
    let (near, _) = pair.open();
    pair.client.write(near, b"abc");
    pair.client.table.finish(near);
    pair.settle();
    let fin = FlowFrame::Fin {
        flow: RelayedId(0),
        offset: 4,
    };
    (pair.server.table).handle_frame(pair.now, &fin, Pieces::new(&[]), |_, _| 0);
    assert_eq!(pair.server.table.stats().violations, 1);
}

#[test]
fn frame_that_was_dropped_is_asked_for_once_and_comes_again() {
    let mut pair = Pair::new();
    let (near, _) = pair.open();
    let sent = pattern(60_000);
    let mut said = Vec::new();
    for part in sent.chunks(9_000) {
        pair.client.write(near, part);
        said.extend(pair.client.say(usize::MAX));
    }
    for frame in &said[1..] {
        pair.server.handle(pair.now, frame);
    }
    assert_eq!(pair.server.table.stats().gaps, said.len() as u64 - 1);
    let asked = pair.server.say(usize::MAX);
    assert_eq!(asked.len(), 1);
    pair.client.handle(pair.now, &asked[0]);
    pair.settle();
    assert!(pair.server.got == sent);
}

#[test]
fn flow_that_the_far_end_does_not_know_is_reset() {
    let mut pair = Pair::new();
    let (near, far) = pair.open();
    pair.server.table.abort(far);
    pair.server.table.release(far);
    // What says so is lost with the lane.
    pair.server.say(usize::MAX);
    pair.client.table.set_lane(LaneId(1));
    pair.server.table.set_lane(LaneId(1));
    pair.settle();
    let reason = ResetReason::Unknown;
    let told = pair.client.table.poll_event();
    assert_eq!(told, Some(RelayedEvent::Closed { flow: near, reason }));
}

#[test]
fn end_of_the_session_closes_every_flow_and_numbers_begin_anew() {
    let mut pair = Pair::new();
    let (near, far) = pair.open();
    let (other, _) = pair.open();
    pair.client.write(near, &pattern(100_000));
    pair.client.table.reset_all(pair.now);
    pair.server.table.reset_all(pair.now);
    let reason = ResetReason::Aborted;
    for flow in [near, other] {
        let told = pair.client.table.poll_event();
        assert_eq!(told, Some(RelayedEvent::Closed { flow, reason }));
    }
    while pair.server.table.poll_event().is_some() {}
    pair.server.table.release(far);
    let (again, _) = pair.open();
    pair.client.table.release(near);
    pair.client.table.release(other);
    assert_eq!(pair.client.write(again, b"abc"), 3);
    pair.settle();
    assert_eq!(pair.server.got, b"abc");
}

/// What may happen between two ends.
#[derive(Clone, Debug)]
enum Step {
    Write {
        up: bool,
        len: usize,
    },
    Deliver {
        up: bool,
        frames: usize,
    },
    Drain {
        up: bool,
        len: usize,
    },
    /// Another lane takes over; the old one still delivers so many frames each way.
    Change {
        up: usize,
        down: usize,
        late: bool,
    },
    Wait,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (any::<bool>(), 1..400_000usize).prop_map(|(up, len)| Step::Write { up, len }),
        4 => (any::<bool>(), 1..12usize).prop_map(|(up, frames)| Step::Deliver { up, frames }),
        2 => (any::<bool>(), 1..500_000usize).prop_map(|(up, len)| Step::Drain { up, len }),
        1 => (0..6usize, 0..6usize, any::<bool>())
            .prop_map(|(up, down, late)| Step::Change { up, down, late }),
        1 => Just(Step::Wait),
    ];
    prop::collection::vec(step, 1..60)
}

/// More than any script writes.
static ALL: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(25 << 20));

/// The most that one flow holds: both its queues, and the chunks at the ends of them.
const MOST: usize = 2 * (WINDOW as usize + SMALL + LARGE);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_byte_arrives_once_and_in_order_whatever_the_lanes_do(
        steps in steps(),
        direct in prop_oneof![Just(0), Just(1000usize), Just(usize::MAX)],
        memory in prop_oneof![Just(SESSION / HARD), Just(512 * 1024)],
    ) {
        let mut pair = Pair::with_memory(memory);
        (pair.client.direct, pair.server.direct) = (direct, direct);
        let destination = "192.0.2.1:80".parse().unwrap();
        let near = pair.client.table.connect(pair.now, destination).unwrap();
        let mut far = None;
        let mut lane = 0;
        let (mut up, mut down) = (VecDeque::<Sealed>::new(), VecDeque::<Sealed>::new());
        let (mut sent_up, mut sent_down) = (0, 0);
        let all = &*ALL;
        for step in &steps {
            match *step {
                Step::Write { up: true, len } => {
                    sent_up += pair.client.write(near, &all[sent_up..sent_up + len]);
                }
                Step::Write { up: false, len } => if let Some(far) = far {
                    sent_down += pair.server.write(far, &all[sent_down..sent_down + len]);
                }
                Step::Deliver { up: true, frames } => {
                    up.extend(pair.client.say(frames));
                    for frame in up.drain(..up.len().min(frames)) {
                        pair.server.handle(pair.now, &frame);
                    }
                }
                Step::Deliver { up: false, frames } => {
                    down.extend(pair.server.say(frames));
                    for frame in down.drain(..down.len().min(frames)) {
                        pair.client.handle(pair.now, &frame);
                    }
                }
                Step::Drain { up: true, len } => if let Some(far) = far {
                    pair.server.drain(far, len);
                }
                Step::Drain { up: false, len } => pair.client.drain(near, len),
                Step::Change { up: few, down: some, late } => {
                    lane += 1;
                    up.extend(pair.client.say(4));
                    down.extend(pair.server.say(4));
                    let deliver = |pair: &mut Pair, up: &mut VecDeque<Sealed>, down: &mut VecDeque<Sealed>| {
                        for frame in up.drain(..).take(few) {
                            pair.server.handle(pair.now, &frame);
                        }
                        for frame in down.drain(..).take(some) {
                            pair.client.handle(pair.now, &frame);
                        }
                    };
                    if !late {
                        deliver(&mut pair, &mut up, &mut down);
                    }
                    pair.client.table.set_lane(LaneId(lane));
                    pair.server.table.set_lane(LaneId(lane));
                    if late {
                        // What the new lane brings first.
                        let (fresh_up, fresh_down) = (pair.client.say(2), pair.server.say(2));
                        for frame in fresh_up {
                            pair.server.handle(pair.now, &frame);
                        }
                        for frame in fresh_down {
                            pair.client.handle(pair.now, &frame);
                        }
                        deliver(&mut pair, &mut up, &mut down);
                    }
                }
                Step::Wait => {
                    pair.now += ACK_DELAY;
                    (pair.client.now, pair.server.now) = (pair.now, pair.now);
                    pair.client.table.handle_timeout(pair.now);
                    pair.server.table.handle_timeout(pair.now);
                }
            }
            while let Some(event) = pair.server.table.poll_event() {
                if let RelayedEvent::Incoming { flow, .. } = event {
                    prop_assert!(far.is_none(), "opened twice");
                    pair.server.table.accept(flow);
                    far = Some(flow);
                }
            }
            prop_assert!(pair.client.table.held() <= MOST);
            prop_assert!(pair.server.table.held() <= MOST);
        }
        // The last lane stays.
        for frame in up {
            pair.server.handle(pair.now, &frame);
        }
        for frame in down {
            pair.client.handle(pair.now, &frame);
        }
        pair.settle();
        while let Some(event) = pair.server.table.poll_event() {
            if let RelayedEvent::Incoming { flow, .. } = event {
                prop_assert!(far.is_none(), "opened twice");
                pair.server.table.accept(flow);
                far = Some(flow);
            }
        }
        let far = far.expect("the open came through");
        pair.settle();
        pair.client.table.finish(near);
        pair.server.table.finish(far);
        for _ in 0..40 {
            pair.settle();
            pair.client.drain(near, usize::MAX);
            pair.server.drain(far, usize::MAX);
        }
        prop_assert!(pair.server.got == all[..sent_up]);
        prop_assert!(pair.client.got == all[..sent_down]);
        prop_assert!(pair.client.ended && pair.server.ended);
        pair.client.table.release(near);
        pair.server.table.release(far);
        pair.settle();
        prop_assert!(pair.client.table.is_empty() && pair.server.table.is_empty());
        prop_assert_eq!(pair.client.table.stats().violations + pair.server.table.stats().violations, 0);
        prop_assert_eq!(pair.client.table.stats().gaps + pair.server.table.stats().gaps, 0);
        prop_assert_eq!(pair.client.table.stats().ended_for_memory + pair.server.table.stats().ended_for_memory, 0);
    }
}
