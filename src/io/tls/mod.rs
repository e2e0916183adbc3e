//! TLS under stream lanes: what makes a lane look like any HTTPS connection.
//!
//! TLS is camouflage and a second wall, never the authority. Who may talk to whom is decided by
//! the session's own handshake inside, with keys that both ends were given; the session seals
//! every frame once more whatever TLS does. From that follows what is done here:
//!
//! - **The client checks no certificate unless it is asked to** ([`Verify::Unchecked`]). Whoever
//!   terminates the TLS in the middle sees sealed frames and can only drop them, as he could
//!   without. A check that can fail where the session's cannot would only make the program
//!   harder to set up. [`Verify::Pins`], [`Verify::CaFile`] and [`Verify::System`] are there for
//!   those whose policy wants the outer wall checked too.
//! - **TLS 1.3 only, X25519MLKEM768 first**: the shape of a current browser's handshake, and
//!   the outer wall is post-quantum too.
//! - **ALPN `http/1.1`**: nearly all TLS on the web carries ALPN, so none would stand out;
//!   `h2` would promise frames that a prober could ask for.
//! - **No tickets, no resumption**: a lane is opened rarely and lives long. A ticket would only
//!   be a secret to keep and a thing that links two connections.
//! - **Buffers of one frame** ([`BUFFER_LIMIT`]): what waits, waits in the lane's own queue.
//!
//! The cryptography is aws-lc-rs, passed explicitly; the process-wide default of rustls is
//! neither read nor set.

mod certificate;
mod client;
mod server;
mod verify;

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

pub use certificate::{Certificate, CertificateError};
pub use client::{ClientTls, ClientTlsError};
pub use server::ServerTls;
pub use verify::{Pin, PinParseError, Verify};

/// How many sealed bytes rustls may hold for one connection.
///
/// One large buffer of the lane with the overhead of its five records. With less, a super-packet
/// would be cut in two writes.
const BUFFER_LIMIT: usize = crate::io::pool::LARGE + 5 * 32;

/// The one protocol offered and accepted; see the module's page for why.
const ALPN: &[u8] = b"http/1.1";

/// aws-lc-rs with the hybrid key exchange first, then what older peers know.
fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::kx_group;

    Arc::new(CryptoProvider {
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    })
}
