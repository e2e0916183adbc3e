//! The sockets that a server listens on.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::accept::{self, MAX_STRANGERS};
use super::shared::Shared;
use crate::config::{Host, LaneAddr, ListenAddr, Scheme};
use crate::io::listen::{BindError, Listener, bind_datagrams};
use crate::io::udp::UdpIo;
use crate::status::{Counters, Port};

/// What lanes come in by.
#[derive(Debug)]
pub(super) enum Socket {
    /// Connections, and what lanes are on them.
    Stream(Arc<ListenAddr>, Arc<Listener>),
    /// Datagrams.
    Datagram(Arc<UdpIo>),
}

impl Socket {
    /// Where it listens.
    pub(super) fn port(&self) -> Port {
        match self {
            Self::Stream(_, listener) => Port {
                address: listener.local_addr(),
                datagrams: false,
            },
            Self::Datagram(io) => Port {
                address: io.local_addr(),
                datagrams: true,
            },
        }
    }

    pub(super) fn address(&self) -> LaneAddr {
        let (scheme, path, address) = match self {
            Self::Stream(at, listener) => (at.scheme, at.path.as_str(), listener.local_addr()),
            Self::Datagram(io) => (Scheme::Udp, "", io.local_addr()),
        };
        LaneAddr {
            scheme,
            host: Host::Ip(address.ip()),
            port: address.port(),
            path: path.to_owned(),
        }
    }
}

/// The sockets that a server listens on, for as long as they are open.
#[derive(Debug)]
pub struct Listening {
    streams: Vec<Weak<Listener>>,
    datagrams: Vec<Weak<UdpIo>>,
    has_admin: bool,
    has_control: bool,
}

impl Listening {
    pub(super) fn of(sockets: &[Socket], has_admin: bool, has_control: bool) -> Self {
        let (mut streams, mut datagrams) = (Vec::new(), Vec::new());
        for socket in sockets {
            match socket {
                Socket::Stream(_, listener) => streams.push(Arc::downgrade(listener)),
                Socket::Datagram(io) => datagrams.push(Arc::downgrade(io)),
            }
        }
        Self {
            streams,
            datagrams,
            has_admin,
            has_control,
        }
    }

    /// Adds what they have counted, and how many there are.
    pub(super) fn count(&self, counters: &mut Counters) {
        let (mut tcp, mut udp) = (usize::from(self.has_admin), 0);
        for listener in self.streams.iter().filter_map(Weak::upgrade) {
            counters.add("listen", &listener.stats());
            tcp += 1;
        }
        for io in self.datagrams.iter().filter_map(Weak::upgrade) {
            counters.add("datagram_sockets", &io.stats());
            udp += 1;
        }
        counters.count_now("listen", "tcp_now", tcp);
        counters.count_now("listen", "udp_now", udp);
        counters.count_now("listen", "unix_now", usize::from(self.has_control));
    }
}

pub(super) fn bind(listen: &[ListenAddr]) -> Result<Vec<Socket>, BindError> {
    let siblings = |datagrams: bool| -> Vec<SocketAddr> {
        let same = listen.iter().filter(|l| l.scheme.is_stream() != datagrams);
        same.map(|l| l.address).collect()
    };
    let (streams, datagrams) = (siblings(false), siblings(true));
    let bind = |l: &ListenAddr| match l.scheme {
        Scheme::Udp => Ok(Socket::Datagram(Arc::new(bind_datagrams(
            l.address, &datagrams,
        )?))),
        Scheme::Tcp | Scheme::Tls | Scheme::Wss | Scheme::Ws => Ok(Socket::Stream(
            Arc::new(l.clone()),
            Arc::new(Listener::bind(l.address, &streams)?),
        )),
    };
    listen.iter().map(bind).collect()
}

pub(super) async fn accept_all(
    shared: Arc<Shared>,
    at: Arc<ListenAddr>,
    listener: Arc<Listener>,
    strangers: Arc<Semaphore>,
    tasks: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept(&strangers) => accepted,
        };
        let Some(accepted) = accepted else { return };
        tasks.spawn(accept::serve(
            shared.clone(),
            at.clone(),
            accepted.stream,
            accepted.permit,
            strangers.available_permits() < MAX_STRANGERS / 2,
        ));
    }
}
