//! `adit bench`: what is to be measured, from the arguments, and how it is told.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::serve::load_by;
use super::{Failure, print};
use crate::bench::Origin;
use crate::bench::measure::{Course, measure};
use crate::bench::pair::{self, PairOptions};
use crate::bench::swarm::{self, SwarmOptions, Target, There};
use crate::bench::way::{Socks, Spot, Way};
use crate::config::{ClientConfig, Kind, Loaded, Scheme, read_key};
use crate::io::ready::Ready;
use crate::proto::SecretKey;

/// The arguments of `adit bench`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    measures: MeasureArgs,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Be the far side of measures: a source, a sink and echoes, on one port over TCP and UDP
    ///
    /// Whoever reaches it can have bytes from it and nothing else; stop it when the measures are done.
    Origin(OriginArgs),
    /// Put thousands of simulated clients on a server: real handshakes and frames, each with light traffic
    ///
    /// Without a configuration, a server is started on this host, with keys for all. The command fails if a client is
    /// not served; how fast that was is told and not judged.
    Swarm(SwarmArgs),
}

#[derive(Debug, Args)]
struct MeasureArgs {
    /// How long each measure takes, in seconds
    #[arg(long, value_name = "SECS", default_value = "3", value_parser = parse_seconds)]
    time: Duration,
    /// How many flows, or connections at once, are measured beside one
    #[arg(long, value_name = "NUMBER", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=MOST_FLOWS))]
    flows: u16,
    /// What carries the session: tcp, tls, wss, ws or udp [default: tcp]
    #[arg(long, value_name = "LANE", value_parser = parse_lane, conflicts_with = "origin")]
    lane: Option<Scheme>,
    /// Measure to this origin, which runs `adit bench origin`, instead of starting both ends here
    #[arg(long, value_name = "HOST:PORT")]
    origin: Option<Spot>,
    /// Measure through this SOCKS5 proxy, whoever made it; without, straight
    #[arg(
        long,
        value_name = "socks5://[USER:PASSWORD@]HOST:PORT",
        requires = "origin"
    )]
    proxy: Option<Socks>,
    /// Count the CPU time of this process; may be given several times
    #[arg(long, value_name = "NUMBER", requires = "origin")]
    pid: Vec<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct OriginArgs {
    /// Where it listens, over TCP and over UDP
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:5201")]
    listen: SocketAddr,
}

#[derive(Debug, Args)]
struct SwarmArgs {
    /// The configuration of a client of the server that is meant; without, a server is started
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A file of a secret key that the server lists; eight clients share one. May be given several times. By default
    /// the configuration's
    #[arg(long, value_name = "FILE", requires = "config")]
    key_file: Vec<PathBuf>,
    /// How many clients there are
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=MOST_CLIENTS))]
    clients: u32,
    /// What carries each session: tcp, tls, wss, ws or udp [default: tcp, or the configuration's first]
    #[arg(long, value_name = "LANE", value_parser = parse_lane)]
    lane: Option<Scheme>,
    /// How many clients connect at once
    #[arg(long, value_name = "NUMBER", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    at_once: u32,
    /// For how many seconds each sends echoes
    #[arg(long, value_name = "SECS", default_value = "5", value_parser = parse_seconds)]
    time: Duration,
    /// How many seconds the echoes of a client are apart
    #[arg(long, value_name = "SECS", default_value = "1", value_parser = parse_seconds)]
    every: Duration,
    /// How many seconds they keep quiet before the server's memory is read; it gives back what quiet sessions do not
    /// need after 5 to 20
    #[arg(long, value_name = "SECS", default_value = "25", value_parser = parse_seconds)]
    idle: Duration,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is to be measured, and how it is told.
#[derive(Debug)]
pub(super) struct Bench {
    what: What,
    json: bool,
}

#[derive(Debug)]
enum What {
    Pair(PairOptions),
    Path(Course),
    Origin(SocketAddr),
    Swarm(SwarmOptions),
}

impl BenchArgs {
    /// Reads what the arguments name.
    pub(super) fn load(&self) -> Result<Loaded<Bench>, Failure> {
        let (what, json) = match &self.part {
            Some(Part::Swarm(swarm)) => return swarm.load(),
            Some(Part::Origin(origin)) => (What::Origin(origin.listen), false),
            None => (self.measures.what(), self.measures.json),
        };
        Ok(Loaded {
            config: Bench { what, json },
            warnings: Vec::new(),
        })
    }
}

impl MeasureArgs {
    fn what(&self) -> What {
        let (time, flows) = (self.time, usize::from(self.flows));
        let Some(origin) = self.origin.clone() else {
            let lane = self.lane.unwrap_or(Scheme::Tcp);
            return What::Pair(PairOptions { lane, time, flows });
        };
        What::Path(Course {
            way: self.proxy.clone().map_or(Way::Straight, Way::Socks),
            origin,
            time,
            flows,
            processes: (self.pid.iter())
                .map(|pid| (format!("process {pid}"), *pid))
                .collect(),
        })
    }
}

impl SwarmArgs {
    fn load(&self) -> Result<Loaded<Bench>, Failure> {
        let mut warnings = Vec::new();
        let target = match &self.config {
            None => Target::Own(self.lane.unwrap_or(Scheme::Tcp)),
            Some(file) => {
                let loaded = load_by(Some(file), &[], Kind::Client, ClientConfig::load)?;
                warnings = loaded.warnings;
                Target::There(Box::new(self.there(loaded.config)?))
            }
        };
        let options = SwarmOptions {
            clients: self.clients as usize,
            target,
            at_once: self.at_once as usize,
            time: self.time,
            every: self.every,
            idle: self.idle,
        };
        Ok(Loaded {
            config: Bench {
                what: What::Swarm(options),
                json: self.json,
            },
            warnings,
        })
    }

    fn there(&self, config: ClientConfig) -> Result<There, Failure> {
        let mut servers = config.servers.iter();
        let server = servers.find(|server| self.lane.is_none_or(|lane| lane == server.scheme));
        let Some(server) = server.cloned() else {
            let lane = self.lane.map_or("", Scheme::as_str);
            return Err(Failure::Usage(format!(
                "--lane: the configuration names no {lane}:// server"
            )));
        };
        let mut keys: Vec<SecretKey> = Vec::new();
        for file in &self.key_file {
            keys.push(read_key(file)?);
        }
        if keys.is_empty() {
            keys.push(config.secret_key.clone());
        }
        Ok(There {
            config,
            server,
            keys,
        })
    }
}

impl Bench {
    /// Measures and prints what was found. An origin is ready when it listens, and serves until `stop`.
    pub(super) async fn run(self, mut ready: Ready, stop: CancellationToken) -> anyhow::Result<()> {
        match self.what {
            What::Pair(options) => tell(&pair::run(options, stop).await?, self.json)?,
            What::Path(course) => {
                let report = tokio::select! {
                    () = stop.cancelled() => bail!("interrupted before the end"),
                    report = measure(course) => report?,
                };
                tell(&report, self.json)?;
            }
            What::Origin(listen) => {
                let origin = Origin::bind(listen).await?;
                ready.announce(&format!("origin on {}", origin.address()));
                origin.serve(stop).await;
                ready.stopping();
            }
            What::Swarm(options) => {
                let report = swarm::run(options, stop).await?;
                tell(&report, self.json)?;
                if !report.all_served() {
                    bail!(
                        "{} of {} clients were served, and {} sessions were lost",
                        report.served,
                        report.clients,
                        report.sessions_lost
                    );
                }
            }
        }
        Ok(())
    }
}

/// Prints a report, for programs or for people.
fn tell(report: &(impl Serialize + fmt::Display), json: bool) -> anyhow::Result<()> {
    let text = if json {
        serde_json::to_string(report).context("cannot write the report")?
    } else {
        report.to_string().trim_end().to_owned()
    };
    print(&text).map_err(|failure| match failure {
        Failure::Run(error) => error,
        Failure::Usage(message) => anyhow::Error::msg(message),
        Failure::Config(error) => error.into(),
        Failure::KeyFile(error) => error.into(),
    })
}

fn parse_lane(text: &str) -> Result<Scheme, String> {
    let mut schemes = Scheme::ALL.into_iter();
    schemes
        .find(|scheme| scheme.as_str() == text)
        .ok_or_else(|| "write tcp, tls, wss, ws or udp".to_owned())
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|time| (SHORTEST..=LONGEST).contains(time))
        .ok_or_else(|| "write seconds, 0.1 to 3600".to_owned())
}

/// Clients of one swarm: each is a descriptor, a local port and an address of the server's network.
const MOST_CLIENTS: i64 = 20_000;

/// Flows at once: more would be a measure of this program.
const MOST_FLOWS: i64 = 1024;

/// What is shorter measures nothing.
const SHORTEST: Duration = Duration::from_millis(100);

/// What is longer was mistyped.
const LONGEST: Duration = Duration::from_secs(3600);
