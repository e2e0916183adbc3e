//! Sessions over datagrams: handshake, packets and control frames where the way loses, delays and
//! copies.

use std::collections::BTreeSet;

use adit_netstack::{Checksum, Gso, Offload};
use proptest::prelude::*;

use super::{millis, secs};
use crate::proto::load::LoadLimits;
use crate::proto::lossy_pair::{LossyPair, Way, address, room, server_at};
use crate::proto::path::DatagramPath;
use crate::proto::rekey::RekeyLimits;
use crate::proto::session::{OpenError, Opened, Scope, SealError, SessionEvent, Settings};
use crate::wire::{
    CloseReason, DATAGRAM_COUNTER_LIMIT, InnerConfig, InnerType, LaneId, datagram_handle,
};

const FIRST: LaneId = LaneId::FIRST;

fn good(seed: u64) -> LossyPair {
    LossyPair::confirmed(Way::default(), Settings::default(), seed)
}

#[test]
fn a_session_comes_about_in_two_round_trips_and_packets_pass_both_ways() {
    let mut pair = LossyPair::new(Way::default(), Settings::default(), 1);
    pair.pass(millis(120));
    assert!(pair.server().is_confirmed());
    assert_eq!(pair.pending.len(), 0);
    pair.send(true, FIRST, b"up");
    pair.send(false, FIRST, b"down");
    pair.pass(millis(30));
    assert_eq!(pair.at_server, [b"up"]);
    assert_eq!(pair.at_client, [b"down"]);
    assert_eq!(pair.errors, []);
    let rtt = pair.client().rtt(FIRST).unwrap();
    assert_eq!(rtt, millis(50));
}

#[test]
fn a_lost_init_or_reply_costs_a_quarter_of_a_second() {
    for cut in [10, 40] {
        let mut pair = LossyPair::new(Way::default(), Settings::default(), 2);
        pair.pass(millis(cut));
        pair.flying.clear();
        pair.pass(millis(450 - cut));
        assert!(pair.server().is_confirmed(), "cut at {cut} ms");
    }
}

#[test]
fn an_answer_to_an_earlier_init_is_good_on_a_slow_path() {
    let way = Way {
        delay: millis(400),
        ..Way::default()
    };
    let mut pair = LossyPair::new(way, Settings::default(), 3);
    pair.pass(millis(810));
    assert!(pair.client.is_some(), "the first reply made the session");
}

#[test]
fn a_client_whose_clock_went_back_is_challenged_and_served() {
    let mut pair = LossyPair::new(Way::default(), Settings::default(), 4);
    // The server started at second 50 of its clock.
    pair.clock = 10;
    pair.pass(millis(200));
    assert!(pair.server().is_confirmed());
    assert_eq!(pair.strangers.stats().challenges, 1);
}

#[test]
fn under_load_a_client_needs_one_round_trip_more_and_a_spoofed_one_gets_nowhere() {
    let mut pair = LossyPair::new(Way::default(), Settings::default(), 5);
    let limits = LoadLimits {
        inits_per_second: 0,
        unconfirmed: 512,
    };
    pair.strangers = crate::proto::DatagramResponder::new(
        std::sync::Arc::new(crate::proto::pair::responder(Settings::default())),
        limits,
        &mut pair.rng,
    );
    pair.drain();
    let init = pair.flying[0].bytes.clone();
    pair.pass(millis(120));
    assert_eq!(pair.strangers.stats().cookies, 1);
    assert!(pair.client.is_some());
    // The same Init from elsewhere, with the MACs of the one that was accepted or not.
    for port in 0..50 {
        let path = DatagramPath::to(address(77, port));
        let reception = pair
            .strangers
            .handle(pair.now, path, &init, 0, |_| panic!("looked up"));
        let crate::proto::Reception::Answer(answer) = reception else {
            panic!("{reception:?}");
        };
        assert!(answer.as_bytes().len() * 20 < init.len());
    }
}

#[test]
fn a_bad_way_loses_packets_and_nothing_else() {
    let mut pair = LossyPair::confirmed(Way::bad(), Settings::default(), 6);
    for number in 0..2000u32 {
        pair.send(true, FIRST, &number.to_be_bytes());
        pair.send(false, FIRST, &number.to_be_bytes());
        pair.pass(millis(1));
    }
    pair.pass(millis(100));
    for packets in [&pair.at_server, &pair.at_client] {
        let once: BTreeSet<_> = packets.iter().collect();
        assert_eq!(once.len(), packets.len(), "nothing twice");
        assert!((1850..1950).contains(&packets.len()), "{}", packets.len());
        assert!(!packets.is_sorted(), "late ones are delivered late");
    }
    let drops = pair.server().stats().drops.clone();
    assert!(drops.replayed_counter > 10);
    assert_eq!((drops.failed_opens, drops.duplicate_packets), (0, 0));
    assert!(
        pair.errors
            .iter()
            .all(|e| matches!(e, OpenError::Replayed(_)))
    );
}

#[test]
fn a_packet_sent_again_is_delivered_once() {
    let mut pair = good(7);
    let now = pair.now;
    let number = pair.client().alloc_source(1);
    for _ in 0..3 {
        let mut buf = room(b"again");
        pair.client()
            .seal_source(now, FIRST, number, &mut buf, Offload::default())
            .unwrap();
        pair.fly(true, server_at(), buf);
    }
    pair.pass(millis(50));
    assert_eq!(pair.at_server, [b"again"]);
    assert_eq!(pair.server().stats().drops.duplicate_packets, 2);
}

#[test]
fn source_numbers_go_on_beyond_32_bits() {
    let mut pair = good(8);
    pair.client().next_source = (1 << 32) - 2;
    for number in 0..1000u32 {
        pair.send(true, FIRST, &number.to_be_bytes());
    }
    // Far beyond what was seen: the low half alone says 2^32 - 2, and what follows is near it.
    pair.pass(millis(50));
    assert_eq!(pair.at_server.len(), 1000);
    assert_eq!(pair.server().sources.highest(), Some((1 << 32) + 997));
}

#[test]
fn a_packet_too_long_for_the_lane_goes_in_two_and_comes_in_one() {
    let way = Way {
        mtu: 1200,
        ..Way::default()
    };
    let mut pair = LossyPair::confirmed(way, Settings::default(), 9);
    assert_eq!(pair.client().max_datagram(FIRST), Some(1200));
    let now = pair.now;
    let packet: Vec<u8> = (0..1400u32).map(|n| n as u8).collect();
    let too_long = pair
        .client()
        .seal_packet(now, FIRST, &mut room(&packet), Offload::default());
    assert_eq!(
        too_long,
        Err(SealError::TooLong {
            len: 1433,
            most: 1200
        })
    );
    pair.send(true, FIRST, &packet);
    pair.send(true, FIRST, b"next");
    pair.pass(millis(50));
    assert_eq!(pair.at_server, [packet, b"next".to_vec()]);
    assert_eq!(pair.server().stats().packets_opened, 2);
}

#[test]
fn a_packet_longer_than_any_mtu_is_dropped() {
    let mut pair = good(16);
    let now = pair.now;
    let index = pair.client().lane_index(FIRST).unwrap();
    for (len, malformed) in [(9000, 0), (9001, 1)] {
        let mut datagram = room(&vec![7; len]);
        datagram[11..17].copy_from_slice(&[1, 0, 0, 0, malformed as u8, 0]);
        pair.client().seal(now, index, &mut datagram).unwrap();
        let path = DatagramPath::to(pair.client_at);
        pair.server()
            .open_datagram(now, path, &mut datagram)
            .unwrap();
        assert_eq!(pair.server().stats().drops.malformed_packets, malformed);
    }
}

#[test]
fn only_wire_packets_fit_a_datagram() {
    let mut pair = good(10);
    let now = pair.now;
    let mut buf = room(b"super");
    let offload = Offload {
        gso: Gso::Tcp { size: 2 },
        checksum: Checksum::Partial,
    };
    let sealed = pair.client().seal_packet(now, FIRST, &mut buf, offload);
    assert_eq!(sealed, Err(SealError::Length { len: buf.len() }));
    let sealed = pair
        .client()
        .seal_packet(now, FIRST, &mut [0; 33], Offload::default());
    assert_eq!(sealed, Err(SealError::Length { len: 33 }));
    let number = pair.client().alloc_source(1);
    assert_eq!(number, 0, "what failed took no number");
}

#[test]
fn configuration_arrives_however_bad_the_way() {
    for seed in 0..20 {
        let way = Way {
            loss: 400,
            ..Way::bad()
        };
        let mut pair = LossyPair::confirmed(way, Settings::default(), seed);
        let config = InnerConfig {
            mtu: 1300,
            ..InnerConfig::default()
        };
        pair.server().configure(config.clone());
        pair.pass(secs(20));
        let told = pair
            .client_events
            .iter()
            .filter(|event| **event == SessionEvent::Configured(config.clone()));
        assert_eq!(told.count(), 1, "seed {seed}");
        assert!(pair.server().config.unacknowledged.is_none(), "seed {seed}");
    }
}

#[test]
fn a_close_is_said_three_times() {
    let mut pair = good(11);
    let now = pair.now;
    pair.server().close(now, CloseReason::ShuttingDown);
    pair.flying.clear();
    let mut said = 0;
    for _ in 0..200 {
        pair.drain();
        said += pair.flying.iter().filter(|f| f.from == server_at()).count();
        pair.flying.clear();
        pair.pass(millis(10));
    }
    assert_eq!(said, 3);
    assert_eq!(pair.server().poll_timeout(), None);
}

#[test]
fn rekeys_go_through_a_bad_way_while_packets_pass() {
    for seed in 0..5 {
        let settings = Settings {
            rekey: RekeyLimits {
                age: secs(2),
                ..RekeyLimits::default()
            },
            ..Settings::default()
        };
        let way = Way {
            mtu: 1200,
            loss: 100,
            ..Way::bad()
        };
        let mut pair = LossyPair::confirmed(way, settings, seed);
        let mut sent = 0u32;
        while sent < 3000 {
            pair.send(true, FIRST, &sent.to_be_bytes());
            pair.send(false, FIRST, &sent.to_be_bytes());
            sent += 1;
            pair.pass(millis(5));
        }
        pair.pass(millis(200));
        let (client, server) = (pair.client().stats().clone(), pair.server().stats().clone());
        assert!(
            client.rekeys >= 5 && server.rekeys >= 5,
            "seed {seed}: {client:?}"
        );
        assert_eq!(client.drops.unknown_epoch + server.drops.unknown_epoch, 0);
        assert_eq!(client.drops.failed_opens + server.drops.failed_opens, 0);
        for packets in [&pair.at_server, &pair.at_client] {
            assert!((2600..2800).contains(&packets.len()), "{}", packets.len());
        }
    }
}

#[test]
fn a_lane_that_has_used_up_its_counters_waits_for_the_rekey() {
    let mut pair = good(12);
    let now = pair.now;
    let index = pair.client().lane_index(FIRST).unwrap();
    pair.client().lanes[index].skip_counters(0, DATAGRAM_COUNTER_LIMIT);
    let full = pair
        .client()
        .seal_packet(now, FIRST, &mut room(b"x"), Offload::default());
    assert_eq!(full, Err(SealError::Exhausted { epoch: 0 }));
    // Three quarters: the rekey is under way with room to spare.
    pair.client().lanes[index].skip_counters(0, DATAGRAM_COUNTER_LIMIT / 4 * 3);
    pair.send(true, FIRST, b"worn");
    pair.pass(secs(1));
    assert_eq!(pair.client().epoch(), 1);
    pair.send(true, FIRST, b"fresh");
    pair.pass(millis(50));
    assert_eq!(pair.at_server, [&b"worn"[..], b"fresh"]);
}

#[test]
fn what_strangers_send_ends_nothing() {
    let mut pair = good(13);
    pair.send(true, FIRST, b"packet");
    let sealed = pair.flying.pop().unwrap().bytes;
    let path = DatagramPath::to(address(9, 9));
    let now = pair.now;
    assert_eq!(datagram_handle(&sealed), Some(pair.server().id().handle()));
    for index in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[index] ^= 1;
        let error = pair
            .server()
            .open_datagram(now, path, &mut changed)
            .unwrap_err();
        assert_eq!(error.scope(), Scope::Frame, "{error}");
        let mut cut = sealed[..index].to_vec();
        assert!(pair.server().open_datagram(now, path, &mut cut).is_err());
    }
    let mut whole = sealed.clone();
    let opened = pair.server().open_datagram(now, path, &mut whole);
    assert!(matches!(opened, Ok(Opened::Packet { .. })));
    let again = pair.server().open_datagram(now, path, &mut sealed.clone());
    assert!(matches!(again, Err(OpenError::Replayed(_))));
    assert_eq!(pair.server().closed(), None);
}

#[test]
fn a_half_of_a_half_ends_the_session_of_who_sealed_it() {
    let mut pair = good(14);
    for (part, half) in [(0, &b"\x15\x01"[..]), (1, b"\x00half")] {
        let body = [&[9, part], half].concat();
        let datagram = pair.seal(true, FIRST, InnerType::Part, &body);
        pair.fly(true, server_at(), datagram);
    }
    pair.pass(millis(30));
    assert_eq!(
        pair.errors,
        [OpenError::Misplaced {
            kind: InnerType::Part
        }]
    );
    assert_eq!(pair.server().closed(), Some(CloseReason::ProtocolError));
}

#[test]
fn a_session_of_streams_alone_has_no_lane_windows() {
    let mut pair = crate::proto::pair::Pair::confirmed(Settings::default());
    pair.join();
    assert!(pair.server.lanes.iter().all(|lane| lane.lossy.is_none()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn honest_ends_never_fall_out_over_any_way(
        seed in any::<u64>(), loss in 0u32..300, copies in 0u32..300, jitter in 0u64..200,
        mtu in 1200usize..1500,
    ) {
        let settings = Settings {
            rekey: RekeyLimits { age: secs(3), ..RekeyLimits::default() },
            ..Settings::default()
        };
        let way = Way { loss, copies, jitter: millis(jitter), mtu, ..Way::default() };
        let mut pair = LossyPair::confirmed(way, settings, seed);
        for number in 0..300u32 {
            let packet = vec![number as u8; 40 + number as usize * 4];
            pair.send(true, FIRST, &packet);
            pair.send(false, FIRST, &packet);
            pair.pass(millis(40));
        }
        pair.way = Way::default();
        pair.pass(secs(3));
        let (up, down) = (pair.at_server.len(), pair.at_client.len());
        pair.send(true, FIRST, b"up");
        pair.send(false, FIRST, b"down");
        pair.pass(secs(1));
        prop_assert_eq!(pair.at_server.len(), up + 1);
        prop_assert_eq!(pair.at_client.len(), down + 1);
        for packet in pair.at_server.iter().chain(&pair.at_client) {
            prop_assert!(packet.len() < 10 || packet.iter().all(|byte| *byte == packet[0]));
        }
        for session in [&pair.client, &pair.server].into_iter().flatten() {
            let drops = &session.stats().drops;
            prop_assert_eq!(drops.failed_opens + drops.bad_control + drops.duplicate_packets, 0);
            prop_assert_eq!(drops.control_overflow + drops.event_overflow, 0);
            prop_assert_eq!(session.closed(), None);
        }
        let replayed = |error: &OpenError| matches!(error, OpenError::Replayed(_) | OpenError::Epoch { .. });
        prop_assert!(pair.errors.iter().all(replayed), "{:?}", pair.errors);
    }
}
