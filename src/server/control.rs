//! The orders that a running server takes over its [control socket](crate::io::control).
//!
//! | command | arguments | what it does, and answers |
//! |---|---|---|
//! | `status` | | how the server is, and each session: a [`Report`](crate::status::Report) |
//! | `health` | | whether it does its work, in words; an error where it does not |
//! | `reload` | | reads the configuration again: what is in force now, and what waits for a restart |
//! | `invite…`, `clients…` | | those of [`orders`] |
//!
//! # Where
//!
//! A server listens at `server-<its key>.sock` in the folder for such things, else at `control.sock` in its state
//! directory, which it always has: a container has no other. Whoever has its configuration asks in the state directory
//! first, since that is the server's alone, while two servers may have one key.
//!
//! # Further orders
//!
//! Each is a line in the match of [`Orders`]' `call` and in the table above, and a function that takes what it needs of the
//! [`Request`]. An order is carried out on a task of its own connection, never on a session's: it changes what sessions
//! share ([`Shared::peers`], [`Shared::enrolment`]) or asks them, with a time-out. A command finds the server by
//! `cli::running::Which::find_server`.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use super::orders;
use super::shared::Shared;
use super::status::Reporter;
use crate::config::{ControlSocket, ServerConfig};
use crate::io::control::{Commands, Done, Request, Surroundings, Wanted, short_key};
use crate::reload::Asker;

/// Tells where a server with this configuration takes orders.
pub fn place(config: &ServerConfig) -> Wanted {
    let in_state = config.state_dir.join(IN_STATE);
    match (&config.control, config.secret_keys.first()) {
        (ControlSocket::Off, _) => Wanted::Nowhere,
        (ControlSocket::At(path), _) => Wanted::At(path.clone()),
        (ControlSocket::Usual, None) => Wanted::At(in_state),
        (ControlSocket::Usual, Some(key)) => {
            let name = format!("{KIND}{}", short_key(&key.public()));
            let surroundings = Surroundings::here();
            let mut ask = surroundings.everywhere(&name);
            ask.insert(0, in_state.clone());
            Wanted::Usual {
                listen: surroundings.usual(&name),
                own: Some(in_state),
                ask,
            }
        }
    }
}

/// Lists the control sockets of this user's servers, those of the dead among them.
pub fn sockets() -> Vec<PathBuf> {
    Surroundings::here().find(KIND)
}

/// Carries out orders for one server.
#[derive(Debug)]
pub struct Orders {
    shared: Arc<Shared>,
    reporter: Arc<Reporter>,
    reload: Option<Asker>,
}

impl Orders {
    /// Takes orders for the server that shares this; `reload` knows how its configuration is read again.
    pub fn new(shared: Arc<Shared>, reporter: Arc<Reporter>, reload: Option<Asker>) -> Self {
        Self {
            shared,
            reporter,
            reload,
        }
    }

    async fn reload(&self) -> Result<Value, String> {
        let Some(reload) = &self.reload else {
            return Err("this server has no configuration file to read again".to_owned());
        };
        reload.ask().await.map(|applied| json!(applied))
    }
}

impl Commands for Orders {
    async fn call(&self, request: Request, _passed: Option<OwnedFd>) -> Done {
        Done::Now(match request.command.as_str() {
            "status" => Ok(json!(self.reporter.report().await)),
            "health" => self.shared.ready().map(Value::from),
            "reload" => self.reload().await,
            other => match orders::call(&self.shared, &request) {
                Some(outcome) => outcome,
                None => Err(format!(
                    "this server does not know `{other}`: is it an older adit?"
                )),
            },
        })
    }
}

/// What a server's socket begins with.
const KIND: &str = "server-";

/// The socket in the state directory.
const IN_STATE: &str = "control.sock";
