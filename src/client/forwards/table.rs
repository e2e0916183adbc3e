//! The forwards there are, and how they come and go.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, UdpSocket as StdUdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::counters::{Counters, Counts, State};
use super::local::Near;
use super::{datagrams, local, remote};
use crate::client::ports;
use crate::client::resolve::{Host, HostError, Resolver};
use crate::client::status::Listening;
use crate::client::tunnel::Tunnel;
use crate::config::{Forward, LocalForward, MAX_FORWARDS, NearListen, NearTarget, RemoteForward};
use crate::io::unix::{Listener, UnixError};

/// The forwards of a client; cheap to clone. They end with the last of its clones, and with `stop`.
#[derive(Clone)]
pub struct Forwards {
    shared: Arc<Shared>,
}

struct Shared {
    tunnel: Tunnel,
    resolver: Resolver,
    stop: CancellationToken,
    table: Mutex<Table>,
}

impl fmt::Debug for Forwards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwards")
            .field("entries", &self.table().entries.len())
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Table {
    entries: BTreeMap<u64, Entry>,
    last: u64,
}

struct Entry {
    forward: Forward,
    counters: Arc<Counters>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// A forward as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its number, never given again.
    pub id: u64,
    /// As it would be written: `-L 127.0.0.1:8080:intranet:80`.
    pub forward: String,
    /// Whether it listens.
    pub state: State,
    /// What it has counted.
    #[serde(flatten)]
    pub counts: Counts,
}

/// Why a forward is not added, or not removed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// There are too many.
    #[error("a client has at most {MAX_FORWARDS} forwards: remove one first")]
    TooMany,
    /// One listens there already.
    #[error("forward {id} listens there already: {forward}")]
    Taken {
        /// Its number.
        id: u64,
        /// What it is.
        forward: Forward,
    },
    /// The port cannot be had.
    #[error(
        "cannot listen on {address} for `{forward}`: {error}{}",
        ports::hint(error, TAKEN)
    )]
    Bind {
        /// Where it should listen.
        address: SocketAddr,
        /// The forward.
        forward: Forward,
        /// What the system says.
        error: io::Error,
    },
    /// The socket cannot be had.
    #[error("cannot listen for `{forward}`: {error}")]
    Socket {
        /// The forward.
        forward: Forward,
        /// Why.
        error: UnixError,
    },
    /// The name is none that could be asked for.
    #[error("cannot forward to `{host}`: {error}")]
    Host {
        /// The name.
        host: String,
        /// What is wrong with it.
        error: HostError,
    },
    /// There is no such forward.
    #[error("there is no forward {id}: `adit forward list` shows those there are")]
    NoSuchId {
        /// Its number.
        id: u64,
    },
    /// There is no such forward.
    #[error("there is no forward `{forward}`: `adit forward list` shows those there are")]
    NoSuchForward {
        /// What it would be.
        forward: Forward,
    },
}

impl Forwards {
    /// Makes an empty table.
    pub fn new(tunnel: Tunnel, resolver: Resolver, stop: &CancellationToken) -> Self {
        Self {
            shared: Arc::new(Shared {
                tunnel,
                resolver,
                stop: stop.child_token(),
                table: Mutex::default(),
            }),
        }
    }

    /// Adds a forward and returns it as it is now. One of this host's ports listens when this returns; an inner port, when
    /// there is a session.
    ///
    /// # Errors
    ///
    /// [`ForwardError`]; nothing has changed then.
    pub fn add(&self, forward: Forward) -> Result<Listed, ForwardError> {
        let mut table = self.table();
        if table.entries.len() >= MAX_FORWARDS {
            return Err(ForwardError::TooMany);
        }
        let same = |entry: &&u64| table.entries[entry].forward.collides(&forward);
        if let Some(&id) = table.entries.keys().find(same) {
            return Err(ForwardError::Taken {
                id,
                forward: table.entries[&id].forward.clone(),
            });
        }
        let stop = self.shared.stop.child_token();
        let (forward, counters, task) = match forward {
            Forward::Local(local) => self.start_local(local, stop.clone())?,
            Forward::Remote(remote) => self.start_remote(remote, stop.clone()),
        };
        debug!(%forward, "forward added");
        table.last += 1;
        let id = table.last;
        let entry = Entry {
            forward,
            counters,
            stop,
            task,
        };
        let listed = entry.listed(id);
        table.entries.insert(id, entry);
        Ok(listed)
    }

    /// Removes the forward of that number, and waits until it does not listen any more; its connections go on.
    ///
    /// # Errors
    ///
    /// There is none.
    pub async fn remove(&self, id: u64) -> Result<Listed, ForwardError> {
        let entry = self.table().entries.remove(&id);
        let entry = entry.ok_or(ForwardError::NoSuchId { id })?;
        let listed = entry.listed(id);
        debug!(forward = %entry.forward, "forward removed");
        entry.stop.cancel();
        if timeout(END, entry.task).await.is_err() {
            warn!(forward = %entry.forward, "a removed forward takes its time");
        }
        Ok(listed)
    }

    /// Finds the number of a forward.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn find(&self, forward: &Forward) -> Result<u64, ForwardError> {
        let table = self.table();
        let mut entries = table.entries.iter();
        let found = entries.find(|(_, entry)| entry.forward == *forward);
        let none = || ForwardError::NoSuchForward {
            forward: forward.clone(),
        };
        found.map(|(id, _)| *id).ok_or_else(none)
    }

    /// Lists them in the order in which they were added.
    pub fn list(&self) -> Vec<Listed> {
        let table = self.table();
        (table.entries.iter())
            .map(|(id, entry)| entry.listed(*id))
            .collect()
    }

    /// Counts the sockets of this host that they listen on.
    pub fn listening(&self) -> Listening {
        let mut sum = Listening::default();
        for entry in self.table().entries.values() {
            let Forward::Local(local) = &entry.forward else {
                continue;
            };
            if *entry.counters.state().borrow() != State::Listening {
                continue;
            }
            match local.listen {
                NearListen::Tcp(_) => sum.tcp += 1,
                NearListen::Udp(_) => sum.udp += 1,
                NearListen::Unix(_) => sum.unix += 1,
            }
        }
        sum
    }

    /// Waits until each of those there are listens or has failed to, but not for ever.
    pub async fn settled(&self) {
        let states: Vec<_> = {
            let table = self.table();
            let entries = table.entries.values();
            entries.map(|entry| entry.counters.state()).collect()
        };
        let settling = async {
            for mut state in states {
                // One that is gone meanwhile is not waited for.
                let _gone = state.wait_for(|state| *state != State::Waiting).await;
            }
        };
        if timeout(SETTLE, settling).await.is_err() {
            warn!("some forwards do not listen yet");
        }
    }

    fn start_local(
        &self,
        mut forward: LocalForward,
        stop: CancellationToken,
    ) -> Result<(Forward, Arc<Counters>, JoinHandle<()>), ForwardError> {
        let counters = Arc::new(Counters::new(State::Listening));
        let text = forward.host.to_string();
        let host = Host::parse(text.as_bytes())
            .map_err(|error| ForwardError::Host { host: text, error })?;
        let (resolver, port) = (self.shared.resolver.clone(), forward.port);
        let cannot = |address, forward: &LocalForward, error| ForwardError::Bind {
            address,
            forward: Forward::Local(forward.clone()),
            error,
        };
        let near = match &forward.listen {
            NearListen::Udp(address) => {
                let address = *address;
                let bound = bind_udp(address);
                let (socket, bound) = bound.map_err(|error| cannot(address, &forward, error))?;
                forward.listen = NearListen::Udp(bound);
                let through = (self.shared.tunnel.clone(), resolver);
                let counting = Arc::clone(&counters);
                let serving = datagrams::serve_local(socket, host, port, through, counting, stop);
                let task = visibly(serving, &counters);
                return Ok((Forward::Local(forward), counters, task));
            }
            NearListen::Tcp(address) => {
                let address = *address;
                let near = Near::tcp(address).map_err(|error| cannot(address, &forward, error))?;
                if let Some(bound) = near.address() {
                    forward.listen = NearListen::Tcp(bound);
                }
                near
            }
            NearListen::Unix(path) => {
                Near::Unix(Listener::bind(path).map_err(|error| ForwardError::Socket {
                    forward: Forward::Local(forward.clone()),
                    error,
                })?)
            }
        };
        let counting = Arc::clone(&counters);
        let serving = local::serve(near, host, port, resolver, counting, stop);
        let task = visibly(serving, &counters);
        Ok((Forward::Local(forward), counters, task))
    }

    fn start_remote(
        &self,
        forward: RemoteForward,
        stop: CancellationToken,
    ) -> (Forward, Arc<Counters>, JoinHandle<()>) {
        let counters = Arc::new(Counters::new(State::Waiting));
        let (tunnel, counting) = (self.shared.tunnel.clone(), Arc::clone(&counters));
        let port = forward.port;
        let task = match forward.target.clone() {
            NearTarget::Udp(host, near) => visibly(
                datagrams::serve_remote(port, host, near, tunnel, counting, stop),
                &counters,
            ),
            target @ (NearTarget::Tcp(..) | NearTarget::Unix(_)) => visibly(
                remote::serve(port, target, tunnel, counting, stop),
                &counters,
            ),
        };
        (Forward::Remote(forward), counters, task)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        (self.shared.table.lock()).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Entry {
    fn listed(&self, id: u64) -> Listed {
        Listed {
            id,
            forward: self.forward.to_string(),
            state: self.counters.state().borrow().clone(),
            counts: self.counters.counts(),
        }
    }
}

/// Spawns what serves a forward; a fault of it shows in the list and in the log.
fn visibly(
    serving: impl Future<Output = ()> + Send + 'static,
    counters: &Arc<Counters>,
) -> JoinHandle<()> {
    let counters = Arc::clone(counters);
    tokio::spawn(async move {
        if tokio::spawn(serving).await.is_err() {
            warn!("a forward ended by a panic");
            counters.set(State::Failed("ended by a fault of the client".to_owned()));
        }
    })
}

fn bind_udp(address: SocketAddr) -> io::Result<(UdpSocket, SocketAddr)> {
    let socket = StdUdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    let bound = socket.local_addr()?;
    Ok((UdpSocket::from_std(socket)?, bound))
}

/// What to do about a port that another program has.
const TAKEN: &str = "; another program listens there: choose another port";

/// How long the end of a forward may take: it has only sockets to close.
const END: Duration = Duration::from_secs(5);

/// How long a start waits for inner ports: the driver answers at once when there is a session.
const SETTLE: Duration = Duration::from_secs(5);
