//! A SOCKS5 client (RFC 1928, RFC 1929), written from the RFCs and not from the program under test.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

/// Where a proxy is asked to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An address.
    Address(SocketAddr),
    /// A name, to be resolved by the proxy.
    Name(String, u16),
}

/// A UDP association: the control connection, which keeps it alive, and the socket.
#[derive(Debug)]
pub struct Association {
    control: TcpStream,
    socket: UdpSocket,
    relay: SocketAddr,
}

/// Why a proxy did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocksError {
    /// The connection to the proxy failed.
    #[error("connection to the proxy: {0}")]
    Io(#[from] io::Error),
    /// The proxy refused, with a code of RFC 1928 section 6.
    #[error("the proxy answered with code {0}")]
    Refused(u8),
    /// The proxy wants no method that was offered.
    #[error("the proxy accepts none of the methods offered")]
    NoMethod,
    /// User and password are wrong.
    #[error("the proxy does not accept user and password")]
    WrongPassword,
    /// The proxy does not speak the protocol.
    #[error("the proxy answered {0:02x?}")]
    Nonsense(Vec<u8>),
}

/// Connects to `target` through the proxy at `proxy`.
///
/// # Errors
///
/// [`SocksError`], with the proxy's own reply code where it gave one.
pub async fn connect(
    proxy: SocketAddr,
    target: impl Into<Target>,
) -> Result<TcpStream, SocksError> {
    connect_as(proxy, None, target).await
}

/// As [`connect`], with user and password.
///
/// # Errors
///
/// [`SocksError`].
pub async fn connect_as(
    proxy: SocketAddr,
    user: Option<(&str, &str)>,
    target: impl Into<Target>,
) -> Result<TcpStream, SocksError> {
    let mut stream = open(proxy, user).await?;
    request(&mut stream, CONNECT, &target.into()).await?;
    Ok(stream)
}

/// Asks for a UDP association.
///
/// # Errors
///
/// [`SocksError`].
pub async fn associate(proxy: SocketAddr) -> Result<Association, SocksError> {
    let mut control = open(proxy, None).await?;
    let any: SocketAddr = match proxy {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let relay = request(&mut control, ASSOCIATE, &any.into()).await?;
    // an unspecified address means: the one the control connection leads to
    let relay = if relay.ip().is_unspecified() {
        SocketAddr::new(proxy.ip(), relay.port())
    } else {
        relay
    };
    let local: IpAddr = if relay.is_ipv4() {
        Ipv4Addr::LOCALHOST.into()
    } else {
        Ipv6Addr::LOCALHOST.into()
    };
    let socket = UdpSocket::bind((local, 0)).await?;
    socket.connect(relay).await?;
    Ok(Association {
        control,
        socket,
        relay,
    })
}

impl Association {
    /// Sends a datagram to `target`.
    ///
    /// # Errors
    ///
    /// What the socket says.
    pub async fn send_to(&self, payload: &[u8], target: impl Into<Target>) -> io::Result<()> {
        let mut datagram = vec![0, 0, 0];
        encode(&target.into(), &mut datagram);
        datagram.extend_from_slice(payload);
        self.socket.send(&datagram).await.map(drop)
    }

    /// Sends bytes to the relay as they are, header and all.
    ///
    /// # Errors
    ///
    /// What the socket says.
    pub async fn send_raw(&self, datagram: &[u8]) -> io::Result<()> {
        self.socket.send(datagram).await.map(drop)
    }

    /// Receives a datagram and whom it came from.
    ///
    /// # Errors
    ///
    /// What the socket says, and [`io::ErrorKind::InvalidData`] if the header is wrong.
    pub async fn recv_from(&self) -> io::Result<(Vec<u8>, SocketAddr)> {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let length = self.socket.recv(&mut buffer).await?;
        buffer.truncate(length);
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "not a SOCKS5 datagram");
        let (address, skip) = match buffer.get(..4) {
            Some([0, 0, 0, 1]) => {
                let bytes: [u8; 4] = buffer
                    .get(4..8)
                    .and_then(|b| b.try_into().ok())
                    .ok_or_else(wrong)?;
                (IpAddr::from(bytes), 8)
            }
            Some([0, 0, 0, 4]) => {
                let bytes: [u8; 16] = buffer
                    .get(4..20)
                    .and_then(|b| b.try_into().ok())
                    .ok_or_else(wrong)?;
                (IpAddr::from(bytes), 20)
            }
            _ => return Err(wrong()),
        };
        let port = buffer
            .get(skip..skip + 2)
            .and_then(|b| b.try_into().ok())
            .ok_or_else(wrong)?;
        Ok((
            buffer.split_off(skip + 2),
            SocketAddr::new(address, u16::from_be_bytes(port)),
        ))
    }

    /// Where the proxy takes datagrams.
    pub fn relay(&self) -> SocketAddr {
        self.relay
    }

    /// The connection that keeps the association alive.
    pub fn control(&mut self) -> &mut TcpStream {
        &mut self.control
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl From<(&str, u16)> for Target {
    fn from((name, port): (&str, u16)) -> Self {
        Self::Name(name.to_owned(), port)
    }
}

async fn open(proxy: SocketAddr, user: Option<(&str, &str)>) -> Result<TcpStream, SocksError> {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.set_nodelay(true)?;
    let method = if user.is_some() { 2 } else { 0 };
    stream.write_all(&[5, 1, method]).await?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await?;
    match (answer, user) {
        ([5, 0], None) => {}
        ([5, 2], Some((name, password))) => {
            let mut request = vec![1, short(name.len())];
            request.extend_from_slice(name.as_bytes());
            request.push(short(password.len()));
            request.extend_from_slice(password.as_bytes());
            stream.write_all(&request).await?;
            stream.read_exact(&mut answer).await?;
            if answer != [1, 0] {
                return Err(SocksError::WrongPassword);
            }
        }
        ([5, 0xFF], _) => return Err(SocksError::NoMethod),
        _ => return Err(SocksError::Nonsense(answer.to_vec())),
    }
    Ok(stream)
}

async fn request(
    stream: &mut TcpStream,
    command: u8,
    target: &Target,
) -> Result<SocketAddr, SocksError> {
    let mut request = vec![5, command, 0];
    encode(target, &mut request);
    stream.write_all(&request).await?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let address: IpAddr = match head {
        [5, _, 0, 1] => {
            let mut bytes = [0; 4];
            stream.read_exact(&mut bytes).await?;
            bytes.into()
        }
        [5, _, 0, 4] => {
            let mut bytes = [0; 16];
            stream.read_exact(&mut bytes).await?;
            bytes.into()
        }
        _ => return Err(SocksError::Nonsense(head.to_vec())),
    };
    let port = stream.read_u16().await?;
    if head[1] == 0 {
        Ok(SocketAddr::new(address, port))
    } else {
        Err(SocksError::Refused(head[1]))
    }
}

fn encode(target: &Target, out: &mut Vec<u8>) {
    let port = match target {
        Target::Address(SocketAddr::V4(address)) => {
            out.push(1);
            out.extend_from_slice(&address.ip().octets());
            address.port()
        }
        Target::Address(SocketAddr::V6(address)) => {
            out.push(4);
            out.extend_from_slice(&address.ip().octets());
            address.port()
        }
        Target::Name(name, port) => {
            out.extend_from_slice(&[3, short(name.len())]);
            out.extend_from_slice(name.as_bytes());
            *port
        }
    };
    out.extend_from_slice(&port.to_be_bytes());
}

fn short(length: usize) -> u8 {
    u8::try_from(length).expect("a test uses names of at most 255 bytes")
}

const CONNECT: u8 = 1;
const ASSOCIATE: u8 = 3;

/// Reply code: not allowed by the rules.
pub const NOT_ALLOWED: u8 = 2;
/// Reply code: the network is unreachable.
pub const NETWORK_UNREACHABLE: u8 = 3;
/// Reply code: the host is unreachable.
pub const HOST_UNREACHABLE: u8 = 4;
/// Reply code: the connection was refused.
pub const CONNECTION_REFUSED: u8 = 5;
/// Reply code: the time to live has expired, which is what proxies say for a time-out.
pub const TTL_EXPIRED: u8 = 6;
