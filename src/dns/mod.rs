//! What the resolver of the server and that of the client have in common: how a query is read, and how a stream of them
//! is served. Who answers, and from where, is each end's own.

mod query;
mod stream;

#[cfg(test)]
pub(crate) use query::PLAIN_UDP;
pub(crate) use query::{Answer, Asked, Reading, UDP_PAYLOAD, refusal};
pub(crate) use stream::{StreamEnd, serve_stream};
