//! Sets the host up for the `tun` egress, and undoes it.

use ipnet::{Ipv4Net, Ipv6Net};
use tracing::{debug, info, warn};

use super::device::{OpenError, Tun};
use super::steering;
use crate::io::host;
use crate::io::journal::{Change, Journal, JournalError, World};
use crate::io::netlink::{CheckError, Netlink, NetlinkError};
use crate::io::nft::{self, NftError, Obstacle, Table};
use crate::io::state::StateDir;
use crate::io::sysctl::{self, Family, SysctlError, Sysctls, Turn};

/// What the `tun` egress is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunSettings {
    /// Name of the interface, at most 15 bytes.
    pub name: String,
    /// Inner MTU in bytes, 1280 to 9000.
    pub mtu: u16,
    /// The IPv4 address of the gateway with the prefix length of the clients' network.
    pub gateway4: Option<Ipv4Net>,
    /// The IPv6 address of the gateway with the prefix length of the clients' network.
    pub gateway6: Option<Ipv6Net>,
    /// Whether clients leave under the server's own addresses. Without it, the hosts they talk to need a route back.
    pub masquerade: bool,
}

/// The `tun` egress, ready to carry packets.
#[derive(Debug)]
pub struct TunEgress {
    /// The device.
    pub tun: Tun,
    /// Whether the tunnel carries IPv6: asked for, and the host has it.
    pub ipv6: bool,
    /// What somebody should look at; logged already.
    pub warnings: Vec<Warning>,
    /// Puts the host back.
    pub undo: Undo,
}

/// Something that does not keep the tunnel from working, or not for certain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Warning {
    /// The host has no IPv6.
    #[error(
        "this host has no IPv6 (net.ipv6.conf.all.disable_ipv6 is set, or the kernel is built without): clients get IPv4 only, {network} is not used"
    )]
    NoIpv6 {
        /// The network that was asked for.
        network: Ipv6Net,
    },
    /// Foreign rules drop what is forwarded.
    #[error(transparent)]
    Obstacle(#[from] Obstacle),
    /// The foreign rules could not be read.
    #[error("cannot see whether other firewall rules drop what is forwarded: {reason}")]
    ForeignRulesUnknown {
        /// What failed.
        reason: String,
    },
}

/// Brings the host into the state the `tun` egress needs; must be called inside a tokio runtime.
///
/// What a killed predecessor left behind is undone first. The module's page lists what is changed.
///
/// # Errors
/// [`SetupError`]; whatever was changed before the error has been undone then.
pub async fn setup(settings: &TunSettings, state: &StateDir) -> Result<TunEgress, SetupError> {
    let TunSettings {
        name,
        mtu,
        gateway4,
        gateway6,
        masquerade,
    } = settings;
    super::device::check_name(name)?;
    let mut undo = Undo::open(state)?;
    undo.leftovers()?;

    let mut warnings = Vec::new();
    let gateway6 = match gateway6 {
        Some(gateway) if !sysctl::has_ipv6() => {
            warnings.push(Warning::NoIpv6 {
                network: gateway.trunc(),
            });
            None
        }
        other => *other,
    };
    if gateway4.is_none() && gateway6.is_none() {
        return Err(SetupError::NoNetwork);
    }

    let netlink = Netlink::open()?;
    netlink
        .check_overlap(
            name,
            gateway4.map(|net| net.trunc()),
            gateway6.map(|net| net.trunc()),
        )
        .await?;
    let tun = Tun::open(name)?;
    calm_interface(name, gateway6.is_some());
    netlink.configure(name, *mtu, *gateway4, gateway6).await?;
    match steering::steer(name) {
        Ok(processors) => debug!(
            processors,
            "the kernel's work for clients' packets is shared out"
        ),
        Err(error) => info!(
            %error,
            "the kernel's work for clients' packets stays on one processor (a server that stays root shares it out; or write a mask of processors to /sys/class/net/{name}/queues/rx-0/rps_cpus)"
        ),
    }

    let rules = nft::Rules {
        interface: name.clone(),
        network4: gateway4.map(|net| net.trunc()),
        network6: gateway6.map(|net| net.trunc()),
        masquerade: *masquerade,
    };
    undo.load(&rules)?;
    undo.forward(gateway4.is_some(), gateway6.is_some(), name)?;

    match nft::obstacles(name, gateway4.is_some(), gateway6.is_some()) {
        Ok(obstacles) => warnings.extend(obstacles.into_iter().map(Warning::Obstacle)),
        Err(error) => warnings.push(Warning::ForeignRulesUnknown {
            reason: error.to_string(),
        }),
    }
    for warning in &warnings {
        warn!("{warning}");
    }
    info!(interface = %name, mtu, masquerade, "tun egress is up");
    Ok(TunEgress {
        tun,
        ipv6: gateway6.is_some(),
        warnings,
        undo,
    })
}

/// Undoes what a killed predecessor left behind, for a server that does not call [`setup`] itself.
///
/// Gives the number of changes undone.
///
/// # Errors
/// [`UndoError`]; what could not be undone stays in the journal.
pub fn clean_up(state: &StateDir) -> Result<usize, UndoError> {
    Undo::open(state)?.leftovers()
}

/// Puts the host back into the state it was in before [`setup`], on [`Undo::undo`] or when dropped.
///
/// It holds the state directory's lock for as long as it lives.
#[derive(Debug)]
pub struct Undo {
    journal: Journal,
    sysctls: Sysctls,
    table: Option<Table>,
    #[cfg(test)]
    is_dead: bool,
}

impl Undo {
    fn open(state: &StateDir) -> Result<Self, UndoError> {
        let world = World::current().map_err(UndoError::World)?;
        let journal = Journal::open(state, &world)?;
        Ok(Self {
            journal,
            sysctls: Sysctls::default(),
            table: None,
            #[cfg(test)]
            is_dead: false,
        })
    }

    /// Undoes every change, newest first. It never waits for longer than about two seconds.
    ///
    /// Closing the TUN device, which takes its addresses and routes along, is left to its owner.
    ///
    /// # Errors
    /// [`UndoError`] names each change that could not be undone; it stays in the journal for the next start.
    pub fn undo(mut self) -> Result<(), UndoError> {
        self.run()
    }

    /// Ends as a killed process does: descriptors are closed and nothing is put back.
    #[cfg(test)]
    pub(super) fn die(mut self) {
        self.is_dead = true;
    }

    #[cfg(test)]
    pub(super) fn is_owned(&self) -> bool {
        self.table.as_ref().is_some_and(Table::is_owned)
    }

    fn run(&mut self) -> Result<(), UndoError> {
        let Self {
            journal,
            sysctls,
            table,
            ..
        } = self;
        // One turn for all: waiting for it is bounded, and then bounded once.
        let turn = Turn::wait();
        journal.undo(|change| match change {
            Change::Table { name, interface } => match table.take() {
                Some(own) => own.delete(),
                None => nft::delete_leftover(name, interface),
            },
            Change::Sysctl { key, was, set } => sysctls.undo(&turn, key, was, set.as_deref()),
            // Of a client that had this folder before.
            Change::HostTable { .. }
            | Change::Rule(_)
            | Change::Routes { .. }
            | Change::ResolvConf(_) => host::undo_one(change),
        })?;
        Ok(())
    }

    /// Undoes what the journal holds from a former process; gives how much.
    fn leftovers(&mut self) -> Result<usize, UndoError> {
        let count = self.journal.changes().len();
        if count > 0 {
            info!(changes = count, "undoing what a former run left behind");
            self.run()?;
        }
        Ok(count)
    }

    fn load(&mut self, rules: &nft::Rules) -> Result<(), SetupError> {
        let name = nft::table_name(&rules.interface);
        self.journal.record([Change::Table {
            name,
            interface: rules.interface.clone(),
        }])?;
        self.table = Some(Table::load(rules)?);
        Ok(())
    }

    fn forward(&mut self, v4: bool, v6: bool, tunnel: &str) -> Result<(), SetupError> {
        Ok(self.sysctls.forward(&mut self.journal, v4, v6, tunnel)?)
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        #[cfg(test)]
        if self.is_dead {
            return;
        }
        if !self.journal.changes().is_empty()
            && let Err(error) = self.run()
        {
            warn!("{error}");
        }
    }
}

/// Why the `tun` egress cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// Neither family can be carried.
    #[error(
        "the tun egress needs `network:`: there is no IPv4 network, and no IPv6 one that this host could carry"
    )]
    NoNetwork,
    /// The network is in use on this host, or that cannot be found out.
    #[error(transparent)]
    Network(#[from] CheckError),
    /// The device cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The interface cannot be configured.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The rules cannot be loaded.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Forwarding cannot be switched on.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What a former run left cannot be undone.
    #[error("cannot undo what a former run left behind: {0}")]
    Leftovers(#[from] UndoError),
}

/// Why the host could not be put back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UndoError {
    /// The journal, or some change in it.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// /proc does not say which boot and network namespace this is.
    #[error("cannot tell which network namespace this is: {0}")]
    World(std::io::Error),
}

/// Keeps the kernel from talking into the tunnel on its own, and from listening to clients as if they were routers.
pub fn calm_interface(name: &str, ipv6: bool) {
    let mut values = vec![
        (Family::V4, "accept_redirects", "0"),
        (Family::V4, "send_redirects", "0"),
    ];
    if ipv6 {
        // Without a link-local address (mode 1: none) the kernel solicits no routers there.
        values.extend([
            (Family::V6, "disable_ipv6", "0"),
            (Family::V6, "addr_gen_mode", "1"),
            (Family::V6, "accept_ra", "0"),
            (Family::V6, "accept_redirects", "0"),
        ]);
    } else {
        values.push((Family::V6, "disable_ipv6", "1"));
    }
    for (family, key, value) in values {
        if let Err(error) = sysctl::set_own(family, name, key, value) {
            // A read-only /proc/sys: what the kernel says into the tunnel is dropped by the router as foreign.
            tracing::debug!(%error, key, "cannot calm the interface");
        }
    }
}
