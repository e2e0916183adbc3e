//! ICMP echo through ordinary sockets: what `ping` needs, without a capability.
//!
//! # Theory of operation
//!
//! Linux lets a process open an ICMP datagram socket if its group lies in the sysctl
//! `net.ipv4.ping_group_range`. The kernel replaces the identifier of each request by the
//! socket's own and gives back only the replies to it. One socket per inner address,
//! identifier and family therefore stands for one running `ping`.
//!
//! # Limits
//!
//! At most [`MAX_ECHOES`] sockets per session, each ended after [`ECHO_IDLE`] without a
//! request. Where the sysctl forbids such sockets, requests are counted, and their senders are to be told.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use adit_netstack::{PacketSink, Stack};
use slab::Slab;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use super::udp::send;
use crate::io::carrier::has_room;
use crate::io::pool::{Buffer, Pool};
use crate::io::relay::{Notice, ReadySet};

/// The ping sockets of one session.
#[derive(Debug)]
pub struct EchoSockets {
    by_client: HashMap<(IpAddr, u16, bool), usize>,
    echoes: Slab<Echo>,
    ready: Arc<ReadySet>,
    /// The message that is being sent.
    message: Vec<u8>,
    sweep: Option<Instant>,
    stats: EchoStats,
}

/// What [`EchoSockets`] have counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EchoStats {
    /// Requests sent.
    pub requests: u64,
    /// Replies passed on.
    pub replies: u64,
    /// Requests not sent because the system gives no ping socket.
    pub no_socket: u64,
    /// Requests dropped because too many sockets are open.
    pub too_many: u64,
    /// Requests the system did not take.
    pub send_failed: u64,
    /// Reads that failed.
    pub receive_failed: u64,
    /// Replies that did not fit the lane as a whole.
    pub no_room: u64,
}

impl EchoSockets {
    /// Makes an empty table.
    pub fn new() -> Self {
        Self {
            by_client: HashMap::new(),
            echoes: Slab::new(),
            ready: ReadySet::new(),
            message: Vec::new(),
            sweep: None,
            stats: EchoStats::default(),
        }
    }

    /// Sends an echo request of `client`'s to `origin`, or drops it; returns whether this system lets it send any.
    pub fn send(
        &mut self,
        now: Instant,
        client: IpAddr,
        origin: IpAddr,
        ident: u16,
        sequence: u16,
        payload: &[u8],
    ) -> bool {
        let owner = (client, ident, origin.is_ipv4());
        let key = match self.by_client.get(&owner) {
            Some(&key) => key,
            None if self.echoes.len() >= MAX_ECHOES => {
                self.stats.too_many += 1;
                return true;
            }
            None => match open(origin) {
                Ok(socket) => self.insert(now, owner, socket),
                Err(error) => {
                    self.stats.no_socket += 1;
                    return error.kind() != io::ErrorKind::PermissionDenied;
                }
            },
        };
        let Some(echo) = self.echoes.get_mut(key) else {
            return true;
        };
        echo.last_used = now;
        let kind = if origin.is_ipv4() {
            REQUEST_V4
        } else {
            REQUEST_V6
        };
        // Checksum and identifier are the kernel's to fill in.
        let message = &mut self.message;
        message.clear();
        message.extend_from_slice(&[kind, 0, 0, 0, 0, 0]);
        message.extend_from_slice(&sequence.to_be_bytes());
        message.extend_from_slice(payload);
        match send(&echo.socket, message, SocketAddr::new(origin, 0)) {
            Ok(_) => self.stats.requests += 1,
            Err(_) => self.stats.send_failed += 1,
        }
        if echo.notice.queue() {
            self.sweep.get_or_insert(now + ECHO_IDLE);
        }
        true
    }

    /// Moves the replies into the tunnel, through a buffer of `pool`; returns whether there were any.
    pub fn poll<S: PacketSink>(
        &mut self,
        cx: &Context<'_>,
        now: Instant,
        pool: &Arc<Pool>,
        stack: &mut Stack,
        sink: &mut S,
    ) -> bool {
        self.ready.register(cx);
        let mut any = false;
        let mut scratch = None;
        for _ in 0..MAX_ECHOES {
            if self.ready.is_empty() || !has_room(sink) {
                return any;
            }
            let Some(key) = self.ready.pop() else { break };
            let Some(echo) = self.echoes.get_mut(key) else {
                continue;
            };
            any = true;
            echo.notice.taken();
            // Replies are read here first: their length is not known before.
            let scratch: &mut Buffer = scratch.get_or_insert_with(|| pool.large());
            let mut wake = Context::from_waker(&echo.waker);
            let mut errors = 0;
            for turn in 1..=REPLIES_PER_TURN {
                if !has_room(sink) {
                    echo.notice.queue();
                    break;
                }
                let mut buffer = ReadBuf::new(scratch);
                let from = match echo.socket.poll_recv_from(&mut wake, &mut buffer) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(from)) => Some(from),
                    // What an earlier request met with; the next read may find a reply.
                    Poll::Ready(Err(_)) => {
                        errors += 1;
                        None
                    }
                };
                // A socket that has nothing but errors gets its turn with the next request.
                if turn == REPLIES_PER_TURN && errors < turn {
                    echo.notice.queue();
                }
                let Some((header, payload)) = buffer.filled().split_at_checked(ICMP_HEADER) else {
                    continue;
                };
                let Some(from) = from.filter(|_| matches!(header[0], REPLY_V4 | REPLY_V6)) else {
                    continue;
                };
                echo.last_used = now;
                let (client, ident, _) = echo.owner;
                let sequence = u16::from_be_bytes([header[6], header[7]]);
                match stack.send_echo(sink, from.ip(), client, false, ident, sequence, payload) {
                    Ok(()) => self.stats.replies += 1,
                    Err(_) => self.stats.no_room += 1,
                }
            }
            self.stats.receive_failed += errors as u64;
        }
        any
    }

    /// Returns when [`EchoSockets::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.sweep
    }

    /// Ends the sockets that have been idle for [`ECHO_IDLE`].
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.sweep.is_none_or(|due| now < due) {
            return;
        }
        let by_client = &mut self.by_client;
        self.echoes.retain(|_, echo| {
            let keep = now < echo.last_used + ECHO_IDLE;
            if !keep {
                by_client.remove(&echo.owner);
            }
            keep
        });
        if self.echoes.is_empty() {
            self.message = Vec::new();
        }
        self.sweep = self
            .echoes
            .iter()
            .map(|(_, echo)| echo.last_used + ECHO_IDLE)
            .min();
    }

    /// Counts the sockets there are.
    pub fn sockets(&self) -> usize {
        self.echoes.len()
    }

    /// Returns what was counted.
    pub fn stats(&self) -> &EchoStats {
        &self.stats
    }

    fn insert(&mut self, now: Instant, owner: (IpAddr, u16, bool), socket: UdpSocket) -> usize {
        let entry = self.echoes.vacant_entry();
        let key = entry.key();
        let notice = Arc::new(Notice::new(self.ready.clone(), key));
        entry.insert(Echo {
            owner,
            socket,
            waker: Waker::from(notice.clone()),
            notice,
            last_used: now,
        });
        self.by_client.insert(owner, key);
        key
    }
}

impl Default for EchoSockets {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug)]
struct Echo {
    owner: (IpAddr, u16, bool),
    socket: UdpSocket,
    waker: Waker,
    notice: Arc<Notice>,
    last_used: Instant,
}

fn open(origin: IpAddr) -> io::Result<UdpSocket> {
    // An ICMP datagram socket is read and written as a UDP socket is.
    UdpSocket::from_std(socket(origin.is_ipv4())?.into())
}

fn socket(v4: bool) -> io::Result<Socket> {
    let (domain, protocol) = if v4 {
        (Domain::IPV4, Protocol::ICMPV4)
    } else {
        (Domain::IPV6, Protocol::ICMPV6)
    };
    Socket::new(domain, Type::DGRAM.nonblocking(), Some(protocol))
}

/// Looks whether the system gives ping sockets; one sysctl says so for both families.
///
/// # Errors
///
/// It does not, and clients' pings are refused.
pub fn permitted() -> io::Result<()> {
    socket(true).map(drop)
}

/// What makes the system give them.
pub const PING_REMEDY: &str =
    "sysctl -w net.ipv4.ping_group_range=\"0 2147483647\" (for a container: docker run --sysctl)";

/// Sockets of one session: pings that run at the same time.
pub const MAX_ECHOES: usize = 64;

/// Replies read per socket and turn, so that one that is flooded cannot starve the session.
const REPLIES_PER_TURN: usize = 64;

/// How long a socket stays without a request.
pub const ECHO_IDLE: Duration = Duration::from_secs(30);

/// Type, code, checksum, identifier, sequence number (RFC 792, RFC 4443 section 4.1).
const ICMP_HEADER: usize = 8;

const REQUEST_V4: u8 = 8;
const REPLY_V4: u8 = 0;
const REQUEST_V6: u8 = 128;
const REPLY_V6: u8 = 129;

#[cfg(test)]
mod tests {
    use adit_netstack::{Accept, Config, Offload};

    use super::*;
    use crate::io::tun::tests::host::{on_host, set_sysctl};

    /// A lane that always has room.
    #[derive(Default)]
    struct Wire {
        room: Vec<u8>,
        packets: Vec<Vec<u8>>,
    }

    impl PacketSink for Wire {
        fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
            self.room.resize(len, 0);
            Some(&mut self.room[..len])
        }

        fn commit(&mut self, len: usize, _: Offload) {
            self.packets.push(self.room[..len].to_vec());
        }
    }

    fn stack() -> Stack {
        let config = Config {
            accept: Accept::Any,
            ..Config::default()
        };
        Stack::new(config, 1)
    }

    fn client(origin: IpAddr) -> IpAddr {
        match origin {
            IpAddr::V4(_) => IpAddr::from([10, 86, 0, 2]),
            IpAddr::V6(_) => IpAddr::from([0xfd86, 0, 0, 0, 0, 0, 0, 2]),
        }
    }

    /// Polls until so many replies have come.
    async fn replies(echoes: &mut EchoSockets, now: Instant, count: usize) -> Vec<Vec<u8>> {
        let (mut stack, mut wire) = (stack(), Wire::default());
        let cx = Context::from_waker(Waker::noop());
        let pool = Pool::new("test", 0, 1);
        while wire.packets.len() < count {
            echoes.poll(&cx, now, &pool, &mut stack, &mut wire);
            tokio::task::yield_now().await;
        }
        wire.packets
    }

    #[test]
    fn ping_is_answered_with_its_own_identifier_sequence_number_and_payload() {
        on_host(|| async {
            set_sysctl("net/ipv4/ping_group_range", "0 0");
            let now = Instant::now();
            let mut echoes = EchoSockets::new();
            for (origin, reply, header) in [("127.0.0.1", REPLY_V4, 20), ("::1", REPLY_V6, 40)] {
                let origin: IpAddr = origin.parse().unwrap();
                // Two pings of one client, and one of them again.
                for (ident, payload) in [(7, &b"seven"[..]), (8, b"eight"), (7, &[5; 1000])] {
                    echoes.send(now, client(origin), origin, ident, 0x0102, payload);
                    let packet = replies(&mut echoes, now, 1).await.remove(0);
                    let mut expected = vec![reply, 0, packet[header + 2], packet[header + 3]];
                    expected.extend_from_slice(&[0, ident as u8, 1, 2]);
                    expected.extend_from_slice(payload);
                    assert_eq!(packet[header..], expected, "{origin}");
                }
            }
            assert_eq!(echoes.echoes.len(), 4);
            let stats = echoes.stats();
            assert_eq!((stats.requests, stats.replies), (6, 6));
        });
    }

    #[test]
    fn sockets_are_64_at_most_and_end_after_30_s_without_a_request() {
        on_host(|| async {
            set_sysctl("net/ipv4/ping_group_range", "0 0");
            let origin = IpAddr::from([127, 0, 0, 1]);
            let start = Instant::now();
            let mut echoes = EchoSockets::new();
            for ident in 0..MAX_ECHOES as u16 + 1 {
                echoes.send(start, client(origin), origin, ident, 1, b"x");
            }
            assert_eq!(echoes.stats().too_many, 1);
            assert_eq!(
                replies(&mut echoes, start, MAX_ECHOES).await.len(),
                MAX_ECHOES
            );
            let later = start + ECHO_IDLE / 2;
            echoes.send(later, client(origin), origin, 3, 2, b"x");
            assert_eq!(echoes.poll_timeout(), Some(start + ECHO_IDLE));
            echoes.handle_timeout(start + ECHO_IDLE);
            assert_eq!(echoes.echoes.len(), 1, "the one that was used again");
            assert_eq!(echoes.poll_timeout(), Some(later + ECHO_IDLE));
            echoes.handle_timeout(later + ECHO_IDLE);
            assert!(echoes.echoes.is_empty() && echoes.by_client.is_empty());
            assert_eq!(echoes.poll_timeout(), None);
        });
    }

    #[test]
    fn request_without_permission_for_ping_sockets_is_refused_and_counted() {
        on_host(|| async {
            set_sysctl("net/ipv4/ping_group_range", "1 0");
            let origin = IpAddr::from([127, 0, 0, 1]);
            let mut echoes = EchoSockets::new();
            assert!(!echoes.send(Instant::now(), client(origin), origin, 7, 1, b"x"));
            assert_eq!(echoes.stats().no_socket, 1);
            assert_eq!((echoes.echoes.len(), echoes.poll_timeout()), (0, None));
        });
    }
}
