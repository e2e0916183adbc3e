//! `adit doctor`: looks at a client or a server, and says how it stands.

mod target;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args as ClapArgs;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::target::{Target, base};
use super::args::Args;
use super::serve::unknown_variables;
use super::{FAILED, Failure, logging, print, print_on, signals};
use crate::client::control as client_control;
use crate::client::dns::lists;
use crate::config::{ClientConfig, ConfigError, Kind, Loaded, ServerConfig};
use crate::doctor::leftover::{self, Left};
use crate::doctor::program::{Program, ask};
use crate::doctor::running::{Running, Wants};
use crate::doctor::{Check, Finding, LIMIT, Summary, Verdict, client, server};
use crate::io::host::{Traces, traces};
use crate::server::control as server_control;
use crate::status::whole;

/// The arguments of `adit doctor`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "It takes 30 s at most, and loads the way to the server for 3 s, by 8 MB each way at most, unless --no-load says not to.\nExit status: 0 where nothing has failed, 1 where something has, 2 for a wrong usage."
)]
pub(super) struct DoctorArgs {
    /// The configuration file of a client or a server. Without, what the environment says, or what `adit join` has written, or that of the only program of this user that runs
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
                && examine_client(&config, file.as_deref(), options, until, &mut told)?
            {
                return Ok(ExitCode::from(STOPPED));
            }
        }
        Target::Server(file, loaded) => {
            if let Some(config) = told.configuration(file.as_deref(), loaded) {
                examine_server(&config, file.as_deref(), &mut told);
            }
        }
        Target::Unnamed(programs, left) => examine_unnamed(&programs, &left, &mut told),
    }
    told.end(kind)
}

/// Looks at a client; returns whether it was stopped before the end.
fn examine_client(
    config: &ClientConfig,
    file: Option<&Path>,
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
    let running = told.running(client::wants(config, file));
    let folder = config.tun.as_ref().map(|tunnel| tunnel.state_dir.clone());
    let traces = told.left(folder, &running);
    let allowed = client::Allowed {
        load: !options.no_load,
        until,
        stop: CancellationToken::new(),
    };
    block_on(async {
        // A session that is cut off has to say goodbye first.
        signals::listen(allowed.stop.clone(), None).context("cannot listen for signals")?;
        let mut tell = |finding| told.tell(finding);
        client::examine(config, (&running, traces), &allowed, &mut tell).await;
        Ok(allowed.stop.is_cancelled())
    })
    .map_err(Failure::Run)
}

fn examine_server(config: &ServerConfig, file: Option<&Path>, told: &mut Told) {
    for (at, key) in config.secret_keys.iter().enumerate() {
        let more = match at {
            0 => "clients name it as `server_key`",
            _ => "a former one, for clients that know no other yet",
        };
        told.tell(key_finding(&key.public().to_string(), more));
    }
    let running = told.running(server::wants(config, file));
    told.left(Some(config.state_dir.clone()), &running);
    server::examine(config, &running, &mut |finding| told.tell(finding));
}

/// Looks at what runs where nothing was named.
fn examine_unnamed(programs: &[Program], left: &[Left], told: &mut Told) {
    for program in programs {
        told.tell(program.finding());
        let file = program.uses.as_ref().and_then(|uses| uses.file.as_ref());
        let why = match file {
            _ if program.trial => {
                "a trial has keys for itself alone, and no file to look at".to_owned()
            }
            Some(file) => format!("to look at it: adit doctor -c {}", file.display()),
            None => "it was started without a file: write what its flags and variables say to one, and name that by -c FILE".to_owned(),
        };
        told.tell(Finding::skipped(Check::Configuration, why));
        if let ([only], None) = (programs, file)
            && only.kind == Kind::Server
        {
            server::examine_unwritten(only, &mut |finding| told.tell(finding));
        }
    }
    let traces = traces().unwrap_or_default();
    let leads = programs.iter().any(Program::leads);
    for finding in leftover::judge(left, traces, leads) {
        told.tell(finding);
    }
}

fn key_finding(public: &str, more: &str) -> Finding {
    Finding::ok(Check::Key, format!("{public}; {more}")).figure("public_key", public)
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

    /// Tells of the programs that run, as they matter to what a configuration wants.
    fn running(&mut self, wants: Wants) -> Running {
        let others = server_control::sockets().into_iter();
        let others = others.chain(client_control::sockets());
        let mut sockets: Vec<PathBuf> = wants.sockets.clone();
        sockets.extend(others.chain(client_control::trials()));
        sockets.sort();
        sockets.dedup();
        let known = wants.sockets.clone();
        let (programs, closed) = ask(sockets);
        let running = Running::new(wants, programs);
        for finding in running.findings() {
            self.tell(finding);
        }
        let hidden = closed
            .iter()
            .find(|error| known.iter().any(|at| error.is_about(at)));
        if let (None, Some(error)) = (running.own(), hidden) {
            let why = format!("one of another user may run, which this user may not ask: {error}");
            self.tell(Finding::skipped(Check::Running, why));
        }
        running
    }

    /// Tells what programs that were killed have left, and returns what is to be seen of a tunnel of this host.
    fn left(&mut self, folder: Option<PathBuf>, running: &Running) -> Traces {
        let traces = traces().unwrap_or_default();
        let folders: Vec<PathBuf> = folder.iter().map(|folder| whole(folder)).collect();
        let left = leftover::look(&folders, base().as_deref());
        for finding in leftover::judge(&left, traces, running.leads()) {
            self.tell(finding);
        }
        traces
    }

    fn end(self, kind: Option<Kind>) -> Result<ExitCode, Failure> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let summary = Summary::of(&self.findings);
        if self.json {
            let document = json!({
                "kind": kind.map(Kind::as_str),
                "version": env!("CARGO_PKG_VERSION"),
                "verdict": summary.verdict(),
                "summary": summary,
                "findings": self.findings,
            });
            print(&document.to_string())?;
        } else {
            print(&match kind {
                Some(_) => summary.to_string(),
                None => format!("that is all without a configuration; {summary}"),
            })?;
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
