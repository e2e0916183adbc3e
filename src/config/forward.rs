//! Forwards of single ports, as a configuration and the command line write them.
//!
//! ```text
//! -L [address:]port:host:port[/udp]     a port here            ─▶ a host beyond the server
//! -L unix:/path:host:port               a Unix socket here     ─▶ a host beyond the server
//! -R port:host:port[/udp]               a port of the inner address ─▶ a host near the client
//! -R port:unix:/path                    a port of the inner address ─▶ a Unix socket here
//! ```
//!
//! What is written is read once, here; what comes out can be written again and reads the same.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::address::Host;
use super::error::Place;
use super::parse::Parsed;
use super::settings::{Located, Settings};
use super::shared::Unique;

/// One forward.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Forward {
    /// From here to a host beyond the server.
    Local(LocalForward),
    /// From the inner address to a host near the client.
    Remote(RemoteForward),
}

impl Forward {
    /// The address of this host that it listens on, if it has one.
    pub fn near_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Local(local) => match local.listen {
                NearListen::Tcp(address) | NearListen::Udp(address) => Some(address),
                NearListen::Unix(_) => None,
            },
            Self::Remote(_) => None,
        }
    }
}

/// A port or Unix socket of this host that leads to a host beyond the server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LocalForward {
    /// Where applications connect to.
    pub listen: NearListen,
    /// The host; a name is resolved beyond the server.
    pub host: Host,
    /// Its port, not 0.
    pub port: u16,
}

/// Where a forward listens on this host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NearListen {
    /// A TCP port; 0 takes any free one.
    Tcp(SocketAddr),
    /// A UDP port; 0 takes any free one.
    Udp(SocketAddr),
    /// A Unix socket, by an absolute path.
    Unix(PathBuf),
}

/// A port of the client's inner address that leads to a host near the client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RemoteForward {
    /// The port, not 0.
    pub port: u16,
    /// Where it leads.
    pub target: NearTarget,
}

/// Where a forward of an inner port leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NearTarget {
    /// A TCP port of a host; a name is resolved by this host.
    Tcp(Host, u16),
    /// A UDP port of a host; a name is resolved by this host.
    Udp(Host, u16),
    /// A Unix socket, by an absolute path.
    Unix(PathBuf),
}

impl Forward {
    /// Reads a forward of either kind, with its kind in front: `-L 8080:intranet:80`, as [`fmt::Display`] writes it.
    ///
    /// # Errors
    /// What was found and what would be right.
    pub fn parse(text: &str) -> Parsed<Self> {
        match text.split_once(' ') {
            Some(("-L", rest)) => LocalForward::parse(rest).map(Self::Local),
            Some(("-R", rest)) => RemoteForward::parse(rest).map(Self::Remote),
            Some(_) | None => Err(format!(
                "`{text}` does not say which kind of forward it is: begin with -L or -R"
            )),
        }
    }

    /// Whether both cannot be there at the same time: they listen at the same place.
    pub fn collides(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Local(one), Self::Local(other)) => match (&one.listen, &other.listen) {
                // Any free one is never the same.
                (NearListen::Tcp(at) | NearListen::Udp(at), _) if at.port() == 0 => false,
                (one, other) => one == other,
            },
            (Self::Remote(one), Self::Remote(other)) => {
                one.port == other.port && one.is_udp() == other.is_udp()
            }
            (Self::Local(_), Self::Remote(_)) | (Self::Remote(_), Self::Local(_)) => false,
        }
    }
}

impl LocalForward {
    /// Reads `[address:]port:host:port[/udp]` or `unix:/path:host:port`.
    ///
    /// # Errors
    /// What was found and what would be right.
    pub fn parse(text: &str) -> Parsed<Self> {
        let right = "write [address:]port:host:port, such as 8080:intranet.example:80, or unix:/path:host:port";
        let (rest, is_udp) = protocol(text)?;
        let fields = fields(rest);
        let [before @ .., host, port] = fields.as_slice() else {
            return Err(format!("`{text}` is not a forward: {right}"));
        };
        let listen = match before {
            ["unix", path @ ..] if !path.is_empty() => {
                if is_udp {
                    return Err(format!(
                        "`{text}`: a Unix socket carries no datagrams: leave out /udp"
                    ));
                }
                NearListen::Unix(unix_path(&path.join(":"))?)
            }
            [listening] => listen(Ipv4Addr::LOCALHOST.into(), listening, is_udp)?,
            [address, listening] => listen(bind_address(address)?, listening, is_udp)?,
            _ => return Err(format!("`{text}` is not a forward: {right}")),
        };
        Ok(Self {
            listen,
            host: host_name(host)?,
            port: target_port(port)?,
        })
    }

    /// Says so where others than this host can reach it.
    pub fn warning(&self) -> Option<String> {
        let beyond = match &self.listen {
            NearListen::Tcp(at) | NearListen::Udp(at) => !at.ip().to_canonical().is_loopback(),
            NearListen::Unix(_) => false,
        };
        beyond.then(|| {
            format!(
                "`{self}` can be reached from other hosts: whoever reaches it reaches {}:{} through the tunnel",
                self.host, self.port
            )
        })
    }
}

impl RemoteForward {
    /// Reads `port:host:port[/udp]` or `port:unix:/path`.
    ///
    /// # Errors
    /// What was found and what would be right.
    pub fn parse(text: &str) -> Parsed<Self> {
        let right = "write port:host:port, such as 8080:localhost:80, or port:unix:/path";
        if let Some((listening, path)) = text.split_once(":unix:") {
            return Ok(Self {
                port: target_port(listening)?,
                target: NearTarget::Unix(unix_path(path)?),
            });
        }
        let (rest, is_udp) = protocol(text)?;
        let fields = fields(rest);
        let [listening, host, port] = fields.as_slice() else {
            let hint = if fields.len() == 4 {
                "; it is always the client's inner address"
            } else {
                ""
            };
            return Err(format!("`{text}` is not a forward: {right}{hint}"));
        };
        let (host, port) = (host_name(host)?, target_port(port)?);
        Ok(Self {
            port: target_port(listening)?,
            target: if is_udp {
                NearTarget::Udp(host, port)
            } else {
                NearTarget::Tcp(host, port)
            },
        })
    }

    /// Whether it carries datagrams.
    pub fn is_udp(&self) -> bool {
        match self.target {
            NearTarget::Udp(..) => true,
            NearTarget::Tcp(..) | NearTarget::Unix(_) => false,
        }
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(forward) => write!(f, "-L {forward}"),
            Self::Remote(forward) => write!(f, "-R {forward}"),
        }
    }
}

impl fmt::Display for LocalForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { listen, host, port } = self;
        match listen {
            NearListen::Tcp(at) => write!(f, "{at}:{host}:{port}"),
            NearListen::Udp(at) => write!(f, "{at}:{host}:{port}/udp"),
            NearListen::Unix(path) => write!(f, "unix:{}:{host}:{port}", path.display()),
        }
    }
}

impl fmt::Display for RemoteForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.port)?;
        match &self.target {
            NearTarget::Tcp(host, port) => write!(f, "{host}:{port}"),
            NearTarget::Udp(host, port) => write!(f, "{host}:{port}/udp"),
            NearTarget::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Where a program's control socket is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ControlSocket {
    /// In the user's folder for such things, by a name made of the keys.
    #[default]
    Usual,
    /// There is none.
    Off,
    /// Here.
    At(PathBuf),
}

/// Reads `local_forwards` and `remote_forwards`. Flags add to what file or environment say, and where both want one place,
/// the flag has it.
pub(super) fn read(settings: &mut Settings<'_>) -> Vec<Forward> {
    let local = settings.list_with_flags("local_forwards", LocalForward::parse);
    let remote = settings.list_with_flags("remote_forwards", RemoteForward::parse);
    let mut forwards = Vec::new();
    let mut places = Places::default();
    for at in local {
        if let Some(warning) = at.value.warning() {
            settings.warn(format!("{}: {warning}", at.key));
        }
        let place = match &at.value.listen {
            // Any free one is never the same.
            NearListen::Tcp(at) | NearListen::Udp(at) if at.port() == 0 => None,
            NearListen::Tcp(at) => Some(format!("TCP {at}")),
            NearListen::Udp(at) => Some(format!("UDP {at}")),
            NearListen::Unix(path) => Some(format!("the socket {}", path.display())),
        };
        if place.is_none_or(|place| places.take(settings, &at, place)) {
            bound(settings, &at, forwards.len());
            forwards.push(Forward::Local(at.value));
        }
    }
    for at in remote {
        let kind = if at.value.is_udp() { "UDP" } else { "TCP" };
        let place = format!("the inner {kind} port {}", at.value.port);
        if places.take(settings, &at, place) {
            bound(settings, &at, forwards.len());
            forwards.push(Forward::Remote(at.value));
        }
    }
    forwards
}

/// Where forwards begin, each once.
#[derive(Default)]
struct Places {
    seen: Unique<String>,
    /// Those that flags have taken, and for what.
    by_flags: HashMap<String, String>,
}

impl Places {
    /// Takes a place for a forward; `false` where that of a flag stands there. Twice in one list is a mistake.
    fn take<T: fmt::Display>(
        &mut self,
        settings: &mut Settings<'_>,
        at: &Located<T>,
        place: String,
    ) -> bool {
        let wanted = at.value.to_string();
        if let Place::Flag(_) = at.place {
            self.by_flags.insert(place.clone(), wanted);
        } else if let Some(flag) = self.by_flags.get(&place) {
            if *flag != wanted {
                settings.warn(format!(
                    "{}: {wanted} is not in force: on the command line {place} is {flag}",
                    at.key
                ));
            }
            return false;
        }
        self.seen.insert(settings, at, place.clone(), &place);
        true
    }
}

/// Refuses the first forward that is one too many.
fn bound<T>(settings: &mut Settings<'_>, at: &Located<T>, before: usize) {
    if before == MAX_FORWARDS {
        let message = format!("is one too many: a client has at most {MAX_FORWARDS} forwards");
        settings.problem_at(at, message);
    }
}

/// Reads `control`.
pub(super) fn read_control(settings: &mut Settings<'_>) -> ControlSocket {
    let text = settings.value("control", |text| Ok(text.to_owned()));
    match text.as_ref().map(|at| at.value.as_str()) {
        None => ControlSocket::Usual,
        Some("off" | "no" | "false") => ControlSocket::Off,
        Some(_) => (settings.path("control")).map_or(ControlSocket::Usual, |at| {
            if at.value.as_os_str().len() > MAX_SOCKET_PATH {
                let message = format!("a socket's path has at most {MAX_SOCKET_PATH} bytes");
                settings.problem_at(&at, message);
            }
            ControlSocket::At(at.value)
        }),
    }
}

/// Takes the protocol off the end.
fn protocol(text: &str) -> Parsed<(&str, bool)> {
    match text.rsplit_once('/') {
        Some((rest, "udp")) => Ok((rest, true)),
        Some((rest, "tcp")) => Ok((rest, false)),
        Some((_, other)) if !text.starts_with("unix:") => Err(format!(
            "`/{other}` is not a protocol: write /udp, or nothing for TCP"
        )),
        Some(_) | None => Ok((text, false)),
    }
}

/// Splits at the colons outside brackets.
fn fields(text: &str) -> Vec<&str> {
    let mut inside = false;
    text.split(move |c| {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            _ => {}
        }
        c == ':' && !inside
    })
    .collect()
}

fn listen(ip: IpAddr, port: &str, is_udp: bool) -> Parsed<NearListen> {
    let at = SocketAddr::new(ip, number(port)?);
    Ok(if is_udp {
        NearListen::Udp(at)
    } else {
        NearListen::Tcp(at)
    })
}

fn bind_address(text: &str) -> Parsed<IpAddr> {
    if text == "localhost" {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    match text.parse() {
        Ok(Host::Ip(ip)) => Ok(ip),
        Ok(Host::Name(_)) | Err(_) => Err(format!(
            "`{text}` is not an address of this host to listen on: write one such as 127.0.0.1 or [::1], or leave it out"
        )),
    }
}

fn host_name(text: &str) -> Parsed<Host> {
    text.parse()
        .map_err(|_| {
            format!(
                "`{text}` is neither a host name nor an IP address: write one like intranet.example, 10.0.0.7 or [2001:db8::7]"
            )
        })
}

fn number(text: &str) -> Parsed<u16> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (text.parse().ok().filter(|_| plain))
        .ok_or_else(|| format!("`{text}` is not a port: write a number from 1 to 65535"))
}

fn target_port(text: &str) -> Parsed<u16> {
    match number(text)? {
        0 => Err("`0` is not a port to connect to: write a number from 1 to 65535".to_owned()),
        port => Ok(port),
    }
}

fn unix_path(text: &str) -> Parsed<PathBuf> {
    if !text.starts_with('/') || text.ends_with('/') || text.contains('\0') {
        return Err(format!(
            "`{text}` is not the absolute path of a socket: write one like unix:/run/user/1000/name.sock"
        ));
    }
    if text.len() > MAX_SOCKET_PATH {
        return Err(format!(
            "`{text}` is too long: a socket's path has at most {MAX_SOCKET_PATH} bytes"
        ));
    }
    Ok(Path::new(text).to_owned())
}

/// Forwards of one client: more than anybody writes by hand, few enough to look through.
pub const MAX_FORWARDS: usize = 256;

/// Bytes in the path of a Unix socket (unix(7): 108 with the zero at its end).
const MAX_SOCKET_PATH: usize = 107;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn well_formed_forwards_come_back_whole() {
        for (text, full) in [
            ("-L 8080:intranet:80", "-L 127.0.0.1:8080:intranet:80"),
            ("-L localhost:0:10.0.0.7:80", "-L 127.0.0.1:0:10.0.0.7:80"),
            ("-L 0.0.0.0:8080:a_b.c:1/tcp", "-L 0.0.0.0:8080:a_b.c:1"),
            (
                "-L [::1]:53:[fd00::1]:53/udp",
                "-L [::1]:53:[fd00::1]:53/udp",
            ),
            ("-L unix:/run/x:y.sock:h:22", "-L unix:/run/x:y.sock:h:22"),
            ("-L unix:/run/udp:[::1]:22", "-L unix:/run/udp:[::1]:22"),
            ("-R 8080:localhost:80", "-R 8080:localhost:80"),
            ("-R 53:[::1]:5353/udp", "-R 53:[::1]:5353/udp"),
            ("-R 80:unix:/run/web/udp", "-R 80:unix:/run/web/udp"),
        ] {
            let forward = Forward::parse(text).expect(text);
            assert_eq!(forward.to_string(), full);
            assert_eq!(Forward::parse(full), Ok(forward));
        }
    }

    #[test]
    fn each_mistake_is_answered_with_what_would_be_right() {
        for (text, right) in [
            ("8080:h:80", "begin with -L or -R"),
            ("-X 8080:h:80", "begin with -L or -R"),
            ("-L 8080", "write [address:]port:host:port"),
            ("-L 8080:80", "write [address:]port:host:port"),
            ("-L a:b:c:d:e", "write [address:]port:host:port"),
            ("-L 8080:h:0", "not a port to connect to"),
            ("-L 8080:h:http", "`http` is not a port"),
            ("-L 65536:h:80", "`65536` is not a port"),
            ("-L +1:h:80", "`+1` is not a port"),
            ("-L :h:80", "`` is not a port"),
            ("-L example.com:1:h:80", "not an address of this host"),
            ("-L ::1:1:h:80", "write [address:]port:host:port"),
            ("-L 1:-h:80", "neither a host name nor an IP address"),
            ("-L 1:h:80/sctp", "`/sctp` is not a protocol"),
            ("-L unix:run/x:h:80", "not the absolute path"),
            ("-L unix::h:80", "not the absolute path"),
            ("-L unix:/x:h:80/udp", "carries no datagrams"),
            ("-R 0:h:80", "not a port to connect to"),
            ("-R 0.0.0.0:8080:h:80", "always the client's inner address"),
            ("-R 8080:unix:x", "not the absolute path"),
            ("-R 8080:h", "write port:host:port"),
        ] {
            let error = Forward::parse(text).expect_err(text);
            assert!(error.contains(right), "{text}: {error}");
        }
        let long = format!("-R 1:unix:/{}", "x".repeat(MAX_SOCKET_PATH));
        assert!(Forward::parse(&long).is_err_and(|error| error.contains("107 bytes")));
    }

    #[test]
    fn only_what_leaves_loopback_is_warned_of() {
        let warning = |text| LocalForward::parse(text).expect(text).warning();
        for text in ["1:h:2", "127.9.9.9:1:h:2", "[::1]:1:h:2/udp", "unix:/x:h:2"] {
            assert_eq!(warning(text), None, "{text}");
        }
        for text in ["0.0.0.0:1:h:2", "[::]:1:h:2/udp", "192.168.1.2:1:h:2"] {
            assert!(warning(text).is_some_and(|text| text.contains("other hosts")));
        }
    }

    #[test]
    fn forwards_collide_where_they_listen_at_the_same_place() {
        let collide = |one, other| {
            let [one, other] = [one, other].map(|text| Forward::parse(text).expect(text));
            one.collides(&other)
        };
        assert!(collide("-L 1:a:1", "-L 127.0.0.1:1:b:2"));
        assert!(collide("-R 1:a:1", "-R 1:unix:/x"));
        assert!(!collide("-L 1:a:1", "-L 1:a:1/udp"));
        assert!(!collide("-L 0:a:1", "-L 0:a:1"));
        assert!(!collide("-R 1:a:1", "-R 1:a:1/udp"));
        assert!(!collide("-R 1:a:1", "-L 1:a:1"));
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_survives_a_round_trip(kind in "-[LR] ", text in "[-a-z0-9:/.\\[\\]]{0,40}") {
            if let Ok(forward) = Forward::parse(&format!("{kind}{text}")) {
                prop_assert_eq!(Forward::parse(&forward.to_string()), Ok(forward));
            }
        }
    }
}
