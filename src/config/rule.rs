//! Routing rules as they are written: what becomes of a request, by its destination, its port and its transport.
//!
//! ```text
//! ACTION [tcp|udp] [TARGET …] [port PORT|FIRST-LAST …]
//!
//! direct 192.168.0.0/16 printer.example
//! block *.ads.example, tracker.example
//! tunnel example.com port 443
//! block udp port 443
//! direct *
//! ```
//!
//! A rule concerns a request that fits all of its conditions, and a condition is fitted by any of its items. Blanks and
//! commas separate alike; in a variable or a flag commas separate the rules, so blanks serve inside one. What rules mean,
//! and who resolves names for them, is told where they are [judged](crate::client::rules).

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::address::Host;
use super::parse::{self, Parsed};
use super::settings::nearest;

/// One rule: where it concerns a request, its action decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What becomes of the request.
    pub action: Action,
    /// The transport that it is about; `None`: any.
    pub transport: Option<Transport>,
    /// The destinations, of which one must fit; empty: any.
    pub to: Vec<Target>,
    /// The ports, of which one must fit; empty: any.
    pub ports: Vec<RangeInclusive<u16>>,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It goes through the tunnel.
    Tunnel,
    /// It goes by this host's own network.
    Direct,
    /// It is refused.
    Block,
}

/// What carries a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A TCP connection.
    Tcp,
    /// A UDP datagram.
    Udp,
}

/// A destination in a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every name and every address: `*`.
    Everything,
    /// The addresses of a network, never IPv4 in an IPv6 coat.
    Network(IpNet),
    /// The names below a name, in lower case, ASCII, without a final dot.
    Domain {
        /// The name.
        suffix: String,
        /// Whether the name itself is meant too.
        itself: bool,
    },
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 3] = [Self::Tunnel, Self::Direct, Self::Block];

    /// The word that a rule begins with.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Direct => "direct",
            Self::Block => "block",
        }
    }
}

impl Transport {
    /// Every transport.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The word in a rule.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Rule {
    /// Writes the rule so that it is read back as the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.action.as_str())?;
        if let Some(transport) = self.transport {
            write!(f, " {}", transport.as_str())?;
        }
        for target in &self.to {
            write!(f, " {target}")?;
        }
        for (index, ports) in self.ports.iter().enumerate() {
            f.write_str(if index == 0 { " port " } else { " " })?;
            if ports.start() == ports.end() {
                write!(f, "{}", ports.start())?;
            } else {
                write!(f, "{}-{}", ports.start(), ports.end())?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("*"),
            Self::Network(net) => net.fmt(f),
            Self::Domain { suffix, itself } => {
                write!(f, "{}{suffix}", if *itself { "" } else { "*." })
            }
        }
    }
}

/// Reads one rule.
///
/// # Errors
/// It is none; the text says what was found and what would be right.
pub fn parse(text: &str) -> Result<Rule, String> {
    let mut words = text
        .split(|c: char| c == ',' || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .peekable();
    let action = match words.next() {
        Some(word) => action(word)?,
        None => return Err(format!("`{text}` is empty: write a rule {LIKE}")),
    };
    let mut rule = Rule {
        action,
        transport: None,
        to: Vec::new(),
        ports: Vec::new(),
    };
    while let Some(word) = words.next_if(|word| transport(word).is_some()) {
        if rule.transport.is_some() {
            return Err(format!(
                "`{text}` names a transport twice: keep one of tcp and udp, or neither for both"
            ));
        }
        rule.transport = transport(word);
    }
    while let Some(word) = words.next_if(|word| !matches!(*word, "port" | "ports")) {
        rule.to.push(target(word)?);
    }
    if let Some(word) = words.next() {
        rule.ports = words.map(ports).collect::<Parsed<_>>()?;
        if rule.ports.is_empty() {
            return Err(format!(
                "`{text}` ends with `{word}`: write the port behind it, such as port 443 or port 8000-8999"
            ));
        }
    }
    if rule.transport.is_none() && rule.to.is_empty() && rule.ports.is_empty() {
        return Err(format!(
            "`{text}` does not say what it is about: write `{text} *` for everything, or a rule {LIKE}"
        ));
    }
    Ok(rule)
}

fn action(word: &str) -> Parsed<Action> {
    let found = Action::ALL
        .into_iter()
        .find(|action| action.as_str().eq_ignore_ascii_case(word));
    found.ok_or_else(|| {
        let names = Action::ALL.map(Action::as_str);
        match nearest(word, names.into_iter()) {
            Some(near) => format!("`{word}` is no action: did you mean {near}?"),
            None => {
                format!("`{word}` is no action: begin a rule with tunnel, direct or block, {LIKE}")
            }
        }
    })
}

fn transport(word: &str) -> Option<Transport> {
    Transport::ALL
        .into_iter()
        .find(|transport| transport.as_str().eq_ignore_ascii_case(word))
}

fn target(word: &str) -> Parsed<Target> {
    if word == "*" {
        return Ok(Target::Everything);
    }
    if matches!(word, "all" | "any" | "default") {
        return Err(format!(
            "`{word}` would be the name of a host: write * for everything"
        ));
    }
    if word.contains("://") {
        return Err(format!(
            "`{word}` is a URL: write its host, and `port` with its port behind it"
        ));
    }
    let bare = word
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(word);
    if bare.contains('/') || bare.parse::<IpAddr>().is_ok() {
        return parse::allow(bare).map(Target::Network);
    }
    if let Some((host, port)) = word.rsplit_once(':') {
        return Err(format!(
            "`{word}` holds a colon: write addresses whole, and a port as in `{host} port {}`",
            if port.is_empty() { "443" } else { port }
        ));
    }
    domain(word)
}

fn domain(word: &str) -> Parsed<Target> {
    let (name, itself) = match word.strip_prefix("*.") {
        Some(name) => (name, false),
        None => (word, true),
    };
    if let Some(name) = name.strip_prefix('.') {
        return Err(format!(
            "`{word}` begins with a dot: write {name} for it and all names below, *.{name} for those below alone"
        ));
    }
    if name.contains('*') {
        return Err(format!(
            "`{word}` has a * in its midst: it stands alone, or in front as in *.example.com"
        ));
    }
    let ascii = idna::domain_to_ascii(name).unwrap_or_default();
    match ascii.parse::<Host>() {
        Ok(Host::Name(suffix)) if !ends_in_number(&suffix) => Ok(Target::Domain { suffix, itself }),
        Ok(Host::Name(_) | Host::Ip(_)) | Err(_) => Err(format!(
            "`{word}` is neither a network nor a name: write one like 192.168.0.0/16, example.com or *.example.com"
        )),
    }
}

/// Whether a name looks like an address that is none, and which no application can ask for as a name.
fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    last.bytes().all(|byte| byte.is_ascii_digit())
}

fn ports(word: &str) -> Parsed<RangeInclusive<u16>> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        (Some(first), Some(last)) => Err(format!("`{word}` runs backwards: write {last}-{first}")),
        (Some(_) | None, Some(_) | None) => Err(format!(
            "`{word}` is not a port: write a number from 1 to 65535 or a range such as 8000-8999; destinations stand in front of `port`"
        )),
    }
}

/// Rules in one list: each is looked at for each request until one decides.
pub(super) const MAX_RULES: usize = 1000;

/// What a rule looks like.
const LIKE: &str =
    "like `direct 192.168.0.0/16`, `block *.ads.example` or `tunnel example.com port 443`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_written_back() {
        for (text, written) in [
            ("direct 192.168.0.0/16", "direct 192.168.0.0/16"),
            ("block 10.1.2.3", "block 10.1.2.3/32"),
            ("block ::ffff:10.1.2.3", "block 10.1.2.3/32"),
            ("direct [2001:db8::1]", "direct 2001:db8::1/128"),
            ("direct fd00::/8 port 22", "direct fd00::/8 port 22"),
            ("tunnel Example.COM.", "tunnel example.com"),
            ("block *.Ads.example", "block *.ads.example"),
            ("block _dns.example", "block _dns.example"),
            ("direct bücher.example", "direct xn--bcher-kva.example"),
            ("direct *.BÜCHER.example", "direct *.xn--bcher-kva.example"),
            ("direct nas", "direct nas"),
            ("BLOCK UDP port 443", "block udp port 443"),
            ("block *", "block *"),
            (
                "direct tcp a.example, 10.0.0.0/8 ports 22,80 8000-8999",
                "direct tcp a.example 10.0.0.0/8 port 22 80 8000-8999",
            ),
        ] {
            let rule = parse(text).expect(text);
            assert_eq!(rule.to_string(), written, "{text}");
            assert_eq!(parse(written).expect(written), rule);
        }
    }

    #[test]
    fn each_wrong_rule_is_told_with_a_remedy() {
        for (text, told) in [
            ("", "is empty: write a rule like `direct"),
            (
                "tunel example.com",
                "`tunel` is no action: did you mean tunnel?",
            ),
            (
                "reject a.example",
                "`reject` is no action: begin a rule with tunnel, direct or block",
            ),
            ("example.com direct", "`example.com` is no action"),
            (
                "block",
                "does not say what it is about: write `block *` for everything",
            ),
            (
                "block all",
                "`all` would be the name of a host: write * for everything",
            ),
            (
                "block tcp udp",
                "names a transport twice: keep one of tcp and udp",
            ),
            (
                "direct 10.0.0.1/8",
                "is an address inside a network: write 10.0.0.0/8",
            ),
            (
                "direct 10.0.0.0/33",
                "is not a network: write a network like",
            ),
            ("direct ::ffff:10.0.0.0/104", "is IPv4 in an IPv6 coat"),
            ("direct 300.1.1.1", "is neither a network nor a name"),
            ("direct 10.1", "is neither a network nor a name"),
            (
                "block .ads.example",
                "write ads.example for it and all names below, *.ads.example for",
            ),
            ("block ads.*", "has a * in its midst"),
            ("block *ads.example", "has a * in its midst"),
            ("tunnel a..example", "is neither a network nor a name"),
            ("tunnel http://a.example/", "is a URL: write its host"),
            ("tunnel a.example:443", "a port as in `a.example port 443`"),
            (
                "tunnel [2001:db8::1]:443",
                "a port as in `[2001:db8::1] port 443`",
            ),
            ("tunnel port", "ends with `port`: write the port behind it"),
            ("tunnel port 0", "`0` is not a port"),
            ("tunnel port 70000", "`70000` is not a port"),
            ("tunnel port 90-80", "`90-80` runs backwards: write 80-90"),
            (
                "tunnel port 443 a.example",
                "destinations stand in front of `port`",
            ),
        ] {
            let error = parse(text).expect_err(text);
            assert!(
                error.contains(told),
                "{text}\nshould say: {told}\nsays: {error}"
            );
        }
    }
}
