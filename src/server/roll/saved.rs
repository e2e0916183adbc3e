//! The text in which the roll outlives the process: JSON, with a version.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::table::{Enrolled, Former, Invitation, InvitationState, Roll};
use crate::proto::PublicKey;
use crate::wire::{InvitationId, is_client_name};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    clients: Vec<SavedClient>,
    invitations: Vec<SavedInvitation>,
    denied: Vec<SavedDenial>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    revoked: Vec<SavedFormer>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedClient {
    name: String,
    public_key: String,
    /// Seconds since 1970, as all times here.
    since: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedInvitation {
    name: String,
    id: String,
    token_sha256: String,
    made: u64,
    ends: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    used_by: Option<String>,
    #[serde(default, skip_serializing_if = "is_false")]
    withdrawn: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedFormer {
    name: String,
    public_key: String,
    since: u64,
    revoked: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedDenial {
    public_key: String,
    since: u64,
}

/// Writes a roll.
pub(super) fn write(roll: &Roll) -> Vec<u8> {
    let clients = roll.clients.iter().map(|(key, client)| SavedClient {
        name: client.name.clone(),
        public_key: key.to_string(),
        since: seconds(client.since),
    });
    let invitations = (roll.invitations.iter()).map(|(id, invitation)| SavedInvitation {
        name: invitation.name.clone(),
        id: STANDARD.encode(id.0),
        token_sha256: STANDARD.encode(invitation.hash),
        made: seconds(invitation.made),
        ends: seconds(invitation.ends),
        used_by: match invitation.state {
            InvitationState::Used { by } => Some(by.to_string()),
            InvitationState::Open | InvitationState::Withdrawn => None,
        },
        withdrawn: invitation.state == InvitationState::Withdrawn,
    });
    let denied = roll.denied.iter().map(|(key, since)| SavedDenial {
        public_key: key.to_string(),
        since: seconds(*since),
    });
    let revoked = roll.revoked.iter().map(|(key, former)| SavedFormer {
        name: former.was.name.clone(),
        public_key: key.to_string(),
        since: seconds(former.was.since),
        revoked: seconds(former.revoked),
    });
    // Neither strings nor numbers can fail to be written into memory.
    let mut bytes = serde_json::to_vec_pretty(&Saved {
        version: VERSION,
        clients: clients.collect(),
        invitations: invitations.collect(),
        denied: denied.collect(),
        revoked: revoked.collect(),
    })
    .unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Reads what [`write`] wrote.
pub(super) fn read(bytes: &[u8]) -> Result<Roll, RestoreError> {
    let saved: Saved = serde_json::from_slice(bytes).map_err(RestoreError::Malformed)?;
    if saved.version != VERSION {
        return Err(RestoreError::Version {
            found: saved.version,
        });
    }
    let mut clients = BTreeMap::new();
    for client in saved.clients {
        let key = key(&client.public_key)?;
        let since = time(client.since)?;
        let name = name(client.name)?;
        clients.insert(key, Enrolled { name, since });
    }
    let mut invitations = BTreeMap::new();
    for saved in saved.invitations {
        let state = match (&saved.used_by, saved.withdrawn) {
            (Some(by), _) => InvitationState::Used { by: key(by)? },
            (None, true) => InvitationState::Withdrawn,
            (None, false) => InvitationState::Open,
        };
        let invitation = Invitation {
            name: name(saved.name)?,
            hash: bytes_of(&saved.token_sha256)?,
            made: time(saved.made)?,
            ends: time(saved.ends)?,
            state,
        };
        invitations.insert(InvitationId(bytes_of(&saved.id)?), invitation);
    }
    let mut denied = BTreeMap::new();
    for denial in saved.denied {
        denied.insert(key(&denial.public_key)?, time(denial.since)?);
    }
    let mut revoked = BTreeMap::new();
    for former in saved.revoked {
        let was = Enrolled {
            name: name(former.name)?,
            since: time(former.since)?,
        };
        let key = key(&former.public_key)?;
        let former = Former {
            was,
            revoked: time(former.revoked)?,
        };
        revoked.insert(key, former);
    }
    Ok(Roll {
        invitations,
        clients,
        denied,
        revoked,
    })
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn time(seconds: u64) -> Result<SystemTime, RestoreError> {
    // A time that cannot be reckoned with is none; a thousand centuries are enough.
    let fits = seconds < 1 << 42;
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    time.filter(|_| fits).ok_or_else(|| RestoreError::Value {
        found: seconds.to_string(),
        right: "seconds since 1970",
    })
}

fn key(text: &str) -> Result<PublicKey, RestoreError> {
    text.parse().map_err(|_| RestoreError::Value {
        found: text.to_owned(),
        right: "a public key",
    })
}

fn name(text: String) -> Result<String, RestoreError> {
    if is_client_name(&text) {
        Ok(text)
    } else {
        Err(RestoreError::Value {
            found: text,
            right: "a client's name",
        })
    }
}

fn bytes_of<const N: usize>(text: &str) -> Result<[u8; N], RestoreError> {
    let decoded = STANDARD.decode(text).ok();
    decoded
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| RestoreError::Value {
            found: text.to_owned(),
            right: "base64 of the right length",
        })
}

/// By reference, as serde calls it.
fn is_false(value: &bool) -> bool {
    !*value
}

/// Why a saved roll cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// It is no JSON, or not of this form.
    #[error("{0}")]
    Malformed(#[source] serde_json::Error),
    /// It was written by a later program.
    #[error("it is of version {found}, and this program reads version {VERSION}")]
    Version {
        /// The version found.
        found: u32,
    },
    /// A value is none.
    #[error("`{found}` is not {right}")]
    Value {
        /// What stands there.
        found: String,
        /// What would be right.
        right: &'static str,
    },
}

const VERSION: u32 = 1;
