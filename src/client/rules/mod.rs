//! Where the requests of a proxy go: through the tunnel, directly by this host's own network, or nowhere.
//!
//! # Theory of operation
//!
//! Each proxy has a list of [rules](crate::config::Rule). The first one that concerns a request decides; where none does, the
//! tunnel carries it. So nothing leaves beside the tunnel but what a rule with `direct` names.
//!
//! A rule names networks, names, or both. What an application asks for is an address or a name, and rules about networks
//! cannot judge a name before somebody has resolved it:
//!
//! ```text
//!              Rules::of_name                      Rules::of_address, for each address
//!  name ──┬─ block: refused, nobody is asked
//!         ├─ Host: this host's resolver is asked ──┐
//!         └─ Tunnel: the tunnel's is ──────────────┼──▶ tunnel ─▶ Tunnel::connect
//!  address ────────────────────────────────────────┘    direct ─▶ a socket of this host
//!                                                       block ──▶ the next address, or refused
//! ```
//!
//! **Who resolves a name.** The first rule that concerns the name as such decides, by a name, by `*`, or because it names no
//! destination at all. This host's resolver is asked only where that rule says `direct` and names the name, itself or by `*`.
//! Everything else is resolved through the tunnel, then networks are looked at: a rule about a network never makes a name
//! leak, wherever it stands. A name that is certain to be blocked is asked of nobody.
//!
//! **Who judges then.** Each address is judged by the whole list, name and address together, so that the order of the list
//! is the only order there is: of `block 169.254.0.0/16` and, behind it, `direct corp.example`, the first keeps addresses
//! out that this host's resolver has for the second.
//!
//! **Rebinding.** Whoever answers for a name may answer with any address. Where the tunnel has resolved a name to a
//! private address, no rule about networks or ports sends it there directly, since strangers would choose what an
//! application reaches in the network where this host is: [`Blocked::Rebound`]. A `direct` rule that names the name says
//! that it belongs there. In the same way this host itself, loopback, is reached directly only by a rule that names its
//! address or `localhost`: [`Blocked::ThisHost`].
//!
//! **Records.** Where `dns: records:` of this client's own configuration gives a name its addresses, nobody is asked for it,
//! whoever would have been, and no stranger chooses: rules about networks judge these addresses like any that was asked for
//! as such. Lists of names to block hold for every name, too. What a server pushes is its word: it goes where the tunnel's
//! resolver goes.
//!
//! An IPv6 address that is IPv4 in an IPv6 coat is judged as IPv4.
//!
//! # Replacing the rules
//!
//! A request reads the rules once, when it begins. [`InForce`] is replaced as a whole; then whoever carries a flow asks its
//! [`Judged`] whether the new rules would send it the same way. Those for which they would not are reset: a flow that is
//! blocked now, and one that would take another way. Every other flow is not touched, nor does it notice. Datagrams
//! are judged one by one, by the rules of that moment.
//!
//! # Limits
//!
//! A thousand rules a list, which configurations hold; a look-up costs two comparisons and a few look-ups for each of
//! them. What is kept of a flow is its name and address.

mod explain;
mod in_force;
mod judge;

pub use explain::{Subject, explain};
pub use in_force::{InForce, Judged, Replace};
#[cfg(test)]
pub(super) use judge::listed;
pub use judge::{Blocked, Destination, ResolvedBy, Rules, Way};
