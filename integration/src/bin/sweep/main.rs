//! Plays many links with repair and without, and says where repair is worse.
//!
//!   cargo run --release -p adit-integration --bin sweep -- [cases=200] [first=0] [seeds=5] [seed=1] [threads=2]
//!       [budget=600] [super=1] [against=off|direct|chance] [report=1] [worst=5] [each=1] [residual=1000000] [link=LINK]
//!
//! `cases` links are drawn from `seed`, those before `first` left out, and played with the seeds from 1 to `seeds`
//! through a session with repair `auto` and with what it is held `against`; `chance` holds repair `off` against itself
//! with other seeds, to show what the same bounds make of nothing but chance. After `budget` seconds nothing new begins.
//! To look at one line of the outcome, play that case alone and print its reports: `first=N cases=1 report=1`.
//! `worst` says how many of the worst lines are printed, and `each=1` prints a line for every run: case, seed, setting,
//! Mbit/s, ms of delay, share missed, bytes on the wire for each delivered.
//!
//! `residual=N` plays no cases: it plays N packets or more of a TCP flow and of a UDP flow at each of several rates of
//! loss on a link (`delay=25,rate=50,limit=100ms`), and prints what share their endpoints missed after repair. `link=LINK`
//! names another, of some rate, and with its `loss` that alone.
//!
//! Ends with an error if a median ratio of goodput lies below 0.95, a single one below 0.85, or a delay above what is
//! allowed (see [`Grade`]).

mod residual;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use adit_fec::{Mode, Settings};
use adit_integration::{
    link::Link,
    sim::{
        Case, Datagram, Direct, Grade, Packet, Scenario, SessionTunnel, Side, Sweep, SweepResult,
        Tunnel, World, cases,
    },
};

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(argument) => {
            eprintln!("{argument:?} is no argument; they stand at the head of this program");
            return ExitCode::FAILURE;
        }
    };
    if options.residual > 0 {
        residual::print(options.residual, options.link);
        return ExitCode::SUCCESS;
    }
    let cases = cases(options.first + options.cases, options.seed);
    let chosen = &cases[options.first..];
    let seeds: Vec<u64> = (1..=options.seeds).collect();
    if options.report {
        for case in chosen {
            print_reports(case, &seeds, &options);
        }
        return ExitCode::SUCCESS;
    }
    let sweep = Sweep {
        cases: chosen,
        seeds: &seeds,
        threads: options.threads,
        budget: Duration::from_secs(options.budget),
    };
    let begin = Instant::now();
    let result = sweep.run(2, |setting, scenario, epoch| {
        options.tunnel(setting, scenario, epoch)
    });
    let grades = result.grades(chosen, 0, 1);
    if options.each {
        print_each(&result, &options);
    }
    println!(
        "{} runs in {:.0} s, {} left out, {} packets",
        result.outcomes.len(),
        begin.elapsed().as_secs_f64(),
        result.left_out,
        result
            .outcomes
            .iter()
            .map(|outcome| outcome.packets)
            .sum::<u64>()
    );
    println!(
        "cases count from {}\n{}",
        options.first,
        result.worst(chosen, &grades, options.worst)
    );
    summary(&result, &grades)
}

/// Prints what each run measured.
fn print_each(result: &SweepResult, options: &Options) {
    for outcome in &result.outcomes {
        println!(
            "{} {} {} {:.3} {} {:.1e} {:.3}",
            options.first + outcome.case,
            outcome.seed,
            outcome.setting,
            outcome.goodput / 1e6,
            outcome.delay.map_or("never".into(), |delay| format!(
                "{:.1}",
                delay.as_secs_f64() * 1e3
            )),
            outcome.residual,
            outcome.overhead
        );
    }
}

/// Prints the distribution, and judges.
fn summary(result: &SweepResult, grades: &[Grade]) -> ExitCode {
    let mut medians: Vec<f64> = grades.iter().map(|grade| grade.median).collect();
    medians.sort_by(f64::total_cmp);
    let at = |share: f64| {
        medians
            .get((medians.len() as f64 * share) as usize)
            .copied()
            .unwrap_or(f64::NAN)
    };
    println!(
        "ratio of goodput by case: p1 {:.3}, p5 {:.3}, p25 {:.3}, p50 {:.3}, p75 {:.3}",
        at(0.01),
        at(0.05),
        at(0.25),
        at(0.5),
        at(0.75)
    );
    let medians_below = grades.iter().filter(|grade| grade.median < 0.95).count();
    let singles_below = grades.iter().filter(|grade| grade.least < 0.85).count();
    let delays_above = grades.iter().filter(|grade| grade.delay > 1.0).count();
    let corrupt: u64 = result.outcomes.iter().map(|outcome| outcome.corrupt).sum();
    println!(
        "of {} cases: {medians_below} medians below 0.95, {singles_below} with a single one below 0.85, {delays_above} delays above what is allowed; {corrupt} corrupt packets",
        grades.len()
    );
    if medians_below + singles_below + delays_above == 0 && corrupt == 0 && !grades.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn print_reports(case: &Case, seeds: &[u64], options: &Options) {
    for seed in seeds {
        for setting in [0, 1] {
            let (epoch, mut scenario) = (Instant::now(), case.scenario(*seed));
            let tunnel = options.tunnel(setting, &mut scenario, epoch);
            match World::new(epoch, scenario, tunnel) {
                Ok(mut world) => {
                    let report = world.run();
                    println!("{case}, seed {seed}, {}\n{report}", options.name(setting));
                    if let Either::Session(session) = world.tunnel() {
                        for side in [Side::Client, Side::Server] {
                            println!(
                                "{side:?}: {:?}\n{:?}",
                                session.counts(side),
                                session.stats(side)
                            );
                        }
                    }
                    println!();
                }
                Err(error) => println!("{case}: {error}"),
            }
        }
    }
}

/// What is compared with.
#[derive(Clone, Copy)]
enum Against {
    Off,
    Direct,
    Chance,
}

/// What was asked for.
struct Options {
    cases: usize,
    first: usize,
    seeds: u64,
    seed: u64,
    threads: usize,
    budget: u64,
    super_packets: bool,
    against: Against,
    report: bool,
    worst: usize,
    each: bool,
    residual: u64,
    link: Link,
}

impl Options {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            cases: 200,
            first: 0,
            seeds: 5,
            seed: 1,
            threads: std::thread::available_parallelism().map_or(1, Into::into),
            budget: 600,
            super_packets: false,
            against: Against::Off,
            report: false,
            worst: 5,
            each: false,
            residual: 0,
            link: LINK.parse().map_err(|_| LINK.to_owned())?,
        };
        for argument in arguments {
            let (name, value) = argument.split_once('=').unwrap_or((&argument, ""));
            let number = || value.parse::<u64>().map_err(|_| argument.clone());
            let count = || value.parse::<usize>().map_err(|_| argument.clone());
            match name {
                "cases" => options.cases = count()?,
                "first" => options.first = count()?,
                "seeds" => options.seeds = number()?,
                "seed" => options.seed = number()?,
                "threads" => options.threads = count()?,
                "budget" => options.budget = number()?,
                "super" => options.super_packets = number()? != 0,
                "report" => options.report = number()? != 0,
                "worst" => options.worst = count()?,
                "each" => options.each = number()? != 0,
                "residual" => options.residual = number()?,
                "link" => options.link = value.parse().map_err(|_| argument.clone())?,
                "against" => {
                    options.against = match value {
                        "off" => Against::Off,
                        "direct" => Against::Direct,
                        "chance" => Against::Chance,
                        _ => return Err(argument),
                    }
                }
                _ => return Err(argument),
            }
        }
        Ok(options)
    }

    fn name(&self, setting: usize) -> &'static str {
        match (setting, self.against) {
            (0, Against::Direct) => "direct",
            (0, Against::Off | Against::Chance) => "repair off",
            (_, Against::Off | Against::Direct) => "repair auto",
            (_, Against::Chance) => "repair off, another seed",
        }
    }

    /// The tunnel of a setting: 0 is what is compared with, 1 what is judged.
    fn tunnel(&self, setting: usize, scenario: &mut Scenario, epoch: Instant) -> Either {
        scenario.mtu = 1400;
        scenario.super_packets = self.super_packets;
        let mode = match (setting, self.against) {
            (0, Against::Direct) => return Either::Direct(Direct::default()),
            (0, Against::Off | Against::Chance) => Mode::Off,
            (_, Against::Off | Against::Direct) => Mode::Auto,
            (_, Against::Chance) => {
                scenario.seed += self.seeds;
                Mode::Off
            }
        };
        let settings = Settings {
            mode,
            ..Settings::default()
        };
        let session = SessionTunnel::new(epoch, &scenario.link, settings, scenario.seed);
        Either::Session(Box::new(session))
    }
}

/// The link of `residual`, if no other is named.
const LINK: &str = "delay=25,rate=50,limit=100ms";

/// A session, or nothing.
enum Either {
    Direct(Direct),
    Session(Box<SessionTunnel>),
}

impl Either {
    fn inner(&mut self) -> &mut dyn Tunnel {
        match self {
            Self::Direct(direct) => direct,
            Self::Session(session) => session.as_mut(),
        }
    }
}

impl Tunnel for Either {
    fn inject(&mut self, now: Instant, side: Side, packet: Packet) {
        self.inner().inject(now, side, packet);
    }

    fn poll_transmit(&mut self, now: Instant, side: Side) -> Option<Datagram> {
        self.inner().poll_transmit(now, side)
    }

    fn handle_datagram(&mut self, now: Instant, side: Side, datagram: Vec<u8>, marked: bool) {
        self.inner().handle_datagram(now, side, datagram, marked);
    }

    fn poll_deliver(&mut self, now: Instant, side: Side) -> Option<Packet> {
        self.inner().poll_deliver(now, side)
    }

    fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        match self {
            Self::Direct(direct) => direct.poll_timeout(now),
            Self::Session(session) => session.poll_timeout(now),
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.inner().handle_timeout(now);
    }
}
