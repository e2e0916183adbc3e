//! The client's side of SOCKS5: CONNECT, with user and password (RFC 1928, RFC 1929).
//!
//! ```text
//!  methods ──▶ Method ──▶ Login ──▶ Reply ──▶ Bound ──▶ Done
//!                 └─────────────────▲
//! ```
//!
//! [`Negotiation`] does no I/O: it says what to send and how many bytes it wants next, so that none is read that belongs
//! to the connection behind it.

use std::net::IpAddr;

use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use zeroize::Zeroizing;

use super::ViaError;
use crate::config::{Host, ProxyAuth};
use crate::io::lane::LaneStream;

/// Asks for a connection to `host` as `login`.
pub(super) async fn ask(
    mut stream: LaneStream,
    login: Option<&ProxyAuth>,
    host: &Host,
    port: u16,
) -> Result<LaneStream, ViaError> {
    let mut negotiation = Negotiation::new(login, host, port);
    let mut answer = [0; MAX_WANTED];
    loop {
        if let Some(bytes) = negotiation.poll_transmit() {
            stream.write_all(&bytes).await?;
            stream.flush().await?;
        }
        let wanted = negotiation.wants();
        if wanted == 0 {
            return Ok(stream);
        }
        let answer = &mut answer[..wanted];
        stream.read_exact(answer).await.map_err(|error| {
            if error.kind() == std::io::ErrorKind::UnexpectedEof {
                ViaError::Closed
            } else {
                ViaError::Io(error)
            }
        })?;
        negotiation.handle(answer)?;
    }
}

/// What is said to a proxy until the connection is the server's.
pub struct Negotiation {
    state: State,
    /// What is to be sent now.
    out: Option<Zeroizing<Vec<u8>>>,
    login: Option<ProxyAuth>,
    request: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The proxy is to choose how we say who we are.
    Method,
    /// It is to accept who we are.
    Login,
    /// It is to answer the request.
    Reply,
    /// So many bytes of the address are left that it has bound.
    Bound(usize),
    /// The connection is the server's.
    Done,
}

impl Negotiation {
    /// Begins to ask for a connection to `host`.
    pub fn new(login: Option<&ProxyAuth>, host: &Host, port: u16) -> Self {
        let methods: &[u8] = match login {
            Some(_) => &[VERSION, 2, NO_LOGIN, LOGIN],
            None => &[VERSION, 1, NO_LOGIN],
        };
        let mut request = vec![VERSION, CONNECT, 0];
        match host {
            Host::Ip(IpAddr::V4(ip)) => {
                request.push(IPV4);
                request.extend(ip.octets());
            }
            Host::Ip(IpAddr::V6(ip)) => {
                request.push(IPV6);
                request.extend(ip.octets());
            }
            Host::Name(name) => {
                // A name has 253 bytes at most.
                request.extend([NAME, name.len() as u8]);
                request.extend(name.as_bytes());
            }
        }
        request.extend(port.to_be_bytes());
        Self {
            state: State::Method,
            out: Some(Zeroizing::new(methods.to_vec())),
            login: login.cloned(),
            request,
        }
    }

    /// Hands out what is to be sent.
    pub fn poll_transmit(&mut self) -> Option<Zeroizing<Vec<u8>>> {
        self.out.take()
    }

    /// Returns how many bytes are wanted next; none when the connection is the server's.
    pub fn wants(&self) -> usize {
        match self.state {
            State::Method | State::Login => 2,
            // Up to the first byte of the address, which tells how long a name is.
            State::Reply => 5,
            State::Bound(left) => left,
            State::Done => 0,
        }
    }

    /// Takes exactly the bytes that were [wanted](Negotiation::wants).
    ///
    /// # Errors
    ///
    /// The proxy refuses, or is none.
    pub fn handle(&mut self, answer: &[u8]) -> Result<(), SocksError> {
        self.state = match (self.state, answer) {
            (State::Method, [VERSION, NO_LOGIN]) => self.request(),
            (State::Method, [VERSION, LOGIN]) => self.log_in()?,
            (State::Method, [VERSION, NO_METHOD]) => return Err(self.not_let_in()),
            (State::Login, [_, 0]) => self.request(),
            (State::Login, [_, _]) => return Err(SocksError::WrongLogin),
            (State::Reply, [VERSION, 0, _, kind, first]) => State::Bound(match *kind {
                IPV4 => 3 + 2,
                IPV6 => 15 + 2,
                NAME => usize::from(*first) + 2,
                _ => return Err(SocksError::NotSocks),
            }),
            (State::Reply, [VERSION, code, ..]) => return Err(SocksError::Refused(*code)),
            (State::Bound(_), _) => State::Done,
            (State::Method | State::Reply | State::Login | State::Done, _) => {
                return Err(SocksError::NotSocks);
            }
        };
        Ok(())
    }

    fn request(&mut self) -> State {
        self.out = Some(Zeroizing::new(std::mem::take(&mut self.request)));
        State::Reply
    }

    fn log_in(&mut self) -> Result<State, SocksError> {
        let Some(login) = self.login.take() else {
            return Err(SocksError::WantsLogin);
        };
        let mut out = Zeroizing::new(Vec::with_capacity(3 + 2 * 255));
        out.push(LOGIN_VERSION);
        for text in [login.user.as_str(), login.password.as_str()] {
            // 255 bytes at most, as the configuration was checked.
            out.push(text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        }
        self.out = Some(out);
        Ok(State::Login)
    }

    fn not_let_in(&self) -> SocksError {
        if self.login.is_some() {
            SocksError::NoMethod
        } else {
            SocksError::WantsLogin
        }
    }
}

/// What a SOCKS5 proxy refuses, and why.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SocksError {
    /// It is none.
    #[error("what answers there is no SOCKS5 proxy")]
    NotSocks,
    /// It lets nobody through without a password.
    #[error(
        "it wants a user and a password: write them in `via`, as in socks5://USER:PASSWORD@HOST:PORT"
    )]
    WantsLogin,
    /// The user or the password is wrong.
    #[error("it does not accept the user and the password that `via` gives it")]
    WrongLogin,
    /// It takes neither passwords nor strangers.
    #[error("it takes passwords only in ways that Adit does not know")]
    NoMethod,
    /// It does not connect; the code is that of RFC 1928, section 6.
    #[error("{}", refusal(*.0))]
    Refused(u8),
}

fn refusal(code: u8) -> String {
    let text = match code {
        1 => "it has failed",
        2 => "it does not allow connections to that server and port",
        3 => "it does not reach the server: no network leads there",
        4 => "it does not reach the server: the host does not answer, or there is no such name",
        5 => "it does not reach the server: the connection is refused",
        6 => "it does not reach the server: that took too long",
        7 => "it does not make connections",
        8 => "it does not know such addresses",
        other => return format!("it refuses, with the code {other}"),
    };
    text.to_owned()
}

/// The most bytes that are wanted at once: a name of 255 bytes, and a port.
const MAX_WANTED: usize = 257;

const VERSION: u8 = 5;
const LOGIN_VERSION: u8 = 1;
const NO_LOGIN: u8 = 0;
const LOGIN: u8 = 2;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;
