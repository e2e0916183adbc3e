//! Notices that the host's network changed: a link, an address or a route.
//!
//! A client that waits to reconnect tries again at once when there is reason to. The kernel
//! tells every process about such changes by rtnetlink multicasts; listening needs no privilege.
//! Changes come in bursts (a link, its addresses, their routes), so the watch waits until a
//! burst is over. What changed is not looked at: trying again is cheap.

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with,
};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

/// Waits for changes of the host's network.
#[derive(Debug)]
pub struct NetworkWatch {
    /// `None` where the kernel gives no such socket.
    socket: Option<AsyncFd<OwnedFd>>,
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

fn subscribe() -> io::Result<AsyncFd<OwnedFd>> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        NETLINK_ROUTE,
    )?;
    // The port id 0 lets the kernel choose one.
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    Ok(AsyncFd::register(socket)?)
}

/// Waits for a first message and then until none came for [`QUIET`], [`LONGEST_BURST`] at most.
async fn settled(socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
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
async fn drain(socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut readable = socket.readable().await?;
    // Only that a message came counts, so the rest of it may be cut off.
    let mut message = [0; 64];
    for _ in 0..MAX_DRAINED {
        match recv(socket, &mut message, RecvFlags::empty()) {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(Errno::AGAIN) => {
                readable.clear_ready();
                break;
            }
            // The kernel dropped messages because there were so many: a change all the more.
            Err(Errno::NOBUFS | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The protocol of the routing socket is number 0, which is also the default.
const NETLINK_ROUTE: Option<Protocol> = None;

/// The multicast groups of rtnetlink(7): links, and addresses and routes of both families.
const GROUPS: u32 =
    RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE;
const RTMGRP_LINK: u32 = 0x1;
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV4_ROUTE: u32 = 0x40;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;
const RTMGRP_IPV6_ROUTE: u32 = 0x400;

/// The silence that ends a burst: a Wi-Fi roam or DHCP exchange has no longer gaps as a rule,
/// and nobody notices it before a reconnection.
const QUIET: Duration = Duration::from_millis(300);

/// The longest burst: a host whose network changes without end must not hide that it does.
const LONGEST_BURST: Duration = Duration::from_secs(3);

/// How many messages are taken before other tasks get their turn.
const MAX_DRAINED: usize = 64;
