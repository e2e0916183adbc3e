//! `adit run`: one command in a network namespace of its own, whose only way out is a session.
//!
//! Here is the order of things; what they are is told by [`crate::io::namespace`]. Whatever can be wrong with the
//! configuration is told before anything is made; nothing is connected to before the namespace stands; the command is not
//! started before its tunnel is up, unless that was asked for.
//!
//! This process must have one thread until the exec, so there is no runtime here, and no log but this process's own.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use tokio_util::sync::CancellationToken;

use super::args::{Args, LogFormat, RunArgs};
use super::running::{Found, Which};
use super::serve::{load_client, unknown_variables};
use super::{Failure, chain, fail, logging, signals};
use crate::client::enclosed::{self, INTERFACE};
use crate::client::shared;
use crate::config::{ClientConfig, Loaded, parse_duration};
use crate::io::control::Caller;
use crate::io::namespace::{
    Apart, EnterError, Entered, Handed, Inner, Other, Outer, Verdict, apart, drop_privilege, enter,
    exec, pair, view,
};
use crate::io::netlink::Netlink;
use crate::io::ready::{self, Ready};
use crate::io::tun::{DEVICE, OpenError, calm_interface, create};

/// Becomes the command, or says why not; of the tunnel process it returns when that is over.
pub(super) fn run(args: &Args, command: &RunArgs) -> ExitCode {
    match start(args, command) {
        Ok(End::Tunnel) => ExitCode::SUCCESS,
        Ok(End::NotExecuted(error)) => not_executed(&command.command, &error),
        Err(failure) => fail(&failure.message(), FAILED),
    }
}

/// How it ends in a process that is not the command.
enum End {
    /// This was the tunnel process.
    Tunnel,
    /// The command could not be executed.
    NotExecuted(io::Error),
}

/// What there is to do, read and checked.
struct Plan {
    way: Way,
    warnings: Vec<String>,
    /// How long to wait for the tunnel, if at all.
    patience: Option<Duration>,
    level: String,
    format: LogFormat,
}

/// Whose session carries the packets.
enum Way {
    /// One of the command's own.
    Own(Box<ClientConfig>),
    /// That of a client that runs.
    Shared(Caller),
}

fn start(args: &Args, command: &RunArgs) -> Result<End, Failure> {
    let ready = match args.ready_fd {
        Some(number) => Some(
            ready::inherited(number)
                .map_err(|error| Failure::Usage(format!("--ready-fd {number}: {error}")))?,
        ),
        None => None,
    };
    let plan = plan(args, command)?;
    let (inner, outer) = pair()
        .context("cannot make a socket")
        .map_err(Failure::Run)?;
    let mut kept = vec![inner.as_fd(), outer.as_fd()];
    if let Way::Shared(caller) = &plan.way {
        kept.push(caller.as_fd());
    }
    kept.extend(ready.as_ref().map(std::os::fd::AsFd::as_fd));
    match apart(&kept).context("cannot begin").map_err(Failure::Run)? {
        Apart::New(other) => {
            drop((inner, ready));
            tunnel(plan, &outer, other);
            Ok(End::Tunnel)
        }
        Apart::Original => {
            drop(outer);
            logging::start(&plan.level, plan.format).map_err(Failure::Usage)?;
            for warning in plan.warnings.iter().cloned().chain(unknown_variables()) {
                tracing::warn!("{warning}");
            }
            let mut ready = Ready::new(ready);
            let is_shared = matches!(plan.way, Way::Shared(_));
            prepare(&inner, plan.patience, is_shared).map_err(Failure::Run)?;
            ready.announce_on_descriptor("the tunnel of the command");
            // It returns only when it has failed.
            let Err(error) = exec(&command.command);
            Ok(End::NotExecuted(error))
        }
    }
}

fn plan(args: &Args, command: &RunArgs) -> Result<Plan, Failure> {
    let level = args
        .log_level
        .as_deref()
        .unwrap_or(DEFAULT_LEVEL)
        .to_owned();
    logging::check(&level).map_err(Failure::Usage)?;
    let patience = if command.no_wait {
        None
    } else {
        let patience = parse_duration(&command.wait, LEAST_PATIENCE, MOST_PATIENCE)
            .map_err(|error| Failure::Usage(format!("--wait: {error}")))?;
        Some(patience)
    };
    let (way, warnings) = if command.share {
        (Way::Shared(client_to_join(command)?), Vec::new())
    } else {
        let file: Option<&Path> = command.config.as_deref();
        let loaded = load_client(file, &[]);
        let Loaded { config, warnings } = loaded.map_err(or_share)?.0;
        (Way::Own(Box::new(config)), warnings)
    };
    Ok(Plan {
        way,
        warnings,
        patience,
        level,
        format: args.log_format,
    })
}

/// Where there is no configuration, and a client or a trial runs all the same, names the way to have its session.
fn or_share(failure: Failure) -> Failure {
    let anyone = Which {
        config: None,
        control: env::var_os("ADIT_CONTROL").map(PathBuf::from),
    };
    if let Failure::Usage(why) = &failure
        && matches!(anyone.find(), Ok(Found::Running(_)))
    {
        let words = "a client runs: `adit run --share -- COMMAND` uses its session";
        return Failure::Usage(format!("{words}; else {why}"));
    }
    failure
}

/// Finds the client that runs.
fn client_to_join(command: &RunArgs) -> Result<Caller, Failure> {
    let which = Which {
        config: command.config.clone(),
        control: (command.control.clone())
            .or_else(|| env::var_os("ADIT_CONTROL").map(PathBuf::from)),
    };
    match which.find()? {
        Found::Running(caller) => Ok(caller),
        Found::Idle(_, why) => Err(Failure::Run(anyhow!(
            "{why}; without --share, adit run opens a session of its own"
        ))),
    }
}

/// The tunnel process: waits for its descriptors, then carries packets until the command has ended. What goes wrong before the
/// command has begun is told to the process that becomes it.
fn tunnel(plan: Plan, outer: &Outer, other: Other) {
    // For those who look at a list of processes; a longer name would be cut off.
    let _ = rustix::thread::set_name(c"adit-tunnel");
    if let Err(error) = carry(plan, outer, other) {
        outer.say_failed(&chain(&error));
    }
}

fn carry(plan: Plan, outer: &Outer, other: Other) -> anyhow::Result<()> {
    logging::start_aside(&plan.level, plan.format).map_err(|error| anyhow!(error))?;
    // Nothing came: the other process has told why.
    let Some(handed) = outer.take().context("cannot take the TUN device")? else {
        return Ok(());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        signals::listen(stop.clone(), None).context("cannot listen for signals")?;
        let is_awaited = plan.patience.is_some();
        match plan.way {
            Way::Own(config) => {
                enclosed::serve(&config, handed, outer, other, is_awaited, stop).await?;
            }
            Way::Shared(caller) => {
                shared::serve(caller, handed, outer, other, is_awaited, stop).await?;
            }
        }
        anyhow::Ok(())
    });
    // A task that blocks (a name being resolved by the system) must not hold up the end.
    runtime.shutdown_background();
    result
}

/// The other process: makes the namespaces and all in them, and waits for the tunnel.
fn prepare(inner: &Inner, patience: Option<Duration>, is_shared: bool) -> anyhow::Result<()> {
    let Entered { own_users } = enter()?;
    let tun = create(Path::new(DEVICE), INTERFACE).map_err(device_error)?;
    calm_interface(INTERFACE, true);
    let handed = Handed {
        tun,
        netlink: Netlink::socket()?,
        resolv_conf: view()?,
    };
    let given = inner.give(handed);
    let verdict = match (given, patience) {
        (Err(_), _) => Verdict::Gone,
        (Ok(()), Some(patience)) => inner.wait(patience).context("cannot wait for the tunnel")?,
        (Ok(()), None) => Verdict::Up,
    };
    match verdict {
        Verdict::Up => {}
        Verdict::Failed(reason) => bail!(reason),
        Verdict::Silent => {
            let why = if is_shared {
                "the client that runs does not reach its server, and its log says why"
            } else {
                "no server has answered, and --log-level info tells of each attempt (where `adit client --tun` leads this host, use --share)"
            };
            bail!(
                "the tunnel is not up after {} s: {why}; --wait gives it longer, --no-wait starts the command all the same",
                patience.unwrap_or_default().as_secs_f32()
            )
        }
        Verdict::Gone => {
            bail!("the process of the tunnel has ended without a word: was it killed?")
        }
    }
    if own_users {
        drop_privilege().context("cannot give up privilege")?;
    }
    Ok(())
}

/// What is wrong with the device for somebody who has a user namespace.
fn device_error(error: OpenError) -> anyhow::Error {
    match error {
        OpenError::NoDevice { path, source } => anyhow!(
            "there is no TUN device at {} ({source}): load its driver, as root: modprobe tun; start a container with --device /dev/net/tun; adit client, with its proxy, works without",
            path.display()
        ),
        OpenError::DeviceRefused { path, source } => anyhow!(
            "cannot open {} ({source}): let this user, as most distributions do, as root: chmod 0666 {}; adit client, with its proxy, works without",
            path.display(),
            path.display()
        ),
        // The namespace is ours, and yet it gives no right to it: what AppArmor makes of user namespaces.
        OpenError::Privilege { .. } => {
            let refusal = io::Error::from_raw_os_error(libc::EPERM);
            EnterError::of("make a TUN device", refusal).into()
        }
        error @ (OpenError::Name { .. }
        | OpenError::Device { .. }
        | OpenError::NameTaken { .. }
        | OpenError::Attach { .. }
        | OpenError::Offload { .. }
        | OpenError::Register(_)) => error.into(),
    }
}

fn not_executed(command: &[OsString], error: &io::Error) -> ExitCode {
    let name = command.first().map(OsString::as_os_str).unwrap_or_default();
    let shown = name.display();
    // A folder of the path that may not be searched is a refusal, too, though nothing was found in another.
    let refused = error.kind() == io::ErrorKind::PermissionDenied;
    if error.kind() == io::ErrorKind::NotFound || refused && !is_in_path(name) {
        fail(&format!("{shown}: there is no such command"), NOT_FOUND)
    } else {
        fail(&format!("cannot run {shown}: {error}"), NOT_EXECUTABLE)
    }
}

/// Whether there is a file of this name where commands are looked for.
fn is_in_path(name: &OsStr) -> bool {
    if name.as_bytes().contains(&b'/') {
        return true;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(name).exists())
}

/// What is logged unless something else was asked for: the terminal is the command's.
const DEFAULT_LEVEL: &str = "warn";
const LEAST_PATIENCE: Duration = Duration::from_secs(1);
/// Whoever waits for longer wants the command to be started without waiting.
const MOST_PATIENCE: Duration = Duration::from_secs(86_400);
/// As env(1), nohup(1) and timeout(1) have it.
pub(super) const FAILED: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
