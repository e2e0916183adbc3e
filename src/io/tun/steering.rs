//! Spreads what the kernel does with clients' packets over the processors: receive packet steering (RPS), which
//! `Documentation/networking/scaling.rst` of Linux describes.
//!
//! Otherwise the thread that writes a packet to the device also routes and masquerades it, and, where the origin is on the same
//! host, runs the origin's TCP. That thread has the session to seal and to open as well. The kernel chooses the processor by
//! the flow, so that no flow is reordered.
//!
//! The setting belongs to the device and ends with it. It takes more than CAP_NET_ADMIN: /sys/class/net is root's, and
//! shows the network namespace of whoever mounted it, so that it is mounted here anew, and nowhere. Without it everything
//! works as before.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Dir, Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::thread::{CpuSet, sched_getaffinity};

/// Lets all processors that this process may use share the work for what is written to the interface `name`; says how many
/// they are. One is left alone.
///
/// # Errors
/// What the system said, to opening or to writing.
pub(super) fn steer(name: &str) -> io::Result<usize> {
    let processors = sched_getaffinity(None)?;
    let count = processors.count() as usize;
    if count < 2 {
        return Ok(count);
    }
    set(name, &mask(&processors))?;
    Ok(count)
}

/// Has the processors of `mask` work on what is written to the interface `name`; with none it is worked on before the write
/// returns.
pub(super) fn set(name: &str, mask: &str) -> io::Result<()> {
    let queues = openat(
        sysfs()?,
        format!("class/net/{name}/queues"),
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    for entry in Dir::read_from(&queues)? {
        let entry = entry?;
        let Ok(queue) = entry.file_name().to_str() else {
            continue;
        };
        if queue.starts_with("rx-") {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let setting = openat(&queues, format!("{queue}/rps_cpus"), flags, Mode::empty())?;
            rustix::io::write(&setting, mask.as_bytes())?;
        }
    }
    Ok(())
}

/// Mounts sysfs for the network namespace that this process is in, without a place in the file system.
fn sysfs() -> io::Result<OwnedFd> {
    let context = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// Writes a set as the kernel reads it: 32 processors a group, the highest first.
fn mask(processors: &CpuSet) -> String {
    let groups = (0..CpuSet::MAX_CPU / 32).map(|group| {
        (0..32)
            .filter(|bit| processors.is_set(group * 32 + bit))
            .fold(0_u32, |mask, bit| mask | 1 << bit)
    });
    let groups: Vec<u32> = groups.collect();
    let len = groups
        .iter()
        .rposition(|group| *group != 0)
        .map_or(1, |last| last + 1);
    let groups: Vec<String> = groups[..len]
        .iter()
        .rev()
        .map(|group| format!("{group:08x}"))
        .collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;

    use super::super::Tun;
    use super::super::tests::host::on_host;
    use super::*;

    #[test]
    fn what_is_written_to_a_device_is_worked_on_by_all_processors() {
        on_host(|| async {
            let _tun = Tun::open("adit0").unwrap();
            let count = steer("adit0").unwrap();
            let path = "class/net/adit0/queues/rx-0/rps_cpus";
            let setting = openat(sysfs().unwrap(), path, OFlags::RDONLY, Mode::empty()).unwrap();
            let mut set = String::new();
            File::from(setting).read_to_string(&mut set).unwrap();
            let groups = set.trim().split(',');
            let set: u32 = groups
                .map(|it| u32::from_str_radix(it, 16).unwrap().count_ones())
                .sum();
            assert_eq!(set as usize, if count < 2 { 0 } else { count });
        });
    }

    #[test]
    fn masks_are_groups_of_32_processors_the_highest_first() {
        let mut processors = CpuSet::new();
        assert_eq!(mask(&processors), "00000000");
        processors.set(0);
        processors.set(1);
        assert_eq!(mask(&processors), "00000003");
        processors.set(31);
        processors.set(64);
        assert_eq!(mask(&processors), "00000001,00000000,80000003");
    }
}
