//! A server and a client of it on this host, each a process of its own, and an origin here: the path of `adit bench` alone.
//!
//! They are processes, as in life, so that the CPU time of each is told apart from that of the load.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio_util::sync::CancellationToken;

use super::measure::{Course, MeasureReport, measure};
use super::origin::Origin;
use super::server::{Plan, ServerFolder};
use super::way::Way;
use crate::config::{LaneAddr, Scheme};
use crate::io::child::Adit;
use crate::io::limits::raise_open_files;
use crate::proto::SecretKey;

/// What a measure of both ends is told.
#[derive(Clone, Debug)]
pub struct PairOptions {
    /// What carries the session.
    pub lane: Scheme,
    /// How long each measure takes.
    pub time: Duration,
    /// How many flows, or connections at once, several are.
    pub flows: usize,
}

/// Starts both ends, measures, and stops them.
///
/// To be called by the thread that began the program.
///
/// # Errors
/// One of them does not start, or a measure fails.
pub async fn run(options: PairOptions, stop: CancellationToken) -> anyhow::Result<MeasureReport> {
    tokio::select! {
        () = stop.cancelled() => bail!("interrupted before the end"),
        report = both_ends(options) => report,
    }
}

async fn both_ends(options: PairOptions) -> anyhow::Result<MeasureReport> {
    raise_open_files().context("cannot raise the limit of open files")?;
    let origin = Origin::bind((Ipv4Addr::LOCALHOST, 0).into()).await?;
    let target = origin.address().into();
    let (server_key, client_key) = (generate(), generate());
    let folder = ServerFolder::new(Plan {
        scheme: options.lane,
        key: &server_key,
        clients: &[client_key.public()],
        sessions: 1,
    })?;
    let mut server = Adit::start("the server", folder.arguments())?;
    let said = server.ready(START_PATIENCE).await?;
    let address = said.strip_prefix("listening on ").unwrap_or(&said);
    let address: LaneAddr = address
        .parse()
        .with_context(|| format!("the server says `{said}`"))?;
    let arguments = folder.client(&address, &server_key.public(), &client_key)?;
    let mut client = Adit::start("the client", arguments)?;
    let said = client.ready(START_PATIENCE).await?;
    let proxy = said.strip_prefix("proxy on ").unwrap_or(&said);
    let course = Course {
        way: Way::Socks(proxy.parse().map_err(anyhow::Error::msg)?),
        origin: target,
        time: options.time,
        flows: options.flows,
        processes: vec![
            ("the client".to_owned(), client.id()),
            ("the server".to_owned(), server.id()),
            ("load and origin".to_owned(), std::process::id()),
        ],
    };
    let stop_origin = CancellationToken::new();
    let _serves_until_here = stop_origin.clone().drop_guard();
    tokio::spawn(origin.serve(stop_origin));
    let measured = measure(course).await;
    let ended = [
        ("client", client.has_ended()),
        ("server", server.has_ended()),
    ];
    client.stop().await;
    server.stop().await;
    for (end, status) in ended {
        if let Some(status) = status {
            bail!("the {end} has ended with {status}; what it said stands above");
        }
    }
    let mut report = measured?;
    report.lane = Some(options.lane.as_str());
    Ok(report)
}

fn generate() -> SecretKey {
    SecretKey::generate(&mut rand::rng())
}

/// How long each end may take to start.
const START_PATIENCE: Duration = Duration::from_secs(30);
