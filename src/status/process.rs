//! What the system says of this process, from /proc.

use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

/// What the system says of a process; 0 where it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ProcessReport {
    /// Its number.
    pub pid: u32,
    /// When it began, in seconds since 1970.
    pub start_seconds: f64,
    /// Processor time that it has used, in seconds.
    pub cpu_seconds: f64,
    /// Memory that it holds, in bytes.
    pub resident_bytes: u64,
    /// Address space that it has, in bytes.
    pub virtual_bytes: u64,
    /// Its threads.
    pub threads: u64,
    /// Descriptors that it has open.
    pub open_fds: u64,
    /// Descriptors that it may have open.
    pub max_fds: u64,
}

impl ProcessReport {
    /// Looks at this process.
    pub fn now() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
        // The descriptor that reads the folder is among them.
        let open = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count());
        let limit = getrlimit(Resource::Nofile).current.unwrap_or_default();
        Self {
            pid: std::process::id(),
            open_fds: u64::try_from(open).unwrap_or_default().saturating_sub(1),
            max_fds: limit,
            ..Self::parse(&stat, &boot)
        }
    }

    /// Reads proc_pid_stat(5) and, for the time of boot, proc_stat(5).
    fn parse(stat: &str, boot: &str) -> Self {
        // The name of the program, in parentheses, may hold anything.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().collect())
            .unwrap_or_default();
        let field = |number: usize| -> u64 {
            // The first behind the name is the third of the page.
            let text = number.checked_sub(3).and_then(|at| fields.get(at));
            text.and_then(|text| text.parse().ok()).unwrap_or_default()
        };
        let booted: u64 = boot
            .lines()
            .find_map(|line| line.strip_prefix("btime "))
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or_default();
        let seconds = |ticks: u64| ticks as f64 / clock_ticks_per_second() as f64;
        let page = u64::try_from(page_size()).unwrap_or_default();
        Self {
            start_seconds: booted as f64 + seconds(field(22)),
            cpu_seconds: seconds(field(14) + field(15)),
            resident_bytes: field(24) * page,
            virtual_bytes: field(23),
            threads: field(20),
            ..Self::default()
        }
    }
}

/// How many tasks the runtime of the caller has.
pub fn tasks() -> u64 {
    let tasks = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    u64::try_from(tasks).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_descriptors_and_an_age() {
        let now = ProcessReport::now();
        assert!(now.resident_bytes > 1 << 16 && now.virtual_bytes >= now.resident_bytes);
        assert!(now.open_fds >= 3 && now.open_fds <= now.max_fds, "{now:?}");
        assert!(now.threads >= 1 && now.start_seconds > 1e9, "{now:?}");
    }

    #[test]
    fn name_of_the_program_may_hold_anything() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 0 0 0 0 200 100 0 0 20 0 3 0 5000 8192 2 0";
        let read = ProcessReport::parse(stat, "cpu 1\nbtime 1000\n");
        assert_eq!(read.threads, 3);
        assert_eq!(read.virtual_bytes, 8192);
        let ticks = clock_ticks_per_second() as f64;
        assert_eq!(read.cpu_seconds, 300.0 / ticks);
        assert_eq!(read.start_seconds, 1000.0 + 5000.0 / ticks);
        assert_eq!(ProcessReport::parse("", ""), ProcessReport::default());
    }
}
