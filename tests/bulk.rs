//! What 64 KiB of a bulk transfer cost on the whole path: heap allocations and copies.
//!
//! Client, lane, server with egress `user`, an application and an origin live in this process.
//! Its allocator counts allocations, and its `memcpy` and `memmove` count the bytes of every
//! copy of some size, whoever makes it: the netstack, a buffer that is moved, rustls, tokio.
//! Application and origin are threads that move bytes between a socket and one fixed array:
//! they allocate and copy nothing, so what is counted is ours.
//!
//! The kernel's own copies do not show here. Each byte that a `read` or `write` moves is one,
//! and the system calls are counted by a test of their own, of the real program.
//!
//! The amounts are of bytes, not of time: a slow machine gives the same numbers. They vary a
//! little with how the bytes happen to be cut, which is why the bounds leave some room, less
//! than one more copy or one more allocation per super-packet would take.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::c_void;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use adit::config::Scheme;

#[path = "path/mod.rs"]
mod path;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static COPIED: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting touches no heap.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is that of the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: `pointer` came from above, so from the system's allocator.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from above, so from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

unsafe extern "C" {
    /// copies as `memmove` does, under a name that is left alone here
    fn bcopy(from: *const c_void, to: *mut c_void, len: usize);
}

/// Counts and copies.
///
/// # Safety
///
/// As `memmove`.
unsafe fn copy(to: *mut c_void, from: *const c_void, len: usize) -> *mut c_void {
    // The C library does nothing where both are the same (aws-lc-rs asks for it to open in place).
    if len >= DATA && to.cast_const() != from {
        COPIED.fetch_add(len as u64, Ordering::Relaxed);
    }
    // The compiler knows this function, and would make a call of `memmove` of it.
    let bcopy: unsafe extern "C" fn(*const c_void, *mut c_void, usize) = black_box(bcopy);
    // SAFETY: whoever calls `memcpy` or `memmove` keeps the contract of this one too.
    unsafe { bcopy(from, to, len) };
    to
}

/// Takes the place of the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut c_void, from: *const c_void, len: usize) -> *mut c_void {
    // SAFETY: the contract is the caller's.
    unsafe { copy(to, from, len) }
}

/// Takes the place of the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut c_void, from: *const c_void, len: usize) -> *mut c_void {
    // SAFETY: the contract is the caller's.
    unsafe { copy(to, from, len) }
}

/// What a transfer has cost for each 64 KiB that arrived.
#[derive(Debug)]
struct Cost {
    allocations: f64,
    /// Copies of each byte in user space.
    copies: f64,
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Down,
    Up,
}

/// How flows cross the lane.
#[derive(Clone, Copy, Debug)]
enum By {
    /// As they are.
    Relay,
    /// In packets, from netstack to netstack.
    Packets,
}

/// Moves [`WARM`] and then [`COUNTED`] bytes, and counts what the latter cost.
fn cost(scheme: Scheme, by: By, way: Way) -> Cost {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = origin.local_addr().unwrap();
    let application = TcpStream::connect(proxy.local_addr().unwrap()).unwrap();
    let proxied = proxy.accept().unwrap().0;
    proxied.set_nonblocking(true).unwrap();
    let path = runtime.block_on(connected(scheme, by, target, proxied));
    let origin = origin.accept().unwrap().0;
    let (from, to) = match way {
        Way::Down => (origin, application),
        Way::Up => (application, origin),
    };
    let sending = std::thread::spawn(move || send(from));
    let cost = receive(to);
    sending.join().unwrap();
    runtime.block_on(path.end());
    cost
}

/// Starts a path with one flow to `target` that carries what `proxied` says.
async fn connected(scheme: Scheme, by: By, target: SocketAddr, proxied: TcpStream) -> path::Path {
    let path = match by {
        By::Relay => path::Path::start(scheme).await,
        By::Packets => path::Path::start_by_packets(scheme).await,
    };
    path.connected().await;
    let flow = path.client.tunnel().connect(target).await.unwrap();
    let proxied = tokio::net::TcpStream::from_std(proxied).unwrap();
    flow.attach(proxied, Vec::new());
    path
}

fn send(mut to: TcpStream) {
    let bytes = [7; 65_536];
    let mut left = WARM + COUNTED;
    while left > 0 {
        let len = left.min(bytes.len() as u64) as usize;
        to.write_all(&bytes[..len]).unwrap();
        left -= len as u64;
    }
    // The other end has everything when it closes; until then nothing must end here.
    assert_eq!(to.read(&mut [0]).unwrap(), 0);
}

fn receive(mut from: TcpStream) -> Cost {
    let mut bytes = [0; 65_536];
    let mut read_until = |from: &mut TcpStream, mut read: u64, until: u64| {
        while read < until {
            let most = (until - read).min(bytes.len() as u64) as usize;
            let len = from.read(&mut bytes[..most]).unwrap();
            assert!(len > 0, "ended after {read} bytes");
            read += len as u64;
        }
        read
    };
    let read = read_until(&mut from, 0, WARM);
    let before = (
        ALLOCATIONS.load(Ordering::Relaxed),
        COPIED.load(Ordering::Relaxed),
    );
    let all = read_until(&mut from, read, WARM + COUNTED);
    let (allocations, copied) = (
        ALLOCATIONS.load(Ordering::Relaxed) - before.0,
        COPIED.load(Ordering::Relaxed) - before.1,
    );
    let counted = (all - read) as f64;
    Cost {
        allocations: allocations as f64 / (counted / 65_536.0),
        copies: copied as f64 / counted,
    }
}

fn check(scheme: Scheme, by: By, most: Cost) {
    let _alone = ALONE.lock().unwrap_or_else(|broken| broken.into_inner());
    for way in [Way::Down, Way::Up] {
        let cost = cost(scheme, by, way);
        println!("{scheme:?} {by:?} {way:?}: {cost:?}");
        assert!(
            cost.allocations <= most.allocations && cost.copies <= most.copies,
            "{scheme:?} {by:?} {way:?}: {cost:?} per 64 KiB, expected at most {most:?}"
        );
    }
}

#[test]
fn relayed_bytes_over_a_tcp_lane_are_neither_copied_nor_cost_an_allocation() {
    check(
        Scheme::Tcp,
        By::Relay,
        Cost {
            // None, but for what the runtime does once in a while.
            allocations: 0.05,
            // Less than a tenth inside the lane's read buffer, and what a socket does not take at once.
            copies: 0.25,
        },
    );
}

#[test]
fn relayed_bytes_over_a_tls_lane_are_copied_by_tls_alone() {
    check(
        Scheme::Tls,
        By::Relay,
        Cost {
            // Two for each record of 16 KiB, and what the cutting of frames adds.
            allocations: 13.0,
            // rustls copies once into a record, and twice out of one.
            copies: 3.5,
        },
    );
}

#[test]
fn relayed_bytes_over_a_websocket_lane_are_copied_by_the_mask_and_behind_heads() {
    check(
        Scheme::Ws,
        By::Relay,
        Cost {
            // None, but for what the runtime does once in a while.
            allocations: 0.05,
            // Once for the mask (up); what stands behind a head in a read is moved (both ways).
            copies: 2.25,
        },
    );
}

#[test]
fn packets_over_a_tcp_lane_are_copied_twice_without_an_allocation() {
    check(
        Scheme::Tcp,
        By::Packets,
        Cost {
            // None, but for what the runtime does once in a while.
            allocations: 0.05,
            // Into and out of the netstack's rings, and less than a tenth inside the lane's
            // read buffer.
            copies: 2.25,
        },
    );
}

#[test]
fn packets_over_a_tls_lane_are_copied_three_times_more_by_tls() {
    check(
        Scheme::Tls,
        By::Packets,
        Cost {
            // Two for each record of 16 KiB, and what the cutting of frames adds.
            allocations: 13.0,
            // rustls copies once into a record, and twice out of one.
            copies: 5.5,
        },
    );
}

#[test]
fn counters_count() {
    let _alone = ALONE.lock().unwrap_or_else(|broken| broken.into_inner());
    let (allocations, copied) = (
        ALLOCATIONS.load(Ordering::Relaxed),
        COPIED.load(Ordering::Relaxed),
    );
    let from = black_box(vec![1_u8; 4096]);
    let mut to = black_box(vec![0_u8; 4096]);
    to.copy_from_slice(black_box(&from));
    to.copy_within(..black_box(3000), black_box(500));
    assert_eq!(black_box(&to)[600], 1);
    assert!(ALLOCATIONS.load(Ordering::Relaxed) >= allocations + 2);
    assert!(COPIED.load(Ordering::Relaxed) >= copied + 4096 + 3000);
}

/// The counters are of the process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// What is copied in pieces of less is not the data of a bulk transfer but a struct that is
/// moved, which an unoptimised build does often, or a header.
const DATA: usize = 1024;

/// Until every buffer has its size, every queue its capacity and every window is open.
const WARM: u64 = 32 << 20;

/// A thousand super-packets and more: whatever happens once or every second does not count.
const COUNTED: u64 = 96 << 20;
