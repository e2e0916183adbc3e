//! Many links, several settings of a tunnel, a few seeds each: is one setting ever worse than another?
//!
//! [`cases`] draws links of every kind from one seed. [`Sweep::run`] plays each with each setting and each seed, in
//! parallel; a run depends on its case, setting and seed alone, so any line of a report can be played again on its own.
//! [`SweepResult::grades`] compares two settings case by case, with the same losses for both, and puts the worst first.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    packet::Side,
    report::Report,
    scenario::{FlowSpec, Scenario, Traffic, Via},
    tcp::ControlKind,
    tunnel::Tunnel,
    world::World,
};
use crate::link::{Limit, Link, Loss, Path, Random};

/// One link with what goes on there.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The link.
    pub link: Link,
    /// What goes through the tunnel and is judged by its goodput.
    pub bulk: Traffic,
    /// What goes beside the tunnel.
    pub beside: Vec<Traffic>,
    /// How long it lasts.
    pub duration: Duration,
}

/// What is played, and with how much patience.
#[derive(Clone, Copy, Debug)]
pub struct Sweep<'a> {
    /// The links.
    pub cases: &'a [Case],
    /// Each case is played with each of these.
    pub seeds: &'a [u64],
    /// How many runs go on at once.
    pub threads: usize,
    /// After this no further run begins; what was left out is counted.
    pub budget: Duration,
}

/// What one run measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// The index of the case.
    pub case: usize,
    /// The index of the setting.
    pub setting: usize,
    /// The seed of the scenario.
    pub seed: u64,
    /// Bits a second of the bulk flow.
    pub goodput: f64,
    /// The one-way delay that 99 % of the packets of a thin flow kept, beside the bulk flow, in the same direction and
    /// also through the tunnel; `None` if more than 1 % never came.
    pub delay: Option<Duration>,
    /// The share of the bulk flow's packets that its endpoints missed.
    pub residual: f64,
    /// Bytes on the wire for each byte delivered, in the direction of the bulk flow.
    pub overhead: f64,
    /// Packets on the link.
    pub packets: u64,
    /// Packets that no endpoint wrote.
    pub corrupt: u64,
}

/// Everything a sweep measured.
#[derive(Clone, Debug, PartialEq)]
pub struct SweepResult {
    /// By case, seed and setting.
    pub outcomes: Vec<Outcome>,
    /// Runs that there was no time for.
    pub left_out: usize,
}

/// One setting against another on one case.
#[derive(Clone, Debug, PartialEq)]
pub struct Grade {
    /// The index of the case.
    pub case: usize,
    /// The median over the seeds of the ratio of goodputs.
    pub median: f64,
    /// The least of these ratios.
    pub least: f64,
    /// The seed that gave it.
    pub seed: u64,
    /// The greatest one-way p99 of the setting judged, as a share of what is allowed: the larger of 1.1 times that of
    /// the other with the same seed, and the delay of the empty link plus 30 ms. What never came is later than all that
    /// came, so where the other loses more than 1 %, anything is allowed.
    pub delay: f64,
    /// The seed that gave it.
    pub delay_seed: u64,
}

impl Case {
    /// The scenario of this case with a seed: the bulk flow is the first of its flows, the thin one the second.
    pub fn scenario(&self, seed: u64) -> Scenario {
        let thin = Traffic::Constant {
            from: self.bulk.from(),
            rate: THIN_RATE,
            size: THIN_SIZE,
        };
        let mut scenario = Scenario::new(self.link, seed)
            .with(self.bulk)
            .with(thin)
            .lasting(self.duration);
        scenario.warm_up = self.duration / 8;
        for traffic in &self.beside {
            scenario.flows.push(FlowSpec {
                traffic: *traffic,
                via: Via::Beside,
                start: self.duration / 16,
            });
        }
        scenario
    }

    /// The one-way delay of the empty link in the direction of the bulk flow.
    pub fn base_delay(&self) -> Duration {
        let path = match self.bulk.from() {
            Side::Client => &self.link.up,
            Side::Server => &self.link.down,
        };
        path.delay + path.jitter + path.transmission(FULL_PACKET)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.link, self.bulk)?;
        for traffic in &self.beside {
            write!(f, " | {traffic}")?;
        }
        Ok(())
    }
}

/// Draws `count` cases; the first `n` do not depend on how many follow.
pub fn cases(count: usize, seed: u64) -> Vec<Case> {
    let mut random = Random::new(seed);
    (0..count).map(|_| case(&mut random.child())).collect()
}

impl Sweep<'_> {
    /// Plays everything; `make` makes the tunnel of a setting for a scenario, which it may adapt, at a beginning of
    /// time.
    ///
    /// # Panics
    ///
    /// If a case's link is none, or if a run panics.
    pub fn run<T: Tunnel>(
        &self,
        settings: usize,
        make: impl Fn(usize, &mut Scenario, Instant) -> T + Sync,
    ) -> SweepResult {
        let jobs = self.cases.len() * self.seeds.len() * settings;
        let (next, begin) = (AtomicUsize::new(0), Instant::now());
        let outcomes = Mutex::new(Vec::with_capacity(jobs));
        thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| {
                    while begin.elapsed() < self.budget {
                        let job = next.fetch_add(1, Ordering::Relaxed);
                        if job >= jobs {
                            return;
                        }
                        let outcome = self.play(job, settings, begin, &make);
                        outcomes
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(outcome);
                    }
                });
            }
        });
        let mut outcomes = outcomes
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        outcomes.sort_by_key(|outcome| (outcome.case, outcome.seed, outcome.setting));
        SweepResult {
            left_out: jobs - outcomes.len(),
            outcomes,
        }
    }

    fn play<T: Tunnel>(
        &self,
        job: usize,
        settings: usize,
        epoch: Instant,
        make: &impl Fn(usize, &mut Scenario, Instant) -> T,
    ) -> Outcome {
        // settings of one seed follow each other, so that a sweep cut short has whole comparisons
        let setting = job % settings;
        let seed = self.seeds[job / settings % self.seeds.len()];
        let index = job / settings / self.seeds.len();
        let case = &self.cases[index];
        let mut scenario = case.scenario(seed);
        let tunnel = make(setting, &mut scenario, epoch);
        let report = match World::new(epoch, scenario, tunnel) {
            Ok(mut world) => world.run(),
            Err(error) => panic!("{case}: {error}"),
        };
        outcome(&report, case, index, setting, seed)
    }
}

impl SweepResult {
    /// Compares the setting `judged` with the setting `base`, the worst first by its least ratio of goodputs.
    pub fn grades(&self, cases: &[Case], base: usize, judged: usize) -> Vec<Grade> {
        let mut grades: Vec<Grade> = cases
            .iter()
            .enumerate()
            .filter_map(|(index, case)| self.grade(index, case, base, judged))
            .collect();
        grades.sort_by(|a, b| a.least.total_cmp(&b.least));
        grades
    }

    /// The lines of the worst by goodput and the worst by delay, `count` of each, with what it takes to play them again.
    pub fn worst(&self, cases: &[Case], grades: &[Grade], count: usize) -> String {
        let line = |grade: &Grade, seed: u64| {
            format!(
                "  {:.3} of goodput (median {:.3}), {:.2} of the delay allowed: case {} ({}), seed {seed}\n",
                grade.least, grade.median, grade.delay, grade.case, cases[grade.case]
            )
        };
        let mut text = String::from("worst by goodput:\n");
        for grade in grades.iter().take(count) {
            text.push_str(&line(grade, grade.seed));
        }
        let mut by_delay: Vec<&Grade> = grades.iter().collect();
        by_delay.sort_by(|a, b| b.delay.total_cmp(&a.delay));
        text.push_str("worst by delay:\n");
        for grade in by_delay.into_iter().take(count) {
            text.push_str(&line(grade, grade.delay_seed));
        }
        text
    }

    fn grade(&self, index: usize, case: &Case, base: usize, judged: usize) -> Option<Grade> {
        let from = self
            .outcomes
            .partition_point(|outcome| outcome.case < index);
        let of_case = self.outcomes[from..]
            .iter()
            .take_while(|outcome| outcome.case == index);
        let of_case: Vec<&Outcome> = of_case.collect();
        let mut ratios = Vec::new();
        let mut delay = (0.0, 0);
        for ours in of_case.iter().filter(|outcome| outcome.setting == judged) {
            let Some(theirs) = of_case
                .iter()
                .find(|outcome| outcome.setting == base && outcome.seed == ours.seed)
            else {
                continue;
            };
            ratios.push((ours.goodput / theirs.goodput.max(1.0), ours.seed));
            let share = match (ours.delay, theirs.delay) {
                (_, None) => 0.0,
                (None, Some(_)) => f64::INFINITY,
                (Some(ours), Some(theirs)) => {
                    let least = case.base_delay() + DELAY_MARGIN;
                    ours.as_secs_f64() / theirs.mul_f64(1.1).max(least).as_secs_f64()
                }
            };
            if share >= delay.0 {
                delay = (share, ours.seed);
            }
        }
        ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (least, seed) = *ratios.first()?;
        Some(Grade {
            case: index,
            median: ratios[ratios.len() / 2].0,
            least,
            seed,
            delay: delay.0,
            delay_seed: delay.1,
        })
    }
}

fn outcome(report: &Report, case: &Case, index: usize, setting: usize, seed: u64) -> Outcome {
    let from = case.bulk.from();
    let direction = from.index();
    let [bulk, thin, ..] = &report.flows[..] else {
        unreachable!("the scenario of a case has a bulk flow and a thin one")
    };
    Outcome {
        case: index,
        setting,
        seed,
        goodput: bulk.goodput,
        delay: thin.p99_of_sent[direction],
        residual: bulk.residual[direction].rate(),
        overhead: report.overhead(from),
        packets: report.packets,
        corrupt: report.corrupt,
    }
}

fn case(random: &mut Random) -> Case {
    let logarithmic =
        |random: &mut Random, low: f64, high: f64| low * (high / low).powf(random.unit());
    let rate = logarithmic(random, 1.0, 200.0);
    let round_trip = logarithmic(random, 4.0, 300.0);
    let queue = logarithmic(random, 10.0, 500.0);
    let ms = |value: f64| Duration::from_micros((value * 1e3) as u64);
    let loss = random.unit();
    let percent = logarithmic(random, 0.02, 10.0);
    let mean = random.between(2.0, 8.0);
    let jitter = random.unit();
    let swing = round_trip / 2.0 * random.between(0.02, 0.4);
    let path = Path {
        loss: match loss {
            loss if loss < 0.3 => Loss::None,
            loss if loss < 0.7 => Loss::Random { percent },
            _ => Loss::Burst { percent, mean },
        },
        after: random.percent(30.0),
        delay: ms(round_trip / 2.0),
        jitter: if jitter < 0.35 {
            ms(swing)
        } else {
            Duration::ZERO
        },
        overtaking: jitter < 0.1,
        rate: (rate * 1e6) as u64,
        limit: Limit::Time(ms(queue)),
        ..Path::default()
    };
    let mut link = Link::symmetric(path);
    // lines are often slower upward, and lossy one way only
    if random.percent(40.0) {
        link.up.rate = (rate * 1e6 / random.between(1.0, 8.0)) as u64;
    }
    if random.percent(30.0) {
        link.up.loss = Loss::None;
    }
    let control = if random.percent(80.0) {
        ControlKind::Cubic
    } else {
        ControlKind::Bbr
    };
    let bulk = if random.percent(75.0) {
        Traffic::download(control)
    } else {
        Traffic::upload(control)
    };
    let carried = match bulk.from() {
        Side::Client => link.up.rate,
        Side::Server => link.down.rate,
    };
    let rival = |control| match bulk.from() {
        Side::Client => Traffic::upload(control),
        Side::Server => Traffic::download(control),
    };
    let beside = match random.unit() {
        draw if draw < 0.5 => Vec::new(),
        draw if draw < 0.65 => vec![rival(ControlKind::Cubic)],
        draw if draw < 0.75 => vec![rival(ControlKind::Bbr)],
        draw if draw < 0.9 => vec![Traffic::OnOff {
            from: bulk.from(),
            rate: carried / 3,
            size: 1200,
            on: ms(random.between(100.0, 1000.0)),
            off: ms(random.between(100.0, 1000.0)),
        }],
        _ => vec![rival(ControlKind::Cubic); 3],
    };
    // some 100,000 full packets of the bulk direction, and enough round trips to learn something
    let seconds = (1.2e9 / carried as f64).clamp(8.0, 24.0);
    Case {
        link,
        bulk,
        beside,
        duration: Duration::from_secs_f64(seconds),
    }
}

/// A call's worth.
const THIN_RATE: u64 = 64_000;
/// 40 packets a second.
const THIN_SIZE: usize = 172;
/// A packet of Ethernet.
const FULL_PACKET: usize = 1500;
/// What a queue may cost on top of the empty link.
const DELAY_MARGIN: Duration = Duration::from_millis(30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Datagram, Direct, Packet};

    /// No tunnel, with every so-manieth packet dropped in front of the link.
    struct Hobbled {
        direct: Direct,
        every: u64,
        count: u64,
    }

    impl Tunnel for Hobbled {
        fn inject(&mut self, now: Instant, side: Side, packet: Packet) {
            self.count += 1;
            if self.every == 0 || !self.count.is_multiple_of(self.every) {
                self.direct.inject(now, side, packet);
            }
        }

        fn poll_transmit(&mut self, now: Instant, side: Side) -> Option<Datagram> {
            self.direct.poll_transmit(now, side)
        }

        fn handle_datagram(&mut self, now: Instant, side: Side, datagram: Vec<u8>, marked: bool) {
            self.direct.handle_datagram(now, side, datagram, marked);
        }

        fn poll_deliver(&mut self, now: Instant, side: Side) -> Option<Packet> {
            self.direct.poll_deliver(now, side)
        }

        fn poll_timeout(&self, now: Instant) -> Option<Instant> {
            self.direct.poll_timeout(now)
        }

        fn handle_timeout(&mut self, now: Instant) {
            self.direct.handle_timeout(now);
        }
    }

    fn hobbled(every: &[u64]) -> impl Fn(usize, &mut Scenario, Instant) -> Hobbled + Sync {
        |setting, _, _| Hobbled {
            direct: Direct::default(),
            every: every[setting],
            count: 0,
        }
    }

    fn sweep<'a>(cases: &'a [Case], seeds: &'a [u64], threads: usize) -> Sweep<'a> {
        Sweep {
            cases,
            seeds,
            threads,
            budget: Duration::from_secs(3600),
        }
    }

    /// Cases short enough for a test.
    fn short(count: usize) -> Vec<Case> {
        let mut cases = cases(count, 1);
        for case in &mut cases {
            case.duration = Duration::from_secs(3);
        }
        cases
    }

    #[test]
    fn setting_is_never_worse_than_itself() {
        let cases = short(12);
        let result = sweep(&cases, &[1, 2], 2).run(2, hobbled(&[0, 0]));
        assert_eq!((result.outcomes.len(), result.left_out), (48, 0));
        let grades = result.grades(&cases, 0, 1);
        assert_eq!(grades.len(), cases.len());
        for grade in &grades {
            assert_eq!(
                (grade.least, grade.median),
                (1.0, 1.0),
                "{}",
                cases[grade.case]
            );
            assert!(grade.delay <= 1.0, "{}", cases[grade.case]);
        }
    }

    #[test]
    fn worse_setting_is_found_and_the_worst_is_named_with_its_seed() {
        let cases = short(10);
        let result = sweep(&cases, &[1, 2, 3], 2).run(2, hobbled(&[0, 50]));
        assert!(result.outcomes.iter().all(|outcome| outcome.corrupt == 0));
        let grades = result.grades(&cases, 0, 1);
        let worst = &grades[0];
        assert!(worst.least < 0.5, "{worst:?}");
        assert!(grades.is_sorted_by(|a, b| a.least <= b.least));
        let text = result.worst(&cases, &grades, 5);
        assert_eq!(text.lines().count(), 12, "{text}");
        assert!(
            text.contains(&format!("({}), seed {}", cases[worst.case], worst.seed)),
            "{text}"
        );
    }

    #[test]
    fn result_does_not_depend_on_the_number_of_threads() {
        let cases = short(6);
        let one = sweep(&cases, &[4, 5], 1).run(1, hobbled(&[0]));
        assert_eq!(one, sweep(&cases, &[4, 5], 3).run(1, hobbled(&[0])));
    }

    #[test]
    fn exhausted_budget_leaves_runs_out_and_says_so() {
        let cases = short(3);
        let sweep = Sweep {
            budget: Duration::ZERO,
            ..sweep(&cases, &[1], 2)
        };
        let result = sweep.run(1, hobbled(&[0]));
        assert_eq!((result.outcomes.len(), result.left_out), (0, 3));
        assert!(result.grades(&cases, 0, 0).is_empty());
    }

    #[test]
    fn cases_are_of_every_kind_and_do_not_depend_on_how_many_are_drawn() {
        let all = cases(200, 1);
        assert_eq!(all[..50], cases(50, 1));
        let count = |test: fn(&Case) -> bool| all.iter().filter(|case| test(case)).count();
        assert!(count(|case| case.link.down.loss == Loss::None) > 30);
        assert!(count(|case| matches!(case.link.down.loss, Loss::Random { .. })) > 40);
        assert!(count(|case| matches!(case.link.down.loss, Loss::Burst { .. })) > 30);
        assert!(count(|case| !case.link.down.jitter.is_zero()) > 40);
        assert!(count(|case| case.link.down.overtaking) > 5);
        assert!(count(|case| !case.beside.is_empty()) > 60);
        assert!(count(|case| case.bulk.from() == Side::Client) > 30);
        for case in &all {
            assert_eq!(case.link.check(), Ok(()), "{case}");
            assert_eq!(case.link.to_string().parse(), Ok(case.link));
        }
    }
}
