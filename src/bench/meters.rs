//! What processes have used, as the kernel counts it (proc(5)).

use std::fs;
use std::io;
use std::time::Duration;

/// Returns the CPU time of a process and all its threads, user's and system's, in steps of 10 ms.
///
/// # Errors
/// There is no such process, or no /proc.
pub(super) fn cpu(process: u32) -> io::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{process}/stat"))?;
    ticks(&text)
        .map(|ticks| Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a stat that is none"))
}

/// Returns the resident memory of a process in bytes.
///
/// # Errors
/// There is no such process, it is another user's, or there is no /proc.
pub(super) fn resident(process: u32) -> io::Result<u64> {
    // The sums that are kept all the time are off by some pages for each thread; this one is made when it is read.
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    kibibytes(&text, "Rss:")
        .map(|kibibytes| kibibytes * 1024)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a smaps_rollup that is none"))
}

/// Fields 14 and 15 of proc_pid_stat(5), behind the name in brackets, which may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, behind) = stat.rsplit_once(')')?;
    let mut fields = behind.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// The kernel's USER_HZ, which belongs to its interface and is the same wherever Rust's standard library runs on Linux.
const TICKS_PER_SECOND: u64 = 100;

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    #[test]
    fn name_of_a_process_may_hold_brackets_and_spaces() {
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 700 35 0 0 20 0";
        assert_eq!(ticks(stat), Some(735));
        assert_eq!(ticks("12 (a) S 1"), None);
        assert_eq!(ticks(""), None);
    }

    #[test]
    fn resident_memory_is_read_with_its_unit() {
        let text =
            "55d-7ff ---p 00000000 00:00 0 [rollup]\nRss:                1234 kB\nPss: 7 kB\n";
        assert_eq!(kibibytes(text, "Rss:"), Some(1234));
        assert_eq!(kibibytes("Rss: 12 MB\n", "Rss:"), None);
        assert_eq!(kibibytes("", "Rss:"), None);
    }

    #[test]
    fn this_process_uses_memory_and_time() {
        let own = process::id();
        let resident = resident(own).expect("it runs");
        assert!((1 << 16..1 << 40).contains(&resident), "{resident}");
        let before = cpu(own).expect("it runs");
        let mut sum = 0_u64;
        // Each step of the count is 10 ms: a loop that ends as soon as one is seen.
        while cpu(own).expect("it runs") == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(cpu(u32::MAX).is_err());
    }
}
