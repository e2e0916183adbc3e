//! What a process costs, read from /proc.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

/// What a process holds at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meters {
    /// Resident memory in bytes (VmRSS).
    pub resident: u64,
    /// Resident memory with shared pages divided among those who share them, in bytes (Pss).
    pub proportional: u64,
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
}

impl Meters {
    /// Reads the meters of the process `pid`; `None` if it is gone.
    pub fn read(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        Some(Self {
            resident: field(&status, "VmRSS:")? * 1024,
            proportional: field(&rollup, "Pss:").unwrap_or_default() * 1024,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count(),
            threads: usize::try_from(field(&status, "Threads:")?).ok()?,
        })
    }

    /// Whether memory is within a tenth and 8 MiB of what it was at `before`.
    pub fn memory_is_back_at(&self, before: &Self) -> bool {
        self.resident <= before.resident + before.resident / 10 + (8 << 20)
    }
}

impl std::fmt::Display for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes / 1024 * 10 / 1024;
        write!(
            f,
            "{}.{} MiB resident, {} descriptors, {} threads",
            mib(self.resident) / 10,
            mib(self.resident) % 10,
            self.descriptors,
            self.threads
        )
    }
}

/// What every descriptor of `pid` leads to, for messages about one too many.
pub fn descriptors(pid: u32) -> Vec<String> {
    let folder = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    let mut list: Vec<_> = folder
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            Some(format!(
                "{} → {}",
                entry.file_name().to_string_lossy(),
                target.display()
            ))
        })
        .collect();
    list.sort();
    list
}

/// Asks `probe` until it gives something or `limit` has passed.
pub fn wait_for<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(name)?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_meters_are_plausible() {
        let meters = Meters::read(std::process::id()).expect("this process lives");
        assert!(
            meters.resident > 100_000 && meters.threads >= 1 && meters.descriptors >= 3,
            "{meters}"
        );
    }

    #[test]
    fn memory_may_grow_by_a_tenth_and_8_mib() {
        let at = |resident| Meters {
            resident,
            proportional: 0,
            descriptors: 0,
            threads: 0,
        };
        let before = at(100 << 20);
        assert!(at(118 << 20).memory_is_back_at(&before));
        assert!(!at(119 << 20).memory_is_back_at(&before));
    }
}
