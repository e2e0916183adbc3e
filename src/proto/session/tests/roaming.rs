//! Datagram lanes that join, fall silent, move, and carry more or less than they did.

use adit_netstack::Offload;

use super::{millis, secs};
use crate::proto::lossy_pair::{Flying, LossyPair, Way, address, room, server_at};
use crate::proto::pair::Pair;
use crate::proto::path::DatagramPath;
use crate::proto::rekey::RekeyLimits;
use crate::proto::session::{OpenError, Opened, Scope, SessionEvent, Settings};
use crate::wire::{DatagramType, JOIN_DATAGRAM_LEN, LaneId, datagram_type};

const FIRST: LaneId = LaneId::FIRST;

fn good(seed: u64) -> LossyPair {
    LossyPair::confirmed(Way::default(), Settings::default(), seed)
}

fn join(pair: &mut LossyPair) -> LaneId {
    let now = pair.now;
    pair.client()
        .join_datagram(now, DatagramPath::to(server_at()))
        .unwrap()
}

#[test]
fn a_lane_joins_whatever_of_the_three_messages_is_lost() {
    for lost in 0..4 {
        let mut pair = good(1);
        let lane = join(&mut pair);
        pair.pass(millis(lost * 25 + 5));
        if lost < 3 {
            pair.flying.clear();
        }
        pair.pass(millis(600));
        for events in [&pair.client_events, &pair.server_events] {
            let confirmed = events
                .iter()
                .filter(|event| **event == SessionEvent::LaneConfirmed(lane));
            assert_eq!(confirmed.count(), 1, "lost at {lost}");
        }
        pair.send(false, lane, b"down");
        pair.pass(millis(50));
        assert_eq!(pair.at_client, [b"down"]);
        assert_eq!(pair.errors, []);
    }
}

#[test]
fn a_join_that_comes_again_late_changes_nothing() {
    let mut pair = good(2);
    let lane = join(&mut pair);
    pair.drain();
    let copy = pair.flying.last().unwrap().bytes.clone();
    assert_eq!(copy.len(), JOIN_DATAGRAM_LEN);
    pair.pass(secs(1));
    let now = pair.now;
    let elsewhere = DatagramPath::to(address(66, 6));
    assert_eq!(
        pair.server().handle_join_datagram(now, elsewhere, &copy),
        Ok(lane)
    );
    assert_eq!(
        pair.server().datagram_path(lane).map(|path| path.remote),
        Some(pair.client_at)
    );
    pair.server().remove_lane(now, lane);
    assert_eq!(
        pair.server().handle_join_datagram(now, elsewhere, &copy),
        Err(OpenError::LaneId {
            found: lane,
            highest: lane
        })
    );
}

#[test]
fn an_unproven_lane_is_sent_less_than_it_sent() {
    let mut pair = good(3);
    let lane = join(&mut pair);
    pair.drain();
    let copy = pair.flying.last().unwrap().bytes.clone();
    pair.flying.clear();
    pair.way.cut = true;
    let now = pair.now;
    let elsewhere = DatagramPath::to(address(66, 6));
    pair.server()
        .handle_join_datagram(now, elsewhere, &copy)
        .unwrap();
    let mut sent = 0;
    let mut out = Vec::new();
    for _ in 0..400 {
        pair.now += millis(50);
        let now = pair.now;
        let server = pair.server();
        server.handle_timeout(now);
        while let Some(to) = server.poll_control(now, &mut out) {
            sent += if to == lane { out.len() } else { 0 };
        }
        while let Some((to, _)) = server.poll_probe(now, &mut out) {
            sent += if to == lane { out.len() } else { 0 };
        }
    }
    assert!(sent > 0 && sent <= copy.len(), "{sent} bytes");
    assert!(pair.server().datagram_path(lane).is_some());
}

#[test]
fn a_lane_leads_to_who_has_echoed_whoever_repeats_its_join() {
    let mut pair = good(16);
    let lane = join(&mut pair);
    pair.drain();
    let copy = pair.flying.last().unwrap().bytes.clone();
    // The JoinOk is on its way to the client.
    pair.pass(millis(30));
    let now = pair.now;
    let elsewhere = DatagramPath::to(address(66, 6));
    assert_eq!(
        pair.server().handle_join_datagram(now, elsewhere, &copy),
        Ok(lane)
    );
    // Until its echo is there, and not until an answer to another challenge could be.
    pair.pass(millis(46));
    assert!(
        pair.server_events
            .contains(&SessionEvent::LaneConfirmed(lane))
    );
    assert_eq!(
        pair.server().datagram_path(lane).map(|path| path.remote),
        Some(pair.client_at)
    );
    pair.send(false, lane, b"down");
    pair.pass(millis(50));
    assert_eq!(pair.at_client, [b"down"]);
}

#[test]
fn an_echo_that_was_not_asked_for_there_moves_no_lane() {
    let mut pair = good(17);
    let lane = join(&mut pair);
    pair.pass(millis(55));
    // The client's echo; somebody sends it on from elsewhere, and is faster.
    let echoes = |flying: &Flying| flying.to == server_at();
    let thief = DatagramPath::to(address(66, 6));
    let echo = pair.flying.iter().find(|flying| echoes(flying)).unwrap();
    let mut echo = echo.bytes.clone();
    let now = pair.now;
    pair.server().open_datagram(now, thief, &mut echo).unwrap();
    assert!(pair.server().lanes().any(|known| known == lane));
    assert_eq!(
        pair.server().datagram_path(lane).map(|path| path.remote),
        Some(pair.client_at)
    );
}

#[test]
fn unanswered_data_makes_a_lane_silent_within_a_second_and_dead_after_10() {
    let mut pair = good(4);
    pair.pass(secs(2));
    pair.way.cut = true;
    pair.client_events.clear();
    pair.send(true, FIRST, b"anybody?");
    pair.pass(millis(650));
    assert_eq!(pair.client_events, []);
    pair.pass(millis(50));
    assert_eq!(pair.client_events, [SessionEvent::LaneSilent(FIRST)]);
    assert!(pair.client().is_silent(FIRST));
    pair.pass(millis(9600));
    assert_eq!(pair.client_events.len(), 1);
    pair.pass(millis(100));
    assert_eq!(pair.client_events[1..], [SessionEvent::LaneDead(FIRST)]);
}

#[test]
fn a_silent_lane_that_speaks_again_says_so_within_two_seconds() {
    let mut pair = good(5);
    pair.pass(secs(2));
    pair.way.cut = true;
    pair.send(true, FIRST, b"anybody?");
    pair.pass(secs(4));
    pair.client_events.clear();
    pair.way.cut = false;
    pair.pass(secs(2));
    assert_eq!(pair.client_events, [SessionEvent::LaneHeard(FIRST)]);
    assert_eq!(pair.client().stats().lanes_silent, 1);
}

#[test]
fn packets_leave_by_another_lane_while_the_newest_is_silent() {
    let mut pair = good(18);
    let lane = join(&mut pair);
    pair.pass(secs(1));
    let now = pair.now;
    let used = pair.client().lane_for(now, Default::default());
    assert_eq!(used, Some(lane));
    let index = pair.client().lane_index(lane).unwrap();
    let lossy = pair.client().lanes[index].lossy.as_mut().unwrap();
    lossy.paths.set(DatagramPath::to(address(99, 9)));
    pair.send(true, lane, b"anybody?");
    pair.pass(secs(2));
    assert!(pair.client().is_silent(lane));
    let now = pair.now;
    let used = pair.client().lane_for(now, Default::default());
    assert_eq!(used, Some(FIRST));
}

#[test]
fn a_silent_lane_dies_sooner_when_another_speaks() {
    let mut pair = good(6);
    let lane = join(&mut pair);
    pair.pass(secs(1));
    // All that is for the first lane is lost; both have the same address, so by the lane's byte.
    pair.client_events.clear();
    let now = pair.now;
    let path = DatagramPath::to(address(99, 9));
    let index = pair.client().lane_index(FIRST).unwrap();
    let lossy = pair.client().lanes[index].lossy.as_mut().unwrap();
    lossy.paths.set(path);
    pair.send(true, FIRST, b"anybody?");
    pair.pass(secs(4));
    assert_eq!(
        pair.client_events,
        [
            SessionEvent::LaneSilent(FIRST),
            SessionEvent::LaneDead(FIRST)
        ]
    );
    assert!(pair.now < now + secs(5));
    assert_eq!(
        pair.client().lanes().collect::<Vec<_>>(),
        [lane],
        "the other goes on"
    );
}

#[test]
fn an_idle_lane_lives_for_hours_and_speaks_little() {
    let mut pair = good(7);
    pair.pass(secs(10));
    let before = pair.client().lane_stats(FIRST).unwrap().outgoing.sent;
    pair.client_events.clear();
    pair.pass(secs(3600));
    assert_eq!(pair.client_events, []);
    let spoken = pair.client().lane_stats(FIRST).unwrap().outgoing.sent - before;
    assert!((360..=1500).contains(&spoken), "{spoken} in an hour");
}

#[test]
fn a_client_that_moves_is_followed_within_two_round_trips() {
    let mut pair = good(8);
    pair.pass(secs(2));
    let moved = address(2, 2000);
    pair.client_at = moved;
    pair.send(true, FIRST, b"from elsewhere");
    pair.pass(millis(60));
    assert_ne!(
        pair.server().datagram_path(FIRST),
        Some(DatagramPath::to(moved)),
        "not before it echoes"
    );
    pair.pass(millis(50));
    assert_eq!(
        pair.server().datagram_path(FIRST),
        Some(DatagramPath::to(moved))
    );
    assert!(pair.server_events.contains(&SessionEvent::LaneMoved(FIRST)));
    pair.send(false, FIRST, b"follows");
    pair.pass(millis(50));
    assert_eq!(pair.at_client, [b"follows"]);
}

#[test]
fn a_client_on_another_network_is_followed_though_it_has_nothing_to_say() {
    let mut pair = good(15);
    pair.pass(secs(2));
    let now = pair.now;
    pair.client_at = address(2, 2000);
    pair.client().handle_way_changed(now, FIRST);
    assert_eq!(pair.client().max_datagram(FIRST), Some(1200));
    pair.pass(secs(1));
    assert_eq!(
        pair.server().datagram_path(FIRST).map(|path| path.remote),
        Some(pair.client_at)
    );
    assert_eq!(pair.client().max_datagram(FIRST), Some(1464));
    assert_eq!(pair.server().max_datagram(FIRST), Some(1464));
}

#[test]
fn a_move_survives_loss() {
    for seed in 0..20 {
        let way = Way {
            loss: 300,
            ..Way::bad()
        };
        let mut pair = LossyPair::confirmed(way, Settings::default(), seed);
        pair.client_at = address(2, 2000);
        for _ in 0..150 {
            pair.send(true, FIRST, b"from elsewhere");
            pair.pass(millis(20));
        }
        assert_eq!(
            pair.server().datagram_path(FIRST).map(|path| path.remote),
            Some(pair.client_at),
            "seed {seed}"
        );
    }
}

#[test]
fn what_somebody_forwards_from_elsewhere_gets_three_times_its_length_and_no_more() {
    let mut pair = good(9);
    pair.pass(secs(2));
    pair.send(true, FIRST, b"stolen");
    let stolen = pair.flying.pop().unwrap().bytes;
    let now = pair.now;
    let thief = DatagramPath::to(address(66, 6));
    let mut out = stolen.clone();
    pair.server().open_datagram(now, thief, &mut out).unwrap();
    let mut sent = 0;
    for _ in 0..100 {
        pair.now += millis(50);
        let now = pair.now;
        pair.server().handle_timeout(now);
        while let Some(lane) = pair.server().poll_control(now, &mut out) {
            assert_ne!(pair.server().datagram_path(lane), Some(thief));
        }
        while let Some((_, path)) = pair.server().poll_probe(now, &mut out) {
            sent += if path == thief { out.len() } else { 0 };
        }
    }
    assert!(sent > 0 && sent <= 3 * stolen.len(), "{sent} bytes");
    assert_eq!(
        pair.server().datagram_path(FIRST).map(|path| path.remote),
        Some(pair.client_at)
    );
}

#[test]
fn an_ethernet_path_is_found_within_a_second_and_goes_by_the_inner_mtu() {
    let mut pair = good(10);
    pair.pass(secs(1));
    assert_eq!(pair.client().max_datagram(FIRST), Some(1464));
    assert_eq!(pair.server().max_datagram(FIRST), Some(1464));
    pair.send(true, FIRST, &[7; 1400]);
    pair.pass(millis(50));
    assert_eq!(pair.at_server, [vec![7; 1400]]);
}

#[test]
fn a_path_that_comes_to_carry_less_is_found_out_and_packets_pass_again() {
    let mut pair = good(11);
    pair.pass(secs(2));
    pair.way.mtu = 1320;
    pair.pass(secs(30));
    let most = pair.client().max_datagram(FIRST).unwrap();
    assert!((1304..=1320).contains(&most), "{most}");
    pair.send(true, FIRST, &[7; 1400]);
    pair.pass(millis(50));
    assert_eq!(pair.at_server, [vec![7; 1400]]);
    assert_eq!(pair.client().mtu_stats(FIRST).unwrap().black_holes, 1);
}

#[test]
fn long_datagrams_lost_among_short_ones_bring_the_base_back_at_once() {
    let mut pair = good(12);
    pair.pass(secs(2));
    for _ in 0..10 {
        pair.client().handle_datagram_acknowledged(FIRST, 100);
        pair.client().handle_datagram_lost(FIRST, 1433);
    }
    assert_eq!(pair.client().max_datagram(FIRST), Some(1200));
    pair.pass(millis(100));
    assert_eq!(
        pair.client().max_datagram(FIRST),
        Some(1464),
        "a mistake costs a round trip"
    );
}

#[test]
fn what_the_network_says_is_too_big_is_believed_of_that_direction() {
    let mut pair = good(13);
    pair.pass(secs(2));
    pair.client().handle_too_big(FIRST, 1300);
    pair.pass(secs(2));
    assert_eq!(pair.client().max_datagram(FIRST), Some(1300));
    assert_eq!(pair.server().max_datagram(FIRST), Some(1464));
}

#[test]
fn no_two_lanes_that_live_share_a_low_byte() {
    let mut pair = good(14);
    for _ in 0..300 {
        let lane = join(&mut pair);
        assert_ne!(lane.0 as u8, 0, "that is the first lane's");
        let now = pair.now;
        pair.client().remove_lane(now, lane);
    }
}

/// Delivers what both ends have to say, over whichever lane.
fn carry(pair: &mut Pair, path: DatagramPath) {
    let now = pair.now;
    let mut out = Vec::new();
    for _ in 0..100 {
        let mut quiet = true;
        for up in [true, false] {
            let (from, to) = match up {
                true => (&mut pair.client, &mut pair.server),
                false => (&mut pair.server, &mut pair.client),
            };
            while let Some(lane) = from.poll_control(now, &mut out) {
                quiet = false;
                let opened = match (from.datagram_path(lane), datagram_type(&out)) {
                    (Some(_), Some(DatagramType::Join)) => {
                        to.handle_join_datagram(now, path, &out).map(|_| ())
                    }
                    (Some(_), _) => to.open_datagram(now, path, &mut out).map(|_| ()),
                    (None, _) => to.open(now, lane, &mut out).map(|_| ()),
                };
                assert_eq!(opened, Ok(()));
            }
            while from.poll_probe(now, &mut out).is_some() {
                quiet = false;
                assert_eq!(to.open_datagram(now, path, &mut out), Ok(Opened::Control));
            }
        }
        if quiet {
            return;
        }
    }
    panic!("the two never stop talking");
}

#[test]
fn a_session_of_a_stream_goes_on_over_datagrams_and_back() {
    let rekey = RekeyLimits {
        age: secs(60),
        ..RekeyLimits::default()
    };
    let settings = Settings {
        rekey,
        ..Settings::default()
    };
    let mut pair = Pair::confirmed(settings);
    let path = DatagramPath::to(server_at());
    let lane = pair.client.join_datagram(pair.now, path).unwrap();
    carry(&mut pair, path);
    for session in [&mut pair.client, &mut pair.server] {
        assert!(session.datagram_path(lane).is_some());
        assert_eq!(session.lane_for(pair.now, Default::default()), Some(lane));
        session.remove_lane(pair.now, FIRST);
    }
    let mut number = 0u8;
    let mut exchange = |pair: &mut Pair, lane: LaneId| {
        number += 1;
        let now = pair.now;
        let by_datagrams = pair.client.datagram_path(lane).is_some();
        let mut buf = if by_datagrams {
            room(&[number])
        } else {
            crate::proto::pair::room(&[number])
        };
        pair.client
            .seal_packet(now, lane, &mut buf, Offload::default())
            .unwrap();
        let opened = if by_datagrams {
            pair.server.open_datagram(now, path, &mut buf)
        } else {
            pair.server.open(now, lane, &mut buf)
        };
        let Ok(Opened::Packet { range, .. }) = opened else {
            panic!("{opened:?}");
        };
        assert_eq!(buf[range], [number]);
    };
    exchange(&mut pair, lane);
    // A rekey, all of it over datagrams.
    pair.now += secs(61);
    pair.client.handle_timeout(pair.now);
    pair.server.handle_timeout(pair.now);
    carry(&mut pair, path);
    assert_eq!((pair.client.epoch(), pair.server.epoch()), (1, 1));
    exchange(&mut pair, lane);
    // Back to a stream, in the new epoch, with the same source numbers.
    let (stream, frame) = pair.client.join_frame(pair.now).unwrap();
    assert_eq!(pair.server.handle_join(pair.now, &frame), Ok(stream));
    carry(&mut pair, path);
    exchange(&mut pair, stream);
    exchange(&mut pair, lane);
    assert_eq!(pair.server.stats().packets_opened, 4);
    assert_eq!(pair.server.sources.highest(), Some(3));
}

#[test]
fn a_datagram_late_by_an_epoch_opens_for_a_while_and_then_ends_nothing() {
    let mut pair = good(17);
    pair.pass(secs(1));
    let late: Vec<_> = (0..2)
        .map(|number| {
            pair.send(true, FIRST, &[number]);
            pair.flying.pop().unwrap().bytes
        })
        .collect();
    pair.pass(secs(120));
    assert_eq!(pair.server().epoch(), 1);
    assert_eq!(pair.client().epoch(), 1);
    let path = DatagramPath::to(pair.client_at);
    let now = pair.now;
    let opened = pair.server().open_datagram(now, path, &mut late[0].clone());
    assert!(matches!(opened, Ok(Opened::Packet { .. })), "{opened:?}");
    pair.pass(secs(2));
    let now = pair.now;
    let error = pair
        .server()
        .open_datagram(now, path, &mut late[1].clone())
        .unwrap_err();
    assert_eq!(error, OpenError::Epoch { found: 0 });
    assert_eq!(error.scope(), Scope::Frame);
}
