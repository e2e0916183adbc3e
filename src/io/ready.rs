//! Tells whoever started the program that it is ready, and that it is stopping.
//!
//! Three ways, so that a script, a supervisor and systemd can each wait for theirs: a line `ready: …` on standard
//! output, the same line on a descriptor that is closed afterwards, and systemd's datagram `READY=1` (sd_notify(3)). The
//! last comes sooner from a client: when it takes connections, which wait for its session.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use sd_notify::NotifyState;

/// Where readiness is told; made once, at the start.
#[derive(Debug, Default)]
pub struct Ready {
    descriptor: Option<File>,
}

impl Ready {
    /// Tells readiness on standard output, to systemd, and on `descriptor` where there is one.
    pub fn new(descriptor: Option<OwnedFd>) -> Self {
        Self {
            descriptor: descriptor.map(File::from),
        }
    }

    /// Tells systemd that the unit has started though it is not ready yet, as `what` says: connections are taken, and wait.
    ///
    /// Who starts the unit is not to wait for a server that may be away: at a boot, or in an upgrade of the package.
    pub fn started(&self, what: &str) {
        notify(&[NotifyState::Ready, NotifyState::Status(what)]);
    }

    /// Prints `ready: {what}` everywhere, and closes the descriptor. To be called once; later calls only print.
    pub fn announce(&mut self, what: &str) {
        let line = format!("ready: {what}\n");
        // Whoever does not listen any more does not want to know: that is no reason to stop.
        let mut out = io::stdout().lock();
        if out
            .write_all(line.as_bytes())
            .and_then(|()| out.flush())
            .is_err()
        {
            tracing::debug!("standard output is closed");
        }
        drop(out);
        self.announce_on_descriptor(what);
        notify(&[NotifyState::Ready, NotifyState::Status(what)]);
    }

    /// Writes `ready: {what}` to the descriptor alone, and closes it: for a program whose output is not its own.
    pub fn announce_on_descriptor(&mut self, what: &str) {
        if let Some(mut descriptor) = self.descriptor.take()
            && let Err(error) = descriptor.write_all(format!("ready: {what}\n").as_bytes())
        {
            tracing::warn!(%error, "cannot tell readiness on the descriptor");
        }
    }

    /// Tells systemd that the program is stopping.
    pub fn stopping(&self) {
        notify(&[NotifyState::Stopping]);
    }
}

/// Takes over a descriptor that this process was started with, by its number.
///
/// To be called at the start of the program, before it opens anything itself.
///
/// # Errors
/// The number is that of a standard stream, or none that is open.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "0, 1 and 2 are the standard streams",
        ));
    }
    // SAFETY: F_GETFD takes no pointer, and fails on a number that is not open.
    let open = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if open < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above; the number is open. A child of ours has no use for it.
    if unsafe { libc::fcntl(number, libc::F_SETFD, open | libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and it is ours alone: it came from whoever started this process, and nothing
    // in this process has been given its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn descriptor_gets_the_line_and_is_closed() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let mut ready = Ready::new(Some(writer.into()));
        ready.announce("proxy on 127.0.0.1:1080");
        let mut text = String::new();
        // Reading to the end returns only since the other end is closed.
        reader.read_to_string(&mut text).expect("text");
        assert_eq!(text, "ready: proxy on 127.0.0.1:1080\n");
        ready.announce("again");
    }

    #[test]
    fn standard_streams_and_closed_numbers_are_refused() {
        for number in [-1, 0, 1, 2, 1_000_000] {
            assert!(inherited(number).is_err(), "{number}");
        }
    }
}
