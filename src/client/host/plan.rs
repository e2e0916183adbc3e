//! Which routes and rules follow from the configuration and from what the server gives.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::HostTunnel;
use crate::io::host::{DEFAULT, MARK, SPECIFIC};
use crate::io::netlink::policy::{MAIN, Route, Rule, Way};
use crate::io::nft::host::HostRules;
use crate::wire::InnerConfig;

/// What the host is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The routes of our tables.
    pub routes: Vec<Route>,
    /// What looks them up.
    pub rules: Vec<Rule>,
    /// The nftables table.
    pub guard: HostRules,
}

impl Plan {
    /// Says what follows from `inner` where the device has number `index`; `servers` are asked for names, and
    /// `has_ipv6` says whether the host knows IPv6 at all.
    pub fn new(
        tunnel: &HostTunnel,
        inner: &InnerConfig,
        servers: &[IpAddr],
        index: u32,
        has_ipv6: bool,
    ) -> Self {
        let mut plan = Self {
            routes: Vec::new(),
            rules: Vec::new(),
            guard: guard(tunnel, &inner.addresses()),
        };
        plan.lead(tunnel, servers, false, inner.v4.map(|_| index));
        if has_ipv6 {
            plan.lead(tunnel, servers, true, inner.v6.map(|_| index));
        }
        plan
    }

    fn lead(&mut self, tunnel: &HostTunnel, servers: &[IpAddr], v6: bool, device: Option<u32>) {
        let way = device.map_or(Way::Unreachable, Way::Device);
        let is_of_family = |network: &&IpNet| network.addr().is_ipv6() == v6;
        let excluded = || tunnel.exclude.iter().filter(is_of_family);
        let mut add = |table, network, way| {
            let route = Route {
                table,
                network,
                way,
            };
            let is_there = |other: &Route| other.table == table && other.network == network;
            // What was written first counts: an exclusion of the same network before all.
            if way == Way::UnreachableAtLast || !self.routes.iter().any(is_there) {
                self.routes.push(route);
            }
        };
        let mut is_full = false;
        for network in excluded() {
            add(SPECIFIC, *network, Way::Throw);
            add(DEFAULT, *network, Way::Throw);
        }
        for network in tunnel.routes.iter().filter(is_of_family) {
            if network.prefix_len() > 0 {
                add(SPECIFIC, *network, way);
            } else {
                is_full = true;
                add(DEFAULT, *network, way);
                if tunnel.kill_switch {
                    // Should the device end, whoever sends is told at once.
                    add(DEFAULT, *network, Way::UnreachableAtLast);
                }
            }
        }
        // Whatever else is led into the tunnel, they are behind it.
        for server in servers {
            let network = IpNet::from(*server);
            if device.is_some() && is_of_family(&&network) && !server.is_loopback() {
                add(SPECIFIC, network, way);
            }
        }
        self.rules.push(rule(v6, 0, SPECIFIC, false));
        if is_full {
            self.rules.push(rule(v6, 1, MAIN, true));
            self.rules.push(rule(v6, 2, DEFAULT, false));
        }
    }
}

/// The nftables table for a tunnel with these addresses.
pub(super) fn guard(tunnel: &HostTunnel, addresses: &[IpAddr]) -> HostRules {
    HostRules {
        interface: tunnel.name.clone(),
        addresses: addresses.to_vec(),
        mark: MARK,
        kill_switch: tunnel.kill_switch.then(|| tunnel.exclude.clone()),
    }
}

fn rule(v6: bool, place: u32, table: u32, but_default: bool) -> Rule {
    Rule {
        v6,
        priority: FIRST_RULE + place,
        but_marked: (table != MAIN).then_some(MARK),
        table,
        but_default,
    }
}

/// The place of our first rule: before those that wg-quick(8) and the system itself have (32764 and up), behind that of the
/// table `local`.
const FIRST_RULE: u32 = 6865;

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: u32 = 7;

    fn tunnel(routes: &[&str], exclude: &[&str]) -> HostTunnel {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        HostTunnel {
            name: "adit0".into(),
            routes: nets(routes),
            exclude: nets(exclude),
            kill_switch: false,
            dns: true,
            state_dir: "/nowhere".into(),
        }
    }

    fn inner(v6: bool) -> InnerConfig {
        InnerConfig {
            v4: Some(([10, 86, 0, 2].into(), 24)),
            v6: v6.then(|| ("fd86::2".parse().unwrap(), 64)),
            dns: vec!["10.86.0.1".parse().unwrap()],
            ..InnerConfig::default()
        }
    }

    fn plan(tunnel: &HostTunnel, v6: bool) -> Plan {
        let inner = inner(v6);
        Plan::new(tunnel, &inner, &inner.dns, INDEX, true)
    }

    /// The routes of a table, as text.
    fn table(plan: &Plan, table: u32) -> Vec<String> {
        let of_table = plan.routes.iter().filter(|route| route.table == table);
        of_table
            .map(|route| format!("{} {:?}", route.network, route.way))
            .collect()
    }

    fn rules(plan: &Plan) -> Vec<String> {
        plan.rules.iter().map(Rule::to_string).collect()
    }

    const FULL: &[&str] = &["0.0.0.0/0", "::/0"];

    #[test]
    fn full_tunnel_takes_what_the_host_has_no_route_of_its_own_for() {
        let plan = plan(&tunnel(FULL, &[]), true);
        assert_eq!(table(&plan, SPECIFIC), ["10.86.0.1/32 Device(7)"]);
        assert_eq!(
            table(&plan, DEFAULT),
            ["0.0.0.0/0 Device(7)", "::/0 Device(7)"]
        );
        assert_eq!(
            rules(&plan),
            [
                "ip rule 6865: not fwmark 0x1ad1 lookup 6865",
                "ip rule 6866: lookup main suppress_prefixlength 0",
                "ip rule 6867: not fwmark 0x1ad1 lookup 6866",
                "ip -6 rule 6865: not fwmark 0x1ad1 lookup 6865",
                "ip -6 rule 6866: lookup main suppress_prefixlength 0",
                "ip -6 rule 6867: not fwmark 0x1ad1 lookup 6866",
            ]
        );
    }

    #[test]
    fn family_that_the_server_gives_no_address_of_goes_nowhere() {
        let plan = plan(&tunnel(&["0.0.0.0/0", "::/0", "2001:db8::/32"], &[]), false);
        assert_eq!(
            table(&plan, DEFAULT),
            ["0.0.0.0/0 Device(7)", "::/0 Unreachable"]
        );
        assert!(table(&plan, SPECIFIC).contains(&"2001:db8::/32 Unreachable".to_owned()));
    }

    #[test]
    fn excluded_networks_are_handed_on_by_both_tables() {
        let plan = plan(&tunnel(FULL, &["192.168.0.0/16", "fd00::/8"]), true);
        for list in [SPECIFIC, DEFAULT] {
            let routes = table(&plan, list);
            assert!(
                routes.contains(&"192.168.0.0/16 Throw".to_owned()),
                "{routes:?}"
            );
            assert!(routes.contains(&"fd00::/8 Throw".to_owned()), "{routes:?}");
        }
    }

    #[test]
    fn split_tunnel_leaves_default_routes_alone() {
        let plan = plan(&tunnel(&["10.0.0.0/8"], &["10.1.0.0/16"]), true);
        assert_eq!(
            table(&plan, SPECIFIC),
            [
                "10.1.0.0/16 Throw",
                "10.0.0.0/8 Device(7)",
                "10.86.0.1/32 Device(7)"
            ]
        );
        assert_eq!(table(&plan, DEFAULT), ["10.1.0.0/16 Throw"]);
        assert_eq!(
            rules(&plan),
            [
                "ip rule 6865: not fwmark 0x1ad1 lookup 6865",
                "ip -6 rule 6865: not fwmark 0x1ad1 lookup 6865",
            ]
        );
    }

    #[test]
    fn whole_family_that_is_excluded_stays_outside() {
        let plan = plan(&tunnel(FULL, &["::/0"]), true);
        assert_eq!(table(&plan, DEFAULT), ["0.0.0.0/0 Device(7)", "::/0 Throw"]);
    }

    #[test]
    fn kill_switch_has_routes_that_stay_when_the_device_ends() {
        let mut tunnel = tunnel(FULL, &["192.168.0.0/16"]);
        tunnel.kill_switch = true;
        let plan = plan(&tunnel, true);
        for route in ["0.0.0.0/0 UnreachableAtLast", "::/0 UnreachableAtLast"] {
            assert!(table(&plan, DEFAULT).contains(&route.to_owned()));
        }
        assert_eq!(
            plan.guard.kill_switch,
            Some(vec!["192.168.0.0/16".parse().unwrap()])
        );
        assert_eq!(plan.guard.addresses, inner(true).addresses());
    }

    #[test]
    fn host_without_ipv6_has_no_rules_for_it() {
        let inner = inner(true);
        let plan = Plan::new(&tunnel(FULL, &[]), &inner, &inner.dns, INDEX, false);
        assert!(plan.rules.iter().all(|rule| !rule.v6));
        assert!(
            plan.routes
                .iter()
                .all(|route| route.network.addr().is_ipv4())
        );
    }

    #[test]
    fn local_resolver_needs_no_route() {
        let plan = Plan::new(
            &tunnel(&["10.0.0.0/8"], &[]),
            &inner(true),
            &["127.0.0.1".parse().unwrap()],
            INDEX,
            true,
        );
        assert_eq!(table(&plan, SPECIFIC), ["10.0.0.0/8 Device(7)"]);
    }
}
