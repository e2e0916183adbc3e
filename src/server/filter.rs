//! Where clients may go: the public Internet, and beyond it only what `allow:` names.
//!
//! A destination is judged by every address it stands for: an IPv6 address that carries an IPv4 one (mapped,
//! NAT64, 6to4, Teredo) reaches that one too, so both must be allowed. What is not public is compiled in from the
//! IANA registries of special-purpose addresses (RFC 6890); the server's own addresses are added at run time.
//!
//! The order of judgement, where the first answer wins:
//! 1. the unspecified address and the limited broadcast are nobody's, and refused whatever is allowed: a socket
//!    connected to 0.0.0.0 reaches the server itself;
//! 2. what an IPv6 address carries is judged by these rules, and a refusal stands;
//! 3. what `allow` names is allowed;
//! 4. the server's own addresses and what is not public are refused;
//! 5. the rest is the public Internet, and allowed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::Networks;

/// The policy for destinations: a few binary searches for each address, and no allocation.
#[derive(Clone, Debug)]
pub struct DestinationPolicy {
    allow: Networks,
    deny: Networks,
    own: Networks,
}

/// Why a destination is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The address is the unspecified one or the limited broadcast.
    #[error("no host has this address")]
    NoHost,
    /// The address is not public, or the server's own, and not in `allow`.
    #[error("the address is not public, and not allowed")]
    NotPublic,
    /// The address carries an IPv4 address that is refused.
    #[error("the IPv4 address inside the address is not allowed")]
    Carried,
}

impl DestinationPolicy {
    /// Makes the policy of a server that lets clients reach the public Internet and `allow`, whose host has the
    /// addresses `own`.
    pub fn new(allow: &[IpNet], own: &[IpAddr]) -> Self {
        let v4 = NOT_PUBLIC4.iter().copied().map(IpNet::V4);
        let v6 = NOT_PUBLIC6.iter().copied().map(IpNet::V6);
        Self {
            allow: allow.iter().copied().collect(),
            deny: v4.chain(v6).collect(),
            own: Networks::of(own),
        }
    }

    /// The same policy for a host whose addresses are `own` now.
    #[must_use]
    pub fn with_own(&self, own: &[IpAddr]) -> Self {
        Self {
            own: Networks::of(own),
            ..self.clone()
        }
    }

    /// The same policy with other networks beside the public Internet.
    #[must_use]
    pub fn with_allow(&self, allow: &[IpNet]) -> Self {
        Self {
            allow: allow.iter().copied().collect(),
            ..self.clone()
        }
    }

    /// Tells whether clients may go to `destination`.
    pub fn allows(&self, destination: IpAddr) -> bool {
        self.judge(destination).is_ok()
    }

    /// Like [`Self::allows`], with the reason.
    ///
    /// # Errors
    /// The destination is refused.
    pub fn judge(&self, destination: IpAddr) -> Result<(), Refusal> {
        match destination {
            IpAddr::V4(ip) => self.judge4(ip),
            IpAddr::V6(ip) => self.judge6(ip),
        }
    }

    fn judge4(&self, ip: Ipv4Addr) -> Result<(), Refusal> {
        if ip.is_unspecified() || ip.is_broadcast() {
            return Err(Refusal::NoHost);
        }
        let public = || !self.deny.contains4(ip) && !self.own.contains4(ip);
        self.decide(self.allow.contains4(ip), public)
    }

    fn judge6(&self, ip: Ipv6Addr) -> Result<(), Refusal> {
        if ip.is_unspecified() {
            return Err(Refusal::NoHost);
        }
        if let Some(mapped) = ip.to_ipv4_mapped() {
            return self.judge4(mapped).map_err(|_| Refusal::Carried);
        }
        for carried in carried(ip).into_iter().flatten() {
            self.judge4(carried).map_err(|_| Refusal::Carried)?;
        }
        let public = || is_public6(ip) && !self.deny.contains6(ip) && !self.own.contains6(ip);
        self.decide(self.allow.contains6(ip), public)
    }

    fn decide(&self, allowed: bool, public: impl FnOnce() -> bool) -> Result<(), Refusal> {
        let reachable = allowed || public();
        if reachable {
            Ok(())
        } else {
            Err(Refusal::NotPublic)
        }
    }
}

fn is_public6(ip: Ipv6Addr) -> bool {
    PUBLIC6.iter().any(|net| net.contains(&ip))
}

/// The IPv4 addresses that an IPv6 address reaches by way of a translator or a tunnel; at most two.
fn carried(ip: Ipv6Addr) -> [Option<Ipv4Addr>; 2] {
    let bits = u128::from(ip);
    let at = |shift: u32| Ipv4Addr::from_bits(((bits >> shift) & 0xffff_ffff) as u32);
    let [a, b, c, ..] = ip.segments();
    match (a, b, c) {
        // NAT64, well-known prefix (RFC 6052, section 2.1).
        (0x64, 0xff9b, 0) if (bits >> 32) & 0xffff_ffff_ffff == 0 => [Some(at(0)), None],
        // NAT64, local-use prefix (RFC 8215): either a /96 below it, or the /48 form of RFC 6052, section 2.2, in
        // which bits 64 to 71 are zero and split the address. Judged by both, unless the second would be empty.
        (0x64, 0xff9b, 1) => {
            let half = |shift: u32| ((bits >> shift) & 0xffff) as u32;
            let split = (half(64) << 16) | half(40);
            if split == 0 {
                [Some(at(0)), None]
            } else if bits & 0xff_ffff_ffff == 0 {
                [Some(Ipv4Addr::from_bits(split)), None]
            } else {
                [Some(at(0)), Some(Ipv4Addr::from_bits(split))]
            }
        }
        // 6to4 (RFC 3056, section 2): the relay's or the router's address.
        (0x2002, ..) => [Some(at(80)), None],
        // Teredo (RFC 4380, section 4): the server's address, and the client's with its bits inverted.
        (0x2001, 0, _) => [Some(at(64)), Some(Ipv4Addr::from_bits(!at(0).to_bits()))],
        _ => [None, None],
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(a: u16, b: u16, c: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

/// IPv4 that is not the public Internet: the IANA IPv4 special-purpose registry's entries that are not globally
/// reachable, multicast, and one public address that clouds answer on themselves.
const NOT_PUBLIC4: [Ipv4Net; 16] = [
    v4(0, 0, 0, 0, 8),        // this network (RFC 791)
    v4(10, 0, 0, 0, 8),       // private use (RFC 1918)
    v4(100, 64, 0, 0, 10),    // shared address space of CGNAT (RFC 6598); Alibaba's metadata
    v4(127, 0, 0, 0, 8),      // loopback (RFC 1122)
    v4(168, 63, 129, 16, 32), // Azure's metadata and host agent, on a public address
    v4(169, 254, 0, 0, 16),   // link-local (RFC 3927); metadata of most clouds
    v4(172, 16, 0, 0, 12),    // private use (RFC 1918)
    v4(192, 0, 0, 0, 24),     // IETF protocol assignments (RFC 6890); Oracle's metadata
    v4(192, 0, 2, 0, 24),     // documentation (RFC 5737)
    v4(192, 88, 99, 0, 24),   // 6to4 relay anycast, deprecated (RFC 7526)
    v4(192, 168, 0, 0, 16),   // private use (RFC 1918)
    v4(198, 18, 0, 0, 15),    // benchmarking (RFC 2544)
    v4(198, 51, 100, 0, 24),  // documentation (RFC 5737)
    v4(203, 0, 113, 0, 24),   // documentation (RFC 5737)
    v4(224, 0, 0, 0, 4),      // multicast (RFC 5771)
    v4(240, 0, 0, 0, 4),      // reserved (RFC 1112), with the limited broadcast
];

/// IPv6 that looks public: global unicast (RFC 4291, section 2.4) and the well-known prefix of NAT64 (RFC 6052).
/// All else, loopback, ULA (RFC 4193), link-local and multicast among it, is not.
const PUBLIC6: [Ipv6Net; 2] = [v6(0x2000, 0, 0, 3), v6(0x64, 0xff9b, 0, 96)];

/// IPv6 within [`PUBLIC6`] that is not public: the IANA IPv6 special-purpose registry's entries, Teredo and 6to4
/// left out, which are judged by what they carry.
const NOT_PUBLIC6: [Ipv6Net; 11] = [
    // IETF protocol assignments 2001::/23 (RFC 2928) less Teredo 2001::/32: benchmarking, ORCHID and the like.
    v6(0x2001, 0x1, 0, 32),
    v6(0x2001, 0x2, 0, 31),
    v6(0x2001, 0x4, 0, 30),
    v6(0x2001, 0x8, 0, 29),
    v6(0x2001, 0x10, 0, 28),
    v6(0x2001, 0x20, 0, 27),
    v6(0x2001, 0x40, 0, 26),
    v6(0x2001, 0x80, 0, 25),
    v6(0x2001, 0x100, 0, 24),
    v6(0x2001, 0xdb8, 0, 32), // documentation (RFC 3849)
    v6(0x3fff, 0, 0, 20),     // documentation (RFC 9637)
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts
            .iter()
            .map(|text| text.parse().expect("a network"))
            .collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn public() -> DestinationPolicy {
        DestinationPolicy::new(&[], &[ip("198.41.0.4"), ip("2600:1f00::5")])
    }

    #[test]
    fn public_hosts_are_allowed() {
        for text in [
            "1.1.1.1",
            "9.9.9.9",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2001:4860:4860::8888",
            "2001:200::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
            // Teredo: server 1.1.1.1, client 8.8.8.8 inverted.
            "2001:0:101:101:0:0:f7f7:f7f7",
        ] {
            assert_eq!(public().judge(ip(text)), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_is_not_public_is_refused() {
        for text in [
            "0.0.0.1",
            "10.0.0.0",
            "10.255.255.255",
            "100.64.0.0",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.0",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.0",
            "198.18.0.0",
            "198.19.255.255",
            "198.41.0.4",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.254",
            "::1",
            "::127.0.0.1",
            "64:ff9a::1",
            "64:ff9b:1::808:808",
            "64:ff9b:0:1::1",
            "100::1",
            "2001:2::1",
            "2001:1ff:ffff::1",
            "2001:db8::1",
            "2600:1f00::5",
            "3fff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert_eq!(public().judge(ip(text)), Err(Refusal::NotPublic), "{text}");
        }
    }

    #[test]
    fn carried_ipv4_is_judged_too() {
        for text in [
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:198.41.0.4",
            "::ffff:0.0.0.0",
            "64:ff9b::10.0.0.1",
            "64:ff9b::192.168.1.1",
            "64:ff9b::255.255.255.255",
            "2002:a00:1::1",
            "2002:7f00:1::1",
            // Teredo with a private server, then with a private client.
            "2001:0:a00:1:0:0:f7f7:f7f7",
            "2001:0:101:101:0:0:f5ff:fffe",
        ] {
            assert_eq!(public().judge(ip(text)), Err(Refusal::Carried), "{text}");
        }
    }

    #[test]
    fn allow_opens_what_it_names_and_no_more() {
        let policy = DestinationPolicy::new(
            &nets(&[
                "192.168.7.0/24",
                "198.41.0.4/32",
                "fd00:1::/32",
                "64:ff9b:1::/48",
                "127.0.0.0/8",
            ]),
            &[ip("198.41.0.4"), ip("::ffff:198.41.0.5")],
        );
        for text in [
            "192.168.7.255",
            "198.41.0.4",
            "fd00:1::9",
            "127.0.0.1",
            "::ffff:192.168.7.1",
            "64:ff9b::192.168.7.1",
            "64:ff9b:1::9.9.9.9",
            "64:ff9b:1:909:9:900::",
        ] {
            assert_eq!(policy.judge(ip(text)), Ok(()), "{text}");
        }
        for text in [
            "192.168.6.255",
            "192.168.8.0",
            "198.41.0.5",
            "fd00:2::9",
            "::1",
            "64:ff9b:1::10.0.0.1",
            "64:ff9b:1:a00:0:100::",
            "64:ff9b:1:a00:0:100:808:808",
        ] {
            assert!(!policy.allows(ip(text)), "{text}");
        }
    }

    #[test]
    fn own_addresses_follow_the_host() {
        let allow = nets(&["9.9.9.0/24"]);
        let before = DestinationPolicy::new(&allow, &[ip("198.41.0.4"), ip("9.9.9.9")]);
        let after = before.with_own(&[ip("198.41.0.5"), ip("2600:1f00::5")]);
        assert!(!before.allows(ip("198.41.0.4")) && before.allows(ip("198.41.0.5")));
        assert!(after.allows(ip("198.41.0.4")) && !after.allows(ip("198.41.0.5")));
        assert!(!after.allows(ip("2600:1f00::5")) && !after.allows(ip("64:ff9b::198.41.0.5")));
        assert!(
            before.allows(ip("9.9.9.9")),
            "what is allowed is, even on this host"
        );
    }

    #[test]
    fn nobodys_addresses_are_refused_whatever_is_allowed() {
        let everything = DestinationPolicy::new(&nets(&["0.0.0.0/0", "::/0"]), &[]);
        for text in [
            "0.0.0.0",
            "255.255.255.255",
            "::",
            "::ffff:0.0.0.0",
            "64:ff9b::0.0.0.0",
        ] {
            assert!(!everything.allows(ip(text)), "{text}");
        }
        for text in [
            "127.0.0.1",
            "10.0.0.1",
            "::1",
            "fe80::1",
            "64:ff9b::10.0.0.1",
        ] {
            assert!(everything.allows(ip(text)), "{text}");
        }
    }

    /// The policy as slow and plain as can be.
    fn reference(allow: &[IpNet], own: &[IpAddr], ip: IpAddr) -> bool {
        let IpAddr::V6(v6) = ip else {
            let IpAddr::V4(v4) = ip else { return false };
            let private = NOT_PUBLIC4.iter().any(|net| net.contains(&v4)) || own.contains(&ip);
            let nobody = v4 == Ipv4Addr::UNSPECIFIED || v4 == Ipv4Addr::BROADCAST;
            return !nobody && (allow.iter().any(|net| net.contains(&ip)) || !private);
        };
        let octets = v6.octets();
        let inner = |bytes: [u8; 4]| reference(allow, own, IpAddr::from(bytes));
        let four = |start: usize| -> [u8; 4] { octets[start..start + 4].try_into().expect("four") };
        let in_net = |text: &str| text.parse::<IpNet>().expect("a network").contains(&ip);
        if in_net("::ffff:0:0/96") {
            return inner(four(12));
        }
        let carried_fits = if in_net("64:ff9b::/96") {
            inner(four(12))
        } else if in_net("2002::/16") {
            inner(four(2))
        } else if in_net("2001::/32") {
            inner(four(4)) && inner(four(12).map(|byte| !byte))
        } else if in_net("64:ff9b:1::/48") {
            let split = [octets[6], octets[7], octets[9], octets[10]];
            match (split == [0; 4], octets[11..] == [0; 5]) {
                (true, _) => inner(four(12)),
                (false, true) => inner(split),
                (false, false) => inner(split) && inner(four(12)),
            }
        } else {
            true
        };
        let space = PUBLIC6.iter().any(|net| net.contains(&v6));
        let private =
            !space || NOT_PUBLIC6.iter().any(|net| net.contains(&v6)) || own.contains(&ip);
        v6 != Ipv6Addr::UNSPECIFIED
            && carried_fits
            && (allow.iter().any(|net| net.contains(&ip)) || !private)
    }

    /// Addresses near the edges of every network that matters, and anywhere.
    fn addresses() -> impl Strategy<Value = IpAddr> {
        let edges: Vec<IpAddr> = NOT_PUBLIC4
            .iter()
            .flat_map(|net| {
                let (low, high) = (net.network().to_bits(), net.broadcast().to_bits());
                [low.wrapping_sub(1), low, high, high.wrapping_add(1)]
                    .map(|bits| Ipv4Addr::from_bits(bits).into())
            })
            .chain(NOT_PUBLIC6.iter().chain(&PUBLIC6).flat_map(|net| {
                let (low, high) = (net.network().to_bits(), net.broadcast().to_bits());
                [low.wrapping_sub(1), low, high, high.wrapping_add(1)]
                    .map(|bits| Ipv6Addr::from_bits(bits).into())
            }))
            .collect();
        let carrier = prop::sample::select(vec![
            "::ffff:0:0",
            "64:ff9b::",
            "64:ff9b:1::",
            "2002::",
            "2001::",
            "fd00::",
            "2600::",
        ]);
        prop_oneof![
            prop::sample::select(edges.clone()),
            any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
            any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
            (
                carrier,
                prop::sample::select(edges),
                any::<u128>(),
                0_u32..97
            )
                .prop_map(|(carrier, ip, noise, shift)| {
                    let base = carrier.parse::<Ipv6Addr>().expect("a carrier").to_bits();
                    let noise = if noise % 3 == 0 { noise >> 40 } else { 0 };
                    let inner = match ip {
                        IpAddr::V4(ip) => u128::from(ip.to_bits()) << shift,
                        IpAddr::V6(_) => 0,
                    };
                    Ipv6Addr::from_bits(base | inner | noise).into()
                }),
        ]
    }

    proptest! {
        #[test]
        fn searches_agree_with_the_plain_reference(
            allow in prop::collection::vec((addresses(), 0_u8..129), 0..6),
            own in prop::collection::vec(addresses(), 0..3),
            asked in prop::collection::vec(addresses(), 1..64),
        ) {
            let allow: Vec<IpNet> = allow
                .into_iter()
                .map(|(ip, prefix)| IpNet::new(ip, if ip.is_ipv4() { prefix % 33 } else { prefix }).expect("in range").trunc())
                .collect();
            let own: Vec<IpAddr> = own.into_iter().map(|ip| ip.to_canonical()).collect();
            let policy = DestinationPolicy::new(&allow, &own);
            for ip in asked.into_iter().chain(allow.iter().map(IpNet::addr)).chain(own.iter().copied()) {
                prop_assert_eq!(policy.allows(ip), reference(&allow, &own, ip), "{}", ip);
            }
        }
    }
}
