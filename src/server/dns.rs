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

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, TryAcquireError};
use tokio::time::timeout;

use crate::dns::{Answer, Reading, StreamEnd, serve_stream};
use crate::io::clock;
use crate::io::resolver::Upstreams;
use crate::proto::PublicKey;

/// The resolver of a server, shared by all its clients.
pub struct DnsService {
    upstreams: RwLock<Arc<Upstreams>>,
    permits: Semaphore,
    /// The shares of the clients that have a session.
    shares: Mutex<HashMap<PublicKey, Weak<Semaphore>>>,
    stats: DnsStats,
}

/// Upstreams that can be asked.
pub struct Prepared(Arc<Upstreams>);

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
        Upstreams::new(clock::now(), upstreams, QUERIES)
            .map(Self::over)
            .map_err(DnsServiceError::Resolver)
    }

    /// Makes ready to ask others: `upstreams`, or where there are none those of the host.
    ///
    /// # Errors
    /// The resolver cannot be made.
    pub fn prepare(&self, upstreams: &[SocketAddr]) -> Result<Prepared, DnsServiceError> {
        let upstreams = Upstreams::new(clock::now(), upstreams, QUERIES);
        let upstreams = upstreams.map_err(DnsServiceError::Resolver)?;
        Ok(Prepared(Arc::new(upstreams)))
    }

    /// Asks those from now on. Queries under way end with those that they began with.
    pub fn ask(&self, prepared: Prepared) {
        let mut upstreams = (self.upstreams.write()).unwrap_or_else(PoisonError::into_inner);
        *upstreams = prepared.0;
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
            upstreams: RwLock::new(Arc::new(upstreams)),
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
        let upstreams = Arc::clone(
            &self
                .upstreams
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let resolver = upstreams.resolver(clock::now());
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
        stream: S,
    ) -> io::Result<()> {
        let answer = |query| self.answer_stream(query);
        match serve_stream(stream, QUERIES_PER_STREAM, answer).await? {
            StreamEnd::Closed => {}
            StreamEnd::Cut => count(&self.service.stats.streams_closed),
        }
        Ok(())
    }

    /// Answers one query of a stream, waiting for its turn.
    async fn answer_stream(&self, query: Vec<u8>) -> Option<Vec<u8>> {
        let _own = self.permits.acquire().await.ok()?;
        let _all = self.service.permits.acquire().await.ok()?;
        self.service
            .answer(&query)
            .await?
            .encode(usize::from(u16::MAX))
    }
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

/// Queries of all clients under way: each may hold a socket.
const QUERIES: usize = 1024;
/// Queries of one client under way, over all its sessions: more than what its own resolver asks at a time, and no more
/// than its share.
const QUERIES_PER_CLIENT: usize = 256;
/// Queries of one stream under way; the rest waits unread.
const QUERIES_PER_STREAM: usize = 16;
/// A stub resolver has given up by then, and has asked again (glibc waits 5 s, twice).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(9);

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::str::FromStr as _;

    use hickory_resolver::config::ResolverConfig;
    use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query};
    use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, SOA, TXT};
    use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType};
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UdpSocket;

    use super::*;
    use crate::dns::{Asked, PLAIN_UDP, UDP_PAYLOAD};
    use crate::io::resolver::Source;

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
        let asked = Asked {
            header: asked.clone(),
            query: query.clone(),
            edns: true,
            udp_limit: PLAIN_UDP,
        };
        let mut answer = asked.response(ResponseCode::NoError);
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
        let upstreams = Upstreams::of(clock::now(), nothing, hosts, QUERIES).expect("upstreams");
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
