//! The text in which leases outlive the process: JSON, with a version.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::table::{Instance, Lease, Owner};

/// One lease as it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedLease {
    pub(super) key: String,
    pub(super) instance: String,
    pub(super) address: Option<Ipv4Addr>,
    pub(super) address6: Option<Ipv6Addr>,
    /// Seconds since 1970.
    pub(super) last_used: u64,
    /// Whether a session held it.
    pub(super) held: bool,
    /// Whether its instance said goodbye.
    #[serde(default)]
    pub(super) left: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    leases: Vec<SavedLease>,
}

impl SavedLease {
    /// Writes one lease, held by nobody.
    pub(super) fn new(owner: &Owner, lease: &Lease, last_used: SystemTime) -> Self {
        Self {
            key: owner.key.to_string(),
            instance: format!("{:016x}", u64::from_be_bytes(owner.instance)),
            address: lease.v4,
            address6: lease.v6,
            last_used: last_used
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
            held: false,
            left: false,
        }
    }

    /// Whom it belongs to; `None` where the text is no key or no instance.
    pub(super) fn owner(&self) -> Option<Owner> {
        Some(Owner {
            key: self.key.parse().ok()?,
            instance: instance(&self.instance)?,
        })
    }

    /// The addresses.
    pub(super) fn lease(&self) -> Lease {
        Lease {
            v4: self.address,
            v6: self.address6,
        }
    }

    /// When it was used last; `None` for a time that cannot be.
    pub(super) fn last_used(&self) -> Option<SystemTime> {
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(self.last_used))
    }
}

/// Writes leases, in the order of their owners.
pub(super) fn write(mut leases: Vec<SavedLease>) -> Vec<u8> {
    leases.sort_by(|a, b| (&a.key, &a.instance).cmp(&(&b.key, &b.instance)));
    // Neither strings nor numbers can fail to be written into memory.
    let mut bytes = serde_json::to_vec_pretty(&Saved {
        version: VERSION,
        leases,
    })
    .unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Reads what [`write`] wrote.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<SavedLease>, RestoreError> {
    let saved: Saved = serde_json::from_slice(bytes).map_err(|error| RestoreError::Malformed {
        line: error.line(),
        column: error.column(),
    })?;
    if saved.version == VERSION {
        Ok(saved.leases)
    } else {
        Err(RestoreError::Version {
            found: saved.version,
        })
    }
}

fn instance(text: &str) -> Option<Instance> {
    let plain = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain {
        u64::from_str_radix(text, 16).ok().map(u64::to_be_bytes)
    } else {
        None
    }
}

/// Why saved leases cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The bytes are not JSON of the right shape.
    #[error("not a list of leases (line {line}, column {column})")]
    Malformed {
        /// The line of the mistake, counted from 1.
        line: usize,
        /// The column of the mistake, counted from 1.
        column: usize,
    },
    /// Another version of the program wrote them.
    #[error("leases of version {found}, where this program knows version {VERSION}")]
    Version {
        /// The version found.
        found: u32,
    },
}

/// The version of the saved state.
const VERSION: u32 = 1;
