//! Opens files that somebody else has named, which may be anything.
//!
//! Opening a FIFO waits for whoever writes to it, and reading a device may never end: of a program that reads its
//! configuration again while it runs, nothing would be heard any more.

use std::fs::{self, File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

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
