//! Another `adit` as a child process, which never outlives this one.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use thiserror::Error;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::time::{sleep, timeout};

/// A running child. What it logs goes where our own log goes; dropping it kills it.
#[derive(Debug)]
pub struct Adit {
    name: &'static str,
    child: Child,
    output: pipe::Receiver,
}

/// Why a child is of no use.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ChildError {
    /// It could not be started.
    #[error("cannot start {name} as a process of its own: {error}")]
    Start {
        /// What it was to be.
        name: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// It has ended before it was ready.
    #[error("{name} ended before it was ready, with {status}; what it said stands above")]
    Ended {
        /// What it was to be.
        name: &'static str,
        /// How it ended.
        status: ExitStatus,
    },
    /// It is not ready in time.
    #[error("{name} is not ready after {} s; what it said stands above", .after.as_secs())]
    NotReady {
        /// What it was to be.
        name: &'static str,
        /// How long it was given.
        after: Duration,
    },
}

impl Adit {
    /// Starts this program once more with other `arguments`; `name` is for messages.
    ///
    /// To be called by the thread that began the program, within a runtime: the kernel kills the child when the thread
    /// that made it ends.
    ///
    /// # Errors
    /// The system does not let it start.
    pub fn start(
        name: &'static str,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Self, ChildError> {
        let failed = |error| ChildError::Start { name, error };
        let mut command = Command::new(env::current_exe().map_err(failed)?);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        // Settings for this process, and its supervisor, are not the child's.
        for (variable, _) in env::vars_os() {
            if variable.to_string_lossy().starts_with("ADIT_") || variable == "NOTIFY_SOCKET" {
                command.env_remove(variable);
            }
        }
        let die_with_us = || Ok(set_parent_process_death_signal(Some(Signal::KILL))?);
        // SAFETY: between fork and exec the closure makes one system call and nothing else: it takes no lock and
        // allocates nothing.
        unsafe { command.pre_exec(die_with_us) };
        let mut child = command.spawn().map_err(failed)?;
        let output = child.stdout.take().map(OwnedFd::from);
        let output = output
            .ok_or_else(|| io::ErrorKind::BrokenPipe.into())
            .and_then(pipe::Receiver::from_owned_fd);
        match output {
            Ok(output) => Ok(Self {
                name,
                child,
                output,
            }),
            Err(error) => {
                end(&mut child);
                Err(failed(error))
            }
        }
    }

    /// Waits until it says that it is ready, and returns what it says: what stands behind `ready: `.
    ///
    /// # Errors
    /// It ends first, or does not say so in `patience`.
    pub async fn ready(&mut self, patience: Duration) -> Result<String, ChildError> {
        let name = self.name;
        match timeout(patience, self.read_ready()).await {
            Ok(Some(said)) => Ok(said),
            Ok(None) => {
                // It may close its output on the way to its end.
                let ended = timeout(STOP_PATIENCE, self.ended()).await;
                match ended {
                    Ok(status) => Err(ChildError::Ended { name, status }),
                    Err(_elapsed) => Err(ChildError::NotReady {
                        name,
                        after: patience,
                    }),
                }
            }
            Err(_elapsed) => Err(ChildError::NotReady {
                name,
                after: patience,
            }),
        }
    }

    /// Returns the number of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns how it has ended, if it has.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Asks it to stop in order, and waits for that; kills it where that takes too long.
    pub async fn stop(mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid
            && self.has_ended().is_none()
            && kill_process(pid, Signal::TERM).is_ok()
            && timeout(STOP_PATIENCE, self.ended()).await.is_err()
        {
            tracing::warn!(name = self.name, "does not stop, and is killed");
        }
    }

    /// Reads up to the line's end; `None` when the output ends before.
    async fn read_ready(&mut self) -> Option<String> {
        let mut text = Vec::new();
        let mut byte = [0];
        loop {
            let line = text.strip_suffix(b"\n").map(String::from_utf8_lossy);
            if let Some(said) = line.and_then(|line| Some(line.strip_prefix("ready: ")?.to_owned()))
            {
                return Some(said);
            }
            if text.ends_with(b"\n") || text.len() > MAX_LINE {
                text.clear();
            }
            match self.output.read(&mut byte).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => text.extend_from_slice(&byte),
            }
        }
    }

    async fn ended(&mut self) -> ExitStatus {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status,
                Ok(None) => sleep(LOOK_EVERY).await,
                // It was not ours to wait for: it is gone.
                Err(_) => return ExitStatus::default(),
            }
        }
    }
}

impl Drop for Adit {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Kills a child that still runs, and takes its status, so that nothing is left of it.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Longer than a ready line, and than any other that a program of ours prints before it.
const MAX_LINE: usize = 4096;

/// How often a child is looked at that is about to end.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How long a child may take to end: a server says goodbye to thousands of sessions.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
