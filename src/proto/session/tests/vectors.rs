//! Sealed frames byte by byte, from fixed secrets.
//!
//! The expected bytes were computed by an implementation that shares nothing with this one: HKDF by
//! Python's `hmac`, the AEADs by its `cryptography` (OpenSSL), XChaCha20 by the draft's text.

use zeroize::Zeroizing;

use crate::proto::aead::{AeadKey, AeadKind};
use crate::proto::keys::{EpochKeys, HandshakeSecrets, Role};
use crate::wire::{
    Control, DATAGRAM_HEADER_LEN, DatagramHeader, DatagramPacketHeader, InnerType,
    JOIN_DATAGRAM_HEADER_LEN, JOIN_DATAGRAM_LEN, JOIN_HEADER_LEN, JOIN_LEN, JoinDatagram,
    JoinHeader, LaneId, PacketHeader, Piece, SEALED_HEADER_LEN, SealedHeader, SessionId, TAG_LEN,
    nonce,
};
use adit_netstack::{Checksum, Gso, Offload};

/// AEAD, a ping of the client, a packet of the server, a Join; in hexadecimal.
const VECTORS: [(AeadKind, &str, &str, &str); 4] = [
    (
        AeadKind::Aes256Gcm,
        "00000023040100000000000000022c76c17c093c16d0e6cb70eccb1a6db4e1ad67d819\
         5fe1cecf",
        "0000002a04ff0000010000000000da7f3008f000ee98afe89ec54ba4a5bd8b3b73836b\
         0f20d3efb75e75887401fe",
        "0000001f0501112233445566778800000003a12267b73bbeca28b470a244139149f3f7",
    ),
    (
        AeadKind::ChaCha20Poly1305,
        "0000002304010000000000000002ec00824154dce6c86976960a63dd45c7a53f76037e\
         44898376",
        "0000002a04ff000001000000000084808a0f335b7141daf6e862180a0acc1b1fc0096a\
         1f3198893f55322fa8a515",
        "0000001f050111223344556677880000000370facdb70e9befa09e25ef43435cd41600",
    ),
    (
        AeadKind::Aes128Gcm,
        "000000230401000000000000000250d5981a01df98ee85dda1e15cd99ab85acf02fce9\
         4c1ad1fe",
        "0000002a04ff00000100000000007b19b96f01c0381a8d8602030eb4b03a6078bba136\
         ab8efebf8f3eb39e9d2a53",
        "0000001f0501112233445566778800000003844fec1223dc6bfe114484b0ef8a15323d",
    ),
    (
        AeadKind::XChaCha20Poly1305,
        "000000230401000000000000000280931149d42b9263252b2f84e6399c466cc8dcdab8\
         378b44a5",
        "0000002a04ff00000100000000004630ff41585ed3d835f5a17bb0a4cf189811dc71a3\
         078999e31f1895ccc3cf03",
        "0000001f0501112233445566778800000003144e315a430c1c3cb10b44d67d8969b706",
    ),
];

/// AEAD, a ping of the client on lane 0, a packet of the server on lane 259, the tag of a Join, all in
/// datagrams; in hexadecimal.
const DATAGRAM_VECTORS: [(AeadKind, &str, &str, &str); 4] = [
    (
        AeadKind::Aes256Gcm,
        "0401005566778800000002c697c8cb2be54a21f7bd8ff11cbfd0173cfd33d314fb32cee4",
        "04ff035566778801000000d51bdbe0dd1ee95e7ffc625aeaa4467f5d93faa6b090d77b",
        "423ac16d99bd8028e3388e9bb0e20b79",
    ),
    (
        AeadKind::ChaCha20Poly1305,
        "0401005566778800000002bc8fa36c927364d15405e399252df0c64d1029e24630052641",
        "04ff035566778801000000b6550e3af292c3b3be95a37b0843442f46c84ecfba10e235",
        "db5c3fa50dbdb5d9868bf5daa92c5d36",
    ),
    (
        AeadKind::Aes128Gcm,
        "04010055667788000000023146d2f0e406f32eb9486e0241e47ce9bddcc9c3e9e12a9489",
        "04ff03556677880100000052b26980024fa9e1bfefd3f6e04a7e36175ca6398036db70",
        "e6b5c8ed5673084b093fc18f261a0c68",
    ),
    (
        AeadKind::XChaCha20Poly1305,
        "04010055667788000000027b239c08d85909e66d61420fc3627768dbccc244f39c1514a8",
        "04ff03556677880100000046c088359cd90d0a3766e3868b4ee6f2423ed4f2f5994bef",
        "2208990d317f52f7281b8322dfd8c29c",
    ),
];

fn keys(aead: AeadKind, role: Role) -> EpochKeys {
    let mut split = Zeroizing::new([0x11; 64]);
    split[32..].fill(0x22);
    HandshakeSecrets {
        hash: [0x33; 32],
        split,
        kem: Zeroizing::new([0x44; 32]),
    }
    .derive(aead, role)
}

fn sealed(key: &AeadKey, header: SealedHeader, lane: LaneId, inside: &[u8]) -> String {
    let mut frame = vec![0; SEALED_HEADER_LEN];
    frame.extend_from_slice(inside);
    frame.resize(frame.len() + TAG_LEN, 0);
    header.write(&mut frame).unwrap();
    finish(key, frame, SEALED_HEADER_LEN, nonce(lane, header.counter))
}

fn finish(key: &AeadKey, mut frame: Vec<u8>, header_len: usize, nonce: [u8; 12]) -> String {
    let (header, body) = frame.split_at_mut(header_len);
    let (text, tag) = body.split_at_mut(body.len() - TAG_LEN);
    tag.copy_from_slice(&key.seal(nonce, header, text).unwrap());
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn sealed_frames_are_these_bytes() {
    for (aead, ping, packet, join) in VECTORS {
        let client = keys(aead, Role::Initiator);
        let server = keys(aead, Role::Responder);

        let mut inside = Vec::new();
        Control::Ping {
            time: 0x0102_0304_0506_0708,
        }
        .write(&mut inside);
        let header = SealedHeader {
            epoch: 1,
            counter: 2,
        };
        assert_eq!(
            sealed(&client.seal, header, LaneId(3), &inside),
            ping,
            "{aead} ping"
        );

        let offload = Offload {
            gso: Gso::Tcp { size: 1348 },
            checksum: Checksum::Partial,
        };
        let packet_header = PacketHeader { source: 7, offload }.to_bytes();
        let inside = [
            &[InnerType::Packet.byte()][..],
            &packet_header,
            &[0x45, 0, 0, 0x14],
        ]
        .concat();
        let header = SealedHeader {
            epoch: 0xff,
            counter: 1 << 40,
        };
        assert_eq!(
            sealed(&server.seal, header, LaneId::FIRST, &inside),
            packet,
            "{aead} packet"
        );

        let mut frame = vec![0; JOIN_LEN];
        let (session, lane) = (SessionId(0x1122_3344_5566_7788), LaneId(3));
        JoinHeader {
            epoch: 1,
            session,
            lane,
        }
        .write(&mut frame)
        .unwrap();
        frame[JOIN_HEADER_LEN] = InnerType::Join.byte();
        let frame = finish(&client.seal, frame, JOIN_HEADER_LEN, nonce(lane, 0));
        assert_eq!(frame, join, "{aead} join");
    }
}

#[test]
fn sealed_datagrams_are_these_bytes() {
    let session = SessionId(0x1122_3344_5566_7788);
    let datagram = |key: &AeadKey, header: DatagramHeader, lane: LaneId, inside: &[u8]| {
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(inside);
        bytes.resize(bytes.len() + TAG_LEN, 0);
        let nonce = nonce(lane, u64::from(header.counter));
        finish(key, bytes, DATAGRAM_HEADER_LEN, nonce)
    };
    for (aead, ping, packet, join) in DATAGRAM_VECTORS {
        let client = keys(aead, Role::Initiator);
        let server = keys(aead, Role::Responder);
        let header = DatagramHeader {
            epoch: 1,
            lane: 0,
            handle: session.handle(),
            counter: 2,
        };
        let mut inside = Vec::new();
        Control::Ping { time: 0x0102 }.write(&mut inside);
        let made = datagram(&client.seal, header, LaneId::FIRST, &inside);
        assert_eq!(made, ping, "{aead} ping");

        let header = DatagramHeader {
            epoch: 0xff,
            lane: 3,
            handle: session.handle(),
            counter: 1 << 24,
        };
        let packet_header = DatagramPacketHeader {
            source: 0x0102_0304,
            checksum: Checksum::Partial,
            kept: false,
            piece: Piece::First,
        };
        let inside = [
            &[InnerType::Packet.byte()][..],
            &packet_header.to_bytes(),
            &[0x45, 0],
        ]
        .concat();
        let made = datagram(&server.seal, header, LaneId(0x0103), &inside);
        assert_eq!(made, packet, "{aead} packet");

        let lane = LaneId(3);
        let mut bytes = JoinDatagram {
            epoch: 1,
            session,
            lane,
        }
        .to_bytes()
        .to_vec();
        bytes.push(InnerType::Join.byte());
        bytes.resize(JOIN_DATAGRAM_LEN, 0);
        let made = finish(
            &client.seal,
            bytes,
            JOIN_DATAGRAM_HEADER_LEN,
            nonce(lane, 0),
        );
        assert_eq!(made[made.len() - 32..], *join, "{aead} join");
    }
}
