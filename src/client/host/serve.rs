//! Keeps the host as the session has it.

use std::future::pending;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::names::{Names, NamesError};
use super::plan::{Plan, guard};
use crate::client::device::Device;
use crate::client::driver::{Driver, Exit};
use crate::client::instance::Instance;
use crate::client::run::connector;
use crate::client::tunnel::{Tunnel, tunnel as tunnel_handles};
use crate::config::{ClientConfig, HostTunnel};
use crate::io::file_watch::FileWatch;
use crate::io::host::{HostChanges, HostError, RESOLV_CONF};
use crate::io::netlink::{Netlink, NetlinkError};
use crate::io::network::NetworkWatch;
use crate::io::outside::{Outside, host_file};
use crate::io::sysctl::has_ipv6;
use crate::io::tls::ClientTlsError;
use crate::io::tun::{DEVICE, OpenError, Tun, calm_interface};
use crate::proto::budget::{HARD, Share};
use crate::wire::InnerConfig;

/// A host that goes through the tunnel, until it is closed or dropped.
#[derive(Debug)]
pub struct Host {
    changes: HostChanges,
    /// Which of the key's instances its session is.
    instance: Instance,
    netlink: Netlink,
    names: Option<Names>,
    tunnel: HostTunnel,
    outside: Outside,
    /// What the host has, and what the server said.
    plan: Option<(Plan, InnerConfig)>,
    driver: JoinHandle<Exit>,
    inner: watch::Receiver<Option<InnerConfig>>,
    /// What the driver may be asked by how its session is.
    handle: Tunnel,
    network: NetworkWatch,
    /// Of the file that says whom the host asks for names, if we have a say in that.
    resolv_conf: Option<FileWatch>,
    stop: CancellationToken,
}

impl Host {
    /// Opens the device and starts to connect; a kill switch is in force when this returns. Must be called inside a tokio
    /// runtime. What `outside` prepares must bear [`crate::io::host::MARK`].
    ///
    /// # Errors
    /// [`HostTunnelError`]; nothing is changed then.
    pub fn start(
        config: &ClientConfig,
        tunnel: &HostTunnel,
        outside: Outside,
    ) -> Result<Self, HostTunnelError> {
        let mut changes = HostChanges::begin(&tunnel.state_dir, &guard(tunnel, &[]))?;
        // Only now the file is the host's own again that a dead client may have replaced.
        let names = tunnel.dns.then(|| Names::new(config)).transpose()?;
        let resolv_conf = names
            .as_ref()
            .map(|_| FileWatch::new(Path::new(RESOLV_CONF)));
        outside.set_name_servers(host_file(Path::new(RESOLV_CONF)), Vec::new());
        changes.valid_mark();
        let device = Tun::open_at(Path::new(DEVICE), &tunnel.name)?;
        calm_interface(&tunnel.name, has_ipv6());
        let netlink = Netlink::open()?;
        // No flow of ours could be relayed: what comes from the device are packets.
        let mut connector = connector(config, false, outside.clone())?;
        // A fixed address is for the host: after a kill, too.
        let instance = Instance::of_host(&tunnel.state_dir);
        connector.handshake.instance = instance.id();
        // A refusal is told by the log, and tried again.
        let (closed, _) = watch::channel(None);
        let device = Device::new(device, connector.pool.clone(), closed);
        let (configured, inner) = watch::channel(None);
        let (handle, commands) = tunnel_handles(inner);
        let inner = handle.inner();
        let looked_at = handle.clone();
        let (asked, _) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let driver = Driver::new(
            Arc::new(connector),
            commands,
            configured,
            asked,
            NetworkWatch::new(),
            Share::alone(config.memory / HARD),
            stop.clone(),
        );
        if tunnel.kill_switch {
            info!(interface = %tunnel.name, "the kill switch is on: until the host goes through the tunnel, nothing but that leaves it");
        }
        let driver = driver.over(device);
        let driver = tokio::spawn(async move {
            // Without a handle the driver would take itself for abandoned.
            let _handle = handle;
            driver.run().await
        });
        Ok(Self {
            changes,
            instance,
            netlink,
            names,
            tunnel: tunnel.clone(),
            outside,
            plan: None,
            driver,
            inner,
            handle: looked_at,
            network: NetworkWatch::new(),
            resolv_conf,
            stop,
        })
    }

    /// Returns what tells how the host's session is; flows cannot be asked of it, since packets are what it carries.
    pub fn handle(&self) -> Tunnel {
        self.handle.clone()
    }

    /// Waits until the host goes through the tunnel for the first time.
    ///
    /// # Errors
    /// It cannot be made to.
    pub async fn up(&mut self) -> Result<(), HostTunnelError> {
        while !self.step().await? {}
        info!(interface = %self.tunnel.name, kill_switch = self.tunnel.kill_switch, "the host goes through the tunnel");
        Ok(())
    }

    /// Follows what the server says and what becomes of the network, until the driver ends, which only a fault makes it.
    /// From now on a kill switch stays for a fault.
    pub async fn serve(&mut self) -> HostTunnelError {
        if self.tunnel.kill_switch {
            self.changes.hold();
        }
        loop {
            match self.step().await {
                Ok(_) => {}
                Err(error @ (HostTunnelError::Driver | HostTunnelError::Gone { .. })) => {
                    return error;
                }
                Err(error) => warn!(%error, "the host does not follow the session"),
            }
        }
    }

    /// Closes the session in order and puts the host back; where that is for a fault, a kill switch stays.
    ///
    /// # Errors
    /// Something could not be undone; it stays in the journal.
    pub async fn close(mut self, is_fault: bool) -> Result<(), HostTunnelError> {
        // First of all, so that the host is not without a network while the goodbye is under way.
        let undone = if is_fault {
            self.changes.give_up()
        } else {
            self.changes.undo()
        };
        self.stop.cancel();
        let is_over = self.driver.is_finished();
        if !is_over && timeout(CLOSE_TIMEOUT, &mut self.driver).await.is_err() {
            debug!("the session was not closed in order");
        } else {
            self.instance.forget();
        }
        Ok(undone?)
    }

    /// Waits for one change and follows it; says whether the host goes through the tunnel.
    async fn step(&mut self) -> Result<bool, HostTunnelError> {
        tokio::select! {
            biased;
            _ = &mut self.driver => return Err(HostTunnelError::Driver),
            Ok(()) = self.inner.changed() => {
                let inner = self.inner.borrow_and_update().clone();
                self.plan = None;
                let Some(inner) = inner else { return Ok(false) };
                let plan = self.join(&inner).await?;
                self.follow(plan, inner).await?;
            }
            // Other programs may have taken rules away.
            () = self.network.changed() => self.renew().await?,
            // Or written whom to ask: somebody in the local network, as a rule, beside the tunnel.
            () = changed(self.resolv_conf.as_mut()) => self.renew().await?,
        }
        Ok(self.plan.is_some())
    }

    /// Gives the device what the server says, and the plan that follows from it.
    async fn join(&mut self, inner: &InnerConfig) -> Result<Plan, HostTunnelError> {
        let name = &self.tunnel.name;
        self.netlink.join(name, inner).await?;
        let index = self.netlink.link(name).await?.index;
        let servers = match &self.names {
            Some(names) => names.servers(inner),
            None => Vec::new(),
        };
        let plan = Plan::new(&self.tunnel, inner, &servers, index, has_ipv6());
        self.changes.guard(&plan.guard)?;
        Ok(plan)
    }

    /// Makes everything again what it was, if the host goes through the tunnel.
    async fn renew(&mut self) -> Result<(), HostTunnelError> {
        let is_up = self.is_up().await?;
        let (plan, inner) = match self.plan.take() {
            Some(known) if is_up => known,
            // What was said could not be followed, or the interface was switched off, and has lost its routes.
            known => {
                let said = || self.inner.borrow().clone();
                let Some(inner) = known.map(|(_, inner)| inner).or_else(said) else {
                    return Ok(());
                };
                (self.join(&inner).await?, inner)
            }
        };
        self.follow(plan, inner).await
    }

    /// Whether the interface is switched on; it is gone where somebody has deleted it, and its routes with it.
    async fn is_up(&mut self) -> Result<bool, HostTunnelError> {
        let name = &self.tunnel.name;
        let link = match self.netlink.link(name).await {
            Ok(link) => link,
            Err(NetlinkError::Missing { .. }) => {
                return Err(HostTunnelError::Gone {
                    interface: name.clone(),
                });
            }
            Err(error) => {
                // A connection that is broken does not mend itself; the next change of the network has another.
                self.netlink = Netlink::open()?;
                return Err(error.into());
            }
        };
        Ok(link.is_up)
    }

    /// Makes routes, rules and name servers what they should be; what is so already stays as it is.
    async fn follow(&mut self, plan: Plan, inner: InnerConfig) -> Result<(), HostTunnelError> {
        let (plan, inner) = &*self.plan.insert((plan, inner));
        self.changes.route(&plan.routes, &plan.rules)?;
        if let Some(names) = &mut self.names {
            let (outside, name) = (&self.outside, &self.tunnel.name);
            names
                .follow(&mut self.changes, outside, name, inner)
                .await?;
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn changed(file: Option<&mut FileWatch>) {
    match file {
        Some(file) => file.changed().await,
        None => pending().await,
    }
}

/// Why the host does not go through the tunnel.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HostTunnelError {
    /// The host cannot be changed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// It cannot be told whom to ask for names.
    #[error(transparent)]
    Names(#[from] NamesError),
    /// There is no device.
    #[error("{}", device_error(.0))]
    Device(#[from] OpenError),
    /// The device cannot be configured.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The settings of TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] ClientTlsError),
    /// Somebody has deleted the device.
    #[error(
        "somebody has deleted the interface {interface}: nothing goes through the tunnel any more"
    )]
    Gone {
        /// Its name.
        interface: String,
    },
    /// A fault.
    #[error("the driver of the host's tunnel has failed; the log says more")]
    Driver,
}

/// What is wrong with the device, for somebody who has other ways than a server's administrator.
fn device_error(error: &OpenError) -> String {
    const ELSE: &str = "without --tun (tun:), the proxy needs no privilege, nor does adit run";
    match error {
        OpenError::NoDevice { path, source } => format!(
            "there is no TUN device at {} ({source}): load its driver with `modprobe tun`; a container needs `--device /dev/net/tun`; {ELSE}",
            path.display()
        ),
        OpenError::DeviceRefused { path, source } => format!(
            "cannot open {} ({source}): start it as root, or allow this user by `chmod 0666 {}`; {ELSE}",
            path.display(),
            path.display()
        ),
        OpenError::Privilege { name } => format!(
            "cannot create the interface {name} without CAP_NET_ADMIN: start it as root, or give it by `setcap cap_net_admin+ep` on the program, `AmbientCapabilities=CAP_NET_ADMIN` in a systemd unit, or `docker run --cap-add NET_ADMIN`; {ELSE}"
        ),
        OpenError::Name { .. }
        | OpenError::Device { .. }
        | OpenError::NameTaken { .. }
        | OpenError::Attach { .. }
        | OpenError::Offload { .. }
        | OpenError::Register(_) => error.to_string(),
    }
}

/// How long the goodbye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(1500);
