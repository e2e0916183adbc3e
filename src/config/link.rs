//! The link that an invitation is: everything that a new client needs, and a secret that is good once.
//!
//! ```text
//! adit://<base64url, without padding, of:>
//!
//!  version (1) ‖ server's public key (32) ‖ token (32) ‖ ends (4) ‖ pins (1) ‖ pin (32), if there is one ‖
//!  addresses (1) ‖ for each: length (2) ‖ text ‖ check (4)
//! ```
//!
//! Numbers are big-endian. **ends** is in seconds since 1970, for people: the server decides by its own clock. **pin** is that
//! of the certificate of `tls://` and `wss://` lanes. An address is a text as `server:` of a configuration has it.
//! **check** is the beginning of SHA-256 over all before it: it tells a link that was damaged on its way, and keeps nobody
//! from making one up; that the token must do.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use thiserror::Error;
use zeroize::Zeroizing;

use super::address::LaneAddr;
use super::client::CertificatePin;
use super::parse;
use crate::proto::{KEY_LEN, PublicKey};
use crate::wire::{Reader, Short, TOKEN_LEN, Token};

/// An invitation as it is handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The server's identity.
    pub server_key: PublicKey,
    /// Where it is reached: 1 to [`MAX_SERVERS`], none twice.
    pub servers: Vec<LaneAddr>,
    /// The certificate that it shows, where that is its own.
    pub pin: Option<CertificatePin>,
    /// When the invitation ends, in whole seconds.
    pub ends: SystemTime,
    /// What makes it good.
    pub token: Token,
}

impl Link {
    /// Writes the link. It is a secret until it is used.
    ///
    /// # Errors
    /// [`LinkError::Servers`]: there are none, or too many, or they are too long.
    pub fn text(&self) -> Result<Zeroizing<String>, LinkError> {
        let count = self.servers.len();
        let wrong = LinkError::Servers { found: count };
        if !(1..=MAX_SERVERS).contains(&count) {
            return Err(wrong);
        }
        let ends = self.ends.duration_since(SystemTime::UNIX_EPOCH);
        let ends = ends.unwrap_or_default().as_secs();
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES));
        bytes.push(VERSION);
        bytes.extend_from_slice(self.server_key.as_bytes());
        bytes.extend_from_slice(self.token.as_bytes());
        bytes.extend_from_slice(&u32::try_from(ends).unwrap_or(u32::MAX).to_be_bytes());
        bytes.push(u8::from(self.pin.is_some()));
        if let Some(CertificatePin(pin)) = &self.pin {
            bytes.extend_from_slice(pin);
        }
        bytes.push(u8::try_from(count).unwrap_or(u8::MAX));
        for server in &self.servers {
            let text = server.to_string();
            bytes.extend_from_slice(&u16::try_from(text.len()).unwrap_or(0).to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        let check = check(&bytes);
        bytes.extend_from_slice(&check);
        if bytes.len() > MAX_BYTES {
            return Err(wrong);
        }
        let mut text = Zeroizing::new(String::with_capacity(MAX_LINK_LEN));
        text.push_str(SCHEME);
        URL_SAFE_NO_PAD.encode_string(&*bytes, &mut text);
        Ok(text)
    }
}

impl FromStr for Link {
    type Err = LinkError;

    /// Reads a link, in which a mail program or a terminal may have broken lines.
    fn from_str(text: &str) -> Result<Self, LinkError> {
        if text.len() > 2 * MAX_LINK_LEN {
            return Err(LinkError::Long);
        }
        let mut plain = Zeroizing::new(String::with_capacity(text.len()));
        plain.extend(text.chars().filter(|c| !c.is_whitespace()));
        let scheme = plain.get(..SCHEME.len());
        if !scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME)) {
            return Err(LinkError::Scheme);
        }
        let code = &plain[SCHEME.len()..];
        if code.len() > MAX_LINK_LEN {
            return Err(LinkError::Long);
        }
        if let Some(found) = code.chars().find(|c| !is_of_a_link(*c)) {
            return Err(LinkError::Character { found });
        }
        let bytes = URL_SAFE_NO_PAD.decode(code).map(Zeroizing::new);
        let bytes = bytes.map_err(|_| LinkError::Damaged)?;
        let version = *bytes.first().ok_or(LinkError::Damaged)?;
        let body_len = bytes.len().checked_sub(CHECK_LEN);
        let (body, found) = bytes.split_at(body_len.ok_or(LinkError::Damaged)?);
        // A later version may be checked in another way.
        if version == VERSION && check(body) != found {
            return Err(LinkError::Damaged);
        }
        if version != VERSION {
            return Err(LinkError::Version { found: version });
        }
        read(body)
    }
}

fn read(body: &[u8]) -> Result<Link, LinkError> {
    let mut reader = Reader::new(body);
    let _version = reader.u8()?;
    let server_key = PublicKey::from_bytes(reader.array::<KEY_LEN>()?);
    if server_key.is_nobodys() {
        return Err(LinkError::Key);
    }
    let token = Token::from_bytes(reader.array::<TOKEN_LEN>()?);
    let ends = SystemTime::UNIX_EPOCH + Duration::from_secs(reader.u32()?.into());
    let pin = match reader.u8()? {
        0 => None,
        1 => Some(CertificatePin(reader.array()?)),
        _ => return Err(LinkError::Damaged),
    };
    let count = usize::from(reader.u8()?);
    let mut servers = Vec::new();
    for _ in 0..count {
        let len = usize::from(reader.u16()?);
        let text = std::str::from_utf8(reader.take(len)?).map_err(|_| LinkError::Damaged)?;
        let server = parse::server(text).map_err(|reason| LinkError::Address { reason })?;
        if servers.contains(&server) {
            return Err(LinkError::Damaged);
        }
        servers.push(server);
    }
    if !(1..=MAX_SERVERS).contains(&count) {
        return Err(LinkError::Servers { found: count });
    }
    if !reader.rest().is_empty() {
        return Err(LinkError::Damaged);
    }
    Ok(Link {
        server_key,
        servers,
        pin,
        ends,
        token,
    })
}

fn check(bytes: &[u8]) -> [u8; CHECK_LEN] {
    let hash = digest::digest(&digest::SHA256, bytes);
    let mut check = [0; CHECK_LEN];
    check.copy_from_slice(&hash.as_ref()[..CHECK_LEN]);
    check
}

const fn is_of_a_link(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

/// Why a text is no invitation. Never repeats the text, which may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LinkError {
    /// It does not begin as one.
    #[error(
        "this is no invitation: a link begins with {SCHEME} and is what `adit invite` has printed"
    )]
    Scheme,
    /// It is longer than any.
    #[error("this is no invitation: it has more than {MAX_LINK_LEN} characters")]
    Long,
    /// A character is none of a link.
    #[error("the link is damaged: {found:?} is in it, which no link has; copy it anew, as a whole")]
    Character {
        /// The character.
        found: char,
    },
    /// Something was changed, lost or added.
    #[error("the link is damaged: characters are missing or changed; copy it anew, as a whole")]
    Damaged,
    /// It is for a later program.
    #[error(
        "the link is of version {found}, and this adit reads version {VERSION}: use a newer one"
    )]
    Version {
        /// Its version.
        found: u8,
    },
    /// The server's key can be nobody's.
    #[error("the server's key in the link can be nobody's: have another link made")]
    Key,
    /// An address is none.
    #[error("the link names a server that cannot be reached so: {reason}")]
    Address {
        /// What is wrong with it.
        reason: String,
    },
    /// Too few or too many addresses, or too long ones.
    #[error(
        "a link names 1 to {MAX_SERVERS} addresses of a server in {MAX_BYTES} bytes, not {found}"
    )]
    Servers {
        /// How many there are.
        found: usize,
    },
}

impl From<Short> for LinkError {
    fn from(_: Short) -> Self {
        Self::Damaged
    }
}

/// What a link begins with.
pub const SCHEME: &str = "adit://";

/// Addresses in a link: each way in, over both families, twice.
pub const MAX_SERVERS: usize = 16;

/// Characters behind the scheme: what still fits a QR code of a screen's height.
pub const MAX_LINK_LEN: usize = 2048;

const MAX_BYTES: usize = MAX_LINK_LEN / 4 * 3;

const VERSION: u8 = 1;

/// One damaged link in four thousand million goes unnoticed here, and is then refused by the server.
const CHECK_LEN: usize = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::SecretKey;

    fn link() -> Link {
        Link {
            server_key: SecretKey::from_bytes([7; 32]).public(),
            servers: ["udp://203.0.113.7:7443", "wss://vpn.example.com:443/adit"]
                .map(|text| text.parse().unwrap())
                .into(),
            pin: None,
            ends: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            token: Token::from_bytes([9; TOKEN_LEN]),
        }
    }

    #[test]
    fn link_survives_a_round_trip_also_with_its_lines_broken() {
        let pinned = Link {
            pin: Some(CertificatePin([3; 32])),
            ..link()
        };
        for link in [link(), pinned] {
            let text = link.text().unwrap();
            assert_eq!(text.parse(), Ok(link.clone()));
            let broken = format!(" {}\n {}\r\n", &text[..40], &text[40..]);
            assert_eq!(broken.parse(), Ok(link.clone()));
            let shouted = text.replacen("adit", "ADIT", 1);
            assert_eq!(shouted.parse(), Ok(link));
        }
    }

    #[test]
    fn each_single_bit_that_is_changed_is_noticed() {
        let text = link().text().unwrap();
        for at in SCHEME.len()..text.len() {
            for bit in 0..7 {
                let mut bytes = text.as_bytes().to_vec();
                bytes[at] ^= 1 << bit;
                let changed = String::from_utf8(bytes).unwrap();
                let read = changed.parse::<Link>();
                assert!(read.is_err(), "{at}/{bit}: {read:?}");
            }
        }
    }

    #[test]
    fn what_is_missing_or_added_is_noticed() {
        let text = link().text().unwrap();
        for len in 0..text.len() {
            assert!(text[..len].parse::<Link>().is_err(), "{len}");
        }
        assert_eq!(
            format!("{}A", *text).parse::<Link>(),
            Err(LinkError::Damaged)
        );
        assert_eq!(
            "https://example.com".parse::<Link>(),
            Err(LinkError::Scheme)
        );
        let comma = text.replacen('A', ",", 1);
        assert_eq!(
            comma.parse::<Link>(),
            Err(LinkError::Character { found: ',' })
        );
        let long = format!("{SCHEME}{}", "A".repeat(MAX_LINK_LEN + 1));
        assert_eq!(long.parse::<Link>(), Err(LinkError::Long));
    }

    #[test]
    fn later_version_says_so() {
        let mut bytes = URL_SAFE_NO_PAD
            .decode(&link().text().unwrap()[SCHEME.len()..])
            .unwrap();
        bytes[0] = 2;
        let text = format!("{SCHEME}{}", URL_SAFE_NO_PAD.encode(bytes));
        assert_eq!(text.parse::<Link>(), Err(LinkError::Version { found: 2 }));
    }

    #[test]
    fn addresses_are_bounded() {
        let of = |count: u16| Link {
            servers: (0..count)
                .map(|port| format!("udp://h:{}", port + 1).parse().unwrap())
                .collect(),
            ..link()
        };
        assert_eq!(of(0).text().unwrap_err(), LinkError::Servers { found: 0 });
        assert_eq!(of(17).text().unwrap_err(), LinkError::Servers { found: 17 });
        assert!(of(16).text().unwrap().parse::<Link>().is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_survives_a_round_trip(text in ".{0,200}") {
            for text in [text.clone(), format!("{SCHEME}{text}")] {
                if let Ok(link) = text.parse::<Link>() {
                    prop_assert_eq!(link.text().unwrap().parse::<Link>(), Ok(link));
                }
            }
        }

        /// With a right check, so that what is behind it is reached.
        #[test]
        fn any_bytes_are_refused_or_survive_a_round_trip(
            tail in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let mut bytes = vec![VERSION];
            bytes.extend_from_slice(link().server_key.as_bytes());
            bytes.extend_from_slice(&[1; TOKEN_LEN + 4]);
            bytes.extend_from_slice(&tail);
            bytes.extend_from_slice(&check(&bytes));
            let text = format!("{SCHEME}{}", URL_SAFE_NO_PAD.encode(&bytes));
            if let Ok(link) = text.parse::<Link>() {
                prop_assert_eq!(&*link.text().unwrap(), &text);
            }
        }
    }
}
