//! Finds the program that runs: by its socket, by its configuration, or because it is the only one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::Map;

use super::serve::load_by;
use super::{Failure, status};
use crate::client::control as client;
use crate::config::{ClientConfig, ConfigError, Kind, ServerConfig, guess_kind};
use crate::io::control::{CallError, Caller, Request, Wanted};
use crate::server::control as server;

/// Which program is meant.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// The configuration of the program that runs; without one, the only one of this user that runs
    #[arg(short, long, value_name = "FILE", env = "ADIT_CONFIG", global = true)]
    pub(super) config: Option<PathBuf>,
    /// The control socket of the program
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
    /// Finds a client.
    ///
    /// # Errors
    ///
    /// The configuration is wrong, or it is not clear which client is meant, or it cannot be asked.
    pub(super) fn find(&self) -> Result<Found, Failure> {
        if let Some(path) = &self.control {
            return connect(path).map(Found::Running);
        }
        let Some(sketch) = self.load(Kind::Client, ClientConfig::sketch)? else {
            let found = match only_one(client::sockets(), "client")? {
                Ok(caller) => Ok(caller),
                // A trial is meant only where nothing else is.
                Err(why) => only_one(client::trials(), "trial")?.map_err(|_none| why),
            };
            return Ok(match found {
                Ok(caller) => Found::Running(caller),
                Err(why) => Found::Idle(None, why),
            });
        };
        Ok(match self.ask(Kind::Client, &client::place(&sketch))? {
            Ok(caller) => Found::Running(caller),
            Err(why) => {
                // Whoever goes on without it needs all of it.
                let config = self.load(Kind::Client, ClientConfig::load)?;
                Found::Idle(config.map(Box::new), why)
            }
        })
    }

    /// Finds a server that runs.
    ///
    /// # Errors
    ///
    /// None runs, or the configuration is wrong, or it is not clear which server is meant, or it cannot be asked.
    pub(super) fn find_server(&self) -> Result<Caller, Failure> {
        if let Some(path) = &self.control {
            return connect(path);
        }
        let found = match self.load(Kind::Server, ServerConfig::sketch)? {
            Some(config) => self.ask(Kind::Server, &server::place(&config))?,
            None => only_one(server::sockets(), "server")?,
        };
        found.map_err(not_running)
    }

    /// Finds a program that runs, whichever it is.
    ///
    /// # Errors
    ///
    /// As [`Which::find_server`].
    pub(super) fn find_any(&self) -> Result<Caller, Failure> {
        if let Some(path) = &self.control {
            return connect(path);
        }
        if let Some(file) = &self.config {
            return match guess_kind(file)? {
                Some(Kind::Server) => self.find_server(),
                Some(Kind::Client) | None => running(self.find()?),
            };
        }
        // Variables may say enough of either; else whatever runs is meant.
        let server = self.load(Kind::Server, ServerConfig::sketch).ok().flatten();
        if let Some(config) = server
            && let Ok(caller) = self.ask(Kind::Server, &server::place(&config))?
        {
            return Ok(caller);
        }
        let client = self.load(Kind::Client, ClientConfig::sketch).ok().flatten();
        if let Some(config) = client
            && let Ok(caller) = self.ask(Kind::Client, &client::place(&config))?
        {
            return Ok(caller);
        }
        let sockets = server::sockets().into_iter().chain(client::sockets());
        match only_one(sockets.collect(), "program")? {
            Ok(caller) => Ok(caller),
            // A trial is meant only where nothing else is.
            Err(why) => only_one(client::trials(), "trial")?.map_err(|_none| not_running(why)),
        }
    }

    /// Asks at each place of a program; what is returned without one is the reason, in words.
    fn ask(&self, kind: Kind, place: &Wanted) -> Result<Result<Caller, String>, Failure> {
        let described = match &self.config {
            Some(file) => format!("with the configuration {}", file.display()),
            None => "with the configuration of the environment".to_owned(),
        };
        let Some(first) = place.paths().first() else {
            return Ok(Err(format!(
                "a {kind} {described} takes no orders: it says `control: off`"
            )));
        };
        let mut closed = None;
        for path in place.paths() {
            match Caller::connect(path) {
                Ok(caller) => return Ok(Ok(caller)),
                Err(CallError::NotThere { .. }) => {}
                // A folder of another user, where a program of this one would not have its socket.
                Err(error) if error.is_closed() => closed = Some(error),
                Err(error) => return Err(Failure::Run(error.into())),
            }
        }
        if let Some(error) = closed {
            return Err(Failure::Run(error.into()));
        }
        Ok(Err(format!(
            "no {kind} runs {described}: its control socket would be {}",
            first.display()
        )))
    }

    /// Loads the configuration; `None` where there is none.
    fn load<T>(
        &self,
        kind: Kind,
        load: fn(crate::config::Inputs<'_>) -> Result<crate::config::Loaded<T>, ConfigError>,
    ) -> Result<Option<T>, Failure> {
        let file = self.config.as_deref();
        match load_by(file, &[], kind, load) {
            Ok(loaded) => Ok(Some(loaded.config)),
            // Nothing was given at all.
            Err(Failure::Usage(_)) if file.is_none() => Ok(None),
            // Variables that say something of other programs, such as ADIT_PROXY, are not enough for one.
            Err(Failure::Config(error)) if file.is_none() && error.is_all_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn connect(path: &Path) -> Result<Caller, Failure> {
    Caller::connect(path).map_err(|error| Failure::Run(error.into()))
}

fn running(found: Found) -> Result<Caller, Failure> {
    match found {
        Found::Running(caller) => Ok(caller),
        Found::Idle(_, why) => Err(not_running(why)),
    }
}

fn not_running(why: String) -> Failure {
    Failure::Run(anyhow::Error::msg(why))
}

/// Takes the only one of `sockets` that lives; without one, says so in words.
fn only_one(sockets: Vec<PathBuf>, what: &str) -> Result<Result<Caller, String>, Failure> {
    let mut living = Vec::new();
    for path in sockets {
        if let Ok(caller) = Caller::connect(&path) {
            living.push((path, caller));
        }
    }
    match living.as_slice() {
        [] | [_] => Ok(living.pop().map(|(_, caller)| caller).ok_or_else(|| {
            let start = if what == "server" {
                "adit server"
            } else {
                "adit client"
            };
            let join = if what == "server" {
                ""
            } else {
                " (`adit join LINK` makes a client's configuration and starts it)"
            };
            format!(
                "no {what} of this user runs: start `{start}`{join}, or name its configuration by -c FILE"
            )
        })),
        [_, _, ..] => Err(Failure::Usage(several(living, what))),
    }
}

/// Lists those that run, and how one is named.
fn several(living: Vec<(PathBuf, Caller)>, what: &str) -> String {
    let mut lines = format!(
        "{} {what}s run: say which by -c FILE, its configuration, or by one of these",
        living.len()
    );
    for (path, mut caller) in living {
        let answer = caller.call(&Request::new("status", Map::new()), None, PATIENCE);
        // One that does not answer is named all the same.
        let what = answer.map_or_else(|error| error.to_string(), |it| status::headline(&it));
        lines.push_str(&format!("\n  --control {}   {what}", path.display()));
    }
    lines
}

/// How long each of several programs may take to say what it is.
const PATIENCE: Duration = Duration::from_secs(3);
