//! The server of a bench that is told of none, a child process with keys for all its clients, and a client of it.
//!
//! A key has eight instances, so a swarm of two thousand takes 250 keys. Everything lives in a folder that is deleted at
//! the end.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::config::{KeyFileError, LaneAddr, Scheme, write_key};
use crate::proto::{PublicKey, SecretKey};

/// A folder with the configuration of a server.
#[derive(Debug)]
pub(super) struct ServerFolder {
    folder: TempDir,
}

/// Who may connect to such a server, and how much of it there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan<'a> {
    /// How its lanes are carried.
    pub(super) scheme: Scheme,
    /// Its own key.
    pub(super) key: &'a SecretKey,
    /// The keys of its clients.
    pub(super) clients: &'a [PublicKey],
    /// How many sessions there may be at once.
    pub(super) sessions: usize,
}

/// Why there is no such folder.
#[derive(Debug, thiserror::Error)]
pub(super) enum FolderError {
    /// It cannot be made or written to.
    #[error("cannot write the configuration of a server to try: {0}")]
    Write(#[from] io::Error),
    /// Its key cannot be written.
    #[error(transparent)]
    Key(#[from] KeyFileError),
}

impl ServerFolder {
    /// Writes the configuration of a server on loopback whose egress is `user`.
    ///
    /// # Errors
    /// There is no room for temporary files.
    pub(super) fn new(plan: Plan<'_>) -> Result<Self, FolderError> {
        let folder = tempfile::Builder::new().prefix("adit-bench.").tempdir()?;
        write_key(&folder.path().join(KEY_FILE), plan.key, false)?;
        std::fs::write(folder.path().join(CONFIG_FILE), plan.text())?;
        Ok(Self { folder })
    }

    /// Writes the configuration of a client with `key`, and returns the arguments that start it.
    ///
    /// # Errors
    /// There is no room for temporary files.
    pub(super) fn client(
        &self,
        server: &LaneAddr,
        server_key: &PublicKey,
        key: &SecretKey,
    ) -> Result<[OsString; 5], FolderError> {
        let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let text = format!(
            "server: [\"{server}\"]\nserver_key: \"{server_key}\"\nkey_file: {CLIENT_KEY_FILE}\nproxy: \"{proxy}\"\n"
        );
        write_key(&self.path().join(CLIENT_KEY_FILE), key, false)?;
        let config = self.path().join(CLIENT_CONFIG_FILE);
        std::fs::write(&config, text)?;
        Ok(arguments("client", config))
    }

    /// Returns the arguments that start the server.
    pub(super) fn arguments(&self) -> [OsString; 5] {
        arguments("server", self.config())
    }

    /// Returns the path of the configuration.
    pub(super) fn config(&self) -> PathBuf {
        self.path().join(CONFIG_FILE)
    }

    /// Returns the folder.
    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Plan<'_> {
    fn text(&self) -> String {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut text = format!(
            "key_file: {KEY_FILE}\nlisten: [\"{}://{listen}\"]\nnetwork: 10.86.0.0/16\nnetwork6: off\negress: user\n\
             allow: [0.0.0.0/0]\nstate_dir: state\nmax_clients: {}\nclients:\n",
            self.scheme.as_str(),
            self.sessions,
        );
        for (number, key) in self.clients.iter().enumerate() {
            // Writing to a string does not fail.
            let _ = writeln!(text, "  - {{name: bench{number}, public_key: \"{key}\"}}");
        }
        text
    }
}

fn arguments(program: &str, config: PathBuf) -> [OsString; 5] {
    let [program, option, level, warn] = [program, "-c", "--log-level", "warn"].map(OsString::from);
    [program, option, config.into(), level, warn]
}

const KEY_FILE: &str = "server.key";
const CONFIG_FILE: &str = "server.yaml";
const CLIENT_KEY_FILE: &str = "client.key";
const CLIENT_CONFIG_FILE: &str = "client.yaml";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ClientConfig, EgressKind, Inputs, ServerConfig};

    #[test]
    fn server_takes_its_configuration() {
        for scheme in Scheme::ALL {
            let generate = || SecretKey::generate(&mut rand::rng());
            let key = generate();
            let clients: Vec<_> = (0..250).map(|_| generate().public()).collect();
            let folder = ServerFolder::new(Plan {
                scheme,
                key: &key,
                clients: &clients,
                sessions: 2000,
            })
            .expect("room for temporary files");
            let loaded = ServerConfig::load(Inputs {
                file: Some(&folder.config()),
                environment: &|_| None,
                flags: &[],
            })
            .expect("it is in order");
            assert_eq!(loaded.warnings, Vec::<String>::new());
            let config = loaded.config;
            assert_eq!(config.secret_keys[0].public(), key.public());
            assert_eq!(config.listen[0].scheme, scheme);
            assert_eq!(
                (config.max_clients, config.egress),
                (2000, EgressKind::User)
            );
            let listed = config.clients.iter().map(|client| client.public_key);
            assert_eq!(listed.collect::<Vec<_>>(), clients);
            assert!(config.state_dir.starts_with(folder.path()));
            let address = format!("{}://127.0.0.1:7443", scheme.as_str());
            let address: LaneAddr = address.parse().expect("an address");
            let own = generate();
            let [program, _, file, ..] = folder
                .client(&address, &key.public(), &own)
                .expect("room for temporary files");
            assert_eq!(program, "client");
            let loaded = ClientConfig::load(Inputs {
                file: Some(file.as_ref()),
                environment: &|_| None,
                flags: &[],
            })
            .expect("it is in order");
            assert_eq!(loaded.warnings, Vec::<String>::new());
            assert_eq!(loaded.config.servers, [address]);
            assert_eq!(loaded.config.server_key, key.public());
            assert_eq!(loaded.config.secret_key.public(), own.public());
            assert_eq!(loaded.config.proxy.port(), 0);
        }
    }
}
