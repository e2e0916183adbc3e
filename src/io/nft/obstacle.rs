//! Finds foreign rules that would drop what the tunnel forwards, and says what to do about them.
//!
//! A base chain at the forward hook is an obstacle when a packet that no rule of it accepts is dropped: its policy is
//! to drop (Docker, ufw), or its last rule drops or rejects without a condition (firewalld). It is none when its table
//! has a rule that accepts the tunnel's interface by name, or hands it to a chain: then somebody has thought of it.
//! What the rules between do with a packet is not worked out: this is a warning, and never an error.
//!
//! Of the rules of the old `iptables-legacy`, which are not in nftables, the policy is looked at in the same way
//! (`legacy`).

use std::fmt;
use std::io;

use super::legacy::Legacy;
use super::message::{
    NF_ACCEPT, NF_DROP, NF_INET_FORWARD, NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, NFT_CMP_EQ,
    NFT_META_IIFNAME, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME,
    NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE, NFTA_CMP_DATA, NFTA_CMP_OP,
    NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_EXPR_DATA, NFTA_EXPR_NAME, NFTA_HOOK_HOOKNUM,
    NFTA_IMMEDIATE_DATA, NFTA_META_KEY, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_TABLE,
    NFTA_VERDICT_CHAIN, NFTA_VERDICT_CODE, attributes, find, find_number, find_text,
};
use super::rules::table_name;
use super::socket::{NftSocket, Object};

/// A foreign chain that drops what is forwarded and knows nothing of the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// Family of its table: `ip`, `ip6` or `inet`.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Commands that let the tunnel's packets pass it.
    pub remedy: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            family,
            table,
            chain,
            remedy,
        } = self;
        write!(
            f,
            "the firewall chain `{chain}` of table `{family} {table}` drops forwarded packets, and may drop those of the clients; to let them pass: {remedy}"
        )
    }
}

impl std::error::Error for Obstacle {}

/// Looks for obstacles to packets of the families in use.
///
/// # Errors
/// What the kernel says when the rules cannot be listed: `EPERM` without CAP_NET_ADMIN.
pub fn obstacles(interface: &str, v4: bool, v6: bool) -> io::Result<Vec<Obstacle>> {
    let socket = NftSocket::open()?;
    let chains = list(&socket, NFT_MSG_GETCHAIN)?;
    let rules = list(&socket, NFT_MSG_GETRULE)?;
    let mut found = judge(interface, v4, v6, &chains, &rules);
    for (family, legacy, wanted) in [("ip", Legacy::V4, v4), ("ip6", Legacy::V6, v6)] {
        if wanted && legacy.drops(interface)? {
            let (table, chain) = ("filter".to_owned(), "FORWARD".to_owned());
            let remedy = accept_both(legacy.program(), &chain, interface);
            found.push(Obstacle {
                family,
                table,
                chain,
                remedy,
            });
        }
    }
    Ok(found)
}

/// Returns whether the table of the tunnel `interface` is loaded.
///
/// # Errors
/// As [`obstacles`].
pub fn is_loaded(interface: &str) -> io::Result<bool> {
    has_table(&table_name(interface))
}

/// Returns whether a table of family `inet` with chains in it has this name.
///
/// # Errors
/// As [`obstacles`].
pub fn has_table(own: &str) -> io::Result<bool> {
    let chains = list(&NftSocket::open()?, NFT_MSG_GETCHAIN)?;
    let table = |chain: &Object| {
        chain.family == NFPROTO_INET && find_text(&chain.attributes, NFTA_CHAIN_TABLE) == Some(own)
    };
    Ok(chains.iter().any(table))
}

/// A list that is whole: one that changed while it was read is read again.
fn list(socket: &NftSocket, kind: u16) -> io::Result<Vec<Object>> {
    let mut result = socket.list(kind);
    for _ in 1..LIST_TRIES {
        match &result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => result = socket.list(kind),
            Ok(_) | Err(_) => break,
        }
    }
    result
}

fn judge(
    interface: &str,
    v4: bool,
    v6: bool,
    chains: &[Object],
    rules: &[Object],
) -> Vec<Obstacle> {
    let own = table_name(interface);
    let mut found = Vec::new();
    for chain in chains {
        let family = match chain.family {
            NFPROTO_INET => "inet",
            NFPROTO_IPV4 if v4 => "ip",
            NFPROTO_IPV6 if v6 => "ip6",
            _ => continue,
        };
        let (Some(table), Some(name)) = (
            find_text(&chain.attributes, NFTA_CHAIN_TABLE),
            find_text(&chain.attributes, NFTA_CHAIN_NAME),
        ) else {
            continue;
        };
        let hook = find(&chain.attributes, NFTA_CHAIN_HOOK)
            .and_then(|hook| find_number(hook, NFTA_HOOK_HOOKNUM));
        let kind = find_text(&chain.attributes, NFTA_CHAIN_TYPE);
        if hook != Some(NF_INET_FORWARD) || kind != Some("filter") || table == own {
            continue;
        }
        let of_table = || {
            rules.iter().filter(|rule| {
                rule.family == chain.family
                    && find_text(&rule.attributes, NFTA_RULE_TABLE) == Some(table)
            })
        };
        let last =
            of_table().rfind(|rule| find_text(&rule.attributes, NFTA_RULE_CHAIN) == Some(name));
        let drops = find_number(&chain.attributes, NFTA_CHAIN_POLICY) == Some(NF_DROP)
            || last.is_some_and(|rule| drops_everything(&rule.attributes));
        if drops && !of_table().any(|rule| lets_in(&rule.attributes, interface)) {
            let has_chain = |wanted: &str| {
                chains.iter().any(|other| {
                    other.family == chain.family
                        && find_text(&other.attributes, NFTA_CHAIN_TABLE) == Some(table)
                        && find_text(&other.attributes, NFTA_CHAIN_NAME) == Some(wanted)
                })
            };
            let remedy = remedy(family, table, name, interface, has_chain);
            found.push(Obstacle {
                family,
                table: table.to_owned(),
                chain: name.to_owned(),
                remedy,
            });
        }
    }
    found
}

/// The command of whoever keeps that chain.
fn remedy(
    family: &str,
    table: &str,
    chain: &str,
    interface: &str,
    has_chain: impl Fn(&str) -> bool,
) -> String {
    let iptables = match family {
        "ip6" => "ip6tables",
        _ => "iptables",
    };
    let both = |chain: &str| accept_both(iptables, chain, interface);
    if table == "firewalld" {
        format!(
            "firewall-cmd --permanent --zone=trusted --add-interface={interface} && firewall-cmd --reload"
        )
    } else if table == "filter" && chain == "FORWARD" && family != "inet" {
        if has_chain("DOCKER-USER") {
            both("DOCKER-USER")
        } else if has_chain("ufw-user-forward") || has_chain("ufw6-user-forward") {
            format!("ufw route allow in on {interface} && ufw route allow out on {interface}")
        } else {
            both(chain)
        }
    } else {
        let insert =
            |key| format!("nft insert rule {family} {table} {chain} {key} {interface} accept");
        format!("{} && {}", insert("iifname"), insert("oifname"))
    }
}

/// The rules of iptables that accept both directions.
fn accept_both(program: &str, chain: &str, interface: &str) -> String {
    let insert = |side| format!("{program} -I {chain} {side} {interface} -j ACCEPT");
    format!("{} && {}", insert("-i"), insert("-o"))
}

/// Whether a rule drops or rejects whatever reaches it.
fn drops_everything(rule: &[u8]) -> bool {
    let mut ends_in_drop = false;
    for (name, data) in expressions(rule) {
        match name {
            "counter" | "log" => {}
            "reject" => ends_in_drop = true,
            "immediate" => ends_in_drop |= verdict(data).is_some_and(|(code, _)| code == NF_DROP),
            // The targets of iptables.
            "target" => ends_in_drop |= find_text(data, NFTA_TARGET_NAME) == Some("REJECT"),
            _ => return false,
        }
    }
    ends_in_drop
}

/// Whether a rule accepts what comes in by the interface, or hands it to another chain.
fn lets_in(rule: &[u8], interface: &str) -> bool {
    let mut is_input_name = false;
    let mut is_ours = false;
    let mut ends_well = false;
    for (name, data) in expressions(rule) {
        match name {
            "meta" => is_input_name = find_number(data, NFTA_META_KEY) == Some(NFT_META_IIFNAME),
            "cmp" if is_input_name => {
                let equal = find_number(data, NFTA_CMP_OP) == Some(NFT_CMP_EQ);
                let value = find(data, NFTA_CMP_DATA).and_then(|data| find(data, NFTA_DATA_VALUE));
                is_ours |= equal && value.is_some_and(|value| names(value, interface));
            }
            "immediate" => {
                ends_well |=
                    verdict(data).is_some_and(|(code, has_chain)| code == NF_ACCEPT || has_chain);
            }
            _ => {}
        }
    }
    is_ours && ends_well
}

/// Whether a compared name, ended by a zero byte, is the interface's, or without one is the beginning of it.
fn names(value: &[u8], interface: &str) -> bool {
    match value.iter().position(|byte| *byte == 0) {
        Some(end) => value.get(..end) == Some(interface.as_bytes()),
        None => interface.as_bytes().starts_with(value),
    }
}

/// Code of an immediate verdict and whether it names a chain to go to.
fn verdict(immediate: &[u8]) -> Option<(u32, bool)> {
    let verdict = find(find(immediate, NFTA_IMMEDIATE_DATA)?, NFTA_DATA_VERDICT)?;
    Some((
        find_number(verdict, NFTA_VERDICT_CODE)?,
        find(verdict, NFTA_VERDICT_CHAIN).is_some(),
    ))
}

/// Name and data of each expression of a rule.
fn expressions(rule: &[u8]) -> impl Iterator<Item = (&str, &[u8])> {
    let list = find(rule, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
    attributes(list).filter_map(|(_, element)| {
        Some((
            find_text(element, NFTA_EXPR_NAME)?,
            find(element, NFTA_EXPR_DATA).unwrap_or_default(),
        ))
    })
}

const NFTA_TARGET_NAME: u16 = 1;

/// A list is interrupted only while somebody reloads rules, which is over at once.
const LIST_TRIES: u32 = 5;

#[cfg(test)]
mod tests {
    use super::super::message::Attributes;
    use super::*;

    fn rule(body: impl Fn(&mut Attributes<'_>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut to = Attributes::new(&mut bytes);
        to.nested(NFTA_RULE_EXPRESSIONS, body);
        bytes
    }

    fn expression(to: &mut Attributes<'_>, name: &str, body: impl Fn(&mut Attributes<'_>)) {
        to.nested(1, |element| {
            element.text(NFTA_EXPR_NAME, name);
            element.nested(NFTA_EXPR_DATA, body);
        });
    }

    #[test]
    fn last_rule_drops_everything_only_without_a_condition() {
        let reject = rule(|to| {
            expression(to, "counter", |_| ());
            expression(to, "reject", |_| ());
        });
        assert!(drops_everything(&reject));
        let iptables =
            rule(|to| expression(to, "target", |data| data.text(NFTA_TARGET_NAME, "REJECT")));
        assert!(drops_everything(&iptables));
        let limited = rule(|to| {
            expression(to, "limit", |_| ());
            expression(to, "reject", |_| ());
        });
        assert!(!drops_everything(&limited));
        assert!(!drops_everything(&rule(|to| expression(to, "log", |_| ()))));
        assert!(!drops_everything(&[]));
    }

    #[test]
    fn compared_name_is_whole_or_a_beginning() {
        assert!(names(b"adit0\0\0\0", "adit0"));
        assert!(names(b"adit", "adit0"));
        assert!(!names(b"adit\0", "adit0"));
        assert!(!names(b"adit01\0", "adit0"));
    }

    proptest::proptest! {
        #[test]
        fn any_rule_is_judged_without_panic(bytes: Vec<u8>) {
            let object = Object { family: NFPROTO_IPV4, attributes: bytes.clone() };
            judge("adit0", true, true, std::slice::from_ref(&object), std::slice::from_ref(&object));
            lets_in(&bytes, "adit0");
            drops_everything(&bytes);
        }
    }
}
