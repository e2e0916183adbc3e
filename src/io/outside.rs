//! How this program's own sockets leave a host that it leads through its tunnel.
//!
//! Where the whole host goes through the tunnel ([`crate::client::host`]), what carries the tunnel must not, nor what rules
//! send past it. Such sockets bear a mark that the host's routing rules know; and the names of servers are asked by such
//! sockets too, of the name servers that the host had before, since those it has now are behind the tunnel.
//!
//! In every other program an [`Outside`] does nothing: sockets are as they are, and names are asked of whom the host asks.

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioHandle, TokioTime};
use hickory_resolver::{Resolver, system_conf};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::resolver;

/// How sockets of this program leave the host; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Outside {
    marked: Option<Arc<Marked>>,
}

/// What a host that goes through the tunnel needs.
#[derive(Debug)]
struct Marked {
    mark: u32,
    servers: Mutex<NameServers>,
    /// What names of servers were last resolved to.
    known: Mutex<HashMap<String, Vec<IpAddr>>>,
}

/// Where the name servers are named that the host has outside the tunnel.
#[derive(Clone, Debug)]
struct NameServers {
    file: PathBuf,
    /// Those that may stand there and are behind the tunnel.
    inner: Vec<IpAddr>,
}

impl Outside {
    /// Marks sockets with `mark`, and asks the host's name servers by such sockets.
    pub fn marked(mark: u32) -> Self {
        let servers = NameServers {
            file: host_file(Path::new(RESOLV_CONF)),
            inner: Vec::new(),
        };
        Self {
            marked: Some(Arc::new(Marked {
                mark,
                servers: Mutex::new(servers),
                known: Mutex::default(),
            })),
        }
    }

    /// Whether it does anything.
    pub fn is_marked(&self) -> bool {
        self.marked.is_some()
    }

    /// Has the host's own name servers read from another file from now on, but for `inner`, which the tunnel leads to.
    pub fn set_name_servers(&self, file: PathBuf, inner: Vec<IpAddr>) {
        if let Some(marked) = &self.marked {
            let mut servers = marked
                .servers
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *servers = NameServers { file, inner };
        }
    }

    /// Prepares a socket before it is connected or sends.
    ///
    /// # Errors
    ///
    /// The system refuses; CAP_NET_ADMIN is needed.
    pub fn prepare(&self, socket: impl AsFd) -> io::Result<()> {
        match &self.marked {
            Some(marked) => SockRef::from(&socket.as_fd()).set_mark(marked.mark),
            None => Ok(()),
        }
    }

    /// Connects to `remote`.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub async fn connect(&self, remote: SocketAddr) -> io::Result<TcpStream> {
        let socket = match remote {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        self.prepare(&socket)?;
        socket.connect(remote).await
    }

    /// Resolves a name, in the order in which its addresses are to be tried.
    ///
    /// # Errors
    ///
    /// Nobody knows it. What was known of it before does as long as nobody answers.
    pub async fn resolve(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let Some(marked) = &self.marked else {
            let found = resolver::addresses(name).await?;
            return Ok(found.into_iter().map(|ip| (ip, port).into()).collect());
        };
        let found = match marked.ask(self, name).await {
            Ok(found) => found,
            Err(error) => {
                let known = marked.known.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(known) = known.get(name) else {
                    return Err(error);
                };
                tracing::debug!(%error, "a name is taken for what it was");
                known.clone()
            }
        };
        Ok(found.into_iter().map(|ip| (ip, port).into()).collect())
    }

    /// The name servers that the host itself has, with their port; `None` where they are those of `/etc/resolv.conf`.
    pub fn name_servers(&self) -> Option<Vec<IpAddr>> {
        let marked = self.marked.as_ref()?;
        Some(marked.read().unwrap_or_default())
    }
}

impl Marked {
    async fn ask(&self, outside: &Outside, name: &str) -> io::Result<Vec<IpAddr>> {
        let servers = self.read()?;
        if servers.is_empty() {
            return Err(io::Error::other(
                "this host has no name server outside the tunnel",
            ));
        }
        let asked = servers.iter().copied().map(NameServerConfig::udp_and_tcp);
        let config = ResolverConfig::from_parts(None, Vec::new(), asked.collect());
        let mut builder =
            Resolver::builder_with_config(config, OutsideRuntime::new(outside.clone()));
        let options = builder.options_mut();
        options.timeout = ASK_TIMEOUT;
        options.attempts = ASK_ATTEMPTS;
        let resolver = builder.build().map_err(io::Error::other)?;
        // A final dot: nothing is searched for.
        let answer = resolver.lookup_ip(format!("{}.", name.trim_end_matches('.')));
        let answer = answer.await;
        let found = answer.map_err(|error| resolver::failure(&error, &servers))?;
        let found: Vec<IpAddr> = found.iter().collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < MAX_KNOWN || known.contains_key(name) {
            known.insert(name.to_owned(), found.clone());
        }
        Ok(found)
    }

    fn read(&self) -> io::Result<Vec<IpAddr>> {
        let servers = self
            .servers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let (config, _) =
            system_conf::parse_resolv_conf(fs::read(&servers.file)?).map_err(io::Error::other)?;
        let found = config.name_servers().iter().map(|server| server.ip);
        Ok(found.filter(|ip| !servers.inner.contains(ip)).collect())
    }
}

/// The file that names the servers which the host asks in the end: where systemd-resolved stands between, its own.
pub fn host_file(resolv_conf: &Path) -> PathBuf {
    let is_stub = fs::read_to_string(resolv_conf).is_ok_and(|text| {
        let mut servers = text
            .lines()
            .filter_map(|line| line.strip_prefix("nameserver"));
        servers.any(|server| server.trim() == RESOLVED_STUB)
    });
    if is_stub && Path::new(RESOLVED_CONF).exists() {
        PathBuf::from(RESOLVED_CONF)
    } else {
        resolv_conf.to_owned()
    }
}

/// Lends marked sockets to the DNS library.
#[derive(Clone)]
pub struct OutsideRuntime {
    outside: Outside,
    handle: TokioHandle,
}

impl OutsideRuntime {
    /// Opens sockets as `outside` says.
    pub fn new(outside: Outside) -> Self {
        Self {
            outside,
            handle: TokioHandle::default(),
        }
    }
}

impl RuntimeProvider for OutsideRuntime {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> TokioHandle {
        self.handle.clone()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        _bind: Option<SocketAddr>,
        limit: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        let outside = self.outside.clone();
        let connect = async move { outside.connect(server).await };
        Box::pin(within(limit.unwrap_or(ASK_TIMEOUT), connect))
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        _server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Udp>>>> {
        let outside = self.outside.clone();
        Box::pin(async move {
            let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
            socket.set_nonblocking(true)?;
            outside.prepare(&socket)?;
            socket.bind(&local.into())?;
            UdpSocket::from_std(socket.into())
        })
    }
}

/// Makes a connection for the DNS library, which wants it in a wrapper and within a time.
///
/// # Errors
///
/// `TimedOut`, or why there is none.
pub async fn within<S>(
    limit: Duration,
    connect: impl Future<Output = io::Result<S>>,
) -> io::Result<AsyncIoTokioAsStd<S>>
where
    S: AsyncRead + AsyncWrite,
{
    match timeout(limit, connect).await {
        Ok(connected) => connected.map(AsyncIoTokioAsStd),
        Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Where the host's resolver configuration stands (resolv.conf(5)).
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved answers (systemd-resolved.service(8)).
const RESOLVED_STUB: &str = "127.0.0.53";
/// Where it names those that it asks itself.
pub const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";
/// How long one name server may take, as resolv.conf(5) has it for a busy one.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is asked.
const ASK_ATTEMPTS: usize = 2;
/// Names that are remembered: those of servers and proxies of a configuration.
const MAX_KNOWN: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn name_is_what_it_was_when_nobody_answers() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        // Nobody is there, and to be asked is refused at once.
        fs::write(&file, "nameserver 10.9.0.1\n").unwrap();
        let outside = Outside::marked(1);
        outside.set_name_servers(file, vec!["10.9.0.1".parse().unwrap()]);
        let error = outside.resolve("vpn.example", 7443).await.unwrap_err();
        assert!(error.to_string().contains("no name server"), "{error}");
        let marked = outside.marked.as_ref().unwrap();
        let was = vec!["192.0.2.1".parse().unwrap()];
        marked
            .known
            .lock()
            .unwrap()
            .insert("vpn.example".into(), was);
        assert_eq!(
            outside.resolve("vpn.example", 7443).await.unwrap(),
            ["192.0.2.1:7443".parse().unwrap()]
        );
    }

    #[test]
    fn servers_of_the_tunnel_are_none_of_the_host() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        fs::write(&file, "nameserver 10.86.0.1\nnameserver 192.0.2.53\n").unwrap();
        let outside = Outside::marked(1);
        outside.set_name_servers(file, vec!["10.86.0.1".parse().unwrap()]);
        assert_eq!(
            outside.name_servers(),
            Some(vec!["192.0.2.53".parse().unwrap()])
        );
        assert_eq!(Outside::default().name_servers(), None);
    }
}
