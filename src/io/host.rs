//! What a client changes in its host to lead it through the tunnel, each change journaled before it is made.
//!
//! A [`HostChanges`] is the one place where such changes are made and undone: in order at the end, by the next start after a
//! crash, and by `adit cleanup`. Beside the journal's lock, which is that of one state folder, it holds one of the network
//! namespace: rules, tables and `/etc/resolv.conf` are there once, and so is a client that changes them.

use std::io;
use std::net::IpAddr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use thiserror::Error;
use tracing::{debug, info, warn};

use super::journal::{Change, JOURNAL, Journal, JournalError, World};
use super::netlink::policy::{Policy, Route, Rule};
use super::nft;
use super::nft::NftError;
use super::nft::host::{HOST_TABLE, HostRules, delete_host_table};
use super::nft::lock::{Lock, Taken};
use super::resolv::{self, Kept, Replacement};
use super::state::{StateDir, StateError};
use super::sysctl::{SysctlError, Sysctls, Turn, is_privileged};

/// The changes of this process to its host; dropping it undoes them, but for a kill switch that [stays](Self::hold).
#[derive(Debug)]
pub struct HostChanges {
    /// Whether the nftables table is kept by anything but an end in order.
    is_held: bool,
    journal: Journal,
    sysctls: Sysctls,
    policy: Policy,
    _lock: Option<HostLock>,
    resolv_conf: Option<Replacement>,
}

impl HostChanges {
    /// Undoes what a dead client left, and gets ready to change the host.
    ///
    /// With `guard` its table is loaded first, in the place of the one that may be there, so that a kill switch that
    /// outlived its client has no gap.
    ///
    /// # Errors
    /// Another client leads this host, the state folder cannot be had, or what was left cannot be undone.
    pub fn begin(state: &Path, guard: &HostRules) -> Result<Self, HostError> {
        let state = StateDir::open(state).map_err(|error| {
            if matches!(error, StateError::Held { .. }) {
                HostError::Running(error)
            } else {
                error.into()
            }
        })?;
        let mut changes = Self::open(&state, HostLock::take()?)?;
        // A kill switch that outlived its client outlives a start that fails, too.
        changes.is_held = guard.kill_switch.is_some() && changes.has_guard();
        changes.guard(guard)?;
        changes.undo_some(|change| !is_guard(change))?;
        for table in tables() {
            if changes.policy.is_used(table).map_err(routing)? {
                return Err(HostError::Foreign { table });
            }
        }
        Ok(changes)
    }

    /// Opens the journal of a state folder for what is in it to be undone.
    fn open(state: &StateDir, lock: Option<HostLock>) -> Result<Self, HostError> {
        let world = World::current().map_err(HostError::World)?;
        Ok(Self {
            is_held: false,
            journal: Journal::open(state, &world)?,
            sysctls: Sysctls::default(),
            policy: Policy::open().map_err(routing)?,
            _lock: lock,
            resolv_conf: None,
        })
    }

    /// Loads the table, in the place of the one that is there.
    ///
    /// # Errors
    /// [`HostError::Nft`], [`HostError::Journal`].
    pub fn guard(&mut self, rules: &HostRules) -> Result<(), HostError> {
        let name = HOST_TABLE.to_owned();
        let change = Change::HostTable { name };
        let is_new = !self.has_guard();
        self.note(change)?;
        if let Err(error) = rules.load() {
            if is_new {
                // Nothing was loaded: there is nothing to undo.
                self.journal.undo_some(is_guard, |_| Ok(()))?;
            }
            return Err(error.into());
        }
        Ok(())
    }

    /// Has a kill switch stay from now on until an end in order, or the next start, or `adit cleanup`.
    pub fn hold(&mut self) {
        self.is_held = true;
    }

    /// Whether the nftables table may be there.
    fn has_guard(&self) -> bool {
        self.journal.changes().iter().any(is_guard)
    }

    /// Has reverse-path filters look at marks, as far as that is allowed.
    pub fn valid_mark(&mut self) {
        if let Err(error) = self.sysctls.valid_mark(&mut self.journal) {
            warn!(%error, "where an interface has rp_filter=1, the lanes are not answered");
        }
    }

    /// Makes `routes` what our tables have, and has them looked up by `rules`.
    ///
    /// # Errors
    /// [`HostError::Routing`], [`HostError::Journal`].
    pub fn route(&mut self, routes: &[Route], rules: &[Rule]) -> Result<(), HostError> {
        for table in tables() {
            self.note(Change::Routes { table })?;
            for v6 in [false, true] {
                let set = self.policy.set_routes(table, v6, routes);
                set.map_err(routing)?;
            }
        }
        for rule in rules {
            self.note(Change::Rule(rule.clone()))?;
            self.policy.add_rule(rule).map_err(routing)?;
        }
        Ok(())
    }

    /// Has the host ask `servers` for names; gives the file that says whom it asked before.
    ///
    /// # Errors
    /// [`HostError::ResolvConf`], [`HostError::Journal`].
    pub fn name_servers(&mut self, path: &Path, servers: &[IpAddr]) -> Result<PathBuf, HostError> {
        let text = resolv::text(servers);
        if let Some(replacement) = &self.resolv_conf {
            let is_there = replacement.is_there().map_err(HostError::ResolvConf)?;
            if is_there && replacement.ours == text {
                return Ok(original(replacement, &self.journal));
            }
            if !is_there {
                info!(
                    "somebody else has written {}: it is kept, and replaced again",
                    path.display()
                );
            }
            self.former_name_servers()?;
        }
        let replacement = self.replace(path, text)?;
        let original = original(&replacement, &self.journal);
        self.resolv_conf = Some(replacement);
        Ok(original)
    }

    /// Has the host ask whom it asked before.
    ///
    /// # Errors
    /// [`HostError::Journal`].
    pub fn former_name_servers(&mut self) -> Result<(), HostError> {
        self.resolv_conf = None;
        self.undo_some(|change| matches!(change, Change::ResolvConf(_)))
    }

    /// Undoes every change, newest first.
    ///
    /// # Errors
    /// [`HostError::Journal`] names each that could not be undone; it stays in the journal.
    pub fn undo(&mut self) -> Result<(), HostError> {
        self.undo_some(|_| true)
    }

    /// Undoes what a failure must not leave: all but a kill switch that is held, so that nothing goes past a tunnel that
    /// ended by itself.
    ///
    /// # Errors
    /// As [`HostChanges::undo`].
    pub fn give_up(&mut self) -> Result<(), HostError> {
        let is_held = self.is_held;
        if is_held && self.has_guard() {
            warn!(
                "the kill switch stays: nothing leaves this host until the next start, or `adit cleanup`"
            );
        }
        self.undo_some(|change| !(is_held && is_guard(change)))
    }

    fn replace(&mut self, path: &Path, text: String) -> Result<Replacement, HostError> {
        let renaming = Replacement::renaming(path, text.clone());
        self.note(Change::ResolvConf(renaming.clone()))?;
        let Err(error) = renaming.apply() else {
            return Ok(renaming);
        };
        // As in a container, where it is a mount.
        debug!(%error, "{} cannot be given another name; it is written to", path.display());
        self.former_name_servers()?;
        let writing = Replacement::writing(path, text).map_err(HostError::ResolvConf)?;
        self.note(Change::ResolvConf(writing.clone()))?;
        writing.apply().map_err(HostError::ResolvConf)?;
        if let Kept::Here(was) = &writing.kept {
            self.journal.state().write(ORIGINAL, was)?;
        }
        Ok(writing)
    }

    /// Journals a change that is about to be made, unless it is there.
    fn note(&mut self, change: Change) -> Result<(), JournalError> {
        if self.journal.changes().contains(&change) {
            return Ok(());
        }
        self.journal.record([change])
    }

    fn undo_some(&mut self, due: impl Fn(&Change) -> bool) -> Result<(), HostError> {
        let Self {
            journal, sysctls, ..
        } = self;
        let turn = Turn::wait();
        let undone = journal.undo_some(due, |change| match change {
            Change::Sysctl { key, was, set } => sysctls.undo(&turn, key, was, set.as_deref()),
            Change::Table { .. }
            | Change::HostTable { .. }
            | Change::Rule(_)
            | Change::Routes { .. }
            | Change::ResolvConf(_) => undo_one(change),
        });
        let is_written = |change: &Change| matches!(change, Change::ResolvConf(_));
        if !journal.changes().iter().any(is_written) {
            // The copy has nobody who reads it any more.
            journal.state().remove(ORIGINAL)?;
        }
        Ok(undone?)
    }
}

impl Drop for HostChanges {
    fn drop(&mut self) {
        if !self
            .journal
            .changes()
            .iter()
            .all(|it| self.is_held && is_guard(it))
            && let Err(error) = self.give_up()
        {
            warn!("{error}");
        }
    }
}

/// Undoes what the journal of a state folder names, of a server or of a client that is dead; gives what it was.
///
/// # Errors
/// It lives, or something cannot be undone: that stays in the journal.
pub fn clean_up(state: &Path) -> Result<Vec<String>, HostError> {
    let state = StateDir::open(state)?;
    let world = World::current().map_err(HostError::World)?;
    let journal = Journal::open(&state, &world)?;
    if let Some(left_in) = Journal::world(&state)?
        && left_in.boot == world.boot
        && left_in.network != world.network
    {
        return Err(HostError::Elsewhere {
            folder: state.path().to_owned(),
        });
    }
    let found: Vec<String> = journal.changes().iter().map(Change::to_string).collect();
    // What a server left is none of a client's business.
    let is_client = |change: &Change| match change {
        Change::HostTable { .. } | Change::Rule(_) | Change::Routes { .. } => true,
        Change::ResolvConf(_) => true,
        Change::Table { .. } | Change::Sysctl { .. } => false,
    };
    let lock = if journal.changes().iter().any(is_client) {
        HostLock::take()?
    } else {
        None
    };
    drop(journal);
    if !found.is_empty() {
        HostChanges::open(&state, lock)?.undo()?;
    }
    Ok(found)
}

/// What anybody may see of a tunnel of this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// There are rules or routes of ours.
    pub routing: bool,
    /// They lead into a device, which is there only while its client lives.
    pub device: bool,
    /// The nftables table is there; only who has CAP_NET_ADMIN sees it.
    pub table: bool,
    /// A client that lives leads this host, also one whose tunnel is not up yet; seen by the same.
    pub led: bool,
}

/// Looks for them.
///
/// # Errors
/// What the kernel says of its rules and routes.
pub fn traces() -> io::Result<Traces> {
    let policy = Policy::open()?;
    let mut traces = Traces {
        // Not seen is not there, for whoever may not look.
        table: nft::has_table(HOST_TABLE).unwrap_or(false),
        led: Lock::is_held().unwrap_or(false),
        ..Traces::default()
    };
    for table in tables() {
        traces.routing |= policy.is_used(table)?;
        traces.device |= policy.has_device(table)?;
    }
    Ok(traces)
}

/// Undoes one change that is not a sysctl.
pub(super) fn undo_one(change: &Change) -> io::Result<()> {
    match change {
        Change::Table { name, interface } => nft::delete_leftover(name, interface),
        Change::HostTable { name } => delete_host_table(name),
        Change::Rule(rule) => Policy::open()?.delete_rule(rule),
        Change::Routes { table } => {
            // A journal is a file: no other table is emptied on its word.
            if !tables().contains(table) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let policy = Policy::open()?;
            policy.set_routes(*table, false, &[])?;
            policy.set_routes(*table, true, &[])
        }
        // Nor is another file written.
        Change::ResolvConf(replacement) if !replacement.is_of(Path::new(RESOLV_CONF)) => {
            Err(io::ErrorKind::InvalidInput.into())
        }
        Change::ResolvConf(replacement) => replacement.undo(),
        Change::Sysctl { .. } => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn is_guard(change: &Change) -> bool {
    matches!(change, Change::HostTable { .. })
}

/// Where the host's own content is meanwhile.
fn original(replacement: &Replacement, journal: &Journal) -> PathBuf {
    match &replacement.kept {
        Kept::Beside(beside) => beside.clone(),
        Kept::Here(_) => journal.state().path().join(ORIGINAL),
    }
}

/// The tables that are ours.
fn tables() -> [u32; 2] {
    [SPECIFIC, DEFAULT]
}

/// That this process leads its host, and no other does; ends with it.
#[derive(Debug)]
enum HostLock {
    Table {
        _lock: Lock,
    },
    /// On kernels before 5.12.
    Name {
        _socket: UnixListener,
    },
}

impl HostLock {
    /// Takes it; `None` where the kernel is old and somebody without privilege has its name, who can do nothing else.
    fn take() -> Result<Option<Self>, HostError> {
        match Lock::take()? {
            Taken::Ours(lock) => Ok(Some(Self::Table { _lock: lock })),
            Taken::Held => Err(HostError::Led),
            Taken::Unknown => Self::take_name(),
        }
    }

    fn take_name() -> Result<Option<Self>, HostError> {
        // Names of abstract sockets have exactly the reach of rules and tables, too: one network namespace.
        let address = SocketAddr::from_abstract_name(LOCK).map_err(HostError::Lock)?;
        match UnixListener::bind_addr(&address) {
            Ok(socket) => Ok(Some(Self::Name { _socket: socket })),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if is_privileged(LOCK) {
                    return Err(HostError::Led);
                }
                warn!(
                    "a process without privilege keeps the lock on this host's tunnel, going on without it"
                );
                Ok(None)
            }
            Err(error) => Err(HostError::Lock(error)),
        }
    }
}

/// Why the host cannot be changed, or not be put back.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HostError {
    /// The state folder cannot be had.
    #[error(transparent)]
    State(#[from] StateError),
    /// A client with the same key leads it.
    #[error(
        "{0}; a client leads this host through its tunnel already, and there can be one: `adit status` shows it; stop it first, or start this one without --tun (`tun:`), for its proxy"
    )]
    Running(StateError),
    /// Another client leads it.
    #[error(
        "another adit client leads this host through its tunnel, and there can be one: stop it (`adit status` names it), or start this one without --tun (`tun:`), for its proxy and `adit run`; in a network namespace of its own a second one may run"
    )]
    Led,
    /// The lock cannot be taken.
    #[error("cannot take the lock on this host's tunnel: {0}")]
    Lock(io::Error),
    /// /proc does not say which boot and network namespace this is.
    #[error("cannot tell which network namespace this is: {0}")]
    World(io::Error),
    /// The journal cannot be used, or something could not be undone.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The journal is about another network namespace.
    #[error(
        "what {} has noted was changed in another network namespace, perhaps a container's: run this there (nsenter, `docker exec`); if that is gone, so are the changes, and {}/{JOURNAL} may be deleted",
        folder.display(), folder.display()
    )]
    Elsewhere {
        /// The state folder.
        folder: PathBuf,
    },
    /// Somebody uses our tables.
    #[error(
        "the routing table {table} is in use by something else (`ip rule`, `ip route show table {table}`): if a client with another state folder left it, `adit cleanup` with that folder puts it right"
    )]
    Foreign {
        /// The table.
        table: u32,
    },
    /// Rules or routes cannot be changed.
    #[error("cannot change the host's routing: {source}{}", routing_hint(source))]
    Routing {
        /// What the kernel says.
        source: io::Error,
    },
    /// The nftables table cannot be loaded.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// A sysctl cannot be set.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The name servers cannot be written.
    #[error(
        "cannot have names asked through the tunnel, {RESOLV_CONF}: {0}; with `tun: {{dns: false}}` it stays as it is"
    )]
    ResolvConf(io::Error),
}

fn routing(source: io::Error) -> HostError {
    HostError::Routing { source }
}

/// What to do about a refusal.
fn routing_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            ": this needs CAP_NET_ADMIN: start it as root, or by `setcap cap_net_admin+ep`, or `AmbientCapabilities=CAP_NET_ADMIN` in a systemd unit"
        }
        Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => {
            ": the kernel needs policy routing (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES)"
        }
        Some(_) | None => "",
    }
}

/// The mark of sockets that leave outside the tunnel. It has none of the bits that Kubernetes (0x4000, 0x8000) and
/// Tailscale (0xff0000) give a meaning.
pub const MARK: u32 = 0x1ad1;

/// The table of routes that go before the host's own.
pub const SPECIFIC: u32 = 6865;

/// The table of the routes for all that the host has no route of its own for.
pub const DEFAULT: u32 = 6866;

/// Where programs of the host look for name servers (resolv.conf(5)).
pub use super::outside::RESOLV_CONF;

/// The name of the lock.
const LOCK: &str = "adit.host-tunnel";

/// The file in the state folder with what was in a resolv.conf that is written to.
const ORIGINAL: &str = "resolv.conf.host";
