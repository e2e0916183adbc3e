//! Name servers and how they are asked.
//!
//! A [`Group`] is asked in the order of its list, beginning with whoever answered last, again and again until the deadline:
//! so a question outlives lost datagrams, a name server that is silent, and a tunnel that is back in time. Plain name
//! servers are asked by UDP from a port of their own each time, and by TCP for what was cut off or looks forged; where they
//! are not the server's own, the question is written in a random mixture of capitals that a forger would have to guess
//! (draft-vixie-dnsext-dns0x20). Connections of TCP, TLS and HTTPS carry many questions and are opened when one is asked.
//!
//! What a name server calls an error of its own (SERVFAIL, REFUSED) is its answer only where no other has a better one.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{DnsRequest, DnsRequestOptions, Edns, Message, ResponseCode};
use hickory_resolver::net::NetError;
use hickory_resolver::net::h2::HttpsClientStream;
use hickory_resolver::net::runtime::{RuntimeProvider, Spawn as _};
use hickory_resolver::net::tcp::TcpClientStream;
use hickory_resolver::net::tls::tls_client_connect;
use hickory_resolver::net::udp::UdpClientStream;
use hickory_resolver::net::xfer::{DnsExchange, DnsHandle as _, DnsMultiplexer, FirstAnswer as _};
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::answer::{Kept, Question, query};
use crate::client::down::Down;
use crate::client::resolve::tunnel_error;
use crate::client::tunnel::ConnectError;
use crate::config::DnsUpstream;
use crate::config::address::Host;
use crate::dns::UDP_PAYLOAD;

/// Name servers that are asked by the same network.
pub(super) struct Group<P: RuntimeProvider> {
    servers: Vec<Server<P>>,
    /// Who answered last.
    first: AtomicUsize,
}

/// Finds the addresses of name servers that are written by name.
pub(super) trait Bootstrap: Sync {
    /// Looks a name up, by other name servers than the one that bears it.
    fn find(&self, name: &str, deadline: Instant) -> impl Future<Output = Vec<IpAddr>> + Send;
}

/// How its members are reached.
#[derive(Clone)]
pub(super) struct Net<P> {
    /// The network.
    pub(super) provider: P,
    /// For those who speak TLS.
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
    /// Whether questions by UDP get their capitals mixed.
    pub(super) mixes_case: bool,
}

struct Server<P: RuntimeProvider> {
    upstream: DnsUpstream,
    net: Net<P>,
    datagrams: Mutex<Option<DnsExchange<P>>>,
    /// The lock is held while a connection is made, so that one is made for all.
    stream: AsyncMutex<Stream<P>>,
}

/// The connection to a name server, if there is one.
struct Stream<P: RuntimeProvider> {
    connection: Option<DnsExchange<P>>,
    /// How many have been made: whoever fails by a former one gives up no later one, which others wait on.
    made: u64,
}

/// A connection that a question is asked by.
struct Lent<P: RuntimeProvider> {
    connection: DnsExchange<P>,
    number: u64,
    /// Whether it was made for this question.
    fresh: bool,
}

/// Why a question has no answer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// Nobody has answered in time.
    #[error("no name server has answered in time")]
    TimedOut,
    /// The tunnel carries nothing now.
    #[error(transparent)]
    TunnelDown(Down),
    /// Nobody is there to be asked.
    #[error("there is no name server to ask")]
    NoNameServer,
    /// The connection to the name server, or its answer, is broken.
    #[error("the name server's answer was of no use")]
    BadAnswer,
    /// The host's resolvers are this very one.
    #[error("the host's resolver is this one, and would ask itself")]
    Loop,
}

impl<P: RuntimeProvider> Group<P> {
    pub(super) fn new(upstreams: impl IntoIterator<Item = DnsUpstream>, net: &Net<P>) -> Self {
        Self {
            servers: upstreams
                .into_iter()
                .map(|upstream| Server {
                    upstream,
                    net: net.clone(),
                    datagrams: Mutex::new(None),
                    stream: AsyncMutex::new(Stream {
                        connection: None,
                        made: 0,
                    }),
                })
                .collect(),
            first: AtomicUsize::new(0),
        }
    }

    /// Asks until there is an answer or the deadline has come.
    pub(super) async fn ask(
        &self,
        question: &Question,
        bootstrap: &impl Bootstrap,
        deadline: Instant,
    ) -> Result<Kept, Failure> {
        let mut outcome = Err(Failure::NoNameServer);
        if self.servers.is_empty() {
            return outcome;
        }
        loop {
            let first = self.first.load(Ordering::Relaxed);
            let round = Instant::now();
            for turn in 0..self.servers.len() {
                let index = (first + turn) % self.servers.len();
                let Some(server) = self.servers.get(index) else {
                    continue;
                };
                let limit = deadline.min(Instant::now() + server.attempt());
                match timeout_at(limit, server.ask(question, bootstrap, limit)).await {
                    Ok(Ok(kept)) if !is_own_fault(kept.code()) => {
                        self.first.store(index, Ordering::Relaxed);
                        return Ok(kept);
                    }
                    Ok(Ok(kept)) => outcome = Ok(kept),
                    Ok(Err(failure)) => outcome = outcome.or(Err(failure)),
                    Err(_elapsed) => outcome = outcome.or(Err(Failure::TimedOut)),
                }
                if Instant::now() >= deadline {
                    return outcome;
                }
            }
            // They have all said what they have to say.
            if outcome.is_ok() {
                return outcome;
            }
            sleep_until(deadline.min(round + LEAST_ROUND)).await;
            if Instant::now() >= deadline {
                return outcome;
            }
        }
    }
}

/// Whether the name server says that it, and not the name, is at fault.
fn is_own_fault(code: ResponseCode) -> bool {
    matches!(
        code,
        ResponseCode::ServFail
            | ResponseCode::Refused
            | ResponseCode::NotImp
            | ResponseCode::FormErr
    )
}

impl<P: RuntimeProvider> Server<P> {
    /// How long it may take before another is asked.
    fn attempt(&self) -> Duration {
        match self.upstream {
            DnsUpstream::Plain(_) => DATAGRAM_ATTEMPT,
            DnsUpstream::Tls { .. } | DnsUpstream::Https { .. } => STREAM_ATTEMPT,
        }
    }

    async fn ask(
        &self,
        question: &Question,
        bootstrap: &impl Bootstrap,
        limit: Instant,
    ) -> Result<Kept, Failure> {
        if let DnsUpstream::Plain(address) = self.upstream {
            match self.by_datagram(address, question).await {
                Ok(Some(kept)) => return Ok(kept),
                // Cut off, or written in other capitals than was asked.
                Ok(None) => {}
                Err(failure) => return Err(failure),
            }
        }
        // One that was closed meanwhile is not the name server's fault.
        let lent = self.connection(bootstrap, limit).await?;
        match self.by_stream(&lent, question).await {
            Err(_) if !lent.fresh => {
                let lent = self.connection(bootstrap, limit).await?;
                self.by_stream(&lent, question).await
            }
            outcome => outcome,
        }
    }

    /// `None` where a stream must be asked instead.
    async fn by_datagram(
        &self,
        address: SocketAddr,
        question: &Question,
    ) -> Result<Option<Kept>, Failure> {
        let exchange = {
            let mut datagrams = (self.datagrams.lock()).unwrap_or_else(PoisonError::into_inner);
            datagrams
                .get_or_insert_with(|| {
                    UdpClientStream::builder(address, self.net.provider.clone())
                        .with_timeout(Some(DATAGRAM_ATTEMPT))
                        .with_max_retries(2)
                        .exchange()
                })
                .clone()
        };
        let request = request(question, self.net.mixes_case);
        match exchange.send(request).first_answer().await {
            Ok(response) if response.metadata.truncation => Ok(None),
            Ok(response) => read(response.into_buffer(), question).map(Some),
            Err(NetError::QueryCaseMismatch) => Ok(None),
            Err(error) => {
                if !matches!(error, NetError::Timeout) {
                    *(self.datagrams.lock()).unwrap_or_else(PoisonError::into_inner) = None;
                }
                Err(failure(&error))
            }
        }
    }

    async fn by_stream(&self, lent: &Lent<P>, question: &Question) -> Result<Kept, Failure> {
        let asked = lent.connection.send(request(question, false));
        match asked.first_answer().await {
            Ok(response) => read(response.into_buffer(), question),
            Err(error) => {
                let mut current = self.stream.lock().await;
                if current.made == lent.number {
                    current.connection = None;
                }
                Err(failure(&error))
            }
        }
    }

    /// The connection that there is, or a new one.
    async fn connection(
        &self,
        bootstrap: &impl Bootstrap,
        limit: Instant,
    ) -> Result<Lent<P>, Failure> {
        let mut current = self.stream.lock().await;
        let (connection, fresh) = match &current.connection {
            Some(connection) => (connection.clone(), false),
            None => {
                let connection = self.connect(bootstrap, limit).await?;
                current.made += 1;
                current.connection = Some(connection.clone());
                (connection, true)
            }
        };
        let number = current.made;
        Ok(Lent {
            connection,
            number,
            fresh,
        })
    }

    async fn connect(
        &self,
        bootstrap: &impl Bootstrap,
        limit: Instant,
    ) -> Result<DnsExchange<P>, Failure> {
        let (host, port) = match &self.upstream {
            DnsUpstream::Plain(address) => (&Host::Ip(address.ip()), address.port()),
            DnsUpstream::Tls { host, port } | DnsUpstream::Https { host, port, .. } => {
                (host, *port)
            }
        };
        let addresses = match host {
            Host::Ip(address) => vec![*address],
            Host::Name(name) => bootstrap.find(name, limit).await,
        };
        let mut outcome = Err(Failure::NoNameServer);
        for address in addresses.into_iter().take(MAX_ADDRESSES) {
            outcome = self.connect_to(SocketAddr::new(address, port)).await;
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    async fn connect_to(&self, address: SocketAddr) -> Result<DnsExchange<P>, Failure> {
        let provider = self.net.provider.clone();
        let tls = || self.net.tls.clone().ok_or(Failure::BadAnswer);
        let connected = match &self.upstream {
            DnsUpstream::Plain(_) => {
                let most = Some(MAX_QUESTIONS);
                TcpClientStream::exchange(address, None, STREAM_ATTEMPT, most, provider).await
            }
            DnsUpstream::Tls { host, .. } => {
                let name = ServerName::try_from(certified(host)).map_err(|_| Failure::BadAnswer)?;
                // The library's own way leaves the name out of the handshake, which some providers serve users by.
                let (stream, sender) = tls_client_connect(address, name, tls()?, provider.clone());
                stream.await.map(|stream| {
                    let multiplexer = DnsMultiplexer::new(stream, sender)
                        .with_timeout(STREAM_ATTEMPT)
                        .with_max_active_requests(MAX_QUESTIONS);
                    let (exchange, driver) = DnsExchange::from_stream(multiplexer);
                    provider.create_handle().spawn_bg(driver);
                    exchange
                })
            }
            DnsUpstream::Https { host, path, .. } => {
                let mut builder = HttpsClientStream::builder(tls()?, provider);
                builder.request_timeout(STREAM_ATTEMPT);
                let name = certified(host);
                builder
                    .exchange(address, name.into(), path.as_str().into())
                    .await
            }
        };
        connected.map_err(|error| {
            // A certificate that does not hold, for one, is to be looked at.
            tracing::debug!(%error, "connection to a name server failed");
            failure(&error)
        })
    }
}

/// What the certificate of a name server must name.
fn certified(host: &Host) -> String {
    match host {
        Host::Ip(address) => address.to_string(),
        Host::Name(name) => name.clone(),
    }
}

/// Writes a question as an upstream is asked it.
fn request(question: &Question, mixes_case: bool) -> DnsRequest {
    let mut query = query(question);
    let original = mixes_case.then(|| query.clone());
    if mixes_case {
        query.name.randomize_label_case();
    }
    let mut message = Message::query();
    message.add_query(query);
    message.metadata.recursion_desired = true;
    // Asks to be told whether the answer is authentic (RFC 6840, section 5.7).
    message.metadata.authentic_data = true;
    message.metadata.checking_disabled = question.checking_disabled;
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD)
        .set_version(0)
        .set_dnssec_ok(question.dnssec_ok);
    message.set_edns(edns);
    let mut options = DnsRequestOptions::default();
    options.case_randomization = mixes_case;
    options.retry_interval = RETRY;
    DnsRequest::new(message, options).with_original_query(original)
}

fn read(bytes: Vec<u8>, question: &Question) -> Result<Kept, Failure> {
    Kept::read(bytes, question).map_err(|error| {
        tracing::debug!(%error, "a name server's answer is of no use");
        Failure::BadAnswer
    })
}

fn failure(error: &NetError) -> Failure {
    if matches!(error, NetError::Timeout) {
        return Failure::TimedOut;
    }
    let NetError::Io(error) = error else {
        return Failure::BadAnswer;
    };
    match tunnel_error(error) {
        Some(ConnectError::TunnelDown(down)) => Failure::TunnelDown(down),
        Some(ConnectError::TimedOut) => Failure::TimedOut,
        Some(_) | None if error.kind() == std::io::ErrorKind::TimedOut => Failure::TimedOut,
        Some(_) | None => Failure::BadAnswer,
    }
}

/// How long one name server may take by UDP, with a repetition after [`RETRY`]: three such attempts fit into what an
/// answer may take.
const DATAGRAM_ATTEMPT: Duration = Duration::from_millis(1400);
/// When a datagram is sent again, from another port.
const RETRY: Duration = Duration::from_millis(650);
/// How long one may take by a stream: a connection, TLS and a question are four round trips, of a satellite's 700 ms.
const STREAM_ATTEMPT: Duration = Duration::from_secs(3);
/// How long it takes at least to ask all of them, lest those who refuse at once be asked in a tight loop.
const LEAST_ROUND: Duration = Duration::from_millis(250);
/// Questions under way on one connection.
const MAX_QUESTIONS: usize = 512;
/// Addresses of a name server that are tried.
const MAX_ADDRESSES: usize = 3;

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{Name, RecordType};
    use tokio::net::TcpListener;

    use super::*;
    use crate::client::proxy::fake::{FakeNet, Route};
    use crate::client::resolve::TunnelRuntime;

    struct Nowhere;

    impl Bootstrap for Nowhere {
        async fn find(&self, _: &str, _: Instant) -> Vec<IpAddr> {
            Vec::new()
        }
    }

    #[tokio::test]
    async fn failure_by_a_former_connection_gives_up_no_later_one() {
        let net = FakeNet::new().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let real = listener.local_addr().unwrap();
        net.route("192.0.2.53:53", Route::To(real));
        let plain = DnsUpstream::Plain("192.0.2.53:53".parse().unwrap());
        let reached = Net {
            provider: TunnelRuntime::new(net.tunnel.clone()),
            tls: None,
            mixes_case: false,
        };
        let group = Group::new([plain], &reached);
        let server = &group.servers[0];
        let limit = Instant::now() + STREAM_ATTEMPT;
        let former = server.connection(&Nowhere, limit).await.ok().unwrap();
        let (theirs, _) = listener.accept().await.unwrap();
        // Somebody has found it broken, and made another.
        server.stream.lock().await.connection = None;
        let later = server.connection(&Nowhere, limit).await.ok().unwrap();
        let (_held, _) = listener.accept().await.unwrap();
        assert!(former.fresh && later.fresh);
        drop(theirs);
        let question = Question::new(&Name::from_ascii("a.test.").unwrap(), RecordType::A);
        server.by_stream(&former, &question).await.unwrap_err();
        let now = server.connection(&Nowhere, limit).await.ok().unwrap();
        assert!(!now.fresh && now.number == later.number);
    }
}
