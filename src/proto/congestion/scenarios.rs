//! The controller on links in virtual time.

use std::time::Duration;

use super::link::{Kind, Link, Simulation};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn explore() {
    let show = |name: &str, link: Link, kinds: &[Kind], secs: u64| {
        for seed in 1..=2 {
            let mut sim = Simulation::new(link.clone(), seed);
            let rate = link.rate;
            for kind in kinds { sim.add(*kind); sim.run(s(3)); }
            sim.run(s(3));
            let rates = sim.measure(s(secs));
            let (mean, high) = sim.queueing(0, s(secs));
            let shares: Vec<String> = rates.iter().map(|r| format!("{:.3}", r / rate)).collect();
            let report = sim.flows.iter().map(|f| f.report_bytes).sum::<u64>() as f64 / sim.flows[0].arrived as f64;
            println!("{name:28} seed {seed} shares {shares:?} queue mean {mean:.1} p99 {high:.1} reports {report:.4} dropped {:.3} {:?}", sim.flows[0].dropped as f64 / (sim.flows[0].arrived+sim.flows[0].dropped) as f64, kinds.iter().enumerate().filter(|(_,k)| matches!(k, Kind::Lane)).map(|(i,_)| sim.metrics(i)).collect::<Vec<_>>());
        }
    };
    let base = Link::default();
    show("alone", base.clone(), &[Kind::Lane], 20);
    show("alone 5%", Link { loss: 0.05, ..base.clone() }, &[Kind::Lane], 20);
    show("alone 10%", Link { loss: 0.10, ..base.clone() }, &[Kind::Lane], 20);
    show("jitter 10", Link { jitter: ms(10), ..base.clone() }, &[Kind::Lane], 20);
    show("jitter 10 reorder", Link { jitter: ms(10), reorder: true, ..base.clone() }, &[Kind::Lane], 20);
    show("200ms", Link { delay: ms(100), ..base.clone() }, &[Kind::Lane], 20);
    show("4ms", Link { delay: ms(2), ..base.clone() }, &[Kind::Lane], 20);
    show("1Mbit", Link { rate: 1e6, ..base.clone() }, &[Kind::Lane], 40);
    show("shallow 5ms queue", Link { queue: ms(5), ..base.clone() }, &[Kind::Lane], 20);
    show("cubic cubic", base.clone(), &[Kind::Cubic, Kind::Cubic], 60);
    show("bbr bbr", base.clone(), &[Kind::Bbr1, Kind::Bbr1], 60);
    show("cubic bbr", base.clone(), &[Kind::Cubic, Kind::Bbr1], 60);
    show("lane cubic", base.clone(), &[Kind::Lane, Kind::Cubic], 60);
    show("cubic lane", base.clone(), &[Kind::Cubic, Kind::Lane], 60);
    show("lane bbr", base.clone(), &[Kind::Lane, Kind::Bbr1], 60);
    show("bbr lane", base.clone(), &[Kind::Bbr1, Kind::Lane], 60);
    show("lane lane", base.clone(), &[Kind::Lane, Kind::Lane], 60);
}
