//! What it costs to judge a name by lists of half a million, and to load them.
//!
//! `cargo bench --bench dns`. The names are made up, of the lengths and depths that lists have; asked are names that are
//! listed, names below them, and names that are not. Beside the figures of criterion it prints how long a list of 500,000
//! lines takes to load, and by how much the process grows meanwhile at most.

use std::fs;
use std::hint::black_box;
use std::io::Write;
use std::time::Instant;

use adit::client::dns::lists::ListStore;
use adit::client::dns::policy::{Decision, Policy};
use adit::client::dns::{Domain, NameTable, Scope};
use adit::config::{DnsConfig, ListSource};
use criterion::{Criterion, criterion_group, criterion_main};
use hickory_proto::rr::Name;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

const NAMES: usize = 500_000;

/// Names as in lists: two to four labels, of which the last two are shared by some.
fn names() -> Vec<String> {
    let mut random = StdRng::seed_from_u64(1);
    let mut label = |least, most| -> String {
        let length = random.random_range(least..=most);
        (0..length)
            .map(|_| char::from(random.random_range(b'a'..=b'z')))
            .collect()
    };
    (0..NAMES)
        .map(|number| {
            let domain = format!(
                "{}.{}",
                label(6, 14),
                ["com", "net", "io", "co"][number % 4]
            );
            match number % 3 {
                0 => domain,
                1 => format!("{}.{domain}", label(3, 10)),
                _ => format!("{}.{}.{domain}", label(2, 6), label(3, 10)),
            }
        })
        .collect()
}

/// What the kernel says of this process's memory, in KiB.
fn memory(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn load(names: &[String]) -> Policy {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    for (number, name) in names.iter().enumerate() {
        let line = match number % 3 {
            0 => format!("0.0.0.0 {name}\n"),
            1 => format!("{name}\n"),
            _ => format!("||{name}^\n"),
        };
        file.write_all(line.as_bytes()).expect("written");
    }
    file.flush().expect("written");
    let config = DnsConfig {
        block: vec![ListSource::File(file.path().to_owned())],
        ..DnsConfig::default()
    };
    let store = ListStore::new(&config).expect("no folder is needed");
    // The high-water mark starts anew.
    let _ = fs::write("/proc/self/clear_refs", "5");
    let before = memory("VmRSS:");
    let began = Instant::now();
    let (lists, outcomes) = store.read();
    let took = began.elapsed();
    let report = outcomes.first().map(|told| match &told.outcome {
        Ok(report) => report.to_string(),
        Err(error) => error.to_string(),
    });
    println!(
        "loaded: {} in {took:?}; {} KiB more at most, table {} KiB",
        report.unwrap_or_default(),
        memory("VmHWM:").saturating_sub(before),
        lists.block.memory() / 1024,
    );
    Policy::default().with_lists(lists)
}

fn judge(criterion: &mut Criterion) {
    let names = names();
    let policy = load(&names);
    let mut random = StdRng::seed_from_u64(2);
    let mut pick = |change: &dyn Fn(&str) -> String| -> Vec<Domain> {
        (0..4096)
            .filter_map(|_| names.choose(&mut random))
            .filter_map(|name| Name::from_ascii(change(name)).ok())
            .map(|name| Domain::new(&name))
            .collect()
    };
    let cases = [
        ("listed", pick(&|name| name.to_owned())),
        ("below a listed one", pick(&|name| format!("a.b.{name}"))),
        ("not listed", pick(&|name| format!("{name}.example"))),
        (
            "not listed, ten labels",
            pick(&|name| format!("a.b.c.d.e.f.g.{name}.zz")),
        ),
    ];
    let mut group = criterion.benchmark_group("judge a name by 500,000");
    for (case, asked) in &cases {
        let mut next = asked.iter().cycle();
        group.bench_function(*case, |bencher| {
            bencher.iter(|| next.next().map(|name| policy.decide(black_box(name))));
        });
    }
    group.finish();
    let blocked = |name: &&Domain| matches!(policy.decide(name), Decision::Blocked(_));
    let all: usize = cases
        .iter()
        .map(|(_, asked)| asked.iter().filter(blocked).count())
        .sum();
    println!("{all} of {} were blocked", 4 * 4096);
}

fn fill(criterion: &mut Criterion) {
    let names = names();
    let mut group = criterion.benchmark_group("fill a table");
    group.sample_size(10);
    group.bench_function("500,000 names", |bencher| {
        bencher.iter(|| {
            let mut table = NameTable::default();
            for name in &names {
                let _ = table.insert(name.as_bytes(), Scope::Subdomains, 0);
            }
            table.len()
        });
    });
    group.finish();
}

criterion_group!(benches, judge, fill);
criterion_main!(benches);
