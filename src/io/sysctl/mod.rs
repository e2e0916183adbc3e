//! The sysctls that make a host a router: switched on where they are off, and put back exactly.
//!
//! | sysctl | set to | why |
//! |---|---|---|
//! | `net.ipv4.ip_forward` | 1 | else the kernel drops what is not for itself |
//! | `net.ipv6.conf.all.forwarding` | 1 | the same for IPv6 |
//! | `net.ipv6.conf.<interface>.accept_ra`, where 1, before the switch above | 2 | a router ignores router advertisements unless this is 2: the host would lose its own address and default route |
//!
//! A client that leads its host through the tunnel sets `net.ipv4.conf.all.src_valid_mark` to 1, and nothing of the above.
//!
//! A value that is right already is left alone, and nothing is written then: a container whose /proc/sys is read-only
//! works if its runtime set them (`docker run --sysctl net.ipv4.ip_forward=1`).
//!
//! # What the kernel changes beside
//!
//! Writing `ip_forward` resets values of every interface (ip-sysctl: "this variable is special, its change resets all
//! configuration parameters to their default state (RFC 1122 for hosts, RFC 1812 for routers)"): it sets
//! `net.ipv4.conf.*.forwarding` to the same value and `net.ipv4.conf.all.accept_redirects` to its opposite. The IPv6
//! switch does so for `net.ipv6.conf.*.forwarding`. Where those were not what switching off again will make of them,
//! they are journaled too, and put back after it ([`Change::Sysctl`] without `set`).
//!
//! While forwarding is on, the host forwards for everybody whom its firewall lets, as any router does. Our own
//! rules ([`crate::io::nft`]) speak of our tunnel only.
//!
//! # Two servers on one host
//!
//! Each server claims what it needs. What is claimed by another when a server leaves stays as it is; whoever leaves
//! last puts back the value from before the first, which later ones take over from the claims they find.
//!
//! ```text
//!  A starts: 0 → 1, claims (was 0)      B starts: finds 1 and A's claim, claims (was 0)
//!  A stops:  B still claims it, leaves 1              B stops: nobody else, 1 → 0
//! ```

mod claims;

use std::fs;
use std::io;
use std::path::Path;

use self::claims::{Claim, Facts};
use tracing::warn;

use super::journal::{Change, Journal, JournalError};

pub use self::claims::Turn;
pub(super) use self::claims::is_privileged;
pub(crate) use self::claims::network_cookie;

/// The sysctls this process has claimed; dropping it ends the claims and puts nothing back.
#[derive(Debug, Default)]
pub struct Sysctls {
    claims: Vec<Claim>,
}

impl Sysctls {
    /// Switches forwarding on for the families asked for, each change journaled before it is made.
    ///
    /// `tunnel` is our own interface, which is left out of what is noted.
    ///
    /// # Errors
    /// [`SysctlError::Refused`] names everything that must be set by hand when /proc/sys cannot be written;
    /// [`SysctlError::Missing`] when the kernel has no such family.
    pub fn forward(
        &mut self,
        journal: &mut Journal,
        v4: bool,
        v6: bool,
        tunnel: &str,
    ) -> Result<(), SysctlError> {
        let _turn = Turn::wait();
        let mut facts = self.adoptable(v4, v6)?;
        let mut steps = Vec::new();
        let mut refused = Vec::new();
        for step in wanted(v4, v6, tunnel)? {
            let io_error = |source| SysctlError::Io {
                key: step.key.clone(),
                source,
            };
            let Some(was) = read(&step.key).map_err(io_error)? else {
                continue;
            };
            if let Some(set) = &step.set {
                if *set == was {
                    continue;
                }
                // What cannot be written is found out before anything is changed.
                if let Err(source) = probe(&step.key) {
                    refused.push((format!("{}={set}", step.key.replace('/', ".")), source));
                }
            }
            if facts.iter().all(|known| known.key != step.key) {
                let set = step.set.clone().unwrap_or_else(|| MOVED_ALONG.to_owned());
                facts.push(Facts {
                    key: step.key.clone(),
                    was,
                    set,
                });
            }
            steps.push(step);
        }
        let keys = refused
            .iter()
            .map(|(key, _)| key.as_str())
            .collect::<Vec<_>>()
            .join(" ");
        if let Some((_, source)) = refused.into_iter().next() {
            return Err(SysctlError::Refused { keys, source });
        }
        self.note(journal, facts)?;
        for Step { key, set } in steps {
            if let Some(set) = set {
                write(&key, &set).map_err(|source| SysctlError::Io { key, source })?;
            }
        }
        Ok(())
    }

    /// Has reverse-path filters look at marks: without it, a strict one drops what answers a marked socket, since the
    /// way back is looked up without the mark.
    ///
    /// # Errors
    /// As [`Sysctls::forward`].
    pub fn valid_mark(&mut self, journal: &mut Journal) -> Result<(), SysctlError> {
        let _turn = Turn::wait();
        let Some(was) = read(SRC_VALID_MARK).map_err(failed(SRC_VALID_MARK))? else {
            return Ok(());
        };
        if was == "1" {
            return Ok(());
        }
        probe(SRC_VALID_MARK).map_err(failed(SRC_VALID_MARK))?;
        let key = SRC_VALID_MARK.to_owned();
        let set = "1".to_owned();
        self.note(journal, vec![Facts { key, was, set }])?;
        write(SRC_VALID_MARK, "1").map_err(failed(SRC_VALID_MARK))
    }

    /// Undoes a journaled change of a sysctl: ends our claim, and puts the old value back unless another claims it or
    /// somebody has set it to something else since.
    ///
    /// # Errors
    /// What the file system says; a sysctl that is gone (with its interface) counts as undone.
    pub fn undo(
        &mut self,
        _turn: &Turn,
        key: &str,
        was: &str,
        set: Option<&str>,
    ) -> io::Result<()> {
        // A journal is a file: nothing outside the known keys is written on its word.
        if !is_known_key(key) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.claims.retain(|claim| claim.facts().key != key);
        if claims::of_others(&self.claims)?
            .iter()
            .any(|claim| claim.key == key)
        {
            return Ok(());
        }
        let Some(current) = read(key)? else {
            return Ok(());
        };
        let is_ours = match set {
            Some(set) => current == set,
            // It moved along with another: whatever it became.
            None => true,
        };
        if is_ours && current != was {
            return match write(key, was) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            };
        }
        Ok(())
    }

    /// What other servers have claimed for the families we want, to be taken over: whoever leaves last puts it back.
    fn adoptable(&self, v4: bool, v6: bool) -> Result<Vec<Facts>, SysctlError> {
        let mut others = claims::of_others(&self.claims).map_err(SysctlError::Claims)?;
        others.retain(|claim| {
            if claim.key.starts_with("net/ipv4/") {
                v4
            } else {
                v6
            }
        });
        others.sort_by(|a, b| a.key.cmp(&b.key));
        others.dedup_by(|a, b| a.key == b.key);
        Ok(others)
    }

    /// Journals and claims.
    fn note(&mut self, journal: &mut Journal, mut facts: Vec<Facts>) -> Result<(), SysctlError> {
        // Undone in reverse: the switches first, then what moved along with them.
        facts.sort_by_key(|facts| is_switch(&facts.key));
        let excess = facts.len().saturating_sub(MAX_CLAIMS);
        facts.drain(..excess);
        let changes = facts.iter().map(|Facts { key, was, set }| Change::Sysctl {
            key: key.clone(),
            was: was.clone(),
            set: (set != MOVED_ALONG).then(|| set.clone()),
        });
        journal.record(changes)?;
        for facts in facts {
            self.claims
                .push(Claim::take(facts).map_err(SysctlError::Claims)?);
        }
        Ok(())
    }
}

/// One of the switches that make a host a router, as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// Its name, as sysctl(8) has it.
    pub name: &'static str,
    /// Whether it is on; `None` where this kernel has none.
    pub on: Option<bool>,
    /// Whether this process could write to it.
    pub writable: bool,
}

/// Looks at the switches of these families, and changes nothing.
///
/// # Errors
/// What the file system says.
pub fn switches(v4: bool, v6: bool) -> io::Result<Vec<Switch>> {
    let known = [
        (v4, IP_FORWARD, "net.ipv4.ip_forward"),
        (v6, FORWARDING6, "net.ipv6.conf.all.forwarding"),
    ];
    let wanted = known.into_iter().filter(|(wanted, ..)| *wanted);
    wanted
        .map(|(_, key, name)| {
            Ok(Switch {
                name,
                on: read(key)?.map(|value| value != "0"),
                writable: probe(key).is_ok(),
            })
        })
        .collect()
}

/// One sysctl that is wanted, or that moves along with one.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    key: String,
    set: Option<String>,
}

/// Why the host cannot be made to forward.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SysctlError {
    /// /proc/sys cannot be written, as in most containers.
    #[error(
        "cannot switch on forwarding ({source}): set {keys} on the host, or for a container by `docker run --sysctl …` or the pod's securityContext.sysctls"
    )]
    Refused {
        /// What must be set, as sysctl(8) takes it.
        keys: String,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel does not have it.
    #[error("this kernel has no {key}")]
    Missing {
        /// The sysctl's path below /proc/sys.
        key: String,
    },
    /// Reading or writing failed.
    #[error("cannot use the sysctl {}: {source}", key.replace('/', "."))]
    Io {
        /// The sysctl's path below /proc/sys.
        key: String,
        /// What the system said.
        source: io::Error,
    },
    /// The claims of other servers cannot be read or ours not be made.
    #[error("cannot share sysctls with other servers on this host: {0}")]
    Claims(io::Error),
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// All steps in the order in which they must be taken: what the kernel will move along first, the switch last.
fn wanted(v4: bool, v6: bool, tunnel: &str) -> Result<Vec<Step>, SysctlError> {
    let mut steps = Vec::new();
    for (wanted, switch) in [(v4, IP_FORWARD), (v6, FORWARDING6)] {
        if !wanted {
            continue;
        }
        let Some(value) = read(switch).map_err(failed(switch))? else {
            return Err(SysctlError::Missing {
                key: switch.to_owned(),
            });
        };
        // A switch that is on already moves nothing, and is not ours to switch off.
        if value == "0" {
            let mut along = if switch == IP_FORWARD {
                along_with4(tunnel)?
            } else {
                along_with6(tunnel)?
            };
            if along.len() > MAX_NOTED {
                warn!(
                    sysctls = along.len(),
                    noted = MAX_NOTED,
                    "too many interfaces to put all their sysctls back"
                );
                along.truncate(MAX_NOTED);
            }
            steps.append(&mut along);
        }
        steps.push(Step {
            key: switch.to_owned(),
            set: Some("1".to_owned()),
        });
    }
    Ok(steps)
}

/// What switching IPv4 forwarding on and off again would leave different.
fn along_with4(tunnel: &str) -> Result<Vec<Step>, SysctlError> {
    let mut steps = forwarding_already(CONF4, tunnel)?;
    // Switching off sets it to 1, whatever it was.
    if read(ACCEPT_REDIRECTS)
        .map_err(failed(ACCEPT_REDIRECTS))?
        .as_deref()
        == Some("0")
    {
        steps.push(Step {
            key: ACCEPT_REDIRECTS.to_owned(),
            set: None,
        });
    }
    Ok(steps)
}

/// The same for IPv6, and before it what must be set for the host to keep its own addresses.
fn along_with6(tunnel: &str) -> Result<Vec<Step>, SysctlError> {
    let mut steps = Vec::new();
    for interface in interfaces(CONF6, tunnel).map_err(failed(CONF6))? {
        let key = format!("{CONF6}/{interface}/accept_ra");
        // Ports of a bridge take no part in IPv6 themselves.
        let listens = interface != "default"
            && interface != "lo"
            && !Path::new(&format!("/sys/class/net/{interface}/brport")).exists();
        if listens && read(&key).map_err(failed(&key))?.as_deref() == Some("1") {
            steps.push(Step {
                key,
                set: Some("2".to_owned()),
            });
        }
    }
    steps.append(&mut forwarding_already(CONF6, tunnel)?);
    Ok(steps)
}

/// Interfaces that forward while the switch is off: switching off will end that.
fn forwarding_already(conf: &str, tunnel: &str) -> Result<Vec<Step>, SysctlError> {
    let mut steps = Vec::new();
    for interface in interfaces(conf, tunnel).map_err(failed(conf))? {
        let key = format!("{conf}/{interface}/forwarding");
        if read(&key)
            .map_err(failed(&key))?
            .is_some_and(|value| value != "0")
        {
            steps.push(Step { key, set: None });
        }
    }
    Ok(steps)
}

fn failed(key: &str) -> impl FnOnce(io::Error) -> SysctlError {
    let key = key.to_owned();
    move |source| SysctlError::Io { key, source }
}

/// The interfaces with a directory of sysctls, `default` among them; not `all`, and not the tunnel's.
fn interfaces(conf: &str, tunnel: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(Path::new(ROOT).join(conf))? {
        if let Ok(name) = entry?.file_name().into_string()
            && name != "all"
            && name != tunnel
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Sets a sysctl of our own interface, which ends with it and needs no journal.
///
/// # Errors
/// What the file system says.
pub fn set_own(family: Family, interface: &str, name: &str, value: &str) -> io::Result<()> {
    let conf = match family {
        Family::V4 => CONF4,
        Family::V6 => CONF6,
    };
    let key = format!("{conf}/{interface}/{name}");
    if read(&key)?.as_deref() == Some(value) {
        Ok(())
    } else {
        write(&key, value)
    }
}

/// Says whether the host has IPv6: built in, and not switched off for all interfaces.
pub fn has_ipv6() -> bool {
    matches!(read("net/ipv6/conf/all/disable_ipv6"), Ok(Some(value)) if value == "0")
}

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Whether it is one of the two that turn forwarding on.
fn is_switch(key: &str) -> bool {
    key == IP_FORWARD || key == FORWARDING6
}

/// Whether a path below /proc/sys is one that this program may change and put back.
fn is_known_key(key: &str) -> bool {
    if key == IP_FORWARD {
        return true;
    }
    let mut parts = key.split('/');
    let (net, family, conf) = (parts.next(), parts.next(), parts.next());
    let (interface, name, rest) = (parts.next(), parts.next(), parts.next());
    let known_name = matches!(
        (family, name),
        (
            Some("ipv4"),
            Some("forwarding" | "accept_redirects" | "src_valid_mark")
        ) | (Some("ipv6"), Some("forwarding" | "accept_ra"))
    );
    let plain = |name: &str| {
        !name.is_empty() && name != "." && name != ".." && !name.contains(char::is_whitespace)
    };
    net == Some("net")
        && conf == Some("conf")
        && known_name
        && rest.is_none()
        && interface.is_some_and(plain)
}

/// The value of a sysctl: `None` when it does not exist.
fn read(key: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(Path::new(ROOT).join(key)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // The directory of an interface that is going away.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

fn write(key: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new(ROOT).join(key), value)
}

/// Opens a sysctl for writing and writes nothing.
fn probe(key: &str) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(Path::new(ROOT).join(key))
        .map(drop)
}

const ROOT: &str = "/proc/sys";
const CONF4: &str = "net/ipv4/conf";
const CONF6: &str = "net/ipv6/conf";
const IP_FORWARD: &str = "net/ipv4/ip_forward";
const FORWARDING6: &str = "net/ipv6/conf/all/forwarding";
const SRC_VALID_MARK: &str = "net/ipv4/conf/all/src_valid_mark";
const ACCEPT_REDIRECTS: &str = "net/ipv4/conf/all/accept_redirects";

/// What a claim says in place of a value for a sysctl that moves along with another.
const MOVED_ALONG: &str = "-";

/// The most sysctls one server claims: each costs a descriptor.
const MAX_CLAIMS: usize = 256;

/// The most interfaces of one family whose sysctls are noted: hosts of containers have thousands, which are ports of
/// bridges. Twice this and the switches stay below the most claims.
const MAX_NOTED: usize = 120;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_keys_in_use_may_be_put_back() {
        for key in [
            "net/ipv4/ip_forward",
            "net/ipv4/conf/eth0/forwarding",
            "net/ipv4/conf/all/accept_redirects",
            "net/ipv4/conf/all/src_valid_mark",
            "net/ipv6/conf/all/forwarding",
            "net/ipv6/conf/eth0.100/accept_ra",
        ] {
            assert!(is_known_key(key), "{key}");
        }
        for key in [
            "",
            "kernel/core_pattern",
            "net/ipv4/ip_forward/",
            "/net/ipv4/ip_forward",
            "net/ipv4/conf/../forwarding",
            "net/ipv4/conf//forwarding",
            "net/ipv4/conf/eth0/rp_filter",
            "net/ipv4/conf/eth0/accept_ra",
            "net/ipv6/conf/eth0/accept_redirects",
            "net/ipv6/conf/a/b/forwarding",
            "net/ipv6/conf/a b/forwarding",
            "net/core/conf/eth0/forwarding",
        ] {
            assert!(!is_known_key(key), "{key}");
        }
    }

    #[test]
    fn key_that_is_not_ours_is_refused_whatever_the_journal_says() {
        let error = Sysctls::default()
            .undo(&Turn::wait(), "kernel/hostname", "x", None)
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn sysctl_of_an_interface_that_is_gone_counts_as_put_back() {
        let key = "net/ipv6/conf/adit-gone0/accept_ra";
        Sysctls::default()
            .undo(&Turn::wait(), key, "1", Some("2"))
            .unwrap();
    }

    #[test]
    fn switch_comes_after_what_it_moves() {
        let steps = wanted(true, true, "adit0").unwrap();
        let position = |key| steps.iter().position(|step| step.key == key);
        let of = |family: &str| steps.iter().rposition(|step| step.key.starts_with(family));
        assert_eq!(position(IP_FORWARD), of("net/ipv4/"));
        assert_eq!(position(FORWARDING6), of("net/ipv6/"));
    }
}
