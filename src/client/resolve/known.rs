//! What is known about a host without asking anybody.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Host, ResolveError};

/// What is known about a host without asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::client) enum Known<'a> {
    /// Its addresses.
    Addresses(Vec<IpAddr>),
    /// That somebody is to be asked for this name.
    Ask(Cow<'a, str>),
}

impl Host {
    /// Answers what must not be asked: literals, `localhost`, `.invalid` and `.onion`.
    pub(in crate::client) fn known(&self) -> Result<Known<'_>, ResolveError> {
        let name = match self {
            Self::Ip(address) => return Ok(Known::Addresses(vec![*address])),
            Self::Name(name) => name,
        };
        match name.rsplit('.').next() {
            // RFC 6761 section 6.3: always the loopback addresses, never asked.
            Some("localhost") => Ok(Known::Addresses(vec![
                IpAddr::V6(Ipv6Addr::LOCALHOST),
                IpAddr::V4(Ipv4Addr::LOCALHOST),
            ])),
            // RFC 6761 section 6.4.
            Some("invalid") => Err(ResolveError::NotFound),
            Some("onion") => Err(ResolveError::Onion),
            Some(_) | None => Ok(Known::Ask(name.into())),
        }
    }
}
