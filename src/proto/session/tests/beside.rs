//! Lanes side by side.

use adit_netstack::Offload;

use super::seal_raw;
use crate::proto::pair::{Pair, room};
use crate::proto::session::{Scope, Settings};
use crate::proto::stats::Again;
use crate::wire::{InnerType, LaneId};

const FIRST: LaneId = LaneId::FIRST;

/// A pair with so many lanes side by side.
fn group(lanes: usize) -> (Pair, Vec<LaneId>) {
    let mut pair = Pair::confirmed(Settings::default());
    let mut group = vec![FIRST];
    group.extend((1..lanes).map(|_| pair.join()));
    for lane in &group {
        assert!(pair.client.stand_beside(*lane, FIRST));
    }
    pair.run();
    (pair, group)
}

#[test]
fn both_ends_know_the_lanes_that_stand_side_by_side() {
    let (mut pair, lanes) = group(3);
    assert_eq!(pair.client.beside(), lanes);
    assert_eq!(pair.server.beside(), lanes);
    pair.client.remove_lane(pair.now, lanes[1]);
    pair.server.remove_lane(pair.now, lanes[1]);
    assert_eq!(pair.client.beside(), [lanes[0], lanes[2]]);
    assert_eq!(pair.server.beside(), [lanes[0], lanes[2]]);
    assert_eq!(pair.errors, []);
}

#[test]
fn newer_lane_without_a_word_is_alone() {
    let (mut pair, _) = group(2);
    let newer = pair.join();
    assert!(pair.client.beside().is_empty());
    assert!(pair.server.beside().is_empty());
    // It begins a group of its own, and the old lanes are not of it.
    assert!(pair.client.stand_beside(newer, newer));
    pair.run();
    assert_eq!(pair.server.beside(), [newer]);
    assert_eq!(pair.client.beside(), [newer]);
}

#[test]
fn server_speaks_of_no_groups_and_a_client_hears_of_none() {
    let (mut pair, lanes) = group(2);
    assert!(!pair.server.stand_beside(lanes[0], lanes[1]));
    let mut inside = vec![InnerType::Beside.byte()];
    inside.extend_from_slice(&7u32.to_be_bytes());
    let mut frame = seal_raw(&mut pair.server, pair.now, FIRST, &inside);
    let error = pair.client.open(pair.now, FIRST, &mut frame).unwrap_err();
    assert_eq!(error.scope(), Scope::Session);
}

#[test]
fn copy_on_another_lane_is_delivered_once_and_counted_on_both_ends() {
    let (mut pair, lanes) = group(2);
    let number = pair.client.next_source();
    pair.client_sends(lanes[0], b"dear");
    let mut copy = room(b"dear");
    let (offload, again) = (Offload::default(), Again::Copy);
    pair.client
        .seal_again(pair.now, lanes[1], number, &mut copy, offload, again)
        .unwrap();
    pair.up.push_front((lanes[1], copy));
    pair.run();
    assert_eq!(pair.at_server, [b"dear".to_vec()]);
    let sent = pair.client.lane_stats(lanes[1]).unwrap();
    assert_eq!(sent.outgoing.copied, 1);
    // The copy was first.
    let late = pair.server.lane_stats(lanes[0]).unwrap();
    assert_eq!(late.incoming.wasted, 1);
    assert_eq!(pair.server.stats().drops.duplicate_packets, 1);
}
