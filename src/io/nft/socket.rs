//! A blocking netlink socket for nftables, with every wait bounded.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use socket2::SockRef;

use super::message::{Batch, FIRST_SEQUENCE, dump_request};

/// A socket bound to a port of its own; an owned table lives as long as it.
#[derive(Debug)]
pub(super) struct NftSocket {
    socket: Socket,
}

impl NftSocket {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        // The kernel answers while it takes the request; a wait only happens if it never will.
        // SAFETY: `socket` is open and outlives the borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
        SockRef::from(&fd).set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self { socket })
    }

    /// Sends a transaction and waits until the kernel has taken all of it or refused.
    ///
    /// # Errors
    /// The first error of the kernel: then nothing of it happened. `TimedOut` when it does not answer.
    pub(super) fn run(&self, batch: Batch) -> io::Result<()> {
        let (bytes, mut missing) = batch.finish();
        self.send(&bytes)?;
        // One answer for each message, in order; an error about the begin or the commit stands for all.
        let mut answers = 0_usize;
        let mut failure = None;
        while !missing.is_empty() && failure.is_none() && answers < MAX_DATAGRAMS {
            answers += 1;
            for message in messages(&self.receive()?) {
                if message.kind == NLMSG_ERROR {
                    match message.error() {
                        Some(error) => failure = failure.or(Some(error)),
                        None if message.sequence >= missing.start => {
                            missing.start = message.sequence + 1
                        }
                        None => {}
                    }
                }
            }
        }
        match failure {
            Some(error) => {
                // Answers about later messages of the refused transaction may wait still.
                self.drain();
                Err(error)
            }
            None if missing.is_empty() => Ok(()),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Lists objects: family and attributes of each.
    ///
    /// # Errors
    /// As [`NftSocket::run`]; `Interrupted` when the rules changed meanwhile: then the list may have gaps.
    pub(super) fn list(&self, kind: u16) -> io::Result<Vec<Object>> {
        self.send(&dump_request(kind))?;
        let mut found = Vec::new();
        for _ in 0..MAX_DATAGRAMS {
            for message in messages(&self.receive()?) {
                if message.flags & NLM_F_DUMP_INTR != 0 {
                    self.drain();
                    return Err(io::ErrorKind::Interrupted.into());
                }
                match message.kind {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => {
                        return message.error().map_or(Ok(found), Err);
                    }
                    _ => {
                        if let Some((header, attributes)) = message.body.split_first_chunk::<4>() {
                            found.push(Object {
                                family: header[0],
                                attributes: attributes.to_vec(),
                            });
                        }
                    }
                }
            }
        }
        Err(io::ErrorKind::FileTooLarge.into())
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0)?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        loop {
            match self.socket.recv_from_full() {
                // Only the kernel, which is port 0, is listened to.
                Ok((bytes, from)) if from.port_number() == 0 => return Ok(bytes),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn drain(&self) {
        let mut buffer = Vec::with_capacity(4096);
        for _ in 0..MAX_DATAGRAMS {
            buffer.clear();
            if self.socket.recv(&mut buffer, libc::MSG_DONTWAIT).is_err() {
                return;
            }
        }
    }
}

/// An object of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) family: u8,
    pub(super) attributes: Vec<u8>,
}

/// One message of an answer.
#[derive(Debug)]
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Message<'_> {
    /// The error of an error message; none for an acknowledgement.
    fn error(&self) -> Option<io::Error> {
        let Some((code, _)) = self.body.split_first_chunk::<4>() else {
            return Some(io::ErrorKind::InvalidData.into());
        };
        // The kernel's numbers are negative.
        match i32::from_ne_bytes(*code).checked_neg() {
            Some(0) => None,
            Some(errno) => Some(io::Error::from_raw_os_error(errno)),
            None => Some(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Splits a datagram into messages. Ends at the first malformed one.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<16>()?;
        let word = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let length = usize::try_from(word(0)).ok()?;
        let body = bytes.get(16..length)?;
        let message = Message {
            kind: half(4),
            flags: half(6),
            sequence: word(8),
            body,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        // Sequence numbers below ours would be of somebody else.
        (message.sequence >= FIRST_SEQUENCE).then_some(message)
    })
}

/// Longer than the kernel ever takes, with its locks held by a large reload; short enough for an exit.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The most datagrams of one answer: a list of some hundred thousand rules.
const MAX_DATAGRAMS: usize = 16_384;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let length = 16 + body.len() as u32;
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 2]].concat();
        bytes.extend([&sequence.to_ne_bytes()[..], &[0; 4], body].concat());
        bytes
    }

    #[test]
    fn error_and_acknowledgement_are_told_apart() {
        let bytes = [
            message(NLMSG_ERROR, 2, &0_i32.to_ne_bytes()),
            message(NLMSG_ERROR, 3, &(-17_i32).to_ne_bytes()),
        ];
        let bytes = bytes.concat();
        let found: Vec<_> = messages(&bytes)
            .map(|message| {
                (
                    message.sequence,
                    message.error().and_then(|error| error.raw_os_error()),
                )
            })
            .collect();
        assert_eq!(found, [(2, None), (3, Some(17))]);
    }

    #[test]
    fn truncated_error_is_an_error() {
        let bytes = message(NLMSG_ERROR, 2, &[]);
        assert!(messages(&bytes).next().unwrap().error().is_some());
        let bytes = message(NLMSG_ERROR, 2, &i32::MIN.to_ne_bytes());
        assert!(messages(&bytes).next().unwrap().error().is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_are_split_without_panic(bytes: Vec<u8>) {
            for message in messages(&bytes) {
                let _ = message.error();
            }
        }
    }
}
