//! Notices that the host's network changed: a link, an address, a route or a routing rule.
//!
//! A client that waits to reconnect tries again at once when there is reason to. The kernel
//! tells every process about such changes by rtnetlink multicasts; listening needs no privilege.
//! Changes come in bursts (a link, its addresses, their routes), so the watch waits until a
//! burst is over. What changed is not looked at: trying again is cheap.

use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram as StdUnixDatagram;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, bind, socket_with};
use tokio::net::UnixDatagram;
use tokio::time::{Instant, timeout_at};

use super::outside::Outside;

/// Waits for changes of the host's network.
#[derive(Debug)]
pub struct NetworkWatch {
    /// `None` where the kernel gives no such socket.
    socket: Option<UnixDatagram>,
}

impl NetworkWatch {
    /// Subscribes to the changes from now on.
    ///
    /// Where that is not possible (a sandbox that forbids netlink) the watch exists and never
    /// reports anything; [`NetworkWatch::is_available`] tells.
    pub fn new() -> NetworkWatch {
        let socket = subscribe().inspect_err(|error| {
            tracing::debug!(%error, "no notice of network changes");
        });
        NetworkWatch {
            socket: socket.ok(),
        }
    }

    /// Tells whether changes are noticed at all.
    pub fn is_available(&self) -> bool {
        self.socket.is_some()
    }

    /// Waits until the network has changed and a burst of changes is over.
    ///
    /// Dropping the future loses at most the burst it was in.
    pub async fn changed(&mut self) {
        loop {
            let Some(socket) = &self.socket else {
                return pending().await;
            };
            match settled(socket).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::debug!(%error, "no more notice of network changes");
                    self.socket = None;
                }
            }
        }
    }
}

impl Default for NetworkWatch {
    fn default() -> Self {
        NetworkWatch::new()
    }
}

/// Returns the address from which what leaves as `outside` says goes to `remote`, as routes are now. Nothing is sent.
///
/// # Errors
///
/// There is no way there.
pub fn source_towards(remote: SocketAddr, outside: &Outside) -> io::Result<IpAddr> {
    let any: IpAddr = match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    outside.prepare(&socket)?;
    // Of a datagram socket it only looks up the route.
    socket.connect(remote)?;
    Ok(socket.local_addr()?.ip())
}

fn subscribe() -> io::Result<UnixDatagram> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        NETLINK_ROUTE,
    )?;
    // The port id 0 lets the kernel choose one.
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    // A netlink socket is a datagram socket; the type only lends its readiness and recv.
    UnixDatagram::from_std(StdUnixDatagram::from(socket))
}

/// Waits for a first message and then until none came for [`QUIET`], [`LONGEST_BURST`] at most.
async fn settled(socket: &UnixDatagram) -> io::Result<()> {
    drain(socket).await?;
    let end = Instant::now() + LONGEST_BURST;
    loop {
        let quiet = (Instant::now() + QUIET).min(end);
        match timeout_at(quiet, drain(socket)).await {
            Ok(drained) => drained?,
            Err(_elapsed) => return Ok(()),
        }
    }
}

/// Waits for a message and takes up to [`MAX_DRAINED`] of those that are there.
async fn drain(socket: &UnixDatagram) -> io::Result<()> {
    socket.readable().await?;
    // Only that a message came counts, so the rest of it may be cut off.
    let mut message = [0; 64];
    for _ in 0..MAX_DRAINED {
        match socket.try_recv(&mut message) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // The kernel dropped messages because there were so many: a change all the more.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOBUFS) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The protocol of the routing socket is number 0, which is also the default.
const NETLINK_ROUTE: Option<Protocol> = None;

/// The multicast groups of rtnetlink(7): links, and addresses, routes and rules of both families.
const GROUPS: u32 = RTMGRP_LINK
    | RTMGRP_IPV4_IFADDR
    | RTMGRP_IPV4_ROUTE
    | RTMGRP_IPV4_RULE
    | RTMGRP_IPV6_IFADDR
    | RTMGRP_IPV6_ROUTE
    | RTMGRP_IPV6_RULE;
const RTMGRP_LINK: u32 = 0x1;
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV4_ROUTE: u32 = 0x40;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;
const RTMGRP_IPV4_RULE: u32 = 0x80;
const RTMGRP_IPV6_ROUTE: u32 = 0x400;
/// `RTNLGRP_IPV6_RULE`, which has no such name.
const RTMGRP_IPV6_RULE: u32 = 1 << 18;

/// The silence that ends a burst: a Wi-Fi roam or DHCP exchange has no longer gaps as a rule,
/// and nobody notices it before a reconnection.
const QUIET: Duration = Duration::from_millis(300);

/// The longest burst: a host whose network changes without end must not hide that it does.
const LONGEST_BURST: Duration = Duration::from_secs(3);

/// How many messages are taken before other tasks get their turn.
const MAX_DRAINED: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs on virtual time: it passes only while everything waits.
    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime")
            .block_on(future)
    }

    fn watch() -> (UnixDatagram, NetworkWatch) {
        let (kernel, socket) = UnixDatagram::pair().expect("a pair of sockets");
        let watch = NetworkWatch {
            socket: Some(socket),
        };
        (kernel, watch)
    }

    #[test]
    fn burst_of_changes_is_one_change() {
        block_on(async {
            let (kernel, mut watch) = watch();
            let started = Instant::now();
            let burst = async {
                for _ in 0..5 {
                    kernel.send(&[1; 100]).await.expect("room");
                    tokio::time::sleep(QUIET / 2).await;
                }
            };
            tokio::join!(burst, watch.changed());
            assert!(started.elapsed() >= QUIET * 3);
            let more = tokio::time::timeout(QUIET * 10, watch.changed()).await;
            assert!(more.is_err(), "one burst was reported twice");
        });
    }

    #[test]
    fn endless_burst_is_reported_all_the_same() {
        block_on(async {
            let (kernel, mut watch) = watch();
            let burst = async {
                loop {
                    kernel.send(&[1; 100]).await.expect("room");
                    tokio::time::sleep(QUIET / 3).await;
                }
            };
            tokio::select! {
                () = burst => {}
                () = watch.changed() => {}
            }
        });
    }

    #[test]
    fn silence_is_no_change() {
        block_on(async {
            let (_kernel, mut watch) = watch();
            let changed = tokio::time::timeout(LONGEST_BURST * 10, watch.changed()).await;
            assert!(changed.is_err());
        });
    }

    #[test]
    fn watch_without_a_socket_never_reports() {
        block_on(async {
            let mut watch = NetworkWatch { socket: None };
            assert!(!watch.is_available());
            let changed = tokio::time::timeout(LONGEST_BURST * 10, watch.changed()).await;
            assert!(changed.is_err());
        });
    }
}
