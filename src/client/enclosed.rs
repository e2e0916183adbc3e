//! The session of one command that has a network namespace to itself: the tunnel process of `adit run`.
//!
//! # Theory of operation
//!
//! ```text
//!  waiting for the descriptors ──▶ connecting ── configured ──▶ up ──▶ closing
//!         │ the other process ended    │ refused, no interface          ▲
//!         ▼                            ▼                                │ the command has ended, or a signal
//!        over                   failed: said so ─────────────────────────┘
//! ```
//!
//! A [`Driver`] moves packets between the session and the TUN, and keeps the session connected, as in every client. Beside
//! it, [`serve`] does what the namespace needs: whenever the server gives addresses, MTU and name servers, they are
//! put on the interface by a routing socket of the namespace, and into the command's resolv.conf. The first time that
//! was done, the tunnel is up.
//!
//! All of it runs on one thread: there is one session, and packets would only be passed between processors.
//!
//! # Limits
//!
//! The session is closed in order within [`CLOSE_TIMEOUT`] of the command's end. A refusal by the server, such as too many
//! instances, ends a start that waits for the tunnel; one that comes later is tried again as by every client.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::device::Device;
use super::driver::Driver;
use super::run::connector;
use super::tunnel::tunnel;
use crate::config::ClientConfig;
use crate::io::namespace::{Handed, Other, Outer, release_stderr, resolv_conf};
use crate::io::netlink::{Netlink, NetlinkError};
use crate::io::network::NetworkWatch;
use crate::io::outside::Outside;
use crate::io::tls::ClientTlsError;
use crate::io::tun::{OpenError, Tun};
use crate::proto::budget::{HARD, Share};
use crate::wire::{CloseReason, InnerConfig};

/// Carries the packets of the namespace that `handed` belongs to until `command` has ended or `stop` is
/// cancelled; says on `outer` when the tunnel is up. Where that is not awaited, there is nothing to be given up before, either.
///
/// # Errors
/// [`EnclosedError`]; the log was told if nobody waits for the tunnel any more.
pub async fn serve(
    config: &ClientConfig,
    handed: Handed,
    outer: &Outer,
    command: Other,
    is_awaited: bool,
    stop: CancellationToken,
) -> Result<(), EnclosedError> {
    let command = command.watch().map_err(EnclosedError::Watch)?;
    let mut inner_end = InnerEnd::new(handed.netlink, handed.resolv_conf)?;
    // No flow of ours could be relayed: what comes from the device are packets.
    let connector = connector(config, false, Outside::default())?;
    let (closed, mut closings) = watch::channel(None);
    let tun = Tun::from_fd(handed.tun, INTERFACE)?;
    let device = Device::new(tun, connector.pool.clone(), closed);
    let (configured, inner) = watch::channel(None);
    let (handle, commands) = tunnel(inner);
    let mut configurations = handle.inner();
    // Nobody asks for names here.
    let (names, _) = mpsc::channel(1);
    let driver_stop = stop.child_token();
    let driver = Driver::new(
        Arc::new(connector),
        commands,
        configured,
        names,
        NetworkWatch::new(),
        Share::alone(config.memory / HARD),
        driver_stop.clone(),
    );
    let mut driver = tokio::spawn(driver.over(device).run());
    let mut is_begun = !is_awaited;
    let silence = sleep(SILENCE);
    tokio::pin!(silence);
    let mut is_silent = is_awaited;
    let result = loop {
        tokio::select! {
            biased;
            () = command.ended() => break Ok(()),
            () = stop.cancelled() => break Ok(()),
            _ = &mut driver => break Err(EnclosedError::Driver),
            () = &mut silence, if is_silent => {
                is_silent = false;
                if let Some(down) = handle.down().filter(|_| !is_begun) {
                    warn!("waiting for the tunnel: {}", down.state());
                }
            }
            Ok(()) = closings.changed() => {
                let reason = *closings.borrow_and_update();
                if let Some(reason) = reason.filter(|reason| !is_begun && is_final(*reason)) {
                    break Err(EnclosedError::Refused { reason });
                }
            }
            Ok(()) = configurations.changed() => {
                let config = configurations.borrow_and_update().clone();
                let Some(config) = config else { continue };
                match inner_end.follow(&config).await {
                    Ok(()) if is_begun => debug!("the namespace follows the session"),
                    Ok(()) => {
                        is_begun = true;
                        outer.say_up();
                    }
                    Err(error) if is_begun => warn!(%error, "the namespace does not follow the session"),
                    Err(error) => break Err(error),
                }
            }
        }
    };
    if let Err(error) = &result
        && is_begun
    {
        error!(%error, "the command has no network any more");
    }
    // Whoever reads what the command wrote must not wait for our goodbye.
    release_stderr();
    driver_stop.cancel();
    // The driver bounds its own goodbye; the time-out is for a runtime that stalls.
    if !driver.is_finished() && timeout(CLOSE_TIMEOUT, &mut driver).await.is_err() {
        debug!("the session was not closed in order");
    }
    result
}

/// The interface and the resolver's configuration of the namespace.
#[derive(Debug)]
pub(super) struct InnerEnd {
    netlink: Netlink,
    resolv_conf: File,
    /// What the file has.
    servers: Option<Vec<IpAddr>>,
}

impl InnerEnd {
    pub(super) fn new(netlink: OwnedFd, resolv_conf: OwnedFd) -> Result<Self, EnclosedError> {
        Ok(Self {
            netlink: Netlink::over(netlink)?,
            resolv_conf: resolv_conf.into(),
            servers: None,
        })
    }

    pub(super) async fn follow(&mut self, config: &InnerConfig) -> Result<(), EnclosedError> {
        self.netlink.follow(INTERFACE, config).await?;
        if self.servers.as_ref() != Some(&config.dns) {
            let text = resolv_conf(&config.dns);
            let written = self.resolv_conf.write_all_at(text.as_bytes(), 0);
            // What stood there before is never missing: without a server, the C library would ask this host's.
            written
                .and_then(|()| self.resolv_conf.set_len(text.len() as u64))
                .map_err(EnclosedError::ResolvConf)?;
            self.servers = Some(config.dns.clone());
        }
        Ok(())
    }
}

/// Whether trying again would help, of a command that waits to be started.
fn is_final(reason: CloseReason) -> bool {
    match reason {
        CloseReason::TooManyInstances | CloseReason::PoolExhausted | CloseReason::Revoked => true,
        CloseReason::ShuttingDown
        | CloseReason::Idle
        | CloseReason::Superseded
        | CloseReason::ProtocolError
        | CloseReason::Unknown(_) => false,
    }
}

/// Why a command has no tunnel.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EnclosedError {
    /// The settings of TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] ClientTlsError),
    /// The command's process cannot be watched.
    #[error("cannot watch the command's process: {0}")]
    Watch(io::Error),
    /// The device cannot be used.
    #[error(transparent)]
    Tun(#[from] OpenError),
    /// The interface cannot be configured.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The name servers cannot be written.
    #[error("cannot write the command's resolv.conf: {0}")]
    ResolvConf(io::Error),
    /// The server does not serve us.
    #[error("the server does not serve this session: {reason}{}", hint(*reason))]
    Refused {
        /// What it says.
        reason: CloseReason,
    },
    /// A fault.
    #[error("the tunnel's driver has failed")]
    Driver,
}

/// What to do about a refusal.
fn hint(reason: CloseReason) -> &'static str {
    match reason {
        CloseReason::TooManyInstances => {
            "; each `adit run` is one, as each client is: end one of them, or use a key of its own"
        }
        CloseReason::PoolExhausted => "; its `network:` has no free address",
        CloseReason::Revoked => {
            "; this client was revoked: whoever runs the server may say `adit clients restore` or invite it anew"
        }
        CloseReason::ShuttingDown
        | CloseReason::Idle
        | CloseReason::Superseded
        | CloseReason::ProtocolError
        | CloseReason::Unknown(_) => "",
    }
}

/// What the TUN is called in its namespace.
pub const INTERFACE: &str = "adit0";

/// How long it is waited for without a word: whoever waits for longer wonders.
const SILENCE: Duration = Duration::from_secs(1);

/// How long the goodbye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(1500);
