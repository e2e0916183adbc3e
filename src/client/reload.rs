//! Puts another configuration into force while the client runs.
//!
//! # Theory of operation
//!
//! | key | what becomes of it |
//! |---|---|
//! | `rules`, also of `proxies` | followed at once; only those flows end that the new rules send another way |
//! | `local_forwards`, `remote_forwards` | those that are gone listen no more, new ones do; connections that are open go on, and so do the forwards that `adit forward add` has added |
//! | `dns.records` | answered from the next question on |
//! | `dns.block`, `dns.allow`, `dns.refresh`, `dns.cache_dir` | the lists are read anew, also where only a file among them has changed |
//! | all others | told, and wait for a restart |
//!
//! A port that a new forward wants may be taken, which shows only when it is tried: then the forwards are put back as they
//! were, and nothing has changed; so it is with a list whose file cannot be read. What can fail comes first, and rules, which cannot, last.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::dns::Dns;
use super::dns::lists::{ListService, ListStore, Stamps, tell};
use super::forwards::Forwards;
use super::proxies::RuleBook;
use super::resolve::Resolver;
use super::tunnel::Tunnel;
use crate::config::{ClientConfig, DnsConfig, Forward};
use crate::reload::{Applied, Outcome, ReloadCounts};

/// Puts configurations into force.
#[derive(Debug)]
pub struct Reloader {
    running: ClientConfig,
    /// Of the files of lists, as they were read.
    stamps: Stamps,
    book: RuleBook,
    forwards: Forwards,
    names: Names,
    counts: Arc<ReloadCounts>,
}

/// What answers names.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) dns: Dns,
    pub(super) resolver: Resolver,
    pub(super) tunnel: Tunnel,
    pub(super) stop: CancellationToken,
    /// Ends what fetches the present lists.
    pub(super) lists: CancellationToken,
}

impl Reloader {
    pub(super) fn new(
        running: ClientConfig,
        book: RuleBook,
        forwards: Forwards,
        names: Names,
        counts: Arc<ReloadCounts>,
    ) -> Self {
        Self {
            stamps: Stamps::now(&running.dns),
            running,
            book,
            forwards,
            names,
            counts,
        }
    }

    /// Returns what is in force: of keys that wait for a restart, what the client was started with.
    pub fn running(&self) -> &ClientConfig {
        &self.running
    }

    /// Puts `read` into force as far as that can be done; `restart` are the keys for which it cannot.
    ///
    /// # Errors
    ///
    /// Why nothing has changed.
    pub async fn apply(&mut self, read: ClientConfig, restart: Vec<String>) -> Outcome {
        let outcome = self.put(read, restart).await;
        self.counts.count(&outcome);
        outcome
    }

    /// Counts a configuration that was wrong.
    pub fn refuse(&self, reason: String) -> Outcome {
        let outcome = Err(reason);
        self.counts.count(&outcome);
        outcome
    }

    async fn put(&mut self, read: ClientConfig, restart: Vec<String>) -> Outcome {
        let mut applied = Vec::new();
        let now = Stamps::now(&read.dns);
        let lists = if lists(&self.running.dns) == lists(&read.dns) && self.stamps == now {
            None
        } else {
            let store = ListStore::new(&read.dns);
            let error =
                |error| format!("no folder for fetched lists of names: {error}; set dns.cache_dir");
            let store = store.map_err(error)?;
            store.check_files()?;
            Some(store)
        };
        self.change_forwards(&read.forwards, &mut applied).await?;
        if let Some(store) = lists {
            self.names.follow(&read.dns, store).await;
            self.stamps = now;
            applied.push("dns.block and dns.allow".to_owned());
        }
        if self.running.dns.records != read.dns.records {
            let records = &read.dns.records;
            (self.names.dns).change_policy(|policy| policy.with_records(records));
            applied.push("dns.records".to_owned());
        }
        let rules = |config: &ClientConfig| -> Vec<_> {
            let listeners = config.listeners().into_iter();
            listeners.map(|proxy| (proxy.listen, proxy.rules)).collect()
        };
        if rules(&self.running) != rules(&read) {
            applied.push("rules".to_owned());
        }
        self.book.replace(&read).await;
        self.follow(read);
        Ok(Applied {
            applied,
            restart,
            warnings: Vec::new(),
        })
    }

    /// Removes the forwards that are gone and adds those that are new, or leaves all as they were.
    async fn change_forwards(
        &self,
        read: &[Forward],
        applied: &mut Vec<String>,
    ) -> Result<(), String> {
        let running = &self.running.forwards;
        let gone: Vec<&Forward> = running.iter().filter(|it| !read.contains(it)).collect();
        let new: Vec<&Forward> = read.iter().filter(|it| !running.contains(it)).collect();
        let mut removed = Vec::new();
        for forward in gone {
            // It may have been removed by hand.
            if self.remove(forward).await {
                removed.push(forward);
            }
        }
        let mut added = Vec::new();
        for forward in new {
            match self.forwards.add(forward.clone()) {
                Ok(listed) => added.push((forward, listed.id)),
                Err(error) => {
                    for (_, id) in added {
                        // It was just added.
                        let _ours = self.forwards.remove(id).await;
                    }
                    let lost: Vec<String> = (removed.into_iter())
                        .filter_map(|forward| self.forwards.add(forward.clone()).err())
                        .map(|error| format!("; and it could not be put back: {error}"))
                        .collect();
                    return Err(format!("{error}{}", lost.concat()));
                }
            }
        }
        let told = |how: &str, forward: &Forward| format!("forwards: {how} {forward}");
        applied.extend(removed.into_iter().map(|forward| told("removed", forward)));
        applied.extend(added.into_iter().map(|(forward, _)| told("added", forward)));
        Ok(())
    }

    async fn remove(&self, forward: &Forward) -> bool {
        match self.forwards.find(forward) {
            Ok(id) => self.forwards.remove(id).await.is_ok(),
            Err(_) => false,
        }
    }

    /// Takes over of `read` what is in force now.
    fn follow(&mut self, read: ClientConfig) {
        self.running.forwards = read.forwards;
        self.running.rules = read.rules;
        // Further proxies wait for a restart, and those that stay follow their rules.
        for proxy in &mut self.running.proxies {
            let same = read.proxies.iter().find(|it| it.listen == proxy.listen);
            if let Some(same) = same {
                proxy.rules.clone_from(&same.rules);
            }
        }
        let dns = &mut self.running.dns;
        dns.records = read.dns.records;
        dns.block = read.dns.block;
        dns.allow = read.dns.allow;
        dns.refresh = read.dns.refresh;
        dns.cache_dir = read.dns.cache_dir;
    }
}

impl Names {
    /// Reads other lists, and follows them from now on.
    async fn follow(&mut self, config: &DnsConfig, store: ListStore) {
        // Half a million names take a while, and flows must not wait for them.
        let reading = tokio::task::spawn_blocking(move || {
            let seen = store.look();
            let read = store.read();
            (store, seen, read)
        });
        let Ok((store, seen, (lists, outcomes))) = reading.await else {
            warn!("reading the lists has failed; the former ones stay");
            return;
        };
        self.lists.cancel();
        self.lists = self.stop.child_token();
        tell(&outcomes);
        self.dns.change_policy(|policy| policy.with_lists(lists));
        if !store.is_empty() {
            let (dns, resolver) = (self.dns.clone(), self.resolver.clone());
            let tunnel = self.tunnel.clone();
            let service = ListService::new(config, store, seen, dns, resolver, tunnel);
            tokio::spawn(service.run(self.lists.clone()));
        }
    }
}

/// What lists there are, and how they are kept.
fn lists(config: &DnsConfig) -> impl PartialEq + '_ {
    (
        &config.block,
        &config.allow,
        config.refresh,
        &config.cache_dir,
    )
}
