//! Which program a configuration is for, and which keys and variables each program knows.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use super::client::ClientConfig;
use super::error::ConfigError;
use super::server::ServerConfig;
use super::settings::{Inputs, Settings, nearest, variable};

/// One of the two programs that have a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `adit server`.
    Server,
    /// `adit client`.
    Client,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Server, Self::Client];

    /// The word for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }

    /// Every key that this program knows: `tun.name`, `clients[].name`.
    pub(crate) fn keys(self) -> BTreeSet<String> {
        let nothing = |_: &str| None;
        let inputs = Inputs {
            file: None,
            environment: &nothing,
            flags: &[],
        };
        let mut settings = Settings::new(inputs);
        match self {
            Self::Server => drop(ServerConfig::read(&mut settings, &nothing)),
            Self::Client => drop(ClientConfig::read(&mut settings)),
        }
        settings.known().clone()
    }

    /// The first parts of the keys: what stands at the top of a file.
    fn top_keys(self) -> BTreeSet<String> {
        self.keys()
            .iter()
            .filter_map(|key| key.split(['.', '[']).next())
            .map(str::to_owned)
            .collect()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Tells from its keys which program a file is for; `None` where they fit both or neither.
///
/// # Errors
/// The file cannot be read, or is not YAML.
pub fn guess_kind(file: &Path) -> Result<Option<Kind>, ConfigError> {
    let nothing = |_: &str| None;
    let settings = Settings::open(Inputs {
        file: Some(file),
        environment: &nothing,
        flags: &[],
    })?;
    let score = |kind: Kind| {
        let known = kind.top_keys();
        settings
            .top_keys()
            .filter(|key| known.contains(*key))
            .count()
    };
    let (server, client) = (score(Kind::Server), score(Kind::Client));
    Ok(match server.cmp(&client) {
        std::cmp::Ordering::Greater => Some(Kind::Server),
        std::cmp::Ordering::Less => Some(Kind::Client),
        std::cmp::Ordering::Equal => None,
    })
}

/// Answers the name of an environment variable that begins like ours but means nothing: what is wrong with it, and
/// which one may have been meant. `None` for every other name.
pub fn unknown_variable(name: &str) -> Option<String> {
    if !name.starts_with(PREFIX) {
        return None;
    }
    // Lists of groups have no variable.
    let keys: Vec<String> = Kind::ALL
        .into_iter()
        .flat_map(Kind::keys)
        .filter(|key| !key.contains("[]"))
        .collect();
    let known: Vec<String> = keys
        .iter()
        .map(|key| variable(key))
        .chain(OTHERS.map(str::to_owned))
        .collect();
    if known.iter().any(|known| known == name) {
        return None;
    }
    Some(match nearest(name, known.iter().map(String::as_str)) {
        Some(near) => format!("environment variable {name} means nothing: did you mean {near}?"),
        None => format!("environment variable {name} means nothing"),
    })
}

/// What the names of our environment variables begin with.
const PREFIX: &str = "ADIT_";

/// Variables that stand for flags alone.
const OTHERS: [&str; 4] = [
    "ADIT_CONFIG",
    "ADIT_LOG_LEVEL",
    "ADIT_LOG_FORMAT",
    "ADIT_READY_FD",
];
