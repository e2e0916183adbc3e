//! TLS with servers on the Internet, which are not lanes: name servers, and those that lists are fetched from.

use rustls::ClientConfig;

use super::client::{ClientTlsError, roots_of_system};
use super::provider;

/// Makes what checks a server by its name and the authorities of this host; without ALPN.
///
/// # Errors
///
/// The host has no authorities.
pub fn origin_config() -> Result<ClientConfig, ClientTlsError> {
    let roots = roots_of_system()?;
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
