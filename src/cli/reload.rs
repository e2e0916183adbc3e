//! Reading a client's configuration again while it runs.
//!
//! What is read again is what was read at the start: the same file, the environment, and the same flags. Rules are put into
//! force; what else has changed is named, and waits for a restart. A configuration that is wrong changes nothing.

use std::path::PathBuf;

use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::Failure;
use super::serve::load_by;
use crate::client::proxies::RuleBook;
use crate::config::{ClientConfig, FlagValue, Kind, Loaded, ProxyConfig};
use crate::proto::{PresharedKey, SecretKey};

/// What to read again.
#[derive(Clone, Debug)]
pub(super) struct Again {
    /// The configuration file.
    pub(super) file: PathBuf,
    /// What the command line says.
    pub(super) flags: Vec<FlagValue>,
}

/// Reads a configuration again whenever that is asked for.
#[derive(Debug)]
pub struct Reload {
    again: Again,
    asked: mpsc::Receiver<()>,
}

impl Reload {
    /// Makes one, and what asks it. Whoever finds that full need not ask: it is about to begin.
    pub(super) fn new(again: Again) -> (mpsc::Sender<()>, Self) {
        let (ask, asked) = mpsc::channel(1);
        (ask, Self { again, asked })
    }

    /// Serves a client that was started with `running`, for as long as anybody can ask.
    pub(super) async fn serve(mut self, running: ClientConfig, book: RuleBook) {
        while self.asked.recv().await.is_some() {
            match self.again.load() {
                Ok(loaded) => {
                    for warning in loaded.warnings {
                        warn!("{warning}");
                    }
                    let restart = needs_restart(&running, &loaded.config);
                    if !restart.is_empty() {
                        warn!(
                            "changed, and not in force before a restart: {}",
                            restart.join(", ")
                        );
                    }
                    book.replace(&loaded.config).await;
                    info!(file = %self.again.file.display(), "configuration read again; its rules are in force");
                }
                Err(problem) => {
                    error!("configuration not read again, all stays as it was: {problem}");
                }
            }
        }
    }
}

impl Again {
    fn load(&self) -> Result<Loaded<ClientConfig>, String> {
        let loaded = load_by(
            Some(&self.file),
            &self.flags,
            Kind::Client,
            ClientConfig::load,
        );
        let loaded = loaded.map_err(|failure| match failure {
            Failure::Usage(message) => message,
            Failure::Config(error) => error.to_string(),
            Failure::KeyFile(error) => error.to_string(),
            Failure::Run(error) => error.to_string(),
        })?;
        // At the start a file may be missing where the environment says enough; one that was there and is gone is a
        // mistake, as its rules would be gone too.
        match self.file.try_exists() {
            Ok(true) => Ok(loaded),
            Ok(false) | Err(_) => Err(format!("{}: there is no such file", self.file.display())),
        }
    }
}

/// Names the keys that differ, but for those that are followed at once.
fn needs_restart(running: &ClientConfig, read: &ClientConfig) -> Vec<&'static str> {
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
        forwards,
        control,
        memory,
        tun,
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
            "proxy_user or its password",
            running.proxy_auth != *proxy_auth,
        ),
        (
            "proxies",
            without_rules(&running.proxies) != without_rules(proxies),
        ),
        ("dns", running.dns != *dns),
        ("tls", running.tls != *tls),
        ("via", running.via != *via),
        (
            "connect_timeout",
            running.connect_timeout != *connect_timeout,
        ),
        ("lanes", running.lanes != *lanes),
        ("aead", running.aead != *aead),
        ("repair", running.repair != *repair),
        ("threads", running.threads != *threads),
        (
            "local_forwards or remote_forwards",
            running.forwards != *forwards,
        ),
        ("control", running.control != *control),
        ("limits.memory", running.memory != *memory),
        ("tun", running.tun != *tun),
    ];
    changed
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect()
}
