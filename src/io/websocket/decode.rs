//! Takes the payload of binary messages out of what was read, in place.

use super::frame::{FrameError, Head, MAX_CONTROL, MAX_HEAD, Opcode, Role, mask};

/// Turns the bytes of a connection into those of its messages, however it is cut into reads.
///
/// It keeps the part of a head that ends a read, and one control frame; never a message.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    state: State,
    /// The parts of a message have not all begun.
    in_message: bool,
    ping: Option<Ping>,
    closed: bool,
}

/// The payload of a ping that waits for its pong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ping {
    bytes: [u8; MAX_CONTROL],
    len: usize,
}

#[derive(Debug)]
enum State {
    /// In front of a payload: what is there of its head.
    Head { bytes: [u8; MAX_HEAD], have: usize },
    /// In the payload of a data frame.
    Data(Payload),
    /// In that of a control frame.
    Control {
        opcode: Opcode,
        payload: Payload,
        kept: Ping,
    },
    /// The other end has broken a rule.
    Failed(FrameError),
}

/// How much of a payload has come.
#[derive(Clone, Copy, Debug)]
struct Payload {
    mask: Option<[u8; 4]>,
    at: u64,
    len: u64,
}

impl Decoder {
    /// Begins where the HTTP handshake ends, at the end that `role` is.
    pub fn new(role: Role) -> Self {
        Self {
            role,
            state: State::BEGIN,
            in_message: false,
            ping: None,
            closed: false,
        }
    }

    /// Takes what was read next and leaves the payload in it at its front; returns the length of that.
    ///
    /// # Errors
    ///
    /// The other end has broken a rule; what came before that was handed out by an earlier call.
    pub fn decode(&mut self, bytes: &mut [u8]) -> Result<usize, FrameError> {
        let (mut at, mut out) = (0, 0);
        while at < bytes.len() && !self.closed {
            match &mut self.state {
                State::Head { bytes: head, have } => {
                    // One by one: heads have few bytes, and what stands behind them is payload.
                    head[*have] = bytes[at];
                    (at, *have) = (at + 1, *have + 1);
                    let begun = Head::decode(&head[..*have]);
                    match begun.and_then(|head| head.map(|(head, _)| self.begin(head)).transpose())
                    {
                        Ok(Some(state)) => self.state = state,
                        Ok(None) => {}
                        Err(error) => self.state = State::Failed(error),
                    }
                }
                State::Data(payload) => {
                    let len = payload.rest(bytes.len() - at);
                    if at != out {
                        bytes.copy_within(at..at + len, out);
                    }
                    payload.take(&mut bytes[out..out + len]);
                    (at, out) = (at + len, out + len);
                }
                State::Control { payload, kept, .. } => {
                    let len = payload.rest(bytes.len() - at);
                    let part = &mut bytes[at..at + len];
                    payload.take(part);
                    kept.extend(part);
                    at += len;
                }
                State::Failed(_) => break,
            }
            self.end_of_payload();
        }
        match self.state {
            State::Failed(error) if out == 0 => Err(error),
            State::Head { .. } | State::Data(_) | State::Control { .. } | State::Failed(_) => {
                Ok(out)
            }
        }
    }

    /// Hands out the newest ping, once.
    pub fn take_ping(&mut self) -> Option<Ping> {
        self.ping.take()
    }

    /// Tells whether the other end has said that no more comes.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Tells whether nothing more is handed out: the other end has ended the stream, or broken a rule.
    pub fn failure(&self) -> Option<FrameError> {
        match self.state {
            State::Failed(error) => Some(error),
            State::Head { .. } | State::Data(_) | State::Control { .. } => None,
        }
    }

    fn begin(&mut self, head: Head) -> Result<State, FrameError> {
        let masked = match self.role {
            Role::Client => false,
            Role::Server => true,
        };
        if head.mask.is_some() != masked {
            return Err(FrameError::Mask);
        }
        let payload = Payload {
            mask: head.mask,
            at: 0,
            len: head.len,
        };
        match head.opcode {
            Opcode::Binary | Opcode::Continuation => {
                if self.in_message != (head.opcode == Opcode::Continuation) {
                    return Err(FrameError::Order);
                }
                self.in_message = !head.last;
                Ok(State::Data(payload))
            }
            Opcode::Close | Opcode::Ping | Opcode::Pong => Ok(State::Control {
                opcode: head.opcode,
                payload,
                kept: Ping::EMPTY,
            }),
        }
    }

    /// Goes on to the next head where a payload is whole.
    fn end_of_payload(&mut self) {
        match &self.state {
            State::Data(payload) if payload.at == payload.len => {}
            State::Control {
                opcode,
                payload,
                kept,
            } if payload.at == payload.len => match opcode {
                Opcode::Ping => self.ping = Some(*kept),
                Opcode::Close => self.closed = true,
                Opcode::Pong | Opcode::Binary | Opcode::Continuation => {}
            },
            State::Head { .. } | State::Data(_) | State::Control { .. } | State::Failed(_) => {
                return;
            }
        }
        self.state = State::BEGIN;
    }
}

impl State {
    const BEGIN: Self = Self::Head {
        bytes: [0; MAX_HEAD],
        have: 0,
    };
}

impl Payload {
    /// How many of the next `there` bytes belong to it.
    fn rest(&self, there: usize) -> usize {
        usize::try_from(self.len - self.at).map_or(there, |rest| rest.min(there))
    }

    /// Unmasks the next of its bytes.
    fn take(&mut self, bytes: &mut [u8]) {
        if let Some(key) = self.mask {
            mask(bytes, key, self.at);
        }
        self.at += bytes.len() as u64;
    }
}

impl Ping {
    const EMPTY: Self = Self {
        bytes: [0; MAX_CONTROL],
        len: 0,
    };

    /// Returns its payload, which the pong repeats.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn extend(&mut self, bytes: &[u8]) {
        // The head was checked: no more than MAX_CONTROL bytes come.
        let end = (self.len + bytes.len()).min(MAX_CONTROL);
        let taken = end - self.len;
        self.bytes[self.len..end].copy_from_slice(&bytes[..taken]);
        self.len = end;
    }
}

impl std::fmt::Debug for Ping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ping").field(&self.payload()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 4] = [1, 2, 3, 4];

    fn frame(first: u8, masked: bool, payload: &[u8]) -> Vec<u8> {
        let (head, _) = Head::decode(&[first, 0]).expect("legal").expect("whole");
        let head = Head {
            mask: masked.then_some(KEY),
            len: payload.len() as u64,
            ..head
        };
        let mut bytes = [0; MAX_HEAD];
        let len = head.encode(&mut bytes);
        let mut payload = payload.to_vec();
        if masked {
            mask(&mut payload, KEY, 0);
        }
        [&bytes[..len], &payload].concat()
    }

    /// Decodes in pieces; returns the payload, the pings, and how it ended.
    fn decode(
        role: Role,
        bytes: &[u8],
        pieces: usize,
    ) -> (Vec<u8>, Vec<Vec<u8>>, Result<bool, FrameError>) {
        let mut decoder = Decoder::new(role);
        let (mut payload, mut pings) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(pieces) {
            let mut piece = piece.to_vec();
            match decoder.decode(&mut piece) {
                Ok(len) => payload.extend_from_slice(&piece[..len]),
                Err(error) => return (payload, pings, Err(error)),
            }
            pings.extend(decoder.take_ping().map(|ping| ping.payload().to_vec()));
        }
        let ended = decoder.failure().map_or(Ok(decoder.is_closed()), Err);
        (payload, pings, ended)
    }

    #[test]
    fn messages_parts_and_pings_between_them_come_apart() {
        for (role, masked) in [(Role::Client, false), (Role::Server, true)] {
            let bytes = [
                frame(0x82, masked, b"one "),
                frame(0x02, masked, b"two "),
                frame(0x89, masked, b"ping"),
                frame(0x00, masked, b""),
                frame(0x80, masked, b"three"),
                frame(0x8a, masked, b"pong"),
                frame(0x88, masked, &[3, 232]),
                frame(0x82, masked, b"behind the end"),
            ]
            .concat();
            for pieces in [1, 2, 3, 5, 1000] {
                let (payload, pings, closed) = decode(role, &bytes, pieces);
                assert_eq!(payload, b"one two three");
                assert_eq!(pings, [b"ping"]);
                assert_eq!(closed, Ok(true));
            }
        }
    }

    #[test]
    fn what_stands_before_a_broken_rule_is_handed_out() {
        let bytes = [frame(0x82, false, b"good"), vec![0x81, 1, b'x']].concat();
        for pieces in [1, 2, 6, 100] {
            let (payload, _, ended) = decode(Role::Client, &bytes, pieces);
            assert_eq!(payload, b"good");
            assert_eq!(ended, Err(FrameError::Text));
        }
    }

    #[test]
    fn each_broken_rule_between_frames_is_named() {
        let part = frame(0x02, false, b"x");
        for (role, bytes, error) in [
            (Role::Server, frame(0x82, false, b"bare"), FrameError::Mask),
            (Role::Client, frame(0x82, true, b"masked"), FrameError::Mask),
            (
                Role::Client,
                frame(0x80, false, b"nothing before"),
                FrameError::Order,
            ),
            (
                Role::Client,
                [part.clone(), part.clone()].concat(),
                FrameError::Order,
            ),
        ] {
            assert_eq!(decode(role, &bytes, 1).2, Err(error));
        }
    }

    #[test]
    fn message_longer_than_memory_is_read_as_it_comes() {
        let head = Head {
            opcode: Opcode::Binary,
            last: true,
            mask: None,
            len: i64::MAX as u64,
        };
        let mut bytes = [0; MAX_HEAD];
        let len = head.encode(&mut bytes);
        let mut decoder = Decoder::new(Role::Client);
        assert_eq!(decoder.decode(&mut bytes[..len]), Ok(0));
        let mut piece = [7; 1000];
        assert_eq!(decoder.decode(&mut piece), Ok(1000));
        assert_eq!(piece, [7; 1000]);
    }

    proptest! {
        #[test]
        fn payload_comes_whole_in_any_pieces(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..12),
            pieces in 1..700_usize,
            masked: bool,
        ) {
            let role = if masked { Role::Server } else { Role::Client };
            let bytes: Vec<u8> = messages
                .iter()
                .flat_map(|message| frame(0x82, masked, message))
                .collect();
            let (payload, pings, ended) = decode(role, &bytes, pieces);
            prop_assert_eq!(payload, messages.concat());
            prop_assert_eq!((pings.len(), ended), (0, Ok(false)));
        }
    }
}
