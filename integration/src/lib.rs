//! What the end-to-end tests of Adit stand on.
//!
//! ```text
//!  test ──▶ curl, chromium, socks ──▶ adit client ──▶ adit server ──▶ origin, dns
//!             (what users run)            (child processes)         (threads of the test)
//!
//!          Place::here()            or   a namespaces::Lab of three hosts:
//!          loopback, no privilege         client ══ server ══ internet
//! ```
//!
//! A test drives the real program from the outside: [`adit`] starts it as child processes, [`origin`] and [`dns`] are
//! the Internet it reaches, [`scene`] what most tests set up of both, [`curl`], [`chromium`] and [`socks`] are what its users run, [`meters`] reads what it costs.
//! Everything that opens sockets does so in a [`namespaces::Place`]: this machine, or one host of a lab of network
//! namespaces. Nothing a test starts outlives it: children carry a parent-death signal and are killed by their id when
//! dropped, namespaces have no name and vanish with the last process in them, files live in a temporary folder.
//!
//! Two worlds stand beside this: [`link`] loses and delays packets, in virtual time or between real sockets and devices,
//! and [`sim`] plays TCP as Linux speaks it over such links, through the program's own core.
//!
//! Nothing here but the tunnel of [`sim`] is shared with the program under test: the SOCKS client, the origins and the
//! meters are written from the RFCs, so that a misreading in the program is not repeated by its judge.
//!
//! Functions of this crate panic with what went wrong when the *scene* of a test cannot be set; what the program under
//! test does is always returned as a value.

pub mod adit;
pub mod chromium;
pub mod curl;
pub mod dns;
pub mod docker;
pub mod exposition;
pub mod flows;
pub mod link;
pub mod messages;
pub mod meters;
pub mod namespaces;
pub mod netem;
pub mod origin;
pub mod process;
pub mod relay;
pub mod scene;
pub mod sim;
pub mod skip;
pub mod sniff;
pub mod socks;
pub mod stream;
pub mod terminal;
