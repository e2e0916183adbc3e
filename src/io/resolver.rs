//! Whom the host would ask: its resolver configuration, followed as it changes.
//!
//! # Theory of operation
//!
//! A laptop that moves, a DHCP lease, a VPN of the host's own: each writes `/etc/resolv.conf` anew. So before a query
//! its file and that of the hosts are looked at, at most once in [`LOOK_EVERY`], and where one is another than before
//! the resolver is made anew, with an empty cache: what the former upstreams said may not hold any more. Queries under
//! way end with the resolver that they began with. A configuration that cannot be used changes nothing: the former one
//! is more likely to answer than none.
//!
//! What this program itself wants to reach by name, [`addresses`] finds, with the same files. The C library's resolver
//! is never asked: a static program has none that could be relied on, and it would want a thread for each name.
//! So names that only a module of nsswitch.conf knows (mDNS, WINS) are not found.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::{Hosts, TokioResolver, system_conf};

use super::outside::RESOLV_CONF;
use crate::dns::UDP_PAYLOAD;

/// A resolver that is made anew when the host's configuration changes.
pub(crate) struct Upstreams {
    source: Source,
    hosts: PathBuf,
    queries: usize,
    current: Mutex<Current>,
}

/// Where the upstreams are named.
pub(crate) enum Source {
    /// In a file that the host's other programs read too.
    Host(PathBuf),
    /// In the server's own configuration.
    Given(ResolverConfig),
}

struct Current {
    resolver: TokioResolver,
    /// What it was made of, beside the hosts file.
    config: (ResolverConfig, ResolverOpts),
    /// The files as they were when they were last looked at.
    seen: [Option<Stamp>; 2],
    look_at: Instant,
}

/// Tells one state of a file from another: modified and changed in nanoseconds, inode and length.
pub(crate) type Stamp = [i64; 6];

impl Upstreams {
    /// Asks `upstreams`, or where there are none those that the host itself asks.
    ///
    /// A host without a usable configuration is warned about, and served from its hosts file alone until it has one.
    ///
    /// # Errors
    /// The resolver cannot be made.
    pub(crate) fn new(
        now: Instant,
        upstreams: &[SocketAddr],
        queries: usize,
    ) -> Result<Self, NetError> {
        let source = if upstreams.is_empty() {
            Source::Host(PathBuf::from(RESOLV_CONF))
        } else {
            Source::Given(given(upstreams))
        };
        Self::of(now, source, PathBuf::from(HOSTS), queries)
    }

    pub(crate) fn of(
        now: Instant,
        source: Source,
        hosts: PathBuf,
        queries: usize,
    ) -> Result<Self, NetError> {
        // Before the files are read: a change meanwhile shows at the next look.
        let seen = source.stamps(&hosts);
        let config = source.read().unwrap_or_else(|error| {
            tracing::warn!(%error, "no DNS resolver is configured on this host (/etc/resolv.conf): set `dns:`");
            let nothing = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
            (nothing, ResolverOpts::default())
        });
        let current = Mutex::new(Current {
            resolver: build(with_queries(config.clone(), queries), &hosts)?,
            config,
            seen,
            look_at: now + LOOK_EVERY,
        });
        Ok(Self {
            source,
            hosts,
            queries,
            current,
        })
    }

    /// Returns the resolver for a query at `now`.
    pub(crate) fn resolver(&self, now: Instant) -> TokioResolver {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= current.look_at {
            current.look_at = now + LOOK_EVERY;
            let seen = self.source.stamps(&self.hosts);
            if seen != current.seen {
                current.seen = seen;
                self.look_again(&mut current);
            }
        }
        current.resolver.clone()
    }

    fn look_again(&self, current: &mut Current) {
        match self.source.read() {
            Ok(config) => current.config = config,
            Err(error) => {
                tracing::warn!(%error, "the host's resolver configuration cannot be used; the former one stays");
            }
        }
        let config = with_queries(current.config.clone(), self.queries);
        match build(config, &self.hosts) {
            Ok(resolver) => {
                tracing::info!("the host's resolver configuration has changed");
                current.resolver = resolver;
            }
            Err(error) => tracing::warn!(%error, "the DNS resolver stays as it was"),
        }
    }
}

impl Source {
    fn read(&self) -> Result<(ResolverConfig, ResolverOpts), NetError> {
        match self {
            Self::Host(path) => system_conf::parse_resolv_conf(fs::read(path)?),
            Self::Given(config) => Ok((config.clone(), ResolverOpts::default())),
        }
    }

    fn stamps(&self, hosts: &Path) -> [Option<Stamp>; 2] {
        let own = match self {
            Self::Host(path) => stamp(path),
            Self::Given(_) => None,
        };
        [own, stamp(hosts)]
    }
}

/// `None` where there is no such file.
pub(crate) fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    Some([
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec(),
        file.ino().cast_signed(),
        file.size().cast_signed(),
    ])
}

/// As the resolver of many clients is to be: that many questions at once, and answers with all that leads to them.
fn with_queries(
    (config, mut options): (ResolverConfig, ResolverOpts),
    queries: usize,
) -> (ResolverConfig, ResolverOpts) {
    options.max_active_requests = queries;
    options.preserve_intermediates = true;
    (config, options)
}

fn build(
    (config, mut options): (ResolverConfig, ResolverOpts),
    hosts: &Path,
) -> Result<TokioResolver, NetError> {
    options.edns_payload_len = UDP_PAYLOAD;
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    let mut resolver = builder.build()?;
    let mut names = Hosts::default();
    // A host without the file, or with one that makes no sense, has no names of its own.
    let read = File::open(hosts)
        .map_err(|error| error.to_string())
        .and_then(|file| {
            names
                .read_hosts_conf(file)
                .map_err(|error| error.to_string())
        });
    if let Err(error) = read {
        tracing::debug!(error, "the hosts file cannot be read");
    }
    resolver.set_hosts(Arc::new(names));
    Ok(resolver)
}

/// Finds the addresses of `name` as this host's configuration says, those that can be reached from here first, IPv6
/// before IPv4. Nothing is remembered from one call to the next.
///
/// # Errors
/// There is no such name, or nobody has answered in the time that resolv.conf(5) gives.
pub async fn addresses(name: &str) -> io::Result<Vec<IpAddr>> {
    lookup(name, Path::new(RESOLV_CONF), Path::new(HOSTS)).await
}

async fn lookup(name: &str, resolv_conf: &Path, hosts: &Path) -> io::Result<Vec<IpAddr>> {
    let read = fs::read(resolv_conf).map_err(NetError::from);
    let (config, mut options) = read
        .and_then(system_conf::parse_resolv_conf)
        .unwrap_or_else(|_| {
            // As the C library has it: a host without the file asks itself.
            let own = SocketAddr::from(([127, 0, 0, 1], 53));
            (given(&[own]), ResolverOpts::default())
        });
    options.cache_size = 0;
    options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
    let servers: Vec<IpAddr> = (config.name_servers().iter())
        .map(|server| server.ip)
        .collect();
    let resolver = build((config, options), hosts).map_err(io::Error::other)?;
    let found = resolver.lookup_ip(name).await;
    let found = found.map_err(|error| failure(&error, &servers))?;
    let mut found: Vec<IpAddr> = found.iter().collect();
    found.sort_by_key(|address| (!has_way(*address), address.is_ipv4()));
    found.dedup();
    Ok(found)
}

/// Says why a name has no addresses, and who was asked; what the library says is a page of its insides.
pub(super) fn failure(error: &NetError, servers: &[IpAddr]) -> io::Error {
    let names: Vec<String> = servers.iter().map(IpAddr::to_string).collect();
    let servers = names.join(", ");
    let code = if let NetError::Dns(DnsError::NoRecordsFound(none)) = error {
        Some(none.response_code)
    } else if let NetError::Dns(DnsError::ResponseCode(code)) = error {
        Some(*code)
    } else {
        None
    };
    io::Error::other(if code == Some(ResponseCode::NXDomain) {
        format!("there is no such name (asked {servers})")
    } else if code == Some(ResponseCode::NoError) {
        format!("it has no address (asked {servers})")
    } else if let Some(code) = code {
        format!("{servers} answered: {code}")
    } else if matches!(error, NetError::Timeout | NetError::NoConnections) {
        format!("no answer from {servers}")
    } else if let NetError::Io(error) = error {
        format!("cannot ask {servers}: {error}")
    } else {
        format!("{error} (asked {servers})")
    })
}

/// Whether the kernel knows a way to `address`; nothing is sent. RFC 6724, section 5, rule 1.
fn has_way(address: IpAddr) -> bool {
    let any: SocketAddr = if address.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    UdpSocket::bind(any)
        .and_then(|socket| socket.connect((address, PROBED_PORT)))
        .is_ok()
}

fn given(upstreams: &[SocketAddr]) -> ResolverConfig {
    let servers = upstreams
        .iter()
        .map(|upstream| {
            let on_port = |mut connection: ConnectionConfig| {
                connection.port = upstream.port();
                connection
            };
            let connections = vec![
                on_port(ConnectionConfig::udp()),
                on_port(ConnectionConfig::tcp()),
            ];
            NameServerConfig::new(upstream.ip(), true, connections)
        })
        .collect();
    ResolverConfig::from_parts(None, Vec::new(), servers)
}

/// Where the names that the host itself knows stand (hosts(5)).
const HOSTS: &str = "/etc/hosts";
/// Any would do: connecting a UDP socket asks the kernel for a way, and sends nothing.
const PROBED_PORT: u16 = 9;
/// How often the files are looked at, at most: people do not wait longer after a change, and a query costs nothing.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use hickory_resolver::net::NoRecords;
    use hickory_resolver::proto::op::Query;
    use hickory_resolver::proto::rr::RecordType;

    use super::*;

    struct Host {
        folder: tempfile::TempDir,
        now: Instant,
    }

    impl Host {
        fn new(resolv_conf: &str) -> Self {
            let host = Self {
                folder: tempfile::tempdir().expect("a folder"),
                now: Instant::now(),
            };
            host.write("resolv.conf", resolv_conf);
            host
        }

        fn at(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        /// As resolvconf and its like do: the file is there whole or as it was before.
        fn write(&self, name: &str, text: &str) {
            fs::write(self.at("new"), text).expect("written");
            fs::rename(self.at("new"), self.at(name)).expect("renamed");
        }

        fn upstreams(&self) -> Upstreams {
            let source = Source::Host(self.at("resolv.conf"));
            Upstreams::of(self.now, source, self.at("hosts"), 16).expect("upstreams")
        }
    }

    fn attempts(upstreams: &Upstreams, now: Instant) -> usize {
        upstreams.resolver(now).options().attempts
    }

    async fn finds(upstreams: &Upstreams, now: Instant, name: &str) -> bool {
        upstreams
            .resolver(now)
            .lookup(name, RecordType::A)
            .await
            .is_ok()
    }

    #[test]
    fn changed_configuration_is_used_after_a_second() {
        let host = Host::new("nameserver 192.0.2.1\noptions attempts:3\n");
        let upstreams = host.upstreams();
        assert_eq!(attempts(&upstreams, host.now), 3);
        host.write("resolv.conf", "nameserver 192.0.2.2\noptions attempts:4\n");
        let soon = host.now + LOOK_EVERY - Duration::from_millis(1);
        assert_eq!(attempts(&upstreams, soon), 3);
        assert_eq!(attempts(&upstreams, host.now + LOOK_EVERY), 4);
    }

    #[test]
    fn configuration_that_is_of_no_use_leaves_the_former_one() {
        let host = Host::new("nameserver 192.0.2.1\noptions attempts:3\n");
        let upstreams = host.upstreams();
        host.write("resolv.conf", "");
        assert_eq!(attempts(&upstreams, host.now + LOOK_EVERY), 3);
        fs::remove_file(host.at("resolv.conf")).expect("removed");
        assert_eq!(attempts(&upstreams, host.now + 2 * LOOK_EVERY), 3);
        host.write("resolv.conf", "nameserver 192.0.2.2\noptions attempts:4\n");
        assert_eq!(attempts(&upstreams, host.now + 3 * LOOK_EVERY), 4);
    }

    #[test]
    fn host_that_had_no_configuration_at_the_start_gets_one() {
        let host = Host::new("");
        let upstreams = host.upstreams();
        host.write("resolv.conf", "nameserver 192.0.2.2\noptions attempts:4\n");
        assert_eq!(attempts(&upstreams, host.now + LOOK_EVERY), 4);
    }

    #[tokio::test]
    async fn names_of_the_hosts_file_come_and_go_with_it() {
        let host = Host::new("");
        let upstreams = host.upstreams();
        assert!(!finds(&upstreams, host.now, "printer.lan.").await);
        host.write("hosts", "192.0.2.99 printer.lan\n");
        assert!(finds(&upstreams, host.now + LOOK_EVERY, "printer.lan.").await);
        fs::remove_file(host.at("hosts")).expect("removed");
        let later = host.now + 2 * LOOK_EVERY;
        assert!(!finds(&upstreams, later, "printer.lan.").await);
    }

    #[test]
    fn failure_is_told_in_one_line_with_whom_was_asked() {
        let servers = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let none = |code| {
            let query = Query::query("vpn.example.".parse().unwrap(), RecordType::A);
            NetError::from(NoRecords::new(query, code))
        };
        for (error, told) in [
            (none(ResponseCode::NXDomain), "there is no such name (asked"),
            (none(ResponseCode::NoError), "it has no address (asked"),
            (none(ResponseCode::ServFail), "answered: Server Failure"),
            (NetError::Timeout, "no answer from"),
            (NetError::NoConnections, "no answer from"),
        ] {
            let text = failure(&error, &servers).to_string();
            assert!(text.contains(told), "{text}");
            assert!(text.contains("192.0.2.1, 2001:db8::1"), "{text}");
            assert!(text.len() < 80, "{text}");
        }
    }

    #[tokio::test]
    async fn own_names_come_from_the_hosts_file_and_what_can_be_reached_comes_first() {
        let host = Host::new("nameserver 192.0.2.1\noptions attempts:1 timeout:1\n");
        host.write("hosts", "127.0.0.9 both.lan\n2001:db8::9 both.lan\n");
        let found = lookup("both.lan", &host.at("resolv.conf"), &host.at("hosts")).await;
        let found = found.expect("a name of the hosts file");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(has_way(found[0]), "{found:?}");
        let local = lookup("localhost", &host.at("none"), &host.at("none")).await;
        let local = local.expect("every host knows itself");
        assert!(local.iter().all(IpAddr::is_loopback), "{local:?}");
    }
}
