//! SIGTERM and SIGINT: the first one stops cleanly, the second one ends at once.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Listens for signals in a task of the current runtime, until that is gone.
///
/// # Errors
/// The handlers cannot be installed.
pub(super) fn listen(stop: CancellationToken) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        let mut stopping = false;
        loop {
            let number = tokio::select! {
                received = terminate.recv() => received.map(|()| libc::SIGTERM),
                received = interrupt.recv() => received.map(|()| libc::SIGINT),
            };
            // No more signals can come: the runtime is ending.
            let Some(number) = number else { return };
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
