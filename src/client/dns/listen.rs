//! The local resolver's sockets: UDP and TCP on one address.
//!
//! One task takes the datagrams, answers from memory what it can in the same turn, and waits for the rest itself; each
//! TCP connection has a task while it lasts, and as many questions at a time as RFC 7766 wants. What is under way is
//! bounded, of all and of each sender's address; beyond that datagrams are dropped and counted, as a full queue would drop
//! them, and streams wait unread.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use hickory_proto::op::ResponseCode;
use socket2::SockRef;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::answer::{BLOCKED, Made, Question, Reply};
use super::engine::Dns;
use super::stats::count;
use crate::client::ports;
use crate::client::rules::{InForce, Rules};
use crate::dns::{Asked, Reading, StreamEnd, serve_stream};

/// A local resolver that listens.
#[derive(Debug)]
pub struct LocalResolver {
    datagrams: UdpSocket,
    streams: TcpListener,
    address: SocketAddr,
}

/// What the bytes of a message ask for.
enum Told {
    /// This is the answer, or there is none.
    Now(Option<Vec<u8>>),
    /// It must be asked for.
    Ask(Box<Asked>),
}

impl LocalResolver {
    /// Binds `address`, UDP and TCP; port 0 takes one that is free for both.
    ///
    /// # Errors
    /// The address cannot be had.
    pub fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let bind = |source| ListenError { address, source };
        let streams = ports::listen(address).map_err(bind)?;
        let address = streams.local_addr().map_err(bind)?;
        let datagrams = datagrams(address).map_err(bind)?;
        Ok(Self {
            datagrams,
            streams,
            address,
        })
    }

    /// Returns where it listens, with the port it was given.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop`.
    pub async fn serve(self, dns: Dns, stop: CancellationToken) {
        tokio::join!(
            serve_datagrams(self.datagrams, &dns, &stop),
            serve_streams(self.streams, &dns, &stop),
        );
    }
}

/// Why there is no local resolver.
#[derive(Debug, Error)]
#[error(
    "cannot listen on {address} for dns: {source}{}",
    ports::hint(source, TAKEN)
)]
pub struct ListenError {
    /// The address.
    pub address: SocketAddr,
    /// What the system says.
    pub source: io::Error,
}

async fn serve_datagrams(socket: UdpSocket, dns: &Dns, stop: &CancellationToken) {
    let mut under_way = FuturesUnordered::new();
    let mut shares: HashMap<IpAddr, usize> = HashMap::new();
    let mut buffer = vec![0; MAX_QUERY];
    let no_rules = Rules::default();
    loop {
        let (length, from) = tokio::select! {
            () = stop.cancelled() => return,
            Some((sender, answer)) = under_way.next(), if !under_way.is_empty() => {
                let (sender, answer): (SocketAddr, Option<Vec<u8>>) = (sender, answer);
                give_back(&mut shares, sender.ip());
                send(&socket, dns, sender, answer).await;
                continue;
            }
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                // What a sender's host said of an answer: it is of no interest.
                Err(error) => {
                    debug!(%error, "receiving failed");
                    sleep(PAUSE).await;
                    continue;
                }
            },
        };
        match read(dns, buffer.get(..length).unwrap_or_default(), &no_rules) {
            Told::Now(answer) => send(&socket, dns, from, answer).await,
            Told::Ask(_) if under_way.len() >= MAX_DATAGRAMS => count(&dns.stats().dropped_busy),
            Told::Ask(asked) => {
                let share = shares.entry(from.ip()).or_default();
                if *share >= MAX_OF_SENDER {
                    count(&dns.stats().dropped_sender);
                    continue;
                }
                *share += 1;
                under_way.push(async move {
                    let reply = dns.answer(&Question::of(&asked)).await;
                    (from, reply.encode(&asked, asked.udp_limit))
                });
            }
        }
    }
}

fn give_back(shares: &mut HashMap<IpAddr, usize>, sender: IpAddr) {
    if let Some(share) = shares.get_mut(&sender) {
        *share -= 1;
        if *share == 0 {
            shares.remove(&sender);
        }
    }
}

async fn send(socket: &UdpSocket, dns: &Dns, to: SocketAddr, answer: Option<Vec<u8>>) {
    let Some(answer) = answer else { return };
    if let Err(error) = socket.send_to(&answer, to).await {
        debug!(%error, "an answer could not be sent");
        count(&dns.stats().unsent);
    }
}

/// Reads a message, and answers it where that needs nobody else.
fn read(dns: &Dns, message: &[u8], rules: &Rules) -> Told {
    match Reading::of(message) {
        Reading::Lookup(asked) => {
            let blocked = blocked(&asked, rules, dns);
            match blocked.or_else(|| dns.from_memory(&Question::of(&asked))) {
                Some(reply) => Told::Now(encoded(dns, reply.encode(&asked, asked.udp_limit))),
                None => Told::Ask(Box::new(asked)),
            }
        }
        Reading::Refuse(answer) => {
            count(&dns.stats().refused);
            Told::Now(answer.encode(answer.udp_limit))
        }
        Reading::Silence => {
            count(&dns.stats().refused);
            Told::Now(None)
        }
    }
}

/// The answer for a name that rules block.
fn blocked(asked: &Asked, rules: &Rules, dns: &Dns) -> Option<Reply> {
    if rules.is_empty() {
        return None;
    }
    let name = asked.query.name().to_lowercase().to_ascii();
    if !rules.blocks_name(name.trim_end_matches('.')) {
        return None;
    }
    count(&dns.stats().queries);
    count(&dns.stats().blocked);
    let made = Made::empty(ResponseCode::NXDomain);
    Some(Reply::Made(Box::new(
        made.because(BLOCKED, "a rule of this client"),
    )))
}

fn encoded(dns: &Dns, answer: Option<Vec<u8>>) -> Option<Vec<u8>> {
    if answer.is_none() {
        count(&dns.stats().unsent);
    }
    answer
}

async fn serve_streams(listener: TcpListener, dns: &Dns, stop: &CancellationToken) {
    let all = Arc::new(Semaphore::new(MAX_STREAMS));
    let mut tasks = JoinSet::new();
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            Some(done) = tasks.join_next() => {
                let done: Result<(), tokio::task::JoinError> = done;
                if done.is_err() {
                    warn!("a connection to the local resolver ended by a panic");
                }
                continue;
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    debug!(%error, "accept failed");
                    sleep(PAUSE).await;
                    continue;
                }
            },
        };
        match Arc::clone(&all).try_acquire_owned() {
            Ok(permit) => {
                let dns = dns.clone();
                tasks.spawn(async move {
                    converse(stream, &dns).await;
                    drop(permit);
                });
            }
            // The stream is dropped, which closes it.
            Err(_full) => count(&dns.stats().streams_refused),
        }
    }
    tasks.shutdown().await;
}

impl Dns {
    /// Answers a message as the local resolver does that has come as a datagram, but that names which `rules` block do not
    /// exist; `None` is no answer.
    pub(in crate::client) async fn answer_datagram(
        &self,
        message: &[u8],
        rules: &Rules,
    ) -> Option<Vec<u8>> {
        match read(self, message, rules) {
            Told::Now(answer) => answer,
            Told::Ask(asked) => {
                let reply = self.answer(&Question::of(&asked)).await;
                encoded(self, reply.encode(&asked, asked.udp_limit))
            }
        }
    }

    /// The same of what comes on a stream, until its end.
    pub(in crate::client) async fn serve_stream(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        rules: &InForce,
    ) {
        serve_messages(stream, self, rules).await;
    }
}

async fn converse(stream: TcpStream, dns: &Dns) {
    ports::prepare(&stream);
    serve_messages(stream, dns, &InForce::default()).await;
}

async fn serve_messages(stream: impl AsyncRead + AsyncWrite + Unpin, dns: &Dns, rules: &InForce) {
    let answer = |message: Vec<u8>| async move {
        let asked = match Reading::of(&message) {
            Reading::Lookup(asked) => asked,
            Reading::Refuse(answer) => {
                count(&dns.stats().refused);
                return answer.encode(MAX_MESSAGE);
            }
            Reading::Silence => {
                count(&dns.stats().refused);
                return None;
            }
        };
        let reply = match blocked(&asked, &rules.now(), dns) {
            Some(reply) => reply,
            None => dns.answer(&Question::of(&asked)).await,
        };
        encoded(dns, reply.encode(&asked, MAX_MESSAGE))
    };
    match serve_stream(stream, OF_STREAM, answer).await {
        Ok(StreamEnd::Closed) => {}
        Ok(StreamEnd::Cut) => count(&dns.stats().streams_closed),
        Err(error) => {
            debug!(%error, "a connection to the local resolver failed");
            count(&dns.stats().streams_closed);
        }
    }
}

fn datagrams(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    if let Err(error) = SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER) {
        debug!(%error, "the receive buffer stays as it was");
    }
    UdpSocket::from_std(socket)
}

/// What to do about a port that another program has.
const TAKEN: &str = "; another resolver, perhaps another client, listens there: stop it or set `dns` to another port";
/// Bytes of a query by UDP: a name has 255, and EDNS options are few.
const MAX_QUERY: usize = 4096;
/// Bytes of a message by TCP (RFC 1035, section 4.2.2).
const MAX_MESSAGE: usize = u16::MAX as usize;
/// Questions by UDP that wait for an upstream; each holds its query, a few hundred bytes.
pub const MAX_DATAGRAMS: usize = 4096;
/// Those of one address. On loopback all programs have the same.
pub const MAX_OF_SENDER: usize = 2048;
/// Connections at a time.
pub const MAX_STREAMS: usize = 128;
/// Questions of one connection that are answered at a time.
const OF_STREAM: usize = 64;
/// What the kernel keeps while we are busy: some thousand queries, where it lets us have it.
const RECEIVE_BUFFER: usize = 1 << 20;
/// How long a socket that fails rests: short enough to go unnoticed, long enough not to spin.
const PAUSE: Duration = Duration::from_millis(20);
