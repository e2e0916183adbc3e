//! Whole configurations: what is accepted, what is refused and how it is told, and which source wins.

mod examples;
mod keys;
mod mistakes;
mod refused;
mod settings;
mod sources;
mod warnings;

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::proto::SecretKey;

/// A folder with keys, to write configurations into.
struct Bench {
    folder: TempDir,
    own: SecretKey,
    other: SecretKey,
    environment: HashMap<String, String>,
    flags: Vec<FlagValue>,
}

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut rng = rand::rng();
        let (own, other) = (SecretKey::generate(&mut rng), SecretKey::generate(&mut rng));
        write_key(&folder.path().join("own.key"), &own, false).expect("a key");
        write_key(&folder.path().join("other.key"), &other, false).expect("a key");
        Self {
            folder,
            own,
            other,
            environment: HashMap::new(),
            flags: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        // The keys stand in for themselves.
        let text = text
            .replace("OWN", &self.own.public().to_string())
            .replace("OTHER", &self.other.public().to_string());
        let path = self.path(name);
        fs::write(&path, text).expect("written");
        path
    }

    fn set(mut self, variable: &str, value: &str) -> Self {
        self.environment
            .insert(variable.to_owned(), value.to_owned());
        self
    }

    fn flag(mut self, key: &'static str, flag: &'static str, values: &[&str]) -> Self {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        self.flags.push(FlagValue { key, flag, values });
        self
    }

    fn load<T>(
        &self,
        file: Option<&Path>,
        load: fn(Inputs<'_>) -> Result<Loaded<T>, ConfigError>,
    ) -> Result<Loaded<T>, String> {
        let mut environment = self.environment.clone();
        environment
            .entry("HOME".to_owned())
            .or_insert_with(|| "/home/of/nobody".to_owned());
        let lookup = |name: &str| environment.get(name).cloned();
        load(Inputs {
            file,
            environment: &lookup,
            flags: &self.flags,
        })
        .map_err(|error| {
            error
                .to_string()
                .replace(&format!("{}/", self.folder.path().display()), "")
        })
    }

    fn server(&self, text: &str) -> Result<Loaded<ServerConfig>, String> {
        self.load(Some(&self.write("server.yaml", text)), ServerConfig::load)
    }

    fn client(&self, text: &str) -> Result<Loaded<ClientConfig>, String> {
        self.load(Some(&self.write("client.yaml", text)), ClientConfig::load)
    }
}

/// The least that a client needs.
const CLIENT: &str = "server: tcp://203.0.113.7:7443\nserver_key: OTHER\nkey_file: own.key\n";
