//! Where the command line hands over to the programs.

use std::net::SocketAddr;

use tokio_util::sync::CancellationToken;

use crate::config::{ClientConfig, ServerConfig};
use crate::io::ready::Ready;

/// What `adit try` is told.
#[derive(Clone, Debug)]
pub struct TryOptions {
    /// Where the proxy listens: on loopback.
    pub proxy: SocketAddr,
}

/// Runs a server until `stop` is cancelled and its sessions are closed.
///
/// # Errors
/// It cannot start, or cannot go on.
pub async fn run_server(
    config: ServerConfig,
    ready: Ready,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    drop((config, ready, stop));
    anyhow::bail!("this build has no server")
}

/// Runs a client until `stop` is cancelled and its session is closed.
///
/// # Errors
/// It cannot start, or cannot go on.
pub async fn run_client(
    config: ClientConfig,
    ready: Ready,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    drop((config, ready, stop));
    anyhow::bail!("this build has no client")
}

/// Runs a server and a client of it in this process, until `stop` is cancelled.
///
/// # Errors
/// One of them cannot start, or cannot go on.
pub async fn run_try(
    options: TryOptions,
    ready: Ready,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    drop((options, ready, stop));
    anyhow::bail!("this build has neither server nor client")
}
