//! The limit of open descriptors, raised as far as an unprivileged process may.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open descriptors to the hard one and returns it.
///
/// Every proxied connection is a descriptor, and the soft limit most systems start a process
/// with (1,024, kept that low for programs that use `select`) is soon used up. `None` means that
/// there is no limit.
///
/// # Errors
///
/// What the kernel answers; the limit then stays what it was.
pub fn raise_open_files() -> io::Result<Option<u64>> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                maximum: limit.maximum,
            },
        )?;
    }
    Ok(limit.maximum)
}

/// Returns how many descriptors a program that is started from here may have open; `None`: any number.
pub fn most_open_files() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_limit_becomes_the_hard_one() {
        let raised = raise_open_files().expect("raising to the hard limit needs no privilege");
        let now = getrlimit(Resource::Nofile);
        assert_eq!(now.current, raised);
        assert_eq!(now.current, now.maximum);
    }
}
