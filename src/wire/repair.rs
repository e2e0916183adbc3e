//! Repair frames: parity over source packets, and which ones it covers.

use super::reader::{Reader, Short};

/// What stands in front of the parity inside the seal, after the inner type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepairHeader {
    /// Low 32 bits of the first source number that the parity covers.
    pub first: u32,
    /// How many numbers from there on it covers, at least 1.
    pub span: u16,
    /// Which combination of them it is: the seed of the coefficients.
    pub key: u16,
}

impl RepairHeader {
    /// The header's bytes: first (4) ‖ span (2) ‖ key (2).
    #[must_use]
    pub fn to_bytes(self) -> [u8; REPAIR_HEADER_LEN] {
        let mut bytes = [0; REPAIR_HEADER_LEN];
        bytes[..4].copy_from_slice(&self.first.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.span.to_be_bytes());
        bytes[6..].copy_from_slice(&self.key.to_be_bytes());
        bytes
    }

    /// Reads the header off the front of a repair frame's body; what follows it is the parity.
    ///
    /// # Errors
    /// [`RepairHeaderError`] when there is no parity, or it covers nothing.
    pub fn parse(body: &[u8]) -> Result<(Self, &[u8]), RepairHeaderError> {
        let len = body.len();
        let short = |_: Short| RepairHeaderError::Short { len };
        let mut reader = Reader::new(body);
        let first = reader.u32().map_err(short)?;
        let span = reader.u16().map_err(short)?;
        let key = reader.u16().map_err(short)?;
        let parity = body.get(REPAIR_HEADER_LEN..).unwrap_or_default();
        if parity.len() < SHARD_PREFIX_LEN {
            return Err(RepairHeaderError::Short { len });
        }
        if span == 0 {
            return Err(RepairHeaderError::CoversNothing);
        }
        Ok((Self { first, span, key }, parity))
    }
}

/// Why a repair frame is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RepairHeaderError {
    /// There is no room for the header and the parity of even an empty packet.
    #[error("repair frame of {len} bytes is shorter than its header and parity")]
    Short {
        /// Bytes of the body.
        len: usize,
    },
    /// It covers no source number.
    #[error("repair frame covers no packet")]
    CoversNothing,
}

/// Bytes of a [`RepairHeader`].
pub const REPAIR_HEADER_LEN: usize = 8;

/// Bytes in front of a packet in what the parity is computed over: length (2) ‖ offload (1).
/// Shorter packets count as padded with zeros, so each must say its own length.
pub const SHARD_PREFIX_LEN: usize = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_header_is_first_span_and_key() {
        let header = RepairHeader {
            first: 0x0102_0304,
            span: 0x0506,
            key: 0x0708,
        };
        assert_eq!(header.to_bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_frame_without_parity_or_span_is_refused() {
        let header = RepairHeader {
            first: 1,
            span: 1,
            key: 1,
        };
        let mut body = header.to_bytes().to_vec();
        body.extend_from_slice(&[0; 2]);
        assert_eq!(
            RepairHeader::parse(&body),
            Err(RepairHeaderError::Short { len: 10 })
        );
        body.push(0);
        assert_eq!(RepairHeader::parse(&body), Ok((header, &[0; 3][..])));
        body[4..6].fill(0);
        assert_eq!(
            RepairHeader::parse(&body),
            Err(RepairHeaderError::CoversNothing)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(body in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok((header, parity)) = RepairHeader::parse(&body) {
                prop_assert_eq!([&header.to_bytes()[..], parity].concat(), body);
            }
        }
    }
}
