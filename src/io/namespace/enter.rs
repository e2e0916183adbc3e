//! Makes the namespaces and enters them, or says what on this host forbids it.

use std::fs;
use std::io;
use std::mem;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{DumpableBehavior, getegid, geteuid, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, UnshareFlags, capabilities, unshare_unsafe};

/// Where the calling process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entered {
    /// Whether there is a user namespace, too.
    pub own_users: bool,
}

/// Moves the process into a network and a mount namespace of its own, with loopback switched on; also into a user namespace, in
/// which its user and group are what they were, unless it has the privilege to do without.
///
/// # Errors
/// [`EnterError`]. The process may be in some of the namespaces then, and of no further use.
pub fn enter() -> Result<Entered, EnterError> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let own_users = !is_privileged();
    let refused = |step| move |error: io::Error| EnterError::of(step, error);
    let mut flags = UnshareFlags::NEWNET | UnshareFlags::NEWNS;
    if own_users {
        // Of a program with capabilities by its file, /proc/self belongs to root otherwise.
        set_dumpable_behavior(DumpableBehavior::Dumpable)
            .map_err(|error| refused("be a process like others")(error.into()))?;
        flags |= UnshareFlags::NEWUSER;
    }
    // SAFETY: none of the flags has to do with descriptors; the process has one thread, or the kernel refuses.
    unsafe { unshare_unsafe(flags) }.map_err(|error| refused("make namespaces")(error.into()))?;
    if own_users {
        // Without this, groups could be dropped that keep a user from something.
        write("/proc/self/setgroups", "deny").map_err(refused("map the group"))?;
        write("/proc/self/uid_map", &format!("{user} {user} 1"))
            .map_err(refused("map the user"))?;
        write("/proc/self/gid_map", &format!("{group} {group} 1"))
            .map_err(refused("map the group"))?;
    } else {
        // Those of a user namespace are so by themselves.
        let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change("/", flags)
            .map_err(|error| refused("keep mounts to the namespace")(error.into()))?;
    }
    switch_on_loopback().map_err(refused("switch loopback on"))?;
    allow_ping(group);
    offer_marks();
    Ok(Entered { own_users })
}

/// Whether the caller can do without a user namespace.
fn is_privileged() -> bool {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN;
    capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

/// Lets the command's group open ICMP echo sockets, which is what ping does without privilege. Where /proc/sys cannot be
/// written, as in many containers, ping needs its own privilege.
fn allow_ping(group: u32) {
    if let Err(error) = write(PING_GROUPS, &format!("{group} {group}")) {
        tracing::debug!(%error, "ping has no socket in the namespace");
    }
}

/// Has the kernel offer marks of congestion in its SYNs (RFC 3168), with which the tunnel's queues need not drop to be heard; a
/// SYN that is lost is sent again without.
fn offer_marks() {
    if let Err(error) = write(OFFER_MARKS, "1") {
        tracing::debug!(%error, "connections of the command do without marks of congestion");
    }
}

fn write(path: &str, text: &str) -> io::Result<()> {
    fs::write(Path::new(path), text)
}

fn switch_on_loopback() -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    // SAFETY: all-zero bytes are a valid `ifreq`: an empty name and a union of integers and addresses.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: `socket` is open and `request` is a live `ifreq`, which is what SIOCSIFFLAGS reads.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Why there are no namespaces for a command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnterError {
    /// The system does not let this user.
    #[error("this host does not let this user {step} ({source}): {remedy}")]
    Refused {
        /// What was tried.
        step: &'static str,
        /// What forbids it, as far as that can be seen, and what opens it.
        remedy: String,
        /// What the system said.
        source: io::Error,
    },
    /// Something else is wrong.
    #[error("cannot {step}: {source}")]
    Failed {
        /// What was tried.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl EnterError {
    /// Looks for what forbade `step` (`make namespaces`), with the error that the system gave.
    pub fn of(step: &'static str, source: io::Error) -> Self {
        match remedy(source.raw_os_error(), &Host::look()) {
            Some(remedy) => Self::Refused {
                step,
                remedy,
                source,
            },
            None => Self::Failed { step, source },
        }
    }
}

/// What of the host decides who may make namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Host {
    /// kernel.unprivileged_userns_clone, of Debian's kernels.
    clone: Option<String>,
    /// kernel.apparmor_restrict_unprivileged_userns, of Ubuntu since 23.10.
    apparmor: Option<String>,
    /// user.max_user_namespaces.
    most_users: Option<String>,
    /// user.max_net_namespaces.
    most_networks: Option<String>,
    /// Whether system calls are filtered, as in containers.
    is_filtered: bool,
}

impl Host {
    fn look() -> Self {
        let value = |name: &str| {
            let text = fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
            Some(text.trim().to_owned())
        };
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mode = status
            .lines()
            .find_map(|line| line.strip_prefix("Seccomp:"));
        Self {
            clone: value("kernel/unprivileged_userns_clone"),
            apparmor: value("kernel/apparmor_restrict_unprivileged_userns"),
            most_users: value("user/max_user_namespaces"),
            most_networks: value("user/max_net_namespaces"),
            is_filtered: mode.is_some_and(|mode| mode.trim() == "2"),
        }
    }
}

/// What to do about an error, if it is a refusal.
fn remedy(error: Option<i32>, host: &Host) -> Option<String> {
    let is = |value: &Option<String>, wanted| value.as_deref() == Some(wanted);
    let refused = matches!(error, Some(libc::EPERM | libc::EACCES));
    let full = matches!(error, Some(libc::ENOSPC | libc::EUSERS));
    if !refused && !full {
        return None;
    }
    let limit = [
        ("user.max_user_namespaces", &host.most_users),
        ("user.max_net_namespaces", &host.most_networks),
    ];
    let zero = limit.iter().find(|(_, value)| is(value, "0"));
    Some(if let Some((name, _)) = zero {
        format!("{name} is 0; as root: sysctl -w {name}=15000")
    } else if full {
        "all the namespaces that user.max_user_namespaces and user.max_net_namespaces allow are in use; as root: sysctl -w user.max_user_namespaces=15000 user.max_net_namespaces=15000".to_owned()
    } else if is(&host.clone, "0") {
        "kernel.unprivileged_userns_clone is 0; as root: sysctl -w kernel.unprivileged_userns_clone=1".to_owned()
    } else if is(&host.apparmor, "1") {
        "AppArmor keeps user namespaces from programs that it has no profile of (kernel.apparmor_restrict_unprivileged_userns is 1); install ours, as root: cp packaging/apparmor/adit /etc/apparmor.d/adit && apparmor_parser -r /etc/apparmor.d/adit".to_owned()
    } else if host.is_filtered {
        "this container's seccomp profile forbids it; start it with --security-opt seccomp=unconfined, and under AppArmor --security-opt apparmor=unconfined, or with a profile that allows unshare and mount; adit client, with its proxy, works without".to_owned()
    } else {
        "a security module (SELinux, AppArmor, Landlock), a chroot or a container forbids it; adit client, with its proxy, works without".to_owned()
    })
}

const PING_GROUPS: &str = "/proc/sys/net/ipv4/ping_group_range";
/// Of IPv6, too.
const OFFER_MARKS: &str = "/proc/sys/net/ipv4/tcp_ecn";

#[cfg(test)]
mod tests {
    use super::*;

    fn told(error: i32, host: &Host) -> String {
        remedy(Some(error), host).unwrap()
    }

    #[test]
    fn each_lock_is_named_with_its_key() {
        let zero = || Some("0".to_owned());
        let host = Host {
            clone: zero(),
            ..Host::default()
        };
        assert!(told(libc::EPERM, &host).contains("kernel.unprivileged_userns_clone=1"));
        let host = Host {
            apparmor: Some("1".into()),
            is_filtered: true,
            ..Host::default()
        };
        assert!(told(libc::EACCES, &host).contains("packaging/apparmor/adit"));
        let host = Host {
            most_users: zero(),
            apparmor: Some("1".into()),
            ..Host::default()
        };
        for error in [libc::ENOSPC, libc::EPERM] {
            assert!(told(error, &host).contains("user.max_user_namespaces is 0"));
        }
        assert!(told(libc::ENOSPC, &Host::default()).contains("in use"));
        let host = Host {
            is_filtered: true,
            ..Host::default()
        };
        assert!(told(libc::EPERM, &host).contains("--security-opt seccomp=unconfined"));
        assert!(told(libc::EPERM, &Host::default()).contains("adit client"));
    }

    #[test]
    fn error_that_is_no_refusal_has_no_remedy() {
        assert_eq!(remedy(Some(libc::ENOMEM), &Host::default()), None);
        assert_eq!(remedy(None, &Host::default()), None);
    }
}
