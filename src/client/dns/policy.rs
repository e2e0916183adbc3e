//! Decides how a name is answered, from what was configured and what lists say; asks nobody.
//!
//! The first that knows the name decides:
//!
//! | | decision |
//! |---|---|
//! | names that are never asked: `localhost`, `.invalid` (RFC 6761), `.onion` (RFC 7686) | [`Decision::Special`] |
//! | `records`, then those that the server pushes (to clients without an `upstream` of their own) | [`Decision::Static`] |
//! | lists under `allow`, and exceptions in lists under `block` | go on below |
//! | lists under `block` | [`Decision::Blocked`] |
//! | the longest suffix under `split` | [`Decision::Split`] |
//! | all else | [`Decision::Upstream`] |
//!
//! The proxy and the local resolver ask the same policy, so that they agree.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::domain::Domain;
use super::records::{Records, Written};
use super::table::{Found, NameTable};
use crate::config::{DnsConfig, SplitRule, SplitTarget, StaticRecord};

/// Records, lists and split at one time; cheap to clone and never changed.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    records: Arc<Records>,
    pushed: Arc<Records>,
    lists: Arc<Lists>,
    split: Arc<Split>,
}

/// The names of all lists.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    /// Those that `allow` has, and exceptions from `block`.
    pub allow: NameTable,
    /// Those that `block` has.
    pub block: NameTable,
    /// What each list is called, by its number.
    pub labels: Vec<String>,
}

/// Who is asked below which names.
#[derive(Clone, Debug, Default)]
pub struct Split {
    suffixes: HashMap<String, usize>,
    groups: Vec<SplitGroup>,
}

/// A suffix and who is asked below it, in their order; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitGroup {
    /// The suffix.
    pub suffix: String,
    /// Whom to ask.
    pub targets: Vec<SplitTarget>,
}

/// How a name is answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decision<'a> {
    /// As its top label demands.
    Special(Special),
    /// By its records, from the file or the server.
    Static {
        /// What is written.
        written: Written<'a>,
        /// Whether the server pushed it.
        pushed: bool,
    },
    /// It is said not to exist.
    Blocked(Listed<'a>),
    /// A certain name server is asked.
    Split {
        /// Its number among [`Policy::split_groups`].
        group: usize,
        /// Where an allow list kept the name from being blocked.
        allowed: Option<Listed<'a>>,
    },
    /// The upstream is asked.
    Upstream {
        /// Where an allow list kept the name from being blocked.
        allowed: Option<Listed<'a>>,
    },
}

/// Names that are never asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Below `localhost`: the loopback addresses.
    Localhost,
    /// Below `invalid`: does not exist.
    Invalid,
    /// Below `onion`: does not exist in DNS.
    Onion,
}

/// The entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed<'a> {
    /// What the list is called.
    pub list: &'a str,
    /// Bytes at the end of the name that the entry has.
    pub suffix: usize,
}

impl Policy {
    /// Takes what is configured, without lists and without what a server pushes.
    pub fn new(config: &DnsConfig) -> Self {
        Self {
            records: Arc::new(Records::new(&config.records)),
            pushed: Arc::default(),
            lists: Arc::default(),
            split: Arc::new(Split::new(&config.split)),
        }
    }

    /// The same with other records of the configuration.
    #[must_use]
    pub fn with_records(self, records: &[StaticRecord]) -> Self {
        Self {
            records: Arc::new(Records::new(records)),
            ..self
        }
    }

    /// The same with other lists.
    #[must_use]
    pub fn with_lists(self, lists: Lists) -> Self {
        Self {
            lists: Arc::new(lists),
            ..self
        }
    }

    /// The same with other records from the server.
    #[must_use]
    pub fn with_pushed<'a>(self, records: impl IntoIterator<Item = &'a StaticRecord>) -> Self {
        Self {
            pushed: Arc::new(Records::new(records)),
            ..self
        }
    }

    /// Decides about one name.
    pub fn decide(&self, name: &Domain) -> Decision<'_> {
        if let Some(special) = Special::of(name) {
            return Decision::Special(special);
        }
        for (records, pushed) in [(&self.records, false), (&self.pushed, true)] {
            if let Some(written) = records.find(name) {
                return Decision::Static { written, pushed };
            }
        }
        let blocked = self.lists.block.find(name);
        // Most names are on no list, and the second table need not be searched then.
        let allowed = blocked.and_then(|_| self.lists.allow.find(name));
        if let (Some(found), None) = (blocked, allowed) {
            return Decision::Blocked(self.lists.listed(found));
        }
        let allowed = allowed.map(|found| self.lists.listed(found));
        match self.split.find(name) {
            Some(group) => Decision::Split { group, allowed },
            None => Decision::Upstream { allowed },
        }
    }

    /// All that `split` says, by the number that a decision has.
    pub fn split_groups(&self) -> &[SplitGroup] {
        &self.split.groups
    }

    /// The lists.
    pub fn lists(&self) -> &Lists {
        &self.lists
    }
}

impl Lists {
    fn listed(&self, found: Found) -> Listed<'_> {
        Listed {
            list: (self.labels.get(usize::from(found.list))).map_or("a list", String::as_str),
            suffix: found.suffix,
        }
    }
}

impl Split {
    fn new(rules: &[SplitRule]) -> Self {
        let mut split = Self::default();
        for rule in rules {
            let next = split.groups.len();
            let index = *split.suffixes.entry(rule.suffix.clone()).or_insert(next);
            match split.groups.get_mut(index) {
                Some(group) => group.targets.push(rule.target.clone()),
                None => split.groups.push(SplitGroup {
                    suffix: rule.suffix.clone(),
                    targets: vec![rule.target.clone()],
                }),
            }
        }
        split
    }

    fn find(&self, name: &Domain) -> Option<usize> {
        if self.suffixes.is_empty() {
            return None;
        }
        name.suffixes()
            .find_map(|suffix| self.suffixes.get(std::str::from_utf8(suffix).ok()?))
            .copied()
    }
}

impl Special {
    fn of(name: &Domain) -> Option<Self> {
        match name.suffixes().last()? {
            b"localhost" => Some(Self::Localhost),
            b"invalid" => Some(Self::Invalid),
            b"onion" => Some(Self::Onion),
            _ => None,
        }
    }
}

/// A decision in words, for `adit dns`.
#[derive(Clone, Copy, Debug)]
pub struct Explained<'a> {
    policy: &'a Policy,
    name: &'a Domain,
}

impl Policy {
    /// Words what is decided about a name, and why.
    pub fn explain<'a>(&'a self, name: &'a Domain) -> Explained<'a> {
        Explained { policy: self, name }
    }
}

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tail = |len: usize| {
            let text = self.name.as_bytes();
            let from = text.len().saturating_sub(len);
            text.get(from..).unwrap_or_default().escape_ascii()
        };
        match self.policy.decide(self.name) {
            Decision::Special(Special::Localhost) => {
                f.write_str("special: names below localhost are this host's (RFC 6761)")
            }
            Decision::Special(Special::Invalid) => {
                f.write_str("special: names below invalid never exist (RFC 6761)")
            }
            Decision::Special(Special::Onion) => {
                f.write_str("special: names below onion are not asked of DNS (RFC 7686)")
            }
            Decision::Static { written, pushed } => {
                f.write_str("static: ")?;
                f.write_str(if pushed {
                    "a record that the server pushed"
                } else {
                    "a record of the configuration"
                })?;
                match written.wildcard {
                    Some(len) => write!(f, ", for *.{}", tail(len)),
                    None => Ok(()),
                }
            }
            Decision::Blocked(listed) => {
                write!(f, "blocked: {} has {}", listed.list, tail(listed.suffix))
            }
            Decision::Split { group, allowed } => {
                let Some(group) = self.policy.split_groups().get(group) else {
                    return Ok(());
                };
                write!(f, "split: names below {} are asked of ", group.suffix)?;
                for (index, target) in group.targets.iter().enumerate() {
                    write!(f, "{}{target}", if index > 0 { ", " } else { "" })?;
                }
                unblocked(f, allowed)
            }
            Decision::Upstream { allowed } => {
                f.write_str("upstream: no record, list or split is about this name")?;
                unblocked(f, allowed)
            }
        }
    }
}

fn unblocked(f: &mut fmt::Formatter<'_>, allowed: Option<Listed<'_>>) -> fmt::Result {
    match allowed {
        Some(listed) => write!(f, "; it would be blocked, but {} allows it", listed.list),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Name;

    use super::super::table::Scope;
    use super::*;

    fn policy() -> Policy {
        let parse = |texts: &[&str]| -> Vec<StaticRecord> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let config = DnsConfig {
            records: parse(&[
                "nas.home A 192.168.1.5",
                "*.dev.test A 192.0.2.1",
                "www.home CNAME nas.home",
                "ads.listed.test A 192.0.2.9",
            ]),
            split: [
                "corp.test=10.0.0.53",
                "corp.test=tls://10.0.0.54",
                "lan=system",
                "deep.corp.test=system",
                "bad.corp.test=system",
            ]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect(),
            ..DnsConfig::default()
        };
        let mut lists = Lists {
            labels: vec!["first.txt".to_owned(), "second.txt".to_owned()],
            ..Lists::default()
        };
        let mut block = |name: &str, scope, list| {
            lists.block.insert(name.as_bytes(), scope, list).unwrap();
        };
        block("listed.test", Scope::Subdomains, 0);
        block("exact.test", Scope::Name, 1);
        block("bad.corp.test", Scope::Subdomains, 1);
        block("fine.lan", Scope::Name, 1);
        let mut allow = |name: &str, scope| {
            lists.allow.insert(name.as_bytes(), scope, 1).unwrap();
        };
        allow("good.listed.test", Scope::Subdomains);
        allow("fine.lan", Scope::Subdomains);
        allow("free.test", Scope::Subdomains);
        Policy::new(&config)
            .with_lists(lists)
            .with_pushed(&parse(&["nas.home A 10.0.0.1", "intra.test A 10.0.0.2"]))
    }

    #[test]
    fn each_name_is_decided_by_the_first_that_knows_it() {
        let cases = [
            ("localhost.", "special: names below localhost"),
            ("a.b.LocalHost.", "special: names below localhost"),
            (
                "notlocalhost.",
                "upstream: no record, list or split is about this name",
            ),
            ("x.invalid.", "special: names below invalid"),
            ("x.onion.", "special: names below onion"),
            ("nas.home.", "static: a record of the configuration"),
            ("NAS.Home.", "static: a record of the configuration"),
            (
                "x.nas.home.",
                "upstream: no record, list or split is about this name",
            ),
            (
                "x.dev.test.",
                "static: a record of the configuration, for *.dev.test",
            ),
            (
                "dev.test.",
                "upstream: no record, list or split is about this name",
            ),
            ("intra.test.", "static: a record that the server pushed"),
            ("ads.listed.test.", "static: a record of the configuration"),
            ("listed.test.", "blocked: first.txt has listed.test"),
            ("a.b.listed.test.", "blocked: first.txt has listed.test"),
            (
                "xlisted.test.",
                "upstream: no record, list or split is about this name",
            ),
            ("exact.test.", "blocked: second.txt has exact.test"),
            (
                "below.exact.test.",
                "upstream: no record, list or split is about this name",
            ),
            (
                "good.listed.test.",
                "upstream: no record, list or split is about this name; it would be blocked, but second.txt allows it",
            ),
            (
                "x.good.listed.test.",
                "upstream: no record, list or split is about this name; it would be blocked, but second.txt allows it",
            ),
            (
                "free.test.",
                "upstream: no record, list or split is about this name",
            ),
            (
                "corp.test.",
                "split: names below corp.test are asked of 10.0.0.53, tls://10.0.0.54",
            ),
            (
                "a.corp.test.",
                "split: names below corp.test are asked of 10.0.0.53, tls://10.0.0.54",
            ),
            (
                "x.deep.corp.test.",
                "split: names below deep.corp.test are asked of system",
            ),
            ("bad.corp.test.", "blocked: second.txt has bad.corp.test"),
            ("printer.lan.", "split: names below lan are asked of system"),
            (
                "fine.lan.",
                "split: names below lan are asked of system; it would be blocked, but second.txt allows it",
            ),
            (
                "xlan.",
                "upstream: no record, list or split is about this name",
            ),
            (".", "upstream: no record, list or split is about this name"),
            (
                "example.com.",
                "upstream: no record, list or split is about this name",
            ),
        ];
        let policy = policy();
        for (name, expected) in cases {
            let name = Domain::new(&Name::from_ascii(name).unwrap());
            let words = policy.explain(&name).to_string();
            assert!(words.starts_with(expected), "{name:?}: {words}");
        }
    }

    #[test]
    fn record_of_the_file_wins_over_that_of_the_server() {
        let policy = policy();
        let name = Domain::new(&Name::from_ascii("nas.home").unwrap());
        let Decision::Static { written, pushed } = policy.decide(&name) else {
            panic!("{:?}", policy.decide(&name));
        };
        assert!(!pushed);
        assert_eq!(written.records.len(), 1);
        assert_eq!(written.records[0].to_string(), "192.168.1.5");
    }
}
