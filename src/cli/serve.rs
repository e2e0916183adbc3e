//! `adit server`, `adit client`, `adit try` and `adit bench`: configuration, logging, runtime, then the program itself.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::args::{Args, Command, TryArgs};
use super::bench::Bench;
use super::reload::{Again, Reload};
use super::{Failure, dispatch, elsewhere, join, logging, prepare, signals};
use crate::config::{
    ClientConfig, ConfigError, FlagValue, Inputs, Kind, Loaded, ServerConfig, guess_kind,
    parse_proxy, unknown_variable,
};
use crate::io::ready::{self, Ready};

/// Runs one of the programs until it ends or is told to stop.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    // First of all, while a wrong number cannot name something that we opened.
    let ready = match args.ready_fd {
        Some(number) => Some(
            ready::inherited(number)
                .map_err(|error| Failure::Usage(format!("--ready-fd {number}: {error}")))?,
        ),
        None => None,
    };
    let ready = Ready::new(ready);
    let program = load(args)?;
    let configured = program.config.log_level();
    let level = args.log_level.as_deref().or(configured.as_deref());
    let level = level.unwrap_or(logging::DEFAULT_LEVEL);
    logging::start(level, args.log_format).map_err(Failure::Usage)?;
    for warning in program.warnings.iter().cloned().chain(unknown_variables()) {
        tracing::warn!("{warning}");
    }
    if let Program::Server(config, _) = &program.config
        && let Some(warning) = elsewhere::warning(config)
    {
        tracing::warn!("{warning}");
    }
    program.config.prepare()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(program.config.threads())
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .map_err(Failure::Run)?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        let (asked, reload) = program.config.again().map(Reload::new).unzip();
        let reload = reload.map(|reload| reload.logging(configured));
        signals::listen(stop.clone(), asked).context("cannot listen for signals")?;
        match program.config {
            Program::Server(config, _) => dispatch::run_server(*config, ready, stop, reload).await,
            Program::Client(config, _) => dispatch::run_client(*config, ready, stop, reload).await,
            Program::Try(options) => dispatch::run_try(options, ready, stop).await,
            Program::Bench(bench) => bench.run(ready, stop).await,
        }
    });
    // A task that blocks must not hold up the end.
    runtime.shutdown_background();
    result.map_err(Failure::Run)
}

/// Names environment variables that look like ours and mean nothing.
pub(super) fn unknown_variables() -> impl Iterator<Item = String> {
    env::vars_os().filter_map(|(name, _)| unknown_variable(name.to_str()?))
}

/// What is to be run.
enum Program {
    /// With what to read again, where there is a file.
    Server(Box<ServerConfig>, Option<Again>),
    /// The same.
    Client(Box<ClientConfig>, Option<Again>),
    Try(dispatch::TryOptions),
    Bench(Bench),
}

impl Program {
    /// Becomes whom it is to be, and makes the key; while there is one thread.
    fn prepare(&self) -> Result<(), Failure> {
        match self {
            Self::Server(config, _) => prepare::server(config),
            Self::Client(config, _) => prepare::client(config),
            Self::Try(_) | Self::Bench(_) => Ok(()),
        }
    }

    /// What can be read again while it runs.
    fn again(&self) -> Option<Again> {
        match self {
            Self::Server(_, again) | Self::Client(_, again) => again.clone(),
            Self::Try(_) | Self::Bench(_) => None,
        }
    }

    /// What it logs, as its configuration says.
    fn log_level(&self) -> Option<String> {
        match self {
            Self::Server(config, _) => config.log_level.clone(),
            Self::Client(config, _) => config.log_level.clone(),
            Self::Try(_) | Self::Bench(_) => None,
        }
    }

    /// How many threads run it.
    ///
    /// A client's session is one task, and whoever hands it work shares its caches on the same thread: a second thread only
    /// costs wake-ups. A server's sessions spread over half of the processors, since the kernel needs as much again for
    /// their packets; what reads the TUN device or the datagrams of all, and the sessions they are for, are faster
    /// side by side on one thread than on two.
    fn threads(&self) -> usize {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        match self {
            Self::Server(config, _) => config.threads.unwrap_or(processors.div_ceil(2)),
            Self::Client(config, _) => config.threads.unwrap_or(1),
            // Both ends, or thousands of clients.
            Self::Try(_) | Self::Bench(_) => processors,
        }
    }
}

fn load(args: &Args) -> Result<Loaded<Program>, Failure> {
    match &args.command {
        Command::Server(server) => {
            let flags = server.settings();
            let loaded = load_by(
                server.config.as_deref(),
                &flags,
                Kind::Server,
                ServerConfig::load,
            )?;
            let again = server.config.clone().map(|file| Again {
                file,
                flags,
                log_level: args.log_level.clone(),
            });
            Ok(Loaded {
                config: Program::Server(Box::new(loaded.config), again),
                warnings: loaded.warnings,
            })
        }
        Command::Client(client) => {
            let flags = client.settings();
            let (loaded, file) = load_client(client.config.as_deref(), &flags)?;
            let again = file.map(|file| Again {
                file,
                flags,
                log_level: args.log_level.clone(),
            });
            Ok(Loaded {
                config: Program::Client(Box::new(loaded.config), again),
                warnings: loaded.warnings,
            })
        }
        Command::Join(options) => {
            let file = join::run(options)?;
            let loaded = load_by(Some(&file), &[], Kind::Client, ClientConfig::load)?;
            let again = Again {
                file,
                flags: Vec::new(),
                log_level: args.log_level.clone(),
            };
            Ok(Loaded {
                config: Program::Client(Box::new(loaded.config), Some(again)),
                warnings: loaded.warnings,
            })
        }
        Command::Try(options) => Ok(Loaded {
            config: Program::Try(try_options(options)?),
            warnings: Vec::new(),
        }),
        Command::Bench(options) => {
            let loaded = options.load()?;
            Ok(Loaded {
                config: Program::Bench(loaded.config),
                warnings: loaded.warnings,
            })
        }
        Command::Run(_)
        | Command::Keygen(_)
        | Command::Pubkey(_)
        | Command::Check(_)
        | Command::Cleanup(_)
        | Command::Dns(_)
        | Command::Doctor(_)
        | Command::Forward(_)
        | Command::Invite(_)
        | Command::Clients(_)
        | Command::Status(_)
        | Command::Health(_)
        | Command::Reload(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Nc(_) => Err(Failure::Usage("this command runs no program".to_owned())),
    }
}

/// Loads a configuration; where nothing at all was given, says how to begin rather than what is missing.
pub(super) fn load_by<T>(
    file: Option<&Path>,
    flags: &[FlagValue],
    kind: Kind,
    load: fn(Inputs<'_>) -> Result<Loaded<T>, ConfigError>,
) -> Result<Loaded<T>, Failure> {
    let environment = |name: &str| env::var(name).ok();
    let nothing_given = file.is_none() && flags.is_empty();
    match load(Inputs {
        file,
        environment: &environment,
        flags,
    }) {
        Err(error) if nothing_given && error.is_all_missing() => {
            Err(Failure::Usage(no_configuration(kind)))
        }
        // Of a client's file, each key would be unknown to a server: a page that hides the one mistake.
        Err(ConfigError::Invalid(problems)) => match file.and_then(|file| other_kind(file, kind)) {
            Some(swapped) => Err(Failure::Usage(swapped)),
            None => Err(ConfigError::Invalid(problems).into()),
        },
        result => Ok(result?),
    }
}

/// How to begin.
fn no_configuration(kind: Kind) -> String {
    match kind {
        Kind::Server => "no configuration: run `adit server -c server.yaml`, or see `adit server --help`; clients need not be listed in it, `adit invite NAME` makes links for them".to_owned(),
        Kind::Client => {
            let usual = join::usual_file();
            let there = usual.map_or_else(String::new, |usual| format!(" in {}", usual.display()));
            format!(
                "no configuration: `adit join LINK` makes one{there}, of a link that `adit invite NAME` prints at the server; or name one by -c FILE, see `adit client --help`"
            )
        }
    }
}

/// Loads a client's configuration; where none is named and nothing says enough, that which `adit join` has written. The
/// file is returned, too.
pub(super) fn load_client(
    file: Option<&Path>,
    flags: &[FlagValue],
) -> Result<(Loaded<ClientConfig>, Option<PathBuf>), Failure> {
    let load = |file: Option<&Path>| load_by(file, flags, Kind::Client, ClientConfig::load);
    let failure = match load(file) {
        Ok(loaded) => return Ok((loaded, file.map(Path::to_owned))),
        Err(failure) => failure,
    };
    let nothing_said = match &failure {
        Failure::Usage(_) => flags.is_empty(),
        Failure::Config(error) => error.is_all_missing(),
        Failure::KeyFile(_) | Failure::Run(_) => false,
    };
    match join::usual_file().filter(|usual| usual.exists()) {
        Some(usual) if file.is_none() && nothing_said => Ok((load(Some(&usual))?, Some(usual))),
        Some(_) | None => Err(failure),
    }
}

/// Says so where a file is not for the program that was started, but for the other.
fn other_kind(file: &Path, kind: Kind) -> Option<String> {
    let found = guess_kind(file).ok().flatten()?;
    let file = file.display();
    (found != kind).then(|| format!("{file}: this is a {found}'s file: adit {found} -c {file}"))
}

fn try_options(args: &TryArgs) -> Result<dispatch::TryOptions, Failure> {
    let proxy =
        parse_proxy(&args.proxy).map_err(|error| Failure::Usage(format!("--proxy: {error}")))?;
    if !proxy.ip().is_loopback() {
        return Err(Failure::Usage(format!(
            "--proxy: `{proxy}` can be reached from other hosts, and a trial has no password: listen on 127.0.0.1"
        )));
    }
    Ok(dispatch::TryOptions { proxy })
}
