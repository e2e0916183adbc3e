//! Bytes and descriptors over a Unix socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Reads what there is, and the descriptor that came with it; of several all but the last are closed.
///
/// # Errors
///
/// What recvmsg(2) answers.
pub(super) fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(bytes)];
    let received = recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut passed = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            passed = descriptors.last().or(passed);
        }
    }
    Ok((received.bytes, passed))
}

/// Writes `bytes`, with a descriptor beside the first of them; returns how many were taken.
///
/// # Errors
///
/// What sendmsg(2) answers.
pub(super) fn send(socket: impl AsFd, bytes: &[u8], pass: BorrowedFd<'_>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [pass];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let slices = [IoSlice::new(bytes)];
    Ok(sendmsg(socket, &slices, &mut control, SendFlags::NOSIGNAL)?)
}

/// Descriptors that a message may bring; the kernel closes those beyond.
const MAX_PASSED: usize = 4;
