//! Listening for lanes: bind with errors that help, accept without spinning.
//!
//! When the process runs out of descriptors or the kernel out of memory, accept fails at once
//! and would do so again at once. The listener then waits, longer each time, and counts; what
//! is waiting stays in the kernel's backlog. The connections that nobody has authenticated yet
//! are bounded by a semaphore of the caller's: a permit is taken before a connection is, and
//! travels with it until its peer is known or it is dropped.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use super::lane::prepare_socket;

/// Accepts connections on one address.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    stats: Arc<Counters>,
}

impl Listener {
    /// Binds `address` and starts to listen.
    ///
    /// `[::]` takes IPv4 too, unless `siblings`, the other addresses this process listens on,
    /// have `0.0.0.0` with the same port. Port 0 takes a free port.
    ///
    /// # Errors
    ///
    /// When the address cannot be had; the text says what to do about it.
    pub fn bind(address: SocketAddr, siblings: &[SocketAddr]) -> Result<Listener, BindError> {
        let bind = || -> io::Result<TcpListener> {
            let domain = Domain::for_address(address);
            let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
            // A restart must not wait for the last connections' TIME_WAIT.
            socket.set_reuse_address(true)?;
            if address.is_ipv6() {
                socket.set_only_v6(only_v6(address, siblings))?;
            }
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            TcpListener::from_std(socket.into())
        };
        let listener = bind().map_err(|source| BindError::new(address, source))?;
        let address = listener
            .local_addr()
            .map_err(|source| BindError::new(address, source))?;
        Ok(Listener {
            listener,
            address,
            stats: Arc::default(),
        })
    }

    /// Waits for a permit of `unauthenticated` and then for a connection.
    ///
    /// Errors are no matter of the caller's: they are counted, and waited out where the system
    /// lacks something. `None` when the semaphore was closed, which ends the listener.
    ///
    /// Dropping the future loses no connection.
    pub async fn accept(&self, unauthenticated: &Arc<Semaphore>) -> Option<Accepted> {
        if unauthenticated.available_permits() == 0 {
            self.stats.full.fetch_add(1, Ordering::Relaxed);
        }
        let permit = Arc::clone(unauthenticated).acquire_owned().await.ok()?;
        let mut pause = FIRST_PAUSE;
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    self.stats.accepted.fetch_add(1, Ordering::Relaxed);
                    // It fails only for a connection that is gone again.
                    if prepare_socket(&stream).is_err() {
                        self.stats.aborted.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    return Some(Accepted {
                        stream,
                        peer,
                        permit,
                    });
                }
                Err(error) if is_lack(&error) => {
                    if pause == FIRST_PAUSE {
                        tracing::warn!(address = %self.address, %error, "accepting paused");
                    }
                    self.stats.pauses.fetch_add(1, Ordering::Relaxed);
                    sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
                Err(_error) => {
                    // A connection that ended before it was accepted; the next one is whole.
                    self.stats.aborted.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Returns the address bound, with the port that was chosen.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Returns the counters.
    pub fn stats(&self) -> ListenStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ListenStats {
            accepted: read(&self.stats.accepted),
            aborted: read(&self.stats.aborted),
            pauses: read(&self.stats.pauses),
            full: read(&self.stats.full),
        }
    }
}

/// A connection from a peer that nobody knows yet.
#[derive(Debug)]
pub struct Accepted {
    /// The connection, with a lane's socket options set.
    pub stream: TcpStream,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Its place among the unauthenticated; dropped as soon as the peer is known.
    pub permit: OwnedSemaphorePermit,
}

/// The counters of a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenStats {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections that were gone before they could be used.
    pub aborted: u64,
    /// Waits for descriptors or memory.
    pub pauses: u64,
    /// Times that all places for unauthenticated connections were taken.
    pub full: u64,
}

/// Why an address cannot be listened on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another socket has the port.
    #[error(
        "cannot listen on {address}: the port is in use; stop the program that has it \
         (`ss -ltnp 'sport = :{port}'` names it) or choose another port",
        port = address.port()
    )]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// The host has no such address.
    #[error(
        "cannot listen on {address}: this host has no such address; use {any}:{port} for all \
         that it has",
        any = if address.is_ipv6() { "[::]" } else { "0.0.0.0" },
        port = address.port()
    )]
    NotAvailable {
        /// The address.
        address: SocketAddr,
    },
    /// The port needs a privilege.
    #[error(
        "cannot listen on {address}: no permission for a port below the privileged limit; choose \
         a port from 1024 up or grant CAP_NET_BIND_SERVICE"
    )]
    NotPermitted {
        /// The address.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("cannot listen on {address}: {source}")]
    Other {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

impl BindError {
    fn new(address: SocketAddr, source: io::Error) -> BindError {
        match Errno::from_io_error(&source) {
            Some(Errno::ADDRINUSE) => BindError::InUse { address },
            Some(Errno::ADDRNOTAVAIL) => BindError::NotAvailable { address },
            Some(Errno::ACCESS) => BindError::NotPermitted { address },
            Some(_) | None => BindError::Other { address, source },
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicU64,
    aborted: AtomicU64,
    pauses: AtomicU64,
    full: AtomicU64,
}

/// Tells whether `[::]` has to leave IPv4 to a sibling that names it.
fn only_v6(address: SocketAddr, siblings: &[SocketAddr]) -> bool {
    siblings
        .iter()
        .any(|sibling| sibling.ip() == Ipv4Addr::UNSPECIFIED && sibling.port() == address.port())
}

/// Tells whether accept failed for lack of descriptors or memory, which only time mends.
fn is_lack(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS)
    )
}

/// Connections the kernel holds until they are accepted. It cuts this to `net.core.somaxconn`,
/// 4,096 on current systems.
const BACKLOG: i32 = 4096;

/// The first wait when the system lacks something: long beside a turn of the driver, short
/// beside a person's patience.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest such wait: what was lacking may be back, and peers give up after some seconds.
const LAST_PAUSE: Duration = Duration::from_secs(1);
