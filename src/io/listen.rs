//! Listening for lanes: bind with errors that help, accept without spinning.
//!
//! When the process runs out of descriptors or the kernel out of memory, accept fails at once
//! and would do so again at once. The listener then waits, longer each time, and counts; what
//! is waiting stays in the kernel's backlog. The connections that nobody has authenticated yet
//! are bounded by a semaphore of the caller's: a permit is taken before a connection is, and
//! travels with it until its peer is known or it is dropped.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
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
use super::udp::UdpIo;

/// Looks whether `address` can be had, and listens to nobody: for connections, or for datagrams.
///
/// # Errors
///
/// As [`Listener::bind`].
pub fn look(
    address: SocketAddr,
    datagrams: bool,
    siblings: &[SocketAddr],
) -> Result<(), BindError> {
    let bind = |address: SocketAddr| -> io::Result<()> {
        let (kind, protocol) = if datagrams {
            (Type::DGRAM, Protocol::UDP)
        } else {
            (Type::STREAM, Protocol::TCP)
        };
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        // What only waits for its end is in nobody's way; of datagrams two could have one address by it.
        socket.set_reuse_address(!datagrams)?;
        if address.is_ipv6() {
            socket.set_only_v6(only_v6(address, siblings))?;
        }
        socket.bind(&address.into())
    };
    bind_some(address, siblings, bind).map_err(|source| BindError::new(address, source))
}

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
    /// have `0.0.0.0` with the same port; a kernel without IPv6 takes `0.0.0.0` for it. Port 0 takes a free port.
    ///
    /// # Errors
    ///
    /// When the address cannot be had; the text says what to do about it.
    pub fn bind(address: SocketAddr, siblings: &[SocketAddr]) -> Result<Listener, BindError> {
        let bind = |address: SocketAddr| -> io::Result<TcpListener> {
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
        let listener =
            bind_some(address, siblings, bind).map_err(|source| BindError::new(address, source))?;
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

/// Binds `address` for datagrams; the rules are those of [`Listener::bind`].
///
/// # Errors
///
/// When the address cannot be had; the text says what to do about it.
pub fn bind_datagrams(address: SocketAddr, siblings: &[SocketAddr]) -> Result<UdpIo, BindError> {
    let bind = |address| UdpIo::bind(address, only_v6(address, siblings));
    bind_some(address, siblings, bind).map_err(|source| {
        if Errno::from_io_error(&source) == Some(Errno::ADDRINUSE) {
            BindError::InUseByDatagrams { address }
        } else {
            BindError::new(address, source)
        }
    })
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
    /// Another socket has the port, for datagrams.
    #[error(
        "cannot listen on {address} for datagrams: the port is in use; stop the program that has \
         it (`ss -lunp 'sport = :{port}'` names it) or choose another port",
        port = address.port()
    )]
    InUseByDatagrams {
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

/// Binds `address`, or on a kernel without IPv6 what stands for it there.
fn bind_some<T>(
    address: SocketAddr,
    siblings: &[SocketAddr],
    bind: impl Fn(SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let refused = match bind(address) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT) => error,
        bound => return bound,
    };
    let Some(instead) = without_v6(address, siblings) else {
        return Err(refused);
    };
    tracing::info!(%address, %instead, "this kernel has no IPv6");
    bind(instead)
}

/// What every address of a host is where there is no IPv6, unless it is listened on anyway.
fn without_v6(address: SocketAddr, siblings: &[SocketAddr]) -> Option<SocketAddr> {
    let all = address.ip() == Ipv6Addr::UNSPECIFIED && !only_v6(address, siblings);
    all.then(|| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
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

#[cfg(test)]
mod tests {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(future)
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn loopback() -> Listener {
        Listener::bind(address("127.0.0.1:0"), &[]).expect("a free port")
    }

    #[test]
    fn kernel_without_ipv6_listens_on_what_it_has() {
        let no_v6 = |wanted: SocketAddr| match wanted {
            SocketAddr::V4(_) => Ok(wanted),
            SocketAddr::V6(_) => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
        };
        let bound = |text, siblings: &[SocketAddr]| bind_some(address(text), siblings, no_v6).ok();
        assert_eq!(bound("[::]:7443", &[]), Some(address("0.0.0.0:7443")));
        // One that is listened on anyway, and one address of IPv6's.
        assert_eq!(bound("[::]:7443", &[address("0.0.0.0:7443")]), None);
        assert_eq!(bound("[::1]:7443", &[]), None);
        let in_use = |_| Err::<(), _>(io::Error::from_raw_os_error(libc::EADDRINUSE));
        let error = bind_some(address("[::]:7443"), &[], in_use).expect_err("in use");
        assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
    }

    #[test]
    fn port_in_use_is_said_with_what_to_do() {
        block_on(async {
            let first = loopback();
            let error = Listener::bind(first.local_addr(), &[]).expect_err("it is in use");
            assert!(matches!(error, BindError::InUse { .. }));
            let text = error.to_string();
            let port = first.local_addr().port();
            assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
            assert!(text.contains(&format!("sport = :{port}")), "{text}");
        });
    }

    #[test]
    fn datagram_port_in_use_is_said_and_a_tcp_port_is_another() {
        block_on(async {
            let first = bind_datagrams(address("127.0.0.1:0"), &[]).expect("a free port");
            let error = bind_datagrams(first.local_addr(), &[]).expect_err("it is in use");
            let port = first.local_addr().port();
            let text = error.to_string();
            assert!(
                text.contains(&format!("ss -lunp 'sport = :{port}'")),
                "{text}"
            );
            // Somebody else may have it; then nothing is shown here.
            if let Ok(tcp) = Listener::bind(first.local_addr(), &[]) {
                assert_eq!(tcp.local_addr(), first.local_addr());
            }
        });
    }

    #[test]
    fn foreign_address_is_said() {
        block_on(async {
            // TEST-NET-3 of RFC 5737 belongs to nobody.
            let error = Listener::bind(address("203.0.113.7:0"), &[]).expect_err("not ours");
            assert!(matches!(error, BindError::NotAvailable { .. }), "{error}");
        });
    }

    #[test]
    fn unspecified_v6_address_takes_v4_unless_a_sibling_has_it() {
        assert!(!only_v6(address("[::]:1"), &[address("127.0.0.1:1")]));
        assert!(!only_v6(address("[::]:1"), &[address("0.0.0.0:2")]));
        assert!(only_v6(
            address("[::]:1"),
            &[address("[::]:1"), address("0.0.0.0:1")]
        ));
        block_on(async {
            let Ok(both) = Listener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), &[]) else {
                // A host without IPv6 has nothing to show here; the rule was shown above.
                return;
            };
            let port = both.local_addr().port();
            let permits = Arc::new(Semaphore::new(1));
            let (connected, accepted) = tokio::join!(
                TcpStream::connect(("127.0.0.1", port)),
                both.accept(&permits)
            );
            connected.expect("v4 reaches it");
            assert!(accepted.is_some());
        });
    }

    #[test]
    fn both_unspecified_addresses_share_a_port() {
        block_on(async {
            let v4 = Listener::bind(address("0.0.0.0:0"), &[]).expect("a free port");
            let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, v4.local_addr().port()));
            match Listener::bind(v6, &[v4.local_addr(), v6]) {
                Ok(_) => {}
                Err(BindError::Other { source, .. })
                    if Errno::from_io_error(&source) == Some(Errno::AFNOSUPPORT) => {}
                Err(error) => panic!("{error}"),
            }
        });
    }

    #[test]
    fn full_house_of_strangers_waits_in_the_backlog() {
        block_on(async {
            let listener = loopback();
            let permits = Arc::new(Semaphore::new(1));
            let _first = TcpStream::connect(listener.local_addr()).await.expect("up");
            let _second = TcpStream::connect(listener.local_addr()).await.expect("up");
            let stranger = listener.accept(&permits).await.expect("open");
            let mut next = Box::pin(listener.accept(&permits));
            assert!(futures_util::poll!(&mut next).is_pending());
            assert_eq!(listener.stats().full, 1);
            drop(stranger.permit);
            assert!(next.await.is_some());
            assert_eq!(listener.stats().accepted, 2);
        });
    }

    #[test]
    fn closed_semaphore_ends_the_listener() {
        block_on(async {
            let permits = Arc::new(Semaphore::new(1));
            permits.close();
            assert!(loopback().accept(&permits).await.is_none());
        });
    }

    #[test]
    fn only_lacks_are_waited_out() {
        for lack in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS] {
            assert!(is_lack(&lack.into()));
        }
        for other in [Errno::CONNABORTED, Errno::PROTO, Errno::NETDOWN] {
            assert!(!is_lack(&other.into()));
        }
    }

    /// The limit of descriptors belongs to the whole process, so the test proper runs in a
    /// process of its own: this one again, with only this test.
    #[test]
    fn running_out_of_descriptors_pauses_accepting_and_loses_nobody() {
        const CHILD: &str = "ADIT_TEST_OUT_OF_DESCRIPTORS";
        if std::env::var_os(CHILD).is_some() {
            return out_of_descriptors();
        }
        let name =
            "io::listen::tests::running_out_of_descriptors_pauses_accepting_and_loses_nobody";
        let output = std::process::Command::new(std::env::current_exe().expect("our own path"))
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .expect("runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("1 passed"), "{text}");
    }

    fn out_of_descriptors() {
        block_on(async {
            let listener = loopback();
            let permits = Arc::new(Semaphore::new(8));
            let mut client = TcpStream::connect(listener.local_addr()).await.expect("up");
            // The next descriptor would be the lowest free number: forbid it and all above.
            let probe = std::fs::File::open("/dev/null").expect("a descriptor");
            let lowest = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&probe)).expect("positive");
            drop(probe);
            let before = getrlimit(Resource::Nofile);
            let limit = |current| Rlimit {
                current,
                maximum: before.maximum,
            };
            setrlimit(Resource::Nofile, limit(Some(lowest))).expect("lowering is free");

            let mut accept = Box::pin(listener.accept(&permits));
            while listener.stats().pauses < 3 {
                assert!(futures_util::poll!(&mut accept).is_pending());
                sleep(Duration::from_millis(5)).await;
            }
            setrlimit(Resource::Nofile, limit(before.current)).expect("back as it was");

            let mut accepted = accept.await.expect("open");
            accepted.stream.write_all(b"hello").await.expect("open");
            let mut hello = [0; 5];
            client.read_exact(&mut hello).await.expect("open");
            assert_eq!(&hello, b"hello");
            assert_eq!(listener.stats().accepted, 1);
        });
    }
}
