//! The server's side of SOCKS5, SOCKS4 and SOCKS4a, without IO.
//!
//! SOCKS5 is RFC 1928 with user and password of RFC 1929:
//!
//! ```text
//!  greeting   05 | n | methods…            ▶  ◀  05 | method      (FF: none suits)
//!  password   01 | n | user | n | password ▶  ◀  01 | 00 or 01
//!  request    05 | command | 00 | type | address | port ▶
//!                                             ◀  05 | reply | 00 | type | address | port
//! ```
//!
//! SOCKS4 is `04 | command | port | IPv4 | user | 00`, and in 4a an address 0.0.0.x with
//! x not 0 is followed by `name | 00`; its answer is `00 | 5A or 5B | port | IPv4`.
//!
//! Bytes that a client sends ahead of the answers are kept: [`Negotiation::into_early`]
//! gives back those that belong to the flow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

use super::auth::Credentials;
use crate::client::resolve::{Host, HostError, OriginError, ResolveError};
use crate::client::tunnel::ConnectError;

/// One client's negotiation, from the first byte to the request.
///
/// Feed it with [`Negotiation::handle_bytes`], send what [`Negotiation::poll_transmit`]
/// gives (also after an error), until there is a request.
#[derive(Debug)]
pub struct Negotiation {
    state: State,
    credentials: Option<Credentials>,
    input: Vec<u8>,
    output: Vec<u8>,
}

#[derive(Debug)]
enum State {
    Greeting,
    Password,
    Request,
    Done,
    Failed,
}

impl Negotiation {
    /// Starts a negotiation; with `credentials`, clients must present them.
    pub fn new(credentials: Option<Credentials>) -> Self {
        Self {
            state: State::Greeting,
            credentials,
            input: Vec::new(),
            output: Vec::new(),
        }
    }

    /// Takes bytes from the client and returns its request once it is whole.
    ///
    /// Between calls less than one message is kept: at most 519 bytes.
    ///
    /// # Errors
    ///
    /// What is wrong with the client's bytes; the negotiation is over then, and what
    /// [`Negotiation::poll_transmit`] still gives tells the client.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<Option<Request>, SocksError> {
        if matches!(self.state, State::Failed) {
            return Ok(None);
        }
        self.input.extend_from_slice(bytes);
        loop {
            let step = match self.state {
                State::Greeting => self.greeting(),
                State::Password => self.password(),
                State::Request => self.request5(),
                State::Done | State::Failed => return Ok(None),
            };
            match step {
                Ok(Step::More) => return Ok(None),
                Ok(Step::Next(state)) => self.state = state,
                Ok(Step::Request(request)) => {
                    self.state = State::Done;
                    return Ok(Some(request));
                }
                Err(error) => {
                    self.state = State::Failed;
                    return Err(error);
                }
            }
        }
    }

    /// Takes what is to be sent to the client now, if anything.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        if self.output.is_empty() {
            None
        } else {
            Some(std::mem::take(&mut self.output))
        }
    }

    /// Gives back the bytes that the client sent after its request.
    pub fn into_early(self) -> Vec<u8> {
        self.input
    }

    fn greeting(&mut self) -> Result<Step, SocksError> {
        let mut reader = Reader(&self.input);
        let Some(version) = reader.byte() else {
            return Ok(Step::More);
        };
        if version == VERSION4 {
            return self.request4();
        }
        if version != VERSION5 {
            return Err(SocksError::Version { version });
        }
        let Some(methods) = reader.short() else {
            return Ok(Step::More);
        };
        let (wanted, next) = match self.credentials {
            None => (METHOD_NONE, State::Request),
            Some(_) => (METHOD_PASSWORD, State::Password),
        };
        let offered = methods.contains(&wanted);
        let rest = reader.0.len();
        self.consume_but(rest);
        self.output
            .extend([VERSION5, if offered { wanted } else { METHOD_REFUSED }]);
        if offered {
            Ok(Step::Next(next))
        } else if wanted == METHOD_PASSWORD {
            Err(SocksError::PasswordWanted)
        } else {
            Err(SocksError::NoMethod)
        }
    }

    fn password(&mut self) -> Result<Step, SocksError> {
        let mut reader = Reader(&self.input);
        let Some(version) = reader.byte() else {
            return Ok(Step::More);
        };
        if version != PASSWORD_VERSION {
            return Err(SocksError::Version { version });
        }
        let (Some(user), Some(password)) = (reader.short(), reader.short()) else {
            return Ok(Step::More);
        };
        let right = self
            .credentials
            .as_ref()
            .is_some_and(|credentials| credentials.check(user, password));
        let rest = reader.0.len();
        self.consume_but(rest);
        self.output.extend([PASSWORD_VERSION, u8::from(!right)]);
        if right {
            Ok(Step::Next(State::Request))
        } else {
            Err(SocksError::WrongPassword)
        }
    }

    fn request5(&mut self) -> Result<Step, SocksError> {
        let outcome = parse_request5(&self.input);
        match outcome {
            Ok(None) => Ok(Step::More),
            Ok(Some((request, rest))) => {
                self.consume_but(rest);
                Ok(Step::Request(request))
            }
            Err(error) => {
                if let Some(code) = error.code() {
                    self.output.extend(reply5(code, UNSPECIFIED));
                }
                Err(error)
            }
        }
    }

    fn request4(&mut self) -> Result<Step, SocksError> {
        let outcome = if self.credentials.is_some() {
            // SOCKS4 has a user but no password.
            Err(SocksError::PasswordWanted)
        } else {
            parse_request4(&self.input)
        };
        match outcome {
            Ok(None) => Ok(Step::More),
            Ok(Some((request, rest))) => {
                self.consume_but(rest);
                Ok(Step::Request(request))
            }
            Err(error) => {
                self.output.extend(reply4(false, UNSPECIFIED));
                Err(error)
            }
        }
    }

    /// Forgets all input but the last `rest` bytes.
    fn consume_but(&mut self, rest: usize) {
        let consumed = self.input.len().saturating_sub(rest);
        self.input.drain(..consumed);
    }
}

enum Step {
    More,
    Next(State),
    Request(Request),
}

/// What a SOCKS client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The protocol it speaks, which the answer must follow.
    pub protocol: Protocol,
    /// What to do.
    pub command: Command,
    /// The destination's host; for [`Command::Associate`] where the client will send
    /// from, often 0.0.0.0.
    pub host: Host,
    /// The destination's port.
    pub port: u16,
}

impl Request {
    /// Encodes the answer to this request: `bound` is the address that serves it.
    pub fn reply(&self, code: ReplyCode, bound: SocketAddr) -> Vec<u8> {
        match self.protocol {
            Protocol::Socks5 => reply5(code, bound),
            Protocol::Socks4 => reply4(code == ReplyCode::Succeeded, bound),
        }
    }

    /// Encodes the refusal of this request.
    pub fn refusal(&self, code: ReplyCode) -> Vec<u8> {
        self.reply(code, UNSPECIFIED)
    }
}

/// A version of SOCKS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// SOCKS4 and 4a.
    Socks4,
    /// SOCKS5.
    Socks5,
}

/// What a SOCKS client wants done; BIND is refused while parsing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A TCP flow.
    Connect,
    /// A UDP relay.
    Associate,
}

/// A SOCKS5 reply (RFC 1928 section 6); SOCKS4 knows only granted and refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReplyCode {
    /// It is done.
    Succeeded = 0,
    /// The proxy itself cannot: the tunnel is down or full.
    GeneralFailure = 1,
    /// The server's policy forbids it, or a rule of this client.
    NotAllowed = 2,
    /// No route, or no inner address of that family.
    NetworkUnreachable = 3,
    /// The host cannot be reached, or its name has no address.
    HostUnreachable = 4,
    /// The origin answered with a reset.
    ConnectionRefused = 5,
    /// Time-out. RFC 1928 has no code for it; "TTL expired" is what others use.
    TtlExpired = 6,
    /// BIND, or an unknown command.
    CommandNotSupported = 7,
    /// An unknown type of address.
    AddressTypeNotSupported = 8,
}

impl From<&OriginError> for ReplyCode {
    fn from(error: &OriginError) -> Self {
        match error {
            OriginError::Connect(error) => Self::from(error),
            OriginError::Blocked(_) => Self::NotAllowed,
            OriginError::Resolve(error) => match error {
                ResolveError::InvalidName
                | ResolveError::Host
                | ResolveError::Onion
                | ResolveError::NotFound
                | ResolveError::ServerFailed { .. }
                | ResolveError::BadAnswer => Self::HostUnreachable,
                ResolveError::NoAddress => Self::NetworkUnreachable,
                ResolveError::Blocked => Self::NotAllowed,
                ResolveError::TimedOut => Self::TtlExpired,
                ResolveError::NoNameServer | ResolveError::TunnelDown(_) => Self::GeneralFailure,
            },
        }
    }
}

impl From<&ConnectError> for ReplyCode {
    fn from(error: &ConnectError) -> Self {
        match error {
            ConnectError::Refused => Self::ConnectionRefused,
            ConnectError::Unreachable => Self::HostUnreachable,
            ConnectError::NetworkUnreachable | ConnectError::NoAddress => Self::NetworkUnreachable,
            ConnectError::TimedOut => Self::TtlExpired,
            ConnectError::NotAllowed => Self::NotAllowed,
            ConnectError::TunnelDown(_) | ConnectError::TooManyFlows | ConnectError::PortTaken => {
                Self::GeneralFailure
            }
        }
    }
}

/// Why a SOCKS negotiation failed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SocksError {
    /// A message begins with the wrong version.
    #[error("version {version} where 5 (or 1 before the password) was expected")]
    Version {
        /// What stands there.
        version: u8,
    },
    /// The client does not offer to go without a password.
    #[error("the client offers no method that the proxy speaks")]
    NoMethod,
    /// A password is set and the client has none to offer.
    #[error("the proxy wants a user and a password, which the client does not offer")]
    PasswordWanted,
    /// The user or the password is wrong.
    #[error("wrong user or password")]
    WrongPassword,
    /// The command is not CONNECT or UDP ASSOCIATE.
    #[error("command {command} is not supported")]
    Command {
        /// The command.
        command: u8,
    },
    /// The type of address is unknown.
    #[error("address type {kind} is not supported")]
    AddressType {
        /// The type.
        kind: u8,
    },
    /// The host name is not one.
    #[error("bad destination: {0}")]
    Host(#[from] HostError),
    /// A SOCKS4 user or name does not end.
    #[error("a SOCKS4 field is longer than 255 bytes")]
    FieldTooLong,
}

impl SocksError {
    /// Returns the reply that tells the client, where the protocol has one.
    fn code(self) -> Option<ReplyCode> {
        match self {
            Self::Version { .. } => Some(ReplyCode::GeneralFailure),
            Self::Command { .. } => Some(ReplyCode::CommandNotSupported),
            Self::AddressType { .. } => Some(ReplyCode::AddressTypeNotSupported),
            Self::Host(_) => Some(ReplyCode::HostUnreachable),
            Self::NoMethod | Self::PasswordWanted | Self::WrongPassword | Self::FieldTooLong => {
                None
            }
        }
    }
}

/// Reads from the front of a slice.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    /// Reads `length (1) ‖ bytes`.
    pub(super) fn short(&mut self) -> Option<&'a [u8]> {
        let (len, rest) = self.0.split_first()?;
        let (bytes, rest) = rest.split_at_checked(usize::from(*len))?;
        self.0 = rest;
        Some(bytes)
    }

    pub(super) fn port(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// Reads `bytes ‖ 00`; an unfinished field of more than 255 bytes is an error.
    fn terminated(&mut self) -> Result<Option<&'a [u8]>, SocksError> {
        match self.0.iter().position(|byte| *byte == 0) {
            Some(end) if end > MAX_FIELD4 => Err(SocksError::FieldTooLong),
            Some(end) => {
                let (field, rest) = self.0.split_at(end);
                self.0 = rest.get(1..).unwrap_or_default();
                Ok(Some(field))
            }
            None if self.0.len() > MAX_FIELD4 => Err(SocksError::FieldTooLong),
            None => Ok(None),
        }
    }
}

/// Reads an address as requests and UDP headers have it: `type (1) ‖ address ‖ port (2)`.
///
/// `None` when bytes are missing.
pub(super) fn read_address(reader: &mut Reader<'_>) -> Result<Option<(Host, u16)>, SocksError> {
    let Some(kind) = reader.byte() else {
        return Ok(None);
    };
    let host = match kind {
        ADDRESS_V4 => reader
            .array()
            .map(|octets: [u8; 4]| Ipv4Addr::from(octets).into()),
        ADDRESS_V6 => reader
            .array()
            .map(|octets: [u8; 16]| Ipv6Addr::from(octets).into()),
        // Checked only once the message is whole, so that the error does not depend on
        // how the bytes came.
        ADDRESS_NAME => match (reader.short(), reader.port()) {
            (Some(name), Some(port)) => return Ok(Some((Host::parse(name)?, port))),
            (Some(_) | None, Some(_) | None) => None,
        },
        kind => return Err(SocksError::AddressType { kind }),
    };
    Ok(host.zip(reader.port()))
}

/// Appends `type (1) ‖ address ‖ port (2)`.
pub(super) fn write_address(out: &mut Vec<u8>, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => {
            out.push(ADDRESS_V4);
            out.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(ADDRESS_V6);
            out.extend(ip.octets());
        }
    }
    out.extend(address.port().to_be_bytes());
}

/// A request and the number of bytes that follow it; `None` when bytes are missing.
type Parsed = Result<Option<(Request, usize)>, SocksError>;

fn parse_request5(input: &[u8]) -> Parsed {
    let mut reader = Reader(input);
    let Some([version, command, _reserved]) = reader.array() else {
        return Ok(None);
    };
    if version != VERSION5 {
        return Err(SocksError::Version { version });
    }
    let Some((host, port)) = read_address(&mut reader)? else {
        return Ok(None);
    };
    let command = match command {
        COMMAND_CONNECT => Command::Connect,
        COMMAND_ASSOCIATE => Command::Associate,
        command => return Err(SocksError::Command { command }),
    };
    let request = Request {
        protocol: Protocol::Socks5,
        command,
        host,
        port,
    };
    Ok(Some((request, reader.0.len())))
}

fn parse_request4(input: &[u8]) -> Parsed {
    let mut reader = Reader(input);
    let (Some([_version, command]), Some(port), Some(octets)) =
        (reader.array(), reader.port(), reader.array::<4>())
    else {
        return Ok(None);
    };
    let Some(_user) = reader.terminated()? else {
        return Ok(None);
    };
    let host = match octets {
        // 4a: an impossible address says that a name follows.
        [0, 0, 0, x] if x != 0 => match reader.terminated()? {
            Some(name) => Host::parse(name)?,
            None => return Ok(None),
        },
        octets => Ipv4Addr::from(octets).into(),
    };
    if command != COMMAND_CONNECT {
        return Err(SocksError::Command { command });
    }
    let request = Request {
        protocol: Protocol::Socks4,
        command: Command::Connect,
        host,
        port,
    };
    Ok(Some((request, reader.0.len())))
}

fn reply5(code: ReplyCode, bound: SocketAddr) -> Vec<u8> {
    let mut out = Vec::with_capacity(22);
    out.extend([VERSION5, code as u8, 0]);
    write_address(&mut out, bound);
    out
}

fn reply4(granted: bool, bound: SocketAddr) -> Vec<u8> {
    let ip = match bound.ip() {
        IpAddr::V4(ip) => ip,
        // SOCKS4 cannot say it; clients do not look.
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    let mut out = Vec::with_capacity(8);
    out.extend([0, if granted { GRANTED4 } else { REFUSED4 }]);
    out.extend(bound.port().to_be_bytes());
    out.extend(ip.octets());
    out
}

/// The bound address of answers that have none.
pub(super) const UNSPECIFIED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The first byte of a SOCKS5 client.
pub(super) const VERSION5: u8 = 5;
/// The first byte of a SOCKS4 client.
pub(super) const VERSION4: u8 = 4;
const PASSWORD_VERSION: u8 = 1;
const METHOD_NONE: u8 = 0;
const METHOD_PASSWORD: u8 = 2;
const METHOD_REFUSED: u8 = 0xff;
const COMMAND_CONNECT: u8 = 1;
const COMMAND_ASSOCIATE: u8 = 3;
const ADDRESS_V4: u8 = 1;
const ADDRESS_NAME: u8 = 3;
const ADDRESS_V6: u8 = 4;
const GRANTED4: u8 = 0x5a;
const REFUSED4: u8 = 0x5b;

/// SOCKS4 gives no limit; SOCKS5's length byte does.
const MAX_FIELD4: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn credentials() -> Credentials {
        Credentials::new("user", "secret").unwrap()
    }

    /// Everything that a negotiation says and decides.
    #[derive(Debug, PartialEq)]
    struct Outcome {
        sent: Vec<u8>,
        request: Option<Request>,
        error: Option<SocksError>,
        early: Vec<u8>,
    }

    /// Feeds `input` in pieces that end at `cuts`, and the rest.
    fn run(input: &[u8], cuts: &[usize], password: bool) -> Outcome {
        let mut negotiation = Negotiation::new(password.then(credentials));
        let mut outcome = Outcome {
            sent: Vec::new(),
            request: None,
            error: None,
            early: Vec::new(),
        };
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (input.len() + 1)).collect();
        cuts.push(input.len());
        cuts.sort_unstable();
        let mut from = 0;
        for to in cuts {
            let piece = &input[from..to];
            from = to;
            if outcome.request.is_some() {
                outcome.early.extend(piece);
                continue;
            }
            if outcome.error.is_some() {
                continue;
            }
            match negotiation.handle_bytes(piece) {
                Ok(None) => assert!(negotiation.input.len() < 520),
                Ok(Some(request)) => {
                    outcome.request = Some(request);
                    outcome.early = std::mem::take(&mut negotiation.input);
                }
                Err(error) => outcome.error = Some(error),
            }
            outcome
                .sent
                .extend(negotiation.poll_transmit().unwrap_or_default());
        }
        outcome
    }

    #[test]
    fn request_examples_are_read() {
        let cases: [(&[u8], Protocol, Command, Host, u16); 6] = [
            (
                b"\x05\x01\x00\x05\x01\x00\x01\xc0\x00\x02\x01\x01\xbb",
                Protocol::Socks5,
                Command::Connect,
                Ipv4Addr::new(192, 0, 2, 1).into(),
                443,
            ),
            (
                b"\x05\x02\x01\x00\x05\x01\x00\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x00\x50",
                Protocol::Socks5,
                Command::Connect,
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
                80,
            ),
            (
                b"\x05\x01\x00\x05\x01\x00\x03\x0bExample.com\x00\x50",
                Protocol::Socks5,
                Command::Connect,
                Host::Name("example.com".to_owned()),
                80,
            ),
            (
                b"\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00",
                Protocol::Socks5,
                Command::Associate,
                Ipv4Addr::UNSPECIFIED.into(),
                0,
            ),
            (
                b"\x04\x01\x00\x50\xc0\x00\x02\x01user\0",
                Protocol::Socks4,
                Command::Connect,
                Ipv4Addr::new(192, 0, 2, 1).into(),
                80,
            ),
            (
                b"\x04\x01\x00\x50\x00\x00\x00\x07\0example.com\0",
                Protocol::Socks4,
                Command::Connect,
                Host::Name("example.com".to_owned()),
                80,
            ),
        ];
        for (input, protocol, command, host, port) in cases {
            let outcome = run(input, &[], false);
            let expected = Request {
                protocol,
                command,
                host,
                port,
            };
            assert_eq!(outcome.request, Some(expected), "{}", input.escape_ascii());
            assert_eq!(outcome.error, None);
            assert!(outcome.early.is_empty());
        }
    }

    #[test]
    fn socks4_fields_end_at_255_bytes() {
        let request = |len: usize| {
            let mut input = b"\x04\x01\x00\x50\x7f\x00\x00\x01".to_vec();
            input.extend(vec![b'u'; len]);
            input.push(0);
            run(&input, &[], false)
        };
        assert!(request(255).request.is_some());
        assert_eq!(request(256).error, Some(SocksError::FieldTooLong));
    }

    #[test]
    fn address_0_0_0_0_is_not_a_name() {
        let outcome = run(b"\x04\x01\x00\x50\x00\x00\x00\x00\0", &[], false);
        assert_eq!(
            outcome.request.map(|request| request.host),
            Some(Ipv4Addr::UNSPECIFIED.into())
        );
    }

    #[test]
    fn replies_carry_the_bound_address() {
        let request = |protocol| Request {
            protocol,
            command: Command::Connect,
            host: Ipv4Addr::LOCALHOST.into(),
            port: 1,
        };
        let v4 = SocketAddr::from(([192, 0, 2, 1], 258));
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 258));
        assert_eq!(
            request(Protocol::Socks5).reply(ReplyCode::Succeeded, v4),
            [5, 0, 0, 1, 192, 0, 2, 1, 1, 2]
        );
        assert_eq!(
            request(Protocol::Socks5).reply(ReplyCode::TtlExpired, v6),
            [
                5, 6, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2
            ]
        );
        assert_eq!(
            request(Protocol::Socks4).reply(ReplyCode::Succeeded, v4),
            [0, 0x5a, 1, 2, 192, 0, 2, 1]
        );
        assert_eq!(
            request(Protocol::Socks4).refusal(ReplyCode::NotAllowed),
            [0, 0x5b, 0, 0, 0, 0, 0, 0]
        );
    }

    /// Inputs that get past the first byte more often than noise does.
    fn dialogue() -> impl Strategy<Value = Vec<u8>> {
        let greeting = prop_oneof![
            Just(vec![5, 1, 0]),
            Just(vec![5, 2, 0, 2]),
            Just(vec![4]),
            proptest::collection::vec(any::<u8>(), 0..4),
        ];
        let password = prop_oneof![
            Just(Vec::new()),
            Just(b"\x01\x04user\x06secret".to_vec()),
            Just(b"\x01\x04user\x05wrong".to_vec()),
        ];
        let head = prop_oneof![
            Just(vec![5, 1, 0]),
            Just(vec![5, 3, 0]),
            Just(vec![1, 0, 80]),
            proptest::collection::vec(any::<u8>(), 0..4),
        ];
        let address = prop_oneof![
            Just(b"\x01\x7f\x00\x00\x01\x00\x50".to_vec()),
            Just(b"\x03\x01a\x00\x50".to_vec()),
            Just(b"\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x00\x50".to_vec()),
            Just(b"\x00\x00\x00\x01me\0name.test\0".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..600),
        ];
        let early = proptest::collection::vec(any::<u8>(), 0..20);
        (greeting, password, head, address, early)
            .prop_map(|(a, b, c, d, e)| [a, b, c, d, e].concat())
    }

    proptest! {
        #[test]
        fn any_split_of_the_input_gives_the_same_outcome(
            input in dialogue(),
            cuts in proptest::collection::vec(any::<usize>(), 0..8),
            password: bool,
        ) {
            let whole = run(&input, &[], password);
            let bytes: Vec<usize> = (0..=input.len()).collect();
            prop_assert_eq!(&run(&input, &cuts, password), &whole);
            prop_assert_eq!(&run(&input, &bytes, password), &whole);
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            first in prop_oneof![Just(4_u8), Just(5), any::<u8>()],
            rest in proptest::collection::vec(any::<u8>(), 0..700),
            password: bool,
        ) {
            let mut input = vec![first];
            input.extend(rest);
            let outcome = run(&input, &[], password);
            prop_assert!(outcome.request.is_none() || outcome.error.is_none());
        }

        #[test]
        fn nobody_without_the_password_gets_a_request(input in dialogue()) {
            let outcome = run(&input, &[], true);
            if outcome.request.is_some() {
                let right = b"\x01\x04user\x06secret";
                prop_assert!(input.windows(right.len()).any(|window| window == right));
            }
        }
    }
}
