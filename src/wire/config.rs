//! The configuration a server gives its client: fields of `tag (1) ‖ length (2) ‖ value`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::reader::{Reader, Short};

/// What the client shall use inside the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InnerConfig {
    /// The client's IPv4 address and the length of its network's prefix.
    pub v4: Option<(Ipv4Addr, u8)>,
    /// The client's IPv6 address and the length of its network's prefix.
    pub v6: Option<(Ipv6Addr, u8)>,
    /// The server's address in the IPv4 network.
    pub gateway4: Option<Ipv4Addr>,
    /// The server's address in the IPv6 network.
    pub gateway6: Option<Ipv6Addr>,
    /// Resolvers to ask through the tunnel, at most [`MAX_DNS`].
    pub dns: Vec<IpAddr>,
    /// Largest IP packet inside the tunnel, in bytes, [`MIN_MTU`] to [`MAX_MTU`].
    pub mtu: u16,
    /// Records of names, each in words (`nas.home A 192.168.1.5`), at most [`MAX_RECORDS_LEN`] bytes of fields in all.
    pub records: Vec<String>,
}

impl Default for InnerConfig {
    /// No address, no gateway, no resolver, [`DEFAULT_MTU`].
    fn default() -> Self {
        Self {
            v4: None,
            v6: None,
            gateway4: None,
            gateway6: None,
            dns: Vec::new(),
            mtu: DEFAULT_MTU,
            records: Vec::new(),
        }
    }
}

impl InnerConfig {
    /// Returns the session's own addresses, of either family.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let v4 = self.v4.map(|(address, _)| IpAddr::V4(address));
        let v6 = self.v6.map(|(address, _)| IpAddr::V6(address));
        v4.into_iter().chain(v6).collect()
    }

    /// Appends the fields. Resolvers beyond [`MAX_DNS`] are left out, and records that do not fit.
    pub fn write(&self, out: &mut Vec<u8>) {
        if let Some((address, prefix)) = self.v4 {
            field(out, TAG_V4, &[&address.octets(), &[prefix]]);
        }
        if let Some((address, prefix)) = self.v6 {
            field(out, TAG_V6, &[&address.octets(), &[prefix]]);
        }
        if let Some(address) = self.gateway4 {
            field(out, TAG_GATEWAY4, &[&address.octets()]);
        }
        if let Some(address) = self.gateway6 {
            field(out, TAG_GATEWAY6, &[&address.octets()]);
        }
        for address in self.dns.iter().take(MAX_DNS) {
            match address {
                IpAddr::V4(address) => field(out, TAG_DNS, &[&address.octets()]),
                IpAddr::V6(address) => field(out, TAG_DNS, &[&address.octets()]),
            }
        }
        field(out, TAG_MTU, &[&self.mtu.to_be_bytes()]);
        let mut room = MAX_RECORDS_LEN;
        for record in &self.records {
            let Some(left) = room.checked_sub(record_field_len(record)) else {
                break;
            };
            room = left;
            field(out, TAG_RECORD, &[record.as_bytes()]);
        }
    }

    /// Reads the fields; unknown tags are skipped, a missing MTU is [`DEFAULT_MTU`].
    ///
    /// # Errors
    /// [`ConfigError`] for a truncated field, a value of the wrong length or range, or a field that
    /// comes twice.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(bytes);
        let mut config = Self::default();
        let mut mtu = None;
        while !reader.is_empty() {
            let tag = reader.u8()?;
            let len = reader.u16()?;
            let value = reader.take(usize::from(len))?;
            match tag {
                TAG_V4 => {
                    let [a, b, c, d, prefix] = exact(tag, value)?;
                    let address = Ipv4Addr::new(a, b, c, d);
                    once(tag, &mut config.v4, (address, at_most(tag, prefix, 32)?))?;
                }
                TAG_V6 => {
                    let bytes: [u8; 17] = exact(tag, value)?;
                    let [octets @ .., prefix] = bytes;
                    once(
                        tag,
                        &mut config.v6,
                        (Ipv6Addr::from(octets), at_most(tag, prefix, 128)?),
                    )?;
                }
                TAG_GATEWAY4 => {
                    once(
                        tag,
                        &mut config.gateway4,
                        Ipv4Addr::from(exact::<4>(tag, value)?),
                    )?;
                }
                TAG_GATEWAY6 => {
                    once(
                        tag,
                        &mut config.gateway6,
                        Ipv6Addr::from(exact::<16>(tag, value)?),
                    )?;
                }
                TAG_DNS => {
                    if config.dns.len() == MAX_DNS {
                        return Err(ConfigError::TooManyDns);
                    }
                    config.dns.push(match value.len() {
                        4 => IpAddr::from(exact::<4>(tag, value)?),
                        _ => IpAddr::from(exact::<16>(tag, value)?),
                    });
                }
                TAG_MTU => {
                    let value = u16::from_be_bytes(exact(tag, value)?);
                    if !(MIN_MTU..=MAX_MTU).contains(&value) {
                        return Err(ConfigError::Mtu { found: value });
                    }
                    once(tag, &mut mtu, value)?;
                }
                // What is no text is of a kind that is not known yet, as an unknown tag is.
                TAG_RECORD => {
                    if let Ok(text) = std::str::from_utf8(value) {
                        config.records.push(text.to_owned());
                    }
                }
                _ => {}
            }
        }
        config.mtu = mtu.unwrap_or(DEFAULT_MTU);
        let records: usize = config
            .records
            .iter()
            .map(|text| record_field_len(text))
            .sum();
        if records > MAX_RECORDS_LEN {
            return Err(ConfigError::TooManyRecords { len: records });
        }
        Ok(config)
    }
}

/// Why the fields of a Config frame are wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The bytes end within a field.
    #[error("configuration: {0}")]
    Short(#[from] Short),
    /// A value has a length its tag does not allow.
    #[error("configuration field {tag} with {len} bytes")]
    Value {
        /// The field's tag.
        tag: u8,
        /// Bytes its value has.
        len: usize,
    },
    /// A prefix is longer than its address.
    #[error("configuration field {tag} has a prefix of {prefix} bits")]
    Prefix {
        /// The field's tag.
        tag: u8,
        /// The prefix length found.
        prefix: u8,
    },
    /// A field that may come once came again.
    #[error("configuration field {tag} comes twice")]
    Twice {
        /// The field's tag.
        tag: u8,
    },
    /// More resolvers than a client keeps.
    #[error("more than {MAX_DNS} resolvers")]
    TooManyDns,
    /// More records than a client keeps.
    #[error("records of {len} bytes, not {MAX_RECORDS_LEN}")]
    TooManyRecords {
        /// Bytes that their fields have.
        len: usize,
    },
    /// The MTU is out of range.
    #[error("mtu {found}, not {MIN_MTU} to {MAX_MTU}")]
    Mtu {
        /// The value found.
        found: u16,
    },
}

fn field(out: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.push(tag);
    out.extend_from_slice(&(len as u16).to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

fn exact<const N: usize>(tag: u8, value: &[u8]) -> Result<[u8; N], ConfigError> {
    value.try_into().map_err(|_| ConfigError::Value {
        tag,
        len: value.len(),
    })
}

fn once<T>(tag: u8, slot: &mut Option<T>, value: T) -> Result<(), ConfigError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(ConfigError::Twice { tag }),
    }
}

fn at_most(tag: u8, prefix: u8, most: u8) -> Result<u8, ConfigError> {
    if prefix <= most {
        Ok(prefix)
    } else {
        Err(ConfigError::Prefix { tag, prefix })
    }
}

/// Inner MTU when nobody says otherwise: leaves room for our headers, UDP, IPv6 and a PPPoE or VLAN
/// header in 1500.
pub const DEFAULT_MTU: u16 = 1400;

/// Smallest inner MTU: what IPv6 asks of every link (RFC 8200, section 5).
pub const MIN_MTU: u16 = 1280;

/// Largest inner MTU: jumbo frames; more gains nothing over super-packets.
pub const MAX_MTU: u16 = 9000;

/// Bytes of all records' fields: on a datagram lane a Config frame has two datagrams, which the rest leaves so much of.
pub const MAX_RECORDS_LEN: usize = 1536;

/// Resolvers in a configuration: more than any resolver library asks.
pub const MAX_DNS: usize = 8;

const TAG_V4: u8 = 1;
const TAG_V6: u8 = 2;
const TAG_GATEWAY4: u8 = 3;
const TAG_GATEWAY6: u8 = 4;
const TAG_DNS: u8 = 5;
const TAG_MTU: u8 = 6;
const TAG_RECORD: u8 = 7;

/// Bytes that the field of a record takes.
pub fn record_field_len(record: &str) -> usize {
    FIELD_HEADER + record.len()
}

/// Bytes of a field before its value.
const FIELD_HEADER: usize = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full() -> InnerConfig {
        InnerConfig {
            v4: Some((Ipv4Addr::new(10, 86, 0, 9), 24)),
            v6: Some((Ipv6Addr::new(0xfd86, 0, 0, 0, 0, 0, 0, 9), 64)),
            gateway4: Some(Ipv4Addr::new(10, 86, 0, 1)),
            gateway6: Some(Ipv6Addr::new(0xfd86, 0, 0, 0, 0, 0, 0, 1)),
            dns: vec![
                Ipv4Addr::new(10, 86, 0, 1).into(),
                Ipv6Addr::new(0xfd86, 0, 0, 0, 0, 0, 0, 1).into(),
            ],
            mtu: 1400,
            records: vec!["nas.home A 192.0.2.5".to_owned()],
        }
    }

    #[test]
    fn config_vector() {
        let mut out = Vec::new();
        full().write(&mut out);
        let mut want = vec![1, 0, 5, 10, 86, 0, 9, 24];
        want.extend([
            2, 0, 17, 0xfd, 0x86, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 64,
        ]);
        want.extend([3, 0, 4, 10, 86, 0, 1]);
        want.extend([
            4, 0, 16, 0xfd, 0x86, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
        ]);
        want.extend([5, 0, 4, 10, 86, 0, 1]);
        want.extend([
            5, 0, 16, 0xfd, 0x86, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
        ]);
        want.extend([6, 0, 2, 0x05, 0x78]);
        want.extend([7, 0, 20]);
        want.extend(b"nas.home A 192.0.2.5");
        assert_eq!(out, want);
        assert_eq!(InnerConfig::parse(&out), Ok(full()));
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let bytes = [77, 0, 3, 1, 2, 3, 6, 0, 2, 0x05, 0x00];
        assert_eq!(
            InnerConfig::parse(&bytes),
            Ok(InnerConfig {
                mtu: 1280,
                ..InnerConfig::default()
            })
        );
    }

    #[test]
    fn wrong_fields_are_refused_with_their_numbers() {
        let cases: [(&[u8], ConfigError); 7] = [
            (
                &[1, 0, 4, 1, 2, 3, 4],
                ConfigError::Value { tag: 1, len: 4 },
            ),
            (
                &[1, 0, 5, 1, 2, 3, 4, 33],
                ConfigError::Prefix { tag: 1, prefix: 33 },
            ),
            (
                &[5, 0, 5, 1, 2, 3, 4, 5],
                ConfigError::Value { tag: 5, len: 5 },
            ),
            (&[6, 0, 2, 0x04, 0xFF], ConfigError::Mtu { found: 1279 }),
            (&[6, 0, 2, 0x23, 0x29], ConfigError::Mtu { found: 9001 }),
            (
                &[6, 0, 2, 5, 120, 6, 0, 2, 5, 120],
                ConfigError::Twice { tag: 6 },
            ),
            (
                &[6, 0, 2, 5],
                ConfigError::Short(Short { wanted: 2, left: 1 }),
            ),
        ];
        for (bytes, error) in cases {
            assert_eq!(InnerConfig::parse(bytes), Err(error));
        }
        let many: Vec<u8> = (0..=MAX_DNS).flat_map(|_| [5, 0, 4, 9, 9, 9, 9]).collect();
        assert_eq!(InnerConfig::parse(&many), Err(ConfigError::TooManyDns));
    }

    #[test]
    fn records_stay_within_what_two_datagrams_carry() {
        let record = "x".repeat(250);
        let config = InnerConfig {
            records: vec![record.clone(); 7],
            ..full()
        };
        let mut out = Vec::new();
        config.write(&mut out);
        assert!(out.len() < MAX_RECORDS_LEN + 200);
        assert_eq!(
            InnerConfig::parse(&out).map(|read| read.records.len()),
            Ok(6)
        );
        let mut one_more = vec![7, 0, 250];
        one_more.extend(record.as_bytes());
        out.extend(one_more);
        let error = ConfigError::TooManyRecords { len: 7 * 253 };
        assert_eq!(InnerConfig::parse(&out), Err(error));
        // What is no text is skipped.
        assert_eq!(
            InnerConfig::parse(&[7, 0, 1, 0xff]),
            Ok(InnerConfig::default())
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(config) = InnerConfig::parse(&bytes) {
                let mut out = Vec::new();
                config.write(&mut out);
                prop_assert_eq!(InnerConfig::parse(&out), Ok(config));
            }
        }
    }
}
