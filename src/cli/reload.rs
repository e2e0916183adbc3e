//! Reading a program's configuration again while it runs.
//!
//! What is read again is what was read at the start: the same file, the environment, and the same flags. What can be
//! followed is put into force; what else has changed is named, and waits for a restart. A configuration that is wrong changes
//! nothing. Whoever asked is told, and the log is.

use std::path::PathBuf;

use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use super::logging;
use super::serve::load_by;
use crate::client::reload::Reloader as ClientReloader;
use crate::config::{
    ClientConfig, ConfigError, DnsConfig, FlagValue, Inputs, Kind, Loaded, ProxyConfig,
    ServerConfig,
};
use crate::proto::{PresharedKey, SecretKey};
use crate::reload::{Ask, Asker, Outcome, channel};
use crate::server::reload::Reloader as ServerReloader;

/// What to read again.
#[derive(Clone, Debug)]
pub(super) struct Again {
    /// The configuration file.
    pub(super) file: PathBuf,
    /// What the command line says.
    pub(super) flags: Vec<FlagValue>,
    /// What it, or the environment, says of the log; what the file says does not count then.
    pub(super) log_level: Option<String>,
}

/// Reads a configuration again whenever that is asked for.
#[derive(Debug)]
pub struct Reload {
    again: Again,
    asked: mpsc::Receiver<Ask>,
    asker: Asker,
    /// What is logged, as the configuration says.
    level: Option<String>,
}

impl Reload {
    /// Makes one, and what asks it.
    pub(super) fn new(again: Again) -> (Asker, Self) {
        // Whoever looks for the program by its file may be in another folder.
        let file = again.file.canonicalize();
        let (asker, asked) = channel(file.as_deref().unwrap_or(&again.file));
        let reload = Self {
            again,
            asked,
            asker: asker.clone(),
            level: None,
        };
        (asker, reload)
    }

    /// Takes note of the level that the configuration has.
    pub(super) fn logging(self, level: Option<String>) -> Self {
        Self { level, ..self }
    }

    /// Returns what asks it.
    pub(super) fn asker(&self) -> Asker {
        self.asker.clone()
    }

    /// Serves a server, for as long as it runs.
    pub(super) async fn serve_server(mut self, mut reloader: ServerReloader) {
        while let Some(ask) = self.asked.recv().await {
            let outcome = match self
                .again
                .load_aside(Kind::Server, ServerConfig::load)
                .await
            {
                Ok(loaded) => {
                    let level = loaded.config.log_level.clone();
                    let applied = with_warnings(loaded.warnings, reloader.apply(loaded.config));
                    self.follow_level(level, applied)
                }
                Err(problem) => reloader.refuse(problem),
            };
            self.tell(ask, outcome);
        }
    }

    /// Serves a client, for as long as it runs.
    pub(super) async fn serve_client(mut self, mut reloader: ClientReloader) {
        while let Some(ask) = self.asked.recv().await {
            let outcome = match self
                .again
                .load_aside(Kind::Client, ClientConfig::load)
                .await
            {
                Ok(loaded) => {
                    let restart = needs_restart(reloader.running(), &loaded.config);
                    let level = loaded.config.log_level.clone();
                    let applied = reloader.apply(loaded.config, restart).await;
                    self.follow_level(level, with_warnings(loaded.warnings, applied))
                }
                Err(problem) => reloader.refuse(problem),
            };
            self.tell(ask, outcome);
        }
    }

    /// Logs as the configuration that was put into force says, where the command line does not.
    fn follow_level(&mut self, read: Option<String>, outcome: Outcome) -> Outcome {
        let mut applied = outcome?;
        if self.level != read {
            if self.again.log_level.is_some() {
                let warning =
                    "log_level: not followed, since --log-level or ADIT_LOG_LEVEL says otherwise";
                applied.warnings.push(warning.to_owned());
            } else {
                // It was read already, and makes sense.
                logging::change(read.as_deref().unwrap_or(logging::DEFAULT_LEVEL))?;
                applied.applied.push("log_level".to_owned());
            }
            self.level = read;
        }
        Ok(applied)
    }

    fn tell(&self, ask: Ask, outcome: Outcome) {
        match &outcome {
            Ok(applied) => {
                for warning in &applied.warnings {
                    warn!("{warning}");
                }
                if !applied.restart.is_empty() {
                    warn!(
                        "changed, and not in force before a restart: {}",
                        applied.restart.join(", ")
                    );
                }
                for what in &applied.applied {
                    info!("in force: {what}");
                }
                info!(file = %self.again.file.display(), "configuration read again");
            }
            Err(problem) => {
                error!("configuration not read again, all stays as it was: {problem}");
            }
        }
        ask.answer(outcome);
    }
}

impl Again {
    /// As [`Again::load`], by another thread: a file that keeps its reader waiting must not keep the program from its work.
    async fn load_aside<T: Send + 'static>(
        &self,
        kind: Kind,
        load: fn(Inputs<'_>) -> Result<Loaded<T>, ConfigError>,
    ) -> Result<Loaded<T>, String> {
        let again = self.clone();
        let loaded = spawn_blocking(move || again.load(kind, load)).await;
        loaded.map_err(|error| error.to_string())?
    }

    fn load<T>(
        &self,
        kind: Kind,
        load: fn(Inputs<'_>) -> Result<Loaded<T>, ConfigError>,
    ) -> Result<Loaded<T>, String> {
        let loaded = load_by(Some(&self.file), &self.flags, kind, load);
        let loaded = loaded.map_err(|failure| failure.message())?;
        // At the start a file may be missing where the environment says enough; one that was there and is gone is a
        // mistake, as its rules and clients would be gone too.
        match self.file.try_exists() {
            Ok(true) => Ok(loaded),
            Ok(false) | Err(_) => Err(format!("{}: there is no such file", self.file.display())),
        }
    }
}

fn with_warnings(warnings: Vec<String>, outcome: Outcome) -> Outcome {
    outcome.map(|mut applied| {
        applied.warnings.splice(0..0, warnings);
        applied
    })
}

/// Names the keys of a client that differ, but for those that are followed at once.
fn needs_restart(running: &ClientConfig, read: &ClientConfig) -> Vec<String> {
    (compared(running, read).into_iter())
        .filter(|(_, changed)| *changed)
        .map(|(key, _)| key.to_owned())
        .collect()
}

/// The keys of a client that wait for a restart, and whether each differs.
fn compared(running: &ClientConfig, read: &ClientConfig) -> Vec<(&'static str, bool)> {
    let ClientConfig {
        servers,
        server_key,
        secret_key,
        preshared_key,
        proxy,
        proxy_auth,
        rules: _,
        proxies,
        dns,
        tls,
        via,
        connect_timeout,
        lanes,
        aead,
        repair,
        threads,
        forwards: _,
        control,
        admin,
        // Followed by whoever logs.
        log_level: _,
        memory,
        tun,
        process,
    } = read;
    let public = |key: &SecretKey| key.public();
    let preshared = |key: &Option<PresharedKey>| key.as_ref().map(PresharedKey::to_base64);
    // Their rules are followed.
    let without_rules = |proxies: &[ProxyConfig]| -> Vec<_> {
        (proxies.iter())
            .map(|proxy| (proxy.listen, proxy.auth.clone()))
            .collect()
    };
    let changed = [
        ("server", running.servers != *servers),
        ("server_key", running.server_key != *server_key),
        (
            "key_file",
            public(&running.secret_key) != public(secret_key),
        ),
        (
            "preshared_key_file",
            preshared(&running.preshared_key) != preshared(preshared_key),
        ),
        ("proxy", running.proxy != *proxy),
        (
            "proxy_user, proxy_password, proxy_password_file",
            running.proxy_auth != *proxy_auth,
        ),
        (
            "proxies",
            without_rules(&running.proxies) != without_rules(proxies),
        ),
        ("tls", running.tls != *tls),
        ("via, via_password_file", running.via != *via),
        (
            "connect_timeout",
            running.connect_timeout != *connect_timeout,
        ),
        ("lanes", running.lanes != *lanes),
        ("aead", running.aead != *aead),
        ("repair", running.repair != *repair),
        ("threads", running.threads != *threads),
        ("control", running.control != *control),
        ("admin", running.admin != *admin),
        ("limits.memory", running.memory != *memory),
        ("tun", running.tun != *tun),
        ("user", running.process.user != process.user),
    ];
    (changed.into_iter())
        .chain(dns_compared(&running.dns, dns))
        .collect()
}

/// The same of what is below `dns`.
fn dns_compared(
    running: &DnsConfig,
    read: &DnsConfig,
) -> impl Iterator<Item = (&'static str, bool)> {
    let DnsConfig {
        listen,
        upstream,
        split,
        records: _,
        block: _,
        allow: _,
        blocked,
        refresh: _,
        cache_dir: _,
    } = read;
    [
        ("dns.listen", running.listen != *listen),
        ("dns.upstream", running.upstream != *upstream),
        ("dns.split", running.split != *split),
        ("dns.blocked", running.blocked != *blocked),
    ]
    .into_iter()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::config::Inputs;
    use crate::server::reload::compared as server_compared;

    /// What docs/operation.md says of each key: when a change of it counts.
    fn documented(kind: Kind) -> BTreeMap<String, String> {
        let page = include_str!("../../docs/operation.md");
        let head = format!("| key of a {kind} | when a change counts |\n");
        let (_, table) = page.split_once(&head).expect("the table");
        let rows = table.lines().skip(1).take_while(|row| row.starts_with('|'));
        let mut keys = BTreeMap::new();
        for row in rows {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let names = cells[1].split('`').skip(1).step_by(2);
            for name in names {
                let former = keys.insert(name.to_owned(), cells[2].to_owned());
                assert_eq!(former, None, "{name} stands twice");
            }
        }
        keys
    }

    /// Whether what is said of `name` is said of `key`: it is that key, or what the key belongs to.
    fn covers(name: &str, key: &str) -> bool {
        key.strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    }

    fn restarts(table: &BTreeMap<String, String>) -> BTreeSet<&str> {
        let waiting = table.iter().filter(|(_, when)| when.contains("restart"));
        waiting.map(|(name, _)| name.as_str()).collect()
    }

    fn split(keys: &[(&'static str, bool)]) -> BTreeSet<&'static str> {
        keys.iter().flat_map(|(key, _)| key.split(", ")).collect()
    }

    fn load<T>(load: fn(Inputs<'_>) -> Result<Loaded<T>, ConfigError>) -> T {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key").display().to_string();
        let server_key = SecretKey::from_bytes([3; 32]).public().to_string();
        let environment = |name: &str| match name {
            "ADIT_SERVER" => Some("udp://192.0.2.1:7443".to_owned()),
            "ADIT_SERVER_KEY" => Some(server_key.clone()),
            "ADIT_KEY_FILE" => Some(key.clone()),
            "ADIT_GENERATE_KEY" => Some("true".to_owned()),
            "STATE_DIRECTORY" => Some("/var/lib/adit".to_owned()),
            _ => None,
        };
        let inputs = Inputs {
            file: None,
            environment: &environment,
            flags: &[],
        };
        load(inputs).unwrap().config
    }

    #[test]
    fn every_key_stands_in_the_table_of_reloads_as_the_programs_have_it() {
        let client = load(ClientConfig::load);
        let server = load(ServerConfig::load);
        for (kind, compared) in [
            (Kind::Client, compared(&client, &client)),
            (Kind::Server, server_compared(&server, &server)),
        ] {
            let table = documented(kind);
            assert_eq!(restarts(&table), split(&compared), "{kind}");
            let mut keys = kind.keys();
            if kind == Kind::Client {
                // Short for dns.listen.
                assert!(keys.remove("dns"));
            }
            for key in &keys {
                let is_told = table.keys().any(|name| covers(name, key));
                assert!(is_told, "{kind}: {key} is not told");
            }
            for name in table.keys() {
                let is_one = keys.iter().any(|key| covers(name, key));
                assert!(is_one, "{kind}: {name} is no key");
            }
        }
    }
}
