//! The forward policy of the old iptables, which nftables does not list: asked by getsockopt(2), as
//! `iptables-legacy` does.
//!
//! ```text
//!  IPT_SO_GET_INFO     name(32) valid_hooks(4) hook_entry(5 × 4) underflow(5 × 4) num_entries(4) size(4)
//!  IPT_SO_GET_ENTRIES  name(32) size(4) padding(4) entries …
//!  entry               match … target_offset(2) next_offset(2) … target: size(2) name(29) revision(1) verdict(4)
//! ```
//!
//! `underflow` of a hook is where the entry of its policy is. Numbers are in host byte order. Source:
//! linux/netfilter_ipv4/ip_tables.h, ip6_tables.h and netfilter/x_tables.h.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use socket2::{Domain, Socket, Type};

/// The two families, which differ in where things are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Legacy {
    V4,
    V6,
}

impl Legacy {
    /// Whether the forward policy is to drop, and no rule accepts what comes in by `interface`.
    ///
    /// # Errors
    /// What the kernel says: `EPERM` without CAP_NET_ADMIN.
    pub(super) fn drops(self, interface: &str) -> io::Result<bool> {
        // Asking for a table makes it: only one that is there is asked for. Whoever may not read the list learns
        // nothing, and that is no error.
        let list = match self {
            Self::V4 => "/proc/thread-self/net/ip_tables_names",
            Self::V6 => "/proc/thread-self/net/ip6_tables_names",
        };
        let Ok(names) = fs::read_to_string(list) else {
            return Ok(false);
        };
        if !names.lines().any(|name| name == TABLE) {
            return Ok(false);
        }
        let domain = match self {
            Self::V4 => Domain::IPV4,
            Self::V6 => Domain::IPV6,
        };
        let socket = Socket::new(domain, Type::DGRAM, None)?;
        let mut info = vec![0; INFO_LEN];
        info[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
        self.ask(&socket, GET_INFO, &mut info)?;
        let size = number(&info, INFO_SIZE).unwrap_or_default();
        if size > MAX_SIZE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut entries = vec![0; ENTRIES_HEADER + size as usize];
        entries[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
        entries[TABLE_NAME..TABLE_NAME + 4].copy_from_slice(&size.to_ne_bytes());
        self.ask(&socket, GET_ENTRIES, &mut entries)?;
        let policy = number(&info, INFO_UNDERFLOW_FORWARD).unwrap_or_default();
        let entries = entries.get(ENTRIES_HEADER..).unwrap_or_default();
        Ok(self.judge(policy as usize, entries, interface))
    }

    /// The program that keeps these rules.
    pub(super) fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables-legacy",
            Self::V6 => "ip6tables-legacy",
        }
    }

    fn judge(self, policy: usize, entries: &[u8], interface: &str) -> bool {
        let drops = entries.get(policy..).and_then(|entry| self.verdict(entry)) == Some(DROP);
        drops && !self.lets_in(entries, interface)
    }

    /// Whether some entry accepts what comes in by the interface, or hands it to a chain.
    fn lets_in(self, mut entries: &[u8], interface: &str) -> bool {
        let (name_at, next_at) = match self {
            Self::V4 => (V4_INPUT_NAME, V4_TARGET_OFFSET + 2),
            Self::V6 => (V6_INPUT_NAME, V6_TARGET_OFFSET + 2),
        };
        while let Some(next) = half(entries, next_at) {
            let name = entries
                .get(name_at..name_at + libc::IFNAMSIZ)
                .unwrap_or_default();
            let end = name
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(name.len());
            let is_ours = name.get(..end) == Some(interface.as_bytes());
            if is_ours
                && self
                    .verdict(entries)
                    .is_some_and(|verdict| verdict == ACCEPT || verdict >= 0)
            {
                return true;
            }
            // An entry that does not lead on would be read for ever.
            if next == 0 {
                return false;
            }
            entries = entries.get(usize::from(next)..).unwrap_or_default();
        }
        false
    }

    /// The verdict of an entry with a standard target; none for any other.
    fn verdict(self, entry: &[u8]) -> Option<i32> {
        let at = match self {
            Self::V4 => V4_TARGET_OFFSET,
            Self::V6 => V6_TARGET_OFFSET,
        };
        let target = entry.get(usize::from(half(entry, at)?)..)?;
        // The standard target has no name.
        let is_standard = target.get(2) == Some(&0);
        let verdict = target.get(TARGET_VERDICT..)?.first_chunk::<4>()?;
        is_standard.then_some(i32::from_ne_bytes(*verdict))
    }

    fn ask(self, socket: &Socket, option: libc::c_int, bytes: &mut [u8]) -> io::Result<()> {
        let level = match self {
            Self::V4 => libc::IPPROTO_IP,
            Self::V6 => libc::IPPROTO_IPV6,
        };
        let mut length = bytes.len() as libc::socklen_t;
        // SAFETY: the socket is open, and the pointers are to live bytes and to their number.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                level,
                option,
                bytes.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

const TABLE: &str = "filter";
/// Bytes of a table's name (`XT_TABLE_MAXNAMELEN`).
const TABLE_NAME: usize = 32;

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;

const INFO_LEN: usize = 84;
/// Hook 2 (`NF_INET_FORWARD`) of `underflow`.
const INFO_UNDERFLOW_FORWARD: usize = 32 + 4 + 20 + 2 * 4;
const INFO_SIZE: usize = 80;
const ENTRIES_HEADER: usize = 40;

const V4_INPUT_NAME: usize = 16;
const V4_TARGET_OFFSET: usize = 88;
const V6_INPUT_NAME: usize = 64;
const V6_TARGET_OFFSET: usize = 140;
const TARGET_VERDICT: usize = 32;

/// Standard verdicts are `-NF_x - 1`; numbers from 0 on are chains.
const DROP: i32 = -1;
const ACCEPT: i32 = -2;

/// Some hundred thousand rules.
const MAX_SIZE: u32 = 64 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(family: Legacy, input: &str, target: &str, verdict: i32) -> Vec<u8> {
        let (length, name_at, target_at) = match family {
            Legacy::V4 => (112_u16, V4_INPUT_NAME, V4_TARGET_OFFSET),
            Legacy::V6 => (168, V6_INPUT_NAME, V6_TARGET_OFFSET),
        };
        let next = length + 40;
        let mut bytes = vec![0; usize::from(next)];
        bytes[name_at..name_at + input.len()].copy_from_slice(input.as_bytes());
        bytes[target_at..target_at + 2].copy_from_slice(&length.to_ne_bytes());
        bytes[target_at + 2..target_at + 4].copy_from_slice(&next.to_ne_bytes());
        let at = usize::from(length);
        bytes[at + 2..at + 2 + target.len()].copy_from_slice(target.as_bytes());
        bytes[at + 32..at + 36].copy_from_slice(&verdict.to_ne_bytes());
        bytes
    }

    #[test]
    fn policy_to_drop_is_an_obstacle_unless_a_rule_accepts_the_interface() {
        for family in [Legacy::V4, Legacy::V6] {
            let judge = |rules: &[Vec<u8>], policy| {
                let mut entries = rules.concat();
                let at = entries.len();
                entries.extend(entry(family, "", "", policy));
                family.judge(at, &entries, "adit0")
            };
            assert!(judge(&[], DROP));
            assert!(!judge(&[], ACCEPT));
            assert!(judge(&[entry(family, "adit01", "", ACCEPT)], DROP));
            assert!(judge(&[entry(family, "adit0", "", DROP)], DROP));
            assert!(judge(&[entry(family, "adit0", "LOG", 0)], DROP));
            let others = entry(family, "eth0", "", ACCEPT);
            assert!(!judge(
                &[others.clone(), entry(family, "adit0", "", ACCEPT)],
                DROP
            ));
            assert!(!judge(&[others, entry(family, "adit0", "", 400)], DROP));
        }
    }

    proptest! {
        #[test]
        fn any_entries_are_judged_without_panic(policy in 0_usize..300, entries: Vec<u8>) {
            Legacy::V4.judge(policy, &entries, "adit0");
            Legacy::V6.judge(policy, &entries, "adit0");
        }
    }
}
