//! The socket between the process that becomes the command and the tunnel process: descriptors one way, the word that
//! the tunnel is up the other.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg,
    send, sendmsg, socketpair,
};

use crate::io::clock;

/// The end of the process that becomes the command.
#[derive(Debug)]
pub struct Inner(OwnedFd);

/// The end of the tunnel process.
#[derive(Debug)]
pub struct Outer(OwnedFd);

/// What the tunnel process needs of the namespaces.
#[derive(Debug)]
pub struct Handed {
    /// The TUN device.
    pub tun: OwnedFd,
    /// A routing socket of the network namespace.
    pub netlink: OwnedFd,
    /// The command's resolv.conf, writable.
    pub resolv_conf: OwnedFd,
}

/// What the tunnel process says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Addresses, routes and name servers are there.
    Up,
    /// There will be no tunnel, and why.
    Failed(String),
    /// Nothing was said in the time given.
    Silent,
    /// The tunnel process has ended.
    Gone,
}

/// Makes both ends.
///
/// # Errors
/// What the system says.
pub fn pair() -> io::Result<(Inner, Outer)> {
    let (inner, outer) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok((Inner(inner), Outer(outer)))
}

impl Inner {
    /// The descriptor, to be kept in the process that has it.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Gives the descriptors away.
    ///
    /// # Errors
    /// The tunnel process has ended.
    pub fn give(&self, handed: Handed) -> io::Result<()> {
        let Handed {
            tun,
            netlink,
            resolv_conf,
        } = handed;
        let descriptors = [tun.as_fd(), netlink.as_fd(), resolv_conf.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        retry(|| sendmsg(&self.0, &[IoSlice::new(&[0])], &mut control, NO_SIGNAL))?;
        Ok(())
    }

    /// Waits for what the tunnel process says, for `patience` at most.
    ///
    /// # Errors
    /// What the system says.
    pub fn wait(&self, patience: Duration) -> io::Result<Verdict> {
        let until = clock::now() + patience;
        loop {
            let left = until.saturating_duration_since(clock::now());
            match readable(&self.0, left) {
                Ok(true) => break,
                Ok(false) => return Ok(Verdict::Silent),
                // A stop and a continuation, for one.
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut message = [0; MAX_MESSAGE];
        let (length, _) = retry(|| recv(&self.0, &mut message[..], RecvFlags::empty()))?;
        Ok(match message.get(..length) {
            None | Some([]) => Verdict::Gone,
            Some([UP, ..]) => Verdict::Up,
            Some([_, reason @ ..]) => Verdict::Failed(String::from_utf8_lossy(reason).into_owned()),
        })
    }
}

impl Outer {
    /// The descriptor, to be kept in the tunnel process.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Waits for the descriptors; `None` when the other process has ended without giving them.
    ///
    /// # Errors
    /// What the system says, or that something else came.
    pub fn take(&self) -> io::Result<Option<Handed>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let received = retry(|| {
            let mut parts = [IoSliceMut::new(&mut byte)];
            recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        if received.bytes == 0 {
            return Ok(None);
        }
        let mut descriptors = Vec::with_capacity(DESCRIPTORS);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(list) = message {
                descriptors.extend(list);
            }
        }
        let whole = !received.flags.contains(ReturnFlags::CTRUNC);
        match <[OwnedFd; DESCRIPTORS]>::try_from(descriptors) {
            Ok([tun, netlink, resolv_conf]) if whole => Ok(Some(Handed {
                tun,
                netlink,
                resolv_conf,
            })),
            Ok(_) | Err(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Says that the tunnel is up. That the other process has ended shows elsewhere.
    pub fn say_up(&self) {
        let _ = retry(|| send(&self.0, &[UP], NO_SIGNAL));
    }

    /// Says that there will be no tunnel, and why.
    pub fn say_failed(&self, reason: &str) {
        let mut message = vec![FAILED];
        message.extend(reason.bytes().take(MAX_MESSAGE - 1));
        let _ = retry(|| send(&self.0, &message, NO_SIGNAL));
    }
}

fn readable(socket: &OwnedFd, patience: Duration) -> Result<bool, Errno> {
    let time = Timespec::try_from(patience).map_err(|_| Errno::INVAL)?;
    let mut polled = [PollFd::new(socket, PollFlags::IN)];
    Ok(poll(&mut polled, Some(&time))? > 0)
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

const NO_SIGNAL: SendFlags = SendFlags::NOSIGNAL;
const DESCRIPTORS: usize = 3;
const UP: u8 = 1;
const FAILED: u8 = 2;
/// A reason that is longer is cut off.
const MAX_MESSAGE: usize = 1024;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    fn file() -> OwnedFd {
        tempfile::tempfile().unwrap().into()
    }

    #[test]
    fn descriptors_arrive_in_their_order_and_words_come_back() {
        let (inner, outer) = pair().unwrap();
        let mut resolv_conf = File::from(file());
        let copy = resolv_conf.try_clone().unwrap();
        inner
            .give(Handed {
                tun: file(),
                netlink: file(),
                resolv_conf: copy.into(),
            })
            .unwrap();
        let handed = outer.take().unwrap().unwrap();
        let mut far = File::from(handed.resolv_conf);
        far.write_all(b"nameserver").unwrap();
        let mut text = String::new();
        resolv_conf.rewind().unwrap();
        resolv_conf.read_to_string(&mut text).unwrap();
        assert_eq!(text, "nameserver");
        assert_eq!(inner.wait(Duration::ZERO).unwrap(), Verdict::Silent);
        outer.say_failed("no room");
        outer.say_up();
        let soon = Duration::from_secs(10);
        let failed = Verdict::Failed("no room".into());
        assert_eq!(inner.wait(soon).unwrap(), failed);
        assert_eq!(inner.wait(soon).unwrap(), Verdict::Up);
        drop(outer);
        assert_eq!(inner.wait(soon).unwrap(), Verdict::Gone);
    }

    #[test]
    fn end_of_the_other_process_is_seen_and_a_message_without_descriptors_refused() {
        let (inner, outer) = pair().unwrap();
        send(&inner.0, &[0], NO_SIGNAL).unwrap();
        assert!(outer.take().is_err());
        drop(inner);
        assert!(outer.take().unwrap().is_none());
        outer.say_up();
    }
}
