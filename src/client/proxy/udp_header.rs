//! The header in front of datagrams on a SOCKS5 UDP relay (RFC 1928 section 7).
//!
//! ```text
//!  00 00 | fragment | type | address | port | payload…
//! ```

use std::net::SocketAddr;

use thiserror::Error;

use super::socks::{Reader, SocksError, read_address, write_address};
use crate::client::resolve::{Host, HostError};

/// Reads the header of a datagram from the application: destination and payload.
///
/// # Errors
///
/// Why the datagram is to be dropped; each reason has a counter in the relay.
pub fn decode(datagram: &[u8]) -> Result<(Host, u16, &[u8]), UdpHeaderError> {
    let mut reader = Reader(datagram);
    let Some([_, _, fragment]) = reader.array() else {
        return Err(UdpHeaderError::Truncated);
    };
    if fragment != 0 {
        return Err(UdpHeaderError::Fragment { fragment });
    }
    match read_address(&mut reader) {
        Ok(Some((host, port))) => Ok((host, port, reader.0)),
        Ok(None) => Err(UdpHeaderError::Truncated),
        Err(SocksError::AddressType { kind }) => Err(UdpHeaderError::AddressType { kind }),
        Err(SocksError::Host(error)) => Err(UdpHeaderError::Host(error)),
        // An address has no other faults.
        Err(
            SocksError::Version { .. }
            | SocksError::NoMethod
            | SocksError::PasswordWanted
            | SocksError::WrongPassword
            | SocksError::Command { .. }
            | SocksError::FieldTooLong,
        ) => Err(UdpHeaderError::Truncated),
    }
}

/// Appends the header of a datagram to the application: who sent the payload.
///
/// Ten bytes for IPv4, 22 for IPv6; the payload goes behind it.
pub fn encode(from: SocketAddr, out: &mut Vec<u8>) {
    out.extend([0, 0, 0]);
    write_address(out, from);
}

/// The shortest header, in bytes: three in front, a type, a name of one byte behind its length, a port.
pub const MIN_LEN: usize = 8;

/// Why a datagram of the application cannot be relayed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum UdpHeaderError {
    /// The datagram ends within the header.
    #[error("the datagram is shorter than its header")]
    Truncated,
    /// Fragments may be dropped (RFC 1928 section 7), and are.
    #[error("fragment {fragment} of a datagram; fragments are not supported")]
    Fragment {
        /// Its number and end bit.
        fragment: u8,
    },
    /// The type of address is unknown.
    #[error("address type {kind} is not supported")]
    AddressType {
        /// The type.
        kind: u8,
    },
    /// The host name is not one.
    #[error("bad destination: {0}")]
    Host(#[from] HostError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr};

    #[test]
    fn datagrams_are_read_or_refused_with_the_reason() {
        let v4 = Host::Ip(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
        let name = Host::Name("a.test".to_owned());
        assert_eq!(
            decode(b"\0\0\0\x01\xc0\x00\x02\x01\x00\x35payload"),
            Ok((v4, 53, &b"payload"[..]))
        );
        assert_eq!(
            decode(b"\0\0\0\x03\x06A.test\x00\x35"),
            Ok((name, 53, &b""[..]))
        );
        let refused: [(&[u8], UdpHeaderError); 8] = [
            (b"", UdpHeaderError::Truncated),
            (b"\0\0", UdpHeaderError::Truncated),
            (b"\0\0\0", UdpHeaderError::Truncated),
            (b"\0\0\0\x01\x7f\0\0\x01\x00", UdpHeaderError::Truncated),
            (b"\0\0\0\x03\x06a.test\x00", UdpHeaderError::Truncated),
            (
                b"\0\0\x01\x01\x7f\0\0\x01\x00\x35x",
                UdpHeaderError::Fragment { fragment: 1 },
            ),
            (
                b"\0\0\0\x02\x7f\0\0\x01\x00\x35x",
                UdpHeaderError::AddressType { kind: 2 },
            ),
            (
                b"\0\0\0\x03\x00\x00\x35x",
                UdpHeaderError::Host(HostError::Empty),
            ),
        ];
        for (input, error) in refused {
            assert_eq!(decode(input), Err(error), "{}", input.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(from: SocketAddr, payload: Vec<u8>) {
            let mut datagram = Vec::new();
            encode(from, &mut datagram);
            prop_assert!(datagram.len() <= 22);
            datagram.extend_from_slice(&payload);
            let expected = (Host::Ip(from.ip()), from.port(), &payload[..]);
            prop_assert_eq!(decode(&datagram), Ok(expected));
        }

        #[test]
        fn arbitrary_datagrams_never_panic(mut datagram: Vec<u8>, kind in 0..6_u8) {
            if let Ok((_, _, payload)) = decode(&datagram) {
                prop_assert!(payload.len() < datagram.len());
            }
            if let Some(head) = datagram.get_mut(..4) {
                head.copy_from_slice(&[0, 0, 0, kind]);
                let _either = decode(&datagram);
            }
        }
    }
}
