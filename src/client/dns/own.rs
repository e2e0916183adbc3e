//! What the client itself knows of a name, so that nobody is asked for it, whoever is to resolve it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::{Name, RData};

use super::domain::Domain;
use super::policy::{Decision, Policy, Special};
use super::upstreams::address;

/// What records and lists of the configuration say of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Own {
    /// It has these addresses, and no others; none where its records are of other kinds.
    Addresses(Vec<IpAddr>),
    /// It is another name, for which somebody is to be asked.
    Alias(String),
    /// A list under `block` has it.
    Blocked,
    /// It never exists.
    Never,
    /// Nothing: somebody is to be asked.
    Nothing,
}

impl Policy {
    /// Tells what is known of a name without asking; what a server pushes is its word, not that of this configuration.
    pub fn own(&self, name: &Name) -> Own {
        let mut name = name.clone();
        for hop in 0..=MAX_ALIASES {
            let written = match self.decide(&Domain::new(&name)) {
                Decision::Static {
                    written,
                    pushed: false,
                } => written,
                Decision::Blocked(_) => return Own::Blocked,
                Decision::Special(Special::Localhost) => {
                    return Own::Addresses(vec![
                        Ipv6Addr::LOCALHOST.into(),
                        Ipv4Addr::LOCALHOST.into(),
                    ]);
                }
                Decision::Special(Special::Invalid | Special::Onion) => return Own::Never,
                Decision::Static { pushed: true, .. }
                | Decision::Split { .. }
                | Decision::Upstream { .. } => {
                    return match hop {
                        0 => Own::Nothing,
                        _ => Own::Alias(plain(&name)),
                    };
                }
            };
            let alias = written.records.iter().find_map(|data| {
                if let RData::CNAME(target) = data {
                    Some(&target.0)
                } else {
                    None
                }
            });
            match alias {
                Some(target) => name = target.to_lowercase(),
                None => {
                    return Own::Addresses(written.records.iter().filter_map(address).collect());
                }
            }
        }
        // They lead in a circle.
        Own::Addresses(Vec::new())
    }
}

/// A name as applications write it.
fn plain(name: &Name) -> String {
    let text = name.to_ascii();
    text.strip_suffix('.').unwrap_or(&text).to_owned()
}

/// Aliases of the configuration that lead to one another.
pub(super) const MAX_ALIASES: usize = 8;

#[cfg(test)]
mod tests {
    use super::super::policy::Lists;
    use super::super::table::Scope;
    use super::*;
    use crate::config::{DnsConfig, StaticRecord};

    fn parse(texts: &[&str]) -> Vec<StaticRecord> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn records_and_lists_of_the_file_are_known_and_nothing_else_is() {
        let config = DnsConfig {
            records: parse(&[
                "nas.home A 192.168.1.5",
                "nas.home AAAA fd00::5",
                "*.dev.home A 192.168.1.6",
                "www.home CNAME nas.home",
                "out.home CNAME Example.COM",
                "odd.home CNAME ads.test",
                "text.home TXT hello",
                "a.loop CNAME b.loop",
                "b.loop CNAME a.loop",
                "self.home CNAME x.localhost",
            ]),
            split: vec!["corp.test=10.0.0.53".parse().unwrap()],
            ..DnsConfig::default()
        };
        let mut lists = Lists {
            labels: vec!["ads.txt".to_owned()],
            ..Lists::default()
        };
        (lists.block.insert(b"ads.test", Scope::Subdomains, 0)).unwrap();
        let policy = Policy::new(&config)
            .with_lists(lists)
            .with_pushed(&parse(&["intra.test A 10.0.0.2"]));
        let addresses = |texts: &[&str]| {
            Own::Addresses(texts.iter().map(|text| text.parse().unwrap()).collect())
        };
        let cases = [
            ("nas.home", addresses(&["192.168.1.5", "fd00::5"])),
            ("WWW.home.", addresses(&["192.168.1.5", "fd00::5"])),
            ("x.dev.home", addresses(&["192.168.1.6"])),
            ("text.home", addresses(&[])),
            ("a.loop", addresses(&[])),
            ("out.home", Own::Alias("example.com".to_owned())),
            ("localhost", addresses(&["::1", "127.0.0.1"])),
            ("self.home", addresses(&["::1", "127.0.0.1"])),
            ("x.onion", Own::Never),
            ("x.ads.test", Own::Blocked),
            ("odd.home", Own::Blocked),
            ("intra.test", Own::Nothing),
            ("git.corp.test", Own::Nothing),
            ("example.com", Own::Nothing),
        ];
        for (name, expected) in cases {
            assert_eq!(
                policy.own(&Name::from_ascii(name).unwrap()),
                expected,
                "{name}"
            );
        }
    }
}
