//! Claims: how two servers on one host know that both want the same sysctl.
//!
//! A sysctl that a server switched on must not be switched off while another server still needs it, and the last one
//! to leave must know what it was before the first one came. A claim is a listening socket in the abstract namespace
//! of Unix sockets whose name says it all:
//!
//! ```text
//! @adit.sysctl/<process>.<number>/<was>/<set>/<key>        for example @adit.sysctl/4711.0/0/1/net/ipv4/ip_forward
//! ```
//!
//! That namespace has exactly the reach of the sysctls of the network: one network namespace, across containers and
//! mount namespaces. It needs no directory and no privilege, and a claim ends with its process, however it ends, so
//! there is nothing stale to judge. Claims are listed from /proc/net/unix.
//!
//! Any local user can bind such a name. So a claim counts only if the socket's peer credentials name root, our own
//! user, or a process with CAP_NET_ADMIN: one that could set the sysctl itself.
//!
//! A [`Turn`] is the mutual exclusion for reading and changing claims and values together; it is bounded in time, for
//! a user may hold that name too.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

/// A sysctl that this process wants to keep its value; ends when dropped.
#[derive(Debug)]
pub(super) struct Claim {
    facts: Facts,
    name: String,
    _socket: UnixListener,
}

/// What a claim says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Path below /proc/sys.
    pub(super) key: String,
    /// What it was before the first claim.
    pub(super) was: String,
    /// What it must be while claimed.
    pub(super) set: String,
}

impl Claim {
    /// Claims a sysctl.
    ///
    /// # Errors
    /// `InvalidInput` when the name would be too long or hold a space; what bind(2) says else.
    pub(super) fn take(facts: Facts) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let Facts { key, was, set } = &facts;
        let name = format!("{PREFIX}{}.{number}/{was}/{set}/{key}", std::process::id());
        // /proc/net/unix separates by white space, and a claim that cannot be read back is none.
        if parse(&name).as_ref() != Some(&facts) || name.contains(char::is_whitespace) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        Ok(Self {
            facts,
            name,
            _socket: socket,
        })
    }

    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }
}

/// The claims of everybody else in this network namespace that count.
///
/// # Errors
/// When /proc/net/unix cannot be read.
pub(super) fn of_others(own: &[Claim]) -> io::Result<Vec<Facts>> {
    // The thread's own network namespace, which need not be that of the process.
    let table = fs::read("/proc/thread-self/net/unix")?;
    let table = String::from_utf8_lossy(&table);
    let names = table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7)?.strip_prefix('@'));
    let mut found: Vec<&str> = names.filter(|name| name.starts_with(PREFIX)).collect();
    // A connection waiting to be accepted is listed under the listener's name once more.
    found.sort_unstable();
    found.dedup();
    let foreign = found
        .into_iter()
        .filter(|name| own.iter().all(|claim| claim.name != *name));
    Ok(foreign
        .filter(|name| is_privileged(name))
        .filter_map(parse)
        .collect())
}

/// The right to look at and change claims and values, one process at a time; ends when dropped.
#[derive(Debug)]
pub struct Turn {
    _socket: Option<UnixListener>,
}

impl Turn {
    /// Waits for the right, for at most a second; goes ahead without it then.
    pub fn wait() -> Self {
        let Ok(address) = SocketAddr::from_abstract_name(TURN_NAME) else {
            return Self { _socket: None };
        };
        for _ in 0..TURN_TRIES {
            match UnixListener::bind_addr(&address) {
                Ok(socket) => {
                    return Self {
                        _socket: Some(socket),
                    };
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    std::thread::sleep(TURN_PAUSE)
                }
                Err(_) => break,
            }
        }
        tracing::warn!("another process keeps the lock on shared sysctls, going on without it");
        Self { _socket: None }
    }
}

/// What a claim's name says.
fn parse(name: &str) -> Option<Facts> {
    let mut parts = name.strip_prefix(PREFIX)?.splitn(4, '/');
    let _process = parts.next()?;
    let was = parts.next()?.to_owned();
    let set = parts.next()?.to_owned();
    let key = parts.next()?.to_owned();
    super::is_known_key(&key).then_some(Facts { key, was, set })
}

/// Whether the socket of that name was made by somebody who could change the sysctl anyway.
pub(in crate::io) fn is_privileged(name: &str) -> bool {
    let credentials = || -> io::Result<libc::ucred> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Nobody accepts on these sockets: a full backlog must not block us.
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(format!("\0{name}"))?)?;
        peer_credentials(&socket)
    };
    let Ok(credentials) = credentials() else {
        return false;
    };
    // SAFETY: geteuid has no preconditions and cannot fail.
    let own = unsafe { libc::geteuid() };
    credentials.uid == 0 || credentials.uid == own || has_net_admin(credentials.pid)
}

/// Whether a process has CAP_NET_ADMIN in effect, as far as /proc tells.
fn has_net_admin(pid: libc::pid_t) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
        return false;
    };
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|set| set & (1 << CAP_NET_ADMIN) != 0)
}

fn peer_credentials(socket: &Socket) -> io::Result<libc::ucred> {
    let mut credentials = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the pointers are to a live `ucred` and to its length in bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(credentials)
    }
}

/// The cookie of the calling thread's network namespace: a number that one boot of the kernel never gives twice.
///
/// # Errors
/// `ENOPROTOOPT` on kernels before 5.14.
pub(crate) fn network_cookie() -> io::Result<u64> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the pointers are to a live u64 and to its length in bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(cookie)
    }
}

const PREFIX: &str = "adit.sysctl/";

const TURN_NAME: &str = "adit.sysctl-turn";

/// A turn takes some milliseconds; a second of waiting is a hundred of them, and short enough for an exit.
const TURN_TRIES: u32 = 100;
const TURN_PAUSE: Duration = Duration::from_millis(10);

/// Bit of CAP_NET_ADMIN in a capability set (capability.h).
const CAP_NET_ADMIN: u32 = 12;

/// `SO_NETNS_COOKIE` (asm-generic/socket.h), which the libc crate does not have.
const SO_NETNS_COOKIE: libc::c_int = 71;

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(key: &str) -> Facts {
        Facts {
            key: key.into(),
            was: "0".into(),
            set: "1".into(),
        }
    }

    #[test]
    fn claim_is_seen_by_others_until_it_ends() {
        let _no_child = crate::io::state::PROCESSES
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let facts = facts("net/ipv6/conf/claimtest0/forwarding");
        let count = |own: &[Claim]| {
            of_others(own)
                .unwrap()
                .into_iter()
                .filter(|found| *found == facts)
                .count()
        };
        assert_eq!(count(&[]), 0);
        let first = Claim::take(facts.clone()).unwrap();
        assert_eq!(count(&[]), 1);
        // Looked at often: each look leaves a connection behind that nobody accepts.
        for _ in 0..20 {
            assert_eq!(count(&[]), 1);
        }
        let own = [first];
        assert_eq!(count(&own), 0);
        let second = Claim::take(facts.clone()).unwrap();
        assert_eq!(count(&own), 1);
        drop(second);
        assert_eq!(count(&own), 0);
    }

    #[test]
    fn claims_on_anything_but_the_keys_in_use_are_ignored() {
        for key in [
            "kernel/core_pattern",
            "net/ipv4/../../kernel/x",
            "net/ipv6/conf/a b/forwarding",
            "",
        ] {
            assert!(Claim::take(facts(key)).is_err(), "{key}");
        }
        assert_eq!(parse("adit.sysctl/1.0/0/1/kernel/core_pattern"), None);
        assert_eq!(parse("adit.sysctl/1.0/0/1"), None);
    }

    #[test]
    fn turn_is_waited_for_and_given_on() {
        let first = Turn::wait();
        let waiter = std::thread::spawn(|| drop(Turn::wait()));
        drop(first);
        waiter.join().unwrap();
    }

    #[test]
    fn root_or_own_process_counts_and_unknown_one_does_not() {
        assert!(!is_privileged("adit.sysctl/no-such-socket"));
        assert!(!has_net_admin(0));
    }
}
