//! Answers questions: by records, lists and `split`, from the cache, or by asking.
//!
//! [`Dns::from_memory`] never waits; [`Dns::answer`] asks whoever the policy says if that has nothing. Of questions that
//! are the same one goes out, and all who ask meanwhile share its answer; when none of them waits any more, it is given
//! up.
//!
//! Where the server names other name servers than before, nothing of what the former ones say outlives that: what is kept
//! is forgotten, and what is still under way is told to those who wait for it, joined by nobody and not kept.

use std::collections::HashMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use thiserror::Error;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::answer::{BLOCKED, Kept, Made, Question, Reply};
use super::cache::{Cache, CacheLimits};
use super::domain::Domain;
use super::own::{MAX_ALIASES, Own};
use super::policy::{Decision, Policy, Special};
use super::stats::{DnsStats, count};
use super::upstream::Failure;
use super::upstreams::{Route, Upstreams};
use crate::client::down::Down;
use crate::client::tunnel::Tunnel;
use crate::config::{BlockedAnswer, DnsConfig, DnsUpstream, SplitTarget, StaticRecord};
use crate::io::clock;
use crate::io::outside::Outside;
use crate::io::tls::{ClientTlsError, origin_config};

/// Answers questions for the proxy and the local resolver; cheap to clone.
#[derive(Clone)]
pub struct Dns {
    shared: Arc<State>,
}

struct State {
    policy: RwLock<Policy>,
    blocked: BlockedAnswer,
    cache: Mutex<Cache>,
    under_way: Mutex<UnderWay>,
    upstreams: Upstreams,
    permits: Semaphore,
    prefetch: mpsc::Sender<(Question, Route)>,
    prefetches: Mutex<Option<mpsc::Receiver<(Question, Route)>>>,
    stats: DnsStats,
}

/// Questions that are being asked.
struct UnderWay {
    asked: HashMap<Question, Asked>,
    /// How many there may be before those that were given up are cleared away.
    sweep_at: usize,
}

/// One of them.
struct Asked {
    asking: WeakShared<Asking>,
    /// That of the cache when it began.
    generation: u64,
}

type Asking = BoxFuture<'static, Result<Arc<Kept>, Failure>>;

/// What is known of a question without asking.
struct Local {
    /// The aliases that lead from the question's name to what is asked.
    chain: Vec<Record>,
    end: End,
}

enum End {
    Made(Made),
    Ask(Question, Route),
}

/// What memory says of a question.
enum Remembered {
    Reply(Reply),
    Missing(Missing),
}

/// What must be asked, and the aliases that lead there.
struct Missing {
    chain: Vec<Record>,
    question: Question,
    route: Route,
}

impl Dns {
    /// Makes a resolver that asks through `tunnel` as `config` says, without any list yet.
    ///
    /// # Errors
    /// A name server is asked by TLS, and there are no authorities to check it by.
    pub fn new(config: &DnsConfig, tunnel: Tunnel) -> Result<Self, DnsError> {
        Self::leaving(config, tunnel, Outside::default())
    }

    /// The same for a host that goes through the tunnel itself: what is the system's to answer is asked as `outside` says.
    ///
    /// # Errors
    ///
    /// As [`Dns::new`].
    pub fn leaving(config: &DnsConfig, tunnel: Tunnel, outside: Outside) -> Result<Self, DnsError> {
        let encrypted = |upstream: &DnsUpstream| !matches!(upstream, DnsUpstream::Plain(_));
        let split = config.split.iter().any(|rule| match &rule.target {
            SplitTarget::System => false,
            SplitTarget::Upstream(upstream) => encrypted(upstream),
        });
        let tls = (split || config.upstream.iter().any(encrypted))
            .then(|| origin_config().map(Arc::new))
            .transpose()?;
        Ok(Self::over(config, tunnel, tls, outside))
    }

    /// Makes a resolver without records, lists or `split`: what the server names is asked.
    pub fn plain(tunnel: Tunnel) -> Self {
        Self::over(&DnsConfig::default(), tunnel, None, Outside::default())
    }

    pub(super) fn over(
        config: &DnsConfig,
        tunnel: Tunnel,
        tls: Option<Arc<rustls::ClientConfig>>,
        outside: Outside,
    ) -> Self {
        let policy = Policy::new(config);
        let (prefetch, prefetches) = mpsc::channel(PREFETCH_QUEUE);
        Self {
            shared: Arc::new(State {
                upstreams: Upstreams::new(tunnel, config, &policy, tls, outside),
                policy: RwLock::new(policy),
                blocked: config.blocked,
                cache: Mutex::new(Cache::new(CacheLimits::default())),
                under_way: Mutex::new(UnderWay {
                    asked: HashMap::new(),
                    sweep_at: 2 * MAX_ASKED,
                }),
                permits: Semaphore::new(MAX_ASKED),
                prefetch,
                prefetches: Mutex::new(Some(prefetches)),
                stats: DnsStats::default(),
            }),
        }
    }

    /// The policy as it is now.
    pub fn policy(&self) -> Policy {
        let policy = self.shared.policy.read();
        policy.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the policy.
    pub fn change_policy(&self, change: impl FnOnce(Policy) -> Policy) {
        let mut policy = (self.shared.policy.write()).unwrap_or_else(PoisonError::into_inner);
        *policy = change(policy.clone());
    }

    /// The counters.
    pub fn stats(&self) -> &DnsStats {
        &self.shared.stats
    }

    /// Tells what is known of a name without asking anybody; counted where that is an answer.
    pub fn own(&self, name: &Name) -> Own {
        let own = self.policy().own(name);
        let counter = match own {
            Own::Addresses(_) | Own::Never => &self.shared.stats.local,
            Own::Blocked => &self.shared.stats.blocked,
            Own::Alias(_) | Own::Nothing => return own,
        };
        count(&self.shared.stats.queries);
        count(counter);
        own
    }

    /// Answers what needs nobody else: what the policy itself answers, and what is kept.
    pub fn from_memory(&self, question: &Question) -> Option<Reply> {
        let local = self.local(question);
        match self.remembered(local) {
            Remembered::Reply(reply) => {
                count(&self.shared.stats.queries);
                Some(reply)
            }
            Remembered::Missing(_) => None,
        }
    }

    /// Answers, within [`ANSWER_LIMIT`]; what nobody answers is SERVFAIL.
    pub async fn answer(&self, question: &Question) -> Reply {
        let deadline = Instant::now() + ANSWER_LIMIT;
        match self.ask(question, deadline).await {
            Ok(reply) => reply,
            Err(failure) => {
                tracing::debug!(%failure, "a question has no answer");
                let made = Made::empty(ResponseCode::ServFail);
                let code = match failure {
                    Failure::TimedOut | Failure::NoNameServer | Failure::Loop => NO_AUTHORITY,
                    // It has never been up: that may come.
                    Failure::TunnelDown(Down::Connecting) => NOT_READY,
                    Failure::TunnelDown(_) => NETWORK_ERROR,
                    Failure::BadAnswer => OTHER_ERROR,
                };
                Reply::Made(Box::new(made.because(code, failure.to_string())))
            }
        }
    }

    /// Answers until `deadline`.
    ///
    /// # Errors
    /// Nobody has answered.
    pub async fn ask(&self, question: &Question, deadline: Instant) -> Result<Reply, Failure> {
        count(&self.shared.stats.queries);
        let local = self.local(question);
        let Missing {
            chain,
            question,
            route,
        } = match self.remembered(local) {
            Remembered::Reply(reply) => return Ok(reply),
            Remembered::Missing(missing) => missing,
        };
        if let Some(failure) = self.shared.upstreams.is_in_vain(route) {
            count(&self.shared.stats.failed);
            return Err(failure);
        }
        let asking = self.begin(&question, route);
        let kept = match timeout_at(deadline, asking).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(self.shared.upstreams.blame(route, Failure::TimedOut)),
        };
        match kept {
            Ok(kept) => Ok(chained(chain, Reply::Kept(kept, 0))),
            Err(failure) => {
                count(&self.shared.stats.failed);
                Err(failure)
            }
        }
    }

    /// Follows the records and the name servers that the server pushes, until `stop`. What is no record known here is left
    /// out.
    pub async fn follow_pushed(&self, tunnel: Tunnel, stop: CancellationToken) {
        let mut inner = tunnel.inner();
        let mut current = Vec::new();
        loop {
            let configured = inner.borrow_and_update().clone();
            if let Some(inner) = &configured {
                let changed = || {
                    lock(&self.shared.cache).clear();
                };
                self.shared.upstreams.follow(inner, changed);
            }
            let pushed = configured.map(|inner| inner.records);
            if let Some(pushed) = pushed.filter(|pushed| *pushed != current) {
                let records: Vec<StaticRecord> =
                    pushed.iter().filter_map(|text| text.parse().ok()).collect();
                let unknown = pushed.len() - records.len();
                tracing::debug!(records = records.len(), unknown, "records from the server");
                self.change_policy(|policy| policy.with_pushed(&records));
                current = pushed;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = inner.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }

    /// Asks anew for answers in use that are about to end, until `stop`.
    pub async fn prefetch(&self, stop: CancellationToken) {
        let waiting = lock(&self.shared.prefetches).take();
        let Some(mut waiting) = waiting else { return };
        let mut under_way = FuturesUnordered::new();
        loop {
            let room = under_way.len() < PREFETCHES;
            tokio::select! {
                () = stop.cancelled() => return,
                Some(()) = under_way.next(), if !under_way.is_empty() => {}
                next = waiting.recv(), if room => {
                    let Some((question, route)) = next else { return };
                    let asking = self.begin(&question, route);
                    count(&self.shared.stats.prefetched);
                    under_way.push(async move {
                        if asking.await.is_err() {
                            lock(&self.shared.cache).refresh_failed(&question);
                        }
                    });
                }
            }
        }
    }

    /// Decides what the policy says, following aliases that they have.
    fn local(&self, question: &Question) -> Local {
        let policy = self.policy();
        let mut question = question.clone();
        let mut chain = Vec::new();
        loop {
            let domain = Domain::new(&question.name);
            let (written, stats) = match policy.decide(&domain) {
                Decision::Static { written, .. } => (written, &self.shared.stats.local),
                Decision::Special(special) => {
                    count(&self.shared.stats.local);
                    let end = End::Made(special_answer(&question, special));
                    return Local { chain, end };
                }
                Decision::Blocked(listed) => {
                    count(&self.shared.stats.blocked);
                    let made = blocked_answer(&question, self.shared.blocked);
                    let end = End::Made(made.because(BLOCKED, listed.list));
                    return Local { chain, end };
                }
                Decision::Split { group, .. } => {
                    let end = End::Ask(question, Route::Split(group));
                    return Local { chain, end };
                }
                Decision::Upstream { .. } => {
                    let end = End::Ask(question, Route::Upstream);
                    return Local { chain, end };
                }
            };
            let record =
                |data: &RData| Record::from_rdata(question.name.clone(), STATIC_TTL, data.clone());
            let alias = written.records.iter().find_map(|data| {
                if let RData::CNAME(target) = data {
                    Some(&target.0)
                } else {
                    None
                }
            });
            if let Some(target) = alias
                && !matches!(question.kind, RecordType::CNAME | RecordType::ANY)
                && chain.len() < MAX_ALIASES
            {
                chain.extend(written.records.iter().map(record));
                question = Question {
                    name: target.to_lowercase(),
                    ..question
                };
                continue;
            }
            count(stats);
            let wanted = |data: &&RData| {
                question.kind == RecordType::ANY || data.record_type() == question.kind
            };
            let answers: Vec<Record> = written.records.iter().filter(wanted).map(record).collect();
            let mut made = Made::empty(ResponseCode::NoError);
            if answers.is_empty() {
                made.authorities.push(start_of_authority(&question.name));
            }
            made.answers = answers;
            let end = End::Made(made);
            return Local { chain, end };
        }
    }

    /// Completes what the policy says from the cache; what is missing where it has nothing.
    fn remembered(&self, local: Local) -> Remembered {
        match local.end {
            End::Made(made) => Remembered::Reply(chained(local.chain, Reply::Made(Box::new(made)))),
            End::Ask(question, route) => {
                let hit = lock(&self.shared.cache).find(&question, clock::now());
                let Some(hit) = hit else {
                    return Remembered::Missing(Missing {
                        chain: local.chain,
                        question,
                        route,
                    });
                };
                count(&self.shared.stats.cached);
                if hit.refresh
                    && let Err(error) = self.shared.prefetch.try_send((question, route))
                {
                    let (mpsc::error::TrySendError::Full((question, _))
                    | mpsc::error::TrySendError::Closed((question, _))) = error;
                    lock(&self.shared.cache).refresh_failed(&question);
                    count(&self.shared.stats.prefetch_dropped);
                }
                Remembered::Reply(chained(local.chain, Reply::Kept(hit.kept, hit.age)))
            }
        }
    }

    /// Asks an upstream, or joins those who wait for its answer.
    fn begin(&self, question: &Question, route: Route) -> Shared<Asking> {
        let generation = lock(&self.shared.cache).generation();
        let mut under_way = lock(&self.shared.under_way);
        let same = under_way.asked.get(question);
        if let Some(asking) = same
            .filter(|asked| asked.generation == generation)
            .and_then(|asked| asked.asking.upgrade())
        {
            count(&self.shared.stats.joined);
            return asking;
        }
        // What was given up is still listed: it is cleared away before it grows to anything, and the longer the list is, the
        // more rarely.
        if under_way.asked.len() >= under_way.sweep_at {
            let asked = &mut under_way.asked;
            asked.retain(|_, asked| asked.asking.upgrade().is_some());
            under_way.sweep_at = (2 * under_way.asked.len()).max(2 * MAX_ASKED);
        }
        let (state, asked) = (Arc::clone(&self.shared), question.clone());
        let asking = async move {
            let outcome = state.ask_upstream(&asked, route).await;
            let mut under_way = lock(&state.under_way);
            // A later generation may be asking in its place.
            let own = |other: &Asked| other.generation == generation;
            if under_way.asked.get(&asked).is_some_and(own) {
                under_way.asked.remove(&asked);
            }
            outcome
        };
        let asking = asking.boxed().shared();
        if let Some(weak) = asking.downgrade() {
            let asked = Asked {
                asking: weak,
                generation,
            };
            under_way.asked.insert(question.clone(), asked);
        }
        asking
    }
}

impl State {
    async fn ask_upstream(&self, question: &Question, route: Route) -> Result<Arc<Kept>, Failure> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        let Ok(Ok(_permit)) = timeout_at(deadline, self.permits.acquire()).await else {
            return Err(Failure::TimedOut);
        };
        count(&self.stats.asked);
        if route != Route::Upstream {
            count(&self.stats.split);
        }
        let generation = AtomicU64::new(lock(&self.cache).generation());
        // Whoever notices asks the new ones.
        let changed = || generation.store(lock(&self.cache).clear(), Ordering::Relaxed);
        let kept = self.upstreams.ask(route, question, deadline, changed);
        let kept = Arc::new(kept.await?);
        let mut cache = lock(&self.cache);
        if cache.generation() == generation.into_inner() {
            cache.insert(question.clone(), Arc::clone(&kept), clock::now());
        }
        Ok(kept)
    }
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dns")
            .field("stats", &self.shared.stats)
            .finish_non_exhaustive()
    }
}

/// Puts aliases in front of what they lead to.
fn chained(mut chain: Vec<Record>, reply: Reply) -> Reply {
    if chain.is_empty() {
        return reply;
    }
    let mut made = match reply {
        Reply::Made(made) => *made,
        kept @ Reply::Kept(..) => Made {
            answers: kept.answers(),
            authorities: kept.authorities(),
            ..Made::empty(kept.code())
        },
    };
    chain.append(&mut made.answers);
    made.answers = chain;
    Reply::Made(Box::new(made))
}

fn special_answer(question: &Question, special: Special) -> Made {
    let loopback = match (special, question.kind) {
        (Special::Invalid | Special::Onion, _) => {
            let mut made = Made::empty(ResponseCode::NXDomain);
            made.authorities.push(start_of_authority(&question.name));
            return made;
        }
        (Special::Localhost, RecordType::A) => Some(RData::A(A(Ipv4Addr::LOCALHOST))),
        (Special::Localhost, RecordType::AAAA) => Some(RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))),
        (Special::Localhost, _) => None,
    };
    addresses_only(question, loopback)
}

fn blocked_answer(question: &Question, answer: BlockedAnswer) -> Made {
    match (answer, question.kind) {
        (BlockedAnswer::NxDomain, _) => {
            let mut made = Made::empty(ResponseCode::NXDomain);
            made.authorities.push(start_of_authority(&question.name));
            made
        }
        (BlockedAnswer::Zero, RecordType::A) => {
            addresses_only(question, Some(RData::A(A(Ipv4Addr::UNSPECIFIED))))
        }
        (BlockedAnswer::Zero, RecordType::AAAA) => {
            addresses_only(question, Some(RData::AAAA(AAAA(Ipv6Addr::UNSPECIFIED))))
        }
        (BlockedAnswer::Zero, _) => addresses_only(question, None),
    }
}

fn addresses_only(question: &Question, address: Option<RData>) -> Made {
    let mut made = Made::empty(ResponseCode::NoError);
    match address {
        Some(data) => {
            let record = Record::from_rdata(question.name.clone(), STATIC_TTL, data);
            made.answers.push(record);
        }
        None => made.authorities.push(start_of_authority(&question.name)),
    }
    made
}

/// What lets those who asked remember that there is nothing (RFC 2308, section 3).
fn start_of_authority(name: &Name) -> Record {
    let nobody = || Name::from_ascii("nobody.invalid.").unwrap_or_default();
    let second = STATIC_TTL.cast_signed();
    let soa = SOA::new(nobody(), nobody(), 1, second, second, second, STATIC_TTL);
    Record::from_rdata(name.clone(), STATIC_TTL, RData::SOA(soa))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why there is no resolver.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DnsError {
    /// No certificate could be checked.
    #[error("dns: {0}")]
    Tls(#[from] ClientTlsError),
}

/// How long an answer may take, so long a question is held while the tunnel is down. Stub resolvers give up after 5 s
/// (resolv.conf(5)): they are told before.
pub const ANSWER_LIMIT: Duration = Duration::from_millis(4500);

/// Questions that upstreams are asked at a time; more wait. Each may take a port of the inner address.
pub const MAX_ASKED: usize = 200;

/// Prefetches that wait, and those under way.
const PREFETCH_QUEUE: usize = 256;
const PREFETCHES: usize = 16;

/// Seconds for which others may keep what is said here: lists and records change.
const STATIC_TTL: u32 = 60;

/// Extended errors (RFC 8914, section 4): Other, Not Ready, No Reachable Authority, Network Error.
const OTHER_ERROR: u16 = 0;
const NOT_READY: u16 = 14;
const NO_AUTHORITY: u16 = 22;
const NETWORK_ERROR: u16 = 23;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::proxy::fake::{FakeNet, NameAnswer, Session};

    /// Waits until a counter has come to `value`.
    async fn until(counter: impl Fn() -> u64, value: u64) {
        for _ in 0..1000 {
            if counter() == value {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the counter is {}, not {value}", counter());
    }

    #[tokio::test]
    async fn answer_in_use_is_asked_for_anew_and_takes_the_place_of_the_old_one() {
        let net = FakeNet::new().await;
        net.name("a.test", NameAnswer::of(&["192.0.2.1"]));
        let dns = Dns::plain(net.tunnel.clone());
        let stop = CancellationToken::new();
        let (prefetching, stopped) = (dns.clone(), stop.clone());
        let service = tokio::spawn(async move { prefetching.prefetch(stopped).await });
        let question = Question::new(&Name::from_ascii("a.test.").unwrap(), RecordType::A);
        dns.answer(&question).await;
        net.name("a.test", NameAnswer::of(&["192.0.2.2"]));
        let due = (question.clone(), Route::Upstream);
        dns.shared.prefetch.try_send(due).unwrap();
        until(|| dns.stats().asked.load(Ordering::Relaxed), 2).await;
        assert_eq!(dns.stats().prefetched.load(Ordering::Relaxed), 1);
        let newest = || {
            let reply = dns.from_memory(&question).unwrap();
            u64::from(reply.answers()[0].data.to_string() == "192.0.2.2")
        };
        until(newest, 1).await;
        stop.cancel();
        service.await.unwrap();
    }

    #[tokio::test]
    async fn records_that_the_server_pushes_are_followed_as_they_change() {
        let (inner, watched) = tokio::sync::watch::channel(None);
        let (tunnel, _commands) = crate::client::tunnel::tunnel(watched);
        let dns = Dns::plain(tunnel.clone());
        let stop = CancellationToken::new();
        let (following, stopped) = (dns.clone(), stop.clone());
        let service = tokio::spawn(async move { following.follow_pushed(tunnel, stopped).await });
        let question = Question::new(&Name::from_ascii("nas.test.").unwrap(), RecordType::A);
        for address in ["192.0.2.1", "192.0.2.2"] {
            let records = vec![
                format!("nas.test A {address}"),
                "nas.test NEWTYPE what a later server may push".to_owned(),
            ];
            inner.send_replace(Some(crate::wire::InnerConfig {
                records,
                ..crate::wire::InnerConfig::default()
            }));
            let followed = || {
                let reply = dns.from_memory(&question);
                let first = reply.and_then(|reply| reply.answers().first().cloned());
                u64::from(first.is_some_and(|record| record.data.to_string() == address))
            };
            until(followed, 1).await;
        }
        stop.cancel();
        service.await.unwrap();
    }

    #[tokio::test]
    async fn what_another_servers_name_server_said_is_forgotten() {
        let net = FakeNet::new().await;
        net.name("a.test", NameAnswer::of(&["192.0.2.1"]));
        let dns = Dns::plain(net.tunnel.clone());
        let question = |text: &str| Question::new(&Name::from_ascii(text).unwrap(), RecordType::A);
        dns.answer(&question("a.test.")).await;
        assert!(dns.from_memory(&question("a.test.")).is_some());
        net.configure(Session::WithoutNameServer);
        dns.answer(&question("b.test.")).await;
        assert!(dns.from_memory(&question("a.test.")).is_none());
    }

    #[tokio::test]
    async fn it_is_forgotten_before_anybody_asks() {
        let net = FakeNet::new().await;
        net.name("a.test", NameAnswer::of(&["192.0.2.1"]));
        let dns = Dns::plain(net.tunnel.clone());
        let (stop, tunnel) = (CancellationToken::new(), net.tunnel.clone());
        let (following, stopped) = (dns.clone(), stop.clone());
        let service = tokio::spawn(async move { following.follow_pushed(tunnel, stopped).await });
        let question = Question::new(&Name::from_ascii("a.test.").unwrap(), RecordType::A);
        dns.answer(&question).await;
        assert!(dns.from_memory(&question).is_some());
        net.configure(Session::WithoutNameServer);
        until(|| u64::from(dns.from_memory(&question).is_some()), 0).await;
        stop.cancel();
        service.await.unwrap();
    }

    #[tokio::test]
    async fn what_a_former_name_server_says_later_is_neither_joined_nor_kept() {
        let net = FakeNet::new().await;
        net.name("a.test", NameAnswer::Silent);
        let dns = Dns::plain(net.tunnel.clone());
        let question = |text: &str| Question::new(&Name::from_ascii(text).unwrap(), RecordType::A);
        let (asked, asking) = (question("a.test."), dns.clone());
        let former = tokio::spawn({
            let asked = asked.clone();
            async move { asking.answer(&asked).await }
        });
        until(|| u64::from(!net.asked().is_empty()), 1).await;
        net.configure(Session::WithoutNameServer);
        dns.answer(&question("b.test.")).await;
        // It is nobody's to answer now, though one still waits for the former one.
        let deadline = Instant::now() + ANSWER_LIMIT;
        let now = dns.ask(&asked, deadline).await;
        assert!(matches!(now, Err(Failure::NoNameServer)), "{now:?}");
        net.name("a.test", NameAnswer::of(&["192.0.2.1"]));
        let answer = former.await.unwrap().answers();
        assert_eq!(answer[0].data.to_string(), "192.0.2.1");
        assert!(dns.from_memory(&asked).is_none());
        assert!(lock(&dns.shared.under_way).asked.is_empty());
    }

    #[tokio::test]
    async fn it_is_forgotten_too_where_another_name_server_is_looked_up_first() {
        let net = FakeNet::new().await;
        net.name("a.test", NameAnswer::of(&["192.0.2.1"]));
        let config = DnsConfig {
            split: vec!["corp.test=tls://corp.example".parse().unwrap()],
            ..DnsConfig::default()
        };
        let dns = Dns::over(&config, net.tunnel.clone(), None, Outside::default());
        let question = |text: &str| Question::new(&Name::from_ascii(text).unwrap(), RecordType::A);
        dns.answer(&question("a.test.")).await;
        assert!(dns.from_memory(&question("a.test.")).is_some());
        net.configure(Session::WithoutNameServer);
        let nobody = dns.ask(&question("x.corp.test."), Instant::now()).await;
        assert!(nobody.is_err());
        assert!(dns.from_memory(&question("a.test.")).is_none());
    }

    #[tokio::test]
    async fn questions_that_were_given_up_are_cleared_away() {
        let net = FakeNet::new().await;
        let dns = Dns::plain(net.tunnel.clone());
        for number in 0..5 * MAX_ASKED {
            let name = Name::from_ascii(format!("n{number}.test.")).unwrap();
            drop(dns.begin(&Question::new(&name, RecordType::A), Route::Upstream));
        }
        assert!(lock(&dns.shared.under_way).asked.len() <= 2 * MAX_ASKED);
    }
}
