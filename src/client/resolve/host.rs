//! What an application names as its destination: an address or a host name.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use thiserror::Error;

/// A destination's host, checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A host name in lower case without a final dot, at most 253 bytes of ASCII.
    Name(String),
}

impl Host {
    /// Reads a host as applications write it: an address literal (IPv6 with or without
    /// brackets) or a name.
    ///
    /// Underscores are allowed, as names of services have them. A name whose last label
    /// is a number is refused, since some programs would read it as an address.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the name.
    pub fn parse(bytes: &[u8]) -> Result<Self, HostError> {
        let text = std::str::from_utf8(bytes).map_err(|_| HostError::Characters)?;
        if let Some(literal) = text.strip_prefix('[') {
            let literal = literal.strip_suffix(']').ok_or(HostError::Literal)?;
            return Ipv6Addr::from_str(literal)
                .map(|address| Self::Ip(address.into()))
                .map_err(|_| HostError::Literal);
        }
        if let Ok(address) = IpAddr::from_str(text) {
            return Ok(Self::Ip(address));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(HostError::Empty);
        }
        if name.len() > MAX_NAME {
            return Err(HostError::Long { len: name.len() });
        }
        let mut last = "";
        for label in name.split('.') {
            if label.is_empty() || label.len() > MAX_LABEL {
                return Err(HostError::Label { len: label.len() });
            }
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            if !label.bytes().all(legal) {
                return Err(HostError::Characters);
            }
            last = label;
        }
        let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
        if last.bytes().all(|byte| byte.is_ascii_digit())
            || hex.is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
        {
            return Err(HostError::Literal);
        }
        Ok(Self::Name(name.to_ascii_lowercase()))
    }
}

impl From<Ipv4Addr> for Host {
    fn from(address: Ipv4Addr) -> Self {
        Self::Ip(address.into())
    }
}

impl From<Ipv6Addr> for Host {
    fn from(address: Ipv6Addr) -> Self {
        Self::Ip(address.into())
    }
}

impl fmt::Display for Host {
    /// Writes the host as it stands in a URL: IPv6 in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V4(address)) => address.fmt(f),
            Self::Ip(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// Why some bytes are not a host.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostError {
    /// There is nothing.
    #[error("the host is empty")]
    Empty,
    /// The name is too long.
    #[error("the host name has {len} bytes; 253 are allowed")]
    Long {
        /// Its length in bytes.
        len: usize,
    },
    /// A part between dots is empty or too long.
    #[error("a label of the host name has {len} bytes; 1 to 63 are allowed")]
    Label {
        /// Its length in bytes.
        len: usize,
    },
    /// The name has bytes that no host name has.
    #[error("the host name has characters other than letters, digits, '-' and '_'")]
    Characters,
    /// It looks like an address but is none.
    #[error("the host looks like an address but is none")]
    Literal,
}

/// RFC 1035 section 3.1: 255 bytes on the wire, two of them the first length and the end.
const MAX_NAME: usize = 253;

/// RFC 1035 section 3.1.
const MAX_LABEL: usize = 63;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn literals_and_names_are_told_apart() {
        let ip = |text: &str| Ok(Host::Ip(text.parse().unwrap()));
        let name = |text: &str| Ok(Host::Name(text.to_owned()));
        let cases: &[(&[u8], Result<Host, HostError>)] = &[
            (b"192.0.2.1", ip("192.0.2.1")),
            (b"2001:db8::1", ip("2001:db8::1")),
            (b"[2001:db8::1]", ip("2001:db8::1")),
            (b"Example.COM.", name("example.com")),
            (b"_dmarc.example.com", name("_dmarc.example.com")),
            (b"xn--bcher-kva.example", name("xn--bcher-kva.example")),
            (b"localhost", name("localhost")),
            (b"1password.com", name("1password.com")),
            (b"0xbeef.example", name("0xbeef.example")),
            (b"", Err(HostError::Empty)),
            (b".", Err(HostError::Empty)),
            (b"a..b", Err(HostError::Label { len: 0 })),
            (b".a", Err(HostError::Label { len: 0 })),
            (b"127.1", Err(HostError::Literal)),
            (b"2130706433", Err(HostError::Literal)),
            (b"0x7f000001", Err(HostError::Literal)),
            (b"256.0.0.1", Err(HostError::Literal)),
            (b"[127.0.0.1]", Err(HostError::Literal)),
            (b"[::1", Err(HostError::Literal)),
            (b"::1]", Err(HostError::Characters)),
            (b"a b", Err(HostError::Characters)),
            (b"a\0b", Err(HostError::Characters)),
            (b"a/b", Err(HostError::Characters)),
            (b"user@host", Err(HostError::Characters)),
            ("b\u{fc}cher.example".as_bytes(), Err(HostError::Characters)),
            (b"\xff\xfe", Err(HostError::Characters)),
        ];
        for (input, expected) in cases {
            assert_eq!(Host::parse(input), *expected, "{}", input.escape_ascii());
        }
    }

    #[test]
    fn lengths_are_those_of_rfc_1035() {
        let label = "a".repeat(63);
        let longest = [&label[..], &label, &label, &label[..61]].join(".");
        assert_eq!(longest.len(), 253);
        assert!(Host::parse(longest.as_bytes()).is_ok());
        let longer = format!("{longest}a");
        assert_eq!(
            Host::parse(longer.as_bytes()),
            Err(HostError::Long { len: 254 })
        );
        assert_eq!(
            Host::parse("a".repeat(64).as_bytes()),
            Err(HostError::Label { len: 64 })
        );
    }

    proptest! {
        #[test]
        fn what_is_displayed_is_read_back(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(host) = Host::parse(&bytes) {
                prop_assert_eq!(Host::parse(host.to_string().as_bytes()), Ok(host));
            }
        }

        #[test]
        fn names_are_read_back(text in "[a-zA-Z0-9._:\\[\\]-]{0,80}") {
            if let Ok(host) = Host::parse(text.as_bytes()) {
                prop_assert_eq!(Host::parse(host.to_string().as_bytes()), Ok(host));
            }
        }
    }
}
