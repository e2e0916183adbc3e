//! Lanes that fall silent, break or go.

use adit_netstack::Offload;

use super::secs;
use crate::proto::pair::{Pair, room};
use crate::proto::session::{OpenError, Scope, SealError, SessionEvent, Settings};
use crate::wire::LaneId;

const FIRST: LaneId = LaneId::FIRST;

fn is_dead(events: &[SessionEvent]) -> bool {
    events.contains(&SessionEvent::LaneDead(FIRST))
}

#[test]
fn a_silent_peer_is_lost_after_20_s() {
    let mut pair = Pair::confirmed(Settings::default());
    pair.cut.push(FIRST);
    pair.pass(secs(19));
    assert!(!is_dead(&pair.client_events) && !is_dead(&pair.server_events));
    pair.pass(secs(1));
    assert!(is_dead(&pair.client_events) && is_dead(&pair.server_events));
    assert_eq!(pair.client.stats().lanes_dead, 1);
    let lane = FIRST;
    let sealed = pair
        .client
        .seal_packet(pair.now, FIRST, &mut room(b"x"), Offload::default());
    assert_eq!(sealed, Err(SealError::Lane { lane }));
}

#[test]
fn a_peer_silent_to_data_is_lost_after_15_s() {
    let mut pair = Pair::confirmed(Settings::default());
    pair.cut.push(FIRST);
    pair.client_sends(FIRST, b"anybody?");
    pair.run();
    pair.pass(secs(14));
    assert!(!is_dead(&pair.client_events));
    pair.pass(secs(1));
    assert!(is_dead(&pair.client_events));
    assert!(!is_dead(&pair.server_events));
}

#[test]
fn an_idle_session_lives_for_hours_and_speaks_little() {
    let mut pair = Pair::confirmed(Settings::default());
    let before = pair.client.lane_stats(FIRST).unwrap().outgoing.sent;
    pair.pass(secs(3600));
    assert!(!is_dead(&pair.client_events) && !is_dead(&pair.server_events));
    assert_eq!(pair.errors, []);
    let spoken = pair.client.lane_stats(FIRST).unwrap().outgoing.sent - before;
    assert!((360..=900).contains(&spoken), "{spoken} frames in an hour");
}

#[test]
fn a_client_whose_first_frame_never_comes_is_given_up_after_10_s() {
    let mut pair = Pair::new(Settings::default());
    pair.cut.push(FIRST);
    pair.pass(secs(10));
    assert_eq!(pair.server_events, [SessionEvent::LaneDead(FIRST)]);
    assert!(!pair.server.is_confirmed());
}

#[test]
fn a_frame_that_does_not_open_kills_its_lane_and_not_the_session() {
    let mut pair = Pair::confirmed(Settings::default());
    let lane = pair.join();
    pair.client_sends(lane, b"packet");
    let (_, mut frame) = pair.up.pop_front().unwrap();
    frame[30] ^= 1;
    let error = pair.server.open(pair.now, lane, &mut frame).unwrap_err();
    assert_eq!(
        (error, error.scope()),
        (OpenError::Seal { failed: 1 }, Scope::Lane)
    );
    assert_eq!(
        pair.server.lane_for(pair.now, Default::default()),
        Some(FIRST)
    );
    pair.client_sends(lane, b"more");
    let (_, mut frame) = pair.up.pop_front().unwrap();
    assert_eq!(
        pair.server.open(pair.now, lane, &mut frame),
        Err(OpenError::Lane { lane })
    );
    pair.client_sends(FIRST, b"other lane");
    pair.run();
    assert_eq!(pair.at_server, [b"other lane"]);
    assert_eq!(
        pair.server.lane_stats(lane).unwrap().incoming.failed_opens,
        1
    );
}

#[test]
fn a_replayed_frame_kills_its_lane() {
    let mut pair = Pair::confirmed(Settings::default());
    pair.client_sends(FIRST, b"once");
    let (_, frame) = pair.up.pop_front().unwrap();
    assert!(
        pair.server
            .open(pair.now, FIRST, &mut frame.clone())
            .is_ok()
    );
    let error = pair
        .server
        .open(pair.now, FIRST, &mut frame.clone())
        .unwrap_err();
    assert!(matches!(error, OpenError::Counter { .. }));
    assert_eq!(error.scope(), Scope::Lane);
    assert_eq!(pair.server.stats().drops.replayed_counter, 1);
    assert_eq!(pair.server.lane_for(pair.now, Default::default()), None);
}

#[test]
fn a_frame_moved_to_another_lane_or_sent_back_does_not_open() {
    let mut pair = Pair::confirmed(Settings::default());
    let lane = pair.join();
    for _ in 0..8 {
        // Past every counter the other lane has seen.
        pair.client_sends(FIRST, b"packet");
    }
    let (_, frame) = pair.up.pop_back().unwrap();
    let moved = pair.server.open(pair.now, lane, &mut frame.clone());
    assert_eq!(moved, Err(OpenError::Seal { failed: 1 }));
    let reflected = pair.client.open(pair.now, FIRST, &mut frame.clone());
    assert_eq!(reflected, Err(OpenError::Seal { failed: 1 }));
}

#[test]
fn a_removed_lane_is_unknown_and_its_waiting_frames_are_counted() {
    let mut pair = Pair::confirmed(Settings::default());
    let lane = pair.join();
    let inside = [2, 0, 0, 0, 0, 0, 0, 0, 1];
    let mut ping = super::seal_raw(&mut pair.client, pair.now, lane, &inside);
    pair.server.open(pair.now, lane, &mut ping).unwrap();
    pair.server.remove_lane(pair.now, lane);
    pair.server.remove_lane(pair.now, lane);
    assert_eq!(pair.server.stats().drops.control_without_lane, 1);
    assert_eq!(
        pair.server.lane_for(pair.now, Default::default()),
        Some(FIRST)
    );
    pair.client_sends(lane, b"x");
    pair.run();
    assert_eq!(pair.errors, [OpenError::Lane { lane }]);
    assert_eq!(pair.server.stats().drops.unknown_lane, 1);
}

#[test]
fn what_a_lane_carried_stays_in_the_sums_when_it_has_gone() {
    let mut pair = Pair::confirmed(Settings::default());
    let lane = pair.join();
    for (lane, packet) in [(FIRST, "one"), (lane, "two"), (lane, "three")] {
        pair.client_sends(lane, packet.as_bytes());
    }
    pair.run();
    let (sent, came) = (pair.client.carried(), pair.server.carried());
    assert_eq!((sent.outgoing.packets, came.incoming.packets), (3, 3));
    // The Join is made before its lane is.
    assert_eq!(came.incoming.received, sent.outgoing.sent + 1);
    assert_eq!(sent.incoming.received, came.outgoing.sent);
    for id in [lane, FIRST] {
        pair.server.remove_lane(pair.now, id);
        assert_eq!(pair.server.carried(), came);
    }
    assert_eq!(pair.server.traffic().lanes, []);
    assert_eq!(pair.server.traffic().total, came);
}
