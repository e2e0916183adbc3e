//! What the configurations of both programs have in common.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::net::SocketAddr;
use std::path::PathBuf;

use zeroize::Zeroizing;

use super::error::Place;
use super::settings::{Located, Settings};
use super::shell::shell_word;
use super::{files, parse};
use crate::proto::AeadKind;

/// Notices what is written twice.
pub(super) struct Unique<K> {
    seen: HashMap<K, Place>,
}

impl<K: Hash + Eq> Unique<K> {
    /// Adds a problem with the value `at` when `value` was there before; `what` names it.
    pub(super) fn insert<T>(
        &mut self,
        settings: &mut Settings<'_>,
        at: &Located<T>,
        value: K,
        what: impl fmt::Display,
    ) {
        if let Some(first) = self.seen.get(&value) {
            settings.problem_at(
                at,
                format!("{what} stands twice, first at {first}: keep one"),
            );
        } else {
            self.seen.insert(value, at.place.clone());
        }
    }
}

impl<K> Default for Unique<K> {
    fn default() -> Self {
        Self {
            seen: HashMap::new(),
        }
    }
}

/// Warns of a password in a configuration that others may read; a key file would be refused.
pub(super) fn warn_of_readers(
    settings: &mut Settings<'_>,
    key: &str,
    instead: &str,
    place: &Place,
) {
    let Place::File(spot) = place else {
        return;
    };
    if let Some(mode) = files::mode_for_others(spot.path()) {
        settings.warn(format!(
            "{key}: others than you may read {} (its mode is {mode:04o}): run chmod 600 {}, or write {instead} instead",
            spot.path().display(),
            shell_word(spot.path())
        ));
    }
}

/// Reads the password in the file that a value names.
pub(super) fn read_password(
    settings: &mut Settings<'_>,
    file: &Located<PathBuf>,
) -> Option<Zeroizing<String>> {
    let text = settings.read_file(file, files::read_password)?;
    match parse::credential(&text, true) {
        Ok(text) => Some(Zeroizing::new(text)),
        Err(message) => {
            settings.problem_at(file, format!("the password in it {message}"));
            None
        }
    }
}

/// Reads the ciphers.
pub(super) fn read_aead(settings: &mut Settings<'_>) -> Vec<AeadKind> {
    let Some(aead) = settings.list("aead", parse::aead) else {
        return Vec::new();
    };
    let mut seen = Unique::default();
    for at in &aead {
        seen.insert(settings, at, at.value, at.value.name());
    }
    values(Some(aead))
}

/// Reads how many threads the program runs on.
pub(super) fn read_threads(settings: &mut Settings<'_>) -> Option<usize> {
    let threads = settings.value("threads", |text| parse::number(text, 1, MOST_THREADS));
    threads.and_then(|at| usize::try_from(at.value).ok())
}

/// Reads where metrics and health are served.
pub(super) fn read_admin(settings: &mut Settings<'_>) -> Option<SocketAddr> {
    let at = settings.value("admin", parse::admin)?;
    let address = at.value?;
    if !address.ip().is_loopback() {
        let message = format!(
            "`{address}` can be reached from other hosts, and there is no password: write 127.0.0.1:{} or [::1]:{}",
            address.port(),
            address.port()
        );
        settings.problem_at(&at, message);
    }
    Some(address)
}

/// The most threads that a program can be told to run on.
pub const MOST_THREADS: u32 = 1024;

/// The values of a list, without their places.
pub(super) fn values<T>(list: Option<Vec<Located<T>>>) -> Vec<T> {
    list.unwrap_or_default()
        .into_iter()
        .map(|at| at.value)
        .collect()
}
