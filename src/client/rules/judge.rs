//! Judges destinations by a list of rules, without asking anybody.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use thiserror::Error;

use crate::config::{Action, Networks, Rule, Target, Transport};

/// A list of rules, prepared for look-ups.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Vec<Prepared>,
}

/// A way to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// Through the tunnel.
    Tunnel,
    /// By a socket of this host.
    Direct,
}

/// Whose resolver a name's addresses come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResolvedBy {
    /// That which the tunnel leads to.
    Tunnel,
    /// This host's own.
    Host,
    /// Nobody's: the client's own configuration has them, under `dns: records:`.
    Record,
}

/// An address, and what is known about it.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    /// The name that it was asked for by, in lower case and without a final dot, and who resolved that.
    pub name: Option<(&'a str, ResolvedBy)>,
    /// The address.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// What is to be sent there.
    pub transport: Transport,
}

/// Why rules refuse a destination.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Blocked {
    /// A rule says so.
    #[error("a rule of this client blocks the destination")]
    Rule,
    /// The name was resolved through the tunnel to a private address, which a rule about networks or ports would send
    /// directly.
    #[error(
        "the tunnel resolves the name to a private address, and no rule that names the name sends it there directly"
    )]
    Rebound,
    /// It is this host itself, which a rule would send directly that names neither its address nor `localhost`.
    #[error("this host itself is reached directly only by a rule that names its address")]
    ThisHost,
}

impl Rules {
    /// Prepares a list.
    pub fn new(list: &[Rule]) -> Self {
        Self {
            rules: list.iter().map(Prepared::new).collect(),
        }
    }

    /// Whether there are no rules: the tunnel carries everything.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether any rule sends something directly.
    pub fn has_direct(&self) -> bool {
        (self.rules.iter()).any(|rule| rule.action == Action::Direct)
    }

    /// Tells who is to resolve a name, in lower case and without a final dot.
    ///
    /// # Errors
    /// Whatever its addresses are, they are blocked.
    pub fn of_name(
        &self,
        name: &str,
        port: u16,
        transport: Transport,
    ) -> Result<ResolvedBy, Blocked> {
        let mut all_block = true;
        for rule in self.about(port, transport) {
            let Some(fit) = rule.fit_name(name) else {
                all_block &= rule.networks.is_empty() || rule.action == Action::Block;
                continue;
            };
            return match rule.action {
                Action::Block if all_block => Err(Blocked::Rule),
                Action::Direct if fit != Fit::Unnamed => Ok(ResolvedBy::Host),
                Action::Block | Action::Direct | Action::Tunnel => Ok(ResolvedBy::Tunnel),
            };
        }
        Ok(ResolvedBy::Tunnel)
    }

    /// Whether a name, in lower case and without a final dot, is blocked whatever is sent to it: by a rule that names it,
    /// itself or by `*`, and limits neither ports nor the transport, before any other that would let something pass.
    pub fn blocks_name(&self, name: &str) -> bool {
        let decided = self.rules.iter().find(|rule| {
            let named = rule.has_name(name) || rule.everything;
            named && (rule.action != Action::Block || rule.is_about_all())
        });
        decided.is_some_and(|rule| rule.action == Action::Block)
    }

    /// Tells which way an address takes.
    ///
    /// # Errors
    /// It is blocked.
    pub fn of_address(&self, to: &Destination<'_>) -> Result<Way, Blocked> {
        let ip = to.ip.to_canonical();
        let decided = (self.about(to.port, to.transport))
            .find_map(|rule| Some((rule.action, rule.fit(to.name.map(|(name, _)| name), ip)?)));
        match decided {
            None | Some((Action::Tunnel, _)) => Ok(Way::Tunnel),
            Some((Action::Block, _)) => Err(Blocked::Rule),
            Some((Action::Direct, fit)) => directly(to, ip, fit).map(|()| Way::Direct),
        }
    }

    fn about(&self, port: u16, transport: Transport) -> impl Iterator<Item = &Prepared> {
        (self.rules.iter()).filter(move |rule| rule.is_about(port, transport))
    }
}

/// Whether a rule with `direct` may send there what it fits.
pub(super) fn directly(to: &Destination<'_>, ip: IpAddr, fit: Fit) -> Result<(), Blocked> {
    let is_named = match fit {
        Fit::Network => true,
        Fit::Domain => to.name.is_some_and(|(name, _)| is_localhost(name)),
        Fit::Everything | Fit::Unnamed => false,
    };
    if (ip.is_loopback() || ip.is_unspecified()) && !is_named {
        return Err(Blocked::ThisHost);
    }
    match to.name {
        Some((name, ResolvedBy::Tunnel)) if is_private(ip) && !is_localhost(name) => {
            Err(Blocked::Rebound)
        }
        Some((_, ResolvedBy::Tunnel | ResolvedBy::Host | ResolvedBy::Record)) | None => Ok(()),
    }
}

/// A rule, prepared for look-ups.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    action: Action,
    transport: Option<Transport>,
    ports: Vec<RangeInclusive<u16>>,
    /// It names no destination.
    unnamed: bool,
    /// It names every destination.
    everything: bool,
    networks: Networks,
    /// Names, and whether each is meant itself, beside all below it.
    domains: HashMap<Box<str>, bool>,
}

/// By what a rule concerns a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// It names the name.
    Domain,
    /// It names a network with the address.
    Network,
    /// It names everything.
    Everything,
    /// It names no destination.
    Unnamed,
}

impl Prepared {
    pub(super) fn new(rule: &Rule) -> Self {
        let mut networks: Vec<IpNet> = Vec::new();
        let mut domains: HashMap<Box<str>, bool> = HashMap::new();
        let mut everything = false;
        for target in &rule.to {
            match target {
                Target::Everything => everything = true,
                Target::Network(net) => networks.push(*net),
                Target::Domain { suffix, itself } => {
                    *domains.entry(suffix.as_str().into()).or_default() |= *itself;
                }
            }
        }
        Self {
            action: rule.action,
            transport: rule.transport,
            ports: rule.ports.clone(),
            unnamed: rule.to.is_empty(),
            everything,
            networks: networks.into_iter().collect(),
            domains,
        }
    }

    fn is_about(&self, port: u16, transport: Transport) -> bool {
        self.transport.is_none_or(|own| own == transport)
            && (self.ports.is_empty() || self.ports.iter().any(|ports| ports.contains(&port)))
    }

    pub(super) fn is_about_all(&self) -> bool {
        self.transport.is_none() && self.ports.is_empty()
    }

    /// Whether it may be about an address alone, whatever its name.
    pub(super) fn has_networks(&self) -> bool {
        !self.networks.is_empty()
    }

    /// What is known before a name is resolved.
    pub(super) fn fit_name(&self, name: &str) -> Option<Fit> {
        if self.has_name(name) {
            return Some(Fit::Domain);
        }
        self.fit_anything()
    }

    /// The most telling fit: a network says more about an address than a name that leads to it.
    pub(super) fn fit(&self, name: Option<&str>, ip: IpAddr) -> Option<Fit> {
        if self.networks.contains(ip) {
            return Some(Fit::Network);
        }
        match name {
            Some(name) => self.fit_name(name),
            None => self.fit_anything(),
        }
    }

    fn fit_anything(&self) -> Option<Fit> {
        if self.everything {
            return Some(Fit::Everything);
        }
        self.unnamed.then_some(Fit::Unnamed)
    }

    fn has_name(&self, name: &str) -> bool {
        if self.domains.is_empty() {
            return false;
        }
        if self.domains.get(name).is_some_and(|itself| *itself) {
            return true;
        }
        let mut rest = name;
        while let Some((_, above)) = rest.split_once('.') {
            if self.domains.contains_key(above) {
                return true;
            }
            rest = above;
        }
        false
    }
}

/// Whether a name means this host (RFC 6761, section 6.3), and nobody is asked for it.
fn is_localhost(name: &str) -> bool {
    name.rsplit('.').next() == Some("localhost")
}

/// Whether an address is one of the network where a host is, rather than of the Internet.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_broadcast()
                || is_shared(ip)
        }
        IpAddr::V6(ip) => {
            ip.is_unique_local()
                || ip.is_loopback()
                || ip.is_unicast_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || is_site_local(ip)
        }
    }
}

/// The shared address space of CGNAT (RFC 6598), 100.64.0.0/10.
fn is_shared(ip: Ipv4Addr) -> bool {
    let [first, second, ..] = ip.octets();
    first == 100 && second & 0xc0 == 64
}

/// What private networks had before ULA (RFC 3879), fec0::/10.
fn is_site_local(ip: Ipv6Addr) -> bool {
    let [first, ..] = ip.segments();
    first & 0xffc0 == 0xfec0
}

/// Prepares rules as they are written.
#[cfg(test)]
pub(in crate::client) fn listed(list: &[&str]) -> Rules {
    let rules: Vec<Rule> = (list.iter())
        .map(|text| {
            crate::config::parse_rule(text).unwrap_or_else(|error| panic!("{text}: {error}"))
        })
        .collect();
    Rules::new(&rules)
}

#[cfg(test)]
mod tests;
