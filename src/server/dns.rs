//! Placeholder.
/// D
#[derive(Clone, Debug)]
pub struct DnsService;
/// E
#[derive(Debug, thiserror::Error)]
#[error("dns")]
pub struct DnsError;
impl DnsService {
    /// N
    pub fn new(_: &[std::net::SocketAddr]) -> Result<Self, DnsError> {
        Ok(Self)
    }
    /// A
    pub async fn answer_datagram(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
    /// S
    pub async fn serve_stream(&self, _: tokio::io::DuplexStream) {}
}
