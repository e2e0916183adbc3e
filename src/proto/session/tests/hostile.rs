//! Bytes that nobody honest sends.

use proptest::prelude::*;

use super::seal_raw;
use crate::proto::pair::Pair;
use crate::proto::session::{Opened, Settings};
use crate::wire::{FrameType, LaneId, SealedFormatError};

const FIRST: LaneId = LaneId::FIRST;

#[test]
fn a_sealed_frame_changed_at_any_byte_does_not_open() {
    let mut pair = Pair::confirmed(Settings::default());
    pair.client_sends(FIRST, b"a packet to change");
    let (_, frame) = pair.up.pop_front().unwrap();
    for index in 0..frame.len() {
        let mut changed = frame.clone();
        changed[index] ^= 0x01;
        let server = &mut pair.server;
        assert!(
            server.open_frame(pair.now, FIRST, &mut changed).is_err(),
            "byte {index}"
        );
    }
    assert!(matches!(
        pair.server.open(pair.now, FIRST, &mut frame.clone()),
        Ok(Opened::Packet { .. })
    ));
}

#[test]
fn a_sealed_frame_cut_at_any_length_does_not_open() {
    let mut pair = Pair::confirmed(Settings::default());
    pair.client_sends(FIRST, b"a packet to cut");
    let (_, frame) = pair.up.pop_front().unwrap();
    for len in 0..frame.len() {
        // As it is, and with a length field that agrees.
        let mut cut = frame[..len].to_vec();
        assert!(pair.server.open_frame(pair.now, FIRST, &mut cut).is_err());
        if let Some(field) = cut.first_chunk_mut::<4>() {
            *field = (len as u32 - 4).to_be_bytes();
            assert!(pair.server.open_frame(pair.now, FIRST, &mut cut).is_err());
        }
    }
    assert!(
        pair.server
            .open(pair.now, FIRST, &mut frame.clone())
            .is_ok()
    );
}

#[test]
fn frames_of_other_types_are_refused_by_a_session() {
    let mut pair = Pair::confirmed(Settings::default());
    for kind in [FrameType::HandshakeInit, FrameType::Join] {
        let mut frame = vec![0; 64];
        frame[3] = 60;
        frame[4] = kind.byte();
        let error = pair
            .server
            .open_frame(pair.now, FIRST, &mut frame)
            .unwrap_err();
        assert_eq!(error, SealedFormatError::NotSealed { found: kind }.into());
    }
}

/// One pair for all cases of a property: a handshake costs more than a case.
fn pair() -> Pair {
    Pair::confirmed(Settings::default())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_from_a_stranger_never_panic(
        frames in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 0..120), any::<bool>(), 0u8..7), 0..40)
    ) {
        let mut pair = pair();
        for (mut bytes, honest_length, kind) in frames {
            if honest_length && bytes.len() > 6 {
                let length = bytes.len() as u32 - 4;
                bytes[..4].copy_from_slice(&length.to_be_bytes());
                bytes[4] = kind;
                bytes[5] = 0;
            }
            let _ = pair.server.handle_join(pair.now, &bytes);
            prop_assert!(pair.server.open_frame(pair.now, FIRST, &mut bytes.clone()).is_err());
            prop_assert!(pair.client.open_frame(pair.now, FIRST, &mut bytes).is_err());
        }
        prop_assert_eq!(pair.server.closed(), None);
    }

    #[test]
    fn arbitrary_bytes_from_a_peer_with_the_keys_never_panic(
        insides in proptest::collection::vec(
            (0u8..0x24, proptest::collection::vec(any::<u8>(), 0..60)), 1..60)
    ) {
        let mut pair = pair();
        for (kind, body) in insides {
            let inside = [&[kind][..], &body].concat();
            let mut up = seal_raw(&mut pair.client, pair.now, FIRST, &inside);
            let _ = pair.server.open(pair.now, FIRST, &mut up);
            let mut down = seal_raw(&mut pair.server, pair.now, FIRST, &inside);
            let _ = pair.client.open(pair.now, FIRST, &mut down);
            if pair.client.closed().is_some() || pair.server.closed().is_some() {
                break;
            }
        }
        pair.run();
    }
}
