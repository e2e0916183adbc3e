//! The wire format, without cryptography.

use crate::wire::{
    Control, FlowFrame, FrameType, HandshakeFrame, HandshakeKind, InitPayload, InnerType,
    JoinHeader, MAX_FLOW_HEAD, PACKET_HEADER_LEN, PacketHeader, ReplyPayload, SealedHeader,
    frame_type, join_session_id, split,
};

/// Parses a whole frame in every way that the bytes of a lane are parsed.
///
/// A Sealed frame is read as if its inside were in the clear, so that control frames are reached too.
///
/// # Panics
///
/// What was parsed is not what would be written.
pub fn wire_frame(frame: &[u8]) {
    if let Ok((kind, body)) = split(frame) {
        assert_eq!(frame_type(frame), Some(kind));
        assert!(frame.len() >= body.len() + 5);
        assert_eq!(
            kind,
            FrameType::from_byte(kind.byte()).expect("a known type")
        );
    }
    if let Ok(parsed) = HandshakeFrame::parse(frame) {
        assert_eq!(parsed.to_vec(), frame);
    }
    if let Ok(header) = JoinHeader::parse(frame) {
        let mut again = frame.to_vec();
        header.write(&mut again).expect("there was room for it");
        assert_eq!(again, frame);
        assert_eq!(join_session_id(frame), Some(header.session));
    }
    if let Ok(header) = SealedHeader::parse(frame) {
        let mut again = frame.to_vec();
        header.write(&mut again).expect("there was room for it");
        assert_eq!(again, frame);
    }
    let Some(inside) = frame.get(14..) else {
        return;
    };
    let Some((&kind, body)) = inside.split_first() else {
        return;
    };
    if let Ok(header) = PacketHeader::parse(body) {
        assert_eq!(body.get(..PACKET_HEADER_LEN), Some(&header.to_bytes()[..]));
    }
    let Some(kind) = InnerType::from_byte(kind) else {
        return;
    };
    if let Ok((flow, bytes)) = FlowFrame::parse(kind, body) {
        let mut head = [0; MAX_FLOW_HEAD];
        let len = flow.write(&mut head);
        assert_eq!([&head[..len], bytes].concat(), inside);
    }
    if let Ok(control) = Control::parse(kind, body) {
        assert_eq!(control.inner_type(), kind);
        // Fields may be in any order and unknown ones are skipped: it is the meaning that stays.
        let mut again = Vec::new();
        control.write(&mut again);
        let (written, body) = again.split_first().expect("a type in front");
        assert_eq!(*written, kind.byte());
        let read = Control::parse(kind, body).expect("our own writing");
        assert_eq!(read, control);
    }
}

/// Parses `kind (1) ‖ payload` as the payload of message 1 and of message 2.
///
/// # Panics
///
/// What was parsed is not what would be written.
pub fn wire_handshake(data: &[u8]) {
    let Some((&kind, payload)) = data.split_first() else {
        return;
    };
    let Some(kind) = HandshakeKind::from_byte(kind) else {
        return;
    };
    let mut again = Vec::new();
    if let Ok(init) = InitPayload::parse(kind, payload) {
        init.write(&mut again);
        assert!(payload.starts_with(&again));
    }
    again.clear();
    if let Ok(reply) = ReplyPayload::parse(kind, payload) {
        reply.write(&mut again);
        assert!(payload.starts_with(&again));
    }
}
