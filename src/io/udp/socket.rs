//! The socket itself: made, tuned, written to, and asked what the network said.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use quinn_udp::{RecvMeta, Transmit, TransportErrorPayload, UdpSockRef, UdpSocketState};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// A UDP socket of any number of senders and one reader.
#[derive(Debug)]
pub struct UdpIo {
    id: u32,
    pub(super) socket: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    pub(super) counters: Counters,
}

impl AsFd for UdpIo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl UdpIo {
    /// Binds a socket to listen on; `only_v6` keeps `[::]` from taking IPv4 too.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn bind(address: SocketAddr, only_v6: bool) -> io::Result<Self> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::DGRAM,
            Some(Protocol::UDP),
        )?;
        if address.is_ipv6() {
            socket.set_only_v6(only_v6)?;
        }
        Self::ready(socket, address)
    }

    /// Makes a socket for talking to `remote` and whatever else is of its family.
    ///
    /// It is bound to no address of the host's, so that it goes on when that changes, and it
    /// hears what the network says about what was sent.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn for_remote(remote: SocketAddr) -> io::Result<Self> {
        let any: IpAddr = match remote {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self::sending_from(any)
    }

    /// Makes such a socket that is bound to one address of the host's all the same.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn sending_from(source: IpAddr) -> io::Result<Self> {
        let io = Self::bind(SocketAddr::new(source, 0), true)?;
        // A kernel that cannot do it says nothing about the path, and silence tells in time.
        if let Err(error) = io
            .state
            .enable_transport_errors(UdpSockRef::from(&io.socket))
        {
            tracing::debug!(%error, "no word from the network about datagrams that are lost");
        }
        Ok(io)
    }

    /// Returns the number that tells this socket from the others of the process.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Returns the address bound, with the port that was chosen.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Returns how many datagrams one send may hold: 1 where the kernel does not segment.
    pub fn segments(&self) -> usize {
        self.state.max_gso_segments().max(1)
    }

    /// Lets routers cut what is sent from now on into fragments, or forbids it again.
    ///
    /// For a socket of one sender: a first datagram that may be larger than the path must
    /// arrive all the same.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn set_may_fragment(&self, may: bool) -> io::Result<()> {
        let (v4, v6, dont) = if may {
            (libc::IP_PMTUDISC_DONT, libc::IPV6_PMTUDISC_DONT, 0)
        } else {
            (libc::IP_PMTUDISC_PROBE, libc::IPV6_PMTUDISC_PROBE, 1)
        };
        if self.local.is_ipv4() {
            return set_option(&self.socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, v4);
        }
        set_option(
            &self.socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            v6,
        )?;
        set_option(&self.socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, dont)
    }

    /// Sends one datagram, or several of equal length, now or not at all.
    ///
    /// # Errors
    ///
    /// What the system says; `WouldBlock` when the socket's buffer is full.
    pub fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.socket.try_io(Interest::WRITABLE, || {
            self.state
                .try_send(UdpSockRef::from(&self.socket), transmit)
        });
        if sent.is_ok() {
            let datagrams = match transmit.segment_size {
                Some(size) => transmit.contents.len().div_ceil(size.max(1)),
                None => 1,
            };
            add(&self.counters.sends, 1);
            add(&self.counters.datagrams_sent, datagrams as u64);
            add(&self.counters.bytes_sent, transmit.contents.len() as u64);
        }
        sent
    }

    /// Takes one thing that the network said about datagrams that were sent.
    ///
    /// `None` when there is none, or when the kernel does not tell.
    pub fn take_feedback(&self) -> Option<Feedback> {
        let error = self
            .state
            .recv_transport_error(UdpSockRef::from(&self.socket))
            .ok()??;
        Some(match error.payload {
            TransportErrorPayload::TooBig { mtu } => Feedback::TooBig {
                mtu: usize::try_from(mtu).ok(),
            },
            TransportErrorPayload::Unreachable | TransportErrorPayload::Other | _ => {
                Feedback::of_errno(error.raw_errno)
            }
        })
    }

    /// Returns the counters.
    pub fn stats(&self) -> UdpStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        UdpStats {
            receives: read(&counters.receives),
            datagrams_received: read(&counters.datagrams_received),
            bytes_received: read(&counters.bytes_received),
            sends: read(&counters.sends),
            datagrams_sent: read(&counters.datagrams_sent),
            bytes_sent: read(&counters.bytes_sent),
            blocked: read(&counters.blocked),
            no_buffers: read(&counters.no_buffers),
            too_big: read(&counters.too_big),
            unreachable: read(&counters.unreachable),
            failed: read(&counters.failed),
        }
    }

    /// Reads if the socket is ready for `interest`; a union of interests is never ready.
    pub(super) fn try_recv(
        &self,
        interest: Interest,
        slices: &mut [io::IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> io::Result<usize> {
        self.socket.try_io(interest, || {
            self.state
                .recv(UdpSockRef::from(&self.socket), slices, metas)
        })
    }

    fn ready(socket: Socket, address: SocketAddr) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        // Beyond what the system allows these are cut, and nothing is wrong with that.
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        socket.bind(&address.into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        let local = socket.local_addr()?;
        tracing::debug!(
            %local,
            receive_buffer = SockRef::from(&socket).recv_buffer_size().unwrap_or(0),
            send_buffer = SockRef::from(&socket).send_buffer_size().unwrap_or(0),
            segments = state.max_gso_segments(),
            "datagram socket"
        );
        Ok(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            socket,
            state,
            local,
            counters: Counters::default(),
        })
    }
}

/// What the network, or this host's kernel, said about a datagram that was sent.
///
/// Anybody on the path can say it: a hint, never a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Feedback {
    /// It does not fit the path.
    TooBig {
        /// The MTU that was named, in bytes of the whole IP packet.
        mtu: Option<usize>,
    },
    /// Nobody listens on the port.
    Refused,
    /// There is no way there at this moment, or none that this host may use.
    Unreachable,
    /// A packet filter of this host's own has dropped it.
    Forbidden,
}

impl Feedback {
    pub(super) fn of_errno(errno: i32) -> Self {
        match errno {
            libc::EMSGSIZE => Self::TooBig { mtu: None },
            libc::ECONNREFUSED => Self::Refused,
            _ => Self::Unreachable,
        }
    }

    /// Tells what an error of a send or receive says of the path; `None` if it says nothing.
    pub(super) fn of_error(error: &io::Error) -> Option<Self> {
        match Errno::from_io_error(error)? {
            Errno::MSGSIZE => Some(Self::TooBig { mtu: None }),
            Errno::CONNREFUSED => Some(Self::Refused),
            Errno::NETUNREACH
            | Errno::HOSTUNREACH
            | Errno::NETDOWN
            | Errno::HOSTDOWN
            | Errno::ADDRNOTAVAIL
            | Errno::ACCESS
            | Errno::PROTO
            | Errno::NOPROTOOPT => Some(Self::Unreachable),
            // Of a datagram that an output chain drops; the kernel says nothing else by it.
            Errno::PERM => Some(Self::Forbidden),
            _ => None,
        }
    }
}

/// What is said of a datagram that this host's own packet filter has dropped.
pub const FORBIDDEN: &str = "the firewall of this host refuses it (EPERM)";

/// The counters of a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpStats {
    /// Reads that brought something.
    pub receives: u64,
    /// Datagrams received.
    pub datagrams_received: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Writes that the kernel took.
    pub sends: u64,
    /// Datagrams sent.
    pub datagrams_sent: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Times that the socket's buffer was full.
    pub blocked: u64,
    /// Datagrams lost because the kernel had no buffer for them.
    pub no_buffers: u64,
    /// Datagrams lost because this host's own link does not take them.
    pub too_big: u64,
    /// Datagrams lost because there was no way to their target.
    pub unreachable: u64,
    /// Datagrams lost to any other error.
    pub failed: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) receives: AtomicU64,
    pub(super) datagrams_received: AtomicU64,
    pub(super) bytes_received: AtomicU64,
    sends: AtomicU64,
    datagrams_sent: AtomicU64,
    bytes_sent: AtomicU64,
    pub(super) blocked: AtomicU64,
    pub(super) no_buffers: AtomicU64,
    pub(super) too_big: AtomicU64,
    pub(super) unreachable: AtomicU64,
    pub(super) failed: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn set_option(socket: &UdpSocket, level: i32, name: i32, value: i32) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the option's value is an int that outlives the call, and its length is said.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Numbers are used again after 4 billion sockets, when nobody remembers the first.
static NEXT_ID: AtomicU32 = AtomicU32::new(0);

/// What the socket's buffers are asked to hold each: 30 ms at a gigabit. The system cuts it to
/// `net.core.rmem_max` and `wmem_max`.
pub const SOCKET_BUFFER: usize = 4 << 20;
