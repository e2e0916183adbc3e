//! `adit status`: how a running program is.

use std::time::Duration;

use clap::Args;
use serde_json::Map;

use super::running::Which;
use super::{Failure, print};
use crate::io::control::Request;

/// The arguments of `adit status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    which: Which,
}

/// Runs `adit status`.
pub(super) fn run(args: &StatusArgs) -> Result<(), Failure> {
    let mut caller = args.which.find_any()?;
    let answer = caller.call(&Request::new("status", Map::new()), None, PATIENCE);
    let answer = answer.map_err(|error| Failure::Run(error.into()))?;
    print(&format!("{answer:#}"))
}

/// How long a program may take to answer: it asks its sessions, which do not wait.
const PATIENCE: Duration = Duration::from_secs(15);
