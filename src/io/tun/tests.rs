//! The `tun` egress on hosts of its own: what only the kernel can say.

mod host;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use adit_netstack::{Checksum, Gso};

use self::host::{
    Namespace, add_address, assert_unchanged, cable, everything, on_host, set_sysctl, sysctl, up,
};
use super::*;
use crate::io::netlink::{CheckError, Netlink};
use crate::io::nft;
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
    on_host(|| async {
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
        assert_eq!(sysctl("net/ipv4/ip_forward"), "1");
        assert_eq!(sysctl("net/ipv6/conf/all/forwarding"), "1");

        egress.undo.undo().unwrap();
        drop(egress.tun);
        assert_unchanged(&before);
    });
}
