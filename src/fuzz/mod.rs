//! What fuzzers call: for every parser and state machine a function that takes any bytes.
//!
//! A function returns when the code kept its promises and panics when it did not; there is nothing
//! to look at. `fuzz/` in the repository wraps each in a target for cargo-fuzz, and a test replays the inputs kept in
//! `fuzz/corpus/`, so that what was once found stays found without a fuzzer at hand.
//!
//! | target | what it is fed | what must hold |
//! |---|---|---|
//! | [`netstack_packet`] | offload metadata and a packet | a packet that passes the checks can be rebuilt for a TUN device, an error about it has a right checksum |
//! | [`netstack_stack`] | a run of packets | an accepting stack breaks no promise of its own and stays within its bounds |
//! | [`wire_frame`] | a frame | what parses is written as the same bytes |
//! | [`wire_handshake`] | the payloads of a handshake | the same |
//! | [`proto_responder`] | handshake frames from strangers | no stranger gets a session |
//! | [`proto_session`] | a script of frames, honest, broken, or sealed by a peer without manners | what was not sealed does not open; packets come out as they went in |
//! | [`socks`] | what an application sends to the proxy, in pieces | pieces do not matter, little is kept |
//! | [`udp_header`] | a datagram to the proxy's UDP relay | a header that is read says where the payload begins |
//! | [`dns_query`] | a query to the inner resolver | a refusal fits what the client can take |
//! | [`repair`] | a script of sources and repairs, honest, lost, late or made up | what is repaired is what was sent; nothing made up breaks a bound |
//! | [`config`] | a configuration file | every refusal has words; no file that it names is opened |

mod input;
mod packets;
mod proxy;
mod repair;
mod session;
mod text;
mod wire;

pub use packets::{netstack_packet, netstack_stack};
pub use proxy::{dns_query, socks, udp_header};
pub use repair::repair;
pub use session::{proto_responder, proto_session};
pub use text::config;
pub use wire::{wire_frame, wire_handshake};

/// One target: its name, which is also that of its folder in `fuzz/corpus/`, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("netstack_packet", netstack_packet),
    ("netstack_stack", netstack_stack),
    ("wire_frame", wire_frame),
    ("wire_handshake", wire_handshake),
    ("proto_responder", proto_responder),
    ("proto_session", proto_session),
    ("socks", socks),
    ("udp_header", udp_header),
    ("dns_query", dns_query),
    ("config", config),
    ("repair", repair),
];
