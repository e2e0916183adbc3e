//! Leads a swarm through its phases and looks at the server meanwhile.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rand::RngExt as _;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::client::{Echoes, PATIENCE};
use super::member::{Member, News, Phase};
use super::report::{EchoReport, ServerReport, SwarmReport};
use crate::bench::meters;
use crate::bench::samples::Samples;
use crate::bench::server::{Plan, ServerFolder};
use crate::client::connect::Connector;
use crate::client::run::dialer;
use crate::config::{ClientConfig, LaneAddr, Scheme};
use crate::io::child::Adit;
use crate::io::clock;
use crate::io::dial::Dialer;
use crate::io::limits::raise_open_files;
use crate::io::pool::Pool;
use crate::io::tls::{ClientTls, Verify};
use crate::proto::{self, PresharedKey, PublicKey, SecretKey};

/// What a swarm is told.
#[derive(Debug)]
pub struct SwarmOptions {
    /// How many clients there are.
    pub clients: usize,
    /// Which server they go to.
    pub target: Target,
    /// How many of them connect at once.
    pub at_once: usize,
    /// For how long they send echoes.
    pub time: Duration,
    /// How far apart the echoes of a client are.
    pub every: Duration,
    /// For how long they keep quiet before the server's memory is read.
    pub idle: Duration,
}

/// Which server a swarm goes to.
#[derive(Debug)]
pub enum Target {
    /// One that is started for it on this host, reached by lanes of this kind.
    Own(Scheme),
    /// One that is there.
    There(Box<There>),
}

/// A server that is there, and what it knows the swarm by.
#[derive(Debug)]
pub struct There {
    /// How a client of it is configured.
    pub config: ClientConfig,
    /// Which of its servers is meant.
    pub server: LaneAddr,
    /// The keys of the clients, eight of whom share one.
    pub keys: Vec<SecretKey>,
}

/// Runs a swarm to its end, or until `stop`.
///
/// To be called by the thread that began the program.
///
/// # Errors
/// It cannot begin. What becomes of its clients is told by the report.
pub async fn run(options: SwarmOptions, stop: CancellationToken) -> anyhow::Result<SwarmReport> {
    check_descriptors(options.clients, raise_open_files())?;
    let (course, own) = tokio::select! {
        () = stop.cancelled() => bail!("interrupted before the beginning"),
        prepared = prepare(&options) => prepared?,
    };
    let mut swarm = Swarm::begin(&options, course, own);
    let report = tokio::select! {
        () = stop.cancelled() => Err(anyhow::anyhow!("interrupted before the end")),
        report = swarm.lead(&options) => report,
    };
    if let Some(own) = swarm.own.take() {
        own.server.stop().await;
    }
    report
}

/// Where the swarm goes, and with what.
struct Course {
    server: LaneAddr,
    server_key: PublicKey,
    keys: Vec<SecretKey>,
    psk: Option<PresharedKey>,
    dialer: Dialer,
    time: Duration,
}

/// A server that was started for the swarm.
struct Own {
    server: Adit,
    /// Deleted when the server is gone.
    _folder: ServerFolder,
}

async fn prepare(options: &SwarmOptions) -> anyhow::Result<(Course, Option<Own>)> {
    let scheme = match &options.target {
        Target::There(there) => {
            let most = there.keys.len() * INSTANCES;
            if options.clients > most {
                bail!(
                    "{} clients need {} keys, and there are {}: a server takes {INSTANCES} sessions of each; name \
                     more with --keys, or fewer --clients",
                    options.clients,
                    options.clients.div_ceil(INSTANCES),
                    there.keys.len(),
                );
            }
            let course = Course {
                server: there.server.clone(),
                server_key: there.config.server_key,
                keys: there.keys.clone(),
                psk: there.config.preshared_key.clone(),
                dialer: dialer(&there.config)?,
                time: there.config.connect_timeout,
            };
            return Ok((course, None));
        }
        Target::Own(scheme) => *scheme,
    };
    let generate = || SecretKey::generate(&mut rand::rng());
    let key = generate();
    let keys: Vec<_> = (0..options.clients.div_ceil(INSTANCES))
        .map(|_| generate())
        .collect();
    let publics: Vec<_> = keys.iter().map(SecretKey::public).collect();
    let folder = ServerFolder::new(Plan {
        scheme,
        key: &key,
        clients: &publics,
        sessions: options.clients,
    })?;
    let mut server = Adit::start("the server", folder.arguments())?;
    let said = server.ready(START_PATIENCE).await?;
    let address = said.strip_prefix("listening on ").unwrap_or(&said);
    let course = Course {
        server: address
            .parse()
            .with_context(|| format!("the server says `{said}`"))?,
        server_key: key.public(),
        keys,
        psk: None,
        dialer: Dialer::new(ClientTls::new(&Verify::Unchecked)?),
        time: CONNECT_PATIENCE,
    };
    let own = Own {
        server,
        _folder: folder,
    };
    Ok((course, Some(own)))
}

/// A swarm under way.
struct Swarm {
    course: Course,
    own: Option<Own>,
    phase: watch::Sender<Phase>,
    news: mpsc::Receiver<News>,
    members: JoinSet<()>,
    echoes: Arc<Echoes>,
    tally: Tally,
}

/// What the members have told.
#[derive(Debug, Default)]
struct Tally {
    connected: usize,
    missing: usize,
    served: usize,
    lost: usize,
    retried: u64,
    failures: BTreeMap<String, u64>,
    took: Samples,
}

/// What the server had used at a time.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    cpu: Duration,
    resident: u64,
}

impl Swarm {
    /// Starts all members; they wait at the gate.
    fn begin(options: &SwarmOptions, course: Course, own: Option<Own>) -> Self {
        let (phase, watched) = watch::channel(Phase::Connect);
        let (tell, news) = mpsc::channel(NEWS);
        let echoes = Arc::new(Echoes::default());
        let gate = Arc::new(Semaphore::new(options.at_once));
        let pool = Pool::new("swarm", POOL_SMALL, POOL_LARGE);
        let mut members = JoinSet::new();
        for number in 0..options.clients {
            let secret = course.keys[number / INSTANCES].clone();
            let instance = rand::rng().random();
            let mut handshake = proto::ClientConfig::new(secret, course.server_key, instance);
            handshake.psk = course.psk.clone();
            let connector = Connector {
                servers: vec![course.server.clone()],
                dialer: course.dialer.clone(),
                handshake,
                time: course.time,
                lanes: 1,
                source: own.as_ref().map(|_| address_of(number)),
                doubted: Arc::default(),
                pool: pool.clone(),
            };
            let member = Member {
                connector: Arc::new(connector),
                server: course.server.clone(),
                gate: gate.clone(),
                phase: watched.clone(),
                news: tell.clone(),
                echoes: echoes.clone(),
                every: options.every,
                // Evenly over the span: a swarm is no drum.
                offset: options
                    .every
                    .mul_f64(number as f64 / options.clients as f64),
            };
            members.spawn(member.live());
        }
        Self {
            course,
            own,
            phase,
            news,
            members,
            echoes,
            tally: Tally::default(),
        }
    }

    async fn lead(&mut self, options: &SwarmOptions) -> anyhow::Result<SwarmReport> {
        let (fresh, began) = (self.read()?, clock::now());
        info!(clients = options.clients, server = %self.course.server, "connecting");
        let last = self.connect(options.clients).await;
        let connected = self.read()?;
        let (mut busy, mut idle) = (connected, connected);
        // Where nobody is, there is nothing to wait for.
        if self.tally.connected > 0 {
            info!(connected = self.tally.connected, "sending echoes");
            self.phase.send_replace(Phase::Traffic);
            self.listen(sleep(options.time)).await;
            // A client that waits for its turn on a busy machine is not one that is not served.
            let _ = timeout(SERVED_PATIENCE, self.listen_until_served()).await;
            self.phase.send_replace(Phase::Rest);
            busy = self.read()?;
            info!("keeping quiet");
            // Echoes that are under way have their time at least.
            self.listen(sleep(options.idle.max(PATIENCE))).await;
            idle = self.read()?;
        }
        self.phase.send_replace(Phase::End);
        let _ = timeout(END_PATIENCE, self.listen_to_all()).await;
        let server =
            fresh
                .zip(connected)
                .zip(busy.zip(idle))
                .map(|((fresh, connected), (busy, idle))| {
                    self.server_report([fresh, connected, busy, idle])
                });
        Ok(self.report(options, last.map(|last| last - began), server))
    }

    /// Waits until every member is there or missing; returns when the last that is there came.
    async fn connect(&mut self, clients: usize) -> Option<Instant> {
        let mut last = None;
        while self.tally.connected + self.tally.missing < clients {
            let Some(news) = self.news.recv().await else {
                break;
            };
            if let News::Connected { .. } = news {
                last = Some(clock::now());
            }
            self.tally.add(news);
        }
        last
    }

    /// Hears the news until `over`.
    async fn listen(&mut self, over: impl Future<Output = ()>) {
        let mut over = std::pin::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return,
                Some(news) = self.news.recv() => self.tally.add(news),
            }
        }
    }

    /// Hears the news until every member that is there was served.
    async fn listen_until_served(&mut self) {
        while self.tally.served + self.tally.lost < self.tally.connected
            && let Some(news) = self.news.recv().await
        {
            self.tally.add(news);
        }
    }

    /// Hears the news until every member has gone.
    async fn listen_to_all(&mut self) {
        loop {
            tokio::select! {
                joined = self.members.join_next() => if joined.is_none() {
                    return;
                },
                Some(news) = self.news.recv() => self.tally.add(news),
            }
        }
    }

    /// Looks at the server, if it is ours.
    fn read(&mut self) -> anyhow::Result<Option<Reading>> {
        let Some(own) = self.own.as_mut() else {
            return Ok(None);
        };
        if let Some(status) = own.server.has_ended() {
            bail!("the server has ended with {status}; what it said stands above");
        }
        let process = own.server.id();
        Ok(Some(Reading {
            at: clock::now(),
            cpu: meters::cpu(process).context("cannot read the server's CPU time")?,
            resident: meters::resident(process).context("cannot read the server's memory")?,
        }))
    }

    fn server_report(&self, [fresh, connected, busy, idle]: [Reading; 4]) -> ServerReport {
        let there = self.tally.connected.max(1) as f64;
        let handshakes = (connected.cpu - fresh.cpu).as_secs_f64();
        let more = idle.resident.saturating_sub(fresh.resident);
        ServerReport {
            cpu_ms_per_handshake: handshakes / there * 1e3,
            handshakes_per_cpu_second: (handshakes > 0.0).then(|| there / handshakes),
            cpu_share_of_traffic: share(&connected, &busy),
            cpu_share_when_idle: share(&busy, &idle),
            resident_bytes_at_start: fresh.resident,
            resident_bytes_connected: connected.resident,
            resident_bytes_idle: idle.resident,
            idle_bytes_per_client: more as f64 / there,
        }
    }

    fn report(
        &mut self,
        options: &SwarmOptions,
        connecting: Option<Duration>,
        server: Option<ServerReport>,
    ) -> SwarmReport {
        let tally = std::mem::take(&mut self.tally);
        let answered = self.echoes.answered().quantiles();
        let sent = self.echoes.sent.load(Relaxed);
        let took = connecting.map(|took| took.as_secs_f64());
        SwarmReport {
            lane: self.course.server.scheme.as_str(),
            clients: options.clients,
            connected: tally.connected,
            served: tally.served,
            sessions_lost: tally.lost,
            attempts_failed: tally.retried + tally.missing as u64,
            failures: tally.failures,
            handshakes_per_second: took
                .filter(|took| *took > 0.0)
                .map(|took| tally.connected as f64 / took),
            handshake: tally.took.quantiles(),
            echo: EchoReport {
                sent,
                lost: sent.saturating_sub(answered.samples),
                held_back: self.echoes.held.load(Relaxed),
                round_trip: answered,
            },
            server,
        }
    }
}

impl Tally {
    fn add(&mut self, news: News) {
        let cause = match news {
            News::Connected { took } => {
                self.connected += 1;
                self.took.add(took);
                return;
            }
            News::Served => {
                self.served += 1;
                return;
            }
            News::Again(cause) => {
                self.retried += 1;
                cause
            }
            News::Missing(cause) => {
                self.missing += 1;
                cause
            }
            News::Lost(cause) => {
                self.lost += 1;
                cause
            }
        };
        if self.failures.len() < CAUSES || self.failures.contains_key(&cause) {
            *self.failures.entry(cause).or_default() += 1;
        }
    }
}

/// An address of this host for each client: a server under load takes few handshakes over datagrams from one address, and
/// clients of one address are not what it is about.
fn address_of(number: usize) -> IpAddr {
    let [.., high, low] = (number as u32).to_be_bytes();
    // All of 127.0.0.0/8 is loopback (RFC 1122, section 3.2.1.3), and 127.1 has no broadcast address.
    Ipv4Addr::new(127, 1, high, low).into()
}

/// How much of one core was used between two readings.
fn share(from: &Reading, to: &Reading) -> Option<f64> {
    let time = (to.at - from.at).as_secs_f64();
    (time > 0.0).then(|| (to.cpu - from.cpu).as_secs_f64() / time)
}

/// Says so where this process may not open as much as so many clients need.
fn check_descriptors(clients: usize, limit: io::Result<Option<u64>>) -> anyhow::Result<()> {
    let limit = limit.context("cannot raise the limit of open files")?;
    let needed = (clients + DESCRIPTORS_BESIDE) as u64;
    match limit {
        Some(limit) if limit < needed => bail!(
            "{clients} clients need {needed} open files, and the hard limit of this process is {limit}: raise it \
             (`ulimit -Hn {needed}` as root, LimitNOFILE= of a systemd unit) for this and for the server, or take fewer \
             --clients"
        ),
        Some(_) | None => Ok(()),
    }
}

/// How many instances of one client a server takes.
const INSTANCES: usize = 8;

/// What either end opens beside its clients: logs, state, timers, listeners.
const DESCRIPTORS_BESIDE: usize = 64;

/// News that wait; whoever has more waits.
const NEWS: usize = 1024;

/// Causes that are told apart; the names of further ones would say no more.
const CAUSES: usize = 16;

/// Free buffers kept. A lane takes a large one while it reads, so this is for the runtime's threads and those that read
/// on; 1 MiB.
const POOL_LARGE: usize = 16;
const POOL_SMALL: usize = 256;

/// How long the server may take to start: it reads a key for every eight clients.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// How long an attempt may take. A server that is slow is to be measured, not given up.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);

/// How long clients that were not served yet go on beyond the time.
const SERVED_PATIENCE: Duration = Duration::from_secs(30);

/// How long all goodbyes may take.
const END_PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn too_few_descriptors_are_said_with_what_to_do() {
        assert!(check_descriptors(2000, Ok(None)).is_ok());
        assert!(check_descriptors(2000, Ok(Some(2064))).is_ok());
        let error = check_descriptors(2000, Ok(Some(1024))).expect_err("that does not suffice");
        let text = error.to_string();
        assert!(text.contains("2000 clients need 2064 open files"), "{text}");
        assert!(text.contains("is 1024"), "{text}");
    }

    #[test]
    fn each_client_has_an_address_of_its_own() {
        let addresses: HashSet<_> = (0..20_000).map(address_of).collect();
        assert_eq!(addresses.len(), 20_000);
        assert!(addresses.iter().all(IpAddr::is_loopback));
    }

    #[test]
    fn causes_are_counted_and_bounded() {
        let mut tally = Tally::default();
        for number in 0..3 * CAUSES {
            tally.add(News::Again(format!("cause {number}")));
            tally.add(News::Lost("cause 0".to_owned()));
        }
        tally.add(News::Missing("cause 0".to_owned()));
        tally.add(News::Connected {
            took: Duration::from_millis(3),
        });
        tally.add(News::Served);
        assert_eq!(tally.failures.len(), CAUSES);
        assert_eq!(tally.failures["cause 0"], 3 * CAUSES as u64 + 2);
        assert_eq!((tally.connected, tally.missing, tally.served), (1, 1, 1));
        assert_eq!((tally.lost, tally.retried), (3 * CAUSES, 3 * CAUSES as u64));
        assert_eq!(tally.took.count(), 1);
    }
}
