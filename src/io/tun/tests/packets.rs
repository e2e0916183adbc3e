//! Packets cross the device, and only those that should.

use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use adit_netstack::{Checksum, Gso, Packet, virtio_fields};
use ipnet::IpNet;
use socket2::{Domain, Socket, Type};

use super::super::steering;
use super::host::{add_route, on_host};
use super::*;
use crate::io::netlink::Netlink;
use crate::io::nft::{self, Step};

/// A UDP packet with its checksum.
fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut segment = [
        from.port().to_be_bytes(),
        to.port().to_be_bytes(),
        length.to_be_bytes(),
        [0; 2],
    ]
    .concat();
    segment.extend_from_slice(payload);
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let addresses = [bytes(from.ip()), bytes(to.ip())].concat();
    let pseudo = [&addresses[..], &[0, 17], &length.to_be_bytes()].concat();
    let sum = match checksum(&[pseudo, segment.clone()].concat()) {
        0 => 0xffff,
        sum => sum,
    };
    segment[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut header = if from.is_ipv4() {
        let total = 20 + length;
        let mut header = vec![0x45, 0];
        header.extend(total.to_be_bytes());
        header.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
        header.extend(&addresses);
        let sum = checksum(&header).to_be_bytes();
        header[10..12].copy_from_slice(&sum);
        header
    } else {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(length.to_be_bytes());
        header.extend([17, 64]);
        header.extend(&addresses);
        header
    };
    header.extend(segment);
    header
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn inject(tun: &Tun, packet: &[u8]) {
    tun.try_write(&[&VirtioHeader::default().encode()[..], packet].concat())
        .unwrap();
}

/// The next packet of the wanted protocol from the device.
async fn packet(tun: &Tun, protocol: u8) -> (VirtioHeader, Vec<u8>) {
    let mut buffer = vec![0; READ_LEN];
    loop {
        match tun.try_read(&mut buffer) {
            Ok(length) => {
                let (header, packet) = VirtioHeader::split(&buffer[..length]).unwrap();
                let found = if packet[0] >> 4 == 4 {
                    packet[9]
                } else {
                    packet[6]
                };
                if found == protocol {
                    return (header, packet.to_vec());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll_fn(|cx| tun.poll_read_ready(cx)).await.unwrap()
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// A socket of the calling thread's namespace that gives up after far longer than anything takes.
fn socket(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(GUARD)).unwrap();
    socket
}

const GUARD: Duration = Duration::from_secs(20);
const UDP: u8 = 17;

#[test]
fn internet_host_sees_the_servers_address_and_its_answer_finds_the_client() {
    on_host(|| async {
        let internet = internet().await;
        let (_directory, state) = state();
        let egress = setup(&settings(), &state).await.unwrap();
        let families = [
            (
                "10.86.0.9:5000",
                "192.0.2.2:53",
                "192.0.2.1",
                "192.0.2.2:53",
            ),
            (
                "[fd86::9]:5000",
                "[2001:db8::2]:53",
                "2001:db8::1",
                "[2001:db8::2]:53",
            ),
        ];
        for (client, origin, server, listen) in families {
            let (client, origin): (SocketAddr, SocketAddr) =
                (client.parse().unwrap(), origin.parse().unwrap());
            let host = internet.within(|| socket(listen));
            inject(&egress.tun, &udp(client, origin, b"question"));
            let mut buffer = [0; 100];
            let (length, from) = host.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"question");
            assert_eq!(from.ip().to_string(), server);
            host.send_to(b"answer", from).unwrap();
            let (header, answer) = packet(&egress.tun, UDP).await;
            assert_eq!(header.offload().unwrap().gso, Gso::None);
            assert!(answer.ends_with(b"answer"));
            assert_eq!(answer.len(), udp(origin, client, b"answer").len());
            let ports = answer.len() - 8 - 6;
            assert_eq!(
                answer[ports..ports + 4],
                udp(origin, client, b"answer")[ports..ports + 4]
            );
        }
    });
}

#[test]
fn foreign_sources_and_unasked_connections_do_not_pass() {
    on_host(|| async {
        let internet = internet().await;
        let (_directory, state) = state();
        let egress = setup(&settings(), &state).await.unwrap();
        steering::set("adit0", "0").unwrap();
        // The Internet host has a route into the tunnel, as a neighbour could give itself one.
        let home = Namespace::current();
        internet.enter();
        add_route("10.86.0.0/24", "192.0.2.1").await;
        add_route("fd86::/64", "2001:db8::1").await;
        let hosts = [socket("192.0.2.2:53"), socket("[2001:db8::2]:53")];
        home.enter();
        for host in &hosts {
            let to = if host.local_addr().unwrap().is_ipv4() {
                "10.86.0.9:7"
            } else {
                "[fd86::9]:7"
            };
            host.send_to(b"unasked", to).unwrap();
        }
        let cases = [
            ("10.87.0.9:5000", "10.86.0.9:5000", "192.0.2.2:53", 0),
            ("[fd87::9]:5000", "[fd86::9]:5000", "[2001:db8::2]:53", 1),
        ];
        for (foreign, own, origin, host) in cases {
            let origin = origin.parse().unwrap();
            inject(
                &egress.tun,
                &udp(foreign.parse().unwrap(), origin, b"foreign"),
            );
            inject(&egress.tun, &udp(own.parse().unwrap(), origin, b"own"));
            // One processor keeps the order: had the first one passed, it would come first.
            let mut buffer = [0; 100];
            let (length, from) = hosts[host].recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"own");
            hosts[host].send_to(b"answer", from).unwrap();
            let (_, answer) = packet(&egress.tun, UDP).await;
            assert!(answer.ends_with(b"answer"), "{answer:?}");
        }
    });
}

#[test]
fn foreign_drop_beats_our_rules_and_setup_warns() {
    on_host(|| async {
        let internet = internet().await;
        nft::load_foreign(
            NFPROTO_IPV4,
            "filter",
            &[Step::Base {
                chain: "FORWARD",
                drops: true,
            }],
        );
        let (_directory, state) = state();
        let egress = setup(&settings(), &state).await.unwrap();
        assert!(
            matches!(&egress.warnings[..], [Warning::Obstacle(obstacle)] if obstacle.table == "filter")
        );
        // What another processor would look at might not be looked at before the rules change.
        steering::set("adit0", "0").unwrap();
        let origin = "192.0.2.2:53".parse().unwrap();
        let host = internet.within(|| socket("192.0.2.2:53"));
        inject(
            &egress.tun,
            &udp("10.86.0.9:5000".parse().unwrap(), origin, b"dropped"),
        );
        for from in ["adit0", "eth0"] {
            nft::load_foreign(
                NFPROTO_IPV4,
                "filter",
                &[Step::Accept {
                    chain: "FORWARD",
                    from,
                }],
            );
        }
        assert_eq!(nft::obstacles("adit0", true, true).unwrap(), []);
        inject(
            &egress.tun,
            &udp("10.86.0.9:5000".parse().unwrap(), origin, b"passes"),
        );
        let mut buffer = [0; 100];
        let (length, _) = host.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"passes");
    });
}

#[test]
fn without_masquerading_the_client_is_seen_under_its_own_address() {
    on_host(|| async {
        let internet = internet().await;
        let (_directory, state) = state();
        let egress = setup(
            &TunSettings {
                masquerade: false,
                ..settings()
            },
            &state,
        )
        .await
        .unwrap();
        let home = Namespace::current();
        internet.enter();
        add_route("10.86.0.0/24", "192.0.2.1").await;
        let host = socket("192.0.2.2:53");
        home.enter();
        inject(
            &egress.tun,
            &udp(
                "10.86.0.9:5000".parse().unwrap(),
                "192.0.2.2:53".parse().unwrap(),
                b"question",
            ),
        );
        let mut buffer = [0; 100];
        let (_, from) = host.recv_from(&mut buffer).unwrap();
        assert_eq!(from.to_string(), "10.86.0.9:5000");
        // And others may open conversations with it.
        host.send_to(b"unasked", "10.86.0.10:7").unwrap();
        let (_, packet) = packet(&egress.tun, UDP).await;
        assert!(packet.ends_with(b"unasked"));
    });
}

/// What was seen of TCP while it was carried.
#[derive(Debug, Default)]
struct Seen {
    super_packets: usize,
    owed_checksums: usize,
    most_segments: usize,
}

/// Carries TCP between two devices, both ways, until told to end.
async fn carry(a: &Tun, b: &Tun, is_over: impl Fn() -> bool) -> Seen {
    let mut seen = Seen::default();
    let mut buffer = vec![0; READ_LEN];
    while !is_over() {
        let readable = poll_fn(|cx| {
            let (a, b) = (
                a.poll_read_ready(cx).is_ready(),
                b.poll_read_ready(cx).is_ready(),
            );
            if a || b {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        // The end may come without a packet: it is looked for now and then.
        let _ = tokio::time::timeout(Duration::from_millis(10), readable).await;
        for (from, to) in [(a, b), (b, a)] {
            while let Ok(length) = from.try_read(&mut buffer) {
                let rebuilt = seen.rebuild(&buffer[..length]);
                // A full queue loses the packet, as a link does.
                let _ = to.try_write(&rebuilt);
            }
        }
    }
    seen
}

impl Seen {
    /// Checks what the kernel gave, and makes its header anew from the packet, as a receiver does with a peer's.
    fn rebuild(&mut self, bytes: &[u8]) -> Vec<u8> {
        let (header, packet) = VirtioHeader::split(bytes).unwrap();
        let offload = header.offload().unwrap();
        let parsed = Packet::parse(packet).unwrap();
        if let Err(error) = parsed.check_offload(packet, offload, 1400) {
            panic!("{error}: {offload:?}, {} bytes", packet.len());
        }
        if let Gso::Tcp { size } = offload.gso {
            let payload = packet.len() - usize::from(header.hdr_len);
            self.most_segments = self.most_segments.max(payload.div_ceil(usize::from(size)));
            self.super_packets += 1;
        }
        self.owed_checksums += usize::from(offload.checksum == Checksum::Partial);
        let mut packet = packet.to_vec();
        let rebuilt = VirtioHeader::from(virtio_fields(&mut packet, &parsed, offload).unwrap());
        [&rebuilt.encode()[..], &packet].concat()
    }
}

/// A client's host: a namespace with a device of its own, here `far0` with that address and a default route.
async fn away(address: IpNet, gateway: &str) -> (Namespace, Tun) {
    let home = Namespace::current();
    let away = Namespace::new();
    away.enter();
    let tun = Tun::open("far0").unwrap();
    let (v4, v6) = match address {
        IpNet::V4(net) => (Some(net), None),
        IpNet::V6(net) => (None, Some(net)),
    };
    Netlink::open()
        .unwrap()
        .configure("far0", 1400, v4, v6)
        .await
        .unwrap();
    add_route(
        if address.addr().is_ipv4() {
            "0.0.0.0/0"
        } else {
            "::/0"
        },
        gateway,
    )
    .await;
    home.enter();
    (away, tun)
}

const BULK: usize = 4 << 20;

#[test]
fn kernel_tcp_crosses_two_devices_in_super_packets_of_at_most_64_segments() {
    // A client with small segments gets more of them into 64 KiB than a super-packet may have.
    let cases = [
        ("10.86.0.1", "10.86.0.9/24", None),
        ("fd86::1", "fd86::9/64", None),
        ("10.86.0.1", "10.86.0.9/24", Some(600)),
    ];
    for (gateway, client, segment) in cases {
        on_host(move || async move {
            let (_directory, state) = state();
            let egress = setup(&settings(), &state).await.unwrap();
            let listener = TcpListener::bind((gateway, 80)).unwrap();
            let server = listener.local_addr().unwrap();
            let sender = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(&vec![7; BULK]).unwrap();
            });
            let (away, far) = away(client.parse().unwrap(), gateway).await;
            let receiver = away.within(|| {
                thread::spawn(move || {
                    let socket =
                        Socket::new(Domain::for_address(server), Type::STREAM, None).unwrap();
                    if let Some(segment) = segment {
                        socket.set_tcp_mss(segment).unwrap();
                    }
                    socket.connect(&server.into()).unwrap();
                    let mut received = Vec::new();
                    TcpStream::from(socket).read_to_end(&mut received).unwrap();
                    received
                })
            });
            let seen = carry(&egress.tun, &far, || receiver.is_finished()).await;
            sender.join().unwrap();
            assert!(receiver.join().unwrap() == vec![7; BULK]);
            assert!(
                seen.super_packets > 0 && seen.owed_checksums > 0,
                "{seen:?}"
            );
            assert!(seen.most_segments <= 64, "{seen:?}");
            if segment.is_some() {
                assert!(seen.most_segments > 48, "{seen:?}");
            }
        });
    }
}

#[test]
fn open_flow_goes_on_after_a_restart_and_after_a_kill() {
    let families = [
        ("10.86.0.1", "10.86.0.9/24", "192.0.2.2:80"),
        ("fd86::1", "fd86::9/64", "[2001:db8::2]:80"),
    ];
    for ((gateway, client, origin), is_killed) in families.into_iter().zip([false, true]) {
        on_host(move || async move {
            let internet = internet().await;
            let (_directory, state) = state();
            let egress = setup(&settings(), &state).await.unwrap();
            let (is_idle, idle) = mpsc::channel();
            let (go, went) = mpsc::channel();
            let server = internet.within(|| {
                let listener = TcpListener::bind(origin).unwrap();
                thread::spawn(move || {
                    let (mut stream, from) = listener.accept().unwrap();
                    expect(&mut stream, b"one");
                    stream.write_all(b"two").unwrap();
                    expect(&mut stream, b"three");
                    went.recv().unwrap();
                    stream.write_all(b"four").unwrap();
                    expect(&mut stream, b"five");
                    from
                })
            });
            let (away, far) = away(client.parse().unwrap(), gateway).await;
            let client = away.within(|| {
                thread::spawn(move || {
                    let mut stream = TcpStream::connect(origin).unwrap();
                    stream.write_all(b"one").unwrap();
                    expect(&mut stream, b"two");
                    stream.write_all(b"three").unwrap();
                    // Acknowledged, and it acknowledged theirs: nothing is on its way while the server is gone, which
                    // its host would answer with a reset.
                    while unacknowledged(&stream) > 0 {
                        thread::yield_now();
                    }
                    is_idle.send(()).unwrap();
                    expect(&mut stream, b"four");
                    stream.write_all(b"five").unwrap();
                })
            });
            carry(&egress.tun, &far, || idle.try_recv().is_ok()).await;
            let TunEgress { tun, undo, .. } = egress;
            if is_killed {
                undo.die();
            } else {
                undo.undo().unwrap();
            }
            drop(tun);
            let egress = setup(&settings(), &state).await.unwrap();
            go.send(()).unwrap();
            carry(&egress.tun, &far, || {
                client.is_finished() && server.is_finished()
            })
            .await;
            client.join().unwrap();
            let from = server.join().unwrap();
            assert!(
                ["192.0.2.1", "2001:db8::1"].contains(&from.ip().to_string().as_str()),
                "{from}"
            );
        });
    }
}

/// Bytes written to a socket that its peer has not acknowledged.
fn unacknowledged(stream: &TcpStream) -> libc::c_int {
    let mut count = 0;
    // SAFETY: the socket is open and TIOCOUTQ writes one int to the pointer, which is alive.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    assert_eq!(result, 0);
    count
}

fn expect(stream: &mut TcpStream, words: &[u8]) {
    stream.set_read_timeout(Some(GUARD)).unwrap();
    let mut buffer = vec![0; words.len()];
    stream.read_exact(&mut buffer).unwrap();
    assert_eq!(buffer, words);
}
