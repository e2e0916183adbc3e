//! Puts another configuration into force while the server runs.
//!
//! # Theory of operation
//!
//! What can fail is prepared first (a certificate that is read, a resolver that is made); then the clients are
//! replaced, which is refused as a whole where a name is taken; what follows cannot fail. So a configuration is in force as
//! far as it can be, or nothing has changed.
//!
//! | key | what becomes of it |
//! |---|---|
//! | `clients` | new ones may connect; those that are gone are cut off, unless they have enrolled; one whose secret has changed has to come back with the new one; a fixed address goes to the next session |
//! | `allow`, `client_to_client` | judged anew for each packet, and each frame of a relayed flow |
//! | `dns` | asked from the next query on |
//! | `dns_records`, `limits.flows_per_client`, `limits.half_open_per_client`, `limits.memory_per_client` | given to sessions that begin from now on |
//! | `public` | named by the links that are made from now on |
//! | `max_clients` | for sessions that begin from now on |
//! | `tls.certificate`, `tls.key` | the files are read again, changed or not; for handshakes that begin from now on |
//! | all others | told, and wait for a restart |
//!
//! A session is touched only if it is one of a client that was taken out or whose secret has changed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::shared::{Offer, Shared};
use super::start::{fixed, server_tls};
use crate::config::{Limits, ServerConfig};
use crate::io::clock;
use crate::io::state::StateDir;
use crate::proto::{PublicKey, SecretKey};
use crate::reload::{Applied, Outcome};
use crate::wire::CloseReason;

/// Puts configurations into force.
#[derive(Debug)]
pub struct Reloader {
    shared: Arc<Shared>,
    state: StateDir,
    /// What is in force: of keys that wait for a restart, what the server was started with.
    running: ServerConfig,
}

impl Reloader {
    pub(super) fn new(shared: Arc<Shared>, state: StateDir, running: ServerConfig) -> Self {
        Self {
            shared,
            state,
            running,
        }
    }

    /// Puts `read` into force as far as that can be done.
    ///
    /// # Errors
    ///
    /// Why nothing has changed.
    pub fn apply(&mut self, read: ServerConfig) -> Outcome {
        let outcome = self.put(read);
        self.shared.reloads.count(&outcome);
        outcome
    }

    /// Counts a configuration that was wrong.
    pub fn refuse(&self, reason: String) -> Outcome {
        let outcome = Err(reason);
        self.shared.reloads.count(&outcome);
        outcome
    }

    fn put(&mut self, read: ServerConfig) -> Outcome {
        let (shared, running) = (&self.shared, &mut self.running);
        let restart = needs_restart(running, &read);
        let mut applied = Vec::new();
        // What can fail.
        let certificate = if read.tls.is_some() && shared.tls().is_some() {
            let tls = server_tls(&read, &self.state).map_err(|error| error.to_string())?;
            tls.filter(|tls| {
                let former = shared.tls();
                former.is_none_or(|former| former.pin() != tls.pin())
            })
        } else {
            None
        };
        let upstreams = if running.dns == read.dns {
            None
        } else {
            let prepared = shared.dns.prepare(&read.dns);
            Some(prepared.map_err(|error| error.to_string())?)
        };
        let names = |keys: &[PublicKey]| -> Vec<String> {
            keys.iter().map(|key| shared.peers.name(key)).collect()
        };
        let before = shared.peers.list();
        let change = (shared.peers.replace(read.clients.clone()))
            .map_err(|error| format!("clients: {error}"))?;
        // What cannot.
        shared.registry.set_fixed(read.clients.iter().map(fixed));
        for key in &change.removed {
            if shared.enrolment.reinstate(key) {
                let name = shared.peers.name(key);
                applied.push(format!(
                    "clients: {name} is listed no more, and stays by its invitation"
                ));
                continue;
            }
            let sessions = shared.cut_off(key);
            let peer = before.iter().find(|peer| peer.key() == *key);
            let name = peer.map_or("?", |peer| peer.entry.name.as_str());
            applied.push(format!(
                "clients: {name} removed, {sessions} of its sessions ended"
            ));
        }
        for name in names(&change.added) {
            applied.push(format!("clients: {name} added"));
        }
        for key in &change.rekeyed {
            let reason = CloseReason::Superseded;
            let sessions = (shared.registry).end_all_of(key, reason, clock::unix());
            let name = shared.peers.name(key);
            applied.push(format!(
                "clients: {name} has another preshared key, {sessions} of its sessions ended"
            ));
        }
        for name in names(&change.changed) {
            applied.push(format!(
                "clients: {name} changed; a fixed address goes to its next session"
            ));
        }
        if let Some(tls) = certificate {
            applied.push(format!("tls: a new certificate, its pin is {}", tls.pin()));
            shared.set_tls(tls);
        }
        if let Some(upstreams) = upstreams {
            shared.dns.ask(upstreams);
            applied.push("dns".to_owned());
        }
        if running.allow != read.allow {
            shared.set_allowed(&read.allow);
            applied.push("allow".to_owned());
        }
        if running.client_to_client != read.client_to_client {
            (shared.client_to_client).store(read.client_to_client, Ordering::Relaxed);
            applied.push("client_to_client".to_owned());
        }
        if running.public != read.public {
            shared.set_public(read.public.clone());
            applied.push("public".to_owned());
        }
        if running.max_clients != read.max_clients {
            shared.registry.set_capacity(read.max_clients as usize);
            applied.push("max_clients, for new sessions".to_owned());
        }
        if running.dns_records != read.dns_records {
            applied.push("dns_records, for new sessions".to_owned());
        }
        if for_sessions(&running.limits) != for_sessions(&read.limits) {
            applied.push("limits, for new sessions".to_owned());
        }
        shared.set_offer(Offer::new(&read));
        follow(running, read);
        Ok(Applied {
            applied,
            restart,
            warnings: Vec::new(),
        })
    }
}

impl Shared {
    /// Ends the sessions of a client that is listed no more, and forgets what was kept for it; returns how many there were.
    pub(super) fn cut_off(&self, key: &PublicKey) -> usize {
        let ended = (self.registry).end_all_of(key, CloseReason::Revoked, clock::unix());
        self.registry.forget(key);
        self.ledger.close(key);
        ended
    }

    /// Ends the sessions of a client that was revoked and may be restored; returns how many there were. Its addresses are
    /// kept for it as if it had gone.
    pub(super) fn shut_out(&self, key: &PublicKey) -> usize {
        let ended = (self.registry).end_all_of(key, CloseReason::Revoked, clock::unix());
        self.registry.abandon(key);
        self.ledger.close(key);
        ended
    }
}

/// What of the limits sessions are given when they begin.
fn for_sessions(limits: &Limits) -> [usize; 3] {
    let Limits {
        flows_per_client,
        half_open_per_client,
        memory: _,
        memory_per_client,
    } = *limits;
    [
        flows_per_client as usize,
        half_open_per_client as usize,
        memory_per_client,
    ]
}

/// Names the keys that differ and wait for a restart.
fn needs_restart(running: &ServerConfig, read: &ServerConfig) -> Vec<String> {
    (compared(running, read).into_iter())
        .filter(|(_, changed)| *changed)
        .map(|(key, _)| key.to_owned())
        .collect()
}

/// The keys that wait for a restart, and whether each differs. Every key is here, or in [`follow`].
pub(crate) fn compared(running: &ServerConfig, read: &ServerConfig) -> Vec<(&'static str, bool)> {
    let ServerConfig {
        listen,
        secret_keys,
        network,
        network6,
        egress,
        tun,
        mtu,
        allow: _,
        clients: _,
        // Where it is read from; what is in it is read again.
        tls,
        tls_names,
        public: _,
        dns: _,
        dns_records: _,
        client_to_client: _,
        state_dir,
        max_clients: _,
        limits,
        aead,
        repair,
        threads,
        control,
        admin,
        // Followed by whoever logs.
        log_level: _,
        process,
    } = read;
    let public =
        |keys: &[SecretKey]| -> Vec<PublicKey> { keys.iter().map(SecretKey::public).collect() };
    vec![
        ("listen", running.listen != *listen),
        (
            "key_file",
            public(&running.secret_keys) != public(secret_keys),
        ),
        ("network", running.network != *network),
        ("network6", running.network6 != *network6),
        ("egress", running.egress != *egress),
        ("tun", running.tun != *tun),
        ("mtu", running.mtu != *mtu),
        // From a certificate of its own to one that is given, or back.
        ("tls", running.tls.is_some() != tls.is_some()),
        ("tls.names", running.tls_names != *tls_names),
        ("state_dir", running.state_dir != *state_dir),
        ("limits.memory", running.limits.memory != limits.memory),
        ("aead", running.aead != *aead),
        ("repair", running.repair != *repair),
        ("threads", running.threads != *threads),
        ("control", running.control != *control),
        ("admin", running.admin != *admin),
        ("user", running.process.user != process.user),
    ]
}

/// Takes over of `read` what is in force now.
fn follow(running: &mut ServerConfig, read: ServerConfig) {
    let ServerConfig {
        listen: _,
        secret_keys: _,
        network: _,
        network6: _,
        egress: _,
        tun: _,
        mtu: _,
        allow,
        clients,
        tls,
        tls_names: _,
        public,
        dns,
        dns_records,
        client_to_client,
        state_dir: _,
        max_clients,
        limits,
        aead: _,
        repair: _,
        threads: _,
        control: _,
        admin: _,
        log_level: _,
        process: _,
    } = read;
    if running.tls.is_some() == tls.is_some() {
        running.tls = tls;
    }
    running.allow = allow;
    running.clients = clients;
    running.public = public;
    running.dns = dns;
    running.dns_records = dns_records;
    running.client_to_client = client_to_client;
    running.max_clients = max_clients;
    running.limits = Limits {
        memory: running.limits.memory,
        ..limits
    };
}
