//! The command line: arguments in, an exit status out.
//!
//! ```text
//! args ─▶ command ─▶ keys (keygen, pubkey)
//!                 ├▶ check, cleanup
//!                 ├▶ run ─▶ config ─▶ namespaces ─▶ another program
//!                 ├▶ dns, doctor
//!                 ├▶ manual (completions, man)
//!                 ├▶ forward, nc, status, health, reload ─▶ running (the control socket of a client or server that runs)
//!                 ├▶ invite, clients ─▶ running (that of a server)
//!                 ├▶ join ─▶ keys, config, and on as a client
//!                 └▶ serve ─▶ config ─▶ logging ─▶ runtime ─▶ dispatch (server, client, try), bench
//!                                                    └─ signals: first stops, second ends; others reload
//! ```
//!
//! Exit statuses: 0 done or stopped as asked, 1 failed, 2 wrong usage or configuration, 128 and the signal's number
//! when a second signal ended the program at once. That of `run` is the command's, or 125 to 127 where it was not started: 125 for wrong usage, too. Errors are one line each on standard error, behind `adit: `.

mod args;
mod bench;
mod check;
mod cleanup;
mod clients;
pub mod dispatch;
mod dns;
mod doctor;
mod elsewhere;
mod forward;
mod invite;
mod join;
mod keys;
mod logging;
mod manual;
mod nc;
mod orders;
mod prepare;
mod reload;
mod run;
mod running;
mod serve;
mod signals;
mod status;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

pub use args::{Args, TryArgs};

use crate::config::{ConfigError, KeyFileError};
use args::{Command, LogFormat};

/// Runs the program and returns its exit status.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version come this way too, with status 0. A reader that is gone has seen enough.
            let _ = error.print();
            let status = u8::try_from(error.exit_code()).unwrap_or(USAGE);
            return ExitCode::from(if status == USAGE && is_run() {
                run::FAILED
            } else {
                status
            });
        }
    };
    let failure = match &args.command {
        // Its exit status is another program's.
        Command::Run(command) => return run::run(&args, command),
        Command::Doctor(command) => match doctor::run(&args, command) {
            Ok(verdict) => return verdict,
            Err(failure) => failure,
        },
        Command::Try(_)
        | Command::Server(_)
        | Command::Client(_)
        | Command::Bench(_)
        | Command::Keygen(_)
        | Command::Pubkey(_)
        | Command::Check(_)
        | Command::Cleanup(_)
        | Command::Dns(_)
        | Command::Forward(_)
        | Command::Status(_)
        | Command::Health(_)
        | Command::Reload(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Invite(_)
        | Command::Clients(_)
        | Command::Join(_)
        | Command::Nc(_) => match execute(&args) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(failure) => failure,
        },
    };
    let status = match failure {
        Failure::Run(_) | Failure::KeyFile(_) => FAILED,
        Failure::Config(_) | Failure::Usage(_) => USAGE,
    };
    let logs = matches!(args.command, Command::Server(_) | Command::Client(_));
    if logs && args.log_format == LogFormat::Json {
        // Whoever reads a log of JSON gets its last line as such, too.
        let line =
            serde_json::json!({"level": "ERROR", "message": failure.message(), "target": "adit"});
        let _ = writeln!(io::stderr().lock(), "{line}");
        return ExitCode::from(status);
    }
    fail(&failure.message(), status)
}

/// Whether `adit run` was meant, whatever is wrong with the arguments: its exit status is the command's, so that its own
/// mistakes have one apart.
fn is_run() -> bool {
    let lenient = Args::command().ignore_errors(true);
    let matches = lenient.try_get_matches();
    matches.is_ok_and(|matches| matches.subcommand_name() == Some("run"))
}

fn execute(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::Try(_) | Command::Server(_) | Command::Client(_) | Command::Bench(_) => {
            serve::run(args)
        }
        Command::Run(_) => Err(Failure::Usage("a command is run before this".to_owned())),
        Command::Keygen(command) => keys::keygen(command),
        Command::Pubkey(command) => keys::pubkey(command),
        Command::Check(command) => check::run(command),
        Command::Cleanup(command) => cleanup::run(command),
        Command::Dns(command) => dns::run(command),
        Command::Doctor(_) => Err(Failure::Usage("a doctor is asked before this".to_owned())),
        Command::Forward(command) => forward::run(command),
        Command::Status(command) => status::run(command),
        Command::Health(command) => orders::health(command),
        Command::Reload(command) => orders::reload(command),
        Command::Invite(command) => invite::run(command),
        Command::Clients(command) => clients::run(command),
        Command::Join(command) if command.no_start => join::run(command).map(drop),
        Command::Join(_) => serve::run(args),
        Command::Nc(command) => nc::run(args, command),
        Command::Completions(command) => manual::completions(command),
        Command::Man(command) => manual::pages(command),
    }
}

/// Why the program ends without success.
#[derive(Debug)]
enum Failure {
    Usage(String),
    Config(ConfigError),
    KeyFile(KeyFileError),
    Run(anyhow::Error),
}

impl Failure {
    /// What is said about it, on one line unless it is several things.
    fn message(&self) -> String {
        match self {
            Self::Run(error) => chain(error),
            Self::Config(error) => error.to_string(),
            Self::Usage(message) => message.clone(),
            Self::KeyFile(error) => error.to_string(),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<KeyFileError> for Failure {
    fn from(error: KeyFileError) -> Self {
        Self::KeyFile(error)
    }
}

/// An error and its causes on one line; one that the error before it has told already is left out.
fn chain(error: &anyhow::Error) -> String {
    let mut told = error.to_string();
    let mut last = told.clone();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !last.contains(&cause) {
            told = format!("{told}: {cause}");
        }
        last = cause;
    }
    told
}

/// Says on standard error what is wrong, each line of several behind the program's name.
fn fail(message: &str, status: u8) -> ExitCode {
    let mut err = io::stderr().lock();
    // Nothing is left to be done for whoever closed standard error.
    let _ = writeln!(err, "adit: {message}");
    ExitCode::from(status)
}

/// Prints a line of result. A reader that went away (`| head`) ends the program quietly.
fn print(line: &str) -> Result<(), Failure> {
    print_on(line).map(|_is_read| ())
}

/// The same for a program that goes on: tells whether anybody still reads.
fn print_on(line: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Run(
            anyhow::Error::new(error).context("cannot write to standard output"),
        )),
    }
}

/// The exit status of a failure.
const FAILED: u8 = 1;
/// The exit status of a wrong usage or configuration, as clap has it.
const USAGE: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot create the folder: {source}")]
    struct Told {
        source: io::Error,
    }

    #[test]
    fn cause_that_an_error_tells_is_told_once() {
        let error = anyhow::Error::new(Told {
            source: io::Error::other("permission denied"),
        });
        assert_eq!(chain(&error), "cannot create the folder: permission denied");
        let error = error.context("the server did not start");
        assert_eq!(
            chain(&error),
            "the server did not start: cannot create the folder: permission denied"
        );
    }
}
