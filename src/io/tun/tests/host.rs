//! Hosts for tests: network namespaces with interfaces, addresses and sysctls of their own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::PoisonError;
use std::thread;

use futures_util::TryStreamExt;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::io::nft;
use crate::io::state::PROCESSES;

/// Whether this process may make namespaces and TUN devices; if not, says that the test is skipped, which is a failure
/// in CI.
fn is_able() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        skip("needs root");
        return false;
    }
    // In a thread of its own, which ends with the namespaces that it made.
    // SAFETY: changes the namespaces of that thread alone and touches no memory.
    let made =
        thread::spawn(|| unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) } == 0);
    if !made.join().unwrap() {
        skip("needs root that may make namespaces (CAP_SYS_ADMIN)");
        return false;
    }
    if !Path::new("/dev/net/tun").exists() {
        skip("needs /dev/net/tun");
        return false;
    }
    true
}

pub(super) fn skip(reason: &str) {
    println!("skipped: {reason}");
    assert!(
        std::env::var_os("ADIT_CI").is_none(),
        "skipped in CI: {reason}"
    );
}

/// Runs a test on a host of its own, in a thread of its own with a runtime of its own.
pub(crate) fn on_host<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if is_able() {
        let _no_child = PROCESSES.read().unwrap_or_else(PoisonError::into_inner);
        on_host_now(test);
    }
}

/// As [`on_host`], for a test that starts processes.
pub(super) fn on_host_with_children<F: Future<Output = ()>>(
    test: impl FnOnce() -> F + Send + 'static,
) {
    if is_able() {
        let _alone = PROCESSES.write().unwrap_or_else(PoisonError::into_inner);
        on_host_now(test);
    }
}

fn on_host_now<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = thread::spawn(|| {
        enter_new_network();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            up("lo").await;
            test().await;
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Moves the calling thread into a new network namespace.
pub(super) fn enter_new_network() {
    unshare(libc::CLONE_NEWNET);
}

/// Moves the calling thread into a mount namespace of its own, so that what it mounts is seen by nobody else.
pub(super) fn enter_new_mounts() {
    unshare(libc::CLONE_NEWNS);
    mount("none", "/", libc::MS_REC | libc::MS_PRIVATE);
}

fn unshare(flags: libc::c_int) {
    // SAFETY: changes the namespaces of this thread alone and touches no memory.
    let result = unsafe { libc::unshare(flags) };
    assert_eq!(result, 0, "unshare: {}", io::Error::last_os_error());
}

/// Binds one path over another, or with an empty source changes the flags of a mount.
pub(super) fn mount(source: &str, target: &str, flags: libc::c_ulong) {
    let text = |text: &str| std::ffi::CString::new(text).unwrap();
    let (source, target) = (text(source), text(target));
    // SAFETY: both are zero-terminated and alive; no type or data is needed for these flags.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            std::ptr::null(),
            flags,
            std::ptr::null(),
        )
    };
    assert_eq!(
        result,
        0,
        "mount {target:?}: {}",
        io::Error::last_os_error()
    );
}

/// Makes a device node like /dev/net/tun.
pub(super) fn make_tun_node(path: &Path, mode: u32) {
    let text = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the path is zero-terminated and alive.
    let result = unsafe { libc::mknod(text.as_ptr(), libc::S_IFCHR, libc::makedev(10, 200)) };
    assert_eq!(result, 0, "mknod {path:?}: {}", io::Error::last_os_error());
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A network namespace that a thread can go to and come back from.
pub(super) struct Namespace(File);

impl Namespace {
    pub(super) fn current() -> Self {
        Self(File::open("/proc/thread-self/ns/net").unwrap())
    }

    /// A new one; the calling thread stays where it is.
    pub(super) fn new() -> Self {
        let here = Self::current();
        enter_new_network();
        let new = Self::current();
        here.enter();
        new
    }

    pub(super) fn enter(&self) {
        // SAFETY: moves this thread alone and touches no memory.
        let result = unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "setns: {}", io::Error::last_os_error());
    }

    /// Does something inside, and comes back.
    pub(super) fn within<R>(&self, inside: impl FnOnce() -> R) -> R {
        let here = Self::current();
        self.enter();
        let result = inside();
        here.enter();
        result
    }
}

/// The calling thread's namespace by netlink.
pub(super) fn netlink() -> Handle {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    handle
}

pub(super) async fn index(handle: &Handle, name: &str) -> u32 {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    links.try_next().await.unwrap().unwrap().header.index
}

pub(super) async fn up(name: &str) {
    let handle = netlink();
    let index = index(&handle, name).await;
    handle
        .link()
        .set(LinkUnspec::new_with_index(index).up().build())
        .execute()
        .await
        .unwrap();
}

pub(super) async fn add_address(name: &str, address: &str, prefix_len: u8) {
    let handle = netlink();
    let index = index(&handle, name).await;
    let mut request = handle
        .address()
        .add(index, address.parse::<IpAddr>().unwrap(), prefix_len);
    request.message_mut().header.flags |=
        rtnetlink::packet_route::address::AddressHeaderFlags::Nodad;
    request.execute().await.unwrap();
}

pub(super) async fn add_route(network: &str, gateway: &str) {
    let handle = netlink();
    let gateway: IpAddr = gateway.parse().unwrap();
    let network: ipnet::IpNet = network.parse().unwrap();
    let message = match (network, gateway) {
        (ipnet::IpNet::V4(net), IpAddr::V4(gateway)) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .gateway(gateway)
            .build(),
        (ipnet::IpNet::V6(net), IpAddr::V6(gateway)) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .gateway(gateway)
            .build(),
        (ipnet::IpNet::V4(_), IpAddr::V6(_)) | (ipnet::IpNet::V6(_), IpAddr::V4(_)) => {
            panic!("two families")
        }
    };
    handle.route().add(message).execute().await.unwrap();
}

/// A cable between the calling thread's namespace and another, both ends up with an address of each family.
pub(super) async fn cable(
    here: (&str, [(&str, u8); 2]),
    there: (&str, [(&str, u8); 2]),
    other: &Namespace,
) {
    let handle = netlink();
    handle
        .link()
        .add(LinkVeth::new(here.0, there.0).build())
        .execute()
        .await
        .unwrap();
    let far = index(&handle, there.0).await;
    let message = LinkUnspec::new_with_index(far)
        .setns_by_fd(other.0.as_raw_fd())
        .build();
    handle.link().set(message).execute().await.unwrap();
    let back = Namespace::current();
    for (namespace, (name, addresses)) in [(&back, here), (other, there)] {
        namespace.enter();
        // The kernel would add a link-local address some time later.
        set_sysctl(&format!("net/ipv6/conf/{name}/addr_gen_mode"), "1");
        for (address, prefix_len) in addresses {
            add_address(name, address, prefix_len).await;
        }
        up(name).await;
        back.enter();
    }
}

pub(super) fn sysctl(key: &str) -> String {
    fs::read_to_string(Path::new("/proc/sys").join(key))
        .unwrap()
        .trim()
        .to_owned()
}

pub(crate) fn set_sysctl(key: &str, value: &str) {
    fs::write(Path::new("/proc/sys").join(key), value).unwrap();
}

/// Everything about this host that a tunnel might change: sysctls, links, addresses, routes and nftables.
pub(super) fn everything() -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for family in ["ipv4", "ipv6"] {
        collect(Path::new("/proc/sys/net").join(family).as_path(), &mut all);
    }
    // The name of a wireless-like statistic or a random secret is no state of ours.
    all.retain(|key, _| !key.ends_with("stable_secret") && !key.contains("/route/flush"));
    for table in ["dev", "route", "fib_trie", "if_inet6"] {
        let path = format!("/proc/thread-self/net/{table}");
        let text = fs::read_to_string(&path).unwrap();
        let names: Vec<_> = match table {
            // Names alone: the counters go on.
            "dev" => text
                .lines()
                .filter_map(|line| line.split_once(':'))
                .map(|(name, _)| name.trim())
                .collect(),
            // The inner nodes of the trie depend on the order of events.
            _ => text
                .lines()
                .filter(|line| !line.contains("+--"))
                .map(str::trim)
                .collect(),
        };
        all.insert(path, names.join("\n"));
    }
    all.insert(
        "nftables".to_owned(),
        format!("{:?}", nft::chains().unwrap()),
    );
    all
}

fn collect(directory: &Path, all: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, all);
        } else if let Ok(value) = fs::read_to_string(&path) {
            all.insert(path.to_string_lossy().into_owned(), value.trim().to_owned());
        }
    }
}

/// Panics with the differences if the host is not as it was.
#[track_caller]
pub(super) fn assert_unchanged(before: &BTreeMap<String, String>) {
    let after = everything();
    let keys: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let changed: Vec<_> = keys
        .into_iter()
        .filter(|key| before.get(*key) != after.get(*key))
        .map(|key| format!("{key}: {:?} is now {:?}", before.get(key), after.get(key)))
        .collect();
    assert!(changed.is_empty(), "{}", changed.join("\n"));
}
