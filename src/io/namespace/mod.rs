//! A network and mount namespace for one command, without root: what `adit run` is made of.
//!
//! # Theory of operation
//!
//! The process that the shell started becomes the command itself, by exec. So exit status, signals, terminal and job
//! control are the command's own, and nothing is relayed. Beside it stands a process of ours, in the host's namespaces,
//! that has the session with the server: the *tunnel process*.
//!
//! ```text
//!   adit run ──────┬─ apart() ──────────────────────────────▶ tunnel process (own session, host's namespaces)
//!                  │                                            │ waits
//!                  ├─ enter()   user, network, mount namespace  │
//!                  ├─ device    a TUN in it                     │
//!                  ├─ view()    /run without resolvers' sockets,│
//!                  │            resolv.conf, nsswitch.conf      │
//!                  ├─ give ── TUN, netlink, resolv.conf ──────▶ │ connects; sets MTU, addresses, routes,
//!                  │                                            │ name servers, now and when they change
//!                  ├─ wait ◀────────────────────────── up ───── │
//!                  ├─ drop_privilege()                          │
//!                  └─ exec CMD ····· its end shows at a pidfd ▶ │ closes the session
//! ```
//!
//! - [`apart()`] forks twice, so that the tunnel process is nobody's child that the command could stumble over. It
//!   has a session of its own, since Ctrl-C and Ctrl-Z are meant for the command, and holds nothing that the command's
//!   readers wait for the end of.
//! - [`enter()`] makes the namespaces. The caller is in them under its own user and group.
//! - [`view()`] makes what the command sees of /run and of the resolver's configuration.
//! - [`Inner`] and [`Outer`] are the two ends of the socket between both.
//! - [`drop_privilege()`] gives up what making the namespaces brought.
//!
//! # What holds by construction
//!
//! The namespace has a loopback interface and the TUN, and nothing else. Where the tunnel does not carry a packet, it
//! goes nowhere: before the tunnel is up there is no address and no route, while it is down packets wait in the tunnel
//! process, and when that ends the TUN ends with it, since its descriptor is the only one. The command has no capability
//! over its namespaces, and none over the host.
//!
//! Sockets in the file system are no matter of network namespaces: what a command asks another process to do, that does
//! outside. Those of the system that answer names ([`HIDDEN`]) are not there in the command's /run. It is a /run of its
//! own, which shows what was in the host's at the start: a directory that is put in place of another later, as services do
//! when they are restarted, does not appear.
//!
//! # Root
//!
//! A caller that has CAP_SYS_ADMIN and CAP_NET_ADMIN needs no user namespace and gets none: the command keeps what the caller
//! has, all users included. It could leave its namespaces, as root can do anything.

mod apart;
mod enter;
mod handover;
mod names;
mod privilege;
mod view;

pub use apart::{Apart, ApartError, Other, Watched, apart, release_stderr};
pub use enter::{EnterError, Entered, enter};
pub use handover::{Handed, Inner, Outer, Verdict, pair};
pub use names::{resolv_conf, with_hosts_by_dns};
pub use privilege::{drop_privilege, exec};
pub use view::{HIDDEN, ViewError, view};
