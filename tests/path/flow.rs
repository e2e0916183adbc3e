//! An origin and flows to it, through whatever there is.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// How long anything may take before the test is said to hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for what must come.
pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, future).await;
    done.unwrap_or_else(|_| panic!("{what}: not in time"))
}

/// An origin that sends back what it receives, and ends when its caller does.
pub(crate) async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = socket.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.shutdown().await;
            });
        }
    });
    address
}

/// A flow that asks for an echo and waits for it.
pub(crate) struct Flow<S>(pub(crate) S);

impl<S: AsyncReadExt + AsyncWriteExt + Unpin> Flow<S> {
    pub(crate) async fn echo(&mut self, len: usize) {
        let sent: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let mut back = vec![0; len];
        let (mut reader, mut writer) = tokio::io::split(&mut self.0);
        let both =
            async { tokio::try_join!(writer.write_all(&sent), reader.read_exact(&mut back)) };
        in_time("an echo", both).await.expect("the flow lives");
        assert!(back == sent);
    }
}
