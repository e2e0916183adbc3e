//! `adit health` and `adit reload`: orders to a running program whose answer is short.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::Map;

use super::running::Which;
use super::{Failure, print};
use crate::io::control::Request;
use crate::reload::Applied;

/// The arguments of `adit health`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 for a server that listens, or a client whose session has a lane; else 1."
)]
pub(super) struct HealthArgs {
    #[command(flatten)]
    which: Which,
    /// Ask at the admin address of the program instead of its control socket
    #[arg(long, value_name = "ADDRESS:PORT", env = "ADIT_ADMIN")]
    admin: Option<String>,
}

/// The arguments of `adit reload`.
#[derive(Debug, Args)]
pub(super) struct ReloadArgs {
    #[command(flatten)]
    which: Which,
}

/// Runs `adit health`.
pub(super) fn health(args: &HealthArgs) -> Result<(), Failure> {
    // As the key of the configuration, whose variable it is: `off` is none.
    let address = args.admin.as_deref().filter(|text| *text != "off");
    let state = match address {
        Some(text) => {
            let address = text.replace("localhost:", "127.0.0.1:").parse();
            let address = address.map_err(|_| {
                let right = "write an address and a port such as 127.0.0.1:9090";
                Failure::Usage(format!("--admin: `{text}` is not an address: {right}"))
            })?;
            ask_admin(address).map_err(Failure::Run)?
        }
        None => {
            let mut caller = args.which.find_any()?;
            let answer = caller.call(&Request::new("health", Map::new()), None, HEALTH);
            let answer = answer.map_err(|error| Failure::Run(error.into()))?;
            answer.as_str().unwrap_or_default().to_owned()
        }
    };
    print(&state)
}

/// Runs `adit reload`.
pub(super) fn reload(args: &ReloadArgs) -> Result<(), Failure> {
    let found = args.which.find_any();
    let mut caller = found.map_err(|failure| match failure {
        // The file by which the program is to be found is the one that it would read: the mistake is told, and changes
        // nothing.
        Failure::Config(error) => Failure::Run(error.into()),
        Failure::Usage(_) | Failure::KeyFile(_) | Failure::Run(_) => failure,
    })?;
    let answer = caller.call(&Request::new("reload", Map::new()), None, RELOAD);
    let answer = answer.map_err(|error| Failure::Run(error.into()))?;
    let done: Applied = serde_json::from_value(answer)
        .context("the answer makes no sense: is it another version of adit?")
        .map_err(Failure::Run)?;
    for warning in &done.warnings {
        print(&format!("warning: {warning}"))?;
    }
    for what in &done.applied {
        print(&format!("in force: {what}"))?;
    }
    for key in &done.restart {
        print(&format!("waits for a restart: {key}"))?;
    }
    if done.applied.is_empty() && done.restart.is_empty() {
        print("nothing has changed")?;
    }
    Ok(())
}

/// Asks the admin address whether the program does its work.
fn ask_admin(address: SocketAddr) -> anyhow::Result<String> {
    let no_answer = || format!("no answer from {address}");
    let mut stream = TcpStream::connect_timeout(&address, HEALTH).with_context(no_answer)?;
    stream.set_read_timeout(Some(HEALTH))?;
    stream.set_write_timeout(Some(HEALTH))?;
    // HTTP/1.0: the answer ends with the connection.
    write!(stream, "GET /readyz HTTP/1.0\r\n\r\n").with_context(no_answer)?;
    let mut bytes = Vec::new();
    (stream.take(LONGEST).read_to_end(&mut bytes)).with_context(no_answer)?;
    let answer = String::from_utf8_lossy(&bytes);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("what answers at {address} is not an admin address");
    };
    let status = head.split_whitespace().nth(1);
    match status {
        Some("200") => Ok(body.trim().to_owned()),
        Some("503") => bail!("{}", body.trim()),
        Some(_) | None => bail!("what answers at {address} is not an admin address"),
    }
}

/// How long a program may take to say how it is: less than health checks wait.
const HEALTH: Duration = Duration::from_secs(3);

/// How long a configuration may take to be read: it may name lists of half a million names.
const RELOAD: Duration = Duration::from_secs(60);

/// Longer than any answer about health.
const LONGEST: u64 = 16 << 10;
