//! Says in words what a list of rules does to a name or an address, for `adit dns`.

use std::net::IpAddr;

use super::judge::{Destination, Prepared, ResolvedBy, directly};
use crate::config::{Action, Rule, Transport};

/// A destination, and what is known of it before anybody connects there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// A name, in lower case and without a final dot, whose addresses somebody else knows.
    Name(&'a str),
    /// Such a name, and an address that a record of the configuration gives it.
    Record(&'a str, IpAddr),
    /// An address that was asked for as such.
    Address(IpAddr),
}

/// Tells what becomes of a destination: by which rule, and which rules before that one may decide otherwise, by what is
/// known only of a connection: the address, the port, the transport.
pub fn explain(list: &[Rule], subject: Subject<'_>) -> String {
    let mut before = Vec::new();
    for (at, rule) in list.iter().enumerate() {
        let prepared = Prepared::new(rule);
        let rule_told = format!("rule {}, `{rule}`", at + 1);
        let fit = match subject {
            Subject::Name(name) => prepared.fit_name(name),
            Subject::Record(name, ip) => prepared.fit(Some(name), ip.to_canonical()),
            Subject::Address(ip) => prepared.fit(None, ip.to_canonical()),
        };
        match fit {
            Some(fit) if prepared.is_about_all() => {
                let way = match (subject.destination(), rule.action) {
                    (Some(to), Action::Direct) => match directly(&to, to.ip.to_canonical(), fit) {
                        Ok(()) => "directly".to_owned(),
                        Err(refused) => format!("refused: {refused}"),
                    },
                    (Some(_), action @ (Action::Tunnel | Action::Block)) | (None, action) => {
                        way(action).to_owned()
                    }
                };
                return told(&way, &rule_told, &before);
            }
            Some(_) => before.push(format!("{rule_told}, fits its port or transport")),
            None if matches!(subject, Subject::Name(_)) && prepared.has_networks() => {
                before.push(format!("{rule_told}, fits its address"));
            }
            None => {}
        }
    }
    let by = if list.is_empty() {
        "there is no rule"
    } else {
        "no rule is about it"
    };
    told(way(Action::Tunnel), by, &before)
}

impl<'a> Subject<'a> {
    /// What is judged where the address is known; ports and transports are nobody's yet.
    fn destination(self) -> Option<Destination<'a>> {
        let (name, ip) = match self {
            Self::Name(_) => return None,
            Self::Record(name, ip) => (Some((name, ResolvedBy::Record)), ip),
            Self::Address(ip) => (None, ip),
        };
        Some(Destination {
            name,
            ip,
            port: 0,
            transport: Transport::Tcp,
        })
    }
}

fn told(way: &str, by: &str, before: &[String]) -> String {
    if before.is_empty() {
        format!("{way} ({by})")
    } else {
        format!("{way} ({by}), unless {}", before.join("; or "))
    }
}

const fn way(action: Action) -> &'static str {
    match action {
        Action::Tunnel => "through the tunnel",
        Action::Direct => "directly, resolved by this host's own resolver",
        Action::Block => "blocked",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_rule;

    fn list() -> Vec<Rule> {
        [
            "direct 192.168.0.0/16",
            "tunnel intranet.example port 22",
            "block *.ads.example",
            "direct intranet.example",
            "direct 127.0.0.2 *.near.example",
        ]
        .iter()
        .map(|text| parse_rule(text).unwrap())
        .collect()
    }

    #[test]
    fn name_is_told_its_rule_and_those_before_that_depend_on_the_connection() {
        let told = |name| explain(&list(), Subject::Name(name));
        assert_eq!(
            told("x.ads.example"),
            "blocked (rule 3, `block *.ads.example`), unless rule 1, `direct 192.168.0.0/16`, fits its address"
        );
        let direct = told("intranet.example");
        assert!(direct.starts_with("directly, "), "{direct}");
        assert!(direct.contains("(rule 4, "), "{direct}");
        assert!(
            direct.contains("port 22`, fits its port or transport"),
            "{direct}"
        );
        assert!(told("a.example").starts_with("through the tunnel (no rule is about it)"));
        assert_eq!(
            explain(&[], Subject::Name("a.example")),
            "through the tunnel (there is no rule)"
        );
    }

    #[test]
    fn address_is_told_its_rule_whether_it_was_asked_for_or_written_in_a_record() {
        let told = |subject| explain(&list(), subject);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for near in ["192.168.1.5", "::ffff:192.168.1.5"] {
            for subject in [
                Subject::Address(ip(near)),
                Subject::Record("nas.home", ip(near)),
            ] {
                assert_eq!(
                    told(subject),
                    "directly (rule 1, `direct 192.168.0.0/16`)",
                    "{subject:?}"
                );
            }
        }
        assert_eq!(
            told(Subject::Address(ip("192.0.2.1"))),
            "through the tunnel (no rule is about it)"
        );
        assert_eq!(
            told(Subject::Record("x.ads.example", ip("192.0.2.1"))),
            "blocked (rule 3, `block *.ads.example`)"
        );
        assert_eq!(
            told(Subject::Record("x.near.example", ip("127.0.0.2"))),
            "directly (rule 5, `direct 127.0.0.2/32 *.near.example`)"
        );
        let refused = told(Subject::Record("x.near.example", ip("127.0.0.1")));
        assert!(
            refused.starts_with("refused: this host itself"),
            "{refused}"
        );
    }
}
