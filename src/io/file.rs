//! Opens files that somebody else has named, which may be anything.
//!
//! Opening a FIFO waits for whoever writes to it, and reading a device may never end: of a program that reads its
//! configuration again while it runs, nothing would be heard any more. So lists and certificates are regular files, and where
//! a pipe is of use, as for a key that another program prints, it is waited for for seconds.

use std::fs::{self, File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::clock;

/// Opens a regular file of at most `most` bytes for reading, without waiting for anybody.
///
/// # Errors
/// `IsADirectory`, `InvalidInput` for what else is no regular file, `FileTooLarge`, and what the file system says.
pub fn open_regular(path: &Path, most: u64) -> io::Result<File> {
    // Looked at before it is opened: that alone does something to some devices.
    refuse(fs::metadata(path)?.file_type())?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let metadata = file.metadata()?;
    refuse(metadata.file_type())?;
    let len = metadata.len();
    if len > most {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has {len} bytes, and no more than {most} are read"),
        ));
    }
    Ok(file)
}

/// Opens a file for reading, or a pipe such as a shell makes of `<(command)`, without waiting for anybody; who reads it
/// waits for what the writer of a pipe has to say, [`PATIENCE`] at most.
///
/// # Errors
/// What the file system says.
pub fn open_at_once(path: &Path) -> io::Result<AtOnce> {
    open_within(path, PATIENCE)
}

fn open_within(path: &Path, patience: Duration) -> io::Result<AtOnce> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    Ok(AtOnce {
        waits: !file.metadata()?.is_file(),
        until: clock::now() + patience,
        patience,
        file,
    })
}

/// What [`open_at_once`] has opened.
#[derive(Debug)]
pub struct AtOnce {
    file: File,
    /// Whether its end may not be there yet.
    waits: bool,
    until: Instant,
    patience: Duration,
}

impl AtOnce {
    /// Says what kind of file it is, and whose.
    ///
    /// # Errors
    /// What the file system says.
    pub fn metadata(&self) -> io::Result<fs::Metadata> {
        self.file.metadata()
    }
}

impl io::Read for AtOnce {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.waits {
            // Without a writer a pipe would be at its end already: it is asked for what has been written first.
            let left = self.until.saturating_duration_since(clock::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut wanted = [PollFd::new(&self.file, PollFlags::IN)];
            match poll(&mut wanted, Some(&left)) {
                Ok(0) => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!(
                            "this is no file, and nothing came of it in {:?}",
                            self.patience
                        ),
                    ));
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            match io::Read::read(&mut self.file, buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
        io::Read::read(&mut self.file, buffer)
    }
}

/// How long the writer of a pipe may take: a program that makes a key, not somebody who types one.
const PATIENCE: Duration = Duration::from_secs(5);

fn refuse(kind: FileType) -> io::Result<()> {
    let what = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("this is {what}, not a file"),
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, FileType as Kind, Mode, mknodat};

    use super::*;

    #[test]
    fn what_is_no_regular_file_is_refused_at_once_and_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let (fifo, socket) = (folder.path().join("fifo"), folder.path().join("socket"));
        mknodat(CWD, &fifo, Kind::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let _listening = UnixListener::bind(&socket).unwrap();
        let told = |path: &Path| open_regular(path, 10).unwrap_err().to_string();
        assert_eq!(told(&fifo), "this is a FIFO, not a file");
        assert_eq!(told(&socket), "this is a socket, not a file");
        assert_eq!(told(Path::new("/dev/zero")), "this is a device, not a file");
        let error = open_regular(folder.path(), 10).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
    }

    #[test]
    fn pipe_is_read_to_its_end_and_one_that_nobody_writes_to_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        mknodat(CWD, &fifo, Kind::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let error = io::read_to_string(open_within(&fifo, Duration::ZERO).unwrap());
        let error = error.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        let reader = open_at_once(&fifo).unwrap();
        let writes = std::thread::spawn(move || fs::write(fifo, "of a command"));
        assert_eq!(io::read_to_string(reader).unwrap(), "of a command");
        writes.join().unwrap().unwrap();
    }

    #[test]
    fn file_is_opened_up_to_its_bound_also_behind_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "0123456789").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        assert_eq!(
            io::read_to_string(open_regular(&link, 10).unwrap()).unwrap(),
            "0123456789"
        );
        let error = open_regular(&file, 9).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(
            error.to_string(),
            "it has 10 bytes, and no more than 9 are read"
        );
    }
}
