//! Configuration: file, then environment, then flags, into validated types.
//!
//! ```text
//! file ──yaml──▶ tree with places ─┐
//! environment ADIT_* ──────────────┼─▶ settings ──parse──▶ ServerConfig / ClientConfig
//! flags ───────────────────────────┘      └─▶ problems: place, key, found, right
//! ```
//!
//! The YAML document becomes an untyped tree whose nodes know their line and column. A program reads it key by
//! key through `settings`, which looks at flags first, then at the environment, then at the file. Every
//! mistake is collected, none hides another, and a key that nobody asked for is an error with the nearest known
//! one. What the rest of the program sees cannot be wrong any more: addresses lie in their networks, keys are
//! read, names are unique.

pub mod address;
mod client;
mod clients;
mod dns;
mod edit;
mod error;
mod files;
mod forward;
mod host;
mod kind;
mod link;
mod log_level;
mod networks;
mod parse;
mod process;
mod proxies;
mod repair;
mod rule;
mod server;
mod settings;
mod shared;
mod shell;
mod text;
mod via;
mod yaml;

pub use address::{AddressError, Host, LaneAddr, Scheme};
pub use client::{CertificateCheck, CertificatePin, ClientConfig};
pub(crate) use dns::is_host_name;
pub use dns::{
    BlockedAnswer, DnsConfig, DnsUpstream, ListSource, MAX_LIST, MAX_LISTS, RecordName, SplitRule,
    SplitTarget, StaticRecord,
};
pub use edit::{Change, EditError, Edited, edit_file};
pub use error::{ConfigError, Place, Problem, Spot};
pub use files::{KeyFileError, read_key, read_key_from, write_key};
pub use forward::{
    ControlSocket, Forward, LocalForward, MAX_FORWARDS, NearListen, NearTarget, RemoteForward,
};
pub use host::HostTunnel;
pub use kind::{Kind, guess_kind, unknown_variable};
pub use link::{Link, LinkError, MAX_LINK_LEN, MAX_SERVERS, SCHEME as LINK_SCHEME};
pub use log_level::log_filter;
pub use networks::Networks;
pub(crate) use parse::duration as parse_duration;
pub use parse::proxy as parse_proxy;
pub use process::{Account, ProcessConfig};
pub use proxies::{ProxyAuth, ProxyConfig};
pub use repair::{FixedRepair, Repair};
pub use rule::{Action, Rule, Target, Transport, parse as parse_rule};
pub use server::{
    ClientEntry, EgressKind, Limits, ListenAddr, ServerConfig, TlsFiles, TunConfig, state_base,
    state_name,
};
pub use settings::{FlagValue, Inputs, variable};
pub use shared::MOST_THREADS;
pub use shell::shell_word;
pub(crate) use text::read_text_alone;
pub use via::{Exception, ProxyAddr, ProxyScheme, Via};

/// A configuration that can be used, and what somebody should look at all the same.
#[derive(Clone, Debug)]
pub struct Loaded<T> {
    /// The configuration.
    pub config: T,
    /// One sentence each, to be logged at the start.
    pub warnings: Vec<String>,
}

#[cfg(test)]
mod tests;
