//! Names for everybody behind the client: the local resolver and the proxy.
//!
//! # Theory of operation
//!
//! ```text
//!  programs ── UDP, TCP ──▶ listeners ─┐      ┌▶ static, blocked, special ─────────▶ answer
//!                                      ├▶ policy                                       ▲
//!  proxy ────────────────▶ Resolver ───┘      └▶ cache ──(miss)──▶ one query for all ──┘
//!                                                  ▲                who ask the same
//!                                                  └─ prefetch            │ held while there is no session,
//!                                                                         ▼ at most for ANSWER_LIMIT
//!                                              what the server pushes, plain, DoT, DoH: through the tunnel;
//!                                              `system` of a `split` entry alone: by the host's own network
//! ```
//!
//! The [`policy`] decides by name alone. What it leaves is looked up in the [`cache`], and asked of an upstream by
//! [`Dns`] if it is not there; questions that are the same and come meanwhile wait for the same answer. An
//! answer is kept as the upstream wrote it, and given to each asker with the question as he wrote it (in his mixture of
//! capitals, which some check), his message number, and times to live that have gone down.
//!
//! What comes to the local resolver and can be answered from memory is answered in the turn of the [`listen`]er that took
//! it; no task is made for it. The [`lists`] of names to block are read before the first question, from their kept
//! copies where they are fetched; a service beside fetches them anew through the tunnel when their time has come.
//!
//! # Nothing leaks
//!
//! Every upstream is reached by the tunnel's own sockets, which exist inside the session. While there is none, questions
//! are held; after [`ANSWER_LIMIT`] they are answered with SERVFAIL. Only what a `split` entry sends to
//! `system` leaves by the host's own network, because somebody wrote so.
//!
//! # What it passes on, and what not
//!
//! All types of records, CNAME chains as the upstream gives them (those that begin with a static record are followed here),
//! the bits AD, CD and DO (RFC 4035, RFC 6840). EDNS is spoken on each side by itself (RFC 6891, section 6.2.6): options
//! of the asker, such as his subnet or cookies, are not passed on; an answer that was blocked says so in one (RFC 8914). It
//! does not validate DNSSEC itself: an upstream that does is asked by `tls://` or `https://`, and its AD bit passed on.

mod answer;
mod cache;
mod domain;
mod engine;
mod fetch;
mod list;
mod listen;
pub mod lists;
mod own;
pub mod policy;
mod records;
mod stats;
mod table;
mod upstream;
mod upstreams;

pub(crate) use answer::Kept;
pub use answer::{Question, Reply};
pub use cache::{CACHE_BYTES, CACHE_ENTRIES};
pub use domain::Domain;
pub use engine::{ANSWER_LIMIT, Dns, DnsError, MAX_ASKED};
pub(crate) use list::read as read_list;
pub use list::{BadLine, Entry, ListReport};
pub use listen::{ListenError, LocalResolver, MAX_DATAGRAMS, MAX_OF_SENDER, MAX_STREAMS};
pub use own::Own;
pub use records::{Records, Written};
pub use stats::DnsStats;
pub(crate) use table::is_listed;
pub use table::{Found, MAX_NAMES, NameTable, Scope, TableFull};
pub use upstream::Failure;
pub(in crate::client) use upstreams::address;

#[cfg(test)]
mod tests;
