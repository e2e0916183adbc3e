//! Watches every packet of a host, or of one of its interfaces, and tells those of the tunnel from all others.

use std::{
    ffi::CString,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

use crate::namespaces::Place;

/// A packet socket on all interfaces of a place, read by a thread until it is dropped.
#[derive(Debug)]
pub struct Sniffer {
    seen: Arc<Seen>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Seen {
    strange: Mutex<Vec<String>>,
    tunnelled: AtomicU64,
    stop: AtomicBool,
}

impl Sniffer {
    /// Watches a place whose tunnel goes to `port` of `server`. Needs root.
    ///
    /// # Panics
    ///
    /// If there is no such socket.
    pub fn start(place: &Place, server: IpAddr, port: u16) -> Self {
        Self::start_at(place, None, server, port)
    }

    /// The same of one interface.
    ///
    /// # Panics
    ///
    /// If there is no such socket, or no such interface.
    pub fn start_on(place: &Place, interface: &'static str, server: IpAddr, port: u16) -> Self {
        Self::start_at(place, Some(interface), server, port)
    }

    fn start_at(place: &Place, interface: Option<&'static str>, server: IpAddr, port: u16) -> Self {
        let seen = Arc::new(Seen::default());
        let (ready, is_ready) = mpsc::channel();
        let thread = place.spawn({
            let seen = Arc::clone(&seen);
            move || {
                let socket = open(interface).expect("root may watch packets");
                ready.send(()).expect("the test waits");
                let mut packet = [0; 2048];
                while !seen.stop.load(Ordering::Relaxed) {
                    let Some(length) = receive(&socket, &mut packet) else {
                        continue;
                    };
                    match judge(&packet[..length], server, port) {
                        Kind::Tunnel => {
                            seen.tunnelled.fetch_add(1, Ordering::Relaxed);
                        }
                        Kind::Neighbourhood => {}
                        Kind::Strange(what) => seen.lock().push(what),
                    }
                }
            }
        });
        is_ready.recv().expect("the thread has begun");
        Self {
            seen,
            thread: Some(thread),
        }
    }

    /// What was seen that is neither of the tunnel nor of neighbours finding each other.
    pub fn strange(&self) -> Vec<String> {
        self.seen.lock().clone()
    }

    /// How many packets of the tunnel were seen.
    pub fn tunnelled(&self) -> u64 {
        self.seen.tunnelled.load(Ordering::Relaxed)
    }

    /// Begins anew.
    pub fn forget(&mut self) {
        self.seen.lock().clear();
        self.seen.tunnelled.store(0, Ordering::Relaxed);
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Seen {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.strange.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a packet is.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Tunnel,
    /// ICMPv6 of neighbours, routers and multicast groups; IGMP.
    Neighbourhood,
    Strange(String),
}

/// Judges an IP packet; what is not IP (ARP) is of the neighbourhood.
fn judge(packet: &[u8], server: IpAddr, port: u16) -> Kind {
    let (from, to, protocol, payload): (IpAddr, IpAddr, u8, &[u8]) = match packet {
        [first, ..] if first >> 4 == 4 && packet.len() >= 20 => {
            let address = |at: usize| {
                let octets: [u8; 4] = packet[at..at + 4].try_into().unwrap_or_default();
                IpAddr::from(Ipv4Addr::from(octets))
            };
            let header = usize::from(first & 15) * 4;
            let rest = packet.get(header..).unwrap_or_default();
            (address(12), address(16), packet[9], rest)
        }
        [first, ..] if first >> 4 == 6 && packet.len() >= 40 => {
            let address = |at: usize| {
                let octets: [u8; 16] = packet[at..at + 16].try_into().unwrap_or_default();
                IpAddr::from(Ipv6Addr::from(octets))
            };
            (address(8), address(24), packet[6], &packet[40..])
        }
        _ => return Kind::Neighbourhood,
    };
    let ports = match payload {
        [a, b, c, d, ..] if protocol == TCP || protocol == UDP => {
            Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])))
        }
        _ => None,
    };
    let tunnel = ports.is_some_and(|(source, destination)| {
        (to, destination) == (server, port) || (from, source) == (server, port)
    });
    let neighbours = match (protocol, payload.first()) {
        (ICMP6, Some(kind)) => (130..=137).contains(kind) || *kind == 143,
        // reports of listeners to multicast have an option in front
        (0, _) => payload
            .get(8)
            .is_some_and(|kind| (130..=143).contains(kind)),
        (IGMP, _) => true,
        _ => false,
    };
    match (tunnel, neighbours) {
        (true, _) => Kind::Tunnel,
        (false, true) => Kind::Neighbourhood,
        (false, false) => Kind::Strange(format!("{from} → {to}, protocol {protocol}, {ports:?}")),
    }
}

fn open(interface: Option<&str>) -> io::Result<OwnedFd> {
    // SAFETY: plain system calls; the descriptor is given to its owner at once, the name ends in a zero, and address and
    // time are live structures, for which zeroes are valid.
    unsafe {
        let all = (libc::ETH_P_ALL as u16).to_be();
        let socket = libc::socket(
            libc::AF_PACKET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            all.into(),
        );
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(socket);
        if let Some(interface) = interface {
            let name = CString::new(interface)?;
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = all;
            address.sll_ifindex = libc::if_nametoindex(name.as_ptr()).cast_signed();
            if address.sll_ifindex == 0 {
                return Err(io::Error::last_os_error());
            }
            let size = size_of_val(&address) as libc::socklen_t;
            if libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        let time = libc::timeval {
            tv_sec: 0,
            tv_usec: 20_000,
        };
        let size = size_of_val(&time) as libc::socklen_t;
        let set = libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const time).cast(),
            size,
        );
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }
}

/// Receives the packet behind its link header; `None` when none came for a while.
fn receive(socket: &OwnedFd, packet: &mut [u8]) -> Option<usize> {
    // SAFETY: the buffer is as long as is said.
    let length = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            packet.as_mut_ptr().cast(),
            packet.len(),
            0,
        )
    };
    usize::try_from(length).ok().filter(|length| *length > 0)
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const IGMP: u8 = 2;
const ICMP6: u8 = 58;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_the_tunnel_are_told_from_others() {
        let server = IpAddr::from([10, 77, 1, 2]);
        let mut packet = vec![0x45; 28];
        packet[9] = UDP;
        packet[12..16].copy_from_slice(&[10, 77, 1, 1]);
        packet[16..20].copy_from_slice(&[10, 77, 1, 2]);
        packet[20..24].copy_from_slice(&[0x80, 0, 0x1d, 0x13]);
        assert_eq!(judge(&packet, server, 7443), Kind::Tunnel);
        assert!(matches!(judge(&packet, server, 53), Kind::Strange(_)));
        packet[9] = 1;
        assert!(matches!(judge(&packet, server, 7443), Kind::Strange(_)));
        assert_eq!(judge(&[0; 28], server, 7443), Kind::Neighbourhood);
    }
}
