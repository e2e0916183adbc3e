//! The roll in memory.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use subtle::ConstantTimeEq as _;
use thiserror::Error;

use super::saved::{self, RestoreError};
use crate::proto::{PublicKey, TOKEN_HASH_LEN, invitation_id, token_hash};
use crate::wire::{InvitationId, Token, Verdict, is_client_name};

/// Invitations, the clients they have made, and keys that are denied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roll {
    pub(super) invitations: BTreeMap<InvitationId, Invitation>,
    pub(super) clients: BTreeMap<PublicKey, Enrolled>,
    /// Since when.
    pub(super) denied: BTreeMap<PublicKey, SystemTime>,
    pub(super) revoked: BTreeMap<PublicKey, Former>,
}

/// An invitation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// The name that its client will have.
    pub name: String,
    /// What its token is known by.
    pub(super) hash: [u8; TOKEN_HASH_LEN],
    /// When it was made.
    pub made: SystemTime,
    /// From when on it is good for nothing.
    pub ends: SystemTime,
    /// What has become of it.
    pub state: InvitationState,
}

/// What has become of an invitation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvitationState {
    /// Nothing: it is good until it ends.
    Open,
    /// It has made a client.
    Used {
        /// The client's key.
        by: PublicKey,
    },
    /// It was taken back, or another took its place.
    Withdrawn,
}

/// A client that an invitation has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// Its name.
    pub name: String,
    /// Since when it is a client.
    pub since: SystemTime,
}

/// What is kept of a client that had enrolled and was revoked, so that it can be let in again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Former {
    /// What it was; its name may be another's by now.
    pub was: Enrolled,
    /// When it was revoked.
    pub revoked: SystemTime,
}

/// How a key may be a client's by its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is to be entered under this name.
    New(String),
    /// It was entered before, and has this name now.
    Again(String),
}

impl Invitation {
    /// Whether a key could be enrolled by it now.
    pub fn is_open(&self, now: SystemTime) -> bool {
        self.state == InvitationState::Open && now < self.ends
    }
}

impl Roll {
    /// Reads what [`Roll::save`] wrote.
    ///
    /// # Errors
    /// [`RestoreError`]: it makes no sense, or is of another version.
    pub fn restore(bytes: &[u8]) -> Result<Self, RestoreError> {
        saved::read(bytes)
    }

    /// Writes all of it.
    pub fn save(&self) -> Vec<u8> {
        saved::write(self)
    }

    /// Invites whoever has `token` to become the client `name`, for as long as `lasts`. An open invitation of that name is
    /// withdrawn; whether there was one is returned.
    ///
    /// # Errors
    /// [`InviteError`]; nothing has changed then.
    pub fn invite(
        &mut self,
        now: SystemTime,
        name: &str,
        lasts: Duration,
        token: &Token,
    ) -> Result<bool, InviteError> {
        if !is_client_name(name) {
            return Err(InviteError::Name {
                found: name.to_owned(),
            });
        }
        if !(SHORTEST..=LONGEST).contains(&lasts) {
            return Err(InviteError::Lasts);
        }
        if self.clients.values().any(|client| client.name == name) {
            return Err(InviteError::Taken {
                name: name.to_owned(),
            });
        }
        if self.clients.len() >= MAX_ENROLLED {
            return Err(InviteError::TooManyClients);
        }
        self.forget_spent(now);
        let replaced = self.withdraw(now, name);
        if self.invitations.len() >= MAX_INVITATIONS && !self.forget_oldest_spent(now) {
            return Err(InviteError::TooMany);
        }
        let invitation = Invitation {
            name: name.to_owned(),
            hash: token_hash(token),
            made: now,
            ends: now + lasts,
            state: InvitationState::Open,
        };
        self.invitations.insert(invitation_id(token), invitation);
        Ok(replaced)
    }

    /// Withdraws the open invitation of `name`; whether there was one.
    pub fn withdraw(&mut self, now: SystemTime, name: &str) -> bool {
        let mut any = false;
        for invitation in self.invitations.values_mut() {
            if invitation.name == name && invitation.is_open(now) {
                invitation.state = InvitationState::Withdrawn;
                any = true;
            }
        }
        any
    }

    /// Whether an invitation is known, however it stands: who names it is told so.
    pub fn knows(&self, id: &InvitationId) -> bool {
        self.invitations.contains_key(id)
    }

    /// Judges a guest's token, and changes nothing. `is_client` tells of the keys that the configuration lists.
    ///
    /// # Errors
    /// Why its key becomes no client's.
    pub fn judge(
        &self,
        now: SystemTime,
        id: &InvitationId,
        token: &Token,
        key: &PublicKey,
        is_client: bool,
    ) -> Result<Admission, Verdict> {
        // It may have been forgotten after the handshake.
        let invitation = self.invitations.get(id).ok_or(Verdict::Late)?;
        // Before anything else is said: the id was told to the server alone, but it is no secret to rely on.
        if !bool::from(invitation.hash.ct_eq(&token_hash(token))) {
            return Err(Verdict::WrongToken);
        }
        match invitation.state {
            InvitationState::Used { by } if by == *key => {
                // If it was revoked since, it is as anybody else.
                let client = self.clients.get(key).ok_or(Verdict::Used)?;
                return Ok(Admission::Again(client.name.clone()));
            }
            InvitationState::Used { .. } => return Err(Verdict::Used),
            InvitationState::Withdrawn => return Err(Verdict::Withdrawn),
            InvitationState::Open if now >= invitation.ends => return Err(Verdict::Late),
            InvitationState::Open => {}
        }
        if is_client || self.clients.contains_key(key) {
            return Err(Verdict::KnownKey);
        }
        if self.clients.len() >= MAX_ENROLLED {
            return Err(Verdict::Full);
        }
        Ok(Admission::New(invitation.name.clone()))
    }

    /// Uses an invitation up and enters a key as its client, as [`Roll::judge`] has said that it may.
    pub fn enter(&mut self, now: SystemTime, id: &InvitationId, key: PublicKey) {
        if let Some(invitation) = self.invitations.get_mut(id) {
            invitation.state = InvitationState::Used { by: key };
            let name = invitation.name.clone();
            self.clients.insert(key, Enrolled { name, since: now });
            self.denied.remove(&key);
            self.revoked.remove(&key);
        }
    }

    /// Takes a client out that has enrolled; whether there was one with this key. What it was stays on record, so that it
    /// can be let in again; of [`MAX_REVOKED`] the one that was revoked first is forgotten.
    pub fn revoke(&mut self, now: SystemTime, key: &PublicKey) -> bool {
        let Some(was) = self.clients.remove(key) else {
            return false;
        };
        if self.revoked.len() >= MAX_REVOKED {
            let oldest = self.revoked.iter().min_by_key(|(_, it)| it.revoked);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.revoked.remove(&oldest);
            }
        }
        let revoked = now;
        self.revoked.insert(*key, Former { was, revoked });
        true
    }

    /// Makes a client again what it was before it was revoked.
    ///
    /// # Errors
    /// [`ReadmitError`]; nothing has changed then.
    pub fn readmit(&mut self, now: SystemTime, key: &PublicKey) -> Result<(), ReadmitError> {
        let former = self.revoked.get(key).ok_or(ReadmitError::Gone)?;
        let was = former.was.clone();
        if self.clients.values().any(|client| client.name == was.name) {
            return Err(ReadmitError::taken(&was.name, key));
        }
        if self.invited(now, &was.name) {
            return Err(ReadmitError::Invited { name: was.name });
        }
        if self.clients.len() >= MAX_ENROLLED {
            return Err(ReadmitError::TooManyClients);
        }
        self.revoked.remove(key);
        self.clients.insert(*key, was);
        Ok(())
    }

    /// Denies a key that the configuration lists; whether that is news.
    pub fn deny(&mut self, now: SystemTime, key: PublicKey) -> bool {
        let news = !self.denied.contains_key(&key);
        self.denied.entry(key).or_insert(now);
        news
    }

    /// Denies a key no longer; whether it was.
    pub fn allow(&mut self, key: &PublicKey) -> bool {
        self.denied.remove(key).is_some()
    }

    /// Whether a key is denied.
    pub fn denies(&self, key: &PublicKey) -> bool {
        self.denied.contains_key(key)
    }

    /// Gives the client with this key another name, one that was revoked too.
    ///
    /// # Errors
    /// [`RenameError`]; nothing has changed then.
    pub fn rename(
        &mut self,
        now: SystemTime,
        key: &PublicKey,
        name: &str,
    ) -> Result<(), RenameError> {
        if !is_client_name(name) {
            return Err(RenameError::Name {
                found: name.to_owned(),
            });
        }
        let others = self.clients.iter().filter(|(other, _)| *other != key);
        if others.into_iter().any(|(_, client)| client.name == name) {
            return Err(RenameError::Taken {
                name: name.to_owned(),
            });
        }
        if self.invited(now, name) {
            return Err(RenameError::Invited {
                name: name.to_owned(),
            });
        }
        let former = (self.revoked.get_mut(key)).map(|former| &mut former.was);
        let client = self.clients.get_mut(key).or(former);
        name.clone_into(&mut client.ok_or(RenameError::Gone)?.name);
        Ok(())
    }

    /// The keys that are denied.
    pub fn denied(&self) -> impl Iterator<Item = &PublicKey> {
        self.denied.keys()
    }

    /// The client with this key.
    pub fn client(&self, key: &PublicKey) -> Option<&Enrolled> {
        self.clients.get(key)
    }

    /// The clients that have enrolled, in the order of their keys.
    pub fn clients(&self) -> impl Iterator<Item = (&PublicKey, &Enrolled)> {
        self.clients.iter()
    }

    /// What is kept of those that had enrolled and were revoked, in the order of their keys.
    pub fn revoked(&self) -> impl Iterator<Item = (&PublicKey, &Former)> {
        self.revoked.iter()
    }

    /// Whether a client with this key had enrolled and was revoked.
    pub fn remembers(&self, key: &PublicKey) -> bool {
        self.revoked.contains_key(key)
    }

    /// The invitations there are, spent ones among them.
    pub fn invitations(&self) -> impl Iterator<Item = &Invitation> {
        self.invitations.values()
    }

    fn invited(&self, now: SystemTime, name: &str) -> bool {
        let mut invitations = self.invitations.values();
        invitations.any(|invitation| invitation.name == name && invitation.is_open(now))
    }

    /// Forgets what is spent for so long that nobody comes with it any more.
    fn forget_spent(&mut self, now: SystemTime) {
        self.invitations
            .retain(|_, invitation| invitation.is_open(now) || now < invitation.ends + KEPT);
    }

    fn forget_oldest_spent(&mut self, now: SystemTime) -> bool {
        let spent = self.invitations.iter().filter(|(_, it)| !it.is_open(now));
        let oldest = spent.min_by_key(|(_, it)| it.made).map(|(id, _)| *id);
        oldest.is_some_and(|id| self.invitations.remove(&id).is_some())
    }
}

/// Why nobody is invited.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InviteError {
    /// The name is none.
    #[error(
        "`{found}` is not a client's name: write 1 to {} letters, digits, or any of - _ . @",
        crate::wire::MAX_NAME_LEN
    )]
    Name {
        /// The text.
        found: String,
    },
    /// A client has the name.
    #[error(
        "there is a client `{name}` already: choose another name, or `adit clients revoke {name}` first"
    )]
    Taken {
        /// The name.
        name: String,
    },
    /// It would end too soon or too late.
    #[error("an invitation lasts from 1 minute to 30 days")]
    Lasts,
    /// As many are open as there may be.
    #[error("{MAX_INVITATIONS} invitations are open: withdraw some (adit invite --withdraw NAME)")]
    TooMany,
    /// As many clients have enrolled as there may be.
    #[error("{MAX_ENROLLED} clients have enrolled, and the server keeps no more: revoke some")]
    TooManyClients,
}

/// Why a client keeps its name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RenameError {
    /// The new name is none.
    #[error(
        "`{found}` is not a client's name: write 1 to {} letters, digits, or any of - _ . @",
        crate::wire::MAX_NAME_LEN
    )]
    Name {
        /// The text.
        found: String,
    },
    /// Another client has the new name.
    #[error("there is a client `{name}` already: choose another name")]
    Taken {
        /// The name.
        name: String,
    },
    /// Somebody is invited by the new name.
    #[error("somebody is invited as `{name}`: choose another name, or withdraw that invitation")]
    Invited {
        /// The name.
        name: String,
    },
    /// The client has gone meanwhile.
    #[error("there is no such client any more")]
    Gone,
}

/// Why a client that was revoked stays out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReadmitError {
    /// Another client has its name by now.
    #[error(
        "another client is `{name}` by now: give the revoked one another name first (adit clients rename {key} NAME), then restore it by that"
    )]
    Taken {
        /// The name.
        name: String,
        /// The key of the client that was revoked.
        key: PublicKey,
    },
    /// Somebody else is invited by its name.
    #[error(
        "somebody is invited as `{name}`: withdraw that invitation first (adit invite --withdraw {name})"
    )]
    Invited {
        /// The name.
        name: String,
    },
    /// As many clients have enrolled as there may be.
    #[error("{MAX_ENROLLED} clients have enrolled, and the server keeps no more: revoke some")]
    TooManyClients,
    /// It is not on record.
    #[error("there is no such client any more")]
    Gone,
}

impl ReadmitError {
    /// Says that another client has the name of the one with this key.
    pub fn taken(name: &str, key: &PublicKey) -> Self {
        Self::Taken {
            name: name.to_owned(),
            key: *key,
        }
    }
}

/// How long a spent invitation is remembered after its end, to tell whoever comes with it.
pub const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The shortest time that an invitation may last: to paste a link takes some seconds.
pub const SHORTEST: Duration = Duration::from_secs(60);

/// The longest: a link is a secret, and secrets that lie about are found.
pub const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// Invitations that are kept, open and spent: a school's worth, 256 KiB.
pub const MAX_INVITATIONS: usize = 1024;

/// Clients that had enrolled, were revoked and are on record: as many as are revoked in years by hand, 128 KiB.
pub const MAX_REVOKED: usize = 1024;

/// Clients that may have enrolled: more than the addresses of most pools, 8 MiB.
pub const MAX_ENROLLED: usize = 65_536;
