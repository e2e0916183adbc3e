//! Makes the report of a running server.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{Mutex, oneshot};
use tokio::time::{Instant, timeout_at};

use super::leases::Owner;
use super::ledger::Account;
use super::listening::Listening;
use super::registry::Order;
use super::shared::{MAX_GUESTS, Shared};
use crate::io::admin::Observed;
use crate::proto::PublicKey;
use crate::status::metrics::{CONTENT_TYPE, render};
use crate::status::{
    ClientReport, Clients, Counters, MAX_SESSIONS, Numbers, PATIENCE, ProcessReport, Program,
    Report, SessionReport, Tally, Uses, tasks,
};
use crate::wire::SessionId;

/// What a session says of itself.
#[derive(Debug)]
pub struct Look {
    /// Its number.
    pub id: SessionId,
    /// Whose it is.
    pub owner: Owner,
    /// What is shown of it.
    pub report: SessionReport,
    /// All its numbers.
    pub tally: Tally,
}

/// Makes reports, one at a time.
#[derive(Debug)]
pub struct Reporter {
    shared: Arc<Shared>,
    listening: Listening,
    uses: Uses,
    turn: Mutex<()>,
}

impl Reporter {
    /// Makes one for the server that shares this, and listens there; `uses` is what it has of its host.
    pub fn new(shared: Arc<Shared>, listening: Listening, uses: Uses) -> Self {
        Self {
            shared,
            listening,
            uses,
            turn: Mutex::new(()),
        }
    }

    /// Asks every session and sums up what there is.
    pub async fn report(&self) -> Report {
        let _turn = self.turn.lock().await;
        let shared = &self.shared;
        // Numbers never go down: of a session that ends meanwhile, either its answer or its last word counts.
        shared.ledger.begin_report();
        let (mut looks, silent) = look_at_all(shared).await;
        let (accounts, mut sum, ended) = shared.ledger.end_report();
        looks.retain(|look| !ended.contains(&look.id));
        let mut sessions = Vec::new();
        let mut of_clients: HashMap<PublicKey, Live> = HashMap::new();
        for (number, look) in looks.into_iter().enumerate() {
            let live = of_clients.entry(look.owner.key).or_default();
            live.add(&look);
            sum.add(&look.tally);
            if sessions.len() < MAX_SESSIONS {
                sessions.push(look.report);
            }
            if number % YIELD_EACH == 0 {
                tokio::task::yield_now().await;
            }
        }
        sessions.sort_by(|a, b| (&a.client, &a.addresses).cmp(&(&b.client, &b.addresses)));
        let here = of_clients.values().map(|live| live.sessions).sum::<usize>();
        let known = known(shared, &accounts, &of_clients);
        self.count(&mut sum.counters);
        Report {
            kind: Program::Server,
            version: env!("CARGO_PKG_VERSION"),
            ready: shared.ready().is_ok(),
            state: shared.ready().unwrap_or_else(|state| state),
            down: None,
            uptime_seconds: shared.started.elapsed().as_secs_f64(),
            uses: self.uses.clone(),
            reloads: shared.reloads.counts(),
            clients: Some(Clients {
                listed: shared.peers.len(),
                connected: of_clients.len(),
                known,
            }),
            forwards: None,
            sessions_left_out: here + silent - sessions.len(),
            sessions,
            total: sum.numbers,
            counters: sum.counters,
            process: ProcessReport::now(),
        }
    }

    /// Adds what the sessions share.
    fn count(&self, counters: &mut Counters) {
        let shared = &self.shared;
        counters.add("accept", &shared.accept_stats);
        counters.add("datagrams", &*shared.datagram_stats);
        counters.add("dns", shared.dns.stats());
        counters.add("sessions", &shared.stats);
        counters.add("guests", &shared.guest_stats);
        let guests = MAX_GUESTS.saturating_sub(shared.guests.available_permits());
        counters.count_now("guests", "now", guests);
        self.listening.count(counters);
        counters.add("control", &*shared.control_stats);
        counters.add("buffers", &shared.pool.stats());
        counters.drops("router", "no_route", shared.router.no_route());
        let leases = u64::try_from(shared.registry.leases()).unwrap_or(u64::MAX);
        counters.level("leases", "now", leases);
        counters.level("runtime", "tasks_now", tasks());
        let queued = u64::try_from(shared.router.queued_bytes()).unwrap_or(u64::MAX);
        counters.level("router", "queued_bytes", queued);
        let held = u64::try_from(shared.memory.held()).unwrap_or(u64::MAX);
        counters.level("flows", "held_bytes", held);
        if let Some(tun) = shared.egress.stats() {
            counters.add("tun", tun);
        }
    }
}

impl Observed for Reporter {
    async fn ready(&self) -> Result<String, String> {
        self.shared.ready()
    }

    async fn metrics(&self) -> (&'static str, String) {
        (CONTENT_TYPE, render(&self.report().await))
    }
}

/// What the living sessions of a client add to its account.
#[derive(Debug, Default)]
struct Live {
    sessions: usize,
    numbers: Numbers,
    rtt: Option<f64>,
}

impl Live {
    fn add(&mut self, look: &Look) {
        self.sessions += 1;
        self.numbers.add(&look.tally.numbers);
        let both = [self.rtt, look.report.rtt_seconds];
        self.rtt = both.into_iter().flatten().min_by(f64::total_cmp);
    }
}

/// Asks all sessions at once; those that do not answer in time are only counted.
async fn look_at_all(shared: &Shared) -> (Vec<Look>, usize) {
    let mut silent = 0;
    let mut answers = Vec::new();
    for orders in shared.registry.orders() {
        let (answer, look) = oneshot::channel();
        match orders.try_send(Order::Look(answer)) {
            Ok(()) => answers.push(look),
            Err(_busy) => silent += 1,
        }
    }
    let deadline = Instant::now() + PATIENCE;
    let mut looks = Vec::with_capacity(answers.len());
    for answer in answers {
        match timeout_at(deadline, answer).await {
            Ok(Ok(look)) => looks.push(*look),
            // It has ended meanwhile.
            Ok(Err(_)) => {}
            Err(_elapsed) => silent += 1,
        }
    }
    (looks, silent)
}

/// The clients that have had a session, by name.
fn known(
    shared: &Shared,
    accounts: &HashMap<PublicKey, Account>,
    living: &HashMap<PublicKey, Live>,
) -> Vec<ClientReport> {
    let mut known = Vec::new();
    for peer in shared.peers.list() {
        let Some(account) = accounts.get(&peer.key()) else {
            continue;
        };
        let mut total = account.numbers;
        let live = living.get(&peer.key());
        if let Some(live) = live {
            total.add(&live.numbers);
        }
        known.push(ClientReport {
            name: peer.entry.name.clone(),
            labelled: account.labelled,
            sessions: live.map_or(0, |live| live.sessions),
            ended: account.ended,
            rtt_seconds: live.and_then(|live| live.rtt),
            total,
        });
    }
    known
}

/// Sessions after which others get the thread.
const YIELD_EACH: usize = 64;
