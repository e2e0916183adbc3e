//! Finds the client that runs: by its socket, by its configuration, or because it is the only one.

use std::path::{Path, PathBuf};

use clap::Args;

use super::Failure;
use super::serve::load_by;
use crate::client::control;
use crate::config::{ClientConfig, ConfigError, Kind};
use crate::io::control::{CallError, Caller};

/// Which client is meant.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// The configuration of the client; without one, the client of this user that runs
    #[arg(short, long, value_name = "FILE", env = "ADIT_CONFIG", global = true)]
    pub(super) config: Option<PathBuf>,
    /// The control socket of the client
    #[arg(long, value_name = "SOCKET", env = "ADIT_CONTROL", global = true)]
    pub(super) control: Option<PathBuf>,
}

/// What is known of the client that is meant.
pub(super) enum Found {
    /// It runs.
    Running(Caller),
    /// It does not, and this is how it would; and why it is thought that it does not.
    Idle(Option<Box<ClientConfig>>, String),
}

impl Which {
    /// Finds it.
    ///
    /// # Errors
    ///
    /// The configuration is wrong, or it is not clear which client is meant, or it cannot be asked.
    pub(super) fn find(&self) -> Result<Found, Failure> {
        if let Some(path) = &self.control {
            return match Caller::connect(path) {
                Ok(caller) => Ok(Found::Running(caller)),
                Err(error) => Err(Failure::Run(error.into())),
            };
        }
        let Some(config) = self.load()? else {
            return only_one();
        };
        let described = match &self.config {
            Some(file) => format!("with the configuration {}", file.display()),
            None => "with the configuration of the environment".to_owned(),
        };
        let Some(path) = control::socket(&config) else {
            let why = format!("a client {described} takes no orders: it says `control: off`");
            return Ok(Found::Idle(Some(config), why));
        };
        match Caller::connect(&path) {
            Ok(caller) => Ok(Found::Running(caller)),
            Err(CallError::NotThere { .. }) => {
                let why = format!(
                    "no client runs {described}: its control socket would be {}",
                    path.display()
                );
                Ok(Found::Idle(Some(config), why))
            }
            Err(error) => Err(Failure::Run(error.into())),
        }
    }

    /// Loads the configuration; `None` where there is none.
    fn load(&self) -> Result<Option<Box<ClientConfig>>, Failure> {
        let file = self.config.as_deref();
        match load_by(file, &[], Kind::Client, ClientConfig::load) {
            Ok(loaded) => Ok(Some(Box::new(loaded.config))),
            // Nothing was given at all.
            Err(Failure::Usage(_)) if file.is_none() => Ok(None),
            // Variables that say something of other clients, such as ADIT_PROXY, are not enough for one.
            Err(Failure::Config(error)) if file.is_none() && is_incomplete(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn is_incomplete(error: &ConfigError) -> bool {
    error.is_all_missing()
}

fn only_one() -> Result<Found, Failure> {
    let mut living = Vec::new();
    for path in control::sockets() {
        if let Ok(caller) = Caller::connect(&path) {
            living.push((path, caller));
        }
    }
    match living.as_slice() {
        [] | [_] => Ok(match living.pop() {
            Some((_, caller)) => Found::Running(caller),
            None => Found::Idle(
                None,
                "no client of this user runs: start `adit client`, or name its configuration by -c FILE"
                    .to_owned(),
            ),
        }),
        [(first, _), ..] => Err(Failure::Usage(format!(
            "{} clients run: say which by -c FILE, or by --control {}",
            living.len(),
            shown(first)
        ))),
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
