//! The orders that a running client takes over its [control socket](crate::io::control).
//!
//! | command | arguments | what it does, and answers |
//! |---|---|---|
//! | `status` | | how the client is, and its session: a [`Report`](crate::status::Report) |
//! | `health` | | whether the session has a lane, in words; an error where it has none |
//! | `reload` | | reads the configuration again: what is in force now, and what waits for a restart |
//! | `forward.add` | `forward`: `-L 8080:h:80` | adds it: the forward as it is listed, and `warning` if there is one |
//! | `forward.remove` | `id`, or `forward` | removes it: the forward as it was |
//! | `forward.list` | | a list of forwards |
//! | `connect` | `host`, `port`, and a Unix socket beside it | makes the socket a connection to there, by the client's rules; answers when it stands, and again how it ended: `{"end": "finished"}` or `"cut"` |
//! | `session` | `wait`: milliseconds | whether there is a session with a lane, as soon as there is one, else after `wait`, at most 30 s, with `state`, which says why there is none; and `refused`, at once, where the server refuses this client |
//! | `share` | a TUN device beside it | ends its packets: what its interface is to be given; and again when it has ended |
//!
//! A client's socket has a name made of both keys, so that whoever has its configuration finds it, and clients of
//! different configurations do not meet.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rustix::net::{AddressFamily, SocketType, sockopt};
use serde_json::{Map, Value, json};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::down::Down;
use super::enclosure::Enclosures;
use super::forwards::{ForwardError, Forwards, Listed};
use super::proxy::Context;
use super::resolve::Host;
use super::status::Reporter;
use crate::config::{ClientConfig, ControlSocket, Forward};
use crate::io::control::{Commands, Done, Request, Surroundings, Wanted, short_key};
use crate::io::relay::{Fate, FlowWatch};
use crate::reload::Asker;

/// Tells where a client with this configuration takes orders.
pub fn place(config: &ClientConfig) -> Wanted {
    match &config.control {
        ControlSocket::Off => Wanted::Nowhere,
        ControlSocket::At(path) => Wanted::At(path.clone()),
        ControlSocket::Usual => {
            let own = short_key(&config.secret_key.public());
            let server = short_key(&config.server_key);
            let name = format!("{KIND}{own}-{server}");
            let surroundings = Surroundings::here();
            Wanted::Usual {
                listen: surroundings.usual(&name),
                own: None,
                ask: surroundings.everywhere(&name),
            }
        }
    }
}

/// Tells where a trial takes orders whose proxy listens at this port: its keys are new each time, and sockets of those that were
/// killed shall not become ever more.
pub fn trial(proxy: u16) -> Wanted {
    let name = format!("{TRIAL}{proxy}");
    let surroundings = Surroundings::here();
    Wanted::Usual {
        listen: surroundings.usual(&name),
        own: None,
        ask: surroundings.everywhere(&name),
    }
}

/// Lists the control sockets of this user's trials, those of the dead among them.
pub fn trials() -> Vec<PathBuf> {
    Surroundings::here().find(TRIAL)
}

/// Lists the control sockets of this user's clients, those of the dead among them.
pub fn sockets() -> Vec<PathBuf> {
    Surroundings::here().find(KIND)
}

/// Carries out orders for one client.
#[derive(Debug)]
pub struct Orders {
    /// Its forwards.
    pub forwards: Forwards,
    /// What connects.
    pub opener: Opener,
    /// What lets other commands share it.
    pub enclosures: Enclosures,
    /// What tells how it is.
    pub reporter: Arc<Reporter>,
    /// What reads its configuration again, where there is a file.
    pub reload: Option<Asker>,
    /// Connections made for callers.
    pub open: Arc<AtomicU64>,
}

/// Opens connections as the client's rules have them; cheap to clone.
#[derive(Clone, Debug)]
pub struct Opener(pub(in crate::client) Arc<Context>);

/// Makes `socket`, a connected Unix stream socket, a connection to `host`, by the way that the rules give it; what is
/// returned tells how it ends, and is to be polled until then, since it may carry the bytes.
///
/// # Errors
///
/// A sentence that says why there is no connection.
pub async fn connect(
    Opener(context): &Opener,
    (host, port): (&str, u16),
    socket: OwnedFd,
    watch: FlowWatch,
) -> Result<BoxFuture<'static, Fate>, String> {
    let unusable = |error: &dyn std::fmt::Display| format!("the socket is of no use: {error}");
    let is_stream = sockopt::socket_domain(&socket).is_ok_and(|it| it == AddressFamily::UNIX)
        && sockopt::socket_type(&socket).is_ok_and(|it| it == SocketType::STREAM);
    if !is_stream {
        return Err(unusable(&"it is no Unix stream socket"));
    }
    let socket = std::os::unix::net::UnixStream::from(socket);
    let socket = (socket.set_nonblocking(true))
        .and_then(|()| UnixStream::from_std(socket))
        .map_err(|error| unusable(&error))?;
    let name = Host::parse(host.as_bytes()).map_err(|error| format!("`{host}`: {error}"))?;
    let opened = context.open(&name, port).await;
    let opened = opened.map_err(|error| {
        context.count_failure(&error);
        format!("no connection to {name}:{port}: {error}")
    })?;
    Ok(opened.carry_watched(socket, watch))
}

impl Commands for Orders {
    async fn call(&self, request: Request, passed: Option<OwnedFd>) -> Done {
        match request.command.as_str() {
            "status" => Done::Now(Ok(json!(self.reporter.report().await))),
            "health" => Done::Now(self.reporter.ready().await.map(Value::from)),
            "reload" => Done::Now(self.reload().await),
            "forward.add" => Done::Now(self.add(&request)),
            "forward.remove" => Done::Now(self.remove(&request).await),
            "forward.list" => Done::Now(Ok(json!(self.forwards.list()))),
            "connect" => match self.connect(&request, passed).await {
                Ok(fate) => Done::Later {
                    now: Value::Null,
                    end: Box::pin(async move {
                        let finished = matches!(fate.await, Fate::Finished);
                        json!({END: if finished { FINISHED } else { "cut" }})
                    }),
                },
                Err(message) => Done::Now(Err(message)),
            },
            "session" => Done::Now(Ok(self.session(&request).await)),
            "share" => self.share(passed),
            other => Done::Now(Err(format!(
                "this client does not know `{other}`: is it an older adit?"
            ))),
        }
    }
}

impl Orders {
    /// Waits until the session has its addresses and a lane.
    async fn connected(&self) -> bool {
        if !self.enclosures.connected().await {
            return false;
        }
        // The session outlives its lanes for a while; what a look costs is nothing to a command that waits.
        while self.reporter.ready().await.is_err() {
            sleep(LOOK_AGAIN).await;
        }
        true
    }

    /// Says whether there is a session, after waiting for it.
    async fn session(&self, request: &Request) -> Value {
        let wait = request.number(WAIT).map_or(SESSION_WAIT, |wait| {
            Duration::from_millis(wait).min(SESSION_WAIT)
        });
        let is_connected = tokio::select! {
            connected = timeout(wait, self.connected()) => connected.unwrap_or(false),
            () = self.refused() => false,
        };
        if is_connected {
            return json!({CONNECTED: true});
        }
        let down = self.reporter.down();
        json!({
            CONNECTED: false,
            STATE: down.unwrap_or_default().state(),
            REFUSED: down.is_some_and(Down::ends_a_wait),
        })
    }

    /// Waits until the server refuses this client.
    async fn refused(&self) {
        while !self.reporter.down().is_some_and(Down::ends_a_wait) {
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn reload(&self) -> Result<Value, String> {
        let Some(reload) = &self.reload else {
            return Err("this client has no configuration file to read again".to_owned());
        };
        reload.ask().await.map(|applied| json!(applied))
    }

    fn add(&self, request: &Request) -> Result<Value, String> {
        let forward = Forward::parse(request.text("forward")?)?;
        let warning = match &forward {
            Forward::Local(local) => local.warning(),
            Forward::Remote(_) => None,
        };
        let listed = self.forwards.add(forward).map_err(in_words)?;
        if let Some(warning) = &warning {
            warn!("{warning}");
        }
        Ok(described(&listed, warning))
    }

    async fn remove(&self, request: &Request) -> Result<Value, String> {
        let id = match request.arguments.get("forward") {
            Some(_) => {
                let forward = Forward::parse(request.text("forward")?)?;
                self.forwards.find(&forward).map_err(in_words)?
            }
            None => request.number("id")?,
        };
        let listed = self.forwards.remove(id).await.map_err(in_words)?;
        Ok(described(&listed, None))
    }

    fn share(&self, passed: Option<OwnedFd>) -> Done {
        let Some(tun) = passed else {
            return Done::Now(Err("share needs a TUN device beside it".to_owned()));
        };
        match self.enclosures.open(tun) {
            Ok((offer, ended)) => Done::Later {
                now: json!(offer),
                end: Box::pin(async move {
                    ended.await;
                    json!({END: FINISHED})
                }),
            },
            Err(error) => Done::Now(Err(error.to_string())),
        }
    }

    async fn connect(
        &self,
        request: &Request,
        passed: Option<OwnedFd>,
    ) -> Result<BoxFuture<'static, Fate>, String> {
        let host = request.text("host")?;
        let port = u16::try_from(request.number("port")?)
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| "`port` is not one: it goes from 1 to 65535".to_owned())?;
        let socket = passed.ok_or_else(|| "connect needs a socket beside it".to_owned())?;
        let watch = FlowWatch::new(Arc::clone(&self.open));
        connect(&self.opener, (host, port), socket, watch).await
    }
}

fn in_words(error: ForwardError) -> String {
    error.to_string()
}

fn described(listed: &Listed, warning: Option<String>) -> Value {
    let mut value = json!(listed);
    if let (Some(warning), Some(map)) = (warning, value.as_object_mut()) {
        map.insert("warning".to_owned(), json!(warning));
    }
    value
}

/// Orders a connection to `host`; the socket goes beside it.
pub fn connect_order(host: &str, port: u16) -> Request {
    let mut arguments = Map::new();
    arguments.insert("host".to_owned(), json!(host));
    arguments.insert("port".to_owned(), json!(port));
    Request::new("connect", arguments)
}

/// Asks whether there is a session, for at most so long.
pub fn session_order(wait: Duration) -> Request {
    let mut arguments = Map::new();
    let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    arguments.insert(WAIT.to_owned(), json!(wait));
    Request::new("session", arguments)
}

/// What is said of the session that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionAnswer {
    /// There is one.
    Connected,
    /// There may be one yet: how the client is.
    Waiting(String),
    /// The server refuses the client: how it is.
    Refused(String),
}

impl SessionAnswer {
    /// Reads an answer; one of an older client says nothing but whether there is a session.
    pub fn of(answer: &Value) -> Self {
        let flag = |key| answer.get(key).and_then(Value::as_bool) == Some(true);
        let state = answer.get(STATE).and_then(Value::as_str);
        let state = state.unwrap_or("connecting").to_owned();
        if flag(CONNECTED) {
            Self::Connected
        } else if flag(REFUSED) {
            Self::Refused(state)
        } else {
            Self::Waiting(state)
        }
    }
}

/// Orders that the packets of a TUN device are ended; it goes beside the order.
pub fn share_order() -> Request {
    Request::new("share", Map::new())
}

/// Whether the end of a connection that was ordered was one in order.
pub fn is_finished(end: &Value) -> bool {
    end.get(END).and_then(Value::as_str) == Some(FINISHED)
}

const CONNECTED: &str = "connected";

const STATE: &str = "state";

const REFUSED: &str = "refused";

const WAIT: &str = "wait";

/// How often it is looked whether the session has a lane, for whoever waits for one.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long the question for a session waits for one at most.
const SESSION_WAIT: Duration = Duration::from_secs(30);

const END: &str = "end";

const FINISHED: &str = "finished";

/// What a client's socket begins with.
const KIND: &str = "client-";

/// What the socket of `adit try` begins with: a trial is not among the clients, and is meant only where there is none.
pub(crate) const TRIAL: &str = "try-";
