//! Epochs follow one another while traffic goes on.

use std::time::Duration;

use adit_netstack::Offload;

use super::{millis, seal_raw, secs};
use crate::proto::aead::AeadKind;
use crate::proto::handshake::{ClientConfig, KemKind, Responder};
use crate::proto::identity::PresharedKey;
use crate::proto::liveness::LivenessLimits;
use crate::proto::pair::{Pair, client_config, responder, room, server_secret, unix};
use crate::proto::rekey::RekeyLimits;
use crate::proto::session::{OpenError, Opened, SealError, SessionEvent, Settings};
use crate::wire::{CloseReason, LaneId};

const FIRST: LaneId = LaneId::FIRST;

fn limits(rekey: RekeyLimits) -> Settings {
    Settings {
        rekey,
        ..Settings::default()
    }
}

fn epochs(pair: &Pair) -> (u64, u64) {
    (pair.client.epoch(), pair.server.epoch())
}

/// No pings, where they would get in the way.
fn without_pings() -> Settings {
    let liveness = LivenessLimits {
        quiet: secs(900),
        unanswered: secs(900),
        patience: secs(900),
    };
    Settings {
        liveness,
        ..Settings::default()
    }
}

/// Lets 120 s pass; the client's message 1 is under way then.
fn begin(pair: &mut Pair) {
    pair.pass(secs(119));
    pair.now += secs(1);
    pair.client.handle_timeout(pair.now);
    pair.drain();
}

#[test]
fn keys_are_replaced_every_120_s() {
    let mut pair = Pair::confirmed(Settings::default());
    pair.pass(secs(119));
    assert_eq!(epochs(&pair), (0, 0));
    pair.pass(secs(1));
    assert_eq!(epochs(&pair), (1, 1));
    pair.pass(secs(360));
    assert_eq!(epochs(&pair), (4, 4));
    assert_eq!(pair.client.stats().rekeys, 4);
    assert_eq!(pair.errors, []);
}

#[test]
fn keys_are_replaced_whatever_the_handshake_was() {
    let psk = Some(PresharedKey::from_bytes([9; 32]));
    for (kem, psk) in [(KemKind::MlKem1024, None), (KemKind::MlKem768, psk)] {
        for aead in AeadKind::ALL {
            let config = ClientConfig {
                kem,
                psk: psk.clone(),
                aead: vec![aead],
                ..client_config()
            };
            let keys = vec![server_secret()];
            let server = Responder::new(keys, &AeadKind::ALL, Settings::default(), unix(50));
            let mut pair = Pair::with(&config, &server);
            pair.run();
            pair.pass(secs(120));
            assert_eq!(epochs(&pair), (1, 1));
            pair.client_sends(FIRST, b"up");
            pair.server_sends(FIRST, b"down");
            pair.run();
            assert_eq!((pair.at_server.len(), pair.at_client.len()), (1, 1));
            assert_eq!((pair.client.aead(), pair.server.aead()), (aead, aead));
        }
    }
}

#[test]
fn traffic_both_ways_loses_nothing_while_keys_change_under_it() {
    let rekey = RekeyLimits {
        age: secs(5),
        ..RekeyLimits::default()
    };
    let mut pair = Pair::confirmed(limits(rekey));
    let mut sent = 0u32;
    // Frames are delivered a step of 10 ms after they were sealed, so every rekey finds some under
    // way in the old epoch in both directions.
    for _ in 0..3000 {
        for _ in 0..3 {
            pair.client_sends(FIRST, &sent.to_be_bytes());
            pair.server_sends(FIRST, &sent.to_be_bytes());
            sent += 1;
        }
        let (up, down) = (std::mem::take(&mut pair.up), std::mem::take(&mut pair.down));
        pair.drain();
        let (later_up, later_down) = (std::mem::take(&mut pair.up), std::mem::take(&mut pair.down));
        pair.now += millis(10);
        pair.client.handle_timeout(pair.now);
        pair.server.handle_timeout(pair.now);
        for (lane, mut frame) in up.into_iter().chain(later_up) {
            if let Opened::Packet { range, .. } =
                pair.server.open(pair.now, lane, &mut frame).unwrap()
            {
                pair.at_server.push(frame[range].to_vec());
            }
        }
        for (lane, mut frame) in down.into_iter().chain(later_down) {
            if let Opened::Packet { range, .. } =
                pair.client.open(pair.now, lane, &mut frame).unwrap()
            {
                pair.at_client.push(frame[range].to_vec());
            }
        }
    }
    let all: Vec<Vec<u8>> = (0..sent).map(|n| n.to_be_bytes().to_vec()).collect();
    assert!(pair.at_server == all && pair.at_client == all);
    assert!(
        pair.client.epoch() >= 5,
        "{} epochs in 30 s",
        pair.client.epoch()
    );
}

#[test]
fn the_responder_seals_with_a_new_epoch_only_after_it_opened_a_frame_of_it() {
    let mut pair = Pair::confirmed(Settings::default());
    begin(&mut pair);
    let deliver_up = |pair: &mut Pair| {
        while let Some((lane, mut frame)) = pair.up.pop_front() {
            pair.server.open(pair.now, lane, &mut frame).unwrap();
        }
    };
    deliver_up(&mut pair);
    pair.drain();
    // The answer is made, and the server goes on with the old keys.
    pair.server_sends(FIRST, b"old epoch");
    assert_eq!(epochs(&pair), (0, 0));
    assert_eq!(pair.down.back().unwrap().1[5], 0);
    // The client has the answer and seals with the new keys; what was under way still opens.
    while let Some((lane, mut frame)) = pair.down.pop_front() {
        pair.client.open(pair.now, lane, &mut frame).unwrap();
    }
    assert_eq!(epochs(&pair), (1, 0));
    pair.drain();
    assert_eq!(pair.up.back().unwrap().1[5], 1);
    deliver_up(&mut pair);
    assert_eq!(epochs(&pair), (1, 1));
}

#[test]
fn frames_sealed_trigger_a_rekey_by_the_initiator() {
    let rekey = RekeyLimits {
        frames: 100,
        ..RekeyLimits::default()
    };
    let mut pair = Pair::confirmed(limits(rekey));
    for _ in 0..1000 {
        pair.client_sends(FIRST, b"packet");
        pair.run();
        pair.now += millis(100);
    }
    assert!(pair.client.epoch() >= 9, "epoch {}", pair.client.epoch());
    assert_eq!(pair.at_server.len(), 1000);
    assert_eq!(pair.errors, []);
}

#[test]
fn bytes_sealed_by_the_responder_make_it_ask() {
    let rekey = RekeyLimits {
        bytes: 100_000,
        ..RekeyLimits::default()
    };
    let mut config = client_config();
    config.settings = Settings::default();
    let mut pair = Pair::with(&config, &responder(limits(rekey)));
    pair.run();
    for _ in 0..100 {
        pair.server_sends(FIRST, &[0; 2000]);
        pair.run();
    }
    assert_eq!(epochs(&pair), (2, 2));
    assert_eq!(pair.at_client.len(), 100);
}

#[test]
fn a_responder_asks_when_the_initiator_is_10_s_late() {
    let rekey = RekeyLimits {
        age: secs(3600),
        ..RekeyLimits::default()
    };
    let mut config = client_config();
    config.settings = limits(rekey);
    let mut pair = Pair::with(&config, &responder(Settings::default()));
    pair.run();
    pair.pass(secs(129));
    assert_eq!(epochs(&pair), (0, 0));
    pair.pass(secs(1));
    assert_eq!(epochs(&pair), (1, 1));
}

#[test]
fn a_lost_rekey_is_begun_again_after_10_s() {
    // Lost message 1, then lost message 2.
    for lose_reply in [false, true] {
        let mut pair = Pair::confirmed(without_pings());
        begin(&mut pair);
        if lose_reply {
            while let Some((lane, mut frame)) = pair.up.pop_front() {
                pair.server.open(pair.now, lane, &mut frame).unwrap();
            }
            pair.drain();
        }
        pair.up.clear();
        pair.down.clear();
        pair.run();
        assert_eq!(epochs(&pair), (0, 0));
        pair.pass(secs(10));
        assert_eq!(epochs(&pair), (1, 1));
        assert_eq!(pair.client.stats().rekey_retries, 1);
        pair.server_sends(FIRST, b"down");
        pair.client_sends(FIRST, b"up");
        pair.run();
        assert_eq!((pair.at_client.len(), pair.at_server.len()), (1, 1));
    }
}

#[test]
fn a_rekey_lost_with_its_lane_begins_again_on_the_next_at_once() {
    let mut pair = Pair::confirmed(Settings::default());
    begin(&mut pair);
    pair.up.clear();
    pair.client.remove_lane(pair.now, FIRST);
    pair.server.remove_lane(pair.now, FIRST);
    pair.join();
    assert_eq!(epochs(&pair), (1, 1));
}

#[test]
fn an_attempt_overtaken_by_a_later_one_on_another_lane_is_ignored() {
    let mut pair = Pair::confirmed(without_pings());
    begin(&mut pair);
    let early: Vec<_> = pair.up.drain(..).collect();
    // A new lane makes the client begin anew; what it sent on the old one arrives later.
    pair.join();
    assert_eq!(epochs(&pair), (1, 1));
    for (lane, mut frame) in early {
        assert_eq!(
            pair.server.open(pair.now, lane, &mut frame),
            Ok(Opened::Control)
        );
    }
    let (lane, frame) = pair.client.join_frame(pair.now).unwrap();
    pair.server.handle_join(pair.now, &frame).unwrap();
    pair.run();
    pair.client_sends(lane, b"up");
    pair.server_sends(lane, b"down");
    pair.run();
    assert_eq!((pair.at_server.len(), pair.at_client.len()), (1, 1));
    assert_eq!(pair.errors, []);
    assert_eq!(pair.server.stats().drops.stray_rekeys, 1);
}

#[test]
fn two_attempts_at_once_agree_on_the_later_one() {
    let mut pair = Pair::confirmed(without_pings());
    let lane = pair.join();
    begin(&mut pair);
    let (on, mut first) = pair.up.pop_front().unwrap();
    assert_eq!(on, lane);
    // The client gives that lane up and begins anew on the other, where frames are faster.
    pair.client.remove_lane(pair.now, lane);
    pair.drain();
    let (on, mut second) = pair.up.pop_front().unwrap();
    assert_eq!(on, FIRST);
    assert_eq!(
        pair.server.open(pair.now, FIRST, &mut second),
        Ok(Opened::Control)
    );
    assert_eq!(
        pair.server.open(pair.now, lane, &mut first),
        Ok(Opened::Control)
    );
    assert_eq!(pair.server.stats().drops.stray_rekeys, 1);
    pair.server.remove_lane(pair.now, lane);
    pair.run();
    pair.pass(secs(10));
    assert_eq!(epochs(&pair), (1, 1));
    assert_eq!(pair.errors, []);
}

#[test]
fn a_rekey_that_fell_due_without_a_lane_is_done_when_there_is_one() {
    let mut pair = Pair::confirmed(Settings::default());
    pair.client.remove_lane(pair.now, FIRST);
    pair.server.remove_lane(pair.now, FIRST);
    pair.pass(secs(500));
    assert_eq!(epochs(&pair), (0, 0));
    pair.join();
    assert_eq!(epochs(&pair), (1, 1));
}

#[test]
fn a_client_that_alone_has_the_new_epoch_joins_with_it() {
    let mut pair = Pair::confirmed(Settings::default());
    begin(&mut pair);
    while let Some((lane, mut frame)) = pair.up.pop_front() {
        pair.server.open(pair.now, lane, &mut frame).unwrap();
    }
    pair.drain();
    while let Some((lane, mut frame)) = pair.down.pop_front() {
        pair.client.open(pair.now, lane, &mut frame).unwrap();
    }
    // Everything the client says in the new epoch is lost with the lane.
    pair.drain();
    pair.up.clear();
    assert_eq!(epochs(&pair), (1, 0));
    pair.cut.push(FIRST);
    pair.join();
    assert_eq!(epochs(&pair), (1, 1));
}

#[test]
fn the_former_epoch_opens_for_the_overlap_and_not_longer() {
    // No pings, since a stream lane keeps its order and these would overtake what is held back.
    let liveness = LivenessLimits {
        quiet: secs(900),
        unanswered: secs(900),
        patience: secs(900),
    };
    let mut pair = Pair::confirmed(Settings {
        liveness,
        ..Settings::default()
    });
    let fast = pair.join();
    pair.pass(secs(100));
    pair.client_sends(FIRST, b"late");
    pair.client_sends(FIRST, b"too late");
    let (slow, mut late) = pair.up.pop_front().unwrap();
    let (_, mut too_late) = pair.up.pop_front().unwrap();
    assert_eq!(late[5], 0);
    pair.pass(secs(20));
    assert_eq!(epochs(&pair), (1, 1));
    pair.client_sends(fast, b"new epoch");
    pair.run();
    // Delays here are 0, so the overlap is its least, 1 s.
    let opened = pair.server.open(pair.now, slow, &mut late);
    assert!(matches!(opened, Ok(Opened::Packet { .. })), "{opened:?}");
    pair.pass(secs(2));
    let opened = pair.server.open(pair.now, slow, &mut too_late);
    assert_eq!(opened, Err(OpenError::Epoch { found: 0 }));
    assert_eq!(pair.server.stats().drops.unknown_epoch, 1);
    pair.client_sends(slow, b"the lane lives");
    pair.run();
    assert_eq!(
        pair.at_server.last().map(Vec::as_slice),
        Some(&b"the lane lives"[..])
    );
}

#[test]
fn packets_wait_at_the_limit_of_an_epoch_and_go_on_in_the_next() {
    let rekey = RekeyLimits {
        frames: 100,
        ..RekeyLimits::default()
    };
    let mut pair = Pair::confirmed(limits(rekey));
    let mut sealed = 0;
    while pair.client.lane_for(pair.now, Default::default()).is_some() {
        pair.client_sends(FIRST, b"packet");
        sealed += 1;
        assert!(sealed < 10_000);
    }
    assert!(sealed >= 100, "{sealed} packets");
    let more = pair
        .client
        .seal_packet(pair.now, FIRST, &mut room(b"x"), Offload::default());
    assert_eq!(more, Err(SealError::Exhausted { epoch: 0 }));
    pair.run();
    assert_eq!(pair.at_server.len(), sealed);
    assert_eq!(epochs(&pair), (1, 1));
    assert_eq!(
        pair.client.lane_for(pair.now, Default::default()),
        Some(FIRST)
    );
}

#[test]
fn nothing_at_all_is_sealed_by_an_epoch_half_beyond_its_limit() {
    let rekey = RekeyLimits {
        frames: 100,
        ..RekeyLimits::default()
    };
    let mut pair = Pair::confirmed(limits(rekey));
    pair.client.epochs.current().usage.frames = 100 + 50 + 2048;
    pair.client.probe();
    assert_eq!(pair.client.poll_control(pair.now, &mut Vec::new()), None);
    assert!(pair.client.stats().drops.control_without_key >= 1);
}

#[test]
fn too_many_failed_opens_close_the_session() {
    let rekey = RekeyLimits {
        failed_opens: 3,
        ..RekeyLimits::default()
    };
    let mut pair = Pair::confirmed(limits(rekey));
    for lane in 0..3 {
        pair.join();
        assert_eq!(pair.server.closed(), None);
        pair.client_sends(LaneId(lane), b"packet");
        let (_, mut frame) = pair.up.pop_front().unwrap();
        frame[20] ^= 1;
        pair.server
            .open(pair.now, LaneId(lane), &mut frame)
            .unwrap_err();
    }
    assert_eq!(pair.server.closed(), Some(CloseReason::ProtocolError));
    pair.run();
    let told = SessionEvent::PeerClosed(CloseReason::ProtocolError);
    assert_eq!(pair.client_events.last(), Some(&told));
}

#[test]
fn epochs_go_on_beyond_the_byte_that_names_them() {
    let rekey = RekeyLimits {
        age: secs(2),
        ..RekeyLimits::default()
    };
    let mut pair = Pair::confirmed(limits(rekey));
    pair.pass(secs(2 * 260));
    assert_eq!(epochs(&pair), (260, 260));
    pair.client_sends(FIRST, b"up");
    pair.server_sends(FIRST, b"down");
    pair.run();
    assert_eq!((pair.at_server.len(), pair.at_client.len()), (1, 1));
    assert_eq!(pair.errors, []);
}

#[test]
fn stray_and_forged_rekey_messages_change_nothing() {
    let mut pair = Pair::confirmed(Settings::default());
    for inside in [
        &[8, 1][..],
        &[8, 1, 2, 3],
        &[8, 9],
        &[[8, 1].as_slice(), &[7; 1400]].concat(),
    ] {
        let mut frame = seal_raw(&mut pair.client, pair.now, FIRST, inside);
        assert_eq!(
            pair.server.open(pair.now, FIRST, &mut frame),
            Ok(Opened::Control)
        );
    }
    for inside in [&[9, 1][..], &[[9, 1].as_slice(), &[7; 1200]].concat()] {
        let mut frame = seal_raw(&mut pair.server, pair.now, FIRST, inside);
        assert_eq!(
            pair.client.open(pair.now, FIRST, &mut frame),
            Ok(Opened::Control)
        );
    }
    assert_eq!(pair.server.stats().drops.stray_rekeys, 4);
    assert_eq!(pair.client.stats().drops.stray_rekeys, 2);
    pair.pass(secs(125));
    assert_eq!(epochs(&pair), (1, 1));
}

#[test]
fn a_rekey_of_another_session_does_not_serve() {
    let mut pair = Pair::confirmed(Settings::default());
    let mut other = Pair::seeded(&client_config(), &responder(Settings::default()), 99);
    assert_ne!(pair.client.id(), other.client.id());
    let message = other
        .client
        .rekey
        .start(1, &mut other.client.generator)
        .unwrap();
    let inside = [&[8, 1][..], &message].concat();
    let mut frame = seal_raw(&mut pair.client, pair.now, FIRST, &inside);
    pair.server.open(pair.now, FIRST, &mut frame).unwrap();
    assert_eq!(pair.server.stats().drops.stray_rekeys, 1);
}

#[test]
fn rekeying_takes_no_longer_than_a_round_trip() {
    let mut pair = Pair::confirmed(Settings::default());
    let started = pair.now + secs(120);
    pair.pass(secs(120));
    assert_eq!(pair.now.saturating_duration_since(started), Duration::ZERO);
    assert_eq!(epochs(&pair), (1, 1));
}
