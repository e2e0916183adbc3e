//! The proxy through which a client reaches its servers, as `via` names it.
//!
//! `via` is a URL, `env`, or `off`. `env` reads what curl reads for a page of https://: `https_proxy`, `HTTPS_PROXY`,
//! `all_proxy`, `ALL_PROXY`, the first that is set, and `no_proxy` or `NO_PROXY`, which name hosts that are reached without
//! it. No message repeats a user or a password.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use super::address::Host;
use super::parse;
use super::proxies::ProxyAuth;
use super::settings::{Located, Settings};
use super::shared::{self, warn_of_readers};

/// A proxy, and who is reached without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via {
    /// The proxy.
    pub proxy: ProxyAddr,
    /// Hosts that are reached without it.
    pub except: Vec<Exception>,
}

/// The address of a proxy, and what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyAddr {
    /// What it speaks.
    pub scheme: ProxyScheme,
    /// The host by name or by address.
    pub host: Host,
    /// The port.
    pub port: u16,
    /// The user and the password to give, if it asks.
    pub login: Option<ProxyAuth>,
}

/// What a proxy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyScheme {
    /// HTTP/1.1, with CONNECT.
    Http,
    /// The same inside TLS.
    Https,
    /// SOCKS5.
    Socks5,
}

/// Hosts that are reached without the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exception {
    /// All.
    Everything,
    /// A name, in lower case, and all names below it.
    Domain(String),
    /// Addresses.
    Network(IpNet),
}

impl Via {
    /// Returns the proxy through which `host` is reached, if it is reached through one.
    pub fn proxy_for(&self, host: &Host) -> Option<&ProxyAddr> {
        let direct = self.except.iter().any(|exception| exception.covers(host));
        (!direct).then_some(&self.proxy)
    }
}

impl ProxyScheme {
    const ALL: [(&'static str, Self); 4] = [
        ("http", Self::Http),
        ("https", Self::Https),
        ("socks5", Self::Socks5),
        // The h says that the proxy resolves names, which it always does here.
        ("socks5h", Self::Socks5),
    ];

    /// The port where none is written, as curl has it.
    const fn default_port(self) -> u16 {
        match self {
            Self::Http | Self::Socks5 => 1080,
            Self::Https => 443,
        }
    }
}

impl Exception {
    fn covers(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Everything, _) => true,
            (Self::Domain(domain), Host::Name(name)) => {
                let name = name.to_ascii_lowercase();
                let below = name.strip_suffix(domain.as_str());
                below.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            (Self::Network(network), Host::Ip(ip)) => network.contains(ip),
            (Self::Domain(_), Host::Ip(_)) | (Self::Network(_), Host::Name(_)) => false,
        }
    }

    /// Reads what `NO_PROXY` lists; what is none there matches nothing, as with curl.
    fn list(text: &str) -> Vec<Self> {
        let items = text.split([',', ' ']).filter(|item| !item.is_empty());
        items.take(MAX_EXCEPTIONS).map(Self::read).collect()
    }

    fn read(item: &str) -> Self {
        if item == "*" {
            return Self::Everything;
        }
        let bare = item.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Self::Network(ip.into());
        }
        match item.parse::<IpNet>() {
            Ok(network) => Self::Network(network),
            Err(_) => {
                let name = item.strip_prefix('.').unwrap_or(item);
                let name = name.strip_suffix('.').unwrap_or(name);
                Self::Domain(name.to_ascii_lowercase())
            }
        }
    }
}

impl fmt::Display for ProxyAddr {
    /// Without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.scheme, self.host, self.port)
    }
}

impl fmt::Display for ProxyScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Socks5 => "socks5",
        })
    }
}

/// What `via` says.
enum Choice {
    Off,
    Environment,
    Proxy(Box<ProxyAddr>),
}

/// Reads `via` and the file of its password; `None` also after a problem was added.
pub(super) fn read(settings: &mut Settings<'_>) -> Option<Located<Via>> {
    let file = settings.path("via_password_file");
    let Some(at) = settings.secret("via", choice) else {
        if let Some(file) = file.filter(|_| !settings.has_problem("via")) {
            settings.problem_at(&file, "has no proxy to be for: set via too");
        }
        return None;
    };
    let mut via = match at.value {
        Choice::Off => return None,
        Choice::Proxy(ref proxy) => Via {
            proxy: (**proxy).clone(),
            except: Vec::new(),
        },
        Choice::Environment => match of_environment(settings.environment()) {
            Ok(via) => via?,
            Err(message) => {
                settings.problem_at(&at, message);
                return None;
            }
        },
    };
    let has_password = via
        .proxy
        .login
        .as_ref()
        .is_some_and(|login| !login.password.is_empty());
    if has_password && matches!(at.value, Choice::Proxy(_)) {
        warn_of_readers(settings, "via", "via_password_file", &at.place);
    }
    if let Some(file) = file {
        read_password(settings, &file, &mut via.proxy)?;
    }
    Some(Located {
        value: via,
        key: at.key,
        place: at.place,
    })
}

/// Takes the password from a file of its own.
fn read_password(
    settings: &mut Settings<'_>,
    file: &Located<PathBuf>,
    proxy: &mut ProxyAddr,
) -> Option<()> {
    let password = shared::read_password(settings, file)?;
    match &mut proxy.login {
        None => {
            let message = "has no user: write one in via, as in http://USER@HOST:PORT";
            settings.problem_at(file, message);
            None
        }
        Some(login) if !login.password.is_empty() => {
            settings.problem_at(file, "stands beside a password in via: keep one of the two");
            None
        }
        Some(login) => {
            login.password = password;
            Some(())
        }
    }
}

fn choice(text: &str) -> Result<Choice, String> {
    if parse::is_off(text) {
        return Ok(Choice::Off);
    }
    if text.eq_ignore_ascii_case("env") {
        return Ok(Choice::Environment);
    }
    if !text.contains("://") {
        return Err(format!("does not say what kind of proxy it is: {RIGHT}"));
    }
    proxy(text, false).map(|proxy| Choice::Proxy(Box::new(proxy)))
}

/// What the environment says.
fn of_environment(environment: &dyn Fn(&str) -> Option<String>) -> Result<Option<Via>, String> {
    let set = |names: &[&'static str]| {
        let value = |name: &&'static str| Some((*name, environment(name)?));
        let mut values = names.iter().filter_map(value);
        values.find(|(_, text)| !text.is_empty())
    };
    let Some((name, text)) = set(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]) else {
        return Ok(None);
    };
    let text = Zeroizing::new(text);
    let proxy = proxy(&text, true).map_err(|message| format!("{name} {message}"))?;
    let except = set(&["no_proxy", "NO_PROXY"]).map(|(_, text)| Exception::list(&text));
    Ok(Some(Via {
        proxy,
        except: except.unwrap_or_default(),
    }))
}

/// Reads `scheme://user:password@host:port`; scheme and port have defaults where `as_curl`.
fn proxy(text: &str, as_curl: bool) -> Result<ProxyAddr, String> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => {
            let mut known = ProxyScheme::ALL.into_iter();
            let found = known.find(|(name, _)| name.eq_ignore_ascii_case(scheme));
            let (_, found) =
                found.ok_or_else(|| format!("names a kind of proxy that is not known: {RIGHT}"))?;
            (found, rest)
        }
        None => (ProxyScheme::Http, text),
    };
    let (login, authority) = match rest.rsplit_once('@') {
        Some((login, authority)) => (Some(login), authority),
        None => (None, rest),
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if authority.contains(['/', '?', '#']) {
        return Err(format!("is more than a proxy's host and port: {RIGHT}"));
    }
    let port_at = authority
        .rfind(':')
        .filter(|at| !authority[*at..].contains(']'));
    let (host, port) = match port_at {
        Some(at) => (&authority[..at], Some(&authority[at + 1..])),
        None => (authority, None),
    };
    let port = match port {
        Some(port) => {
            let number = port.parse().ok().filter(|number| *number > 0);
            number.ok_or_else(|| format!("`{port}` is not a port: {RIGHT}"))?
        }
        None if as_curl => scheme.default_port(),
        None => return Err(format!("has no port: {RIGHT}")),
    };
    let host = host.parse().map_err(|error| format!("{error}"));
    Ok(ProxyAddr {
        scheme,
        host: host?,
        port,
        login: login.map(read_login).transpose()?,
    })
}

/// Reads `user:password`, each percent-encoded where it must be (RFC 3986, section 3.2.1).
fn read_login(text: &str) -> Result<ProxyAuth, String> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    let decoded = |part: &str| -> Result<Zeroizing<String>, String> {
        let bytes: Zeroizing<Vec<u8>> = Zeroizing::new(percent_decode_str(part).collect());
        let text = std::str::from_utf8(&bytes).map(str::to_owned);
        text.map(Zeroizing::new)
            .map_err(|_| "has a user or a password that is no UTF-8".to_owned())
    };
    let (user, password) = (decoded(user)?, decoded(password)?);
    let user = parse::credential(&user, false).map_err(|why| format!("has a user that {why}"))?;
    if !password.is_empty() {
        parse::credential(&password, true).map_err(|why| format!("has a password that {why}"))?;
    }
    Ok(ProxyAuth { user, password })
}

/// What would be right.
const RIGHT: &str = "write http://HOST:PORT, https://HOST:PORT, socks5://HOST:PORT, USER:PASSWORD@ before the host where it asks, or env, or off";

/// Hosts of `NO_PROXY` that count: more than anybody lists.
const MAX_EXCEPTIONS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Host {
        text.parse().expect(text)
    }

    fn environment(pairs: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        |name: &str| {
            let found = pairs.iter().find(|(key, _)| *key == name);
            found.map(|(_, text)| (*text).to_owned())
        }
    }

    #[test]
    fn url_names_proxy_user_and_password() {
        for (text, shown, login) in [
            ("http://proxy:3128", "http://proxy:3128", None),
            ("HTTP://Proxy.example:80/", "http://Proxy.example:80", None),
            ("socks5h://[::1]:1080", "socks5://[::1]:1080", None),
            (
                "https://al%40ice:p%3aw%2F@203.0.113.7:8443",
                "https://203.0.113.7:8443",
                Some(("al@ice", "p:w/")),
            ),
            (
                "http://CORP\\bob:a:b@c@proxy:3128",
                "http://proxy:3128",
                Some(("CORP\\bob", "a:b@c")),
            ),
            ("http://bob@proxy:1", "http://proxy:1", Some(("bob", ""))),
        ] {
            let proxy = proxy(text, false).expect(text);
            assert_eq!(proxy.to_string(), shown);
            let found = proxy.login.as_ref();
            let found = found.map(|login| (login.user.as_str(), login.password.as_str()));
            assert_eq!(found, login);
            assert!(!format!("{proxy:?}").contains("p:w/"));
        }
    }

    #[test]
    fn mistake_is_named_without_the_password() {
        for (text, right) in [
            ("proxy:3128", "does not say what kind"),
            ("socks4://u:s3cret@proxy:1", "not known: write http://HOST"),
            ("http://u:s3cret@proxy", "has no port"),
            ("http://u:s3cret@proxy:0", "`0` is not a port"),
            ("http://u:s3cret@proxy:1/path", "more than a proxy's host"),
            ("http://u:s3cret@pro xy:1", "neither a host name nor"),
            ("http://:s3cret@proxy:1", "has a user that has 0 bytes"),
            ("http://u:s3cret%00@proxy:1", "has a password that holds a"),
            ("http://u:s3cret%ff@proxy:1", "no UTF-8"),
        ] {
            let error = choice(text).err().expect(text);
            assert!(error.contains(right), "{text}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn environment_is_read_as_curl_reads_it() {
        let none = of_environment(&environment(&[("HTTP_PROXY", "http://x:1")]));
        assert_eq!(none, Ok(None));
        let read = |pairs| {
            let via = of_environment(&environment(pairs)).expect("legal");
            via.expect("set").proxy.to_string()
        };
        assert_eq!(
            read(&[("ALL_PROXY", "socks5h://a"), ("HTTPS_PROXY", "b:8080")]),
            "http://b:8080"
        );
        assert_eq!(
            read(&[("HTTPS_PROXY", "b"), ("https_proxy", "https://c")]),
            "https://c:443"
        );
        assert_eq!(
            read(&[("ALL_PROXY", "socks5h://a"), ("HTTPS_PROXY", "")]),
            "socks5://a:1080"
        );
        let wrong = of_environment(&environment(&[("ALL_PROXY", "ftp://u:s3cret@x:1")]));
        let message = wrong.expect_err("a kind that is none");
        assert!(message.starts_with("ALL_PROXY names a kind"), "{message}");
    }

    #[test]
    fn no_proxy_names_hosts_below_a_domain_and_networks() {
        let via = of_environment(&environment(&[
            ("https_proxy", "http://proxy:3128"),
            (
                "NO_PROXY",
                "localhost, .Corp.example,example.org. 10.0.0.0/8,[::1],192.0.2.7",
            ),
        ]));
        let via = via.expect("legal").expect("set");
        for direct in [
            "localhost",
            "vpn.corp.example",
            "CORP.example",
            "example.org",
            "www.example.org",
            "10.1.2.3",
            "[::1]",
            "192.0.2.7",
        ] {
            assert_eq!(via.proxy_for(&host(direct)), None, "{direct}");
        }
        for through in ["notexample.org", "corp.example.com", "11.0.0.1", "[::2]"] {
            assert!(via.proxy_for(&host(through)).is_some(), "{through}");
        }
        let all = of_environment(&environment(&[("all_proxy", "p"), ("no_proxy", "*")]));
        let all = all.expect("legal").expect("set");
        assert_eq!(all.proxy_for(&host("anything.example")), None);
    }
}
