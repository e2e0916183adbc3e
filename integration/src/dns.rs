//! A small authoritative name server over UDP and TCP, for zones that a test makes up.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, TXT},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::oneshot,
};

use crate::namespaces::{Place, runtime};

/// The names a server knows.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    records: HashMap<Name, Vec<(u32, RData)>>,
}

/// Name and type of a question.
type Asked = (String, String);

/// A running name server.
#[derive(Debug)]
pub struct Dns {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Question>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// One question that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The name, lower case, without the last dot.
    pub name: String,
    /// The type: `A`, `AAAA`, …
    pub kind: String,
    /// Whom it came from.
    pub peer: SocketAddr,
    /// Whether it came over TCP.
    pub tcp: bool,
}

impl Zone {
    /// A zone without names.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an address.
    #[must_use]
    pub fn address(self, name: &str, ttl: u32, address: impl Into<IpAddr>) -> Self {
        match address.into() {
            IpAddr::V4(address) => self.record(name, ttl, RData::A(A(address))),
            IpAddr::V6(address) => self.record(name, ttl, RData::AAAA(AAAA(address))),
        }
    }

    /// Adds an alias; what it leads to is answered with it if it is in the zone.
    #[must_use]
    pub fn alias(self, name: &str, ttl: u32, target: &str) -> Self {
        self.record(name, ttl, RData::CNAME(CNAME(parse(target))))
    }

    /// Adds a text of strings; a long one makes an answer that does not fit a datagram.
    #[must_use]
    pub fn text(self, name: &str, ttl: u32, strings: Vec<String>) -> Self {
        self.record(name, ttl, RData::TXT(TXT::new(strings)))
    }

    fn record(mut self, name: &str, ttl: u32, data: RData) -> Self {
        self.records
            .entry(parse(name))
            .or_default()
            .push((ttl, data));
        self
    }

    /// Answers one query as it came off the wire; `None` if it is none.
    fn answer(&self, query: &[u8], tcp: bool) -> Option<(Option<Asked>, Vec<u8>)> {
        let query = Message::from_vec(query).ok()?;
        if query.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.metadata.authoritative = true;
        let room = query
            .edns
            .as_ref()
            .map_or(512, |edns| edns.max_payload().clamp(512, 1232));
        let limit = if tcp { u16::MAX } else { room };
        let mut asked = None;
        if query.metadata.op_code != OpCode::Query {
            answer.metadata.response_code = ResponseCode::NotImp;
        } else if let Some(question) = query.queries.first() {
            let mut name = question.name().to_lowercase();
            asked = Some((
                name.to_ascii().trim_end_matches('.').to_owned(),
                question.query_type().to_string(),
            ));
            answer.metadata.response_code = if self.records.contains_key(&name) {
                ResponseCode::NoError
            } else {
                ResponseCode::NXDomain
            };
            // aliases lead on at most this far
            for _ in 0..8 {
                let mut next = None;
                for (ttl, data) in self.records.get(&name).into_iter().flatten() {
                    let wanted = question.query_type();
                    if data.record_type() == wanted
                        || wanted == RecordType::ANY
                        || data.record_type() == RecordType::CNAME
                    {
                        answer.add_answer(Record::from_rdata(name.clone(), *ttl, data.clone()));
                    }
                    if let RData::CNAME(target) = data {
                        next = Some(target.0.clone());
                    }
                }
                match next {
                    Some(next) => name = next,
                    None => break,
                }
            }
            answer.add_query(question.clone());
        } else {
            answer.metadata.response_code = ResponseCode::FormErr;
        }
        let mut bytes = answer.to_vec().ok()?;
        if bytes.len() > usize::from(limit) {
            let mut short = answer.truncate();
            short.metadata.truncation = true;
            short.answers.clear();
            bytes = short.to_vec().ok()?;
        }
        Some((asked, bytes))
    }
}

impl Dns {
    /// Starts a name server for `zone` on `bind`, UDP and TCP.
    ///
    /// # Panics
    ///
    /// If the address cannot be bound.
    pub fn start(place: &Place, bind: SocketAddr, zone: Zone) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel::<()>();
        let (answer, bound) = std::sync::mpsc::channel();
        let log = Arc::clone(&asked);
        let thread = place.spawn(move || {
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime(), async move {
                let sockets = bind_both(bind).await;
                match sockets {
                    Ok((udp, tcp)) => {
                        let _ = answer.send(udp.local_addr());
                        let zone = Arc::new(zone);
                        tokio::select! {
                            () = serve_udp(udp, Arc::clone(&zone), Arc::clone(&log)) => {}
                            () = serve_tcp(tcp, zone, log) => {}
                            _ = stopped => {}
                        }
                    }
                    Err(error) => {
                        let _ = answer.send(Err(error));
                    }
                }
            });
        });
        let address = bound
            .recv()
            .expect("the name server's thread answers")
            .unwrap_or_else(|error| {
                panic!(
                    "a name server cannot listen on {bind} of {}: {error}",
                    place.name()
                )
            });
        Self {
            address,
            asked,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Where the name server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What has been asked so far, at most the first 10,000.
    pub fn asked(&self) -> Vec<Question> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Binds both to one port. Of any port, one that is free for datagrams may be somebody's for connections: another is
/// taken then.
async fn bind_both(bind: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut tries = if bind.port() == 0 { 20 } else { 1 };
    loop {
        let udp = UdpSocket::bind(bind).await?;
        tries -= 1;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => return Err(error),
        }
    }
}

async fn serve_udp(socket: UdpSocket, zone: Arc<Zone>, log: Arc<Mutex<Vec<Question>>>) {
    let mut buffer = vec![0; 4096];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        if let Some((asked, answer)) = zone.answer(&buffer[..length], false) {
            note(&log, asked, peer, false);
            let _ = socket.send_to(&answer, peer).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, zone: Arc<Zone>, log: Arc<Mutex<Vec<Question>>>) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let (zone, log) = (Arc::clone(&zone), Arc::clone(&log));
        tokio::task::spawn_local(async move {
            let _ = serve_stream(stream, peer, &zone, &log).await;
        });
    }
}

async fn serve_stream(
    mut stream: TcpStream,
    peer: SocketAddr,
    zone: &Zone,
    log: &Mutex<Vec<Question>>,
) -> io::Result<()> {
    loop {
        let mut query = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut query).await?;
        let Some((asked, answer)) = zone.answer(&query, true) else {
            return Ok(());
        };
        note(log, asked, peer, true);
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        stream
            .write_all(&[&length.to_be_bytes()[..], &answer].concat())
            .await?;
    }
}

fn note(log: &Mutex<Vec<Question>>, asked: Option<Asked>, peer: SocketAddr, tcp: bool) {
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    if log.len() < QUESTIONS_KEPT {
        log.extend(asked.into_iter().map(|(name, kind)| Question {
            name,
            kind,
            peer,
            tcp,
        }));
    }
}

fn parse(name: &str) -> Name {
    let mut name = Name::from_ascii(name)
        .expect("a test names hosts rightly")
        .to_lowercase();
    name.set_fqdn(true);
    name
}

/// More than any test asks.
const QUESTIONS_KEPT: usize = 10_000;
