//! SIGTERM and SIGINT: the first one stops cleanly, the second one ends at once. SIGUSR1: the configuration is read again.
//!
//! SIGHUP has two meanings. A terminal that is closed sends it to what runs there, which wants to end; to a service it says
//! by custom that its configuration is to be read again. So it does that where a program has no terminal that could be
//! closed, and knows how to read its configuration again; everywhere else it stops as SIGTERM does.
//! A SIGHUP that was ignored when the program began stays ignored: `nohup` asked for that.

use std::fs::{self, File};
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::reload::Asker;

/// Listens for signals in a task of the current runtime, until that is gone.
///
/// `reload` is asked to read the configuration again, where the program can.
///
/// # Errors
/// The handlers cannot be installed.
pub(super) fn listen(stop: CancellationToken, reload: Option<Asker>) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Whoever closes the terminal wants the program to end, and cleanly.
    let mut hang_up = if ignores_hang_up() {
        None
    } else {
        Some(signal(SignalKind::hangup())?)
    };
    let mut user = match reload {
        Some(_) => Some(signal(SignalKind::user_defined1())?),
        None => None,
    };
    // Asked now: once it is closed, a terminal is one no more.
    let hang_up_reloads = reload.is_some() && !has_terminal();
    tokio::spawn(async move {
        let mut stopping = false;
        loop {
            let number = tokio::select! {
                received = terminate.recv() => received.map(|()| libc::SIGTERM),
                received = interrupt.recv() => received.map(|()| libc::SIGINT),
                received = next(hang_up.as_mut()) => received.map(|()| libc::SIGHUP),
                received = next(user.as_mut()) => received.map(|()| libc::SIGUSR1),
            };
            // No more signals can come: the runtime is ending.
            let Some(number) = number else { return };
            let reloads = number == libc::SIGUSR1 || number == libc::SIGHUP && hang_up_reloads;
            if let Some(reload) = reload.as_ref().filter(|_| reloads) {
                reload.signal();
                continue;
            }
            if stopping {
                // As a shell counts a process that a signal ended.
                std::process::exit(128 + number);
            }
            stopping = true;
            tracing::info!(signal = number, "stopping; a second signal ends at once");
            stop.cancel();
        }
    });
    Ok(())
}

/// Waits for a signal, for ever where there is none to listen for.
async fn next(signal: Option<&mut Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => std::future::pending().await,
    }
}

/// Whether this process has a controlling terminal, which alone can hang up.
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

/// Whether SIGHUP is ignored; to be asked before a handler takes its place.
fn ignores_hang_up() -> bool {
    // Without /proc it is not known, and taken for the default.
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| ignored_signals(&status))
        .is_some_and(|ignored| ignored >> (libc::SIGHUP - 1) & 1 == 1)
}

/// The mask of ignored signals in the text of proc_pid_status(5): bit 0 is signal 1.
fn ignored_signals(status: &str) -> Option<u64> {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status_of_a_process() {
        let status = "Name:\tadit\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        assert_eq!(ignored_signals(status), Some(0x1001));
        assert_eq!(ignored_signals("Name:\tadit\n"), None);
        let own = fs::read_to_string("/proc/self/status").expect("a process has a status");
        assert!(ignored_signals(&own).is_some());
    }
}
