//! Plays what a lane owes to those who wait and to those beside it, and prints what came of it.
//!
//!   cargo run --release -p adit-integration --bin delays -- [only=TEXT] [seeds=3] [secs=17] [report=1] [matrix=1]
//!
//! Each line names a scenario, with a session with repair `auto` on a link; `only` picks lines that contain a text.
//! Echoes are round trips of 200 bytes each 20 ms in milliseconds (median, 99th percentile, greatest, messages lost),
//! goodput is in Mbit/s, and shares are those of an equal one: between 0.5 and 2 is fair. `report` prints the whole
//! table of each run and the counters of both ends.
//!
//! `matrix` prints a table of shares instead: 1 and 3 flows of CUBIC and of BBR beside ours, which begins first or last,
//! on links of many rates and lengths, with queues of half to five times their product. `secs` is how long each lasts
//! (of which the last two thirds count), `only` picks rows, and `direct=1` puts a plain CUBIC flow in our place, which
//! shows what the link itself makes of it. A cell is the geometric mean over the seeds, and their least and greatest.

mod matrix;

use std::time::{Duration, Instant};

use adit_fec::{Mode, Settings};
use matrix::{Row, Shares};

use adit_integration::sim::{
    ControlKind, Direct, FlowSpec, Report, Scenario, SessionTunnel, Side, Traffic, Via, World,
};

fn main() {
    let mut options = Options {
        only: String::new(),
        seeds: 3,
        secs: 17,
        report: false,
        matrix: false,
        direct: false,
    };
    for argument in std::env::args().skip(1) {
        let (name, value) = argument.split_once('=').unwrap_or((&argument, ""));
        match (name, value.parse()) {
            ("only", _) => value.clone_into(&mut options.only),
            ("seeds", Ok(seeds)) => options.seeds = seeds,
            ("secs", Ok(secs)) => options.secs = secs,
            ("report", Ok(report)) => options.report = report != 0,
            ("matrix", Ok(matrix)) => options.matrix = matrix != 0,
            ("direct", Ok(direct)) => options.direct = direct != 0,
            _ => {
                eprintln!("{argument:?} is no argument; they stand at the head of this program");
                std::process::exit(2);
            }
        }
    }
    if options.matrix {
        play_matrix(&options);
        return;
    }
    for line in lines() {
        if line.name.contains(&options.only) {
            println!("{:<44} {}", line.name, line.play(&options));
        }
    }
}

/// What was asked for.
struct Options {
    only: String,
    seeds: u64,
    secs: u64,
    report: bool,
    matrix: bool,
    /// In the matrix: no tunnel.
    direct: bool,
}

/// One thing that is owed.
struct Line {
    name: String,
    link: String,
    /// Through the tunnel.
    inside: Vec<Traffic>,
    /// Beside it, from the beginning or from the third second on.
    beside: Vec<Traffic>,
    /// Those beside it begin first.
    last: bool,
    /// No tunnel: what the endpoints come to by themselves.
    direct: bool,
}

impl Line {
    fn play(&self, options: &Options) -> String {
        let mut texts = Vec::new();
        for seed in 1..=options.seeds {
            let report = self.run(seed, options);
            texts.push(self.text(&report));
        }
        texts.join(" | ")
    }

    fn run(&self, seed: u64, options: &Options) -> Report {
        let link = match self.link.parse() {
            Ok(link) => link,
            Err(error) => panic!("{}: {error}", self.link),
        };
        let secs = if self.beside.is_empty() {
            options.secs
        } else {
            3 * options.secs
        };
        let mut scenario = Scenario::new(link, seed).lasting(Duration::from_secs(secs));
        let second = Duration::from_secs(3);
        let first = Duration::ZERO;
        let mut add = |traffic: &[Traffic], via, start| {
            scenario
                .flows
                .extend(traffic.iter().map(|traffic| FlowSpec {
                    traffic: *traffic,
                    via,
                    start,
                }));
        };
        let (ours, theirs) = if self.last {
            (second, first)
        } else {
            (first, second)
        };
        add(
            &self.inside,
            Via::Tunnel,
            if self.last { ours } else { first },
        );
        add(&self.beside, Via::Beside, theirs);
        scenario.warm_up = if self.beside.is_empty() {
            Duration::from_secs(2)
        } else {
            Duration::from_secs(8)
        };
        if self.name.contains("start") {
            scenario.warm_up = Duration::ZERO;
            scenario.duration = Duration::from_secs(6);
        }
        scenario.mtu = 1400;
        play(scenario, self.direct, options.report.then_some(&self.name))
    }

    fn text(&self, report: &Report) -> String {
        let mut parts = Vec::new();
        for flow in &report.flows {
            if flow.messages > 0 {
                parts.push(format!(
                    "{} lost {}/{}",
                    flow.echo, flow.unanswered, flow.messages
                ));
            }
        }
        let [ours, theirs] = [Via::Tunnel, Via::Beside].map(|via| goodput(report, via));
        if ours > 1.0 {
            parts.push(format!("{ours:.1} Mbit/s"));
        }
        if theirs > 0.0 {
            parts.push(format!("share {:.2}", share(report)));
        }
        parts.join(", ")
    }
}

/// Plays a scenario with repair `auto`, or without a tunnel. Prints all that is known if it has a name to do so.
fn play(scenario: Scenario, direct: bool, name: Option<&String>) -> Report {
    let epoch = Instant::now();
    if direct {
        let world = World::new(epoch, scenario, Direct::default());
        return world.expect("a link that is one").run();
    }
    let settings = Settings {
        mode: Mode::Auto,
        ..Settings::default()
    };
    let seed = scenario.seed;
    let tunnel = SessionTunnel::new(epoch, &scenario.link, settings, seed);
    let mut world = World::new(epoch, scenario, tunnel).expect("a link that is one");
    let report = world.run();
    if let Some(name) = name {
        println!("{name}, seed {seed}\n{report}");
        for side in [Side::Client, Side::Server] {
            let tunnel = world.tunnel();
            println!(
                "{side:?}: {:?}\n{:?}",
                tunnel.counts(side),
                tunnel.stats(side)
            );
        }
    }
    report
}

/// Mbit/s of the flows through the tunnel, or beside it.
fn goodput(report: &Report, via: Via) -> f64 {
    let flows = report.flows.iter().filter(|flow| flow.spec.via == via);
    flows.map(|flow| flow.goodput).sum::<f64>() / 1e6
}

/// What the tunnel got over an equal share, beside each flow of others.
fn share(report: &Report) -> f64 {
    let [ours, theirs] = [Via::Tunnel, Via::Beside].map(|via| goodput(report, via));
    let beside = report.flows.iter();
    let beside = beside.filter(|flow| flow.spec.via == Via::Beside).count();
    ours / ((ours + theirs) / (1 + beside) as f64)
}

/// Prints the table of shares.
fn play_matrix(options: &Options) {
    let heads = matrix::QUEUES.map(|queue| format!("{:<16}", format!("queue {queue} BDP")));
    println!("{:<36} {}", "", heads.join(" "));
    let (mut cells, mut unfair) = (0, 0);
    for row in Row::all() {
        let name = row.to_string();
        if !name.contains(&options.only) {
            continue;
        }
        let mut found = matrix::QUEUES.map(|_| Shares(Vec::new()));
        for seed in 1..=options.seeds {
            for (scenario, shares) in row.scenarios(seed, options.secs).zip(&mut found) {
                let name = options.report.then_some(&name);
                shares.0.push(share(&play(scenario, options.direct, name)));
            }
        }
        cells += found.len();
        unfair += found.iter().filter(|shares| !shares.is_fair()).count();
        let found = found.map(|shares| format!("{:<16}", shares.to_string()));
        println!("{name:<36} {}", found.join(" "));
    }
    println!("{unfair} of {cells} outside of 0.5 to 2");
}

/// All of them.
fn lines() -> Vec<Line> {
    let cubic = Traffic::download(ControlKind::Cubic);
    let bbr = Traffic::download(ControlKind::Bbr);
    let (udp, tcp) = (Traffic::UdpMessages, Traffic::TcpMessages);
    let line = |name: &str, link: String, inside: Vec<Traffic>, beside: Vec<Traffic>| Line {
        name: name.to_owned(),
        link,
        inside,
        beside,
        last: false,
        direct: false,
    };
    let mut lines = Vec::new();
    for loss in ["0", "0.1", "0.2", "1", "3", "5", "10"] {
        let link = || format!("loss={loss},delay=25,rate=50,limit=100ms");
        for (kind, messages) in [("udp", udp), ("tcp", tcp)] {
            let name = format!("bulk beside {kind} messages at {loss} %");
            lines.push(line(&name, link(), vec![cubic, messages], Vec::new()));
        }
    }
    for (kind, messages) in [("udp", udp), ("tcp", tcp)] {
        let link = "delay=25,rate=20,limit=500ms".to_owned();
        let inside = vec![cubic, messages];
        lines.push(line(
            &format!("deep queue, {kind}"),
            link.clone(),
            inside.clone(),
            Vec::new(),
        ));
        lines.push(line(
            &format!("deep queue, {kind}, start"),
            link,
            inside,
            Vec::new(),
        ));
    }
    for loss in ["5", "10"] {
        let link = || format!("loss={loss},delay=25,rate=50,limit=100ms");
        for (kind, messages) in [("udp", udp), ("tcp", tcp)] {
            let name = format!("alone, {kind} messages at {loss} %");
            lines.push(line(&name, link(), vec![messages], Vec::new()));
        }
    }
    for direct in [false, true] {
        let name = if direct {
            "inner cubic, direct"
        } else {
            "inner cubic"
        };
        let link = "delay=25,rate=50,limit=100ms".to_owned();
        lines.push(Line {
            direct,
            ..line(name, link, vec![cubic], Vec::new())
        });
    }
    for delay in ["5", "25"] {
        let link = || format!("delay={delay},rate=50,limit=100ms");
        for (kind, rival) in [("cubic", cubic), ("bbr", bbr)] {
            for (count, rivals) in [("1", vec![rival]), ("3", vec![rival; 3])] {
                for last in [false, true] {
                    let order = if last { "they first" } else { "we first" };
                    let name = format!("{count} {kind} beside, rtt 2x{delay}, {order}");
                    lines.push(Line {
                        last,
                        ..line(&name, link(), vec![cubic], rivals.clone())
                    });
                }
            }
        }
    }
    lines
}
