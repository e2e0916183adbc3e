//! Everything is as asked while the egress is up, and as before after it: undone, killed, or refused half-way.

use std::process::Command;

use super::host::{
    add_address, add_route, assert_unchanged, enter_new_mounts, everything, mount, on_host,
    on_host_with_children, set_sysctl, sysctl,
};
use super::*;
use crate::io::netlink::{CheckError, Netlink};
use crate::io::nft;

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
