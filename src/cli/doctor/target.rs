//! What `adit doctor` is to look at: the file that is named, else what programs would read, else what runs.

use std::env;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use super::super::serve::load_client;
use super::super::{Failure, join};
use super::DoctorArgs;
use crate::client::control as client_control;
use crate::config::{
    ClientConfig, ConfigError, Inputs, Kind, Loaded, ServerConfig, guess_kind, state_base,
};
use crate::doctor::leftover::{self, Left};
use crate::doctor::program::{Program, ask};
use crate::io::file::open_regular;
use crate::server::control as server_control;

/// What is looked at.
#[expect(clippy::large_enum_variant, reason = "there is one, for a moment")]
pub(super) enum Target {
    Client(Option<PathBuf>, Result<Loaded<ClientConfig>, ConfigError>),
    Server(Option<PathBuf>, Result<Loaded<ServerConfig>, ConfigError>),
    /// Nothing is named: what runs, and what such programs have left.
    Unnamed(Vec<Program>, Vec<Left>),
}

impl Target {
    /// Finds the configuration as the programs do; one that is wrong is found, too.
    pub(super) fn find(options: &DoctorArgs) -> Result<Self, Failure> {
        if let Some(file) = &options.config {
            return Self::of_file(file, options.kind);
        }
        if options.kind != Some(Kind::Client) {
            match load(None, ServerConfig::load) {
                Err(error) if error.is_all_missing() && options.kind.is_none() => {}
                Err(_) if options.kind.is_none() && load_client(None, &[]).is_ok() => {}
                loaded => return Ok(Self::Server(None, loaded)),
            }
        }
        let loaded = load(None, ClientConfig::load);
        let missing = matches!(&loaded, Err(error) if error.is_all_missing());
        match join::usual_file().filter(|usual| usual.exists()) {
            Some(usual) if missing => Self::of_file(&usual, Some(Kind::Client)),
            Some(_) | None if missing => Self::of_what_runs(options.kind),
            Some(_) | None => Ok(Self::Client(None, loaded)),
        }
    }

    /// Takes the file of the only program of this user that runs.
    fn of_what_runs(kind: Option<Kind>) -> Result<Self, Failure> {
        let sockets = server_control::sockets().into_iter();
        let sockets = sockets.chain(client_control::sockets());
        let (programs, _closed) = ask(sockets.chain(client_control::trials()).collect());
        let is_meant = |program: &&Program| kind.is_none_or(|kind| program.kind == kind);
        let programs: Vec<Program> = programs.iter().filter(is_meant).cloned().collect();
        if let [only] = programs.as_slice()
            && let Some(file) = only.uses.as_ref().and_then(|uses| uses.file.clone())
            && open_regular(&file, u64::MAX).is_ok()
        {
            return Self::of_file(&file, Some(only.kind));
        }
        let left = leftover::look(&[], base().as_deref());
        if programs.is_empty() && left.is_empty() {
            return Err(Failure::Usage(nothing_found()));
        }
        Ok(Self::Unnamed(programs, left))
    }

    fn of_file(file: &Path, kind: Option<Kind>) -> Result<Self, Failure> {
        let shown = file.display();
        if !file.exists() {
            return Err(Failure::Usage(format!("{shown}: there is no such file")));
        }
        let kind = match kind {
            Some(kind) => kind,
            None => match guess_kind(file) {
                Ok(Some(kind)) => kind,
                Ok(None) => {
                    return Err(Failure::Usage(format!(
                        "{shown}: its keys do not tell whether it is for a server or a client: say --kind"
                    )));
                }
                // What is wrong with it is found again, and told as all else is.
                Err(_) => Kind::Client,
            },
        };
        let named = Some(file.to_owned());
        Ok(match kind {
            Kind::Client => Self::Client(named, load(Some(file), ClientConfig::load)),
            Kind::Server => Self::Server(named, load(Some(file), ServerConfig::load)),
        })
    }

    /// Which program it is about, if it is about one.
    pub(super) fn kind(&self) -> Option<Kind> {
        match self {
            Self::Client(..) => Some(Kind::Client),
            Self::Server(..) => Some(Kind::Server),
            Self::Unnamed(..) => None,
        }
    }
}

/// Where this user's programs have their state folders.
pub(super) fn base() -> Option<PathBuf> {
    state_base(&|name: &str| env::var(name).ok())
}

fn nothing_found() -> String {
    let others = if geteuid().is_root() {
        ""
    } else {
        ", or look as root (sudo) for programs of other users"
    };
    format!(
        "there is nothing to look at: no Adit of this user runs, and there is no configuration: name one by -c FILE, of a \
         client or of a server{others}"
    )
}

fn load<T>(
    file: Option<&Path>,
    load: fn(Inputs<'_>) -> Result<Loaded<T>, ConfigError>,
) -> Result<Loaded<T>, ConfigError> {
    load(Inputs {
        file,
        environment: &|name| env::var(name).ok(),
        flags: &[],
    })
}
