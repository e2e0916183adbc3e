//! Frames of relayed flows: who may send them, and what is sealed from two places.

use super::*;
use crate::proto::aead::AeadKind;
use crate::proto::handshake::Responder;
use crate::proto::pair::{Pair, client_config, responder, server_secret, unix};
use crate::proto::session::{OpenError, Opened, Scope, SealError, Settings};
use crate::wire::{CloseReason, FlowFrame, InnerType, MAX_FLOW_DATA, MAX_FLOW_HEAD, RelayedId};

const FIRST: LaneId = LaneId::FIRST;

const DATA: FlowFrame = FlowFrame::Data {
    flow: RelayedId(7),
    offset: 9,
};

fn settings(relayed: bool) -> Settings {
    Settings {
        relayed,
        ..Settings::default()
    }
}

/// A session of ends that relay flows, or do not.
fn pair(client: bool, server: bool) -> Pair {
    let mut config = client_config();
    config.settings = settings(client);
    let mut pair = Pair::with(&config, &responder(settings(server)));
    pair.run();
    pair
}

fn sealed(session: &mut Session, now: Instant, bytes: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut head = [0; MAX_FLOW_HEAD];
    let len = DATA.write(&mut head);
    let mut frame = vec![0xEE; SEALED_HEADER_LEN + len + bytes.len() + TAG_LEN];
    session.seal_flow(now, FIRST, &head[..len], bytes, &mut frame)?;
    Ok(frame)
}

#[test]
fn flows_are_relayed_only_where_both_ends_say_so() {
    for (client, server) in [(false, false), (true, false), (false, true)] {
        let mut pair = pair(client, server);
        assert!(!pair.client.relays() && !pair.server.relays());
        let refused = sealed(&mut pair.client, pair.now, b"bytes");
        assert_eq!(refused, Err(SealError::Lane { lane: FIRST }));
        let inside = [
            InnerType::FlowFin.byte(),
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ];
        let mut frame = seal_raw(&mut pair.client, pair.now, FIRST, &inside);
        let error = pair.server.open(pair.now, FIRST, &mut frame).unwrap_err();
        let kind = InnerType::FlowFin.byte();
        assert_eq!(error, OpenError::UnknownType { kind });
    }
    let pair = pair(true, true);
    assert!(pair.client.relays() && pair.server.relays());
}

#[test]
fn what_is_sealed_from_elsewhere_opens_with_every_aead() {
    for kind in AeadKind::ALL {
        let mut config = client_config();
        config.settings = settings(true);
        config.aead = vec![kind];
        let server = Responder::new(vec![server_secret()], &[kind], settings(true), unix(50));
        let mut pair = Pair::with(&config, &server);
        pair.run();
        for len in [1, 5, 4096, MAX_FLOW_DATA] {
            let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let mut frame = sealed(&mut pair.client, pair.now, &bytes).unwrap();
            let opened = pair.server.open(pair.now, FIRST, &mut frame).unwrap();
            let Opened::Flow { frame: DATA, range } = opened else {
                panic!("{kind}: {opened:?}");
            };
            assert!(frame[range] == bytes);
        }
        let stats = (pair.client.stats(), pair.server.stats());
        assert_eq!(stats.0.flow_frames_sealed, 4);
        assert_eq!(stats.1.flow_bytes_opened, stats.0.flow_bytes_sealed);
    }
}

#[test]
fn flow_frames_go_on_through_a_rekey() {
    let mut pair = pair(true, true);
    pair.pass(secs(130));
    assert_eq!(pair.client.epoch(), 1);
    assert!(pair.client.relays() && pair.server.relays());
    let mut frame = sealed(&mut pair.client, pair.now, b"bytes").unwrap();
    let opened = pair.server.open(pair.now, FIRST, &mut frame);
    assert!(matches!(opened, Ok(Opened::Flow { .. })), "{opened:?}");
}

#[test]
fn flow_frame_that_is_malformed_or_not_the_peers_to_send_closes_the_session() {
    let open = [0x10, 0, 0, 0, 0, 4, 1, 2, 3, 4, 0, 80, 0, 0, 0, 9];
    let mut both = pair(true, true);
    let mut frame = seal_raw(&mut both.server, both.now, FIRST, &open);
    let error = both.client.open(both.now, FIRST, &mut frame).unwrap_err();
    let kind = InnerType::FlowOpen;
    assert_eq!(error, OpenError::Misplaced { kind });
    let malformed: [&[u8]; 4] = [
        &open[..15],
        &[0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0x12, 0],
        &[0x14, 0, 0, 0, 0],
    ];
    for inside in malformed {
        let mut pair = pair(true, true);
        let mut frame = seal_raw(&mut pair.client, pair.now, FIRST, inside);
        let error = pair.server.open(pair.now, FIRST, &mut frame).unwrap_err();
        assert_eq!(error.scope(), Scope::Session, "{inside:?}");
        assert_eq!(pair.server.closed(), Some(CloseReason::ProtocolError));
        assert_eq!(pair.server.stats().drops.bad_control, 1);
    }
}
