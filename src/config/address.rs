//! The address of a lane, `scheme://host:port` or `wss://host/path`, as a configuration names it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where one lane of a session can be reached: `udp://203.0.113.7:7443`, `tls://vpn.example.com:8443`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LaneAddr {
    /// How the lane is carried.
    pub scheme: Scheme,
    /// The host by name or by address.
    pub host: Host,
    /// The port; 0 only where it is bound ("any free port").
    pub port: u16,
    /// The path of a WebSocket, which begins with `/`; empty where the scheme has none.
    pub path: String,
}

/// How a lane is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Datagrams, with loss repair and congestion control of the session's own.
    Udp,
    /// Frames on a plain TCP connection.
    Tcp,
    /// Frames inside TLS 1.3 on a TCP connection.
    Tls,
    /// Frames inside a WebSocket inside TLS 1.3: what reverse proxies pass.
    Wss,
    /// Frames inside a WebSocket on a plain TCP connection: what a reverse proxy that ends TLS makes of it.
    Ws,
}

/// A host by name or by address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A DNS name, without a final dot, as it was written.
    Name(String),
    /// An address.
    Ip(IpAddr),
}

impl Scheme {
    /// Every scheme, in the order in which they are named to people.
    pub const ALL: [Self; 5] = [Self::Udp, Self::Tcp, Self::Tls, Self::Wss, Self::Ws];

    /// The word in front of `://`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Wss => "wss",
            Self::Ws => "ws",
        }
    }

    /// Tells whether such lanes are byte streams, not datagrams.
    pub const fn is_stream(self) -> bool {
        match self {
            Self::Udp => false,
            Self::Tcp | Self::Tls | Self::Wss | Self::Ws => true,
        }
    }

    /// Tells whether there is TLS under such lanes.
    pub const fn is_tls(self) -> bool {
        match self {
            Self::Tls | Self::Wss => true,
            Self::Udp | Self::Tcp | Self::Ws => false,
        }
    }

    /// Tells whether such lanes are WebSockets, which have a path.
    pub const fn is_websocket(self) -> bool {
        match self {
            Self::Wss | Self::Ws => true,
            Self::Udp | Self::Tcp | Self::Tls => false,
        }
    }

    /// The port that is meant where none is written: that of the web, for what looks like it.
    const fn default_port(self) -> Option<u16> {
        match self {
            Self::Wss => Some(443),
            Self::Ws => Some(80),
            Self::Udp | Self::Tcp | Self::Tls => None,
        }
    }
}

impl LaneAddr {
    /// Makes an address without a name in it; a WebSocket has the path `/`.
    pub fn new(scheme: Scheme, host: Host, port: u16) -> Self {
        let path = if scheme.is_websocket() { "/" } else { "" };
        Self {
            scheme,
            host,
            port,
            path: path.to_owned(),
        }
    }

    /// The host and, unless it is the usual one, the port, as a request over HTTP names them (RFC 9110, section 7.2).
    pub fn authority(&self) -> String {
        if self.scheme.default_port() == Some(self.port) {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for LaneAddr {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(AddressError::NoScheme {
                found: text.to_owned(),
                rest: without_scheme(text).to_owned(),
            });
        };
        if text.contains(',') {
            return Err(AddressError::Several {
                found: text.to_owned(),
            });
        }
        let scheme: Scheme = scheme.parse()?;
        let (authority, path) = if scheme.is_websocket() {
            let at = rest.find('/').unwrap_or(rest.len());
            let (authority, path) = rest.split_at(at);
            (authority, if path.is_empty() { "/" } else { path })
        } else {
            // A pasted URL often ends in a slash, which changes nothing.
            (rest.strip_suffix('/').unwrap_or(rest), "")
        };
        if authority.contains(['/', '?', '#', '@']) {
            return Err(AddressError::NotOnlyHostAndPort {
                found: text.to_owned(),
            });
        }
        if !path.bytes().all(is_of_a_path) || path.len() > MAX_PATH {
            return Err(AddressError::BadPath {
                found: path.to_owned(),
            });
        }
        let (host, port) = split_port(scheme, authority)?;
        Ok(Self {
            scheme,
            host: host.parse()?,
            port,
            path: path.to_owned(),
        })
    }
}

impl FromStr for Scheme {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::ALL
            .into_iter()
            .find(|scheme| scheme.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| AddressError::UnknownScheme {
                found: text.to_owned(),
            })
    }
}

impl FromStr for Host {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(inner) = text.strip_prefix('[') {
            let Some(inner) = inner.strip_suffix(']') else {
                return Err(AddressError::OpenBracket {
                    found: text.to_owned(),
                });
            };
            return match inner.parse::<Ipv6Addr>() {
                Ok(ip) => Ok(Self::Ip(ip.into())),
                Err(_) => Err(AddressError::NotIpv6 {
                    found: inner.to_owned(),
                }),
            };
        }
        if let Ok(ip) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Ip(ip.into()));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if is_host_name(name) {
            Ok(Self::Name(name.to_owned()))
        } else {
            Err(AddressError::NotAName {
                found: text.to_owned(),
            })
        }
    }
}

impl TryFrom<String> for LaneAddr {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<LaneAddr> for String {
    fn from(address: LaneAddr) -> Self {
        address.to_string()
    }
}

impl fmt::Display for LaneAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}://{}:{}{}",
            self.scheme, self.host, self.port, self.path
        )
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
        }
    }
}

/// Why a text is not the address of a lane.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// There is no `://`.
    #[error(
        "`{found}` does not say how to connect: write udp://{rest}, tcp://{rest}, tls://{rest} or wss://{rest}"
    )]
    NoScheme {
        /// The text.
        found: String,
        /// The host and the port in it.
        rest: String,
    },
    /// A comma: a list where one address is expected.
    #[error("`{found}` is more than one address: give each by itself, in a file as [one, two]")]
    Several {
        /// The text.
        found: String,
    },
    /// The word in front of `://` is none that is known.
    #[error(
        "`{found}` is not a kind of lane: write udp://, tcp://, tls:// or wss://{}",
        web(found)
    )]
    UnknownScheme {
        /// The word.
        found: String,
    },
    /// Something other than a host and a port follows the scheme.
    #[error("`{found}` is more than a host and a port: write scheme://host:port")]
    NotOnlyHostAndPort {
        /// The text.
        found: String,
    },
    /// The path is none, or too long.
    #[error(
        "`{found}` is not a path: write one of at most {MAX_PATH} letters, digits and - . _ ~ / after the port, such as wss://host/adit"
    )]
    BadPath {
        /// The text behind the port.
        found: String,
    },
    /// The port is missing.
    #[error("`{scheme}://{host}` has no port: write {scheme}://{host}:7443")]
    NoPort {
        /// How to connect.
        scheme: Scheme,
        /// The host.
        host: String,
    },
    /// The port is not a number of 16 bits.
    #[error("`{found}` is not a port: write a number from 1 to 65535")]
    BadPort {
        /// The text after the last colon.
        found: String,
    },
    /// An IPv6 address stands without its brackets.
    #[error("`{found}` is an IPv6 address without brackets: write {scheme}://[{found}]:7443")]
    NoBrackets {
        /// How to connect.
        scheme: Scheme,
        /// The address.
        found: String,
    },
    /// A bracket is opened and not closed.
    #[error("`{found}` lacks the bracket at its end: write one like [2001:db8::1]:7443")]
    OpenBracket {
        /// The host.
        found: String,
    },
    /// What stands in brackets is not an IPv6 address.
    #[error("`{found}` is not an IPv6 address: write one like [2001:db8::1]:7443")]
    NotIpv6 {
        /// The text in the brackets.
        found: String,
    },
    /// The host is neither an address nor a possible name.
    #[error(
        "`{found}` is neither a host name nor an IP address: write one like vpn.example.com or 203.0.113.7"
    )]
    NotAName {
        /// The text.
        found: String,
    },
}

/// Says what is meant by somebody who wrote the scheme of a web page.
fn web(scheme: &str) -> &'static str {
    match scheme {
        "https" => " (for https://, wss://)",
        "http" => " (for http://, ws://)",
        _ => "",
    }
}

/// Whether a byte may stand in the path of a URL (RFC 3986, section 3.3), without commas, which separate addresses.
fn is_of_a_path(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+;=:@".contains(&byte)
}

/// The host and the port, where a scheme stands before them but not `://` in between.
fn without_scheme(text: &str) -> &str {
    match text.split_once(':') {
        Some((word, rest)) if word.parse::<Scheme>().is_ok() && rest.contains(':') => {
            rest.trim_start_matches('/')
        }
        Some(_) | None => text,
    }
}

/// Splits `host:port`, where an IPv6 host stands in brackets.
fn split_port(scheme: Scheme, text: &str) -> Result<(&str, u16), AddressError> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(AddressError::NoBrackets {
            scheme,
            found: text.to_owned(),
        });
    }
    let no_port = || AddressError::NoPort {
        scheme,
        host: text.to_owned(),
    };
    let whole = text.ends_with(']') || !text.contains(':');
    if let (true, Some(port)) = (whole, scheme.default_port()) {
        return Ok((text, port));
    }
    if whole {
        return Err(no_port());
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(no_port)?;
    // `str::parse` would take a leading `+`.
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(AddressError::BadPort {
            found: port.to_owned(),
        });
    }
    match port.parse() {
        Ok(number) => Ok((host, number)),
        Err(_) => Err(AddressError::BadPort {
            found: port.to_owned(),
        }),
    }
}

/// Whether `name` could be a host name (RFC 1123, section 2.1), underscores allowed as resolvers do.
fn is_host_name(name: &str) -> bool {
    let label_fits = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    // All digits and dots is a mistyped address (RFC 1123, section 2.1), not a name.
    let numeric = name
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    name.len() <= MAX_NAME && !numeric && name.split('.').all(label_fits)
}

/// Bytes in the path of a WebSocket: more than anybody types, and little of a request's head.
const MAX_PATH: usize = 255;

/// Octets in one label of a name (RFC 1035, section 2.3.4).
const MAX_LABEL: usize = 63;

/// Characters in a name without its final dot: 255 octets with length bytes and root (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 253;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<LaneAddr, String> {
        text.parse()
            .map_err(|error: AddressError| error.to_string())
    }

    #[test]
    fn well_formed_addresses_come_back_as_written() {
        for text in [
            "tcp://203.0.113.7:7443",
            "udp://[2001:db8::1]:7443",
            "tls://vpn.example.com:8443",
            "tcp://[2001:db8::1]:1",
            "tcp://0.0.0.0:0",
            "tls://a_b.x-y:65535",
            "wss://vpn.example.com:8443/adit",
            "ws://127.0.0.1:8080/a/b-c~d/%7e",
            "wss://[2001:db8::1]:443/",
        ] {
            assert_eq!(parse(text).expect(text).to_string(), text);
        }
        assert_eq!(
            parse("TLS://Vpn.Example.:1/")
                .expect("case and slash")
                .to_string(),
            "tls://Vpn.Example:1"
        );
    }

    #[test]
    fn websocket_has_the_port_and_the_path_of_the_web() {
        for (text, whole, authority) in [
            ("wss://h", "wss://h:443/", "h"),
            ("wss://h/adit/", "wss://h:443/adit/", "h"),
            ("ws://h", "ws://h:80/", "h"),
            ("wss://[::1]/x", "wss://[::1]:443/x", "[::1]"),
            ("wss://h:80/x", "wss://h:80/x", "h:80"),
            ("ws://h:443", "ws://h:443/", "h:443"),
        ] {
            let address = parse(text).expect(text);
            assert_eq!(address.to_string(), whole);
            assert_eq!(address.authority(), authority);
        }
    }

    #[test]
    fn each_mistake_is_answered_with_what_would_be_right() {
        for (text, right) in [
            ("vpn.example.com:7443", "write udp://vpn.example.com:7443"),
            ("udp:/h:7443", "write udp://h:7443"),
            ("udp:h:7443", "write udp://h:7443"),
            ("udp:7443", "write udp://udp:7443"),
            ("udp://a:1, tls://b:2", "more than one address"),
            ("udp://a:1,b:2", "more than one address"),
            ("sctp://h:1", "`sctp` is not a kind of lane"),
            ("https://h/x", "or wss:// (for https://, wss://)"),
            ("wss://h/x?y=z", "`/x?y=z` is not a path"),
            ("wss://h/x y", "`/x y` is not a path"),
            ("wss://user@h/x", "more than a host and a port"),
            ("wss://h:x/y", "`x` is not a port"),
            ("udp://h", "`udp://h` has no port: write udp://h:7443"),
            ("tcp://[::1]", "write tcp://[::1]:7443"),
            ("tcp://::1", "without brackets: write tcp://[::1]:7443"),
            ("tcp://[::1:5", "lacks the bracket at its end"),
            ("tcp://h:", "`` is not a port"),
            ("tcp://h:+1", "`+1` is not a port"),
            ("tcp://h:65536", "from 1 to 65535"),
            ("tcp://h:1/path", "more than a host and a port"),
            ("tcp://user@h:1", "more than a host and a port"),
            ("tcp://[fe80::g]:1", "not an IPv6 address"),
            ("tcp://1.2.3:1", "neither a host name nor an IP address"),
            ("tcp://a..b:1", "neither a host name nor an IP address"),
            ("tcp://-a:1", "neither a host name nor an IP address"),
            ("tcp://:1", "neither a host name nor an IP address"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(right), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_survives_a_round_trip(text in ".{0,64}") {
            if let Ok(address) = text.parse::<LaneAddr>() {
                prop_assert_eq!(address.to_string().parse::<LaneAddr>(), Ok(address));
            }
        }
    }
}
