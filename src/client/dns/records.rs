//! Names that are answered from the configuration, whatever the Internet says of them.
//!
//! A name that has a record here is wholly answered here: of a type that is not written there is none. An entry for
//! `*.name` is for whatever is below that name and is not written itself; of several the longest counts.

use std::collections::HashMap;

use hickory_proto::rr::RData;

use super::domain::Domain;
use crate::config::{RecordName, StaticRecord};

/// The records of one source: the file, or the server.
#[derive(Clone, Debug, Default)]
pub struct Records {
    names: HashMap<String, Vec<RData>>,
    wildcards: HashMap<String, Vec<RData>>,
}

/// What is written of a name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Written<'a> {
    /// All its records.
    pub records: &'a [RData],
    /// The length of the name below which it stands, where an entry `*.name` says it.
    pub wildcard: Option<usize>,
}

impl Records {
    /// Takes what was configured or pushed.
    pub fn new<'a>(records: impl IntoIterator<Item = &'a StaticRecord>) -> Self {
        let mut all = Self::default();
        for record in records {
            let (table, name) = match &record.name {
                RecordName::Name(name) => (&mut all.names, name),
                RecordName::Below(name) => (&mut all.wildcards, name),
            };
            let written = table.entry(name.clone()).or_default();
            if !written.contains(&record.data) {
                written.push(record.data.clone());
            }
        }
        all
    }

    /// Finds what is written of a name.
    pub fn find(&self, name: &Domain) -> Option<Written<'_>> {
        // Most have none.
        if self.names.is_empty() && self.wildcards.is_empty() {
            return None;
        }
        let text = std::str::from_utf8(name.as_bytes()).ok()?;
        if let Some(records) = self.names.get(text) {
            return Some(Written {
                records,
                wildcard: None,
            });
        }
        name.suffixes().skip(1).find_map(|suffix| {
            let records = self.wildcards.get(std::str::from_utf8(suffix).ok()?)?;
            Some(Written {
                records,
                wildcard: Some(suffix.len()),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Name;

    use super::*;

    #[test]
    fn written_name_wins_over_wildcards_and_the_longest_of_those_counts() {
        let records: Vec<StaticRecord> = [
            "nas.test A 192.0.2.1",
            "nas.test A 192.0.2.1",
            "nas.test AAAA 2001:db8::1",
            "*.dev.test A 192.0.2.2",
            "*.a.dev.test A 192.0.2.3",
            "plain.dev.test CNAME nas.test",
        ]
        .iter()
        .map(|text| text.parse().unwrap())
        .collect();
        let records = Records::new(&records);
        let find = |text: &str| {
            let name = Domain::new(&Name::from_ascii(text).unwrap());
            let written = records.find(&name)?;
            let first = written.records.first()?.to_string();
            Some((written.records.len(), first, written.wildcard))
        };
        let some = |n, text: &str, wildcard| Some((n, text.to_owned(), wildcard));
        assert_eq!(find("NAS.test."), some(2, "192.0.2.1", None));
        assert_eq!(find("x.nas.test."), None);
        assert_eq!(find("x.dev.test."), some(1, "192.0.2.2", Some(8)));
        assert_eq!(find("y.x.dev.test."), some(1, "192.0.2.2", Some(8)));
        assert_eq!(find("x.a.dev.test."), some(1, "192.0.2.3", Some(10)));
        assert_eq!(find("a.dev.test."), some(1, "192.0.2.2", Some(8)));
        assert_eq!(find("plain.dev.test."), some(1, "nas.test.", None));
        // The name below which a wildcard stands is not below itself.
        assert_eq!(find("dev.test."), None);
    }
}
