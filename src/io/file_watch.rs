//! Notices that a file was written to, or that another took its name.
//!
//! The kernel tells by inotify(7), so nothing is woken while nothing happens. What is noticed is not said: whoever asks
//! looks at the file.

use std::ffi::{CString, OsStr};
use std::future::pending;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

/// Waits for changes of one file.
#[derive(Debug)]
pub struct FileWatch {
    /// `None` where the kernel does not tell.
    events: Option<AsyncFd<OwnedFd>>,
    name: CString,
}

impl FileWatch {
    /// Begins to watch `path`, which need not exist; its folder must. Must be called inside a tokio runtime.
    ///
    /// Where that is refused, the watch never reports anything.
    pub fn new(path: &Path) -> Self {
        let name = path.file_name().unwrap_or(OsStr::new("")).as_bytes();
        let events = subscribe(path).inspect_err(|error| {
            tracing::warn!(%error, "no notice of what others write to {}", path.display());
        });
        Self {
            events: events.ok(),
            // A path has no zero byte.
            name: CString::new(name).unwrap_or_default(),
        }
    }

    /// Waits until the file may be another than it was, and a moment longer, in which it is finished.
    ///
    /// Dropping the future loses nothing.
    pub async fn changed(&mut self) {
        loop {
            let Some(events) = &self.events else {
                return pending().await;
            };
            // What is there is read behind the last wait.
            let read = match events.readable().await {
                Ok(mut ready) => {
                    sleep(PAUSE).await;
                    ready.clear_ready();
                    drain(events.get_ref(), &self.name)
                }
                Err(error) => Err(error),
            };
            match read {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "no more notice of what others write");
                    self.events = None;
                }
            }
        }
    }
}

fn subscribe(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let events = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let changes = WatchFlags::CLOSE_WRITE
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO;
    add_watch(&events, folder, changes | WatchFlags::ONLYDIR)?;
    // SAFETY: an `OwnedFd` is open and stays the same file; `FileWatch` gives out no way to replace or close it.
    let registered = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) };
    registered.map_err(io::Error::from)
}

/// Takes all that is there; tells whether any of it is about the file.
fn drain(events: &OwnedFd, name: &CString) -> io::Result<bool> {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut reader = Reader::new(events, &mut buffer);
    let mut is_meant = false;
    loop {
        match reader.next() {
            // Without a name it is about the folder, or says that some were lost.
            Ok(event) => is_meant |= event.file_name().is_none_or(|of| of == name.as_c_str()),
            Err(Errno::AGAIN) => return Ok(is_meant),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// How long a file is given to be finished, and how often one is looked at that others write without end.
const PAUSE: Duration = Duration::from_millis(200);

/// Room for tens of events; one with the longest name takes 272 bytes.
const BUFFER: usize = 4096;

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::time::timeout;

    use super::*;

    const GUARD: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn file_that_is_written_replaced_or_deleted_is_noticed_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let mut watch = FileWatch::new(&path);
        fs::write(&path, "one").unwrap();
        timeout(GUARD, watch.changed()).await.unwrap();
        fs::write(folder.path().join("new"), "two").unwrap();
        assert!(!drain(watch.events.as_ref().unwrap().get_ref(), &watch.name).unwrap());
        fs::rename(folder.path().join("new"), &path).unwrap();
        timeout(GUARD, watch.changed()).await.unwrap();
        fs::remove_file(&path).unwrap();
        timeout(GUARD, watch.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn change_is_not_lost_with_whoever_waited() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let mut watch = FileWatch::new(&path);
        fs::write(&path, "one").unwrap();
        // Polled, and dropped before the pause is over.
        assert!(timeout(Duration::ZERO, watch.changed()).await.is_err());
        timeout(GUARD, watch.changed()).await.unwrap();
    }
}
