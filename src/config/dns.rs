//! How a client finds names: `dns:`, an address to listen on or a group of keys.
//!
//! `dns: 127.0.0.1:5353` is short for `dns: {listen: "127.0.0.1:5353"}`. The rest of the group holds for the proxy too,
//! whether or not there is a local resolver. What each means is told by [`crate::client::dns`].

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, TXT};
use hickory_proto::rr::{Name, RData};

use super::address::Host;
use super::parse;
use super::settings::{Located, Settings};
use super::shared::{Unique, values};
use crate::wire::{MAX_RECORDS_LEN, record_field_len};

/// How names are found, and which are not.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsConfig {
    /// Where the local resolver listens, UDP and TCP; `None`: nowhere, and the rest is the proxy's.
    pub listen: Option<SocketAddr>,
    /// Whom to ask through the tunnel, in this order; empty: whom the server names.
    pub upstream: Vec<DnsUpstream>,
    /// Whom to ask of names below a suffix.
    pub split: Vec<SplitRule>,
    /// Names that are answered from here.
    pub records: Vec<StaticRecord>,
    /// Lists of names that do not exist for this client.
    pub block: Vec<ListSource>,
    /// Lists of names that do, whatever `block` says.
    pub allow: Vec<ListSource>,
    /// What is said of a blocked name.
    pub blocked: BlockedAnswer,
    /// How often lists are fetched anew.
    pub refresh: Duration,
    /// Where the last good copy of each fetched list is kept; `None`: nowhere.
    pub cache_dir: Option<PathBuf>,
}

impl Default for DnsConfig {
    /// No local resolver, no records, no lists: what the server names is asked.
    fn default() -> Self {
        Self {
            listen: None,
            upstream: Vec::new(),
            split: Vec::new(),
            records: Vec::new(),
            block: Vec::new(),
            allow: Vec::new(),
            blocked: BlockedAnswer::NxDomain,
            refresh: DEFAULT_REFRESH,
            cache_dir: None,
        }
    }
}

/// A name server that is asked through the tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DnsUpstream {
    /// UDP, and TCP for what UDP cannot carry: `9.9.9.9`, `9.9.9.9:53`.
    Plain(SocketAddr),
    /// DNS over TLS (RFC 7858): `tls://dns.quad9.net`, `tls://9.9.9.9`.
    Tls {
        /// Whom the certificate must name, and who is connected to.
        host: Host,
        /// 853 where none is written.
        port: u16,
    },
    /// DNS over HTTPS (RFC 8484): `https://dns.quad9.net/dns-query`.
    Https {
        /// Whom the certificate must name, and who is connected to.
        host: Host,
        /// 443 where none is written.
        port: u16,
        /// The path of the URL.
        path: String,
    },
}

/// Whom to ask of a name and all below it: `corp.example=10.0.0.53`, `lan=system`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitRule {
    /// The name, in lower case without a final dot.
    pub suffix: String,
    /// Whom.
    pub target: SplitTarget,
}

/// Whom a `split` entry names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SplitTarget {
    /// The resolvers of this host, by its own network.
    System,
    /// A name server, through the tunnel.
    Upstream(DnsUpstream),
}

/// A record that is answered without asking: `nas.home A 192.168.1.5`, `*.dev.test AAAA ::1`.
#[derive(Clone, Debug, PartialEq)]
pub struct StaticRecord {
    /// Whose record it is.
    pub name: RecordName,
    /// An A, AAAA, CNAME or TXT record.
    pub data: RData,
}

/// The name of a static record, in lower case without a final dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RecordName {
    /// This name alone.
    Name(String),
    /// Everything below this name that is not written itself: `*.name`.
    Below(String),
}

/// Where a list of names comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListSource {
    /// A file of this host.
    File(PathBuf),
    /// A URL, `http://` or `https://`, fetched through the tunnel.
    Url(String),
}

/// What is said of a blocked name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BlockedAnswer {
    /// That it does not exist.
    #[default]
    NxDomain,
    /// 0.0.0.0 and ::, and nothing for other types: for programs that take NXDOMAIN for a fault and ask again.
    Zero,
}

impl fmt::Display for DnsUpstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(address) if address.port() == DNS_PORT => address.ip().fmt(f),
            Self::Plain(address) => address.fmt(f),
            Self::Tls { host, port } if *port == TLS_PORT => write!(f, "tls://{host}"),
            Self::Tls { host, port } => write!(f, "tls://{host}:{port}"),
            Self::Https { host, port, path } if *port == HTTPS_PORT => {
                write!(f, "https://{host}{path}")
            }
            Self::Https { host, port, path } => write!(f, "https://{host}:{port}{path}"),
        }
    }
}

impl fmt::Display for SplitTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("system"),
            Self::Upstream(upstream) => upstream.fmt(f),
        }
    }
}

impl fmt::Display for ListSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url(url) => f.write_str(url),
        }
    }
}

impl fmt::Display for StaticRecord {
    /// As it is read: `*.dev.test A 192.0.2.1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (wildcard, name) = match &self.name {
            RecordName::Name(name) => ("", name),
            RecordName::Below(name) => ("*.", name),
        };
        write!(f, "{wildcard}{name} {} ", self.data.record_type())?;
        if let RData::TXT(text) = &self.data {
            for part in &text.txt_data {
                f.write_str(&String::from_utf8_lossy(part))?;
            }
            Ok(())
        } else if let RData::CNAME(target) = &self.data {
            f.write_str(target.0.to_ascii().trim_end_matches('.'))
        } else {
            self.data.fmt(f)
        }
    }
}

impl FromStr for DnsUpstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return parse::upstream(text).map(Self::Plain).map_err(|_| {
                format!(
                    "`{text}` is not a name server: write an address such as 9.9.9.9, tls://dns.quad9.net or https://dns.quad9.net/dns-query"
                )
            });
        };
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let host = |default| host_and_port(text, authority, default);
        match scheme {
            "tls" if path.is_empty() || path == "/" => {
                let (host, port) = host(TLS_PORT)?;
                Ok(Self::Tls { host, port })
            }
            "tls" => Err(format!(
                "`{text}` has a path, which DNS over TLS knows nothing of: write tls://{authority}"
            )),
            "https" => {
                let (host, port) = host(HTTPS_PORT)?;
                if !path.bytes().all(|byte| byte.is_ascii_graphic()) || path.contains('#') {
                    return Err(format!(
                        "`{text}` is not a URL: write only its path behind the host"
                    ));
                }
                let path = if matches!(path, "" | "/") {
                    DEFAULT_PATH
                } else {
                    path
                };
                Ok(Self::Https {
                    host,
                    port,
                    path: path.to_owned(),
                })
            }
            _ => Err(format!(
                "`{scheme}://` is no way to ask a name server: write an address alone, tls:// or https://"
            )),
        }
    }
}

impl FromStr for SplitTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "system" {
            Ok(Self::System)
        } else {
            text.parse().map(Self::Upstream)
        }
    }
}

impl FromStr for SplitRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let right = "write corp.example=10.0.0.53, or lan=system";
        let Some((suffix, target)) = text.split_once('=') else {
            return Err(format!("`{text}` does not say whom to ask: {right}"));
        };
        let suffix = suffix.trim();
        let bare = suffix.strip_prefix("*.").unwrap_or(suffix);
        let bare = bare.strip_prefix('.').unwrap_or(bare);
        let Some(name) = host_name(bare) else {
            return Err(format!("`{suffix}` is not a name: {right}"));
        };
        Ok(Self {
            suffix: name,
            target: target.trim().parse()?,
        })
    }
}

impl FromStr for StaticRecord {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let right = "write nas.home A 192.168.1.5, or *.dev.test AAAA ::1, CNAME or TXT";
        let word = |text: &'_ str| -> Option<(String, String)> {
            let (word, rest) = text.split_once(char::is_whitespace)?;
            Some((word.to_owned(), rest.trim().to_owned()))
        };
        let (owner, rest) = word(text.trim()).unwrap_or_else(|| (text.to_owned(), String::new()));
        let name = match owner.strip_prefix("*.") {
            Some(below) => host_name(below).map(RecordName::Below),
            None => host_name(&owner).map(RecordName::Name),
        };
        let Some(name) = name else {
            return Err(format!("`{owner}` is not a name: {right}"));
        };
        let Some((kind, data)) = word(&rest) else {
            return Err(format!("`{text}` is not a whole record: {right}"));
        };
        let data = data.as_str();
        let data = match kind.to_ascii_uppercase().as_str() {
            "A" => RData::A(A(parse::ipv4(data)?)),
            "AAAA" => RData::AAAA(AAAA(parse::ipv6(data)?)),
            "CNAME" => {
                let target = host_name(data)
                    .and_then(|name| Name::from_ascii(format!("{name}.")).ok())
                    .ok_or_else(|| format!("`{data}` is not a name: {right}"))?;
                RData::CNAME(CNAME(target))
            }
            "TXT" => RData::TXT(txt(data)?),
            _ => {
                return Err(format!(
                    "`{kind}` is no type that can be written here: {right}"
                ));
            }
        };
        Ok(Self { name, data })
    }
}

/// Reads a host name: letters, digits, `-` and `_` in labels; returns it in lower case without a final dot.
pub(crate) fn host_name(text: &str) -> Option<String> {
    let name = text.to_ascii_lowercase();
    is_host_name(name.strip_suffix('.').unwrap_or(&name)).map(str::to_owned)
}

/// Checks a host name in lower case without a final dot, as [`host_name`].
pub(crate) fn is_host_name(name: &str) -> Option<&str> {
    let legal = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
    };
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(legal);
    // What ends in a number is an address, or should have been one.
    let last = name.rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|byte| byte.is_ascii_digit());
    (name.len() <= 253 && !number && name.split('.').all(label)).then_some(name)
}

/// Puts a text, in quotes or not, into strings of at most 255 bytes (RFC 1035, section 3.3.14).
fn txt(text: &str) -> Result<TXT, String> {
    let inner = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .unwrap_or(text);
    if inner.len() > MAX_TEXT {
        return Err(format!(
            "the text has {} bytes: write at most {MAX_TEXT}",
            inner.len()
        ));
    }
    let strings: Vec<&[u8]> = inner.as_bytes().chunks(255).collect();
    // Without any string it would be no record.
    Ok(TXT::from_bytes(if strings.is_empty() {
        vec![b""]
    } else {
        strings
    }))
}

fn host_and_port(text: &str, authority: &str, default: u16) -> Result<(Host, u16), String> {
    let bracketed = authority.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match authority.get(bracketed..).and_then(|rest| rest.find(':')) {
        Some(colon) => {
            let (host, port) = authority.split_at(bracketed + colon);
            let port = port.get(1..).unwrap_or_default();
            match port.parse::<u16>() {
                Ok(port) if port > 0 => (host, port),
                Ok(_) | Err(_) => return Err(format!("`{port}` in `{text}` is not a port")),
            }
        }
        None => (authority, default),
    };
    let host = host
        .parse()
        .map_err(|error| format!("`{text}` names no host: {error}"))?;
    Ok((host, port))
}

/// Reads `dns: ADDRESS:PORT` or `dns: {listen: …, …}`.
pub(super) fn read(settings: &mut Settings<'_>) -> DnsConfig {
    let listen = read_listen(settings);
    let upstream = settings.details("dns", "upstream", str::parse::<DnsUpstream>);
    let mut seen = Unique::default();
    for at in upstream.iter().flatten() {
        seen.insert(settings, at, at.value.clone(), &at.value);
    }
    let split = settings.details("dns", "split", str::parse::<SplitRule>);
    check_system(settings, split.as_deref().unwrap_or_default());
    let records = settings.details("dns", "records", str::parse::<StaticRecord>);
    check_aliases(settings, records.as_deref().unwrap_or_default());
    let block = settings.sources("dns", "block", list_url);
    let allow = settings.sources("dns", "allow", list_url);
    let lists = block.iter().chain(&allow).flatten();
    let count = lists.clone().count();
    if let Some(at) = lists.clone().nth(MAX_LISTS) {
        let message = format!("there are {count} lists: {MAX_LISTS} are possible, join some");
        settings.problem(&at.key.clone(), at.place.clone(), message);
    }
    let fetched = lists
        .clone()
        .any(|at| matches!(at.value, ListSource::Url(_)));
    let blocked = settings.detail("dns", "blocked", blocked);
    let refresh = settings.detail("dns", "refresh", |text| {
        parse::duration(text, LEAST_REFRESH, MOST_REFRESH)
    });
    let cache_dir = settings.detail_path("dns", "cache_dir").map(|at| at.value);
    let cache_dir = cache_dir.or_else(|| default_cache_dir(settings.environment()));
    if fetched && cache_dir.is_none() {
        settings.warn(
            "dns.cache_dir: fetched lists are not kept for the next start, since HOME is not set: name a folder"
                .to_owned(),
        );
    }
    DnsConfig {
        listen,
        upstream: values(upstream),
        split: values(split),
        records: values(records),
        block: values(block),
        allow: values(allow),
        blocked: blocked.map_or_else(BlockedAnswer::default, |at| at.value),
        refresh: refresh.map_or(DEFAULT_REFRESH, |at| at.value),
        cache_dir,
    }
}

/// Reads `dns_records` of a server.
pub(super) fn read_pushed(settings: &mut Settings<'_>) -> Vec<StaticRecord> {
    let records = settings.list("dns_records", str::parse::<StaticRecord>);
    check_aliases(settings, records.as_deref().unwrap_or_default());
    let mut length = 0;
    for at in records.iter().flatten() {
        length += record_field_len(&at.value.to_string());
        if length > MAX_RECORDS_LEN {
            let message = format!(
                "is one more than clients are told: all of them may have {MAX_RECORDS_LEN} bytes, with {} for each besides its text",
                record_field_len("")
            );
            settings.problem_at(at, message);
            break;
        }
    }
    values(records)
}

fn read_listen(settings: &mut Settings<'_>) -> Option<SocketAddr> {
    let open = settings
        .detail("dns", "open", parse::boolean)
        .is_some_and(|at| at.value);
    let at = settings.choice("dns", "listen", listen)?;
    let ip = at.value.ip().to_canonical();
    if !ip.is_loopback() && !open {
        let message = format!(
            "`{}` can be reached from other hosts, and anybody there could ask through the tunnel: listen on 127.0.0.1, or say open: true in the group",
            at.value
        );
        settings.problem_at(&at, message);
    }
    Some(at.value)
}

/// Those who are reached by another network cannot stand in for each other: a question would leak.
fn check_system(settings: &mut Settings<'_>, rules: &[Located<SplitRule>]) {
    for (index, at) in rules.iter().enumerate() {
        let system = |rule: &SplitRule| rule.target == SplitTarget::System;
        let other = (rules.iter().take(index)).find(|other| {
            other.value.suffix == at.value.suffix && system(&other.value) != system(&at.value)
        });
        if let Some(other) = other {
            let message = format!(
                "sends the names to {}, and {}={} stands before: keep one, as system leaves outside of the tunnel",
                at.value.target, other.value.suffix, other.value.target
            );
            settings.problem_at(at, message);
        }
    }
}

/// A CNAME stands alone (RFC 1034, section 3.6.2).
fn check_aliases(settings: &mut Settings<'_>, records: &[Located<StaticRecord>]) {
    for (index, at) in records.iter().enumerate() {
        let others = records
            .iter()
            .take(index)
            .filter(|other| other.value.name == at.value.name && other.value.data != at.value.data);
        let alias = |record: &StaticRecord| matches!(record.data, RData::CNAME(_));
        for other in others {
            if alias(&at.value) || alias(&other.value) {
                let message = format!(
                    "stands beside `{}`, and a name with a CNAME has no other record: keep one of them",
                    other.value
                );
                settings.problem_at(at, message);
                break;
            }
        }
    }
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    let right = "write an address and a port such as 127.0.0.1:5353";
    let address = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    match address.parse::<SocketAddr>() {
        // Answers to datagrams would leave from another address than was asked.
        Ok(address) if address.ip().is_unspecified() => Err(format!(
            "`{text}` is every address of this host: write one of them"
        )),
        Ok(address) => Ok(address),
        Err(_) if text.parse::<u16>().is_ok() => {
            Err(format!("`{text}` is a port alone: write 127.0.0.1:{text}"))
        }
        Err(_) if text.parse::<IpAddr>().is_ok() => {
            Err(format!("`{text}` has no port: write {text}:5353"))
        }
        Err(_) => Err(format!("`{text}` is not an address to listen on: {right}")),
    }
}

/// `None` for what is a path.
fn list_url(text: &str) -> Option<Result<ListSource, String>> {
    let (scheme, rest) = text.split_once("://")?;
    if !matches!(scheme, "http" | "https") {
        return Some(Err(format!(
            "`{scheme}://` cannot be fetched: write http:// or https://, or the name of a file"
        )));
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let url = text.bytes().all(|byte| byte.is_ascii_graphic()) && !text.contains('#');
    if !url || authority.contains('@') {
        return Some(Err(format!(
            "`{text}` is not a URL that can be fetched: write one like https://example.com/hosts.txt"
        )));
    }
    Some(host_and_port(text, authority, HTTPS_PORT).map(|_| ListSource::Url(text.to_owned())))
}

fn blocked(text: &str) -> Result<BlockedAnswer, String> {
    match text {
        "nxdomain" | "NXDOMAIN" => Ok(BlockedAnswer::NxDomain),
        "zero" | "0.0.0.0" => Ok(BlockedAnswer::Zero),
        _ => Err(format!(
            "`{text}` is no answer for a blocked name: write nxdomain, or zero for 0.0.0.0 and ::"
        )),
    }
}

/// The folder that systemd gives, else the user's.
fn default_cache_dir(environment: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let variable = |name: &str| environment(name).filter(|text| text.starts_with('/'));
    if let Some(folders) = variable("CACHE_DIRECTORY") {
        // systemd.exec(5): several folders are separated by colons.
        return folders.split(':').next().map(PathBuf::from);
    }
    let base = match variable("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(&variable("HOME")?).join(".cache"),
    };
    Some(base.join("adit"))
}

/// Lists of both kinds: what a byte can number, and more than anybody keeps.
pub const MAX_LISTS: usize = 64;

/// Bytes of a list: four times the largest in wide use.
pub const MAX_LIST: u64 = 128 << 20;

/// The authors of most lists renew them once a day, or less often.
const DEFAULT_REFRESH: Duration = Duration::from_secs(24 * 3600);
/// More often is a burden to those who offer lists.
const LEAST_REFRESH: Duration = Duration::from_secs(60);
const MOST_REFRESH: Duration = Duration::from_secs(90 * 24 * 3600);
/// Bytes of a TXT record: what fits into a datagram beside the rest.
const MAX_TEXT: usize = 1000;
/// RFC 1035, section 4.2.
const DNS_PORT: u16 = 53;
/// RFC 7858, section 3.1.
const TLS_PORT: u16 = 853;
const HTTPS_PORT: u16 = 443;
/// What nearly all offer (RFC 8484, section 4.1.1, in its examples).
const DEFAULT_PATH: &str = "/dns-query";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_shown_as_they_are_read() {
        let same = [
            "9.9.9.9",
            "9.9.9.9:5353",
            "[2620:fe::fe]:5353",
            "tls://dns.quad9.net",
            "tls://9.9.9.9:8853",
            "tls://[2620:fe::fe]",
            "https://dns.quad9.net/dns-query",
            "https://dns.example:8443/x?y=z",
        ];
        for text in same {
            let upstream: DnsUpstream = text.parse().unwrap();
            assert_eq!(upstream.to_string(), text);
        }
        let short: DnsUpstream = "https://dns.google".parse().unwrap();
        assert_eq!(short.to_string(), "https://dns.google/dns-query");
    }

    #[test]
    fn what_is_no_upstream_says_what_would_be() {
        for (text, part) in [
            ("dns.google", "write an address such as 9.9.9.9"),
            ("9.9.9.9:0", "write an address such as 9.9.9.9"),
            ("tls://", "names no host"),
            ("tls://9.9.9.9:0", "is not a port"),
            ("tls://9.9.9.9/x", "has a path"),
            ("quic://9.9.9.9", "is no way to ask a name server"),
            ("https://a b/", "names no host"),
        ] {
            let error = text.parse::<DnsUpstream>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn records_and_rules_are_read_back() {
        for text in [
            "nas.home A 192.168.1.5",
            "*.dev.test AAAA ::1",
            "www.test CNAME nas.home",
            "_acme-challenge.test TXT some text",
        ] {
            let record: StaticRecord = text.parse().unwrap();
            assert_eq!(record.to_string(), text);
        }
        let quoted: StaticRecord = "a.test  txt \"v=1; x\"".parse().unwrap();
        assert_eq!(quoted.to_string(), "a.test TXT v=1; x");
        let rule: SplitRule = "*.Corp.Example = tls://10.0.0.53".parse().unwrap();
        assert_eq!(rule.suffix, "corp.example");
        assert_eq!(rule.target.to_string(), "tls://10.0.0.53");
        for text in [
            "nas",
            "nas A",
            "nas A 1.2.3",
            "nas MX 1 b",
            "a..b A 1.2.3.4",
            "x CNAME 1.2.3.4",
        ] {
            assert!(text.parse::<StaticRecord>().is_err(), "{text}");
        }
        for text in ["corp", "=system", "corp=", "corp=sytem", "1.2.3.4=system"] {
            assert!(text.parse::<SplitRule>().is_err(), "{text}");
        }
    }
}
