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
//! | [`netstack_join`] | a run of segments and datagrams | what is joined and cut again is what went in |
//! | [`wire_frame`] | a frame | what parses is written as the same bytes |
//! | [`wire_handshake`] | the payloads of a handshake | the same |
//! | [`wire_report`] | a report's body | the same bytes |
//! | [`delivery`] | a script of datagrams sent, lost and reported, honestly or not | every content has one fate |
//! | [`proto_responder`] | handshake frames from strangers | no stranger gets a session |
//! | [`proto_session`] | a script of frames, honest, broken, or sealed by a peer without manners | what was not sealed does not open; packets come out as they went in |
//! | [`wire_datagram`] | a datagram | what parses is written as the same bytes |
//! | [`proto_strangers`] | datagrams from strangers, with and without right MACs | none gets a session, or an answer near as long as what it sent |
//! | [`proto_datagrams`] | a script of datagrams, honest, copied, broken, from anywhere, or sealed by a peer without manners | what was not sealed does not open and ends nothing; packets come out once, as they went in |
//! | [`proto_queue`] | a script of packets to send | bounds hold, whatever waits is sent or dropped |
//! | [`proto_hold`] | a script of numbered packets | each comes out once, unchanged and in time |
//! | [`socks`] | what an application sends to the proxy, in pieces | pieces do not matter, little is kept |
//! | [`socks_via`] | what a proxy says that is asked for a connection | no more is read than an answer has, and it ends |
//! | [`websocket`] | what the other end of a WebSocket sends, in pieces | pieces do not matter, nothing is made up |
//! | [`udp_header`] | a datagram to the proxy's UDP relay | a header that is read says where the payload begins |
//! | [`dns_query`] | a query to the inner resolver | a refusal fits what the client can take |
//! | [`dns_answer`] | what a name server says | what is taken for an answer can be given to whoever asks |
//! | [`dns_list`] | a list of names | what is taken for a name is one, and is found |
//! | [`relayed`] | a script of relayed flows, of lanes that change, and of frames from a peer without manners | bounds hold; between honest ends every byte comes out once and in order |
//! | [`repair`] | a script of sources and repairs, honest, lost, late or made up | what is repaired is what was sent; nothing made up breaks a bound |
//! | [`control`] | lines to the control socket, in pieces | pieces do not matter, a refusal has words; a forward that is read reads the same when it is written |
//! | [`link`] | the link of an invitation, or what stands in one | what is read is written as what reads the same |
//! | [`roll`] | a saved roll, or a script of invitations, guests and orders | the same; an invitation makes one client, and no name is given twice |
//! | [`guest`] | what a guest without manners seals | the server hears of tokens and of nothing else |
//! | [`config`] | a configuration file | every refusal has words; no file that it names is opened |

mod datagram;
mod delivery;
mod dns;
mod enrol;
mod flows;
mod input;
mod packets;
mod proxy;
mod relayed;
mod repair;
mod session;
mod text;
mod via;
mod wire;

pub use datagram::{proto_datagrams, proto_strangers, wire_datagram};
pub use delivery::{delivery, wire_report};
pub use dns::{dns_answer, dns_list};
pub use enrol::{guest, link, roll};
pub use flows::{netstack_join, proto_hold, proto_queue};
pub use packets::{netstack_packet, netstack_stack};
pub use proxy::{dns_query, socks, udp_header};
pub use relayed::relayed;
pub use repair::repair;
pub use session::{proto_responder, proto_session};
pub use text::{config, control};
pub use via::{socks_via, websocket};
pub use wire::{wire_frame, wire_handshake};

/// One target: its name, which is also that of its folder in `fuzz/corpus/`, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("netstack_packet", netstack_packet),
    ("netstack_stack", netstack_stack),
    ("netstack_join", netstack_join),
    ("wire_frame", wire_frame),
    ("wire_handshake", wire_handshake),
    ("wire_report", wire_report),
    ("delivery", delivery),
    ("proto_responder", proto_responder),
    ("proto_session", proto_session),
    ("wire_datagram", wire_datagram),
    ("proto_strangers", proto_strangers),
    ("proto_datagrams", proto_datagrams),
    ("proto_queue", proto_queue),
    ("proto_hold", proto_hold),
    ("socks", socks),
    ("udp_header", udp_header),
    ("dns_query", dns_query),
    ("dns_answer", dns_answer),
    ("dns_list", dns_list),
    ("config", config),
    ("control", control),
    ("repair", repair),
    ("relayed", relayed),
    ("socks_via", socks_via),
    ("websocket", websocket),
    ("link", link),
    ("roll", roll),
    ("guest", guest),
];
