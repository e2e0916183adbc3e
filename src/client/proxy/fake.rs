//! A driver for tests: serves a [`Tunnel`] with sockets of the loopback interface.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::udp_header;
use crate::client::dns::Dns;
use crate::client::down::Down;
use crate::client::resolve::{Host, Resolver};
use crate::client::tunnel::{
    Attachment, Command, ConnectError, Datagram, HandleId, Lifeline, Tunnel, tunnel,
};

/// The name server that the fake session pushes.
pub(crate) const NAME_SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 86, 0, 1));

/// A fake network behind a tunnel.
pub(crate) struct FakeNet {
    pub(crate) tunnel: Tunnel,
    dns: Dns,
    pub(crate) resolver: Resolver,
    configure: Box<dyn Fn(Session) + Send + Sync>,
    state: Arc<Mutex<State>>,
    driver: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct State {
    /// Inner addresses and where they really are.
    routes: HashMap<SocketAddr, Route>,
    names: HashMap<String, NameAnswer>,
    /// What the name server was asked, in order.
    asked: Vec<(String, RecordType)>,
    /// What the driver was asked to connect to, in order.
    connects: Vec<SocketAddr>,
    waiting: HashSet<HandleId>,
    established: HashMap<HandleId, TcpStream>,
    attached: HashMap<HandleId, AbortHandle>,
    ports: HashMap<HandleId, mpsc::Sender<Datagram>>,
    relays: HashMap<HandleId, AbortHandle>,
    next_udp_is_lost: bool,
}

/// What the fake session has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Session {
    /// Nothing yet.
    Down,
    /// The one there was is silent, and what it said holds.
    Silent,
    /// Both families and a name server.
    Up,
    WithoutIpv6,
    WithoutNameServer,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Route {
    To(SocketAddr),
    Fails(ConnectError),
    /// Nobody ever answers.
    Silent,
}

#[derive(Clone, Debug)]
pub(crate) enum NameAnswer {
    Addresses {
        ttl: u32,
        addresses: Vec<IpAddr>,
    },
    Fails(ResponseCode),
    /// As addresses, but only TCP carries it.
    OnlyTcp(Vec<IpAddr>),
    Silent,
}

impl NameAnswer {
    pub(crate) fn of(addresses: &[&str]) -> Self {
        Self::Addresses {
            ttl: 60,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }
}

impl FakeNet {
    pub(crate) async fn new() -> Self {
        let (inner, watched) = watch::channel(None);
        let (tunnel, mut commands) = tunnel(watched);
        let telling = commands.telling();
        let configure = Box::new(move |session| {
            telling.send_replace(match session {
                Session::Down => Some(Down::Connecting),
                Session::Silent => Some(Down::Silent),
                Session::Up | Session::WithoutIpv6 | Session::WithoutNameServer => None,
            });
            inner.send_modify(|inner| match session {
                Session::Down => *inner = None,
                Session::Silent => {}
                Session::Up => {
                    let config = inner.get_or_insert_default();
                    config.v4 = Some((Ipv4Addr::new(10, 86, 0, 2), 24));
                    config.v6 = Some((Ipv6Addr::new(0xfd86, 0, 0, 0, 0, 0, 0, 2), 64));
                    config.dns = vec![NAME_SERVER];
                }
                Session::WithoutIpv6 => inner.get_or_insert_default().v6 = None,
                Session::WithoutNameServer => inner.get_or_insert_default().dns.clear(),
            });
        });
        configure(Session::Up);
        let state = Arc::new(Mutex::new(State::default()));
        let name_server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        state.lock().unwrap().routes.insert(
            SocketAddr::new(NAME_SERVER, 53),
            Route::To(name_server.local_addr().unwrap()),
        );
        let dns = Dns::plain(tunnel.clone());
        let resolver = Resolver::over(tunnel.clone(), dns.clone());
        let served = Arc::clone(&state);
        let driver = tokio::spawn(async move {
            tokio::spawn(serve_tcp_names(name_server, Arc::clone(&served)));
            while let Some(command) = commands.recv().await {
                handle(command, &served);
            }
        });
        Self {
            tunnel,
            dns,
            resolver,
            configure,
            state,
            driver,
        }
    }

    /// Changes what the session has.
    pub(crate) fn configure(&self, session: Session) {
        (self.configure)(session);
    }

    /// Puts records of the client's own file into force.
    pub(crate) fn records(&self, records: &[&str]) {
        let records: Vec<_> = records.iter().map(|text| text.parse().unwrap()).collect();
        (self.dns).change_policy(|policy| policy.with_records(&records));
    }

    /// Makes `inner` lead to `route`.
    pub(crate) fn route(&self, inner: &str, route: Route) {
        let inner = inner.parse().unwrap();
        self.state.lock().unwrap().routes.insert(inner, route);
    }

    pub(crate) fn name(&self, name: &str, answer: NameAnswer) {
        let name = name.to_owned();
        self.state.lock().unwrap().names.insert(name, answer);
    }

    pub(crate) fn lose_next_query(&self) {
        self.state.lock().unwrap().next_udp_is_lost = true;
    }

    /// What the name server was asked so far.
    pub(crate) fn asked(&self) -> Vec<(String, RecordType)> {
        self.state.lock().unwrap().asked.clone()
    }

    /// What was connected to so far, without the name server.
    pub(crate) fn connects(&self) -> Vec<SocketAddr> {
        let connects = &self.state.lock().unwrap().connects;
        let origins = connects.iter().filter(|to| to.ip() != NAME_SERVER);
        origins.copied().collect()
    }

    /// Waits until the driver holds nothing for anybody.
    pub(crate) async fn settled(&self) {
        for _ in 0..1000 {
            {
                let state = self.state.lock().unwrap();
                let attached = state.attached.values().any(|task| !task.is_finished());
                let relays = state.relays.values().any(|task| !task.is_finished());
                let idle = state.waiting.is_empty() && state.established.is_empty();
                if idle && state.ports.is_empty() && !attached && !relays {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let state = self.state.lock().unwrap();
        panic!(
            "the driver still holds: {} waiting, {} established, {} ports",
            state.waiting.len(),
            state.established.len(),
            state.ports.len()
        );
    }

    /// Ends the driver, as when the program's core has failed.
    pub(crate) fn end_driver(&self) {
        self.driver.abort();
    }
}

fn handle(command: Command, shared: &Arc<Mutex<State>>) {
    let mut state = shared.lock().unwrap();
    match command {
        Command::Connect {
            flow,
            remote,
            reply,
        } => {
            state.connects.push(remote);
            let route = state.routes.get(&remote).copied();
            // Loopback is itself; everything else is made up.
            let route = route.unwrap_or(if remote.ip().is_loopback() {
                Route::To(remote)
            } else {
                Route::Fails(ConnectError::NetworkUnreachable)
            });
            state.waiting.insert(flow);
            let shared = Arc::clone(shared);
            tokio::spawn(async move {
                let outcome = match route {
                    Route::Fails(error) => Err(error),
                    Route::To(real) => TcpStream::connect(real)
                        .await
                        .map_err(|_refused| ConnectError::Refused),
                    Route::Silent => {
                        while !reply.is_abandoned() {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                        Err(ConnectError::TimedOut)
                    }
                };
                let mut state = shared.lock().unwrap();
                if !state.waiting.remove(&flow) {
                    return;
                }
                reply.send(outcome.map(|stream| {
                    state.established.insert(flow, stream);
                }));
            });
        }
        Command::Attach {
            flow,
            attachment,
            early,
            judged: _,
        } => {
            let origin = state.established.remove(&flow).expect("attached once");
            let task = tokio::spawn(relay(origin, attachment, early));
            state.attached.insert(flow, task.abort_handle());
        }
        Command::Abort { flow } => {
            state.waiting.remove(&flow);
            state.established.remove(&flow);
            if let Some(task) = state.attached.remove(&flow) {
                task.abort();
            }
        }
        Command::BindUdp {
            port,
            inbound,
            reply,
            ..
        } => {
            state.ports.insert(port, inbound);
            reply.send(Ok(()));
        }
        Command::SendUdp {
            port,
            remote,
            payload,
        } => {
            assert_eq!(remote, SocketAddr::new(NAME_SERVER, 53));
            if std::mem::take(&mut state.next_udp_is_lost) {
                return;
            }
            let Some(answer) = answer_names(&mut state, &payload, true) else {
                return;
            };
            if let Some(inbound) = state.ports.get(&port) {
                let datagram = Datagram {
                    remote,
                    payload: answer,
                };
                inbound.try_send(datagram).unwrap();
            }
        }
        Command::UnbindUdp { port } => {
            state.ports.remove(&port).expect("unbound once");
        }
        Command::Associate {
            association,
            socket,
            client,
            rules: _,
            alive,
            reply,
        } => {
            let task = tokio::spawn(relay_udp(socket, client, alive));
            state.relays.insert(association, task.abort_handle());
            reply.send(Ok(()));
        }
        Command::Dissociate { association } => {
            let task = state.relays.remove(&association);
            task.expect("dissociated once").abort();
        }
        Command::JudgeAgain => {}
        Command::Resolved { .. } => panic!("the fake driver asks no names"),
        Command::Look { .. } => panic!("nobody looks at the fake driver"),
        Command::BindEcho { .. }
        | Command::Listen { .. }
        | Command::Unlisten { .. }
        | Command::Refuse { .. }
        | Command::Idle { .. } => {
            panic!("the proxy does not listen inside")
        }
    }
}

async fn relay(mut origin: TcpStream, attachment: Attachment, early: Vec<u8>) {
    if origin.write_all(&early).await.is_err() {
        return;
    }
    match attachment {
        Attachment::Tcp(mut socket) => {
            let _ = copy_bidirectional(&mut socket, &mut origin).await;
        }
        Attachment::Watched { .. } => panic!("the proxy watches no flow"),
        Attachment::Pipe(mut pipe) => {
            if let Err(error) = copy_bidirectional(&mut pipe, &mut origin).await {
                pipe.fail(error.kind());
            }
        }
    }
}

/// Relays to loopback destinations and back, one socket for all.
async fn relay_udp(socket: UdpSocket, client: IpAddr, _alive: Lifeline) {
    let outside = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut application = None;
    let (mut near, mut far) = ([0; 2048], [0; 2048]);
    loop {
        tokio::select! {
            Ok((len, from)) = socket.recv_from(&mut near) => {
                if from.ip() != client {
                    continue;
                }
                application = Some(from);
                let Ok((Host::Ip(ip), port, payload)) = udp_header::decode(&near[..len]) else {
                    continue;
                };
                outside.send_to(payload, (ip, port)).await.unwrap();
            }
            Ok((len, from)) = outside.recv_from(&mut far) => {
                let mut out = Vec::new();
                udp_header::encode(from, &mut out);
                out.extend_from_slice(&far[..len]);
                socket.send_to(&out, application.unwrap()).await.unwrap();
            }
        }
    }
}

async fn serve_tcp_names(listener: TcpListener, state: Arc<Mutex<State>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok(len) = stream.read_u16().await {
                let mut query = vec![0; usize::from(len)];
                stream.read_exact(&mut query).await.unwrap();
                let answer = answer_names(&mut state.lock().unwrap(), &query, false);
                if let Some(answer) = answer {
                    let len = u16::try_from(answer.len()).unwrap();
                    stream.write_u16(len).await.unwrap();
                    stream.write_all(&answer).await.unwrap();
                }
            }
        });
    }
}

fn answer_names(state: &mut State, query: &[u8], udp: bool) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).unwrap();
    let question = query.queries[0].clone();
    let name = question.name().to_lowercase().to_ascii();
    let name = name.trim_end_matches('.').to_owned();
    state.asked.push((name.clone(), question.query_type()));
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.add_query(question.clone());
    let (ttl, addresses) = match state.names.get(&name) {
        Some(NameAnswer::Silent) => return None,
        Some(NameAnswer::Fails(code)) => {
            answer.metadata.response_code = *code;
            (0, Vec::new())
        }
        Some(NameAnswer::Addresses { ttl, addresses }) => (*ttl, addresses.clone()),
        Some(NameAnswer::OnlyTcp(_)) if udp => {
            answer.metadata.truncation = true;
            (0, Vec::new())
        }
        Some(NameAnswer::OnlyTcp(addresses)) => (60, addresses.clone()),
        None => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            (0, Vec::new())
        }
    };
    for address in addresses {
        let data = match (address, question.query_type()) {
            (IpAddr::V4(ip), RecordType::A) => RData::A(A(ip)),
            (IpAddr::V6(ip), RecordType::AAAA) => RData::AAAA(AAAA(ip)),
            _ => continue,
        };
        answer.add_answer(Record::from_rdata(question.name().clone(), ttl, data));
    }
    if answer.answers.is_empty() {
        let soa = SOA::new(Name::root(), Name::root(), 1, 60, 60, 60, 60);
        answer.add_authority(Record::from_rdata(Name::root(), 60, RData::SOA(soa)));
    }
    Some(answer.to_vec().unwrap())
}
