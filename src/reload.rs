//! Asks for a configuration to be read again, and what came of it.
//!
//! ```text
//!  SIGHUP, SIGUSR1 ─▶ Asker::signal ─┐
//!  adit reload ────▶ Asker::ask ─────┴─▶ one task: reads all again ─▶ the server or client applies what it can ─▶ Outcome
//! ```
//!
//! One configuration is read at a time. Whoever asks while others wait is answered by a reading that begins after he asked.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::status::Reloads;

/// What came of reading a configuration again: what was done, or one sentence or several that say why nothing was.
pub type Outcome = Result<Applied, String>;

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// What is in force now that was not, in words: `clients: added phone`.
    pub applied: Vec<String>,
    /// Keys that have changed and are not in force before a restart.
    pub restart: Vec<String>,
    /// What somebody should look at.
    pub warnings: Vec<String>,
}

/// Asks for the configuration to be read again.
#[derive(Clone, Debug)]
pub struct Asker {
    asks: mpsc::Sender<Ask>,
    file: Arc<Path>,
}

/// Somebody has asked.
#[derive(Debug)]
pub struct Ask(Option<oneshot::Sender<Outcome>>);

/// How often a configuration was read again, and how that went last.
#[derive(Debug)]
pub struct ReloadCounts(Mutex<Reloads>);

/// Makes what asks for this file to be read again, and where it is heard.
pub fn channel(file: &Path) -> (Asker, mpsc::Receiver<Ask>) {
    let (asks, asked) = mpsc::channel(WAITING);
    let file = file.into();
    (Asker { asks, file }, asked)
}

impl Asker {
    /// The configuration file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Asks, and does not wait.
    pub fn signal(&self) {
        // Those that wait already will read what is there by then.
        let _full = self.asks.try_send(Ask(None));
    }

    /// Asks, and waits for what comes of it.
    ///
    /// # Errors
    ///
    /// Why nothing has changed.
    pub async fn ask(&self) -> Outcome {
        let gone = || "the program is ending".to_owned();
        let (answer, outcome) = oneshot::channel();
        let asked = self.asks.send(Ask(Some(answer))).await;
        asked.map_err(|_| gone())?;
        outcome.await.unwrap_or_else(|_| Err(gone()))
    }
}

impl Ask {
    /// Says what came of it.
    pub fn answer(self, outcome: Outcome) {
        if let Some(answer) = self.0 {
            // Whoever asked may have gone meanwhile.
            let _gone = answer.send(outcome);
        }
    }
}

impl ReloadCounts {
    /// Counts an outcome.
    pub fn count(&self, outcome: &Outcome) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.last_applied = outcome.is_ok();
        match outcome {
            Ok(_) => counts.applied += 1,
            Err(_) => counts.failed += 1,
        }
    }

    /// Returns what was counted.
    pub fn counts(&self) -> Reloads {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for ReloadCounts {
    fn default() -> Self {
        Self(Mutex::new(Reloads {
            last_applied: true,
            ..Reloads::default()
        }))
    }
}

/// Askers that wait without being made to wait themselves.
const WAITING: usize = 8;
