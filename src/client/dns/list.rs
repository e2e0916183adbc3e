//! Reads the lines of a list of names: hosts files, plain domains, and the `||domain^` rules of advertisement blockers.
//!
//! | line | covers |
//! |---|---|
//! | `0.0.0.0 ads.example.com tracker.example.com` | these names alone; also behind 127.x.x.x, `::` and `::1` |
//! | `ads.example.com`, `*.ads.example.com`, `.ads.example.com` | the name and all below it |
//! | `\|\|ads.example.com^` | the same; `$important` behind it changes nothing |
//! | `@@\|\|good.example.com^` | an exception: as if it stood in a list of names that are allowed |
//! | `# …`, `! …`, `[Adblock Plus]`, nothing | nothing |
//!
//! Such lists are written by hand and by many. A line that cannot be used is counted and told, and never spoils the rest;
//! of the names that every hosts file begins with (`localhost` and its like) none is taken.

use std::fmt;
use std::io::{self, BufRead, Read as _};
use std::net::IpAddr;
use std::str;

use thiserror::Error;

use super::table::Scope;
use crate::config::is_host_name;

/// One name of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// In lower case, without a final dot.
    pub name: &'a str,
    /// What it covers.
    pub scope: Scope,
    /// Whether it is an exception from the list, rather than an entry.
    pub exception: bool,
}

/// What became of the lines of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListReport {
    /// Names taken.
    pub names: u64,
    /// Lines that cannot be used.
    pub bad: u64,
    /// The first of them.
    pub first_bad: Option<(u64, BadLine)>,
}

/// Why a line of a list cannot be used.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadLine {
    /// It is longer than any line that means something.
    #[error("is longer than {MAX_LINE} bytes")]
    Long,
    /// It is not text.
    #[error("is not text in UTF-8")]
    NotText,
    /// It has an address that is not one of this host: a hosts file that is no block list.
    #[error("names an address that leads somewhere; only 0.0.0.0, :: and loopback ones block")]
    Address,
    /// A hosts line without names.
    #[error("has an address and no name")]
    NoName,
    /// What should be a name is none.
    #[error("has no host name where one is expected")]
    Name,
    /// A rule about pages or parts of them, which DNS knows nothing of.
    #[error("is a filter for pages, which DNS cannot follow")]
    Rule,
    /// There is no room.
    #[error("is one name more than all lists together may have")]
    Full,
}

impl fmt::Display for ListReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.names == 1 { "" } else { "s" };
        write!(f, "{} name{plural}", self.names)?;
        if let Some((line, why)) = self.first_bad {
            let plural = if self.bad == 1 { "" } else { "s" };
            write!(
                f,
                "; {} line{plural} not used, first line {line}, which {why}",
                self.bad
            )?;
        }
        Ok(())
    }
}

/// Reads a list and gives each name to `take`, which says whether it has room for it.
///
/// # Errors
/// Reading fails. What was read before has been given already.
pub(crate) fn read(
    mut list: impl BufRead,
    mut take: impl FnMut(Entry<'_>) -> bool,
) -> io::Result<ListReport> {
    let mut report = ListReport::default();
    let mut line = Vec::new();
    let mut number = 0;
    loop {
        line.clear();
        let read = (&mut list)
            .take(MAX_LINE as u64 + 1)
            .read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(report);
        }
        number += 1;
        let outcome = if read > MAX_LINE {
            if line.last() != Some(&b'\n') {
                list.skip_until(b'\n')?;
            }
            Err(BadLine::Long)
        } else {
            line.make_ascii_lowercase();
            str::from_utf8(&line)
                .map_err(|_| BadLine::NotText)
                .and_then(|text| {
                    each(text, |entry| {
                        let taken = take(entry);
                        report.names += u64::from(taken);
                        taken
                    })
                })
        };
        if let Err(why) = outcome {
            report.bad += 1;
            report.first_bad.get_or_insert((number, why));
        }
    }
}

/// Finds the names of one line, which is in lower case.
fn each(line: &str, mut take: impl FnMut(Entry<'_>) -> bool) -> Result<(), BadLine> {
    // A byte order mark, where it is the first line.
    let line = line.trim_start_matches('\u{feff}').trim();
    if line.is_empty() || line.starts_with(['#', '!', '[']) {
        return Ok(());
    }
    if is_about_pages(line) {
        return Err(BadLine::Rule);
    }
    let line = line.split('#').next().unwrap_or_default().trim_end();
    let (exception, rule) = match line.strip_prefix("@@") {
        Some(rule) => (true, rule),
        None => (false, line),
    };
    if let Some(rule) = rule.strip_prefix("||") {
        let name = blocker_rule(rule)?;
        return one(take(Entry {
            name,
            scope: Scope::Subdomains,
            exception,
        }));
    }
    if exception {
        return Err(BadLine::Rule);
    }
    let mut words = line.split_ascii_whitespace();
    let first = words.next().unwrap_or_default();
    if let Ok(address) = first.parse::<IpAddr>() {
        return hosts_line(address, words, take);
    }
    if words.next().is_some() {
        return Err(BadLine::Name);
    }
    let name = first.strip_prefix("*.").unwrap_or(first);
    let name = name.strip_prefix('.').unwrap_or(name);
    one(take(Entry {
        name: host_name(name)?,
        scope: Scope::Subdomains,
        exception,
    }))
}

/// Whether a line is a rule about parts of pages, as `a.test##.banner`; behind white space those marks begin a comment.
fn is_about_pages(line: &str) -> bool {
    let first = line.find('#').map(|at| line.split_at(at));
    first.is_some_and(|(before, mark)| {
        !before.ends_with(char::is_whitespace)
            && ["##", "#@#", "#?#", "#$#"]
                .iter()
                .any(|begin| mark.starts_with(begin))
    })
}

fn one(taken: bool) -> Result<(), BadLine> {
    if taken { Ok(()) } else { Err(BadLine::Full) }
}

/// Reads what stands behind `||`.
fn blocker_rule(rule: &str) -> Result<&str, BadLine> {
    let (pattern, options) = rule.split_once('$').unwrap_or((rule, ""));
    if !matches!(options, "" | "important") {
        return Err(BadLine::Rule);
    }
    let pattern = pattern.strip_suffix('|').unwrap_or(pattern);
    let name = pattern.strip_suffix('^').unwrap_or(pattern);
    host_name(name.strip_prefix("*.").unwrap_or(name)).map_err(|_| BadLine::Rule)
}

fn hosts_line<'a>(
    address: IpAddr,
    words: impl Iterator<Item = &'a str>,
    mut take: impl FnMut(Entry<'_>) -> bool,
) -> Result<(), BadLine> {
    let blocks = address.is_unspecified() || address.is_loopback();
    // A name that is none costs the others of its line nothing.
    let (mut any, mut wrong) = (false, None);
    for word in words {
        any = true;
        if OWN_NAMES.contains(&word) {
            continue;
        }
        if !blocks {
            return Err(BadLine::Address);
        }
        let taken = host_name(word).and_then(|name| {
            one(take(Entry {
                name,
                scope: Scope::Name,
                exception: false,
            }))
        });
        wrong = wrong.or(taken.err());
    }
    match wrong {
        Some(why) => Err(why),
        None if any => Ok(()),
        None => Err(BadLine::NoName),
    }
}

fn host_name(text: &str) -> Result<&str, BadLine> {
    is_host_name(text.strip_suffix('.').unwrap_or(text)).ok_or(BadLine::Name)
}

/// Bytes of a line: a name has 253, and a hosts line some of them.
const MAX_LINE: usize = 4096;

/// What hosts files say of the host itself (and one of nothing), whatever its address.
const OWN_NAMES: [&str; 14] = [
    "localhost",
    "localhost.localdomain",
    "localhost4",
    "localhost6",
    "local",
    "broadcasthost",
    "ip6-localhost",
    "ip6-loopback",
    "ip6-localnet",
    "ip6-mcastprefix",
    "ip6-allnodes",
    "ip6-allrouters",
    "ip6-allhosts",
    "0.0.0.0",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The names of a text as `name`, `*.name` where it covers what is below, `@@` before an exception.
    fn names(text: &str) -> (Vec<String>, ListReport) {
        let mut names = Vec::new();
        let report = read(text.as_bytes(), |entry| {
            let wide = if entry.scope == Scope::Subdomains {
                "*."
            } else {
                ""
            };
            let exception = if entry.exception { "@@" } else { "" };
            names.push(format!("{exception}{wide}{}", entry.name));
            true
        })
        .unwrap();
        assert_eq!(report.names, names.len() as u64);
        (names, report)
    }

    #[test]
    fn lines_are_read_as_the_table_of_formats_says() {
        let cases: &[(&str, &[&str])] = &[
            ("0.0.0.0 ads.example.com", &["ads.example.com"]),
            ("127.0.0.1\ta.test  b.test # both", &["a.test", "b.test"]),
            (":: six.test", &["six.test"]),
            ("::1 six.test\r", &["six.test"]),
            ("0.0.0.0 Ads.Example.COM.", &["ads.example.com"]),
            ("0.0.0.0 a.test ## both", &["a.test"]),
            ("a.test ##", &["*.a.test"]),
            ("127.0.0.1 localhost", &[]),
            ("255.255.255.255 broadcasthost", &[]),
            ("ff02::1 ip6-allnodes", &[]),
            ("0.0.0.0 0.0.0.0", &[]),
            ("ads.example.com", &["*.ads.example.com"]),
            ("ADS.example.com. # why", &["*.ads.example.com"]),
            ("*.ads.example.com", &["*.ads.example.com"]),
            (".ads.example.com", &["*.ads.example.com"]),
            ("_dmarc.example.com", &["*._dmarc.example.com"]),
            ("zip", &["*.zip"]),
            ("||ads.example.com^", &["*.ads.example.com"]),
            ("||ads.example.com^|", &["*.ads.example.com"]),
            ("||ads.example.com", &["*.ads.example.com"]),
            ("||ads.example.com^$important", &["*.ads.example.com"]),
            ("@@||good.example.com^", &["@@*.good.example.com"]),
            ("", &[]),
            ("   ", &[]),
            ("# 0.0.0.0 a.test", &[]),
            ("! Title: a list", &[]),
            ("[Adblock Plus 2.0]", &[]),
            ("\u{feff}a.test", &["*.a.test"]),
        ];
        for (line, expected) in cases {
            let (found, report) = names(line);
            assert_eq!(&found, expected, "{line:?}");
            assert_eq!(report.bad, 0, "{line:?}");
        }
    }

    #[test]
    fn lines_that_cannot_be_used_are_counted_with_their_reason_and_the_rest_is_read() {
        let long = "a".repeat(MAX_LINE + 1);
        let cases: &[(&str, BadLine)] = &[
            ("192.0.2.1 nas.test", BadLine::Address),
            ("0.0.0.0", BadLine::NoName),
            ("0.0.0.0 a_b..test", BadLine::Name),
            ("two words", BadLine::Name),
            ("b\u{fc}cher.test", BadLine::Name),
            ("http://a.test/x", BadLine::Name),
            ("address=/a.test/0.0.0.0", BadLine::Name),
            ("127.1", BadLine::Name),
            ("a.test##.banner", BadLine::Rule),
            ("a.test#@#.banner", BadLine::Rule),
            ("||a.test^$third-party", BadLine::Rule),
            ("||a.test/banner", BadLine::Rule),
            ("||a.*.test^", BadLine::Rule),
            ("@@a.test", BadLine::Rule),
            (&long, BadLine::Long),
        ];
        for (line, why) in cases {
            let (found, report) = names(&format!("first.test\n{line}\nlast.test"));
            assert_eq!(found, ["*.first.test", "*.last.test"], "{line}");
            assert_eq!(
                (report.bad, report.first_bad),
                (1, Some((2, *why))),
                "{line}"
            );
        }
        let mut taken = 0;
        let report = read(&b"a.test\n\xff\xfe\nb.test"[..], |_| {
            taken += 1;
            taken < 2
        });
        let report = report.unwrap();
        assert_eq!(
            (report.bad, report.first_bad),
            (2, Some((2, BadLine::NotText)))
        );
        assert_eq!(
            report.to_string(),
            "1 name; 2 lines not used, first line 2, which is not text in UTF-8"
        );
        let (found, report) = names("0.0.0.0 a.test b..test c.test");
        assert_eq!(found, ["a.test", "c.test"]);
        assert_eq!(report.first_bad, Some((1, BadLine::Name)));
    }

    #[test]
    fn line_of_the_greatest_length_is_read_and_the_next_one_too() {
        let mut text = format!("a.test #{}", "x".repeat(MAX_LINE - 9));
        text.push('\n');
        assert_eq!(text.len(), MAX_LINE);
        text.push_str("b.test");
        assert_eq!(names(&text).0, ["*.a.test", "*.b.test"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let report = read(&bytes[..], |entry| {
                assert_eq!(host_name(entry.name), Ok(entry.name));
                true
            });
            prop_assert!(report.is_ok());
        }
    }
}
