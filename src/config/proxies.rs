//! The local proxies in a client's configuration: where each listens, whom it serves, and by which rules.
//!
//! `proxy`, `proxy_user`, `rules` and the rest at the top of the file make the first; each group of `proxies` makes another,
//! which takes from the top what it does not say itself.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use zeroize::Zeroizing;

use super::parse;
use super::rule::{self, MAX_RULES, Rule};
use super::settings::{Group, Located, Settings};
use super::shared::{Unique, read_password, values, warn_of_readers};

/// A local proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Where it listens; port 0 takes any free one. Loopback, unless there is a password or it was said that none is
    /// wanted.
    pub listen: SocketAddr,
    /// What it asks of whoever uses it.
    pub auth: Option<ProxyAuth>,
    /// Where its requests go: the first rule that concerns one decides; beyond them all, the tunnel.
    pub rules: Vec<Rule>,
}

/// The user name and the password of a local proxy. `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyAuth {
    /// The user name, 1 to 255 bytes without a colon.
    pub user: String,
    /// The password, 1 to 255 bytes, erased when dropped.
    pub password: Zeroizing<String>,
}

impl fmt::Debug for ProxyAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProxyAuth(..)")
    }
}

/// Reads the first proxy and the further ones.
pub(super) fn read(settings: &mut Settings<'_>) -> (ProxyConfig, Vec<ProxyConfig>) {
    let auth = read_auth(settings);
    let open = settings.value("proxy_open", parse::boolean);
    let listen = settings.value("proxy", parse::proxy);
    if let Some(at) = &listen {
        let open = open.is_some_and(|at| at.value);
        refuse_strangers(settings, at, auth.is_some() || open, &AT_THE_TOP);
    }
    let rules = settings.list("rules", rule::parse);
    let first = ProxyConfig {
        listen: listen.as_ref().map_or(DEFAULT_PROXY, |at| at.value),
        auth,
        rules: bounded(settings, rules).unwrap_or_default(),
    };
    let groups = settings.groups("proxies", &KEYS);
    if let Some(group) = groups.get(MAX_PROXIES) {
        let message = format!("is one more than the {MAX_PROXIES} further proxies there can be");
        settings.problem("proxies", group.place.clone(), message);
    }
    let mut seen = Unique::default();
    let further = groups
        .iter()
        .take(MAX_PROXIES)
        .filter_map(|group| read_group(settings, group, &first, &mut seen))
        .collect();
    (first, further)
}

/// `None` only after a problem was added.
fn read_group(
    settings: &mut Settings<'_>,
    group: &Group,
    first: &ProxyConfig,
    seen: &mut Unique<SocketAddr>,
) -> Option<ProxyConfig> {
    let own = read_auth_in(settings, group);
    let open = settings.value_in(group, "open", parse::boolean);
    if let Some(at) = &open
        && at.value
        && own.is_some()
    {
        settings.problem_at(at, "stands beside a password: keep one of the two");
    }
    let open = open.is_some_and(|at| at.value);
    let auth = own.or_else(|| first.auth.clone().filter(|_| !open));
    let rules = settings.list_in(group, "rules", rule::parse);
    let rules = bounded(settings, rules).unwrap_or_else(|| first.rules.clone());
    let Some(at) = settings.value_in(group, "listen", parse::proxy) else {
        settings.missing_in(
            group,
            "listen",
            "write where this proxy listens, such as 127.0.0.1:1081",
        );
        return None;
    };
    refuse_strangers(settings, &at, auth.is_some() || open, &IN_A_GROUP);
    if at.value == first.listen {
        let message = format!("{} is where `proxy` listens: write another port", at.value);
        settings.problem_at(&at, message);
    } else if at.value.port() != 0 {
        seen.insert(settings, &at, at.value, at.value);
    }
    Some(ProxyConfig {
        listen: at.value,
        auth,
        rules,
    })
}

/// The rules of a list without their places; a list that is too long is a problem.
fn bounded(settings: &mut Settings<'_>, rules: Option<Vec<Located<Rule>>>) -> Option<Vec<Rule>> {
    if let Some(at) = rules.as_ref().and_then(|rules| rules.get(MAX_RULES)) {
        let message = format!(
            "is one more than the {MAX_RULES} rules there can be: one rule takes many destinations"
        );
        settings.problem_at(at, message);
    }
    rules.map(|rules| values(Some(rules)))
}

/// Adds a problem where anybody could use the tunnel.
fn refuse_strangers(
    settings: &mut Settings<'_>,
    at: &Located<SocketAddr>,
    guarded: bool,
    names: &Names,
) {
    if at.value.ip().to_canonical().is_loopback() || guarded {
        return;
    }
    let message = format!(
        "`{}` can be reached from other hosts, and anybody there could use the tunnel: listen on 127.0.0.1, set {} and {}, or say {}: true",
        at.value, names.user, names.password, names.open
    );
    settings.problem_at(at, message);
}

fn read_auth(settings: &mut Settings<'_>) -> Option<ProxyAuth> {
    let given = Given {
        user: settings.value(AT_THE_TOP.user, user),
        password: settings.secret(AT_THE_TOP.password, password),
        file: settings.path(AT_THE_TOP.file),
    };
    pair(settings, given, &AT_THE_TOP, |name| name.to_owned())
}

fn read_auth_in(settings: &mut Settings<'_>, group: &Group) -> Option<ProxyAuth> {
    let given = Given {
        user: settings.value_in(group, IN_A_GROUP.user, user),
        password: settings.secret_in(group, IN_A_GROUP.password, password),
        file: settings.path_in(group, IN_A_GROUP.file),
    };
    pair(settings, given, &IN_A_GROUP, |name| group.key(name))
}

/// What is set of a user and a password.
struct Given {
    user: Option<Located<String>>,
    password: Option<Located<Zeroizing<String>>>,
    file: Option<Located<PathBuf>>,
}

/// What the keys of one proxy are called.
struct Names {
    user: &'static str,
    password: &'static str,
    file: &'static str,
    open: &'static str,
}

/// Joins a user and a password, of which neither serves alone; `key` gives the whole key of a name.
fn pair(
    settings: &mut Settings<'_>,
    given: Given,
    names: &Names,
    key: impl Fn(&str) -> String,
) -> Option<ProxyAuth> {
    if let Some(at) = &given.password {
        warn_of_readers(settings, &at.key, names.file, &at.place);
    }
    if let (Some(_), Some(file)) = (&given.password, &given.file) {
        let message = format!("stands beside {}: keep one of the two", names.password);
        settings.problem_at(file, message);
    }
    let from_file = given.file.and_then(|file| {
        Some(Located {
            value: read_password(settings, &file)?,
            key: file.key,
            place: file.place,
        })
    });
    match (given.user, given.password.or(from_file)) {
        (Some(user), Some(password)) => Some(ProxyAuth {
            user: user.value,
            password: password.value,
        }),
        (Some(user), None) => {
            // A password that was wrong has been told already.
            let wrong = |name| settings.has_problem(&key(name));
            if !wrong(names.password) && !wrong(names.file) {
                let (password, file) = (names.password, names.file);
                let message = format!("has no password: set {password} or {file} too");
                settings.problem_at(&user, message);
            }
            None
        }
        (None, Some(password)) => {
            if !settings.has_problem(&key(names.user)) {
                let message = format!("has no user name: set {} too", names.user);
                settings.problem_at(&password, message);
            }
            None
        }
        (None, None) => None,
    }
}

fn user(text: &str) -> parse::Parsed<String> {
    parse::credential(text, false)
}

fn password(text: &str) -> parse::Parsed<Zeroizing<String>> {
    parse::credential(text, true).map(Zeroizing::new)
}

/// The keys of the first proxy.
const AT_THE_TOP: Names = Names {
    user: "proxy_user",
    password: "proxy_password",
    file: "proxy_password_file",
    open: "proxy_open",
};

/// Those of a further one.
const IN_A_GROUP: Names = Names {
    user: "user",
    password: "password",
    file: "password_file",
    open: "open",
};

/// Every key of a further proxy.
const KEYS: [&str; 6] = [
    "listen",
    "rules",
    IN_A_GROUP.user,
    IN_A_GROUP.password,
    IN_A_GROUP.file,
    IN_A_GROUP.open,
];

/// Further proxies: one for each application that is to be told apart, on one machine.
const MAX_PROXIES: usize = 64;

/// The port that SOCKS has by convention (RFC 1928, section 3), for this host alone.
const DEFAULT_PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1080);
