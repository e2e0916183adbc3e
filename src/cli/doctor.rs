//! `adit doctor`: looks at a client or a server, and says how it stands.

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args as ClapArgs;
use serde_json::{Map, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::args::Args;
use super::serve::{load_client, unknown_variables};
use super::{FAILED, Failure, join, logging, print, print_on, signals};
use crate::client::control as client_control;
use crate::client::dns::lists;
use crate::config::{ClientConfig, ConfigError, Inputs, Kind, Loaded, ServerConfig, guess_kind};
use crate::doctor::{Check, Finding, LIMIT, Summary, Verdict, client, server};
use crate::io::control::{CallError, Caller, Request, Wanted};
use crate::server::control as server_control;

/// The arguments of `adit doctor`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "It takes 30 s at most, and loads the way to the server for 3 s, by 8 MB each way at most, unless --no-load says not to.\nExit status: 0 where nothing has failed, 1 where something has, 2 for a wrong usage."
)]
pub(super) struct DoctorArgs {
    /// The configuration file of a client or a server. Without, what the environment says, or what `adit join` has written
    #[arg(short, long, value_name = "FILE", env = "ADIT_CONFIG")]
    config: Option<PathBuf>,
    /// Which program it is for, where its keys do not tell
    #[arg(long, value_name = "KIND", value_parser = super::args::parse_kind)]
    kind: Option<Kind>,
    /// Do not load the way to the server: nothing is said of bufferbloat then
    #[arg(long)]
    no_load: bool,
    /// Print one JSON document when all is done
    #[arg(long)]
    json: bool,
}

/// Looks, tells, and returns 0 where nothing has failed.
pub(super) fn run(args: &Args, options: &DoctorArgs) -> Result<ExitCode, Failure> {
    let level = args.log_level.as_deref().unwrap_or(QUIET);
    logging::start(level, args.log_format).map_err(Failure::Usage)?;
    let until = Instant::now() + LIMIT;
    let target = Target::find(options)?;
    let mut told = Told {
        json: options.json,
        findings: Vec::new(),
        failure: None,
    };
    let kind = target.kind();
    match target {
        Target::Client(file, loaded) => {
            if let Some(config) = told.configuration(file.as_deref(), loaded)
                && examine_client(&config, options, until, &mut told)?
            {
                return Ok(ExitCode::from(STOPPED));
            }
        }
        Target::Server(file, loaded) => {
            if let Some(config) = told.configuration(file.as_deref(), loaded) {
                examine_server(&config, &mut told);
            }
        }
    }
    told.end(kind)
}

/// What is looked at.
#[expect(clippy::large_enum_variant, reason = "there is one, for a moment")]
enum Target {
    Client(Option<PathBuf>, Result<Loaded<ClientConfig>, ConfigError>),
    Server(Option<PathBuf>, Result<Loaded<ServerConfig>, ConfigError>),
}

impl Target {
    /// Finds the configuration as the programs do; one that is wrong is found, too.
    fn find(options: &DoctorArgs) -> Result<Self, Failure> {
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
            Some(_) | None if missing => Err(Failure::Usage(
                "there is no configuration: name one by -c FILE, of a client or of a server"
                    .to_owned(),
            )),
            Some(_) | None => Ok(Self::Client(None, loaded)),
        }
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

    fn kind(&self) -> Kind {
        match self {
            Self::Client(..) => Kind::Client,
            Self::Server(..) => Kind::Server,
        }
    }
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

/// Looks at a client; returns whether it was stopped before the end.
fn examine_client(
    config: &ClientConfig,
    options: &DoctorArgs,
    until: Instant,
    told: &mut Told,
) -> Result<bool, Failure> {
    for warning in lists::check(&config.dns) {
        let next = "correct it, or fetch the list again";
        told.tell(Finding::warning(Check::Configuration, warning, next));
    }
    told.tell(key_finding(
        &config.secret_key.public().to_string(),
        "the server must know it (adit clients list at the server)",
    ));
    told.tell(running(&client_control::place(config), Kind::Client));
    let allowed = client::Allowed {
        load: !options.no_load,
        until,
        stop: CancellationToken::new(),
    };
    block_on(async {
        // A session that is cut off has to say goodbye first.
        signals::listen(allowed.stop.clone(), None).context("cannot listen for signals")?;
        client::examine(config, &allowed, &mut |finding| told.tell(finding)).await;
        Ok(allowed.stop.is_cancelled())
    })
    .map_err(Failure::Run)
}

fn examine_server(config: &ServerConfig, told: &mut Told) {
    for (at, key) in config.secret_keys.iter().enumerate() {
        let more = match at {
            0 => "clients name it as `server_key`",
            _ => "a former one, for clients that know no other yet",
        };
        told.tell(key_finding(&key.public().to_string(), more));
    }
    let place = server_control::place(config);
    let finding = running(&place, Kind::Server);
    let runs = finding.figures.get("running") == Some(&json!(true));
    told.tell(finding);
    let descriptors = runs.then(|| ask_descriptors(&place));
    server::examine(config, descriptors, &mut |finding| told.tell(finding));
}

/// Asks a server that runs how many descriptors it has; one that does not say has none.
fn ask_descriptors(place: &Wanted) -> server::Running {
    let asked = place.paths().iter().find_map(|path| {
        let mut caller = Caller::connect(path).ok()?;
        let request = Request::new("status", Map::new());
        caller.call(&request, None, PATIENCE).ok()
    });
    let number = |name: &str| asked.as_ref()?["process"][name].as_u64();
    server::Running {
        open: number("open_fds").unwrap_or(0),
        most: number("max_fds").unwrap_or(u64::MAX),
    }
}

fn key_finding(public: &str, more: &str) -> Finding {
    Finding::ok(Check::Key, format!("{public}; {more}")).figure("public_key", public)
}

/// Says whether a program of this configuration runs.
fn running(place: &Wanted, kind: Kind) -> Finding {
    let mut closed = None;
    for path in place.paths() {
        match Caller::connect(path) {
            Ok(mut caller) => {
                let asked = caller.call(&Request::new("health", Map::new()), None, PATIENCE);
                let state = match asked {
                    Ok(state) => state.as_str().unwrap_or_default().to_owned(),
                    Err(CallError::Refused(why)) => {
                        let words = format!("a {kind} of this configuration runs: {why}");
                        return Finding::warning(
                            Check::Running,
                            words,
                            "see below for the reason, or its log",
                        )
                        .figure("running", true);
                    }
                    Err(error) => error.to_string(),
                };
                let words = format!("a {kind} of this configuration runs: {state}");
                return Finding::ok(Check::Running, words).figure("running", true);
            }
            Err(error) if error.is_closed() => closed = Some(error),
            Err(_) => {}
        }
    }
    match closed {
        Some(error) => Finding::skipped(
            Check::Running,
            format!("not to be known as this user: {error}"),
        ),
        None => Finding::ok(
            Check::Running,
            format!("no {kind} of this configuration runs here"),
        )
        .figure("running", false),
    }
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let done = runtime.block_on(work);
    // A look-up that is still under way must not hold up the end.
    runtime.shutdown_background();
    done
}

/// What was found, told as it is found unless it is to be one document.
struct Told {
    json: bool,
    findings: Vec<Finding>,
    failure: Option<Failure>,
}

impl Told {
    fn tell(&mut self, finding: Finding) {
        if !self.json && self.failure.is_none() {
            self.failure = print_on(&finding.to_string()).err();
        }
        self.findings.push(finding);
    }

    /// Tells how the configuration is, and returns it where it can be used.
    fn configuration<T: std::fmt::Display>(
        &mut self,
        file: Option<&Path>,
        loaded: Result<Loaded<T>, ConfigError>,
    ) -> Option<T> {
        let about = file.map_or_else(
            || "environment".to_owned(),
            |file| file.display().to_string(),
        );
        match loaded {
            Ok(Loaded { config, warnings }) => {
                let summary = config.to_string();
                self.tell(Finding::ok(Check::Configuration, summary).about(&about));
                for warning in warnings.into_iter().chain(unknown_variables()) {
                    let next = "correct it; until then it is not used as written";
                    self.tell(Finding::warning(Check::Configuration, warning, next));
                }
                Some(config)
            }
            Err(error) => {
                for finding in wrong(&error) {
                    self.tell(finding);
                }
                None
            }
        }
    }

    fn end(self, kind: Kind) -> Result<ExitCode, Failure> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let summary = Summary::of(&self.findings);
        if self.json {
            let document = json!({
                "kind": kind.as_str(),
                "version": env!("CARGO_PKG_VERSION"),
                "verdict": summary.verdict(),
                "summary": summary,
                "findings": self.findings,
            });
            print(&document.to_string())?;
        } else {
            print(&summary.to_string())?;
        }
        Ok(match summary.verdict() {
            Verdict::Failed => ExitCode::from(FAILED),
            Verdict::Ok | Verdict::Warning | Verdict::Skipped => ExitCode::SUCCESS,
        })
    }
}

/// Tells what is wrong with a configuration, keys by themselves.
fn wrong(error: &ConfigError) -> Vec<Finding> {
    let of_key = |key: &str| key == "key_file" || key == "preshared_key_file";
    if error.problems().is_empty() {
        let next = "correct the file, and try again by adit check";
        return vec![Finding::failed(
            Check::Configuration,
            error.to_string(),
            next,
        )];
    }
    let finding = |problem: &crate::config::Problem| {
        if of_key(&problem.key) {
            let next = "correct that; only where there is no key yet, make one by adit keygen -o FILE, or join by an invitation";
            Finding::failed(Check::Key, problem.to_string(), next)
        } else {
            let next = "correct it, and try again by adit check";
            Finding::failed(Check::Configuration, problem.to_string(), next)
        }
    };
    error.problems().iter().map(finding).collect()
}

/// What is logged unless the command line says: the findings say it better.
const QUIET: &str = "off";

/// As a shell counts a process that was interrupted.
const STOPPED: u8 = 130;

/// How long a running program may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(3);
