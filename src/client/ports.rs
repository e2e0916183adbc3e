//! Ports of this host that applications connect to: those of the proxy, of the local resolver, and of forwards.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tracing::debug;

use crate::io::lane::keep_alive;

/// Listens on a TCP port; port 0 takes a free one.
///
/// # Errors
///
/// What the system says; [`hint`] says what to do about it.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restart must not wait for the last connections' TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Sets what a connection of an application needs, right after it was accepted or made.
///
/// One whose other end has vanished without a word, as a telephone does that leaves the network, ends after two minutes;
/// what it holds would be held for ever.
pub(super) fn prepare(stream: &TcpStream) {
    // Without it, small messages of applications wait for acknowledgements.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "TCP_NODELAY refused");
    }
    if let Err(error) = keep_alive(stream) {
        debug!(%error, "SO_KEEPALIVE refused");
    }
}

/// What to do about an address that cannot be had; `taken` is for one that another program has.
pub(super) fn hint(error: &io::Error, taken: &'static str) -> &'static str {
    let is = |kind| error.kind() == kind;
    if is(io::ErrorKind::AddrInUse) {
        taken
    } else if is(io::ErrorKind::PermissionDenied) {
        "; ports below 1024 need privilege: choose a higher one"
    } else if is(io::ErrorKind::AddrNotAvailable) {
        "; this host does not have that address"
    } else {
        ""
    }
}

/// Whether accepting again at once would fail again.
pub(super) fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

/// How long accepting rests when descriptors have run out: short enough to go unnoticed,
/// long enough not to spin.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that may wait to be accepted: a burst beyond it costs applications the second
/// that the kernel waits before it asks again. The kernel bounds it too (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;

#[cfg(test)]
mod tests {
    use socket2::SockRef;

    use super::*;

    #[tokio::test]
    async fn connection_is_asked_for_a_sign_of_life_and_sends_at_once() {
        let listener = listen(([127, 0, 0, 1], 0).into()).unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (_near, accepted) = tokio::join!(connecting, listener.accept());
        let (stream, _) = accepted.unwrap();
        prepare(&stream);
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
    }

    #[tokio::test]
    async fn port_that_somebody_has_is_told_with_what_to_do() {
        let listener = listen(([127, 0, 0, 1], 0).into()).unwrap();
        let error = listen(listener.local_addr().unwrap()).unwrap_err();
        assert_eq!(hint(&error, "; stop it"), "; stop it");
    }
}
