//! Answers the DNS queries of clients through the host's resolver configuration.
//!
//! ```text
//!  client's query ─▶ check ─▶ one resolver for all: /etc/hosts ─▶ cache ─▶ upstreams ─▶ answer, cut to what
//!  (UDP or TCP)        └─▶ FORMERR, NOTIMP, REFUSED, or silence                          the client can take
//! ```
//!
//! The service has no socket toward clients: bytes come from the router and go back to it ([`DnsClient::answer_udp`]),
//! or through any stream ([`DnsClient::serve_stream`]). Names and types are the client's own, and searched as they
//! stand; NXDOMAIN and "no such record" keep the SOA that lets the client remember them (RFC 2308). What fails
//! upstream is SERVFAIL. A host without resolver configuration still answers from /etc/hosts.
//!
//! Bounded are the queries under way, of all and of each client, and the time of each; above, a datagram is dropped
//! and counted, and a stream waits.

mod upstreams;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, RecordType};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Semaphore, TryAcquireError};
use tokio::time::timeout;

use crate::io::clock;
use crate::proto::PublicKey;
use upstreams::Upstreams;

/// The resolver of a server, shared by all its clients.
pub struct DnsService {
    upstreams: Upstreams,
    permits: Semaphore,
    /// The shares of the clients that have a session.
    shares: Mutex<HashMap<PublicKey, Weak<Semaphore>>>,
    stats: DnsStats,
}

/// One client's share of the service.
#[derive(Clone)]
pub struct DnsClient {
    service: Arc<DnsService>,
    permits: Arc<Semaphore>,
}

/// What was asked and how it went; counted since the start.
#[derive(Debug, Default)]
pub struct DnsStats {
    /// Well-formed queries.
    pub queries: AtomicU64,
    /// Queries answered with SERVFAIL, since no upstream answered.
    pub failed: AtomicU64,
    /// Messages that were no query we answer: malformed, responses, or of another kind.
    pub refused: AtomicU64,
    /// Datagrams dropped since too many queries were under way.
    pub dropped_busy: AtomicU64,
    /// Streams closed since the peer broke the framing or was idle for too long.
    pub streams_closed: AtomicU64,
}

impl std::fmt::Debug for DnsService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsService")
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl DnsService {
    /// Makes the service from the host's configuration, as it changes, or from `upstreams` where there are any.
    ///
    /// A host without a usable /etc/resolv.conf is warned about, and served from /etc/hosts alone until it has one.
    ///
    /// # Errors
    /// The resolver cannot be made.
    pub fn new(upstreams: &[SocketAddr]) -> Result<Arc<Self>, DnsServiceError> {
        Upstreams::new(clock::now(), upstreams)
            .map(Self::over)
            .map_err(DnsServiceError::Resolver)
    }

    /// Hands out the share of the client with this key, one for all its sessions.
    pub fn client(self: &Arc<Self>, key: &PublicKey) -> DnsClient {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        shares.retain(|_, share| share.strong_count() > 0);
        let permits = shares.get(key).and_then(Weak::upgrade).unwrap_or_else(|| {
            let share = Arc::new(Semaphore::new(QUERIES_PER_CLIENT));
            shares.insert(*key, Arc::downgrade(&share));
            share
        });
        DnsClient {
            service: Arc::clone(self),
            permits,
        }
    }

    /// The counters.
    pub fn stats(&self) -> &DnsStats {
        &self.stats
    }

    fn over(upstreams: Upstreams) -> Arc<Self> {
        Arc::new(Self {
            upstreams,
            permits: Semaphore::new(QUERIES),
            shares: Mutex::new(HashMap::new()),
            stats: DnsStats::default(),
        })
    }

    /// Answers one query whatever the transport; `None` is silence.
    async fn answer(&self, message: &[u8]) -> Option<Answer> {
        let query = match Reading::of(message) {
            Reading::Lookup(query) => query,
            Reading::Refuse(answer) => {
                count(&self.stats.refused);
                return Some(answer);
            }
            Reading::Silence => {
                count(&self.stats.refused);
                return None;
            }
        };
        count(&self.stats.queries);
        let mut name = query.query.name().clone();
        // No search list: the client has one of its own.
        name.set_fqdn(true);
        let resolver = self.upstreams.resolver(clock::now());
        let lookup = timeout(
            ANSWER_TIMEOUT,
            resolver.lookup(name, query.query.query_type()),
        )
        .await;
        let mut response = query.response(ResponseCode::NoError);
        match lookup {
            Ok(Ok(lookup)) => {
                response.add_answers(lookup.answers().iter().cloned());
                response.add_authorities(lookup.authorities().iter().cloned());
                response.metadata.response_code = lookup.message().metadata.response_code;
            }
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => {
                response.metadata.response_code = none.response_code;
                match (none.authorities, none.soa) {
                    (Some(authorities), _) => response.add_authorities(authorities.iter().cloned()),
                    (None, Some(soa)) => response.add_authority(soa.into_record_of_rdata()),
                    (None, None) => &mut response,
                };
            }
            Ok(Err(NetError::Dns(DnsError::ResponseCode(code)))) => {
                response.metadata.response_code = code;
                if code == ResponseCode::ServFail {
                    count(&self.stats.failed);
                }
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "DNS lookup failed");
                response.metadata.response_code = ResponseCode::ServFail;
                count(&self.stats.failed);
            }
            Err(_elapsed) => {
                response.metadata.response_code = ResponseCode::ServFail;
                count(&self.stats.failed);
            }
        }
        Some(Answer {
            response,
            udp_limit: query.udp_limit,
        })
    }
}

impl DnsClient {
    /// Answers one query that came in a datagram; `None` where nothing is to be sent.
    ///
    /// The answer has at most as many bytes as the query allows, 512 without EDNS (RFC 1035, section 4.2.1), and
    /// never more than 1232; what does not fit is left out, with the bit set that makes the client ask by TCP.
    pub async fn answer_udp(&self, query: &[u8]) -> Option<Vec<u8>> {
        // Both are held until the answer is there.
        let (_own, _all) = match (
            self.permits.try_acquire(),
            self.service.permits.try_acquire(),
        ) {
            (Ok(own), Ok(all)) => (own, all),
            (Err(TryAcquireError::NoPermits | TryAcquireError::Closed), _)
            | (_, Err(TryAcquireError::NoPermits | TryAcquireError::Closed)) => {
                count(&self.service.stats.dropped_busy);
                return None;
            }
        };
        let answer = self.service.answer(query).await?;
        answer.encode(answer.udp_limit)
    }

    /// Answers the queries of one stream, each behind its length (RFC 7766, section 8), in the order in which the
    /// answers come, until the client closes it or is idle for 10 s.
    ///
    /// # Errors
    /// The stream fails.
    pub async fn serve_stream<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut stream: S,
    ) -> io::Result<()> {
        let mut received = Vec::with_capacity(STREAM_READ);
        let mut answers = FuturesUnordered::new();
        let mut open = true;
        while open || !answers.is_empty() {
            while answers.len() < QUERIES_PER_STREAM
                && let Some(query) = take_query(&mut received)
            {
                answers.push(self.answer_stream(query));
            }
            let room = open && answers.len() < QUERIES_PER_STREAM;
            let idle = answers.is_empty();
            tokio::select! {
                Some(answer) = answers.next(), if !idle => {
                    // A client that does not read its answers is as good as idle.
                    let Some(answer) = answer else { continue };
                    let written = timeout(STREAM_IDLE, stream.write_all(&answer)).await;
                    if !matches!(written, Ok(Ok(()))) {
                        break;
                    }
                }
                read = timeout(STREAM_IDLE, stream.read_buf(&mut received)), if room => match read {
                    Ok(Ok(0)) => open = false,
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return Err(error),
                    // An answer that is still under way keeps the stream open.
                    Err(_elapsed) if !idle => {}
                    Err(_elapsed) => break,
                }
            }
        }
        if open || !received.is_empty() {
            count(&self.service.stats.streams_closed);
        }
        match timeout(STREAM_IDLE, stream.shutdown()).await {
            Ok(result) => result,
            Err(_elapsed) => Ok(()),
        }
    }

    /// Answers one query of a stream, waiting for its turn.
    async fn answer_stream(&self, query: Vec<u8>) -> Option<Vec<u8>> {
        let _own = self.permits.acquire().await.ok()?;
        let _all = self.service.permits.acquire().await.ok()?;
        let body = self
            .service
            .answer(&query)
            .await?
            .encode(usize::from(u16::MAX))?;
        let len = u16::try_from(body.len()).ok()?;
        let mut framed = Vec::with_capacity(body.len() + 2);
        framed.extend_from_slice(&len.to_be_bytes());
        framed.extend_from_slice(&body);
        Some(framed)
    }
}

/// What a datagram is refused with, if it is refused: `None` inside where that cannot be written.
pub(crate) fn refusal(message: &[u8]) -> Option<Option<Vec<u8>>> {
    match Reading::of(message) {
        Reading::Refuse(answer) => Some(answer.encode(answer.udp_limit)),
        Reading::Lookup(_) | Reading::Silence => None,
    }
}

/// What a message asks of us.
enum Reading {
    /// A lookup.
    Lookup(Asked),
    /// An answer that needs none.
    Refuse(Answer),
    /// No answer.
    Silence,
}

/// A query that is to be answered by a lookup.
struct Asked {
    header: Message,
    query: Query,
    edns: bool,
    udp_limit: usize,
}

impl Reading {
    fn of(bytes: &[u8]) -> Self {
        let Ok(mut message) = Message::from_vec(bytes) else {
            return malformed(bytes);
        };
        // A response is never answered: two servers would talk to each other for ever.
        if message.metadata.message_type == MessageType::Response {
            return Self::Silence;
        }
        let offered = message
            .edns
            .as_ref()
            .map(|edns| usize::from(edns.max_payload()));
        let edns = offered.is_some();
        let udp_limit = offered
            .unwrap_or(0)
            .clamp(PLAIN_UDP, usize::from(UDP_PAYLOAD));
        let version = message.edns.as_ref().map_or(0, Edns::version);
        let queries = std::mem::take(&mut message.queries);
        if message.metadata.op_code != OpCode::Query {
            let response = response(&message, None, edns, ResponseCode::NotImp);
            return Self::Refuse(Answer {
                response,
                udp_limit,
            });
        }
        let Ok([query]) = <[Query; 1]>::try_from(queries) else {
            let response = response(&message, None, edns, ResponseCode::FormErr);
            return Self::Refuse(Answer {
                response,
                udp_limit,
            });
        };
        let wrong = if version > 0 {
            Some(ResponseCode::BADVERS)
        } else if query.query_class() != DNSClass::IN {
            Some(ResponseCode::Refused)
        } else {
            // Whole zones are not what a resolver hands out.
            matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR)
                .then_some(ResponseCode::Refused)
        };
        let asked = Asked {
            header: message,
            query,
            edns,
            udp_limit,
        };
        match wrong {
            Some(code) => Self::Refuse(Answer {
                response: asked.response(code),
                udp_limit,
            }),
            None => Self::Lookup(asked),
        }
    }
}

impl Asked {
    fn response(&self, code: ResponseCode) -> Message {
        response(&self.header, Some(&self.query), self.edns, code)
    }
}

/// A response, and how long it may be in a datagram.
struct Answer {
    response: Message,
    udp_limit: usize,
}

impl Answer {
    /// Writes the response in at most `limit` bytes, truncated where it is longer.
    fn encode(&self, limit: usize) -> Option<Vec<u8>> {
        match self.response.to_vec() {
            Ok(bytes) if bytes.len() <= limit => Some(bytes),
            // Too long, or longer than any message can be.
            Ok(_) | Err(_) => self
                .response
                .truncate()
                .to_vec()
                .ok()
                .filter(|bytes| bytes.len() <= limit),
        }
    }
}

/// Begins a response to `header`.
fn response(header: &Message, query: Option<&Query>, edns: bool, code: ResponseCode) -> Message {
    let mut response = Message::response(header.metadata.id, header.metadata.op_code);
    response.metadata.recursion_desired = header.metadata.recursion_desired;
    response.metadata.checking_disabled = header.metadata.checking_disabled;
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.queries.extend(query.cloned());
    if edns {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD)
            .set_version(0)
            .set_rcode_high(code.high());
        response.set_edns(edns);
    }
    response
}

/// FORMERR, where there is at least the header of a query to answer; else silence.
fn malformed(bytes: &[u8]) -> Reading {
    let Some([id_high, id_low, flags, ..]) = bytes.first_chunk::<12>() else {
        return Reading::Silence;
    };
    let is_response = flags & 0x80 != 0;
    if is_response {
        return Reading::Silence;
    }
    let op_code = OpCode::from_u8((flags >> 3) & 0x0f);
    let mut response = Message::response(u16::from_be_bytes([*id_high, *id_low]), op_code);
    response.metadata.recursion_desired = flags & 0x01 != 0;
    response.metadata.response_code = ResponseCode::FormErr;
    Reading::Refuse(Answer {
        response,
        udp_limit: PLAIN_UDP,
    })
}

/// Takes the first whole query out of what a stream has brought.
fn take_query(received: &mut Vec<u8>) -> Option<Vec<u8>> {
    let len = usize::from(u16::from_be_bytes(*received.first_chunk()?));
    if received.len() < len + 2 {
        return None;
    }
    let rest = received.split_off(len + 2);
    let mut query = std::mem::replace(received, rest);
    query.drain(..2);
    Some(query)
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Why the service cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DnsServiceError {
    /// The resolver refuses its configuration.
    #[error("cannot set up the DNS resolver: {0}")]
    Resolver(#[source] NetError),
}

/// Bytes of an answer in a datagram to a client without EDNS (RFC 1035, section 4.2.1).
const PLAIN_UDP: usize = 512;
/// Bytes of a datagram that pass every path unfragmented: 1280 less the headers of IPv6 and UDP.
pub(crate) const UDP_PAYLOAD: u16 = 1232;
/// Queries of all clients under way: each may hold a socket.
const QUERIES: usize = 512;
/// Queries of one client under way, over all its sessions: a page with many names, and no more than its share.
const QUERIES_PER_CLIENT: usize = 64;
/// Queries of one stream under way; the rest waits unread.
const QUERIES_PER_STREAM: usize = 16;
/// A stub resolver has given up by then, and has asked again (glibc waits 5 s, twice).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(9);
/// How long a stream may be without a query (RFC 7766, section 6.2.3: in the order of seconds).
const STREAM_IDLE: Duration = Duration::from_secs(10);
/// Bytes read of a stream at once: several queries.
const STREAM_READ: usize = 2048;

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::str::FromStr as _;

    use hickory_resolver::config::ResolverConfig;
    use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, SOA, TXT};
    use hickory_resolver::proto::rr::{Name, RData, Record};
    use proptest::prelude::*;
    use tokio::net::UdpSocket;

    use super::upstreams::Source;
    use super::*;

    fn key(client: u8) -> PublicKey {
        PublicKey::from_bytes([client; 32])
    }

    fn name(text: &str) -> Name {
        Name::from_str(text).expect("a name")
    }

    fn query(text: &str, kind: RecordType) -> Message {
        let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(name(text), kind));
        message
    }

    /// What the upstream of these tests says.
    fn upstream_answer(asked: &Message) -> Option<Message> {
        let query = asked.queries.first()?;
        let mut answer = response(asked, Some(query), true, ResponseCode::NoError);
        let host = query.name().clone();
        let record = |data| Record::from_rdata(host.clone(), 300, data);
        let soa = || {
            let data = SOA::new(
                name("ns.test."),
                name("admin.test."),
                7,
                3600,
                600,
                86_400,
                60,
            );
            Record::from_rdata(name("test."), 60, RData::SOA(data))
        };
        match (host.to_lowercase().to_string().as_str(), query.query_type()) {
            ("ok.test.", RecordType::A) => {
                answer.add_answer(record(RData::A(A(Ipv4Addr::new(192, 0, 2, 7)))));
            }
            ("ok.test.", RecordType::AAAA) => {
                answer.add_answer(record(RData::AAAA(AAAA(Ipv6Addr::new(
                    0x2001, 0xdb8, 0, 0, 0, 0, 0, 7,
                )))));
            }
            ("ok.test.", RecordType::TXT) => {
                answer.add_answer(record(RData::TXT(TXT::new(vec!["v=1".to_owned()]))));
            }
            ("alias.test.", RecordType::A) => {
                answer.add_answer(record(RData::CNAME(CNAME(name("ok.test.")))));
                answer.add_answer(Record::from_rdata(
                    name("ok.test."),
                    300,
                    RData::A(A(Ipv4Addr::new(192, 0, 2, 7))),
                ));
            }
            ("many.test.", RecordType::A) => {
                for last in 0..60 {
                    answer.add_answer(record(RData::A(A(Ipv4Addr::new(192, 0, 2, last)))));
                }
            }
            ("refused.test.", _) => answer.metadata.response_code = ResponseCode::Refused,
            ("ok.test." | "alias.test." | "many.test.", _) => {
                answer.add_authority(soa());
            }
            _ => {
                answer.metadata.response_code = ResponseCode::NXDomain;
                answer.add_authority(soa());
            }
        }
        Some(answer)
    }

    /// An upstream on loopback, and a client of a service that asks it.
    async fn client() -> (DnsClient, tokio::task::JoinHandle<()>) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a socket");
        let address = socket.local_addr().expect("an address");
        let upstream = tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
                let asked = buffer
                    .get(..len)
                    .and_then(|bytes| Message::from_vec(bytes).ok());
                if let Some(answer) = asked.as_ref().and_then(upstream_answer) {
                    let bytes = answer.to_vec().expect("encoded");
                    socket.send_to(&bytes, from).await.expect("sent");
                }
            }
        });
        (
            DnsService::new(&[address])
                .expect("a service")
                .client(&key(1)),
            upstream,
        )
    }

    async fn ask(client: &DnsClient, message: &Message) -> Message {
        let bytes = client
            .answer_udp(&message.to_vec().expect("encoded"))
            .await
            .expect("an answer");
        let answer = Message::from_vec(&bytes).expect("a message");
        assert_eq!(answer.metadata.id, message.metadata.id);
        assert_eq!(answer.metadata.message_type, MessageType::Response);
        assert_eq!(answer.queries, message.queries);
        answer
    }

    #[tokio::test]
    async fn records_of_any_type_are_passed_on() {
        let (client, _upstream) = client().await;
        let answer = ask(&client, &query("ok.test.", RecordType::A)).await;
        assert!(answer.metadata.recursion_available && answer.metadata.recursion_desired);
        assert!(answer.edns.is_none(), "the query had none");
        assert_eq!(
            answer.answers.first().map(|record| record.data.clone()),
            Some(RData::A(A(Ipv4Addr::new(192, 0, 2, 7))))
        );
        for kind in [RecordType::AAAA, RecordType::TXT] {
            let answer = ask(&client, &query("OK.Test.", kind)).await;
            assert_eq!(answer.answers.first().map(Record::record_type), Some(kind));
        }
        let answer = ask(&client, &query("alias.test.", RecordType::A)).await;
        let kinds: Vec<_> = answer.answers.iter().map(Record::record_type).collect();
        assert_eq!(kinds, [RecordType::CNAME, RecordType::A]);
    }

    #[tokio::test]
    async fn what_is_not_there_is_told_with_its_soa() {
        let (client, _upstream) = client().await;
        for (text, kind, code) in [
            ("none.test.", RecordType::A, ResponseCode::NXDomain),
            ("ok.test.", RecordType::MX, ResponseCode::NoError),
        ] {
            // From the upstream, then from the cache.
            for _ in 0..2 {
                let answer = ask(&client, &query(text, kind)).await;
                assert_eq!(answer.metadata.response_code, code, "{text}");
                assert!(answer.answers.is_empty());
                assert_eq!(
                    answer.authorities.first().map(Record::record_type),
                    Some(RecordType::SOA),
                    "{text}"
                );
            }
        }
        let answer = ask(&client, &query("refused.test.", RecordType::A)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    }

    #[tokio::test]
    async fn long_answers_are_cut_to_what_the_client_can_take() {
        let (client, _upstream) = client().await;
        let mut message = query("many.test.", RecordType::A);
        let bytes = client
            .answer_udp(&message.to_vec().expect("encoded"))
            .await
            .expect("an answer");
        assert!(bytes.len() <= PLAIN_UDP);
        let answer = Message::from_vec(&bytes).expect("a message");
        assert!(answer.metadata.truncation && answer.answers.is_empty());
        let mut edns = Edns::new();
        edns.set_max_payload(4096).set_version(0);
        message.set_edns(edns);
        let answer = ask(&client, &message).await;
        assert!(!answer.metadata.truncation);
        assert_eq!(answer.answers.len(), 60);
        assert_eq!(
            answer.edns.map(|edns| edns.max_payload()),
            Some(UDP_PAYLOAD)
        );
    }

    #[tokio::test]
    async fn streams_carry_whole_answers_to_queries_sent_at_once() {
        let (client, _upstream) = client().await;
        let (near, far) = tokio::io::duplex(256);
        let server = tokio::spawn(async move { client.serve_stream(far).await });
        let (mut read, mut write) = tokio::io::split(near);
        let asked = ["many.test.", "none.test.", "ok.test."];
        for (index, text) in asked.iter().enumerate() {
            let mut message = query(text, RecordType::A);
            message.metadata.id = u16::try_from(index).expect("small");
            let bytes = message.to_vec().expect("encoded");
            let len = u16::try_from(bytes.len()).expect("short");
            write.write_all(&len.to_be_bytes()).await.expect("written");
            write.write_all(&bytes).await.expect("written");
        }
        let mut counts = [None; 3];
        for _ in asked {
            let len = read.read_u16().await.expect("a length");
            let mut bytes = vec![0; usize::from(len)];
            read.read_exact(&mut bytes).await.expect("an answer");
            let answer = Message::from_vec(&bytes).expect("a message");
            let slot = counts
                .get_mut(usize::from(answer.metadata.id))
                .expect("an id of ours");
            assert_eq!(slot.replace(answer.answers.len()), None, "answered twice");
        }
        assert_eq!(counts, [Some(60), Some(0), Some(1)]);
        write.shutdown().await.expect("closed");
        drop((read, write));
        server.await.expect("no panic").expect("a clean end");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_stream_is_closed() {
        let service =
            DnsService::new(&[SocketAddr::from((Ipv4Addr::LOCALHOST, 9))]).expect("a service");
        let client = service.client(&key(1));
        let (mut near, far) = tokio::io::duplex(64);
        // Half a query, and no more.
        near.write_all(&[0, 40, 1]).await.expect("written");
        client.serve_stream(far).await.expect("a clean end");
        assert_eq!(service.stats().streams_closed.load(Ordering::Relaxed), 1);
        assert_eq!(near.read(&mut [0; 8]).await.expect("closed"), 0);
    }

    #[tokio::test]
    async fn without_upstream_the_answer_is_servfail_and_hosts_still_work() {
        let folder = tempfile::tempdir().expect("a folder");
        let hosts = folder.path().join("hosts");
        std::fs::write(&hosts, "192.0.2.99 printer.lan printer\n").expect("hosts");
        let nothing = Source::Given(ResolverConfig::from_parts(None, Vec::new(), Vec::new()));
        let upstreams = Upstreams::of(clock::now(), nothing, hosts).expect("upstreams");
        let service = DnsService::over(upstreams);
        let client = service.client(&key(1));
        let answer = ask(&client, &query("ok.test.", RecordType::A)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(service.stats().failed.load(Ordering::Relaxed), 1);
        let answer = ask(&client, &query("printer.lan.", RecordType::A)).await;
        assert_eq!(
            answer.answers.first().map(|record| record.data.clone()),
            Some(RData::A(A(Ipv4Addr::new(192, 0, 2, 99))))
        );
    }

    #[tokio::test]
    async fn what_is_no_query_of_ours_gets_its_code_or_silence() {
        let (client, _upstream) = client().await;
        let code = async |message: &Message| {
            let bytes = message.to_vec().expect("encoded");
            let answer = client.answer_udp(&bytes).await?;
            Some(
                Message::from_vec(&answer)
                    .expect("a message")
                    .metadata
                    .response_code,
            )
        };
        let good = query("ok.test.", RecordType::A);
        let mut reply = good.clone();
        reply.metadata.message_type = MessageType::Response;
        assert_eq!(code(&reply).await, None);
        let mut update = good.clone();
        update.metadata.op_code = OpCode::Update;
        assert_eq!(code(&update).await, Some(ResponseCode::NotImp));
        let mut none = good.clone();
        none.queries.clear();
        assert_eq!(code(&none).await, Some(ResponseCode::FormErr));
        let mut two = good.clone();
        two.add_query(Query::query(name("b.test."), RecordType::A));
        assert_eq!(code(&two).await, Some(ResponseCode::FormErr));
        let mut chaos = good.clone();
        chaos
            .queries
            .iter_mut()
            .for_each(|query| query.query_class = DNSClass::CH);
        assert_eq!(code(&chaos).await, Some(ResponseCode::Refused));
        assert_eq!(
            code(&query("test.", RecordType::AXFR)).await,
            Some(ResponseCode::Refused)
        );
        let mut future = good.clone();
        let mut edns = Edns::new();
        edns.set_version(1);
        future.set_edns(edns);
        // 16 is BADVERS here, and BADSIG where a signature is meant (RFC 6895, section 2.3).
        assert_eq!(code(&future).await.map(u16::from), Some(16));
        let mut cut = good.to_vec().expect("encoded");
        cut.truncate(20);
        let answer = client.answer_udp(&cut).await.expect("an answer");
        assert_eq!(answer, [0x12, 0x34, 0x81, 0x01, 0, 0, 0, 0, 0, 0, 0, 0]);
        cut.truncate(11);
        assert_eq!(client.answer_udp(&cut).await, None);
        assert_eq!(client.answer_udp(&[]).await, None);
    }

    #[tokio::test]
    async fn a_client_with_too_many_queries_under_way_loses_the_next_and_others_notice_nothing() {
        // An upstream that never answers.
        let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a socket");
        let service =
            DnsService::new(&[silent.local_addr().expect("an address")]).expect("a service");
        let (greedy, other) = (service.client(&key(1)), service.client(&key(2)));
        let held = greedy
            .permits
            .acquire_many(u32::try_from(QUERIES_PER_CLIENT).expect("small"))
            .await
            .expect("permits");
        let bytes = query("ok.test.", RecordType::AXFR)
            .to_vec()
            .expect("encoded");
        assert_eq!(greedy.answer_udp(&bytes).await, None);
        assert_eq!(service.stats().dropped_busy.load(Ordering::Relaxed), 1);
        assert!(other.answer_udp(&bytes).await.is_some());
        // Another session does not give a client more.
        assert_eq!(service.client(&key(1)).answer_udp(&bytes).await, None);
        drop(held);
        assert!(greedy.answer_udp(&bytes).await.is_some());
        drop((greedy, other));
        let _next = service.client(&key(3));
        assert_eq!(service.shares.lock().expect("no panic").len(), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(mut bytes in prop::collection::vec(any::<u8>(), 0..200), flip in any::<prop::sample::Index>(), bit in 0_u32..8) {
            if let Reading::Refuse(answer) = Reading::of(&bytes) {
                prop_assert!(answer.encode(answer.udp_limit).is_some_and(|bytes| bytes.len() <= 1232));
            }
            // One bit away from a good query.
            bytes = query("a.long.name.in.some.test.", RecordType::A).to_vec().expect("encoded");
            let index = flip.index(bytes.len());
            if let Some(byte) = bytes.get_mut(index) {
                *byte ^= 1_u8 << bit;
            }
            if let Reading::Refuse(answer) = Reading::of(&bytes) {
                prop_assert!(answer.encode(answer.udp_limit).is_some());
            }
        }
    }
}
