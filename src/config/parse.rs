//! Single values: a text in, a value out, or what was found and what would be right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::address::{AddressError, Host, LaneAddr};
use super::client::CertificatePin;
use super::server::{EgressKind, ListenAddr};
use super::settings::nearest;
use crate::proto::{AeadKind, PublicKey};
use crate::wire::{MAX_NAME_LEN, is_client_name};

pub(super) type Parsed<T> = Result<T, String>;

/// `true` or `false`, in YAML 1.1's other words too.
pub(super) fn boolean(text: &str) -> Parsed<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Ok(true),
        "false" | "no" | "off" => Ok(false),
        _ => Err(format!(
            "`{text}` is neither true nor false: write true or false"
        )),
    }
}

/// A percentage within bounds, both allowed.
pub(super) fn percentage(text: &str, least: u8, most: u8) -> Parsed<u8> {
    let digits = text.strip_suffix('%').map(str::trim_end);
    match digits.map(str::parse::<u32>) {
        Some(Ok(value)) => u8::try_from(value)
            .ok()
            .filter(|value| (least..=most).contains(value))
            .ok_or_else(|| {
                format!("`{text}` is out of range: write a percentage from {least}% to {most}%")
            }),
        Some(Err(_)) | None => Err(format!(
            "`{text}` is not a whole percentage: write one from {least}% to {most}%, such as 20%"
        )),
    }
}

/// A whole number within bounds, both allowed.
pub(super) fn number(text: &str, least: u32, most: u32) -> Parsed<u32> {
    let digits = text.replace('_', "");
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    match digits.parse::<u32>() {
        Ok(value) if plain && (least..=most).contains(&value) => Ok(value),
        Ok(_) | Err(_) if plain => Err(format!(
            "`{text}` is out of range: write a number from {least} to {most}"
        )),
        Ok(_) | Err(_) => Err(format!(
            "`{text}` is not a number: write one from {least} to {most}"
        )),
    }
}

/// A size in memory: `256MiB`, `1GiB`.
pub(super) fn size(text: &str, least: usize) -> Parsed<usize> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let per_unit: Option<usize> = match unit.trim() {
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    let bytes = per_unit.and_then(|per_unit| digits.parse::<usize>().ok()?.checked_mul(per_unit));
    match bytes {
        Some(bytes) if bytes >= least => Ok(bytes),
        Some(_) => Err(format!(
            "`{text}` is too little: write {}MiB or more",
            least.div_ceil(1 << 20)
        )),
        None => Err(format!(
            "`{text}` is not a size: write one like 256MiB or 1GiB"
        )),
    }
}

/// A duration: `10s`, `500ms`, `2m`; a number alone means seconds.
pub(crate) fn duration(text: &str, least: Duration, most: Duration) -> Parsed<Duration> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let per_unit: Option<u64> = match unit.trim() {
        "ms" => Some(1),
        "" | "s" => Some(1_000),
        "m" | "min" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    };
    let millis = per_unit.and_then(|per_unit| digits.parse::<u64>().ok()?.checked_mul(per_unit));
    let Some(millis) = millis else {
        return Err(format!(
            "`{text}` is not a duration: write one like 10s, 500ms or 2m"
        ));
    };
    let value = Duration::from_millis(millis);
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(format!(
            "`{text}` is out of range: write a duration from {least:?} to {most:?}"
        ))
    }
}

/// An address to listen on for lanes.
pub(super) fn listen(text: &str) -> Parsed<ListenAddr> {
    let lane: LaneAddr = text
        .parse()
        .map_err(|error: AddressError| error.to_string())?;
    let scheme = lane.scheme;
    match lane.host {
        Host::Ip(ip) => Ok(ListenAddr {
            scheme,
            address: SocketAddr::new(ip, lane.port),
            path: lane.path,
        }),
        Host::Name(name) => Err(format!(
            "`{name}` is a name, and a server listens on an address: write {scheme}://0.0.0.0:{port}, {scheme}://[::]:{port} or one address of this host",
            port = lane.port
        )),
    }
}

/// A host by name or address, as a certificate names it: an IPv6 address without its brackets.
pub(super) fn host(text: &str) -> Parsed<String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(ip.to_string());
    }
    match text
        .parse()
        .map_err(|error: AddressError| error.to_string())?
    {
        Host::Name(name) => Ok(name),
        Host::Ip(ip) => Ok(ip.to_string()),
    }
}

/// An address to connect to for a lane.
pub(super) fn server(text: &str) -> Parsed<LaneAddr> {
    let lane: LaneAddr = text
        .parse()
        .map_err(|error: AddressError| error.to_string())?;
    match &lane.host {
        _ if lane.port == 0 => Err(format!(
            "`{text}` has port 0, which nobody listens on: write the server's port"
        )),
        Host::Ip(ip) if ip.is_unspecified() => Err(format!(
            "`{ip}` is where a server listens, not where it is reached: write its name or address"
        )),
        Host::Ip(_) | Host::Name(_) => Ok(lane),
    }
}

/// Parses the address of the local proxy; `localhost` is 127.0.0.1.
///
/// # Errors
/// It is none; the text says what was found and what would be right.
pub fn proxy(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let right = "write an address and a port such as 127.0.0.1:1080";
    match text.rsplit_once(':') {
        Some(("localhost", port)) => match port.parse() {
            Ok(port) => Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)),
            Err(_) => Err(format!("`{port}` is not a port: {right}")),
        },
        _ if text.contains("://") => Err(format!(
            "`{text}` is a URL: {right}; one port speaks every protocol"
        )),
        _ if text.parse::<u16>().is_ok() => {
            Err(format!("`{text}` is a port alone: write 127.0.0.1:{text}"))
        }
        _ if text.parse::<IpAddr>().is_ok() => Err(format!("`{text}` has no port: {right}")),
        _ => Err(format!("`{text}` is not an address to listen on: {right}")),
    }
}

/// Where metrics and health are served, or `off`.
pub(super) fn admin(text: &str) -> Parsed<Option<SocketAddr>> {
    if is_off(text) {
        return Ok(None);
    }
    let address: Result<SocketAddr, _> = text.replace("localhost:", "127.0.0.1:").parse();
    let right = "write an address of this host and a port such as 127.0.0.1:9090, or off";
    address
        .map(Some)
        .map_err(|_| format!("`{text}` is not an address to listen on: {right}"))
}

/// The pool of inner IPv4 addresses, or `off`.
pub(super) fn pool4(text: &str) -> Parsed<Option<Ipv4Net>> {
    if is_off(text) {
        return Ok(None);
    }
    let right = "write one like 10.86.0.0/24, or off";
    let net: Ipv4Net = match network(text, right)? {
        IpNet::V4(net) => net,
        IpNet::V6(net) => {
            return Err(format!(
                "`{net}` is an IPv6 network, which belongs to `network6`: {right}"
            ));
        }
    };
    let first = net.network();
    if first.is_loopback()
        || first.is_multicast()
        || first.is_unspecified()
        || first.octets()[0] >= 240
    {
        return Err(format!("`{text}` cannot be given to clients: {right}"));
    }
    if !(MIN_POOL4..=MAX_POOL4).contains(&net.prefix_len()) {
        return Err(format!(
            "`{text}` has the wrong size: write a network from /{MIN_POOL4} to /{MAX_POOL4}, which holds the gateway and at least one client"
        ));
    }
    Ok(Some(net))
}

/// The pool of inner IPv6 addresses, or `off`.
pub(super) fn pool6(text: &str) -> Parsed<Option<Ipv6Net>> {
    if is_off(text) {
        return Ok(None);
    }
    let right = "write one like fd86::/64, or off";
    let net = match network(text, right)? {
        IpNet::V6(net) => net,
        IpNet::V4(net) => {
            return Err(format!(
                "`{net}` is an IPv4 network, which belongs to `network`: {right}"
            ));
        }
    };
    let first = net.network();
    let link_local = first.segments()[0] & 0xffc0 == 0xfe80;
    if first.is_loopback() || first.is_multicast() || first.is_unspecified() || link_local {
        return Err(format!("`{text}` cannot be given to clients: {right}"));
    }
    if !(MIN_POOL6..=MAX_POOL6).contains(&net.prefix_len()) {
        return Err(format!(
            "`{text}` has the wrong size: write a network from /{MIN_POOL6} to /{MAX_POOL6}, which holds the gateway and at least one client"
        ));
    }
    Ok(Some(net))
}

/// A network to let clients reach; an address alone is a network of one.
pub(super) fn allow(text: &str) -> Parsed<IpNet> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(ip.to_canonical().into());
    }
    let net = network(text, "write a network like 192.168.7.0/24 or an address")?;
    match net {
        IpNet::V6(v6) if v6.network().to_ipv4_mapped().is_some() && v6.prefix_len() >= 96 => Err(
            format!("`{text}` is IPv4 in an IPv6 coat, and judged as IPv4: write the IPv4 network"),
        ),
        IpNet::V4(_) | IpNet::V6(_) => Ok(net),
    }
}

fn network(text: &str, right: &str) -> Parsed<IpNet> {
    let net: IpNet = match text.parse() {
        Ok(net) => net,
        Err(_) => return Err(format!("`{text}` is not a network: {right}")),
    };
    let whole = net.trunc();
    if whole == net {
        Ok(net)
    } else {
        Err(format!(
            "`{text}` is an address inside a network: write {whole} for the network"
        ))
    }
}

pub(super) fn ipv4(text: &str) -> Parsed<Ipv4Addr> {
    text.parse()
        .map_err(|_| format!("`{text}` is not an IPv4 address: write one like 10.86.0.9"))
}

pub(super) fn ipv6(text: &str) -> Parsed<Ipv6Addr> {
    text.parse()
        .map_err(|_| format!("`{text}` is not an IPv6 address: write one like fd86::9"))
}

/// An inner address of a resolver.
pub(super) fn resolver(text: &str) -> Parsed<IpAddr> {
    match text.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() || ip.is_multicast() => Err(format!(
            "`{text}` is no resolver's address: write one like 9.9.9.9"
        )),
        Ok(ip) => Ok(ip),
        Err(_) => Err(format!(
            "`{text}` is not an IP address: write one like 9.9.9.9"
        )),
    }
}

/// A resolver that the server asks: an address, with a port where it is not 53.
pub(super) fn upstream(text: &str) -> Parsed<SocketAddr> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        resolver(&address.ip().to_string())?;
        return if address.port() == 0 {
            Err(format!("`{text}` has port 0: write the resolver's port"))
        } else {
            Ok(address)
        };
    }
    resolver(text).map(|ip| SocketAddr::new(ip, DNS_PORT))
}

pub(super) fn public_key(text: &str) -> Parsed<PublicKey> {
    let key: PublicKey = text.parse().map_err(|error| {
        format!("`{text}` is not a public key: {error}; `adit pubkey` shows that of a key file")
    })?;
    if key.is_nobodys() {
        return Err(format!(
            "`{text}` can be nobody's public key; `adit pubkey` shows that of a key file"
        ));
    }
    Ok(key)
}

pub(super) fn egress(text: &str) -> Parsed<EgressKind> {
    match text {
        "tun" => Ok(EgressKind::Tun),
        "user" => Ok(EgressKind::User),
        _ => Err(format!(
            "`{text}` is not an egress: write tun (needs CAP_NET_ADMIN) or user (needs nothing)"
        )),
    }
}

pub(super) fn aead(text: &str) -> Parsed<AeadKind> {
    if let Some(found) = AeadKind::ALL.into_iter().find(|aead| aead.name() == text) {
        return Ok(found);
    }
    let names = AeadKind::ALL.map(AeadKind::name);
    match nearest(text, names.into_iter()) {
        Some(near) => Err(format!("`{text}` is not a cipher: did you mean {near}?")),
        None => Err(format!(
            "`{text}` is not a cipher: write one of {}",
            names.join(", ")
        )),
    }
}

/// The name of a client, for logs and metrics.
pub(super) fn client_name(text: &str) -> Parsed<String> {
    if is_client_name(text) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "`{text}` is not a client's name: write 1 to {MAX_NAME_LEN} letters, digits, or any of - _ . @"
        ))
    }
}

/// The name of a network interface, as the kernel's `dev_valid_name` takes it.
pub(super) fn interface(text: &str) -> Parsed<String> {
    let fits = !text.is_empty()
        && text.len() <= MAX_INTERFACE_NAME
        && !matches!(text, "." | "..")
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"/:%\"\\".contains(&byte));
    if fits {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "`{text}` is not an interface's name: write 1 to {MAX_INTERFACE_NAME} letters or digits, such as adit0"
        ))
    }
}

/// The fingerprint of a certificate's public key: 64 hex digits, colons allowed, or 44 base64 characters.
pub(super) fn pin(text: &str) -> Parsed<CertificatePin> {
    // What `curl --pinnedpubkey` takes is pasted as it is.
    let bare = ["sha256//", "sha256/", "sha256:"]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))
        .unwrap_or(text);
    let hex: String = bare.chars().filter(|c| *c != ':').collect();
    let mut pin = [0; 32];
    if hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        for (index, byte) in pin.iter_mut().enumerate() {
            *byte = hex
                .get(index * 2..index * 2 + 2)
                .and_then(|two| u8::from_str_radix(two, 16).ok())
                .unwrap_or(0);
        }
        return Ok(CertificatePin(pin));
    }
    match STANDARD.decode(bare) {
        Ok(bytes) if bytes.len() == pin.len() => {
            pin.copy_from_slice(&bytes);
            Ok(CertificatePin(pin))
        }
        Ok(_) | Err(_) => Err(format!(
            "`{text}` is not a pin: write the SHA-256 of the certificate's public key, 44 base64 characters or 64 hex digits"
        )),
    }
}

/// A user name or password: what both SOCKS5 (RFC 1929, section 2) and HTTP Basic (RFC 7617, section 2) can carry.
pub(super) fn credential(text: &str, may_hold_colon: bool) -> Parsed<String> {
    if text.is_empty() || text.len() > MAX_CREDENTIAL {
        return Err(format!(
            "has {} bytes: write 1 to {MAX_CREDENTIAL}",
            text.len()
        ));
    }
    if text.chars().any(char::is_control) {
        return Err("holds a control character: write printable ones".to_owned());
    }
    if !may_hold_colon && text.contains(':') {
        return Err("holds a colon, which ends a user name in HTTP: leave it out".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn is_off(text: &str) -> bool {
    matches!(
        text.to_ascii_lowercase().as_str(),
        "off" | "no" | "none" | "false"
    )
}

/// Shortest prefix of an IPv4 pool: all of 10.0.0.0/8.
const MIN_POOL4: u8 = 8;
/// Longest prefix of an IPv4 pool: two hosts, the gateway and a client.
const MAX_POOL4: u8 = 30;
/// Shortest prefix of an IPv6 pool: that of a ULA (RFC 4193, section 3.1) beside room for global ones.
const MIN_POOL6: u8 = 32;
/// Longest prefix of an IPv6 pool: three hosts, as ::0 is the routers' anycast address (RFC 4291, section 2.6.1).
const MAX_POOL6: u8 = 126;
/// Bytes in a user name or a password (RFC 1929, section 2).
const MAX_CREDENTIAL: usize = 255;
/// Bytes in an interface's name: the kernel's IFNAMSIZ less the final zero.
const MAX_INTERFACE_NAME: usize = 15;
/// The port of DNS (RFC 1035, section 4.2).
const DNS_PORT: u16 = 53;
