//! New lanes of a living session.

use super::{seal_raw, secs};
use crate::proto::pair::Pair;
use crate::proto::session::{MAX_LANES, OpenError, SessionEvent, Settings};
use crate::wire::{JOIN_LEN, LaneId, SealedFormatError};

const FIRST: LaneId = LaneId::FIRST;

#[test]
fn downlink_moves_to_a_joined_lane_only_after_the_echo() {
    let mut pair = Pair::confirmed(Settings::default());
    let (lane, frame) = pair.client.join_frame(pair.now).unwrap();
    assert_eq!(lane, LaneId(1));
    assert_eq!(pair.server.handle_join(pair.now, &frame), Ok(lane));
    let at = |pair: &mut Pair| pair.server.lane_for(pair.now, Default::default());
    assert_eq!(at(&mut pair), Some(FIRST));

    // JoinOk goes down on the new lane, the echo comes up on it.
    pair.drain();
    assert_eq!(pair.down.len(), 1);
    assert_eq!(pair.down[0].0, lane);
    assert_eq!(at(&mut pair), Some(FIRST));
    pair.run();
    assert_eq!(at(&mut pair), Some(lane));
    assert_eq!(
        pair.client_events.last(),
        Some(&SessionEvent::LaneConfirmed(lane))
    );
    assert_eq!(
        pair.server_events.last(),
        Some(&SessionEvent::LaneConfirmed(lane))
    );
    pair.client_sends(lane, b"up");
    pair.server_sends(lane, b"down");
    pair.run();
    assert_eq!(
        (&pair.at_server[0][..], &pair.at_client[0][..]),
        (&b"up"[..], &b"down"[..])
    );
    assert_eq!(pair.server.stats().lanes_joined, 1);
}

#[test]
fn less_is_sent_to_an_unproven_lane_than_three_times_what_it_sent() {
    let mut pair = Pair::confirmed(Settings::default());
    let (lane, frame) = pair.client.join_frame(pair.now).unwrap();
    pair.server.handle_join(pair.now, &frame).unwrap();
    pair.cut.push(lane);
    let mut sent = 0;
    for _ in 0..20 {
        pair.drain();
        sent += pair
            .down
            .drain(..)
            .filter(|(l, _)| *l == lane)
            .map(|(_, f)| f.len())
            .sum::<usize>();
        pair.up.clear();
        pair.now += secs(1);
        pair.server.handle_timeout(pair.now);
    }
    assert!(
        sent > 0 && sent <= 3 * frame.len(),
        "{sent} bytes for {}",
        frame.len()
    );
}

#[test]
fn a_replayed_join_is_refused() {
    let mut pair = Pair::confirmed(Settings::default());
    let (first, frame) = pair.client.join_frame(pair.now).unwrap();
    assert_eq!(pair.server.handle_join(pair.now, &frame), Ok(first));
    let refused = OpenError::LaneId {
        found: first,
        highest: first,
    };
    assert_eq!(pair.server.handle_join(pair.now, &frame), Err(refused));
    pair.run();
    pair.server.remove_lane(pair.now, first);
    assert_eq!(pair.server.handle_join(pair.now, &frame), Err(refused));
    let second = pair.join();
    let refused = OpenError::LaneId {
        found: first,
        highest: second,
    };
    assert_eq!(pair.server.handle_join(pair.now, &frame), Err(refused));
    assert_eq!(pair.server.stats().drops.refused_joins, 3);
}

#[test]
fn a_join_overtaken_by_63_later_ones_is_taken_once_and_by_64_not_at_all() {
    for (later, taken) in [(63, true), (64, false)] {
        let mut pair = Pair::confirmed(Settings::default());
        let (first, early) = pair.client.join_frame(pair.now).unwrap();
        for _ in 0..later {
            let (lane, late) = pair.client.join_frame(pair.now).unwrap();
            assert_eq!(pair.server.handle_join(pair.now, &late), Ok(lane));
            pair.run();
            pair.client.remove_lane(pair.now, lane);
            pair.server.remove_lane(pair.now, lane);
        }
        let refused = Err(OpenError::LaneId {
            found: first,
            highest: LaneId(1 + later),
        });
        let answer = pair.server.handle_join(pair.now, &early);
        assert_eq!(answer, if taken { Ok(first) } else { refused });
        assert_eq!(pair.server.handle_join(pair.now, &early), refused);
    }
}

#[test]
fn a_join_changed_at_any_byte_is_refused_and_spoils_nothing() {
    let mut pair = Pair::confirmed(Settings::default());
    let (lane, frame) = pair.client.join_frame(pair.now).unwrap();
    for index in 0..frame.len() {
        for bit in [1, 0x80] {
            let mut changed = frame.clone();
            changed[index] ^= bit;
            assert!(
                pair.server.handle_join(pair.now, &changed).is_err(),
                "byte {index}"
            );
        }
    }
    assert_eq!(pair.server.handle_join(pair.now, &frame), Ok(lane));
}

#[test]
fn a_join_of_any_other_length_is_refused() {
    let mut pair = Pair::confirmed(Settings::default());
    let (_, frame) = pair.client.join_frame(pair.now).unwrap();
    assert_eq!(frame.len(), JOIN_LEN);
    for len in 0..JOIN_LEN {
        let error = SealedFormatError::JoinLength { len };
        assert_eq!(
            pair.server.handle_join(pair.now, &frame[..len]),
            Err(error.into())
        );
    }
    let long = [&frame[..], &[0]].concat();
    assert!(pair.server.handle_join(pair.now, &long).is_err());
}

#[test]
fn an_identifier_without_the_keys_does_not_join() {
    let mut pair = Pair::confirmed(Settings::default());
    let mut other = Pair::confirmed(Settings::default());
    other.client.id = pair.server.id();
    let (_, frame) = other.client.join_frame(other.now).unwrap();
    assert_eq!(
        pair.server.handle_join(pair.now, &frame),
        Err(OpenError::Seal { failed: 1 })
    );
    let (_, frame) = pair.client.join_frame(pair.now).unwrap();
    let found = pair.server.id();
    other.server.id = crate::wire::SessionId(!found.0);
    assert_eq!(
        other.server.handle_join(pair.now, &frame),
        Err(OpenError::Session { found })
    );
}

#[test]
fn a_wrong_echo_does_not_confirm_and_the_lane_dies_after_10_s() {
    let mut pair = Pair::confirmed(Settings::default());
    let (lane, frame) = pair.client.join_frame(pair.now).unwrap();
    pair.server.handle_join(pair.now, &frame).unwrap();
    pair.drain();
    pair.down.clear();
    let echo = [&[0x0C][..], &[0; 16]].concat();
    let mut frame = seal_raw(&mut pair.client, pair.now, lane, &echo);
    pair.server.open(pair.now, lane, &mut frame).unwrap();
    assert_eq!(pair.server.stats().drops.stray_answers, 1);
    assert_eq!(
        pair.server.lane_for(pair.now, Default::default()),
        Some(FIRST)
    );
    pair.cut.push(lane);
    pair.pass(secs(21));
    assert!(pair.server_events.contains(&SessionEvent::LaneDead(lane)));
    assert!(pair.client_events.contains(&SessionEvent::LaneDead(lane)));
}

#[test]
fn an_unanswered_join_is_given_up_after_10_s() {
    let mut pair = Pair::confirmed(Settings::default());
    let (lane, _) = pair.client.join_frame(pair.now).unwrap();
    pair.pass(secs(9));
    assert!(!pair.client_events.contains(&SessionEvent::LaneDead(lane)));
    pair.pass(secs(1));
    assert!(pair.client_events.contains(&SessionEvent::LaneDead(lane)));
}

#[test]
fn a_join_confirms_a_session_whose_first_frame_was_lost() {
    let mut pair = Pair::new(Settings::default());
    pair.drain();
    pair.up.clear();
    let lane = pair.join();
    assert_eq!(pair.server_events[0], SessionEvent::Confirmed);
    assert_eq!(pair.server.lanes().collect::<Vec<_>>(), [lane]);
}

#[test]
fn packets_go_on_over_a_new_lane_after_the_old_one_died() {
    let mut pair = Pair::confirmed(Settings::default());
    pair.client_sends(FIRST, b"before");
    pair.run();
    pair.cut.push(FIRST);
    pair.pass(secs(25));
    assert_eq!(pair.client.lane_for(pair.now, Default::default()), None);
    let lane = pair.join();
    assert_eq!(
        pair.client.lane_for(pair.now, Default::default()),
        Some(lane)
    );
    pair.client_sends(lane, b"after");
    pair.server_sends(lane, b"back");
    pair.run();
    assert_eq!(pair.at_server, [&b"before"[..], b"after"]);
    assert_eq!(pair.at_client, [b"back"]);
}

#[test]
fn a_session_has_at_most_16_lanes_and_dead_ones_make_room() {
    let mut pair = Pair::confirmed(Settings::default());
    for _ in 1..MAX_LANES {
        pair.join();
    }
    assert_eq!(pair.client.lanes().count(), MAX_LANES);
    assert_eq!(pair.client.join_frame(pair.now), None);
    pair.client.remove_lane(pair.now, FIRST);
    let (_, frame) = pair.client.join_frame(pair.now).unwrap();
    assert_eq!(
        pair.server.handle_join(pair.now, &frame),
        Err(OpenError::TooManyLanes)
    );
    pair.server.remove_lane(pair.now, LaneId(2));
    assert!(pair.server.handle_join(pair.now, &frame).is_ok());
}

#[test]
fn a_client_that_joins_again_and_again_gives_up_its_oldest_try() {
    let mut pair = Pair::confirmed(Settings::default());
    for _ in 0..100 {
        let (lane, frame) = pair.client.join_frame(pair.now).unwrap();
        assert_eq!(pair.server.handle_join(pair.now, &frame), Ok(lane));
        assert!(pair.client.lanes.len() <= MAX_LANES && pair.server.lanes.len() <= MAX_LANES);
        pair.drain();
        pair.up.clear();
        pair.down.clear();
    }
    assert!(
        pair.client_events
            .contains(&SessionEvent::LaneDead(LaneId(1)))
    );
    assert!(
        pair.server_events
            .contains(&SessionEvent::LaneDead(LaneId(1)))
    );
    let lane = pair.join();
    assert_eq!(
        pair.server.lane_for(pair.now, Default::default()),
        Some(lane)
    );
    assert!(
        pair.server.lanes().any(|known| known == FIRST),
        "a confirmed lane is never given up"
    );
}

#[test]
fn only_a_client_makes_joins_and_only_a_server_takes_them() {
    let mut pair = Pair::confirmed(Settings::default());
    assert_eq!(pair.server.join_frame(pair.now), None);
    let (_, frame) = pair.client.join_frame(pair.now).unwrap();
    assert!(pair.client.handle_join(pair.now, &frame).is_err());
}
