//! Lists of rules, what is asked for, and what becomes of it.

use proptest::prelude::*;

use super::*;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// A name that is refused before anybody is asked for it.
    Unasked,
    /// An address that takes a way.
    Goes(Way),
    /// A name that somebody resolves, and whose address takes a way.
    Named(ResolvedBy, Way),
    /// An address that is refused.
    Refused(Blocked),
    /// A name that somebody resolves, and whose address is refused.
    NamedRefused(ResolvedBy, Blocked),
}

use End::{Goes, Named, NamedRefused, Refused, Unasked};
use ResolvedBy as By;
use Way::{Direct, Tunnel};

/// Rules, a request `transport host:port` with ` = address` behind it where the host is a name, and its end.
const TABLE: &[(&[&str], &str, End)] = &[
    // Nothing leaves beside the tunnel that no rule names.
    (&[], "tcp 198.51.100.7:443", Goes(Tunnel)),
    (&[], "tcp 192.168.1.1:80", Goes(Tunnel)),
    (&[], "udp [2001:db8::1]:53", Goes(Tunnel)),
    (
        &[],
        "tcp a.example:443 = 198.51.100.7",
        Named(By::Tunnel, Tunnel),
    ),
    (
        &[],
        "tcp localhost:80 = 127.0.0.1",
        Named(By::Tunnel, Tunnel),
    ),
    (
        &["direct b.example"],
        "tcp a.example:443 = 198.51.100.7",
        Named(By::Tunnel, Tunnel),
    ),
    // Networks and addresses.
    (
        &["direct 192.168.0.0/16"],
        "tcp 192.168.255.255:80",
        Goes(Direct),
    ),
    (
        &["direct 192.168.0.0/16"],
        "tcp 192.169.0.0:80",
        Goes(Tunnel),
    ),
    (
        &["direct 192.168.0.0/16"],
        "tcp [::ffff:192.168.1.1]:80",
        Goes(Direct),
    ),
    (
        &["block 10.1.2.3"],
        "tcp 10.1.2.3:80",
        Refused(Blocked::Rule),
    ),
    (&["block 10.1.2.3"], "tcp 10.1.2.4:80", Goes(Tunnel)),
    (&["block 0.0.0.0/0"], "tcp [2001:db8::1]:80", Goes(Tunnel)),
    (
        &["block ::/0"],
        "tcp [2001:db8::1]:80",
        Refused(Blocked::Rule),
    ),
    (&["block ::/0"], "tcp [::ffff:192.0.2.1]:80", Goes(Tunnel)),
    (
        &["direct fd00::/8 10.0.0.0/8"],
        "tcp [fd00::7]:80",
        Goes(Direct),
    ),
    (
        &["direct fd00::/8 10.0.0.0/8"],
        "udp 10.9.9.9:80",
        Goes(Direct),
    ),
    // Names: itself and below, or below alone.
    (&["block a.example"], "tcp a.example:80", Unasked),
    (&["block a.example"], "tcp www.deep.a.example:80", Unasked),
    (
        &["block a.example"],
        "tcp ba.example:80 = 198.51.100.7",
        Named(By::Tunnel, Tunnel),
    ),
    (
        &["block a.example"],
        "tcp example:80 = 198.51.100.7",
        Named(By::Tunnel, Tunnel),
    ),
    (
        &["block a.example"],
        "tcp a.example.org:80 = 198.51.100.7",
        Named(By::Tunnel, Tunnel),
    ),
    (
        &["block *.a.example"],
        "tcp a.example:80 = 198.51.100.7",
        Named(By::Tunnel, Tunnel),
    ),
    (&["block *.a.example"], "tcp x.a.example:80", Unasked),
    (
        &["block *.a.example a.example"],
        "tcp a.example:80",
        Unasked,
    ),
    (&["block A.Example."], "tcp a.example:80", Unasked),
    (
        &["block b\u{fc}cher.example"],
        "tcp xn--bcher-kva.example:80",
        Unasked,
    ),
    (&["block a.example"], "tcp 198.51.100.7:80", Goes(Tunnel)),
    // A direct rule that names a name is what this host's resolver is asked by, and nothing else is.
    (
        &["direct a.example"],
        "tcp a.example:80 = 192.168.1.1",
        Named(By::Host, Direct),
    ),
    (
        &["direct a.example"],
        "tcp www.a.example:80 = 198.51.100.7",
        Named(By::Host, Direct),
    ),
    (
        &["direct *"],
        "tcp a.example:80 = 192.168.1.1",
        Named(By::Host, Direct),
    ),
    (&["direct *"], "tcp 198.51.100.7:80", Goes(Direct)),
    (
        &["tunnel a.example", "direct *"],
        "tcp a.example:80 = 198.51.100.7",
        Named(By::Tunnel, Tunnel),
    ),
    (
        &["direct port 22"],
        "tcp a.example:22 = 198.51.100.7",
        Named(By::Tunnel, Direct),
    ),
    (
        &["direct 198.51.100.0/24"],
        "tcp a.example:80 = 198.51.100.7",
        Named(By::Tunnel, Direct),
    ),
    (
        &["direct 198.51.100.0/24"],
        "tcp a.example:80 = 203.0.113.1",
        Named(By::Tunnel, Tunnel),
    ),
    (
        &["direct 0.0.0.0/0 ::/0"],
        "tcp a.example:80 = 198.51.100.7",
        Named(By::Tunnel, Direct),
    ),
    // The order is that of the list, by name and by address alike.
    (
        &["tunnel 10.1.0.0/16", "block 10.0.0.0/8"],
        "tcp 10.1.2.3:80",
        Goes(Tunnel),
    ),
    (
        &["tunnel 10.1.0.0/16", "block 10.0.0.0/8"],
        "tcp 10.2.2.3:80",
        Refused(Blocked::Rule),
    ),
    (
        &["block 10.0.0.0/8", "tunnel 10.1.0.0/16"],
        "tcp 10.1.2.3:80",
        Refused(Blocked::Rule),
    ),
    (
        &["tunnel good.a.example", "block a.example"],
        "tcp good.a.example:80 = 198.51.100.7",
        Named(By::Tunnel, Tunnel),
    ),
    (
        &["tunnel 198.51.100.7", "block a.example"],
        "tcp a.example:80 = 198.51.100.7",
        Named(By::Tunnel, Tunnel),
    ),
    (
        &["tunnel 198.51.100.7", "block a.example"],
        "tcp a.example:80 = 198.51.100.8",
        NamedRefused(By::Tunnel, Blocked::Rule),
    ),
    (
        &["block 10.0.0.0/8", "block a.example"],
        "tcp a.example:80",
        Unasked,
    ),
    (
        &["block 169.254.0.0/16", "direct a.example"],
        "tcp a.example:80 = 169.254.169.254",
        NamedRefused(By::Host, Blocked::Rule),
    ),
    (
        &["tunnel 10.0.0.0/8", "direct a.example"],
        "tcp a.example:80 = 10.0.0.1",
        Named(By::Host, Tunnel),
    ),
    (
        &["tunnel a.example", "block 10.0.0.0/8"],
        "tcp a.example:80 = 10.0.0.1",
        Named(By::Tunnel, Tunnel),
    ),
    (
        &["direct 10.0.0.0/8 a.example", "block *"],
        "tcp a.example:80 = 198.51.100.7",
        Named(By::Host, Direct),
    ),
    (
        &["direct 192.168.0.0/16", "block *"],
        "tcp a.example:80 = 198.51.100.7",
        NamedRefused(By::Tunnel, Blocked::Rule),
    ),
    // Ports and transports are conditions beside the destination.
    (
        &["block port 25"],
        "tcp 198.51.100.7:25",
        Refused(Blocked::Rule),
    ),
    (&["block port 25"], "tcp a.example:25", Unasked),
    (
        &["block port 25"],
        "tcp a.example:26 = 198.51.100.7",
        Named(By::Tunnel, Tunnel),
    ),
    (
        &["block a.example port 80 8000-8999"],
        "tcp a.example:8999",
        Unasked,
    ),
    (
        &["block a.example port 80 8000-8999"],
        "tcp a.example:9000 = 198.51.100.7",
        Named(By::Tunnel, Tunnel),
    ),
    (
        &["block a.example port 80 8000-8999"],
        "tcp b.example:80 = 198.51.100.7",
        Named(By::Tunnel, Tunnel),
    ),
    (
        &["block udp port 443"],
        "udp 198.51.100.7:443",
        Refused(Blocked::Rule),
    ),
    (
        &["block udp port 443"],
        "tcp 198.51.100.7:443",
        Goes(Tunnel),
    ),
    (
        &["direct tcp a.example", "block a.example"],
        "udp a.example:53",
        Unasked,
    ),
    (
        &["block tcp *"],
        "udp a.example:53 = 198.51.100.7",
        Named(By::Tunnel, Tunnel),
    ),
    // Strangers who answer for a name do not choose what is reached in this host's network.
    (
        &["direct 192.168.0.0/16"],
        "tcp a.example:80 = 192.168.1.1",
        NamedRefused(By::Tunnel, Blocked::Rebound),
    ),
    (
        &["direct fd00::/8"],
        "tcp a.example:80 = fd00::1",
        NamedRefused(By::Tunnel, Blocked::Rebound),
    ),
    (
        &["direct 100.64.0.0/10"],
        "tcp a.example:80 = 100.127.0.1",
        NamedRefused(By::Tunnel, Blocked::Rebound),
    ),
    (
        &["direct port 80"],
        "tcp a.example:80 = 169.254.169.254",
        NamedRefused(By::Tunnel, Blocked::Rebound),
    ),
    (
        &["direct port 80"],
        "tcp a.example:80 = ::ffff:10.0.0.1",
        NamedRefused(By::Tunnel, Blocked::Rebound),
    ),
    (&["direct port 80"], "tcp 10.0.0.1:80", Goes(Direct)),
    // This host itself is reached by a rule that means it.
    (
        &["direct *"],
        "tcp 127.0.0.1:631",
        Refused(Blocked::ThisHost),
    ),
    (&["direct *"], "tcp [::1]:631", Refused(Blocked::ThisHost)),
    (&["direct *"], "tcp 0.0.0.0:631", Refused(Blocked::ThisHost)),
    (
        &["direct *"],
        "tcp [::ffff:127.0.0.1]:631",
        Refused(Blocked::ThisHost),
    ),
    (
        &["direct port 631"],
        "tcp 127.0.0.1:631",
        Refused(Blocked::ThisHost),
    ),
    (
        &["direct a.example"],
        "tcp a.example:80 = 127.0.0.1",
        NamedRefused(By::Host, Blocked::ThisHost),
    ),
    (
        &["direct *"],
        "tcp localhost:80 = 127.0.0.1",
        NamedRefused(By::Host, Blocked::ThisHost),
    ),
    (
        &["direct localhost"],
        "tcp localhost:80 = ::1",
        Named(By::Host, Direct),
    ),
    (
        &["direct localhost"],
        "tcp dev.localhost:80 = 127.0.0.1",
        Named(By::Host, Direct),
    ),
    (&["direct 127.0.0.0/8"], "tcp 127.0.0.1:631", Goes(Direct)),
    (
        &["direct 127.0.0.0/8"],
        "tcp localhost:631 = 127.0.0.1",
        Named(By::Tunnel, Direct),
    ),
    (
        &["direct a.example 127.0.0.0/8"],
        "tcp a.example:80 = 127.0.0.1",
        Named(By::Host, Direct),
    ),
];

/// A request that was read from a row.
struct Asked<'a> {
    name: Option<&'a str>,
    ip: Option<IpAddr>,
    port: u16,
    transport: Transport,
}

impl<'a> Asked<'a> {
    fn read(row: &'a str) -> Self {
        let (request, answer) = match row.split_once(" = ") {
            Some((request, answer)) => (request, Some(answer.parse().expect(row))),
            None => (row, None),
        };
        let (transport, host) = request.split_once(' ').expect(row);
        let (host, port) = host.rsplit_once(':').expect(row);
        let ip = host.trim_matches(['[', ']']).parse().ok();
        Self {
            name: ip.is_none().then_some(host),
            ip: ip.or(answer),
            port: port.parse().expect(row),
            transport: match transport {
                "tcp" => Transport::Tcp,
                "udp" => Transport::Udp,
                _ => panic!("{row}"),
            },
        }
    }

    fn judge(&self, rules: &Rules) -> End {
        let address = |name| {
            rules.of_address(&Destination {
                name,
                ip: self.ip.expect("a row has an address"),
                port: self.port,
                transport: self.transport,
            })
        };
        let Some(name) = self.name else {
            return address(None).map_or_else(Refused, Goes);
        };
        match rules.of_name(name, self.port, self.transport) {
            Err(_) => Unasked,
            Ok(by) => match address(Some((name, by))) {
                Ok(way) => Named(by, way),
                Err(blocked) => NamedRefused(by, blocked),
            },
        }
    }
}

#[test]
fn every_request_of_the_table_ends_as_it_says() {
    const { assert!(TABLE.len() >= 40) };
    for (list, row, end) in TABLE {
        assert_eq!(
            Asked::read(row).judge(&listed(list)),
            *end,
            "{list:?}: {row}"
        );
    }
}

#[test]
fn name_whose_addresses_are_all_blocked_by_name_is_asked_of_nobody_and_no_other() {
    // What a row says is blocked without asking is blocked whatever the answer would be.
    for (list, row, end) in TABLE {
        let asked = Asked::read(row);
        let (Some(name), Unasked) = (asked.name, end) else {
            continue;
        };
        for ip in ["198.51.100.7", "10.1.2.3", "127.0.0.1", "fd00::1"] {
            let judged = listed(list).of_address(&Destination {
                name: Some((name, By::Tunnel)),
                ip: ip.parse().expect("an address"),
                port: asked.port,
                transport: asked.transport,
            });
            assert_eq!(judged, Err(Blocked::Rule), "{list:?}: {row} = {ip}");
        }
    }
}

/// Words that make rules which meet each other.
fn rule() -> impl Strategy<Value = String> {
    let action = prop::sample::select(vec!["tunnel", "direct", "block"]);
    let target = prop::sample::select(vec![
        "*",
        "a.example",
        "*.a.example",
        "example",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "198.51.100.0/24",
        "a.example 10.0.0.0/8",
        "udp *",
        "example port 80",
        "port 80",
    ]);
    (action, target).prop_map(|(action, target)| match target.strip_prefix("udp ") {
        Some(target) => format!("{action} udp {target}"),
        None => format!("{action} {target}"),
    })
}

proptest! {
    #[test]
    fn this_hosts_resolver_is_asked_only_by_a_direct_rule_that_names_the_name(
        list in prop::collection::vec(rule(), 0..6),
        name in prop::sample::select(vec!["a.example", "x.a.example", "b.example", "elsewhere.test"]),
        port in prop::sample::select(vec![80, 443]),
    ) {
        let texts: Vec<&str> = list.iter().map(String::as_str).collect();
        let by = listed(&texts).of_name(name, port, Transport::Tcp);
        let named = list.iter().any(|rule| {
            let mut words = rule.split(' ');
            let is_direct = words.next() == Some("direct");
            is_direct && words.any(|word| match word.strip_prefix("*.") {
                Some(below) => name.strip_suffix(below).is_some_and(|front| front.ends_with('.')),
                None => word == "*" || word == name || name.ends_with(&format!(".{word}")),
            })
        });
        prop_assert!(named || by != Ok(By::Host), "{list:?}");
    }

    #[test]
    fn nothing_goes_directly_without_a_direct_rule(
        list in prop::collection::vec(rule(), 0..6),
        bits in any::<u32>(),
        port in prop::sample::select(vec![80, 443]),
    ) {
        let list: Vec<&str> = list.iter().map(String::as_str).filter(|rule| !rule.starts_with("direct")).collect();
        let rules = listed(&list);
        prop_assert!(!rules.has_direct());
        for name in [None, Some(("x.a.example", By::Tunnel)), Some(("x.a.example", By::Host))] {
            let to = Destination { name, ip: Ipv4Addr::from_bits(bits).into(), port, transport: Transport::Tcp };
            prop_assert_ne!(rules.of_address(&to), Ok(Direct), "{:?}", list);
        }
    }
}
