//! The `tun` egress on hosts of its own: what only the kernel can say.

mod host;

use std::fs::Permissions;
use std::future::poll_fn;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use adit_netstack::{Checksum, Gso};

use self::host::{
    Namespace, add_address, add_route, assert_unchanged, cable, enter_new_mounts, everything,
    make_tun_node, mount, on_host, on_host_with_children, set_sysctl, skip, sysctl,
};
use super::*;
use crate::io::netlink::{CheckError, Netlink};
use crate::io::nft::{self, Step};
use crate::io::state::StateDir;

fn settings() -> TunSettings {
    TunSettings {
        name: "adit0".into(),
        mtu: 1400,
        gateway4: Some("10.86.0.1/24".parse().unwrap()),
        gateway6: Some("fd86::1/64".parse().unwrap()),
        masquerade: true,
    }
}

fn state() -> (tempfile::TempDir, StateDir) {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    (directory, state)
}

#[test]
fn interface_rules_and_forwarding_are_as_asked_and_all_is_as_before_after_undo() {
    // The `nft` program, where there is one, is asked for a second opinion.
    on_host_with_children(|| async {
        let before = everything();
        let (_directory, state) = state();
        let egress = setup(&settings(), &state).await.unwrap();
        assert!(egress.ipv6);
        assert_eq!(egress.warnings, []);

        let netlink = Netlink::open().unwrap();
        let link = netlink.link("adit0").await.unwrap();
        assert!(link.is_up);
        assert_eq!(link.mtu, 1400);
        let addresses = netlink.addresses(link.index).await.unwrap();
        assert_eq!(
            addresses,
            [
                "10.86.0.1/24".parse().unwrap(),
                "fd86::1/64".parse().unwrap()
            ]
        );
        let networks = netlink.networks("lo").await.unwrap();
        for network in ["10.86.0.0/24", "fd86::/64"] {
            let network = network.parse().unwrap();
            assert!(
                networks
                    .iter()
                    .any(|found| found.network == network && found.interface == "adit0"),
                "{network}"
            );
        }
        let chains = nft::chains().unwrap();
        assert_eq!(
            chains,
            [
                ("adit_adit0".into(), "prerouting".into(), 4),
                ("adit_adit0".into(), "forward".into(), 5),
                ("adit_adit0".into(), "postrouting".into(), 2)
            ]
        );
        assert!(egress.undo.is_owned());
        if let Some(listed) = nft_list() {
            assert_eq!(listed, RULESET);
        }
        assert_eq!(sysctl("net/ipv4/ip_forward"), "1");
        assert_eq!(sysctl("net/ipv6/conf/all/forwarding"), "1");

        egress.undo.undo().unwrap();
        drop(egress.tun);
        assert_unchanged(&before);
    });
}

/// A host with one interface to an Internet host: addresses 192.0.2.1 and 2001:db8::1 here, .2 and ::2 there.
async fn internet() -> Namespace {
    let internet = Namespace::new();
    let here = ("eth0", [("192.0.2.1", 24), ("2001:db8::1", 64)]);
    let there = ("eth0", [("192.0.2.2", 24), ("2001:db8::2", 64)]);
    // The far end needs another name until it is moved.
    cable(here, ("far0", there.1), &internet).await;
    internet
}

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
const TCP: u8 = 6;

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
            // The device keeps the order: had the first one passed, it would come first.
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
fn kernel_tcp_crosses_two_devices_in_super_packets() {
    on_host(|| async {
        let (_directory, state) = state();
        let egress = setup(&settings(), &state).await.unwrap();
        let listeners = [
            TcpListener::bind("10.86.0.1:80").unwrap(),
            TcpListener::bind("[fd86::1]:80").unwrap(),
        ];
        for (listener, client) in listeners.into_iter().zip(["10.86.0.9/24", "fd86::9/64"]) {
            let client: ipnet::IpNet = client.parse().unwrap();
            let server = listener.local_addr().unwrap();
            let sender = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(&vec![7; BULK]).unwrap();
            });
            // The client's host: another namespace with a device of its own.
            let home = Namespace::current();
            let away = Namespace::new();
            away.enter();
            let far = Tun::open("far0").unwrap();
            let netlink = Netlink::open().unwrap();
            let (v4, v6) = match client {
                ipnet::IpNet::V4(net) => (Some(net), None),
                ipnet::IpNet::V6(net) => (None, Some(net)),
            };
            netlink.configure("far0", 1400, v4, v6).await.unwrap();
            let receiver = thread::spawn(move || {
                let mut stream = TcpStream::connect(server).unwrap();
                let mut received = Vec::new();
                stream.read_to_end(&mut received).unwrap();
                received
            });
            home.enter();
            let mut supers = 0;
            let mut partial = 0;
            let mut forward = |from: &Tun, to: &Tun| {
                let mut buffer = vec![0; READ_LEN];
                while let Ok(length) = from.try_read(&mut buffer) {
                    let (header, packet) = VirtioHeader::split(&buffer[..length]).unwrap();
                    let offload = header.offload().unwrap();
                    let protocol = if packet[0] >> 4 == 4 {
                        packet[9]
                    } else {
                        packet[6]
                    };
                    if protocol != TCP {
                        continue;
                    }
                    if let Gso::Tcp { size } = offload.gso {
                        assert!(
                            size <= 1400 - 40 && packet.len() > 1400,
                            "{size} {}",
                            packet.len()
                        );
                        assert!(
                            packet.len().div_ceil(usize::from(size)) <= 65,
                            "{size} {}",
                            packet.len()
                        );
                        supers += 1;
                    }
                    partial += usize::from(offload.checksum == Checksum::Partial);
                    // A full queue loses the packet, as a link does.
                    let _ = to.try_write(&buffer[..length]);
                }
            };
            while !receiver.is_finished() {
                let readable = poll_fn(|cx| {
                    let home = egress.tun.poll_read_ready(cx).is_ready();
                    let away = far.poll_read_ready(cx).is_ready();
                    if home || away {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    }
                });
                // The last packets may have come before the receiver's end: look at it again now and then.
                let _ = tokio::time::timeout(Duration::from_millis(10), readable).await;
                forward(&egress.tun, &far);
                forward(&far, &egress.tun);
            }
            sender.join().unwrap();
            assert!(receiver.join().unwrap() == vec![7; BULK]);
            assert!(
                supers > 0 && partial > 0,
                "{supers} super-packets, {partial} owed checksums"
            );
        }
    });
}

const BULK: usize = 4 << 20;

/// A host whose sysctls are not the defaults, so that putting them back takes more than switching off.
async fn odd_host() -> Namespace {
    let internet = internet().await;
    set_sysctl("net/ipv4/conf/all/accept_redirects", "0");
    set_sysctl("net/ipv4/conf/eth0/forwarding", "1");
    set_sysctl("net/ipv6/conf/eth0/forwarding", "1");
    set_sysctl("net/ipv6/conf/default/forwarding", "1");
    set_sysctl("net/ipv6/conf/eth0/accept_ra", "1");
    internet
}

#[test]
fn values_that_move_along_with_forwarding_are_put_back_too() {
    on_host(|| async {
        let _internet = odd_host().await;
        let before = everything();
        let (_directory, state) = state();
        let egress = setup(&settings(), &state).await.unwrap();
        assert_eq!(sysctl("net/ipv6/conf/eth0/accept_ra"), "2");
        drop(egress.tun);
        // Dropping is enough.
        drop(egress.undo);
        assert_unchanged(&before);
        assert_eq!(clean_up(&state).unwrap(), 0);
    });
}

#[test]
fn killed_server_is_cleaned_up_by_the_next_start() {
    on_host(|| async {
        let _internet = odd_host().await;
        let before = everything();
        let (directory, state) = state();
        let egress = setup(&settings(), &state).await.unwrap();
        assert!(egress.undo.is_owned());
        drop(state);
        egress.undo.die();
        drop(egress.tun);
        assert_eq!(sysctl("net/ipv4/ip_forward"), "1");
        assert_eq!(
            nft::chains().unwrap(),
            [],
            "an owned table ends with its process"
        );

        let state = StateDir::open(directory.path()).unwrap();
        let egress = setup(&settings(), &state).await.unwrap();
        drop(egress.tun);
        egress.undo.undo().unwrap();
        assert_unchanged(&before);
    });
}

#[test]
fn killed_server_is_cleaned_up_without_a_new_egress() {
    on_host(|| async {
        let before = everything();
        let (_directory, state) = state();
        let egress = setup(&settings(), &state).await.unwrap();
        egress.undo.die();
        drop(egress.tun);
        assert_eq!(clean_up(&state).unwrap(), 3);
        assert_unchanged(&before);
        assert_eq!(clean_up(&state).unwrap(), 0);
    });
}

#[test]
fn table_without_owner_is_deleted_by_the_next_start_but_not_under_a_living_interface() {
    on_host(|| async {
        let before = everything();
        let rules = nft::Rules {
            interface: "adit0".into(),
            network4: Some("10.86.0.0/24".parse().unwrap()),
            network6: None,
            masquerade: false,
        };
        drop(nft::Table::load_without_owner(&rules).unwrap());
        assert_eq!(
            nft::chains().unwrap(),
            [
                ("adit_adit0".into(), "prerouting".into(), 3),
                ("adit_adit0".into(), "forward".into(), 1)
            ]
        );
        let tun = Tun::open("adit0").unwrap();
        nft::delete_leftover("adit_adit0", "adit0").unwrap();
        assert_ne!(nft::chains().unwrap(), []);
        drop(tun);
        nft::delete_leftover("adit_adit0", "adit0").unwrap();
        nft::delete_leftover("adit_adit0", "adit0").unwrap();
        assert_unchanged(&before);

        // One of another process: neither deleted nor an error.
        let table = nft::Table::load(&rules).unwrap();
        nft::delete_leftover("adit_adit0", "adit0").unwrap();
        assert_ne!(nft::chains().unwrap(), []);
        table.delete().unwrap();
        // A table that was left is no obstacle to a new one.
        drop(nft::Table::load_without_owner(&rules).unwrap());
        nft::Table::load(&rules).unwrap().delete().unwrap();
        assert_unchanged(&before);
    });
}

fn second() -> TunSettings {
    TunSettings {
        name: "adit1".into(),
        gateway4: Some("10.87.0.1/24".parse().unwrap()),
        gateway6: Some("fd87::1/64".parse().unwrap()),
        ..settings()
    }
}

#[test]
fn forwarding_stays_on_until_the_last_of_two_servers_stops() {
    for first_stops_first in [true, false] {
        on_host(move || async move {
            let _internet = odd_host().await;
            let before = everything();
            let (_directory, state_a) = state();
            let (_directory, state_b) = state();
            let a = setup(&settings(), &state_a).await.unwrap();
            let b = setup(&second(), &state_b).await.unwrap();
            let (leaves, stays) = if first_stops_first { (a, b) } else { (b, a) };
            drop(leaves.tun);
            leaves.undo.undo().unwrap();
            assert_eq!(sysctl("net/ipv4/ip_forward"), "1");
            assert_eq!(sysctl("net/ipv6/conf/all/forwarding"), "1");
            assert_eq!(sysctl("net/ipv6/conf/eth0/accept_ra"), "2");
            drop(stays.tun);
            stays.undo.undo().unwrap();
            assert_unchanged(&before);
        });
    }
}

#[test]
fn killed_server_leaves_forwarding_to_the_one_that_runs_on() {
    for first_is_killed in [true, false] {
        on_host(move || async move {
            let _internet = odd_host().await;
            let before = everything();
            let (_directory, state_a) = state();
            let (_directory, state_b) = state();
            let a = setup(&settings(), &state_a).await.unwrap();
            let b = setup(&second(), &state_b).await.unwrap();
            let (killed, stays, state) = if first_is_killed {
                (a, b, state_a)
            } else {
                (b, a, state_b)
            };
            drop(killed.tun);
            killed.undo.die();
            assert!(clean_up(&state).unwrap() > 0);
            assert_eq!(sysctl("net/ipv4/ip_forward"), "1");
            drop(stays.tun);
            stays.undo.undo().unwrap();
            assert_unchanged(&before);
        });
    }
}

#[test]
fn both_servers_killed_and_only_one_comes_back() {
    on_host(|| async {
        let _internet = odd_host().await;
        let before = everything();
        let (_directory, state_a) = state();
        let (_directory, state_b) = state();
        let a = setup(&settings(), &state_a).await.unwrap();
        let b = setup(&second(), &state_b).await.unwrap();
        for egress in [a, b] {
            drop(egress.tun);
            egress.undo.die();
        }
        let b = setup(&second(), &state_b).await.unwrap();
        drop(b.tun);
        b.undo.undo().unwrap();
        assert_unchanged(&before);
    });
}

#[test]
fn value_that_somebody_else_has_set_since_is_kept() {
    on_host(|| async {
        let (_directory, state) = state();
        let egress = setup(&settings(), &state).await.unwrap();
        set_sysctl("net/ipv6/conf/all/forwarding", "0");
        egress.undo.undo().unwrap();
        assert_eq!(sysctl("net/ipv6/conf/all/forwarding"), "0");
        assert_eq!(sysctl("net/ipv4/ip_forward"), "0");
    });
}

#[test]
fn host_that_forwards_already_is_left_as_it_is() {
    on_host(|| async {
        set_sysctl("net/ipv4/ip_forward", "1");
        set_sysctl("net/ipv6/conf/all/forwarding", "1");
        let before = everything();
        let (_directory, state) = state();
        let egress = setup(&settings(), &state).await.unwrap();
        drop(egress.tun);
        egress.undo.undo().unwrap();
        assert_unchanged(&before);
    });
}

#[test]
fn overlap_names_the_interface_and_proposes_a_free_network() {
    on_host(|| async {
        let _internet = internet().await;
        add_address("eth0", "10.86.0.200", 26).await;
        add_route("fd86::/60", "2001:db8::2").await;
        add_route("0.0.0.0/0", "192.0.2.2").await;
        add_route("::/0", "2001:db8::2").await;
        let before = everything();
        let (_directory, state) = state();
        let error = setup(&settings(), &state).await.unwrap_err();
        assert!(matches!(error, SetupError::Network(CheckError::Overlap(_))));
        assert_eq!(
            error.to_string(),
            "network 10.86.0.0/24 overlaps with 10.86.0.192/26, for which interface eth0 has an address: choose another, such as network: 10.87.0.0/24"
        );
        let only6 = TunSettings {
            gateway4: None,
            ..settings()
        };
        assert_eq!(
            setup(&only6, &state).await.unwrap_err().to_string(),
            "network6 fd86::/64 overlaps with fd86::/60, for which interface eth0 has a route: choose another, such as network6: fd87::/64"
        );
        assert_unchanged(&before);
        // Default routes are no overlap.
        setup(&second(), &state).await.unwrap();
    });
}

#[test]
fn default_routes_in_halves_are_no_overlap() {
    on_host(|| async {
        let _internet = internet().await;
        for (network, gateway) in [
            ("0.0.0.0/1", "192.0.2.2"),
            ("128.0.0.0/1", "192.0.2.2"),
            ("2000::/3", "2001:db8::2"),
            ("::/1", "2001:db8::2"),
        ] {
            add_route(network, gateway).await;
        }
        let (_directory, state) = state();
        setup(&settings(), &state).await.unwrap();
    });
}

#[test]
fn name_in_use_is_said_and_everything_stays() {
    on_host(|| async {
        let taken = Tun::open("adit0").unwrap();
        let before = everything();
        let (_directory, state) = state();
        let error = setup(&settings(), &state).await.unwrap_err();
        assert!(
            matches!(error, SetupError::Open(OpenError::NameTaken { .. })),
            "{error}"
        );
        let lo = TunSettings {
            name: "lo".into(),
            ..settings()
        };
        let error = setup(&lo, &state).await.unwrap_err();
        assert!(
            matches!(error, SetupError::Open(OpenError::NameTaken { .. })),
            "{error}"
        );
        assert_unchanged(&before);
        drop(taken);
    });
}

#[test]
fn host_without_ipv6_gets_ipv4_and_is_told() {
    on_host(|| async {
        set_sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        let before = everything();
        let (_directory, state) = state();
        let egress = setup(&settings(), &state).await.unwrap();
        assert!(!egress.ipv6);
        assert!(matches!(egress.warnings[..], [Warning::NoIpv6 { .. }]));
        assert_eq!(sysctl("net/ipv6/conf/all/forwarding"), "0");
        drop(egress.tun);
        egress.undo.undo().unwrap();
        assert_unchanged(&before);
        let only6 = TunSettings {
            gateway4: None,
            ..settings()
        };
        assert!(matches!(
            setup(&only6, &state).await,
            Err(SetupError::NoNetwork)
        ));
    });
}

#[test]
fn interface_gets_ipv6_where_only_the_default_is_off() {
    on_host(|| async {
        set_sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        let (_directory, state) = state();
        let egress = setup(&settings(), &state).await.unwrap();
        assert!(egress.ipv6);
        assert_eq!(sysctl("net/ipv6/conf/adit0/disable_ipv6"), "0");
    });
}

#[test]
fn read_only_sysctls_are_named_unless_they_are_right_already() {
    on_host(|| async {
        enter_new_mounts();
        let before = everything();
        mount("/proc/sys", "/proc/sys", libc::MS_BIND);
        mount(
            "none",
            "/proc/sys",
            libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY,
        );
        let (_directory, state) = state();
        let error = setup(&settings(), &state).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"),
            "{text}"
        );
        assert_unchanged(&before);
        assert_eq!(clean_up(&state).unwrap(), 0);

        mount("none", "/proc/sys", libc::MS_REMOUNT | libc::MS_BIND);
        set_sysctl("net/ipv4/ip_forward", "1");
        set_sysctl("net/ipv6/conf/all/forwarding", "1");
        mount(
            "none",
            "/proc/sys",
            libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY,
        );
        let egress = setup(&settings(), &state).await.unwrap();
        drop(egress.tun);
        egress.undo.undo().unwrap();
    });
}

/// What the `nft` program says, without comments and the numbers of counters; none where it is not installed.
fn nft_list() -> Option<String> {
    let output = Command::new("nft")
        .args(["list", "ruleset"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text
        .lines()
        .map(|line| line.split(" # ").next().unwrap_or_default());
    let clean = lines.map(|line| {
        line.replace("counter packets 0 bytes 0", "counter")
            .trim()
            .to_owned()
    });
    Some(
        clean
            .filter(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join("\n"),
    )
}

/// The rules as the module's page has them.
const RULESET: &str = "\
table inet adit_adit0 {
flags owner
chain prerouting {
type filter hook prerouting priority raw; policy accept;
iifname \"adit0\" ip saddr != 10.86.0.0/24 counter drop
iifname \"adit0\" ip6 saddr != fd86::/64 counter drop
iifname != \"adit0\" iifname != \"lo\" ip saddr 10.86.0.0/24 counter drop
iifname != \"adit0\" iifname != \"lo\" ip6 saddr fd86::/64 counter drop
}
chain forward {
type filter hook forward priority filter; policy accept;
iifname \"adit0\" oifname \"adit0\" counter drop
iifname \"adit0\" ct state invalid counter drop
oifname \"adit0\" ct state established,related accept
oifname \"adit0\" ct status dnat accept
oifname \"adit0\" counter drop
}
chain postrouting {
type nat hook postrouting priority srcnat; policy accept;
oifname != \"adit0\" ip saddr 10.86.0.0/24 masquerade
oifname != \"adit0\" ip6 saddr fd86::/64 masquerade
}
}";

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

#[test]
fn foreign_chains_that_drop_are_named_with_their_remedy() {
    on_host(|| async {
        let find = || nft::obstacles("adit0", true, true).unwrap();
        assert_eq!(find(), []);
        nft::load_foreign(
            NFPROTO_IPV4,
            "filter",
            &[
                Step::Base {
                    chain: "FORWARD",
                    drops: true,
                },
                Step::Plain("DOCKER-USER"),
            ],
        );
        let found = find();
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].to_string(),
            "the firewall chain `FORWARD` of table `ip filter` drops forwarded packets, and may drop those of the clients; to let them pass: iptables -I DOCKER-USER -i adit0 -j ACCEPT && iptables -I DOCKER-USER -o adit0 -j ACCEPT"
        );
        nft::load_foreign(
            NFPROTO_IPV6,
            "filter",
            &[
                Step::Base {
                    chain: "FORWARD",
                    drops: true,
                },
                Step::Plain("ufw6-user-forward"),
            ],
        );
        nft::load_foreign(
            NFPROTO_INET,
            "firewalld",
            &[
                Step::Base {
                    chain: "filter_FORWARD",
                    drops: false,
                },
                Step::Drop("filter_FORWARD"),
            ],
        );
        nft::load_foreign(
            NFPROTO_INET,
            "mine",
            &[Step::Base {
                chain: "fwd",
                drops: true,
            }],
        );
        nft::load_foreign(
            NFPROTO_INET,
            "harmless",
            &[Step::Base {
                chain: "fwd",
                drops: false,
            }],
        );
        let remedies: Vec<_> = find()
            .into_iter()
            .map(|obstacle| (obstacle.table, obstacle.remedy))
            .collect();
        let expected = [
            (
                "filter",
                "iptables -I DOCKER-USER -i adit0 -j ACCEPT && iptables -I DOCKER-USER -o adit0 -j ACCEPT",
            ),
            (
                "filter",
                "ufw route allow in on adit0 && ufw route allow out on adit0",
            ),
            (
                "firewalld",
                "firewall-cmd --permanent --zone=trusted --add-interface=adit0 && firewall-cmd --reload",
            ),
            (
                "mine",
                "nft insert rule inet mine fwd iifname adit0 accept && nft insert rule inet mine fwd oifname adit0 accept",
            ),
        ];
        let mut remedies: Vec<_> = remedies
            .iter()
            .map(|(table, remedy)| (table.as_str(), remedy.as_str()))
            .collect();
        remedies.sort_unstable();
        assert_eq!(remedies, expected);
        // Rules for IPv6 are no concern of a tunnel without it.
        assert_eq!(nft::obstacles("adit0", true, false).unwrap().len(), 3);

        // A rule for another interface is none for ours.
        nft::load_foreign(
            NFPROTO_IPV4,
            "filter",
            &[Step::Accept {
                chain: "DOCKER-USER",
                from: "adit01",
            }],
        );
        assert_eq!(find().len(), 4);
        nft::load_foreign(
            NFPROTO_IPV4,
            "filter",
            &[Step::Accept {
                chain: "DOCKER-USER",
                from: "adit0",
            }],
        );
        assert_eq!(find().len(), 3);
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

/// This test program once more, as another process that runs the test `name` in the role of a server.
fn server(program: &str, name: &str, state: &Path, wrapper: &[&str]) -> Command {
    let arguments = [program, "--exact", name, "--nocapture", "--test-threads=1"];
    let mut whole = wrapper.iter().copied().chain(arguments);
    let mut command = Command::new(whole.next().unwrap());
    command
        .args(whole)
        .env(ROLE, state)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

/// The server's side: sets up, says so, and undoes when its input ends.
fn serve(state: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let state = StateDir::open(state).unwrap();
        match setup(&settings(), &state).await {
            Ok(egress) => {
                println!("\nready");
                io::stdin().read_line(&mut String::new()).unwrap();
                drop(egress.tun);
                egress.undo.undo().unwrap();
                println!("\nundone");
            }
            Err(error) => println!("\nfailed: {error}"),
        }
    });
}

/// Reads until a line begins so, and gives it.
fn line(output: &mut impl BufRead, beginnings: &[&str]) -> String {
    let mut line = String::new();
    loop {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "the server ended");
        if beginnings
            .iter()
            .any(|beginning| line.starts_with(beginning))
        {
            return line.trim().to_owned();
        }
    }
}

fn role() -> Option<PathBuf> {
    std::env::var_os(ROLE).map(PathBuf::from)
}

/// Names the state directory for the process that plays the server.
const ROLE: &str = "ADIT_TEST_SERVER_STATE";

#[test]
fn sigkill_leaves_no_interface_and_no_table_and_the_next_start_the_rest() {
    if let Some(state) = role() {
        return serve(&state);
    }
    on_host_with_children(|| async {
        let before = everything();
        let directory = tempfile::tempdir().unwrap();
        let program = std::env::current_exe().unwrap();
        let name =
            "io::tun::tests::sigkill_leaves_no_interface_and_no_table_and_the_next_start_the_rest";
        let mut child = server(program.to_str().unwrap(), name, directory.path(), &[])
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        assert_eq!(line(&mut output, &["ready", "failed"]), "ready");
        let error = StateDir::open(directory.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("process {}", child.id())),
            "{error}"
        );
        assert_eq!(sysctl("net/ipv4/ip_forward"), "1");
        assert!(Netlink::open().unwrap().link("adit0").await.unwrap().is_up);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(nft::chains().unwrap(), []);
        assert!(Netlink::open().unwrap().link("adit0").await.is_err());
        assert_eq!(sysctl("net/ipv4/ip_forward"), "1");

        let state = StateDir::open(directory.path()).unwrap();
        let egress = setup(&settings(), &state).await.unwrap();
        drop(egress.tun);
        egress.undo.undo().unwrap();
        assert_unchanged(&before);
    });
}

/// A place where an ordinary user finds the test program and a state directory of its own, and may open /dev/net/tun
/// if its mode says so. The calling thread's mounts are its own from here on.
fn place_for_users(tun_mode: u32) -> (tempfile::TempDir, String, PathBuf) {
    enter_new_mounts();
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    let node = directory.path().join("tun");
    make_tun_node(&node, tun_mode);
    mount(node.to_str().unwrap(), "/dev/net/tun", libc::MS_BIND);
    let program = directory.path().join("program");
    std::fs::write(&program, "").unwrap();
    mount(
        std::env::current_exe().unwrap().to_str().unwrap(),
        program.to_str().unwrap(),
        libc::MS_BIND,
    );
    let state = directory.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(USER), Some(USER)).unwrap();
    (directory, program.to_str().unwrap().to_owned(), state)
}

/// Nobody.
const USER: u32 = 65_534;

fn has_setpriv() -> bool {
    let found = Command::new("setpriv")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok();
    if !found {
        skip("needs the program setpriv");
    }
    found
}

#[test]
fn ordinary_user_with_cap_net_admin_alone_sets_up_and_undoes() {
    if let Some(state) = role() {
        // Nothing but that one capability.
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(
            status.contains("CapEff:\t0000000000001000") && status.contains("Uid:\t65534"),
            "{status}"
        );
        return serve(&state);
    }
    on_host_with_children(|| async {
        if !has_setpriv() {
            return;
        }
        let _internet = odd_host().await;
        let before = everything();
        let (_directory, program, state) = place_for_users(0o666);
        let name = "io::tun::tests::ordinary_user_with_cap_net_admin_alone_sets_up_and_undoes";
        let user = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--no-new-privs",
        ];
        let only = [
            "--inh-caps=-all,+net_admin",
            "--ambient-caps=-all,+net_admin",
            "--bounding-set=-all,+net_admin",
        ];
        let mut child = server(&program, name, &state, &[&user[..], &only[..]].concat())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        assert_eq!(line(&mut output, &["ready", "failed"]), "ready");
        assert_eq!(sysctl("net/ipv4/ip_forward"), "1");
        assert_eq!(sysctl("net/ipv6/conf/eth0/accept_ra"), "2");
        assert_eq!(nft::chains().unwrap().len(), 3);
        // Root shares with it, and neither switches off what the other needs.
        let (_root_directory, root_state) = self::state();
        let egress = setup(&second(), &root_state).await.unwrap();
        drop(child.stdin.take());
        assert_eq!(line(&mut output, &["undone", "failed"]), "undone");
        assert!(child.wait().unwrap().success());
        assert_eq!(sysctl("net/ipv4/ip_forward"), "1");
        drop(egress.tun);
        egress.undo.undo().unwrap();
        assert_unchanged(&before);
    });
}

#[test]
fn ordinary_user_without_capability_is_told_how_to_give_it() {
    if let Some(state) = role() {
        return serve(&state);
    }
    for (mode, words) in [
        (0o666, ["CAP_NET_ADMIN", "setcap"]),
        (0o600, ["chmod 0666 /dev/net/tun", "egress: user"]),
    ] {
        on_host_with_children(move || async move {
            if !has_setpriv() {
                return;
            }
            let before = everything();
            let (_directory, program, state) = place_for_users(mode);
            let name = "io::tun::tests::ordinary_user_without_capability_is_told_how_to_give_it";
            let user = [
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "--bounding-set=-all",
            ];
            let mut child = server(&program, name, &state, &user).spawn().unwrap();
            let mut output = BufReader::new(child.stdout.take().unwrap());
            let answer = line(&mut output, &["ready", "failed"]);
            assert!(words.iter().all(|word| answer.contains(word)), "{answer}");
            drop(child.stdin.take());
            child.wait().unwrap();
            assert_unchanged(&before);
        });
    }
}
