//! The outermost layer of a stream lane: `length (4) ‖ type (1) ‖ body`.

use super::reader::Reader;

/// Who is meant by a frame: the byte after the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameType {
    /// Message 1 of the handshake, client to server.
    HandshakeInit = 0x01,
    /// Message 2 of the handshake, server to client.
    HandshakeReply = 0x02,
    /// The server wants message 1 again, with the value it sends here.
    Challenge = 0x03,
    /// A frame of a living session.
    Sealed = 0x04,
    /// A new lane of a living session, client to server.
    Join = 0x05,
}

impl FrameType {
    /// Reads a type byte; `None` for a number this version does not know.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0x01 => Some(Self::HandshakeInit),
            0x02 => Some(Self::HandshakeReply),
            0x03 => Some(Self::Challenge),
            0x04 => Some(Self::Sealed),
            0x05 => Some(Self::Join),
            _ => None,
        }
    }

    /// The byte on the wire.
    #[must_use]
    pub const fn byte(self) -> u8 {
        self as u8
    }
}

/// Returns the type of a whole stream frame, `None` if it has none or an unknown one.
#[must_use]
pub fn frame_type(frame: &[u8]) -> Option<FrameType> {
    FrameType::from_byte(*frame.get(LENGTH_LEN)?)
}

/// Splits a whole stream frame into its type and body, having checked that `length` tells the
/// truth.
///
/// # Errors
/// [`FrameFormatError`], with the numbers that disagree.
pub fn split(frame: &[u8]) -> Result<(FrameType, &[u8]), FrameFormatError> {
    let mut reader = Reader::new(frame);
    let Ok(length) = reader.u32() else {
        return Err(FrameFormatError::Short { len: frame.len() });
    };
    if length as usize != frame.len() - LENGTH_LEN {
        return Err(FrameFormatError::Length {
            stated: length,
            actual: frame.len() - LENGTH_LEN,
        });
    }
    let Ok(kind) = reader.u8() else {
        return Err(FrameFormatError::Short { len: frame.len() });
    };
    let kind = FrameType::from_byte(kind).ok_or(FrameFormatError::Type { found: kind })?;
    Ok((kind, reader.rest()))
}

/// Appends a whole stream frame: length, type, then what `body` appends.
///
/// # Panics
/// When the body does not fit [`MAX_FRAME`]; bodies are made by this crate, none comes near.
pub fn write(out: &mut Vec<u8>, kind: FrameType, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_LEN]);
    out.push(kind.byte());
    body(out);
    let length = out.len() - start - LENGTH_LEN;
    assert!(
        length <= MAX_FRAME,
        "frame of {length} bytes built, {MAX_FRAME} are allowed"
    );
    out[start..start + LENGTH_LEN].copy_from_slice(&(length as u32).to_be_bytes());
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameFormatError {
    /// There is no room for length and type.
    #[error("frame of {len} bytes is shorter than its length and type")]
    Short {
        /// Bytes there are.
        len: usize,
    },
    /// The length field does not say how long the frame is.
    #[error("frame says {stated} bytes follow its length, {actual} do")]
    Length {
        /// What the field says.
        stated: u32,
        /// Bytes after the field.
        actual: usize,
    },
    /// The type is not known to this version.
    #[error("unknown frame type {found:#04x}")]
    Type {
        /// The byte found.
        found: u8,
    },
}

/// Bytes of the length field.
pub const LENGTH_LEN: usize = 4;

/// Largest value of `length` before the peer is authenticated: the largest handshake frame
/// (ML-KEM-1024, message 1, 1,723 bytes) fits, and a stranger can make the server hold no more than
/// this.
pub const MAX_FRAME_PREAUTH: usize = 2048;

/// Largest value of `length` in a session: an IP packet of 65,535 bytes, our headers and tag, and
/// room for extensions.
pub const MAX_FRAME: usize = 66_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_covers_type_and_body() {
        let mut out = vec![0xEE];
        write(&mut out, FrameType::Challenge, |out| {
            out.extend_from_slice(b"abc")
        });
        assert_eq!(out, [0xEE, 0, 0, 0, 4, 3, b'a', b'b', b'c']);
        assert_eq!(split(&out[1..]), Ok((FrameType::Challenge, &b"abc"[..])));
        assert_eq!(frame_type(&out[1..]), Some(FrameType::Challenge));
    }

    #[test]
    fn a_length_that_lies_is_refused() {
        assert_eq!(
            split(&[0, 0, 0, 3, 4, 1]),
            Err(FrameFormatError::Length {
                stated: 3,
                actual: 2
            })
        );
        assert_eq!(
            split(&[0, 0, 0, 1, 4, 1]),
            Err(FrameFormatError::Length {
                stated: 1,
                actual: 2
            })
        );
        assert_eq!(
            split(&[0xff, 0xff, 0xff, 0xff, 4]),
            Err(FrameFormatError::Length {
                stated: u32::MAX,
                actual: 1
            })
        );
        assert_eq!(split(&[0, 0, 0]), Err(FrameFormatError::Short { len: 3 }));
        assert_eq!(
            split(&[0, 0, 0, 0]),
            Err(FrameFormatError::Short { len: 4 })
        );
    }

    #[test]
    fn every_type_survives_its_byte_and_no_other_byte_is_one() {
        let known: Vec<u8> = (0..=255)
            .filter(|b| FrameType::from_byte(*b).is_some())
            .collect();
        assert_eq!(known, [1, 2, 3, 4, 5]);
        for byte in known {
            assert_eq!(FrameType::from_byte(byte).map(FrameType::byte), Some(byte));
        }
    }
}
