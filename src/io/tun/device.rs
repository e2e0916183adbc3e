//! The TUN device: a descriptor that gives and takes whole packets, super-packets among them.
//!
//! It is opened with `IFF_TUN | IFF_NO_PI | IFF_VNET_HDR`: every read and write is one [`VirtioHeader`] and one IP
//! packet. The kernel is told that we take checksums that are owed and TCP super-packets (and UDP ones where it knows
//! them, since 6.2), so one read gives up to 64 KiB of a flow. The kernel is told to do the same with what we write by
//! the header alone.
//!
//! The device is not persistent: it ends with its last descriptor.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use rustix::net::{AddressFamily, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::virtio::VirtioHeader;

/// An open TUN device, non-blocking, on the current tokio runtime.
#[derive(Debug)]
pub struct Tun {
    fd: AsyncFd<OwnedFd>,
    name: String,
    udp_super_packets: bool,
}

impl Tun {
    /// Creates the interface `name` and opens it; must be called inside a tokio runtime with IO enabled.
    ///
    /// # Errors
    /// [`OpenError`], each variant of which says what to do about it.
    pub fn open(name: &str) -> Result<Self, OpenError> {
        Self::open_at(Path::new(DEVICE), name)
    }

    /// As [`Tun::open`], with the device node at another path.
    ///
    /// # Errors
    /// As [`Tun::open`].
    pub fn open_at(device: &Path, name: &str) -> Result<Self, OpenError> {
        let fd = create(device, name)?;
        let udp_super_packets = announce_offload(&fd)?;
        let fd = register(fd)?;
        Ok(Self {
            fd,
            name: name.to_owned(),
            udp_super_packets,
        })
    }

    /// Takes over a descriptor that somebody else opened and attached to the interface `name` as [`Tun::open`] does.
    ///
    /// It is made non-blocking, and told its offload and byte order anew.
    ///
    /// # Errors
    /// [`OpenError::Offload`] when it is not such a descriptor; [`OpenError::Register`] when tokio refuses it.
    pub fn from_fd(fd: OwnedFd, name: &str) -> Result<Self, OpenError> {
        set_nonblocking(fd.as_fd()).map_err(OpenError::Register)?;
        let udp_super_packets = announce_offload(&fd)?;
        let fd = register(fd)?;
        Ok(Self {
            fd,
            name: name.to_owned(),
            udp_super_packets,
        })
    }

    /// Reads one [`VirtioHeader`] and its packet; gives the bytes read.
    ///
    /// `buffer` should hold [`READ_LEN`] bytes: the kernel cuts off what does not fit.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing waits: then [`Tun::poll_read_ready`] waits for more. Others as the
    /// kernel has them, `EIO` when the interface was taken down or deleted.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fd
            .try_io(Interest::READABLE, |fd| read(fd.as_fd(), buffer))
    }

    /// Waits until a read may succeed. A read that would block after all makes the next call wait again.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // `try_read` clears the readiness when it would block.
        ready!(self.fd.poll_read_ready(cx))?.retain_ready();
        Poll::Ready(Ok(()))
    }

    /// Writes one [`VirtioHeader`] and its packet, whole or not at all.
    ///
    /// # Errors
    /// `EINVAL` for a header that does not fit the packet; `EIO` when the interface is down;
    /// [`io::ErrorKind::WouldBlock`] and `ENOBUFS` when the kernel has no room: the packet is lost then, as on any
    /// link, and the caller counts it.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<()> {
        let written = write(self.fd.get_ref().as_fd(), bytes)?;
        if written == bytes.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the kernel takes and gives UDP super-packets.
    pub fn udp_super_packets(&self) -> bool {
        self.udp_super_packets
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

/// Creates the interface `name` in the network namespace of the calling thread, and gives the descriptor it ends with:
/// for [`Tun::from_fd`], perhaps of another process.
///
/// # Errors
/// As [`Tun::open`], but for those that only tokio has.
pub fn create(device: &Path, name: &str) -> Result<OwnedFd, OpenError> {
    check_name(name)?;
    let file = open_node(device)
        .or_else(|error| match held_node(device) {
            Some(file) => Ok(file),
            None => Err(error),
        })
        .map_err(|source| refusal(device, source))?;
    let fd = OwnedFd::from(file);
    attach(&fd, name)?;
    Ok(fd)
}

/// Whether this network namespace has an interface of that name.
pub fn exists(name: &str) -> bool {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None);
    socket.is_ok_and(|socket| rustix::net::netdevice::name_to_index(&socket, name).is_ok())
}

/// Looks whether the device node can be opened, and makes no interface.
///
/// # Errors
/// Why not.
pub fn look(device: &Path) -> Result<(), OpenError> {
    match open_node(device) {
        Ok(_closed) => Ok(()),
        Err(source) => Err(refusal(device, source)),
    }
}

/// What the system meant when it did not open the node.
fn refusal(device: &Path, source: io::Error) -> OpenError {
    let path = device.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => OpenError::NoDevice { path, source },
        Some(libc::EACCES | libc::EPERM) => OpenError::DeviceRefused { path, source },
        Some(_) | None => OpenError::Device { path, source },
    }
}

/// Opens the device node and keeps it for the next [`create`] that may not open it: for a process that is about to be
/// root's no more, where the node is root's alone. What cannot be opened here is told there.
pub fn hold_node() {
    let node = open_node(Path::new(DEVICE)).ok();
    *HELD.lock().unwrap_or_else(PoisonError::into_inner) = node;
}

fn held_node(device: &Path) -> Option<File> {
    if device != Path::new(DEVICE) {
        return None;
    }
    HELD.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn open_node(device: &Path) -> io::Result<File> {
    // The standard library opens with O_CLOEXEC.
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(device)
}

/// What [`hold_node`] has opened.
static HELD: Mutex<Option<File>> = Mutex::new(None);

/// Checks that `name` is one the kernel takes for an interface: 1 to 15 bytes, no space, slash or colon, not `.`/`..`.
///
/// # Errors
/// [`OpenError::Name`].
pub fn check_name(name: &str) -> Result<(), OpenError> {
    let fits = !name.is_empty() && name.len() < libc::IFNAMSIZ;
    // `%` would ask the kernel to choose a number; control characters make rules and messages unreadable.
    let clean = name
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !b"/:%\"".contains(&byte));
    if fits && clean && name != "." && name != ".." {
        Ok(())
    } else {
        Err(OpenError::Name {
            name: name.to_owned(),
        })
    }
}

/// Why a TUN device cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The name cannot be that of an interface.
    #[error(
        "{name:?} cannot be an interface's name: 1 to 15 visible ASCII characters without / : % and quotes"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The device node or the driver behind it is missing.
    #[error(
        "there is no TUN device at {} ({source}): load its driver with `modprobe tun`; a container needs `--device /dev/net/tun`; or use `egress: user`",
        path.display()
    )]
    NoDevice {
        /// The device node.
        path: std::path::PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The device node may not be opened.
    #[error(
        "cannot open {} ({source}): give this user access with `chmod 0666 {}`, as most distributions have it (CAP_NET_ADMIN is asked for beside it); a container needs `--device /dev/net/tun`; or use `egress: user`",
        path.display(), path.display()
    )]
    DeviceRefused {
        /// The device node.
        path: std::path::PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The device node cannot be opened for another reason.
    #[error("cannot open {}: {source}", path.display())]
    Device {
        /// The device node.
        path: std::path::PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// CAP_NET_ADMIN is missing.
    #[error(
        "cannot create the interface {name} without CAP_NET_ADMIN: give it by `setcap cap_net_admin+ep` on the program, `AmbientCapabilities=CAP_NET_ADMIN` in a systemd unit, or `docker run --cap-add NET_ADMIN`; or use `egress: user`, which needs no privilege"
    )]
    Privilege {
        /// The interface.
        name: String,
    },
    /// Somebody else has an interface of that name.
    #[error(
        "an interface {name} is in use already: stop what has it, or set another name in `tun: {{name: …}}`"
    )]
    NameTaken {
        /// The interface.
        name: String,
    },
    /// The kernel refuses the interface for another reason.
    #[error("cannot create the interface {name}: {source}")]
    Attach {
        /// The interface.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel does not do what super-packets need.
    #[error("the TUN device does not take {what}: {source}")]
    Offload {
        /// The feature.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The descriptor cannot be waited for.
    #[error("cannot wait for the TUN device: {0}")]
    Register(io::Error),
}

/// Makes `fd` the descriptor of the new interface `name`.
fn attach(fd: &OwnedFd, name: &str) -> Result<(), OpenError> {
    let refused = |source: io::Error| match source.raw_os_error() {
        Some(libc::EPERM) => OpenError::Privilege {
            name: name.to_owned(),
        },
        Some(libc::EBUSY | libc::EEXIST) => OpenError::NameTaken {
            name: name.to_owned(),
        },
        Some(_) | None => OpenError::Attach {
            name: name.to_owned(),
            source,
        },
    };
    // EXCL: never the interface of somebody else, whose addresses and routes would stay behind when we go.
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    // SAFETY: all-zero bytes are a valid `ifreq`: an empty name and a union of integers and addresses.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // `check_name` left room for the terminating zero.
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // The kernel takes the flags as 16 bits; IFF_TUN_EXCL is the top one.
    request.ifr_ifru.ifru_flags = flags as u16 as libc::c_short;
    // SAFETY: `fd` is open and `request` is a live `ifreq`, which is what TUNSETIFF reads and writes.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    if result < 0 {
        Err(refused(io::Error::last_os_error()))
    } else {
        Ok(())
    }
}

/// Fixes the header's shape and says what we take; gives whether UDP super-packets are among it.
fn announce_offload(fd: &OwnedFd) -> Result<bool, OpenError> {
    let refused = |what| move |source| OpenError::Offload { what, source };
    let length = VirtioHeader::LEN as libc::c_int;
    ioctl_int(fd, libc::TUNSETVNETHDRSZ, length).map_err(refused("packet headers of 10 bytes"))?;
    ioctl_int(fd, libc::TUNSETVNETLE, 1).map_err(refused("little-endian packet headers"))?;
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    // TUN_F_TSO_ECN stays out: what crosses the tunnel has no room for it, and without it the kernel cuts the few
    // super-packets that carry CWR itself, so that only the first segment has it.
    let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    if ioctl_value(fd, libc::TUNSETOFFLOAD, tcp | udp).is_ok() {
        return Ok(true);
    }
    ioctl_value(fd, libc::TUNSETOFFLOAD, tcp).map_err(refused("TCP super-packets"))?;
    Ok(false)
}

/// An ioctl whose argument is a pointer to an int.
fn ioctl_int(fd: &OwnedFd, request: libc::Ioctl, value: libc::c_int) -> io::Result<()> {
    // SAFETY: `fd` is open and both requests that come here read one int from the pointer.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, &value) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// An ioctl whose argument is a number.
fn ioctl_value(fd: &OwnedFd, request: libc::Ioctl, value: libc::c_uint) -> io::Result<()> {
    // SAFETY: `fd` is open and the request takes its argument by value: no memory is touched.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, libc::c_ulong::from(value)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn register(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>, OpenError> {
    // Writes never wait: the kernel takes a packet or loses it.
    // SAFETY: an `OwnedFd` is open and stays the same file; `Tun` gives out no way to replace or close it.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    registered.map_err(|error| OpenError::Register(error.into()))
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL on an open descriptor touches no memory.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_SETFL on an open descriptor touches no memory.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    io::Read::read(&mut &*borrowed_file(&fd), buffer)
}

fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    io::Write::write(&mut &*borrowed_file(&fd), bytes)
}

/// A file view of a descriptor, for its safe `read` and `write`; it does not close it.
fn borrowed_file(fd: &BorrowedFd<'_>) -> ManuallyDrop<File> {
    use std::os::fd::FromRawFd;
    // SAFETY: the descriptor outlives the view, which both callers drop before they return, and `ManuallyDrop` keeps
    // the view from closing it.
    ManuallyDrop::new(unsafe { File::from_raw_fd(fd.as_raw_fd()) })
}

/// The device node of Linux.
pub const DEVICE: &str = "/dev/net/tun";

/// Bytes that hold anything the device gives: the header, and an IPv6 packet of the largest payload length.
pub const READ_LEN: usize = VirtioHeader::LEN + 40 + 65_535;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_would_refuse_or_rewrite_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "tun%d",
            "a:1",
            "0123456789abcdef",
            "gr\u{fc}n",
            "a\"b",
        ] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for name in ["adit0", "0123456789abcde", "a.b-c_d"] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }

    #[tokio::test]
    async fn missing_device_node_says_what_to_load() {
        let error = Tun::open_at(Path::new("/dev/net/no-such-tun"), "adit0").unwrap_err();
        assert!(matches!(error, OpenError::NoDevice { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("modprobe tun") && text.contains("--device /dev/net/tun"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn file_that_is_no_tun_device_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(
            Tun::open_at(file.path(), "adit0"),
            Err(OpenError::Attach { .. })
        ));
        let fd = OwnedFd::from(file.reopen().unwrap());
        assert!(matches!(
            Tun::from_fd(fd, "adit0"),
            Err(OpenError::Offload { .. })
        ));
    }

    #[test]
    fn one_read_fits_a_large_buffer_and_any_super_packet() {
        assert_eq!(READ_LEN, 65_585);
    }
}
