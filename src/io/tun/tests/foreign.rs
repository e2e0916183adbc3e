//! Foreign firewall rules are found and named.

use super::host::on_host;
use super::{NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6};
use crate::io::nft::{self, Step};

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
