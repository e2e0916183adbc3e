//! Two honest ends over lanes that delay, stall and break at random: whatever happens, nothing is
//! delivered twice or changed, neither end finds fault with the other, and both recover.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::{millis, secs};
use crate::proto::liveness::LivenessLimits;
use crate::proto::pair::{Pair, client_config, responder, sealed};
use crate::proto::rekey::RekeyLimits;
use crate::proto::session::{OpenError, Opened, Session, SessionEvent, Settings};
use crate::wire::LaneId;

/// What may happen.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// An end sends a packet, if it has a lane.
    Send { up: bool },
    /// Up to that many frames arrive, lane by lane.
    Arrive { up: bool, frames: usize },
    /// The client opens a connection; its Join arrives, or is lost with it.
    Join { arrives: bool },
    /// A connection breaks, with all that is under way on it.
    Break { which: usize },
    /// Time passes.
    Pass { millis: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any::<bool>().prop_map(|up| Step::Send { up }),
        6 => (any::<bool>(), 1usize..20).prop_map(|(up, frames)| Step::Arrive { up, frames }),
        1 => prop::bool::weighted(0.8).prop_map(|arrives| Step::Join { arrives }),
        1 => any::<usize>().prop_map(|which| Step::Break { which }),
        3 => (0u64..3000).prop_map(|millis| Step::Pass { millis }),
    ]
}

type Queues = BTreeMap<LaneId, VecDeque<Vec<u8>>>;

/// The two ends, and every connection between them.
struct World {
    pair: Pair,
    up: Queues,
    down: Queues,
    sent: u32,
    at_client: Vec<u32>,
    at_server: Vec<u32>,
}

impl World {
    fn new() -> Self {
        let rekey = RekeyLimits {
            age: secs(4),
            frames: 60,
            ..RekeyLimits::default()
        };
        let settings = Settings {
            rekey,
            liveness: LivenessLimits::default(),
            ..Settings::default()
        };
        let mut config = client_config();
        config.settings = settings;
        let mut pair = Pair::with(&config, &responder(settings));
        pair.run();
        let first = || [(LaneId::FIRST, VecDeque::new())].into();
        let (up, down) = (first(), first());
        Self {
            pair,
            up,
            down,
            sent: 0,
            at_client: Vec::new(),
            at_server: Vec::new(),
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Send { up } => self.send(up),
            Step::Arrive { up, frames } => self.arrive(up, frames),
            Step::Join { arrives } => self.join(arrives),
            Step::Break { which } => {
                let lane = self.up.keys().nth(which % self.up.len().max(1)).copied();
                if let Some(lane) = lane {
                    self.lose(lane);
                }
            }
            Step::Pass { millis: ms } => {
                self.pair.now += millis(ms);
                self.pair.client.handle_timeout(self.pair.now);
                self.pair.server.handle_timeout(self.pair.now);
            }
        }
        self.drain();
    }

    fn send(&mut self, up: bool) {
        let now = self.pair.now;
        let (session, queues) = match up {
            true => (&mut self.pair.client, &mut self.up),
            false => (&mut self.pair.server, &mut self.down),
        };
        let Some(lane) = session.lane_for(now, Default::default()) else {
            return;
        };
        let frame = sealed(session, now, lane, &self.sent.to_be_bytes());
        self.sent += 1;
        queues.get_mut(&lane).unwrap().push_back(frame);
    }

    fn arrive(&mut self, up: bool, frames: usize) {
        let now = self.pair.now;
        let (session, queues, packets) = match up {
            true => (&mut self.pair.server, &mut self.up, &mut self.at_server),
            false => (&mut self.pair.client, &mut self.down, &mut self.at_client),
        };
        for (lane, queue) in queues {
            for mut frame in queue.drain(..frames.min(queue.len())) {
                if let Some(packet) = open(session, now, *lane, &mut frame) {
                    packets.push(packet);
                }
            }
        }
    }

    fn join(&mut self, arrives: bool) {
        let now = self.pair.now;
        let Some((lane, frame)) = self.pair.client.join_frame(now) else {
            return;
        };
        if arrives {
            match self.pair.server.handle_join(now, &frame) {
                Ok(joined) => assert_eq!(joined, lane),
                Err(error) => assert_eq!(error, OpenError::TooManyLanes),
            }
        }
        self.up.insert(lane, VecDeque::new());
        self.down.insert(lane, VecDeque::new());
    }

    fn lose(&mut self, lane: LaneId) {
        self.up.remove(&lane);
        self.down.remove(&lane);
        self.pair.client.remove_lane(self.pair.now, lane);
        self.pair.server.remove_lane(self.pair.now, lane);
    }

    fn drain(&mut self) {
        self.pair.drain();
        for (lane, frame) in self.pair.up.drain(..) {
            self.up.get_mut(&lane).unwrap().push_back(frame);
        }
        for (lane, frame) in self.pair.down.drain(..) {
            self.down.get_mut(&lane).unwrap().push_back(frame);
        }
        let events = self
            .pair
            .client_events
            .drain(..)
            .chain(self.pair.server_events.drain(..));
        for event in events.collect::<Vec<_>>() {
            match event {
                SessionEvent::LaneDead(lane) => self.lose(lane),
                SessionEvent::Confirmed | SessionEvent::LaneConfirmed(_) => {}
                SessionEvent::Configured(_)
                | SessionEvent::PeerClosed(_)
                | SessionEvent::LaneSilent(_)
                | SessionEvent::LaneHeard(_)
                | SessionEvent::LaneMoved(_)
                | SessionEvent::Enrol(_)
                | SessionEvent::Enrolled { .. } => panic!("{event:?}"),
            }
        }
    }

    /// A connection that works, and time for what was given up.
    fn heal(&mut self) {
        for lane in self.up.keys().copied().collect::<Vec<_>>() {
            self.lose(lane);
        }
        self.join(true);
        for _ in 0..400 {
            self.take(Step::Pass { millis: 50 });
            self.arrive(true, usize::MAX);
            self.arrive(false, usize::MAX);
        }
    }
}

fn open(
    session: &mut Session,
    now: std::time::Instant,
    lane: LaneId,
    frame: &mut [u8],
) -> Option<u32> {
    match session.open(now, lane, frame) {
        Ok(Opened::Packet { range, .. }) => {
            Some(u32::from_be_bytes(frame[range].try_into().unwrap()))
        }
        Ok(Opened::Control) => None,
        // A lane that one end has given up, and an epoch that ended while a frame was stuck.
        Err(OpenError::Lane { .. } | OpenError::Epoch { .. }) => None,
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn honest_ends_never_fall_out_and_always_recover(
        steps in proptest::collection::vec(step(), 1..250)
    ) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
        }
        world.heal();
        let (before_up, before_down) = (world.at_server.len(), world.at_client.len());
        world.take(Step::Send { up: true });
        world.take(Step::Send { up: false });
        world.arrive(true, usize::MAX);
        world.arrive(false, usize::MAX);
        prop_assert_eq!(world.at_server.len(), before_up + 1, "uplink is back");
        prop_assert_eq!(world.at_client.len(), before_down + 1, "downlink is back");
        let once = world.at_server.iter().chain(&world.at_client).collect::<BTreeSet<_>>();
        prop_assert_eq!(once.len(), world.at_server.len() + world.at_client.len());
        for session in [&world.pair.client, &world.pair.server] {
            let drops = &session.stats().drops;
            prop_assert_eq!(drops.failed_opens + drops.replayed_counter + drops.bad_control, 0);
            prop_assert_eq!(drops.control_overflow + drops.event_overflow, 0);
        }
        prop_assert_eq!(world.pair.client.closed(), None);
        prop_assert_eq!(world.pair.server.closed(), None);
    }
}
