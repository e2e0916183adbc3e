//! Forks the tunnel process off, before there is any thread.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{FileType, fstat};
use rustix::process::{PidfdFlags, getpid, pidfd_open, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Which process this is, after [`apart`].
#[derive(Debug)]
pub enum Apart {
    /// The one there was.
    Original,
    /// The new one, with the other.
    New(Other),
}

/// The original process, as the new one sees it.
#[derive(Debug)]
pub struct Other(OwnedFd);

impl Other {
    /// Begins to watch it, on the current tokio runtime.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn watch(self) -> io::Result<Watched> {
        // SAFETY: an `OwnedFd` is open and stays the same file; `Watched` gives out no way to replace or close it.
        let watched = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE) };
        Ok(Watched(watched?))
    }
}

/// The original process, watched.
#[derive(Debug)]
pub struct Watched(AsyncFd<OwnedFd>);

impl Watched {
    /// Waits until the process has ended, whatever program it was by then. Safe to cancel.
    pub async fn ended(&self) {
        // Ready to be read is what the descriptor of a process is when that has ended; an error tells of a runtime that
        // is shutting down.
        let _ready = self.0.readable().await;
    }
}

/// Makes a process beside this one that is not its child, has a session of its own, and of this one's descriptors
/// standard error and those of `kept` alone; both return.
///
/// What this process owns must be among `kept`: the new one still has its name, and would close another's by it.
///
/// # Errors
/// [`ApartError`]; in the original process only.
pub fn apart(kept: &[BorrowedFd<'_>]) -> Result<Apart, ApartError> {
    let threads = fs::read_dir("/proc/self/task").map_err(ApartError::Proc)?;
    let threads = threads.count();
    if threads != 1 {
        return Err(ApartError::Threads { threads });
    }
    let original = pidfd_open(getpid(), PidfdFlags::empty());
    let original = original.map_err(|error| ApartError::Pidfd(error.into()))?;
    match fork().map_err(ApartError::Fork)? {
        0 => {
            let made = setsid().map_err(io::Error::from).and_then(|_| fork());
            match made {
                Ok(0) => {}
                // The status is one byte, as the numbers of errors are.
                Ok(_) => exit(0),
                Err(error) => exit(error.raw_os_error().unwrap_or(libc::EAGAIN)),
            }
            let kept: Vec<RawFd> = kept
                .iter()
                .chain([&original.as_fd()])
                .map(|fd| fd.as_raw_fd())
                .collect();
            if let Err(error) = detach(&kept) {
                // Whoever waits at the other end sees that it closes.
                eprintln!("adit: cannot leave the descriptors of the command: {error}");
                exit(1);
            }
            Ok(Apart::New(Other(original)))
        }
        child => {
            let status = wait(child)?;
            match status {
                0 => Ok(Apart::Original),
                code => Err(ApartError::Fork(io::Error::from_raw_os_error(code))),
            }
        }
    }
}

/// Lets go of standard error if somebody may wait for its end: a pipe, a socket or a terminal. A file stays.
pub fn release_stderr() {
    let is_file = fstat(io::stderr())
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    if !is_file && let Ok(null) = null() {
        // A descriptor that is open can be replaced.
        let _ = dup2_stderr(null);
    }
}

/// Closes all descriptors but standard error and `kept`, and puts /dev/null in the place of the other streams.
fn detach(kept: &[RawFd]) -> io::Result<()> {
    let null = null()?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    drop(null);
    let listed = fs::read_dir("/proc/self/fd")?;
    let numbers: Vec<RawFd> = listed
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for number in numbers {
        if number > libc::STDERR_FILENO && !kept.contains(&number) {
            // SAFETY: a number that is not open is refused. Of those that are open, nothing in this process uses one:
            // the caller has let go of what it does not name, and what stays was inherited without being asked for.
            unsafe { libc::close(number) };
        }
    }
    Ok(())
}

fn null() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/null")
}

fn fork() -> io::Result<libc::pid_t> {
    // SAFETY: the process has one thread, as `apart` has seen: no lock is held that would stay so in the child.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
    }
}

/// Waits for the child between; gives its exit status.
fn wait(child: libc::pid_t) -> Result<i32, ApartError> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a live int.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        if waited == child {
            break;
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // Whoever started us ignores SIGCHLD: the kernel has taken the status.
            Some(libc::ECHILD) => return Ok(0),
            Some(_) | None => return Err(ApartError::Fork(error)),
        }
    }
    Ok(if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        libc::EINTR
    })
}

/// Ends the process without what belongs to the original one: buffers, handlers, temporary files.
fn exit(status: i32) -> ! {
    // SAFETY: it does not return.
    unsafe { libc::_exit(status) }
}

/// Why there is no second process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApartError {
    /// /proc is not there.
    #[error("/proc cannot be read ({0}): mount it, in a container by its default settings")]
    Proc(io::Error),
    /// A fork would copy one thread of several.
    #[error("{threads} threads run already, which a fork would not survive")]
    Threads {
        /// How many.
        threads: usize,
    },
    /// Processes cannot be watched.
    #[error("cannot watch this process ({0}): Linux 5.3 or newer is needed")]
    Pidfd(io::Error),
    /// The system gives no further process.
    #[error("cannot start a process for the tunnel: {0}")]
    Fork(io::Error),
}
