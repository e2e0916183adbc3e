//! The way that measures take to the origin: through a SOCKS5 proxy, whoever made it, or straight.
//!
//! RFC 1928 and RFC 1929: no fragments, and no more of it than a client needs.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::config::Host;
use crate::io::resolver;

/// How the origin is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By connections of our own.
    Straight,
    /// Through a proxy.
    Socks(Socks),
}

/// A SOCKS5 proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Socks {
    address: Spot,
    login: Option<(String, String)>,
}

/// A host, by name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
}

/// Why the origin is not reached.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WayError {
    /// Nobody is there.
    #[error("cannot connect to {to}: {error}")]
    Connect {
        /// Where.
        to: Spot,
        /// What the system says.
        error: io::Error,
    },
    /// The connection has failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// What answers is no SOCKS5 proxy.
    #[error("what answers at {proxy} is no SOCKS5 proxy")]
    NotSocks {
        /// Where.
        proxy: Spot,
    },
    /// It wants another user and password, or one at all.
    #[error("the proxy wants a user and a password: write socks5://USER:PASSWORD@HOST:PORT")]
    Login,
    /// It does not do what it is asked for.
    #[error("the proxy refuses {what}: {why}")]
    Refused {
        /// What it was asked for.
        what: &'static str,
        /// What it says.
        why: &'static str,
    },
    /// Nothing has come.
    #[error("no answer in {} s", PATIENCE.as_secs())]
    Silent,
}

impl Way {
    /// Connects to `origin`.
    ///
    /// # Errors
    /// The proxy or the origin is not there, or does not want to.
    pub async fn connect(&self, origin: &Spot) -> Result<TcpStream, WayError> {
        let connecting = async {
            match self {
                Self::Straight => dial(origin).await,
                Self::Socks(socks) => Ok(socks.ask(CONNECT, origin).await?.0),
            }
        };
        let stream = timeout(PATIENCE, connecting)
            .await
            .map_err(|_| WayError::Silent)??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Opens a way for datagrams to `origin`.
    ///
    /// # Errors
    /// The proxy is not there, or carries none.
    pub async fn datagrams(&self, origin: &Spot) -> Result<Datagrams, WayError> {
        let opening = async {
            let (relay, association) = match self {
                Self::Straight => (resolve(origin).await?, None),
                Self::Socks(socks) => {
                    let nowhere = Spot::from(UNSPECIFIED);
                    let (stream, relay) = socks.ask(ASSOCIATE, &nowhere).await?;
                    // A proxy that does not say means its own address.
                    let ip = match relay.ip() {
                        ip if ip.is_unspecified() => stream.peer_addr()?.ip(),
                        ip => ip,
                    };
                    (SocketAddr::new(ip, relay.port()), Some(stream))
                }
            };
            let any: IpAddr = match relay {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0)).await?;
            socket.connect(relay).await?;
            let mut header = Vec::new();
            if association.is_some() {
                // Reserved, and not a fragment.
                header.extend([0, 0, 0]);
                origin.write(&mut header);
            }
            Ok(Datagrams {
                socket,
                header,
                _association: association,
            })
        };
        timeout(PATIENCE, opening)
            .await
            .map_err(|_| WayError::Silent)?
    }
}

/// A way for datagrams.
#[derive(Debug)]
pub struct Datagrams {
    socket: UdpSocket,
    header: Vec<u8>,
    /// The way lasts as long as this connection (RFC 1928, section 7).
    _association: Option<TcpStream>,
}

impl Datagrams {
    /// Sends the datagram that `write` appends to what the proxy wants in front.
    ///
    /// # Errors
    /// What the network says.
    pub async fn send(
        &self,
        buffer: &mut Vec<u8>,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> io::Result<()> {
        buffer.clear();
        buffer.extend_from_slice(&self.header);
        write(buffer);
        self.socket.send(buffer).await.map(drop)
    }

    /// Waits for a datagram and returns its payload.
    ///
    /// # Errors
    /// What the network says.
    pub async fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        loop {
            let len = self.socket.recv(buffer).await?;
            let skipped = if self.header.is_empty() {
                Some(0)
            } else {
                header_len(&buffer[..len])
            };
            if let Some(skipped) = skipped {
                return Ok(&buffer[skipped..len]);
            }
        }
    }
}

impl Socks {
    /// Asks for a command, and returns the connection and the address in the answer.
    async fn ask(&self, command: u8, about: &Spot) -> Result<(TcpStream, SocketAddr), WayError> {
        let mut stream = dial(&self.address).await?;
        stream.set_nodelay(true)?;
        let not_socks = || WayError::NotSocks {
            proxy: self.address.clone(),
        };
        let method = self.login.as_ref().map_or(NO_LOGIN, |_| LOGIN);
        stream.write_all(&[VERSION, 1, method]).await?;
        match read::<2>(&mut stream).await? {
            [VERSION, NO_LOGIN] => {}
            [VERSION, LOGIN] => self.log_in(&mut stream).await?,
            [VERSION, _] => return Err(WayError::Login),
            _ => return Err(not_socks()),
        }
        let mut request = vec![VERSION, command, 0];
        about.write(&mut request);
        stream.write_all(&request).await?;
        let [version, reply, _, kind] = read(&mut stream).await?;
        if version != VERSION {
            return Err(not_socks());
        }
        if reply != 0 {
            let what = if command == CONNECT {
                "to connect"
            } else {
                "UDP"
            };
            let why = refusal(reply);
            return Err(WayError::Refused { what, why });
        }
        let bound = match kind {
            IPV4 => IpAddr::from(read::<4>(&mut stream).await?),
            IPV6 => IpAddr::from(read::<16>(&mut stream).await?),
            NAME => {
                let [len] = read(&mut stream).await?;
                stream.read_exact(&mut vec![0; usize::from(len)]).await?;
                Ipv4Addr::UNSPECIFIED.into()
            }
            _ => return Err(not_socks()),
        };
        let port = u16::from_be_bytes(read(&mut stream).await?);
        Ok((stream, SocketAddr::new(bound, port)))
    }

    async fn log_in(&self, stream: &mut TcpStream) -> Result<(), WayError> {
        let (user, password) = self.login.as_ref().ok_or(WayError::Login)?;
        let mut request = vec![LOGIN_VERSION];
        for text in [user, password] {
            // Bounded where it was parsed.
            request.push(text.len() as u8);
            request.extend_from_slice(text.as_bytes());
        }
        stream.write_all(&request).await?;
        match read::<2>(stream).await? {
            [_, 0] => Ok(()),
            _ => Err(WayError::Login),
        }
    }
}

impl fmt::Debug for Socks {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socks")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Straight => f.write_str("straight"),
            Self::Socks(socks) => write!(f, "socks5://{}", socks.address),
        }
    }
}

impl FromStr for Socks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.split_once("://").map_or(Ok(text), |(scheme, rest)| {
            match scheme {
                // The h says who resolves names: the proxy, always.
                "socks5" | "socks5h" => Ok(rest),
                _ => Err(format!(
                    "`{scheme}` is no scheme that is measured through: write socks5://HOST:PORT"
                )),
            }
        })?;
        let (login, address) = match rest.rsplit_once('@') {
            Some((login, address)) => (Some(login), address),
            None => (None, rest),
        };
        let login = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
            None => None,
            Some((user, password)) if user.len().max(password.len()) <= u8::MAX.into() => {
                Some((user.to_owned(), password.to_owned()))
            }
            Some(_) => return Err("a user and a password have 255 bytes at most".to_owned()),
        };
        let address = address.strip_suffix('/').unwrap_or(address);
        Ok(Self {
            address: address.parse()?,
            login,
        })
    }
}

impl Spot {
    /// Appends it as SOCKS has it.
    fn write(&self, out: &mut Vec<u8>) {
        match &self.host {
            Host::Ip(IpAddr::V4(ip)) => {
                out.push(IPV4);
                out.extend(ip.octets());
            }
            Host::Ip(IpAddr::V6(ip)) => {
                out.push(IPV6);
                out.extend(ip.octets());
            }
            Host::Name(name) => {
                // A DNS name has 253 bytes at most.
                out.extend([NAME, name.len() as u8]);
                out.extend(name.as_bytes());
            }
        }
        out.extend(self.port.to_be_bytes());
    }
}

impl From<SocketAddr> for Spot {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: Host::Ip(address.ip()),
            port: address.port(),
        }
    }
}

impl FromStr for Spot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no HOST:PORT, such as 203.0.113.7:5201 or [2001:db8::7]:5201");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let host = match bare {
            Some(ip) => Host::Ip(IpAddr::V6(ip.parse().map_err(|_| wrong())?)),
            None => host.parse().map_err(|_| wrong())?,
        };
        let port = port.parse().ok().filter(|port| *port != 0);
        Ok(Self {
            host,
            port: port.ok_or_else(wrong)?,
        })
    }
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

async fn resolve(spot: &Spot) -> Result<SocketAddr, WayError> {
    let failed = |error| WayError::Connect {
        to: spot.clone(),
        error,
    };
    match &spot.host {
        Host::Ip(ip) => Ok(SocketAddr::new(*ip, spot.port)),
        Host::Name(name) => resolver::addresses(name)
            .await
            .map_err(failed)?
            .first()
            .map(|ip| SocketAddr::new(*ip, spot.port))
            .ok_or_else(|| failed(io::ErrorKind::NotFound.into())),
    }
}

async fn dial(spot: &Spot) -> Result<TcpStream, WayError> {
    let address = resolve(spot).await?;
    let connected = TcpStream::connect(address).await;
    connected.map_err(|error| WayError::Connect {
        to: spot.clone(),
        error,
    })
}

async fn read<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// The length of what a proxy puts in front of a datagram (RFC 1928, section 7); `None` for what is none, or a fragment.
fn header_len(datagram: &[u8]) -> Option<usize> {
    let [_, _, 0, kind, rest @ ..] = datagram else {
        return None;
    };
    let address = match *kind {
        IPV4 => 4,
        IPV6 => 16,
        NAME => 1 + usize::from(*rest.first()?),
        _ => return None,
    };
    let whole = 4 + address + 2;
    (whole <= datagram.len()).then_some(whole)
}

/// What a proxy says (RFC 1928, section 6).
fn refusal(reply: u8) -> &'static str {
    match reply {
        2 => "its rules do not allow it",
        3 => "the network is not reachable",
        4 => "the host is not reachable",
        5 => "the connection is refused; does the origin run there? (adit bench origin)",
        6 => "it took too long",
        7 => "it does not do that",
        8 => "it does not know such addresses",
        _ => "it has failed",
    }
}

const VERSION: u8 = 5;
const LOGIN_VERSION: u8 = 1;
const NO_LOGIN: u8 = 0;
const LOGIN: u8 = 2;
const CONNECT: u8 = 1;
const ASSOCIATE: u8 = 3;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// A client that does not know yet from where it will send.
const UNSPECIFIED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// How long the way may take to open: a name, a proxy, a tunnel and an origin far away.
const PATIENCE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_read_as_they_are_written() {
        let read = |text: &str| text.parse::<Socks>();
        for text in [
            "127.0.0.1:1080",
            "socks5://127.0.0.1:1080",
            "socks5h://127.0.0.1:1080/",
        ] {
            let socks = read(text).expect("a proxy");
            assert_eq!(socks.address.to_string(), "127.0.0.1:1080");
            assert_eq!(socks.login, None);
        }
        let socks = read("socks5://me:a:b@c@[::1]:9").expect("a proxy");
        assert_eq!(socks.address.to_string(), "[::1]:9");
        assert_eq!(socks.login, Some(("me".to_owned(), "a:b@c".to_owned())));
        assert!(
            !format!("{socks:?}").contains("a:b"),
            "a password is not told"
        );
        for wrong in [
            "http://127.0.0.1:80",
            "127.0.0.1",
            "localhost:0",
            "a:b@",
            "[::1:9",
            "",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(read(&format!("{}@127.0.0.1:1", "x".repeat(256))).is_err());
    }

    #[test]
    fn spots_are_written_as_socks_has_them() {
        let written = |text: &str| {
            let mut out = Vec::new();
            let spot: Spot = text.parse().expect("a spot");
            assert_eq!(spot.to_string(), text);
            spot.write(&mut out);
            out
        };
        assert_eq!(written("10.0.0.1:258"), [1, 10, 0, 0, 1, 1, 2]);
        assert_eq!(written("a.example:1"), *b"\x03\x09a.example\0\x01");
        let six = written("[::1]:1");
        assert_eq!((six[0], six.len()), (IPV6, 1 + 16 + 2));
    }

    #[test]
    fn header_of_a_datagram_is_skipped_whatever_its_address() {
        for text in ["10.0.0.1:258", "a.example:1", "[::1]:1"] {
            let mut datagram = vec![0, 0, 0];
            text.parse::<Spot>().expect("a spot").write(&mut datagram);
            let header = datagram.len();
            assert_eq!(header_len(&datagram), Some(header));
            for len in 0..header {
                assert_eq!(header_len(&datagram[..len]), None, "{len} of {text}");
            }
            datagram[2] = 1;
            assert_eq!(header_len(&datagram), None, "a fragment");
        }
        assert_eq!(header_len(&[0, 0, 0, 9, 1, 1, 1, 1, 1, 1]), None);
    }
}
