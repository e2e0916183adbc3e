//! Packets, configuration, pings and close.

use adit_netstack::{Checksum, Gso, Offload};

use super::{millis, seal_raw};
use crate::proto::pair::{Pair, room};
use crate::proto::session::{OpenError, Opened, Scope, SealError, SessionEvent, Settings};
use crate::wire::{
    CloseReason, InnerConfig, InnerType, LaneId, MAX_FRAME, PACKET_HEADROOM, TAILROOM,
};

const FIRST: LaneId = LaneId::FIRST;

fn config(mtu: u16) -> InnerConfig {
    InnerConfig {
        v4: Some(([10, 86, 0, 9].into(), 24)),
        mtu,
        ..InnerConfig::default()
    }
}

#[test]
fn packets_pass_both_ways_after_the_handshake() {
    let mut pair = Pair::confirmed(Settings::default());
    assert_eq!(pair.client_events, [SessionEvent::LaneConfirmed(FIRST)]);
    assert_eq!(
        pair.server_events,
        [SessionEvent::Confirmed, SessionEvent::LaneConfirmed(FIRST)]
    );
    for len in [1, 20, 1400, 65_535] {
        let packet = vec![len as u8; len];
        pair.client_sends(FIRST, &packet);
        pair.server_sends(FIRST, &packet);
        pair.run();
        assert_eq!(pair.at_server.pop(), Some(packet.clone()));
        assert_eq!(pair.at_client.pop(), Some(packet));
    }
    assert_eq!(pair.errors, []);
    assert_eq!(pair.server.stats().packets_opened, 4);
    assert_eq!(
        pair.server.stats().packet_bytes_opened,
        1 + 20 + 1400 + 65_535
    );
    assert_eq!(pair.client.stats().packets_sealed, 4);
    let lane = pair.client.lane_stats(FIRST).unwrap();
    assert_eq!(
        lane.outgoing.sent,
        pair.server.lane_stats(FIRST).unwrap().incoming.received
    );
    assert_eq!(
        lane.outgoing.sent_bytes,
        pair.server
            .lane_stats(FIRST)
            .unwrap()
            .incoming
            .received_bytes
    );
}

#[test]
fn offload_metadata_arrives_as_it_was_sent() {
    let mut pair = Pair::confirmed(Settings::default());
    let offload = Offload {
        gso: Gso::Tcp { size: 1348 },
        checksum: Checksum::Partial,
    };
    let mut frame = room(b"super-packet");
    pair.client
        .seal_packet(pair.now, FIRST, &mut frame, offload)
        .unwrap();
    let opened = pair.server.open(pair.now, FIRST, &mut frame).unwrap();
    assert_eq!(
        opened,
        Opened::Packet {
            number: 0,
            kept: false,
            range: 26..38,
            offload
        }
    );
    assert_eq!(&frame[26..38], b"super-packet");
}

#[test]
fn the_server_says_nothing_before_it_has_heard_a_sealed_frame() {
    let mut pair = Pair::new(Settings::default());
    pair.server.configure(config(1400));
    let mut out = Vec::new();
    assert_eq!(pair.server.poll_control(pair.now, &mut out), None);
    assert_eq!(
        pair.server
            .seal_packet(pair.now, FIRST, &mut room(b"x"), Offload::default()),
        Err(SealError::Unconfirmed)
    );
    assert_eq!(pair.server.lane_for(pair.now, Default::default()), None);
    assert!(!pair.server.is_confirmed());
    pair.run();
    assert!(pair.server.is_confirmed());
    assert_eq!(
        pair.client_events,
        [
            SessionEvent::LaneConfirmed(FIRST),
            SessionEvent::Configured(config(1400))
        ]
    );
}

#[test]
fn a_configuration_is_reported_once_and_a_changed_one_again() {
    let mut pair = Pair::confirmed(Settings::default());
    pair.client_events.clear();
    pair.server.configure(config(1400));
    pair.run();
    pair.join();
    assert_eq!(
        pair.client_events,
        [
            SessionEvent::Configured(config(1400)),
            SessionEvent::LaneConfirmed(LaneId(1))
        ]
    );
    pair.server.configure(config(1500));
    pair.run();
    assert_eq!(
        pair.client_events.last(),
        Some(&SessionEvent::Configured(config(1500)))
    );
}

#[test]
fn a_configuration_lost_with_its_lane_is_sent_again_on_the_next() {
    let mut pair = Pair::confirmed(Settings::default());
    pair.cut.push(FIRST);
    pair.server.configure(config(1300));
    pair.run();
    assert!(
        !pair
            .client_events
            .contains(&SessionEvent::Configured(config(1300)))
    );
    pair.join();
    assert!(
        pair.client_events
            .contains(&SessionEvent::Configured(config(1300)))
    );
}

#[test]
fn a_configuration_whose_answer_was_lost_is_not_reported_again() {
    let mut pair = Pair::confirmed(Settings::default());
    pair.server.configure(config(1300));
    pair.drain();
    let (lane, mut frame) = pair.down.pop_front().unwrap();
    assert_eq!(
        pair.client.open(pair.now, lane, &mut frame),
        Ok(Opened::Control)
    );
    pair.cut.push(FIRST);
    pair.run();
    pair.join();
    let reported = |event: &&SessionEvent| matches!(event, SessionEvent::Configured(_));
    assert_eq!(pair.client_events.iter().filter(reported).count(), 1);
    assert_eq!(pair.server.stats().drops.stray_answers, 0);
}

#[test]
fn a_buffer_without_a_packet_or_with_too_much_is_not_sealed() {
    let mut pair = Pair::confirmed(Settings::default());
    let most = MAX_FRAME + 4;
    for len in [0, 25, PACKET_HEADROOM + TAILROOM, most + 1] {
        let sealed =
            pair.client
                .seal_packet(pair.now, FIRST, &mut vec![0; len], Offload::default());
        assert_eq!(sealed, Err(SealError::Length { len }));
    }
    let sealed = pair
        .client
        .seal_packet(pair.now, FIRST, &mut vec![0; most], Offload::default());
    assert_eq!(sealed, Ok(()));
    let lane = LaneId(9);
    let sealed = pair
        .client
        .seal_packet(pair.now, lane, &mut room(b"x"), Offload::default());
    assert_eq!(sealed, Err(SealError::Lane { lane }));
}

#[test]
fn source_numbers_are_contiguous_and_a_number_is_delivered_once() {
    let mut pair = Pair::confirmed(Settings::default());
    let lane = pair.join();
    pair.client_sends(FIRST, b"zero");
    pair.client_sends(lane, b"one");
    pair.client.next_source = 1;
    pair.client_sends(FIRST, b"one again");
    pair.client_sends(FIRST, b"two");
    pair.run();
    assert_eq!(pair.at_server, [&b"zero"[..], b"one", b"two"]);
    assert_eq!(pair.server.stats().drops.duplicate_packets, 1);
    assert_eq!(pair.client.next_source, 3);
}

#[test]
fn a_source_number_older_than_the_window_is_dropped_and_counted() {
    let mut pair = Pair::confirmed(Settings::default());
    pair.client.next_source = 1_000_000;
    pair.client_sends(FIRST, b"new");
    pair.client.next_source = 900_000;
    pair.client_sends(FIRST, b"old");
    pair.run();
    assert_eq!(pair.at_server, [b"new"]);
    assert_eq!(pair.server.stats().drops.stale_packets, 1);
}

#[test]
fn a_packet_with_a_malformed_header_is_dropped_and_the_session_lives() {
    let mut pair = Pair::confirmed(Settings::default());
    let bad_bits = [&[1; 9][..], &[0xFF, 0, 0], b"packet"].concat();
    for inside in [
        &[1][..],
        &[1; 11],
        &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &bad_bits,
    ] {
        let mut frame = seal_raw(&mut pair.client, pair.now, FIRST, inside);
        assert_eq!(
            pair.server.open(pair.now, FIRST, &mut frame),
            Ok(Opened::Skipped)
        );
    }
    assert_eq!(pair.server.stats().drops.malformed_packets, 4);
    pair.client_sends(FIRST, b"fine");
    pair.run();
    assert_eq!(pair.at_server, [b"fine"]);
}

#[test]
fn an_unknown_type_with_the_top_bit_is_skipped() {
    let mut pair = Pair::confirmed(Settings::default());
    let unknown = (0x80..=0xFF).filter(|kind| *kind != InnerType::Beside.byte());
    for kind in unknown {
        let mut frame = seal_raw(&mut pair.client, pair.now, FIRST, &[kind, 1, 2, 3]);
        assert_eq!(
            pair.server.open(pair.now, FIRST, &mut frame),
            Ok(Opened::Skipped)
        );
    }
    assert_eq!(pair.server.stats().drops.skipped_frames, 127);
    assert!(pair.server.is_confirmed());
}

#[test]
fn an_unknown_or_reserved_type_without_it_closes_the_session_at_both_ends() {
    for kind in [0x00, 0x0A, 0x10, 0x14, 0x20, 0x21, 0x22, 0x7F] {
        let mut pair = Pair::confirmed(Settings::default());
        let mut frame = seal_raw(&mut pair.client, pair.now, FIRST, &[kind]);
        let error = pair.server.open(pair.now, FIRST, &mut frame).unwrap_err();
        assert_eq!(error, OpenError::UnknownType { kind });
        assert_eq!(error.scope(), Scope::Session);
        assert_eq!(pair.server.closed(), Some(CloseReason::ProtocolError));
        pair.run();
        let told = SessionEvent::PeerClosed(CloseReason::ProtocolError);
        assert_eq!(pair.client_events.last(), Some(&told));
        assert_eq!(pair.server.stats().drops.unknown_frames, 1);
    }
}

#[test]
fn a_control_frame_that_is_malformed_or_not_the_peers_to_send_closes_the_session() {
    let from_client: [&[u8]; 6] = [
        &[2, 1],
        &[4, 0, 0, 0, 1],
        &[7],
        &[9, 1],
        &[0x0B; 17],
        &[6, 1, 1],
    ];
    for inside in from_client {
        let mut pair = Pair::confirmed(Settings::default());
        let mut frame = seal_raw(&mut pair.client, pair.now, FIRST, inside);
        let error = pair.server.open(pair.now, FIRST, &mut frame).unwrap_err();
        assert_eq!(error.scope(), Scope::Session, "{inside:?}");
        assert_eq!(pair.server.stats().drops.bad_control, 1);
    }
    let from_server: [&[u8]; 4] = [&[5, 0, 0, 0, 1], &[8, 1], &[0x0C; 17], &[0x0B; 17]];
    for inside in from_server {
        let mut pair = Pair::confirmed(Settings::default());
        let mut frame = seal_raw(&mut pair.server, pair.now, FIRST, inside);
        let error = pair.client.open(pair.now, FIRST, &mut frame).unwrap_err();
        assert!(
            matches!(error, OpenError::Misplaced { .. }),
            "{inside:?}: {error}"
        );
        assert_eq!(pair.client.closed(), Some(CloseReason::ProtocolError));
    }
}

#[test]
fn close_reaches_the_peer_with_its_reason_and_nothing_passes_after_it() {
    let mut pair = Pair::confirmed(Settings::default());
    pair.client_sends(FIRST, b"late");
    let late = pair.up.pop_front().unwrap();
    pair.server.close(pair.now, CloseReason::ShuttingDown);
    pair.run();
    let reason = CloseReason::ShuttingDown;
    assert_eq!(
        pair.client_events.last(),
        Some(&SessionEvent::PeerClosed(reason))
    );
    assert_eq!(pair.client.closed(), Some(reason));
    let sealed = pair
        .client
        .seal_packet(pair.now, FIRST, &mut room(b"x"), Offload::default());
    assert_eq!(sealed, Err(SealError::Closed { reason }));
    pair.up.push_back(late);
    pair.run();
    assert_eq!(pair.errors, [OpenError::Closed { reason }]);
    assert_eq!(pair.server.stats().drops.after_close, 1);
    assert_eq!(pair.client.poll_timeout(), None);
    assert_eq!(pair.server.poll_timeout(), None);
    assert_eq!(pair.client.join_frame(pair.now), None);
    pair.client.probe();
    pair.drain();
    assert!(pair.up.is_empty(), "only Close frames still leave");
}

#[test]
fn a_session_closed_before_the_client_was_heard_sends_nothing() {
    let mut pair = Pair::new(Settings::default());
    pair.server.close(pair.now, CloseReason::Superseded);
    assert_eq!(pair.server.poll_control(pair.now, &mut Vec::new()), None);
    assert_eq!(pair.server.closed(), Some(CloseReason::Superseded));
}

#[test]
fn the_first_ping_measures_the_round_trip() {
    let mut pair = Pair::new(Settings::default());
    assert_eq!(pair.client.rtt(FIRST), None);
    pair.drain();
    pair.now += millis(30);
    pair.run();
    assert_eq!(pair.client.rtt(FIRST), Some(millis(30)));
}

#[test]
fn a_thousand_pings_at_once_get_one_pong() {
    let mut pair = Pair::confirmed(Settings::default());
    for _ in 0..1000 {
        let inside = [InnerType::Ping.byte(), 0, 0, 0, 0, 0, 0, 0, 9];
        let mut frame = seal_raw(&mut pair.client, pair.now, FIRST, &inside);
        assert_eq!(
            pair.server.open(pair.now, FIRST, &mut frame),
            Ok(Opened::Control)
        );
    }
    pair.drain();
    assert_eq!(pair.down.len(), 1);
    assert_eq!(pair.server.stats().drops.control_overflow, 0);
}

#[test]
fn a_probe_pings_every_lane_once_however_often_it_is_asked_for() {
    let mut pair = Pair::confirmed(Settings::default());
    let lane = pair.join();
    for _ in 0..100 {
        pair.client.probe();
    }
    pair.drain();
    let lanes: Vec<LaneId> = pair.up.iter().map(|(lane, _)| *lane).collect();
    assert_eq!(lanes, [FIRST, lane]);
    pair.cut.push(FIRST);
    pair.run();
    pair.pass(super::secs(10));
    assert!(pair.client_events.contains(&SessionEvent::LaneDead(FIRST)));
}

#[test]
fn a_session_may_move_between_threads() {
    fn is_send<T: Send>() {}
    is_send::<crate::proto::Session>();
    is_send::<crate::proto::Initiator>();
    fn is_sync<T: Sync + Send>() {}
    is_sync::<crate::proto::Responder>();
}
