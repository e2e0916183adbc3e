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

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, RecordType};
use hickory_resolver::{Hosts, TokioResolver, system_conf};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Semaphore, TryAcquireError};
use tokio::time::timeout;

/// The resolver of a server, shared by all its clients.
pub struct DnsService {
    resolver: TokioResolver,
    permits: Semaphore,
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
    /// Makes the service from the host's configuration, or from `upstreams` where there are any.
    ///
    /// A host without a usable /etc/resolv.conf is warned about, and served from /etc/hosts alone.
    ///
    /// # Errors
    /// The resolver cannot be made.
    pub fn new(upstreams: &[SocketAddr]) -> Result<Arc<Self>, DnsServiceError> {
        let (config, options) = if upstreams.is_empty() {
            system_conf::read_system_conf().unwrap_or_else(|error| {
                tracing::warn!(%error, "no DNS resolver is configured on this host (/etc/resolv.conf): set `dns:`");
                (ResolverConfig::from_parts(None, Vec::new(), Vec::new()), ResolverOpts::default())
            })
        } else {
            (upstream_config(upstreams), ResolverOpts::default())
        };
        Self::build(config, options, None)
    }

    /// Hands out one client's share.
    pub fn client(self: &Arc<Self>) -> DnsClient {
        DnsClient {
            service: Arc::clone(self),
            permits: Arc::new(Semaphore::new(QUERIES_PER_CLIENT)),
        }
    }

    /// The counters.
    pub fn stats(&self) -> &DnsStats {
        &self.stats
    }

    fn build(
        config: ResolverConfig,
        mut options: ResolverOpts,
        hosts: Option<Hosts>,
    ) -> Result<Arc<Self>, DnsServiceError> {
        options.max_active_requests = QUERIES;
        options.edns_payload_len = UDP_PAYLOAD;
        options.preserve_intermediates = true;
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let mut resolver = builder.build().map_err(DnsServiceError::Resolver)?;
        if let Some(hosts) = hosts {
            resolver.set_hosts(Arc::new(hosts));
        }
        Ok(Arc::new(Self {
            resolver,
            permits: Semaphore::new(QUERIES),
            stats: DnsStats::default(),
        }))
    }

    /// Answers one query whatever the transport; `None` is silence.
    async fn answer(&self, message: &[u8]) -> Option<Answer> {
        let query = match Asked::read(message) {
            Ok(query) => query,
            Err(refused) => {
                count(&self.stats.refused);
                return refused;
            }
        };
        count(&self.stats.queries);
        let mut name = query.query.name().clone();
        // No search list: the client has one of its own.
        name.set_fqdn(true);
        let lookup = timeout(
            ANSWER_TIMEOUT,
            self.resolver.lookup(name, query.query.query_type()),
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

/// A query that is to be answered by a lookup.
struct Asked {
    header: Message,
    query: Query,
    edns: bool,
    udp_limit: usize,
}

impl Asked {
    /// Reads a message; the error is the answer to what is no such query, or `None` for silence.
    fn read(bytes: &[u8]) -> Result<Self, Option<Answer>> {
        let Ok(mut message) = Message::from_vec(bytes) else {
            return Err(malformed(bytes));
        };
        // A response is never answered: two servers would talk to each other for ever.
        if message.metadata.message_type == MessageType::Response {
            return Err(None);
        }
        let offered = message
            .edns
            .as_ref()
            .map(|edns| usize::from(edns.max_payload()));
        let udp_limit = offered
            .unwrap_or(0)
            .clamp(PLAIN_UDP, usize::from(UDP_PAYLOAD));
        let version = message.edns.as_ref().map_or(0, Edns::version);
        let queries = std::mem::take(&mut message.queries);
        let refuse = |code| {
            Err(Some(Answer {
                response: response(&message, None, offered.is_some(), code),
                udp_limit,
            }))
        };
        if message.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let Ok([query]) = <[Query; 1]>::try_from(queries) else {
            return refuse(ResponseCode::FormErr);
        };
        let asked = Self {
            header: message,
            query,
            edns: offered.is_some(),
            udp_limit,
        };
        let wrong = if version > 0 {
            Some(ResponseCode::BADVERS)
        } else if asked.query.query_class() != DNSClass::IN {
            Some(ResponseCode::Refused)
        } else {
            // Whole zones are not what a resolver hands out.
            matches!(
                asked.query.query_type(),
                RecordType::AXFR | RecordType::IXFR
            )
            .then_some(ResponseCode::Refused)
        };
        match wrong {
            Some(code) => Err(Some(Answer {
                response: asked.response(code),
                udp_limit,
            })),
            None => Ok(asked),
        }
    }

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
fn malformed(bytes: &[u8]) -> Option<Answer> {
    let header: &[u8; 12] = bytes.first_chunk()?;
    let [id_high, id_low, flags, ..] = *header;
    let is_response = flags & 0x80 != 0;
    if is_response {
        return None;
    }
    let op_code = OpCode::from_u8((flags >> 3) & 0x0f);
    let mut response = Message::response(u16::from_be_bytes([id_high, id_low]), op_code);
    response.metadata.recursion_desired = flags & 0x01 != 0;
    response.metadata.response_code = ResponseCode::FormErr;
    Some(Answer {
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

fn upstream_config(upstreams: &[SocketAddr]) -> ResolverConfig {
    let servers = upstreams
        .iter()
        .map(|upstream| {
            let on_port = |mut connection: ConnectionConfig| {
                connection.port = upstream.port();
                connection
            };
            let connections = vec![
                on_port(ConnectionConfig::udp()),
                on_port(ConnectionConfig::tcp()),
            ];
            NameServerConfig::new(upstream.ip(), true, connections)
        })
        .collect();
    ResolverConfig::from_parts(None, Vec::new(), servers)
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
const UDP_PAYLOAD: u16 = 1232;
/// Queries of all clients under way: each may hold a socket.
const QUERIES: usize = 512;
/// Queries of one client under way: a page with many names, and no more than its share.
const QUERIES_PER_CLIENT: usize = 64;
/// Queries of one stream under way; the rest waits unread.
const QUERIES_PER_STREAM: usize = 16;
/// A stub resolver has given up by then, and has asked again (glibc waits 5 s, twice).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(9);
/// How long a stream may be without a query (RFC 7766, section 6.2.3: in the order of seconds).
const STREAM_IDLE: Duration = Duration::from_secs(10);
/// Bytes read of a stream at once: several queries.
const STREAM_READ: usize = 2048;
