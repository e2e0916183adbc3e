//! The server as a whole: from its start, in [`super::start`], to its end.
//!
//! # Theory of operation
//!
//! [`Server::start`] takes the state directory's lock, undoes what a crashed predecessor
//! left in the system, sets the egress up, binds every listener, and only then says that the
//! server is there; any failure on the way undoes what was done. [`Server::run`] serves until
//! told to stop, then closes every session, keeps the leases and undoes the egress.
//!
//! ```text
//!  listeners ──▶ accept::serve ──▶ SessionDriver ──▶ egress
//!  sockets ────▶ datagrams::serve ──────┘
//!                     │                 ▲
//!                     └── registry ─────┘ joins          TUN ──▶ TunEgress::drain ──▶ router
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use super::accept::MAX_STRANGERS;
use super::control::Orders;
use super::datagrams;
use super::egress::tun::TunEgress;
use super::egress::watch;
use super::listening::{Listening, Socket, accept_all};
use super::reload::Reloader;
use super::shared::Shared;
use super::status::Reporter;
use crate::config::{LaneAddr, ServerConfig};
use crate::io::admin::Admin;
use crate::io::clock;
use crate::io::control as io_control;
use crate::io::journal::network;
use crate::io::netlink::Netlink;
use crate::io::network::NetworkWatch;
use crate::io::state::StateDir;
use crate::io::tun::{TunSettings, Undo};
use crate::io::unix;
use crate::reload::Asker;
use crate::status::{Uses, whole};

/// The device of egress `tun`, and how it was set up.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) egress: Arc<TunEgress>,
    pub(super) settings: TunSettings,
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    pub(super) shared: Arc<Shared>,
    pub(super) sockets: Vec<Socket>,
    pub(super) tun: Option<Device>,
    pub(super) undo: Option<Undo>,
    pub(super) state: StateDir,
    pub(super) control: Option<unix::Listener>,
    pub(super) admin: Option<Admin>,
    pub(super) reload: Option<Asker>,
}

impl Server {
    /// Returns where the server listens, with the ports it was given.
    pub fn listening(&self) -> Vec<LaneAddr> {
        self.sockets.iter().map(Socket::address).collect()
    }

    /// Returns the pin of the certificate that TLS lanes present, if there are any.
    pub fn tls_pin(&self) -> Option<String> {
        self.shared.tls().map(|tls| tls.pin().to_string())
    }

    /// Passes orders to read the configuration again to `asker`.
    #[must_use]
    pub fn reloaded_by(self, asker: Asker) -> Self {
        Self {
            reload: Some(asker),
            ..self
        }
    }

    /// Returns what puts another configuration than `config`, which it was started with, into force.
    pub fn reloader(&self, config: ServerConfig) -> Reloader {
        Reloader::new(self.shared.clone(), self.state.clone(), config)
    }

    /// Returns where metrics and health are served.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(Admin::address)
    }

    /// Returns what the sessions share, for a look at the counters.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Serves until `stop`, then closes every session and undoes what was set up.
    ///
    /// # Errors
    ///
    /// When the TUN device is gone before, or what serves a socket has failed: what was set up has been undone all the
    /// same.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RunError> {
        let Self {
            shared,
            sockets,
            tun,
            undo,
            state,
            control,
            admin,
            reload,
        } = self;
        let tasks = TaskTracker::new();
        let mut listeners = JoinSet::new();
        let strangers = Arc::new(Semaphore::new(MAX_STRANGERS));
        let listening = Listening::of(&sockets, admin.is_some(), control.is_some());
        let uses = Uses {
            file: reload.as_ref().map(|asker| asker.file().to_owned()),
            state_dir: Some(whole(state.path())),
            tun: tun.as_ref().map(|device| device.settings.name.clone()),
            listens: sockets.iter().map(Socket::port).collect(),
            network: network(),
            kill_switch: false,
        };
        for socket in sockets {
            let (shared, strangers, all) = (shared.clone(), strangers.clone(), tasks.clone());
            match socket {
                Socket::Stream(at, listener) => {
                    listeners.spawn(accept_all(shared, at, listener, strangers, all));
                }
                Socket::Datagram(io) => {
                    listeners.spawn(datagrams::serve(shared, io, all));
                }
            }
        }
        let reporter = Arc::new(Reporter::new(shared.clone(), listening, uses));
        if let Some(admin) = admin {
            info!(address = %admin.address(), "metrics and health");
            tasks.spawn(admin.serve(reporter.clone(), shared.stop.clone()));
        }
        if let Some(listener) = control {
            debug!(socket = %listener.path().display(), "takes orders");
            let orders = Orders::new(shared.clone(), reporter.clone(), reload);
            tasks.spawn(io_control::serve(
                listener,
                Arc::new(orders),
                shared.control_stats.clone(),
                shared.stop.clone(),
            ));
        }
        let draining = drain(&shared, tun);
        let result = tokio::select! {
            () = stop.cancelled() => Ok(()),
            () = keep_leases(&shared, &state) => Ok(()),
            () = follow_own_addresses(&shared) => Ok(()),
            error = draining => Err(error),
            error = failure(&mut listeners) => Err(RunError::Listener(error)),
        };
        shared.stop.cancel();
        tasks.close();
        let ended = async {
            while listeners.join_next().await.is_some() {}
            tasks.wait().await;
        };
        if timeout(CLOSE_TIMEOUT, ended).await.is_err() {
            warn!(left = tasks.len(), "not everything ended in time");
        }
        write_leases(&shared, &state);
        if let Some(Err(error)) = undo.map(Undo::undo) {
            error!(%error, "not everything could be undone; the next start tries again");
        }
        debug!(
            accept = ?shared.accept_stats,
            datagrams = ?shared.datagram_stats,
            guests = ?shared.guest_stats,
            dns = ?shared.dns.stats(),
            no_route = shared.router.no_route(),
            still_queued = shared.router.queued_bytes(),
            tun = ?shared.egress.stats(),
            "counters"
        );
        info!("server stopped");
        result
    }
}

/// Why a server has stopped before it was told to.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// The TUN device can no longer be read.
    #[error("the TUN device cannot be read any more: {0}")]
    Tun(std::io::Error),
    /// Somebody has deleted the TUN device.
    #[error(
        "somebody has deleted the interface {interface}, and no client's packet would leave any more: start the server again, which makes it anew"
    )]
    Deleted {
        /// Its name.
        interface: String,
    },
    /// A socket is no longer served: a defect of the program.
    #[error("a socket is no longer served ({0}); this is a defect: please report it")]
    Listener(JoinError),
}

/// Drains the TUN device, where there is one, on a task of its own, and looks after its interface; ends only when that
/// fails.
async fn drain(shared: &Arc<Shared>, tun: Option<Device>) -> RunError {
    let Some(Device { egress, settings }) = tun else {
        return std::future::pending().await;
    };
    let (router, pool) = (shared.router.clone(), shared.pool.clone());
    let task = tokio::spawn(async move { egress.drain(&router, &pool).await });
    let _ended_with_us = AbortOnDrop(task.abort_handle());
    tokio::select! {
        ended = task => {
            let error = ended.unwrap_or_else(std::io::Error::other);
            watch::reason(&settings, error).await
        }
        error = watch::keep(&settings) => error,
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Keeps the policy true to the host's addresses, for as long as it is polled.
async fn follow_own_addresses(shared: &Shared) {
    let mut network = NetworkWatch::new();
    loop {
        // First, too: something may have changed since the server's start.
        look_at_own_addresses(shared).await;
        network.changed().await;
    }
}

pub(super) async fn look_at_own_addresses(shared: &Shared) {
    let own = match Netlink::open() {
        Ok(netlink) => netlink.host_addresses().await,
        Err(error) => Err(error),
    };
    match own {
        Ok(own) => shared.set_own_addresses(&own),
        // A sandbox without netlink. What is not public stays forbidden all the same.
        Err(error) => {
            warn!(%error, "this host's own addresses are not known, and not forbidden to clients")
        }
    }
}

/// Waits for a task that has panicked; those that end are no failure.
async fn failure(tasks: &mut JoinSet<()>) -> JoinError {
    loop {
        match tasks.join_next().await {
            Some(Err(error)) => return error,
            Some(Ok(())) => {}
            None => std::future::pending().await,
        }
    }
}

/// Writes the leases to disk soon after they have changed, for as long as it is polled.
async fn keep_leases(shared: &Shared, state: &StateDir) {
    loop {
        write_leases(shared, state);
        shared.registry.changed().await;
        sleep(LEASES_INTERVAL).await;
    }
}

fn write_leases(shared: &Shared, state: &StateDir) {
    if let Some(bytes) = shared.registry.changed_leases(clock::unix())
        && let Err(error) = state.write(LEASES_FILE, &bytes)
    {
        warn!(%error, "the leases could not be kept; a restart may give other addresses");
    }
}

/// The file in the state directory that the leases are kept in.
const LEASES_FILE: &str = "leases.json";

/// How often changed leases are written: a crash loses at most this, and those clients get
/// another address once.
const LEASES_INTERVAL: Duration = Duration::from_secs(1);

/// How long sessions may take to say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(1500);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn task_that_panics_is_noticed_and_one_that_ends_is_no_failure() {
        let mut tasks = JoinSet::new();
        tasks.spawn(async {});
        let ended = timeout(Duration::from_millis(50), failure(&mut tasks)).await;
        assert!(ended.is_err());
        tasks.spawn(async { panic!("a defect") });
        assert!(failure(&mut tasks).await.is_panic());
    }
}
