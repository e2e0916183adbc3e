//! Who is invited, who has enrolled and who is denied, over restarts.
//!
//! # Theory of operation
//!
//! The configuration is the operator's file and is only read. What changes while the server runs is the server's own: the
//! [`Roll`], kept in the state folder as `clients.json`. Both together make the table of [`Peers`], which handshakes ask:
//!
//! ```text
//!  configuration ──────────────────────▶ Peers ◀── handshakes
//!  clients.json ──▶ Roll ──▶ Enrolment ──┘  ▲
//!                                │          └── clients.revoke, clients.restore, clients.rename
//!                                └── guests: which invitations are known, and whether a token is right
//! ```
//!
//! Every change of the roll is made on a copy, written to the disk, whole or not at all, and only then put in force: what a
//! client or an operator has been told outlives a crash, and what could not be written has not happened. A client of the
//! configuration that is revoked stays listed there, and is denied here; one that has enrolled leaves the table, and is on
//! record, so that both can be restored.
//!
//! # Limits
//!
//! Those of the roll. A change writes some kilobytes and waits for the disk on the thread that makes it; changes come from
//! the control socket, and from guests that have a valid token, once each.

use std::io::{self, Read as _};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tracing::{error, info};

use super::peers::{Origin, Peer, PeerError, Peers};
use super::roll::{
    Admission, Invitation, InviteError, ReadmitError, RenameError, RestoreError, Roll,
};
use crate::config::ClientEntry;
use crate::io::file::open_regular;
use crate::io::state::{MAX_FILE_LEN, StateDir, StateError};
use crate::proto::PublicKey;
use crate::wire::{InvitationId, Token, Verdict};

/// The roll of a server, on its disk and in force.
#[derive(Debug)]
pub struct Enrolment {
    peers: Arc<Peers>,
    roll: Mutex<Roll>,
    state: StateDir,
}

/// One client, as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its key.
    pub key: PublicKey,
    /// Where it is known from.
    pub origin: Origin,
    /// Since when, if it has enrolled.
    pub since: Option<SystemTime>,
    /// Whether it was revoked: listed and denied all the same, or on record alone.
    pub denied: bool,
}

/// What has become of a client that was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// The client as it was.
    pub client: Listed,
    /// Whether anything has changed: one that is denied already may be denied again.
    pub news: bool,
}

impl Enrolment {
    /// Reads what a former run has kept in `state`, and puts it in force in `peers`, which has the clients of the
    /// configuration.
    ///
    /// # Errors
    /// What was kept cannot be read: it is not set aside, since it says who is denied. Or the configuration gives the name of
    /// somebody who has enrolled to another.
    pub fn open(peers: Arc<Peers>, state: &StateDir) -> Result<Self, EnrolmentError> {
        let roll = match state.read(FILE)? {
            None => Roll::default(),
            Some(bytes) => Roll::restore(&bytes).map_err(|reason| EnrolmentError::Malformed {
                path: state.path().join(FILE).display().to_string(),
                reason,
            })?,
        };
        for (key, client) in roll.clients() {
            match peers.insert(entry(&client.name, *key), Origin::Enrolled) {
                // It is listed by now, under whatever name.
                Ok(()) | Err(PeerError::KeyTaken { .. }) => {}
                Err(PeerError::NameTaken { name }) => {
                    return Err(EnrolmentError::NameInFile { name, key: *key });
                }
                Err(error) => return Err(error.into()),
            }
        }
        put_in_force(&roll, &peers);
        if peers.is_empty() {
            info!("nobody can connect yet: `adit invite NAME` makes a link for a client");
        }
        Ok(Self {
            peers,
            roll: Mutex::new(roll),
            state: state.clone(),
        })
    }

    /// Counts the clients that have enrolled at a server whose state folder this is, without being it; `None` where none is
    /// kept yet.
    ///
    /// # Errors
    /// What is kept cannot be read by this user, or makes no sense.
    pub fn look(folder: &Path) -> io::Result<Option<usize>> {
        let mut bytes = Vec::new();
        match open_regular(&folder.join(FILE), MAX_FILE_LEN) {
            Ok(file) => file.take(MAX_FILE_LEN).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let roll = Roll::restore(&bytes).map_err(io::Error::other)?;
        Ok(Some(roll.clients().count()))
    }

    /// Returns whether a message 1 that names this invitation is answered.
    pub fn knows(&self, id: &InvitationId) -> bool {
        self.lock().knows(id)
    }

    /// Takes a guest's token; the name is that of the client, if it is one now.
    pub fn enrol(
        &self,
        now: SystemTime,
        id: &InvitationId,
        token: &Token,
        key: PublicKey,
    ) -> (Verdict, String) {
        let mut roll = self.lock();
        let is_client = self.peers.lists(&key) && roll.client(&key).is_none();
        let refused = |verdict| (verdict, String::new());
        let name = match roll.judge(now, id, token, &key, is_client) {
            Ok(Admission::New(name)) => name,
            Ok(Admission::Again(name)) => return (Verdict::Enrolled, name),
            Err(verdict) => return refused(verdict),
        };
        // A reload may have given the name to another since it was invited.
        if self.peers.named(&name).is_some() {
            return refused(Verdict::NameTaken);
        }
        let mut changed = roll.clone();
        changed.enter(now, id, key);
        if let Err(error) = self.keep(&mut roll, changed) {
            error!(%error, "a client has not been enrolled");
            return refused(Verdict::NotKept);
        }
        match self.peers.insert(entry(&name, key), Origin::Enrolled) {
            // The other way round, it has just been listed by a reload.
            Ok(()) | Err(PeerError::KeyTaken { .. }) => (Verdict::Enrolled, name),
            Err(error) => {
                // It is kept, and in force after a restart, if it may be.
                error!(%error, "a client has enrolled and is not in force");
                refused(Verdict::NameTaken)
            }
        }
    }

    /// Invites somebody to become the client `name` by `token`; whether an earlier invitation of that name is withdrawn.
    ///
    /// # Errors
    /// [`EnrolmentError`]; nothing has changed then.
    pub fn invite(
        &self,
        now: SystemTime,
        name: &str,
        lasts: Duration,
        token: &Token,
    ) -> Result<bool, EnrolmentError> {
        let mut roll = self.lock();
        if self.peers.named(name).is_some() {
            return Err(EnrolmentError::Taken {
                name: name.to_owned(),
            });
        }
        let mut changed = roll.clone();
        let replaced = changed.invite(now, name, lasts, token)?;
        self.keep(&mut roll, changed)?;
        Ok(replaced)
    }

    /// Withdraws the open invitation of `name`.
    ///
    /// # Errors
    /// There is none, or that cannot be kept.
    pub fn withdraw(&self, now: SystemTime, name: &str) -> Result<(), EnrolmentError> {
        let mut roll = self.lock();
        let mut changed = roll.clone();
        if !changed.withdraw(now, name) {
            return Err(EnrolmentError::NotInvited {
                name: name.to_owned(),
            });
        }
        self.keep(&mut roll, changed)
    }

    /// Takes a client out that has enrolled, and denies one of the configuration from now on. Whoever calls this ends its
    /// sessions. `whom` is a name or a key.
    ///
    /// # Errors
    /// It is nobody, or that cannot be kept.
    pub fn revoke(&self, now: SystemTime, whom: &str) -> Result<Revoked, EnrolmentError> {
        let mut roll = self.lock();
        let client = self.find(&roll, whom)?;
        let mut changed = roll.clone();
        // One that has enrolled may be listed by now, and would be let in by that.
        let mut news = changed.revoke(now, &client.key);
        match client.origin {
            Origin::File => news |= changed.deny(now, client.key),
            Origin::Enrolled => {}
        }
        self.keep(&mut roll, changed)?;
        match client.origin {
            Origin::File => {}
            Origin::Enrolled => {
                self.peers.remove(&client.key);
            }
        }
        Ok(Revoked { client, news })
    }

    /// Lets a client in again that was revoked.
    ///
    /// # Errors
    /// It is nobody, or was not revoked, or its name is another's by now, or that cannot be kept.
    pub fn restore(&self, now: SystemTime, whom: &str) -> Result<Listed, EnrolmentError> {
        let mut roll = self.lock();
        let client = self.find_revoked(&roll, whom)?;
        let mut changed = roll.clone();
        changed.allow(&client.key);
        let readmitted = changed.readmit(now, &client.key);
        match client.origin {
            // It may have enrolled, too; but it is the configuration that lets it in.
            Origin::File => {}
            Origin::Enrolled => {
                readmitted?;
                if self.peers.named(&client.name).is_some() {
                    return Err(ReadmitError::taken(&client.name, &client.key).into());
                }
            }
        }
        self.keep(&mut roll, changed)?;
        if client.origin == Origin::Enrolled {
            let entry = entry(&client.name, client.key);
            match self.peers.insert(entry, Origin::Enrolled) {
                // A reload has just listed it.
                Ok(()) | Err(PeerError::KeyTaken { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Listed {
            denied: false,
            ..client
        })
    }

    /// Gives a client that has enrolled another name, one that was revoked too.
    ///
    /// # Errors
    /// It is nobody, or named by the configuration, or the new name will not do, or that cannot be kept.
    pub fn rename(
        &self,
        now: SystemTime,
        whom: &str,
        name: &str,
    ) -> Result<Listed, EnrolmentError> {
        let mut roll = self.lock();
        let client = self.find(&roll, whom)?;
        if client.origin == Origin::File {
            return Err(EnrolmentError::NamedThere { name: client.name });
        }
        let taken = self.peers.named(name);
        if taken.is_some_and(|other| other.key() != client.key) {
            return Err(EnrolmentError::Taken {
                name: name.to_owned(),
            });
        }
        let mut changed = roll.clone();
        changed.rename(now, &client.key, name)?;
        self.keep(&mut roll, changed)?;
        if self.peers.lists(&client.key) {
            self.peers.rename(&client.key, name)?;
        }
        Ok(Listed {
            name: name.to_owned(),
            ..client
        })
    }

    /// Puts a client in force again that has enrolled and that the configuration lists no more; returns whether it is one.
    pub fn reinstate(&self, key: &PublicKey) -> bool {
        let roll = self.lock();
        let client = roll.client(key);
        client.is_some_and(|client| {
            let entry = entry(&client.name, *key);
            self.peers.insert(entry, Origin::Enrolled).is_ok()
        })
    }

    /// Returns whether a client with this key was revoked and can be restored, though no table lists it.
    pub fn remembers(&self, key: &PublicKey) -> bool {
        self.lock().remembers(key)
    }

    /// Lists everybody, by name, those that were revoked among them.
    pub fn list(&self) -> Vec<Listed> {
        self.everybody(&self.lock())
    }

    /// Lists the invitations there are, spent ones among them, the newest last.
    pub fn invitations(&self) -> Vec<Invitation> {
        let mut all: Vec<Invitation> = self.lock().invitations().cloned().collect();
        all.sort_by(|a, b| (a.made, &a.name).cmp(&(b.made, &b.name)));
        all
    }

    fn everybody(&self, roll: &Roll) -> Vec<Listed> {
        let peers = self.peers.list();
        let mut all: Vec<Listed> = peers.iter().map(|peer| listed(roll, peer)).collect();
        let revoked = (roll.revoked()).filter(|(key, _)| !self.peers.lists(key));
        all.extend(revoked.map(|(key, former)| Listed {
            name: former.was.name.clone(),
            key: *key,
            origin: Origin::Enrolled,
            since: Some(former.was.since),
            denied: true,
        }));
        // Of one name, whoever has it now comes first.
        all.sort_by(|a, b| (&a.name, a.denied, a.key).cmp(&(&b.name, b.denied, b.key)));
        all
    }

    /// Whoever has this name or key: of one name, the client that has it now before those that had it.
    fn find(&self, roll: &Roll, whom: &str) -> Result<Listed, EnrolmentError> {
        let mut found = self.everybody(roll).into_iter().filter(is(whom));
        found.next().ok_or_else(|| EnrolmentError::Nobody {
            name: whom.to_owned(),
        })
    }

    /// The one that was revoked and has this name or key.
    fn find_revoked(&self, roll: &Roll, whom: &str) -> Result<Listed, EnrolmentError> {
        let found = self.everybody(roll).into_iter().filter(is(whom));
        let (mut revoked, others): (Vec<_>, Vec<_>) = found.partition(|it| it.denied);
        let name = whom.to_owned();
        match (revoked.pop(), others.is_empty()) {
            (Some(client), _) if revoked.is_empty() => Ok(client),
            (Some(_), _) => Err(EnrolmentError::Several { name }),
            (None, false) => Err(EnrolmentError::NotDenied { name }),
            (None, true) => Err(EnrolmentError::Nobody { name }),
        }
    }

    /// Writes a roll that has changed, and puts it in force.
    fn keep(&self, roll: &mut Roll, changed: Roll) -> Result<(), EnrolmentError> {
        if *roll != changed {
            self.state.write(FILE, &changed.save())?;
            *roll = changed;
            put_in_force(roll, &self.peers);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Roll> {
        // Whole between any two changes, whoever panicked.
        self.roll.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listed(roll: &Roll, peer: &Peer) -> Listed {
    let key = peer.key();
    Listed {
        name: peer.entry.name.clone(),
        key,
        origin: peer.origin,
        since: roll.client(&key).map(|client| client.since),
        denied: roll.denies(&key),
    }
}

/// Whether a client has this name or key.
fn is(whom: &str) -> impl Fn(&Listed) -> bool + '_ {
    let key = whom.parse::<PublicKey>().ok();
    move |it| it.name == whom || key == Some(it.key)
}

/// Says to the handshakes who is denied, and who is told that it was revoked.
fn put_in_force(roll: &Roll, peers: &Peers) {
    peers.deny(roll.denied().copied().collect());
    peers.remember(roll.revoked().map(|(key, _)| *key).collect());
}

fn entry(name: &str, public_key: PublicKey) -> ClientEntry {
    ClientEntry {
        name: name.to_owned(),
        public_key,
        address: None,
        address6: None,
        preshared_key: None,
    }
}

/// Why clients and invitations stay as they are.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EnrolmentError {
    /// The state folder cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// What was kept makes no sense.
    #[error(
        "{path}: {reason}; it says who may connect and who may not, so it is not passed over: mend it, or move it away and invite everybody anew"
    )]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: RestoreError,
    },
    /// The configuration lists the name of somebody else.
    #[error(
        "clients: the name `{name}` belongs to a client that has enrolled, with the key {key}: give the one in the configuration another name"
    )]
    NameInFile {
        /// The name.
        name: String,
        /// The key of the client that has enrolled.
        key: PublicKey,
    },
    /// Nobody can be invited so.
    #[error(transparent)]
    Invite(#[from] InviteError),
    /// The new name will not do.
    #[error(transparent)]
    Rename(#[from] RenameError),
    /// The table of clients does not take it.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// A client has the name.
    #[error(
        "there is a client `{name}` already: choose another name, or `adit clients revoke {name}` first"
    )]
    Taken {
        /// The name.
        name: String,
    },
    /// The name is the configuration's.
    #[error("`{name}` is named by the server's configuration: change it there")]
    NamedThere {
        /// The name.
        name: String,
    },
    /// There is no such client.
    #[error("there is no client `{name}`: `adit clients list` names them")]
    Nobody {
        /// What was asked for.
        name: String,
    },
    /// The revoked client cannot be let in again.
    #[error(transparent)]
    Readmit(#[from] ReadmitError),
    /// Several that were revoked had the name.
    #[error(
        "several clients named `{name}` were revoked: name the one by its key, which `adit clients list` shows"
    )]
    Several {
        /// The name.
        name: String,
    },
    /// The client is not denied.
    #[error("`{name}` was not revoked")]
    NotDenied {
        /// Its name.
        name: String,
    },
    /// Nobody is invited by the name.
    #[error("there is no open invitation for `{name}`: `adit invite --list` names them")]
    NotInvited {
        /// The name.
        name: String,
    },
}

/// The file in the state folder.
pub const FILE: &str = "clients.json";

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::proto::invitation_id;

    const NOW: SystemTime = UNIX_EPOCH;
    const HOUR: Duration = Duration::from_secs(3600);

    fn key(number: u8) -> PublicKey {
        PublicKey::from_bytes([number; 32])
    }

    fn token() -> Token {
        Token::from_bytes([9; 32])
    }

    fn opened(
        folder: &tempfile::TempDir,
        configured: &[ClientEntry],
    ) -> Result<Enrolment, EnrolmentError> {
        let state = StateDir::open(folder.path()).unwrap();
        Enrolment::open(Arc::new(Peers::new(configured.to_vec())), &state)
    }

    fn enrol(enrolment: &Enrolment, number: u8) -> (Verdict, String) {
        enrolment.enrol(NOW, &invitation_id(&token()), &token(), key(number))
    }

    /// With `phone` enrolled by key 2, beside `laptop` of the configuration with key 1.
    fn both(folder: &tempfile::TempDir) -> Enrolment {
        let enrolment = opened(folder, &[entry("laptop", key(1))]).unwrap();
        enrolment.invite(NOW, "phone", HOUR, &token()).unwrap();
        assert_eq!(enrol(&enrolment, 2), (Verdict::Enrolled, "phone".into()));
        enrolment
    }

    fn admits(enrolment: &Enrolment, number: u8) -> bool {
        enrolment.peers.find(&key(number)).is_some()
    }

    #[test]
    fn enrolled_clients_and_denials_outlive_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let enrolment = both(&folder);
        enrolment.revoke(NOW, "laptop").unwrap();
        let before = (enrolment.list(), enrolment.invitations());
        drop(enrolment);
        let enrolment = opened(&folder, &[entry("laptop", key(1))]).unwrap();
        assert_eq!((enrolment.list(), enrolment.invitations()), before);
        assert!(admits(&enrolment, 2) && !admits(&enrolment, 1));
        assert!(enrolment.peers.was_revoked(&key(1)) && !enrolment.peers.was_revoked(&key(2)));
        assert_eq!(enrolment.peers.name(&key(2)), "phone");
    }

    #[test]
    fn same_key_is_told_the_same_again_and_another_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let enrolment = both(&folder);
        assert_eq!(enrol(&enrolment, 2), (Verdict::Enrolled, "phone".into()));
        assert_eq!(enrol(&enrolment, 3), (Verdict::Used, String::new()));
        assert!(!admits(&enrolment, 3));
    }

    #[test]
    fn revoking_takes_out_who_has_enrolled_and_denies_who_is_listed_until_they_are_restored() {
        let folder = tempfile::tempdir().unwrap();
        let enrolment = both(&folder);
        let phone = enrolment.revoke(NOW, &key(2).to_string()).unwrap();
        assert_eq!((phone.client.name.as_str(), phone.news), ("phone", true));
        assert!(!admits(&enrolment, 2));
        // It is told that it was revoked; a stranger is not, whatever it says.
        assert!(enrolment.peers.was_revoked(&key(2)) && !enrolment.peers.was_revoked(&key(3)));
        assert!(!enrolment.revoke(NOW, "phone").unwrap().news);
        let phone = enrolment.restore(NOW, "phone").unwrap();
        assert_eq!((phone.key, phone.denied), (key(2), false));
        assert!(admits(&enrolment, 2) && enrolment.peers.name(&key(2)) == "phone");
        assert!(!enrolment.peers.was_revoked(&key(2)));
        let again = enrolment.restore(NOW, "phone");
        assert!(matches!(again, Err(EnrolmentError::NotDenied { .. })));
        let nobody = enrolment.restore(NOW, "nobody");
        assert!(matches!(nobody, Err(EnrolmentError::Nobody { .. })));
        enrolment.revoke(NOW, "phone").unwrap();
        assert!(enrolment.revoke(NOW, "laptop").unwrap().news);
        assert!(!enrolment.revoke(NOW, "laptop").unwrap().news);
        assert!(enrolment.list()[0].denied && !admits(&enrolment, 1));
        // Also by a reload.
        let listed = vec![entry("laptop", key(1))];
        enrolment.peers.replace(listed).unwrap();
        assert!(!admits(&enrolment, 1));
        assert!(enrolment.peers.was_revoked(&key(1)));
        enrolment.restore(NOW, "laptop").unwrap();
        assert!(admits(&enrolment, 1) && !enrolment.peers.was_revoked(&key(1)));
        // Whoever was revoked and is listed by now is a client.
        enrolment
            .peers
            .replace(vec![entry("laptop", key(1)), entry("pad", key(2))])
            .unwrap();
        assert!(admits(&enrolment, 2) && !enrolment.peers.was_revoked(&key(2)));
        enrolment
            .peers
            .replace(vec![entry("laptop", key(1))])
            .unwrap();
        let again = enrolment.restore(NOW, "laptop");
        assert!(matches!(again, Err(EnrolmentError::NotDenied { .. })));
        // Over a restart, too.
        drop(enrolment);
        let enrolment = opened(&folder, &[entry("laptop", key(1))]).unwrap();
        assert!(enrolment.remembers(&key(2)) && !admits(&enrolment, 2));
        assert!(enrolment.peers.was_revoked(&key(2)));
        enrolment.restore(NOW, &key(2).to_string()).unwrap();
        assert!(admits(&enrolment, 2) && !enrolment.remembers(&key(2)));
    }

    #[test]
    fn revoked_client_whose_name_is_given_away_is_restored_by_another() {
        let folder = tempfile::tempdir().unwrap();
        let enrolment = both(&folder);
        enrolment.revoke(NOW, "phone").unwrap();
        enrolment
            .peers
            .replace(vec![entry("phone", key(7))])
            .unwrap();
        let error = enrolment.restore(NOW, "phone").unwrap_err().to_string();
        assert!(
            error.contains(&format!("adit clients rename {}", key(2))),
            "{error}"
        );
        enrolment
            .rename(NOW, &key(2).to_string(), "tablet")
            .unwrap();
        enrolment.restore(NOW, "tablet").unwrap();
        assert_eq!(enrolment.peers.named("tablet").unwrap().key(), key(2));
        assert_eq!(enrolment.peers.named("phone").unwrap().key(), key(7));
    }

    #[test]
    fn of_several_that_were_revoked_by_one_name_none_is_restored_but_by_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let enrolment = both(&folder);
        enrolment.revoke(NOW, "phone").unwrap();
        let second = Token::from_bytes([8; 32]);
        enrolment.invite(NOW, "phone", HOUR, &second).unwrap();
        let enrolled = enrolment.enrol(NOW, &invitation_id(&second), &second, key(3));
        assert_eq!(enrolled, (Verdict::Enrolled, "phone".into()));
        enrolment.revoke(NOW, "phone").unwrap();
        let unclear = enrolment.restore(NOW, "phone");
        assert!(matches!(unclear, Err(EnrolmentError::Several { .. })));
        assert!(!admits(&enrolment, 2) && !admits(&enrolment, 3));
        enrolment.restore(NOW, &key(2).to_string()).unwrap();
        assert!(admits(&enrolment, 2) && !admits(&enrolment, 3));
        // One that has the name is no reason to pass the one over that had it.
        let error = enrolment.restore(NOW, "phone").unwrap_err().to_string();
        assert!(
            error.contains(&format!("adit clients rename {}", key(3))),
            "{error}"
        );
    }

    #[test]
    fn client_that_is_revoked_by_both_ways_in_has_both_again() {
        let folder = tempfile::tempdir().unwrap();
        let enrolment = both(&folder);
        let listed = vec![entry("phone", key(2))];
        enrolment.peers.replace(listed).unwrap();
        let before = enrolment.list();
        enrolment.revoke(NOW, "phone").unwrap();
        assert_eq!(enrolment.list().len(), 1);
        enrolment.restore(NOW, "phone").unwrap();
        assert_eq!(enrolment.list(), before);
        enrolment.peers.replace(Vec::new()).unwrap();
        assert!(enrolment.reinstate(&key(2)) && admits(&enrolment, 2));
    }

    #[test]
    fn names_of_the_configuration_are_taken_and_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let enrolment = both(&folder);
        let taken =
            |result: Result<_, EnrolmentError>| matches!(result, Err(EnrolmentError::Taken { .. }));
        assert!(taken(
            enrolment.invite(NOW, "laptop", HOUR, &token()).map(|_| ())
        ));
        assert!(taken(enrolment.rename(NOW, "phone", "laptop").map(|_| ())));
        let refused = enrolment.rename(NOW, "laptop", "desk");
        assert!(matches!(refused, Err(EnrolmentError::NamedThere { .. })));
        assert_eq!(
            enrolment.rename(NOW, "phone", "tablet").unwrap().name,
            "tablet"
        );
        assert_eq!(enrolment.peers.name(&key(2)), "tablet");
        let nobody = enrolment.withdraw(NOW, "nobody");
        assert!(matches!(nobody, Err(EnrolmentError::NotInvited { .. })));
    }

    #[test]
    fn name_that_the_configuration_has_given_away_meanwhile_is_not_given_twice() {
        let folder = tempfile::tempdir().unwrap();
        let enrolment = opened(&folder, &[]).unwrap();
        enrolment.invite(NOW, "phone", HOUR, &token()).unwrap();
        enrolment
            .peers
            .replace(vec![entry("phone", key(7))])
            .unwrap();
        assert_eq!(enrol(&enrolment, 2), (Verdict::NameTaken, String::new()));
        drop(both(&tempfile::tempdir().unwrap()));
        // And at a start with somebody enrolled, it is said.
        let folder = tempfile::tempdir().unwrap();
        drop(both(&folder));
        let error = opened(&folder, &[entry("phone", key(7))])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`phone`") && error.contains(&key(2).to_string()),
            "{error}"
        );
        // The key itself may be listed, and stays a client when it is listed no more.
        let enrolment = opened(&folder, &[entry("anna", key(2))]).unwrap();
        assert_eq!(enrolment.peers.name(&key(2)), "anna");
        let removed = enrolment.peers.replace(Vec::new()).unwrap().removed;
        assert_eq!(removed, [key(2)]);
        assert!(enrolment.reinstate(&key(2)) && !enrolment.reinstate(&key(9)));
        assert_eq!(enrolment.peers.name(&key(2)), "phone");
    }

    #[test]
    fn what_cannot_be_written_has_not_happened() {
        let folder = tempfile::tempdir().unwrap();
        let enrolment = opened(&folder, &[]).unwrap();
        enrolment.invite(NOW, "phone", HOUR, &token()).unwrap();
        // A folder in the file's place: root, too, cannot write it.
        fs::remove_file(folder.path().join(FILE)).unwrap();
        fs::create_dir(folder.path().join(FILE)).unwrap();
        assert_eq!(enrol(&enrolment, 2), (Verdict::NotKept, String::new()));
        assert!(!admits(&enrolment, 2));
        fs::remove_dir(folder.path().join(FILE)).unwrap();
        assert_eq!(enrol(&enrolment, 2), (Verdict::Enrolled, "phone".into()));
    }

    #[test]
    fn file_that_makes_no_sense_keeps_the_server_from_starting() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "{\"version\": 1,").unwrap();
        let error = opened(&folder, &[]).unwrap_err().to_string();
        assert!(
            error.contains("clients.json") && error.contains("line 1"),
            "{error}"
        );
    }
}
