//! Policy routing: rules that choose a routing table, and the routes in tables of our own.
//!
//! Everything here waits for the kernel, which answers while it takes a request: a change is made when the call returns,
//! as the journal wants it, and undone also where no runtime is left. A wait is bounded all the same.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use ipnet::IpNet;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use serde::{Deserialize, Serialize};
use socket2::SockRef;

/// A rule of one family that looks a table up.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// Whether it is about IPv6.
    pub v6: bool,
    /// Its place among the others, the lowest first.
    pub priority: u32,
    /// Whom it is about: all that does not bear this mark; `None`: everything.
    pub but_marked: Option<u32>,
    /// The table.
    pub table: u32,
    /// Whether what it finds counts only if it is more than the default route.
    pub but_default: bool,
}

impl std::fmt::Display for Rule {
    /// As ip(8) writes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = if self.v6 { "-6 " } else { "" };
        write!(f, "ip {family}rule {}:", self.priority)?;
        if let Some(mark) = self.but_marked {
            write!(f, " not fwmark {mark:#x}")?;
        }
        match self.table {
            MAIN => f.write_str(" lookup main")?,
            table => write!(f, " lookup {table}")?,
        }
        if self.but_default {
            f.write_str(" suppress_prefixlength 0")?;
        }
        Ok(())
    }
}

/// A route in a table of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// The table.
    pub table: u32,
    /// Where to.
    pub network: IpNet,
    /// By which way.
    pub way: Way,
}

/// What becomes of packets that a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// They leave by the interface with this number.
    Device(u32),
    /// The table has nothing for them: the next rule is asked.
    Throw,
    /// They go nowhere, and whoever sends them is told.
    Unreachable,
    /// The same, unless there is another route for the network.
    UnreachableAtLast,
}

/// A routing socket that waits.
#[derive(Debug)]
pub struct Policy {
    socket: Socket,
}

impl Policy {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// What the system says.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        // SAFETY: `socket` is open and outlives the borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
        SockRef::from(&fd).set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self { socket })
    }

    /// Adds a rule; one that is there already stays.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_rule(&self, rule: &Rule) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewRule(rule_message(rule));
        match self.change(message, NLM_F_CREATE | NLM_F_EXCL) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Deletes a rule; one that is gone counts as deleted.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete_rule(&self, rule: &Rule) -> io::Result<()> {
        gone_is_fine(self.change(RouteNetlinkMessage::DelRule(rule_message(rule)), 0))
    }

    /// Makes `wanted` what a table has of one family; what is so already stays as it is.
    ///
    /// # Errors
    /// What the kernel says of the first that it refuses.
    pub fn set_routes(&self, table: u32, v6: bool, wanted: &[Route]) -> io::Result<()> {
        let mine = |route: &&Route| route.table == table && is_v6(&route.network) == v6;
        let present = self.routes(table, v6)?;
        for route in wanted.iter().filter(mine) {
            if !present.iter().any(|(is, _)| is.as_ref() == Some(route)) {
                let message = RouteNetlinkMessage::NewRoute(route_message(route));
                self.change(message, NLM_F_CREATE | NLM_F_REPLACE)?;
            }
        }
        for (route, message) in present {
            // What was put in the place of another is not the other any more.
            let stays = (wanted.iter().filter(mine))
                .any(|wanted| route.is_some_and(|route| replaces(wanted, &route)));
            if !stays {
                gone_is_fine(self.change(RouteNetlinkMessage::DelRoute(message), 0))?;
            }
        }
        Ok(())
    }

    /// Whether anybody has a route in a table, or a rule that looks it up.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn is_used(&self, table: u32) -> io::Result<bool> {
        for v6 in [false, true] {
            if !self.routes(table, v6)?.is_empty() {
                return Ok(true);
            }
            let mut ask = RuleMessage::default();
            ask.header.family = family(v6);
            for message in self.list(RouteNetlinkMessage::GetRule(ask))? {
                if let RouteNetlinkMessage::NewRule(rule) = message
                    && rule.attributes.contains(&RuleAttribute::Table(table))
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Whether a table leads anything into a device.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn has_device(&self, table: u32) -> io::Result<bool> {
        for v6 in [false, true] {
            let is_device = |(_, route): &(Option<Route>, RouteMessage)| {
                let mut attributes = route.attributes.iter();
                attributes.any(|it| matches!(it, RouteAttribute::Oif(_)))
                    && route.header.kind == RouteType::Unicast
            };
            if self.routes(table, v6)?.iter().any(is_device) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The routes of a table, with how the kernel told them; those that are none of our kinds are without.
    fn routes(&self, table: u32, v6: bool) -> io::Result<Vec<(Option<Route>, RouteMessage)>> {
        let mut ask = RouteMessage::default();
        ask.header.address_family = family(v6);
        let mut found = Vec::new();
        for message in self.list(RouteNetlinkMessage::GetRoute(ask))? {
            if let RouteNetlinkMessage::NewRoute(route) = message
                && route.attributes.contains(&RouteAttribute::Table(table))
            {
                found.push((read_route(table, v6, &route), route));
            }
        }
        Ok(found)
    }

    fn change(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, flags | NLM_F_REQUEST | NLM_F_ACK)?;
        let bytes = self.receive()?;
        match parse(&bytes).next() {
            Some(NetlinkPayload::Error(error)) if error.code.is_some() => Err(error.to_io()),
            Some(NetlinkPayload::Error(_)) => Ok(()),
            Some(_) | None => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn list(&self, ask: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.send(ask, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut found = Vec::new();
        for _ in 0..MAX_DATAGRAMS {
            for payload in parse(&self.receive()?) {
                if let NetlinkPayload::InnerMessage(message) = payload {
                    found.push(message);
                } else if let NetlinkPayload::Error(error) = payload {
                    // A family that the kernel is built without has nothing.
                    let error = error.to_io();
                    let has_none = error.raw_os_error() == Some(libc::EOPNOTSUPP);
                    return if has_none { Ok(found) } else { Err(error) };
                } else if let NetlinkPayload::Done(_) = payload {
                    return Ok(found);
                }
            }
        }
        Err(io::ErrorKind::FileTooLarge.into())
    }

    fn send(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let sent = self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        loop {
            match self.socket.recv_from_full() {
                // Only the kernel, which is port 0, is listened to.
                Ok((bytes, from)) if from.port_number() == 0 => return Ok(bytes),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The messages of a datagram; what cannot be understood is left out.
fn parse(bytes: &[u8]) -> impl Iterator<Item = NetlinkPayload<RouteNetlinkMessage>> {
    let mut rest = bytes;
    let next = move || {
        let length = usize::try_from(u32::from_ne_bytes(*rest.first_chunk()?)).ok()?;
        let (whole, after) = (
            rest.get(..length.max(4))?,
            length.next_multiple_of(4).max(4),
        );
        rest = rest.get(after..).unwrap_or_default();
        Some(
            NetlinkMessage::deserialize(whole)
                .ok()
                .map(|message| message.payload),
        )
    };
    std::iter::from_fn(next).flatten()
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.v6);
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
    ];
    if let Some(mark) = rule.but_marked {
        message.header.flags = RuleFlags::Invert;
        message.attributes.push(RuleAttribute::FwMark(mark));
        message.attributes.push(RuleAttribute::FwMask(u32::MAX));
    }
    if rule.but_default {
        message.attributes.push(RuleAttribute::SuppressPrefixLen(0));
    }
    message
}

fn route_message(route: &Route) -> RouteMessage {
    let v6 = is_v6(&route.network);
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(v6),
        destination_prefix_length: route.network.prefix_len(),
        table: RouteHeader::RT_TABLE_UNSPEC,
        protocol: RouteProtocol::Static,
        scope: match route.way {
            Way::Device(_) if !v6 => RouteScope::Link,
            Way::Device(_) | Way::Throw | Way::Unreachable | Way::UnreachableAtLast => {
                RouteScope::Universe
            }
        },
        kind: match route.way {
            Way::Device(_) => RouteType::Unicast,
            Way::Throw => RouteType::Throw,
            Way::Unreachable | Way::UnreachableAtLast => RouteType::Unreachable,
        },
        ..RouteHeader::default()
    };
    message.attributes.push(RouteAttribute::Table(route.table));
    if route.network.prefix_len() > 0 {
        let destination = match route.network.addr() {
            IpAddr::V4(address) => RouteAddress::Inet(address),
            IpAddr::V6(address) => RouteAddress::Inet6(address),
        };
        message
            .attributes
            .push(RouteAttribute::Destination(destination));
    }
    match route.way {
        Way::Device(index) => message.attributes.push(RouteAttribute::Oif(index)),
        Way::UnreachableAtLast => message.attributes.push(RouteAttribute::Priority(LAST)),
        Way::Throw | Way::Unreachable => {}
    }
    message
}

fn read_route(table: u32, v6: bool, message: &RouteMessage) -> Option<Route> {
    let mut destination = None;
    let (mut device, mut priority) = (None, 0);
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(RouteAddress::Inet(address)) = attribute {
            destination = Some(IpAddr::V4(*address));
        } else if let RouteAttribute::Destination(RouteAddress::Inet6(address)) = attribute {
            destination = Some(IpAddr::V6(*address));
        } else if let RouteAttribute::Oif(index) = attribute {
            device = Some(*index);
        } else if let RouteAttribute::Priority(value) = attribute {
            priority = *value;
        }
    }
    let unspecified: IpAddr = if v6 { [0; 16].into() } else { [0; 4].into() };
    let network = IpNet::new(
        destination.unwrap_or(unspecified),
        message.header.destination_prefix_length,
    );
    let kind = message.header.kind;
    let way = if kind == RouteType::Unicast {
        Way::Device(device?)
    } else if kind == RouteType::Throw {
        Way::Throw
    } else if kind == RouteType::Unreachable && priority == LAST {
        Way::UnreachableAtLast
    } else if kind == RouteType::Unreachable {
        Way::Unreachable
    } else {
        return None;
    };
    Some(Route {
        table,
        network: network.ok()?,
        way,
    })
}

/// Whether adding the first leaves nothing of the second, or they are the same.
fn replaces(wanted: &Route, present: &Route) -> bool {
    let last = |way| way == Way::UnreachableAtLast;
    wanted.network == present.network && last(wanted.way) == last(present.way)
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(
                    libc::ENOENT
                        | libc::ESRCH
                        | libc::ENODEV
                        | libc::EAFNOSUPPORT
                        | libc::EOPNOTSUPP
                )
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn family(v6: bool) -> AddressFamily {
    if v6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    }
}

fn is_v6(network: &IpNet) -> bool {
    network.addr().is_ipv6()
}

/// The number of the table `main`.
pub const MAIN: u32 = 254;

/// The metric of a route that counts when there is no other.
const LAST: u32 = 4_278_198_272;

/// Longer than the kernel ever takes, short enough for an exit.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The most datagrams of one answer: a full table of the Internet.
const MAX_DATAGRAMS: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    fn route(network: &str, way: Way) -> Route {
        Route {
            table: 6865,
            network: network.parse().unwrap(),
            way,
        }
    }

    #[test]
    fn route_that_was_written_is_read_back() {
        for route in [
            route("0.0.0.0/0", Way::Device(7)),
            route("10.0.0.0/8", Way::Throw),
            route("::/0", Way::Unreachable),
            route("::/0", Way::UnreachableAtLast),
            route("fd00::1/128", Way::Device(7)),
        ] {
            let message = route_message(&route);
            assert_eq!(
                read_route(6865, is_v6(&route.network), &message),
                Some(route)
            );
        }
    }

    #[test]
    fn rule_is_shown_as_ip_shows_it() {
        let rule = Rule {
            v6: true,
            priority: 6867,
            but_marked: Some(0x1ad1),
            table: 6866,
            but_default: false,
        };
        assert_eq!(
            rule.to_string(),
            "ip -6 rule 6867: not fwmark 0x1ad1 lookup 6866"
        );
        let rule = Rule {
            v6: false,
            priority: 6866,
            but_marked: None,
            table: MAIN,
            but_default: true,
        };
        assert_eq!(
            rule.to_string(),
            "ip rule 6866: lookup main suppress_prefixlength 0"
        );
    }

    #[test]
    fn route_at_last_stands_beside_the_other_of_its_network() {
        let device = route("0.0.0.0/0", Way::Device(7));
        let last = route("0.0.0.0/0", Way::UnreachableAtLast);
        assert!(!replaces(&device, &last) && !replaces(&last, &device));
        assert!(replaces(&device, &route("0.0.0.0/0", Way::Unreachable)));
    }
}
