//! What the system lets this process use of memory, and how it is given back.

use std::fs;
use std::path::{Path, PathBuf};

/// Asks the allocator to return what it holds free, where it can be asked.
///
/// glibc keeps freed memory in its arenas; after thousands of flows that is most of the
/// process. It takes milliseconds: call it when a burst is over, not in the middle of one.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim takes no pointer and may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// How many bytes the control group of this process may use, and those above it, as a container's limit, a pod's or systemd's
/// `MemoryMax=` sets it; `None` where nobody has set one. Beyond it the kernel kills.
pub fn allowed() -> Option<usize> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    least(&groups, Path::new("/sys/fs/cgroup"))
}

/// The least of the limits of this process's group, of those above it, and of what stands at the root, which inside a
/// container is its own.
fn least(groups: &str, root: &Path) -> Option<usize> {
    let mut files = vec![
        root.join("memory.max"),
        root.join("memory/memory.limit_in_bytes"),
    ];
    files.extend(groups.lines().flat_map(|line| own_files(line, root)));
    let limits = files.iter().filter_map(|file| {
        // Version 2 has the word max for none, version 1 a number beyond all memory.
        let text = fs::read_to_string(file).ok()?;
        text.trim().parse::<usize>().ok()
    });
    limits.filter(|limit| *limit < UNLIMITED).min()
}

/// Where the limits of the group in a line of /proc/self/cgroup stand (cgroups(7)), `hierarchy:controllers:path`, and those
/// of the groups above it.
fn own_files(line: &str, root: &Path) -> Vec<PathBuf> {
    let mut parts = line.splitn(3, ':');
    let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
    else {
        return Vec::new();
    };
    let (root, name) = if controllers.is_empty() {
        (root.to_owned(), "memory.max")
    } else if controllers.split(',').any(|name| name == "memory") {
        (root.join("memory"), "memory.limit_in_bytes")
    } else {
        return Vec::new();
    };
    let groups = Path::new(path.trim_start_matches('/')).ancestors();
    groups.map(|group| root.join(group).join(name)).collect()
}

/// More than any machine has: version 1 says 2^63 less a page.
const UNLIMITED: usize = 1 << 60;

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let file = root.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    #[test]
    fn limit_of_either_version_is_found_and_none_is_none() {
        let root = tempfile::tempdir().unwrap();
        let of = |groups| least(groups, root.path());
        assert_eq!(of("0::/\n"), None);
        write(root.path(), "memory.max", "max\n");
        assert_eq!(of("0::/\n"), None);
        write(
            root.path(),
            "system.slice/adit.service/memory.max",
            "67108864\n",
        );
        assert_eq!(of("0::/system.slice/adit.service\n"), Some(64 << 20));
        assert_eq!(of("0::/system.slice/adit.service/below\n"), Some(64 << 20));
        let old = "memory/docker/1/memory.limit_in_bytes";
        write(root.path(), old, "9223372036854771712\n");
        assert_eq!(of("4:cpu,memory:/docker/1\n"), None);
        write(root.path(), old, "1048576\n");
        assert_eq!(of("5:cpu:/docker/1\n"), None);
        assert_eq!(of("5:cpu:/\n4:cpu,memory:/docker/1\n"), Some(1 << 20));
        // A container that sees no more than itself.
        write(root.path(), "memory.max", "4096\n");
        assert_eq!(of("0::/../..\n"), Some(4096));
    }
}
