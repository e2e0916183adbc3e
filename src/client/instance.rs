//! By which id the server knows this process from others that have the same key.
//!
//! A lease belongs to a key and an instance. Of a client that said goodbye the next instance has the addresses at once, while
//! those of one that was killed are held by a session that nobody ends for a minute. So a client writes its instance beside
//! its control socket, and the next one that listens there goes on with it: the server ends the dead session for that of the
//! living, which has its addresses.
//!
//! Two processes never have the same: only who listens on the control socket reads the file or writes it, the file counts
//! for the running of this kernel alone, and it goes with the socket where the end is in order. Where there is no control
//! socket, each process is a new instance. The session of a whole host, an instance of its own, has its file in the state
//! folder, whose lock its process has.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rand::RngExt as _;
use rustix::process::geteuid;

use crate::io::control::COMPANION;
use crate::io::state::write_atomically;
use crate::io::unix::Listener;

/// The instance of a client, while it runs.
#[derive(Debug)]
pub struct Instance {
    id: [u8; 8],
    /// Where it is kept for the next one, and what was written there.
    file: Option<(PathBuf, String)>,
}

impl Instance {
    /// A new one, which is kept for nobody.
    pub fn new() -> Self {
        Self {
            id: rand::rng().random(),
            file: None,
        }
    }

    /// That of whoever listened on this control socket before and was killed, or a new one.
    pub fn of(control: &Listener) -> Self {
        Self::kept(&beside(control.path()), &boot())
    }

    /// That of whoever led the host before by this state folder, whose lock the caller has, or a new one.
    pub fn of_host(state: &Path) -> Self {
        Self::kept(&state.join(OF_HOST), &boot())
    }

    fn kept(file: &Path, boot: &str) -> Self {
        let mut instance = Self::new();
        let whose: u64 = rand::rng().random();
        if let Some(id) = read(file, boot) {
            instance.id = id;
        }
        let id = u64::from_be_bytes(instance.id);
        let text = format!("{boot} {id:016x} {whose:016x}\n");
        match write_atomically(file, text.as_bytes()) {
            Ok(()) => instance.file = Some((file.to_owned(), text)),
            Err(error) => {
                tracing::debug!(%error, file = %file.display(), "the instance is kept for nobody");
            }
        }
        instance
    }

    /// The id.
    pub fn id(&self) -> [u8; 8] {
        self.id
    }

    /// Forgets it: the session has ended in order, and whoever comes next gets its addresses anyway. Whoever has come already,
    /// while we said goodbye, goes on with it, and has the file.
    pub fn forget(&self) {
        if let Some((file, written)) = &self.file
            && text(file).is_ok_and(|text| text == *written)
        {
            // Where it stays, the next one is the same instance: no harm.
            let _ = fs::remove_file(file);
        }
    }
}

impl Default for Instance {
    fn default() -> Self {
        Self::new()
    }
}

fn boot() -> String {
    let boot = fs::read_to_string(BOOT).unwrap_or_default();
    boot.trim().to_owned()
}

/// The file of whoever listens there: no two sockets have the same, whatever dots are in their names.
fn beside(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(COMPANION);
    name.into()
}

fn read(file: &Path, boot: &str) -> Option<[u8; 8]> {
    let text = match text(file) {
        Ok(text) => text,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::debug!(%error, file = %file.display(), "the former instance is not known");
            }
            return None;
        }
    };
    let mut fields = text.split_whitespace();
    let (of, id) = (fields.next()?, fields.next()?);
    if boot.is_empty() || of != boot || id.len() != 16 {
        return None;
    }
    u64::from_str_radix(id, 16).ok().map(u64::to_be_bytes)
}

/// What a file of our own says: others may write to the folder, too, where the control socket has a place of somebody's choice.
fn text(file: &Path) -> io::Result<String> {
    // Of a FIFO nobody might ever be at the other end.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(file)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.uid() != geteuid().as_raw() {
        return Err(io::Error::other("this is no file of this user"));
    }
    let mut text = String::new();
    file.take(MAX_LEN).read_to_string(&mut text)?;
    Ok(text)
}

/// Which running of the kernel this is (random(4)).
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// In the state folder of a client that leads its host.
const OF_HOST: &str = "host.instance";

/// More than a file of ours has: a UUID, twice a space and 16 digits, and the end of the line.
const MAX_LEN: u64 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_process_goes_on_with_the_instance_of_one_that_was_killed_under_the_same_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("client-a-b.instance");
        let first = Instance::kept(&file, "one");
        assert_eq!(Instance::kept(&file, "one").id(), first.id());
        let other = Instance::kept(&file, "two");
        assert_ne!(other.id(), first.id(), "after a restart of the host");
        other.forget();
        assert!(!file.exists(), "after an end in order");
    }

    #[test]
    fn one_that_ends_leaves_its_file_to_whoever_has_come_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("client-a-b.instance");
        let first = Instance::kept(&file, "one");
        let second = Instance::kept(&file, "one");
        assert_eq!(second.id(), first.id());
        first.forget();
        assert_eq!(Instance::kept(&file, "one").id(), first.id());
        second.forget();
        assert!(file.exists(), "the third has it");
    }

    #[test]
    fn file_that_makes_no_sense_is_replaced_and_one_that_cannot_be_written_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("client-a-b.instance");
        for text in ["", "one", "one x", "one 123", " 0123456789abcdef"] {
            fs::write(&file, text).unwrap();
            let id = Instance::kept(&file, "one").id();
            assert_eq!(read(&file, "one"), Some(id), "{text}");
        }
        assert_eq!(read(&file, ""), None, "a kernel that does not say");
        let nowhere = Instance::kept(Path::new("/nowhere/at/all"), "one");
        assert_eq!(nowhere.file, None);
    }

    #[test]
    fn sockets_whose_names_differ_behind_a_dot_alone_have_instances_of_their_own() {
        let [one, two] = ["/run/home.one", "/run/home.two"].map(|name| beside(Path::new(name)));
        assert_ne!(one, two);
        assert_eq!(one, Path::new("/run/home.one.instance"));
    }

    #[test]
    fn what_somebody_has_planted_is_neither_followed_nor_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("client-a-b.sock.instance");
        let elsewhere = folder.path().join("elsewhere");
        fs::write(&elsewhere, "one 0123456789abcdef\n").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        assert_eq!(read(&file, "one"), None, "a link");
        fs::remove_file(&file).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &file,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        assert_eq!(read(&file, "one"), None, "a FIFO");
        let id = Instance::kept(&file, "one").id();
        assert_eq!(read(&file, "one"), Some(id), "it is replaced");
        let elsewhere = fs::read_to_string(&elsewhere).unwrap();
        assert_eq!(elsewhere, "one 0123456789abcdef\n");
    }
}
