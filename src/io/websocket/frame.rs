//! The head of a WebSocket frame, and the mask (RFC 6455, sections 5.2 and 5.3).

use thiserror::Error;

/// Which end of the connection we are: a client masks what it sends, a server does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Asked for the WebSocket.
    Client,
    /// Was asked for it.
    Server,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// A further part of a message.
    Continuation,
    /// A binary message, or its first part.
    Binary,
    /// The other end says no more.
    Close,
    /// Asks for a pong.
    Ping,
    /// Answers a ping, or nothing.
    Pong,
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What it is.
    pub opcode: Opcode,
    /// Whether the message ends with it.
    pub last: bool,
    /// The key by which the payload is masked, if it is.
    pub mask: Option<[u8; 4]>,
    /// The length of the payload in bytes.
    pub len: u64,
}

impl Opcode {
    /// Tells whether such frames may stand between the parts of a message.
    pub fn is_control(self) -> bool {
        match self {
            Self::Continuation | Self::Binary => false,
            Self::Close | Self::Ping | Self::Pong => true,
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }
}

impl Head {
    /// Reads the head at the front of `bytes`, and returns it with its length; `None` where more bytes are needed.
    ///
    /// # Errors
    ///
    /// It breaks a rule that a receiver has to insist on.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let [first, second, ..] = *bytes else {
            return Ok(None);
        };
        if first & RESERVED != 0 {
            return Err(FrameError::Reserved);
        }
        let opcode = match first & OPCODE {
            0 => Opcode::Continuation,
            1 => return Err(FrameError::Text),
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            unknown => return Err(FrameError::Opcode(unknown)),
        };
        let last = first & LAST != 0;
        let short = second & SHORT_LEN;
        if opcode.is_control() && (!last || usize::from(short) > MAX_CONTROL) {
            return Err(FrameError::Control);
        }
        let (len, at) = match short {
            LEN_16 => match bytes.get(2..).and_then(<[u8]>::first_chunk) {
                Some(len) => (u64::from(u16::from_be_bytes(*len)), 4),
                None => return Ok(None),
            },
            LEN_64 => match bytes.get(2..).and_then(<[u8]>::first_chunk) {
                Some(len) => (u64::from_be_bytes(*len), 10),
                None => return Ok(None),
            },
            short => (u64::from(short), 2),
        };
        let least = match short {
            LEN_16 => u64::from(LEN_16),
            LEN_64 => 1 << 16,
            _ => 0,
        };
        if len < least || len > i64::MAX.unsigned_abs() {
            return Err(FrameError::Length(len));
        }
        let masked = second & MASKED != 0;
        let mask = match bytes.get(at..).and_then(<[u8]>::first_chunk) {
            Some(key) if masked => Some(*key),
            None if masked => return Ok(None),
            Some(_) | None => None,
        };
        let head = Self {
            opcode,
            last,
            mask,
            len,
        };
        Ok(Some((head, at + mask.map_or(0, |key| key.len()))))
    }

    /// Writes the head to the front of `out`, and returns its length.
    pub fn encode(&self, out: &mut [u8; MAX_HEAD]) -> usize {
        let last = if self.last { LAST } else { 0 };
        let masked = if self.mask.is_some() { MASKED } else { 0 };
        out[0] = self.opcode.bits() | last;
        let mut at = if let Ok(short) = u8::try_from(self.len)
            && short < LEN_16
        {
            out[1] = short | masked;
            2
        } else if let Ok(len) = u16::try_from(self.len) {
            out[1] = LEN_16 | masked;
            out[2..4].copy_from_slice(&len.to_be_bytes());
            4
        } else {
            out[1] = LEN_64 | masked;
            out[2..10].copy_from_slice(&self.len.to_be_bytes());
            10
        };
        if let Some(key) = self.mask {
            out[at..at + key.len()].copy_from_slice(&key);
            at += key.len();
        }
        at
    }
}

/// Masks or unmasks `bytes`, which begin `at` bytes into the payload.
pub fn mask(bytes: &mut [u8], key: [u8; 4], at: u64) {
    let mut key = key;
    key.rotate_left((at % 4) as usize);
    let wide = u64::from_ne_bytes([
        key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3],
    ]);
    let mut chunks = bytes.chunks_exact_mut(8);
    for chunk in &mut chunks {
        if let Ok(eight) = <&mut [u8; 8]>::try_from(chunk) {
            *eight = (u64::from_ne_bytes(*eight) ^ wide).to_ne_bytes();
        }
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

/// Which rule of RFC 6455 the other end has broken.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// A message of text.
    #[error("the WebSocket carries text, which no lane does")]
    Text,
    /// A bit that only extensions use.
    #[error("a WebSocket frame uses an extension that nobody agreed on")]
    Reserved,
    /// A kind of frame that is not known.
    #[error("a WebSocket frame has the unknown opcode {0}")]
    Opcode(u8),
    /// A control frame that is too long, or in parts.
    #[error("a WebSocket control frame is too long or in parts")]
    Control,
    /// A length that has a shorter form, or none.
    #[error("a WebSocket frame has the length {0}, written as it must not be")]
    Length(u64),
    /// A client that does not mask, or a server that does.
    #[error("a WebSocket frame is masked where it must not be, or not where it must")]
    Mask,
    /// A part of a message that has not begun, or a message within a message.
    #[error("a part of a WebSocket message is out of order")]
    Order,
}

/// The most bytes that a head has.
pub const MAX_HEAD: usize = 14;

/// The most bytes that a control frame carries (RFC 6455, section 5.5).
pub const MAX_CONTROL: usize = 125;

const LAST: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const MASKED: u8 = 0x80;
const SHORT_LEN: u8 = 0x7f;
const LEN_16: u8 = 126;
const LEN_64: u8 = 127;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(head: &Head) -> Vec<u8> {
        let mut out = [0; MAX_HEAD];
        let len = head.encode(&mut out);
        out[..len].to_vec()
    }

    #[test]
    fn heads_are_those_of_the_standard() {
        // RFC 6455, section 5.7.
        let head = |opcode, mask, len| Head {
            opcode,
            last: true,
            mask,
            len,
        };
        let key = [0x37, 0xfa, 0x21, 0x3d];
        for (head, wanted) in [
            (head(Opcode::Ping, None, 5), &[0x89, 0x05][..]),
            (
                head(Opcode::Pong, Some(key), 5),
                &[0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d],
            ),
            (head(Opcode::Binary, None, 256), &[0x82, 0x7e, 0x01, 0x00]),
            (
                head(Opcode::Binary, None, 65_536),
                &[0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0],
            ),
        ] {
            assert_eq!(bytes(&head), wanted);
            assert_eq!(Head::decode(wanted), Ok(Some((head, wanted.len()))));
        }
        let mut hello = [0x7f, 0x9f, 0x4d, 0x51, 0x58];
        mask(&mut hello, key, 0);
        assert_eq!(&hello, b"Hello");
    }

    #[test]
    fn each_broken_rule_is_named() {
        for (bytes, error) in [
            (&[0x81, 0x05][..], FrameError::Text),
            (&[0xc2, 0x05], FrameError::Reserved),
            (&[0x92, 0x05], FrameError::Reserved),
            (&[0x83, 0x05], FrameError::Opcode(3)),
            (&[0x8b, 0x00], FrameError::Opcode(11)),
            (&[0x09, 0x00], FrameError::Control),
            (&[0x88, 0x7e, 0, 126], FrameError::Control),
            (&[0x82, 0x7e, 0, 125], FrameError::Length(125)),
            (
                &[0x82, 0x7f, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
                FrameError::Length(65_535),
            ),
            (
                &[0x82, 0x7f, 0x80, 0, 0, 0, 0, 0, 0, 0],
                FrameError::Length(1 << 63),
            ),
        ] {
            assert_eq!(Head::decode(bytes), Err(error), "{bytes:x?}");
        }
    }

    fn heads() -> impl Strategy<Value = Head> {
        let opcode = prop_oneof![
            Just(Opcode::Continuation),
            Just(Opcode::Binary),
            Just(Opcode::Close),
            Just(Opcode::Ping),
            Just(Opcode::Pong),
        ];
        let len = prop_oneof![0..=125_u64, 126..70_000_u64, 0..=i64::MAX as u64];
        (opcode, any::<bool>(), any::<Option<[u8; 4]>>(), len).prop_map(
            |(opcode, last, mask, len)| Head {
                opcode,
                last: last || opcode.is_control(),
                mask,
                len: if opcode.is_control() { len % 126 } else { len },
            },
        )
    }

    proptest! {
        #[test]
        fn head_comes_back_whole_and_not_before(head in heads()) {
            let bytes = bytes(&head);
            for end in 0..bytes.len() {
                prop_assert_eq!(Head::decode(&bytes[..end]), Ok(None));
            }
            prop_assert_eq!(Head::decode(&bytes), Ok(Some((head, bytes.len()))));
        }

        #[test]
        fn mask_is_that_of_each_byte(
            payload in prop::collection::vec(any::<u8>(), 0..100),
            key: [u8; 4],
            at in 0..1000_u64,
        ) {
            let mut masked = payload.clone();
            mask(&mut masked, key, at);
            let slow: Vec<u8> = payload
                .iter()
                .zip(at..)
                .map(|(byte, at)| byte ^ key[(at % 4) as usize])
                .collect();
            prop_assert_eq!(masked, slow);
        }
    }
}
