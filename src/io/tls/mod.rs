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
//!   the outer wall is post-quantum too. Where a client meets somebody else's TLS, a reverse proxy's or a proxy's
//!   ([`ClientTls::connect_web`]), 1.2 does as well: nginx before 1.23.4 offers no more unless it is told to.
//! - **ALPN `http/1.1`**: nearly all TLS on the web carries ALPN, so none would stand out;
//!   `h2` would promise frames that a prober could ask for.
//! - **No tickets, no resumption**: a lane is opened rarely and lives long. A ticket would only
//!   be a secret to keep and a thing that links two connections.
//! - **Buffers of one frame**: what waits to be sent, waits in the lane's own queue. What a peer
//!   can make a server hold before its handshake is done is bounded by rustls: 64 KiB, and that
//!   only for one that begins a message of such a size; an ordinary hello takes 4 KiB.
//!
//! The cryptography is aws-lc-rs, passed explicitly; the process-wide default of rustls is
//! neither read nor set.

mod certificate;
mod client;
mod origin;
mod refusal;
mod server;
mod verify;

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

pub use certificate::{Certificate, CertificateError};
pub use client::{ClientTls, ClientTlsError};
pub use origin::origin_config;
pub use refusal::{CertificateRefused, speaks_no_tls};
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::future::poll_fn;
    use std::io;
    use std::net::Ipv4Addr;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::NamedGroup;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::TlsStream;

    use super::*;
    use crate::config::address::Host;
    use crate::io::lane::{LaneStream, ReadMemory, StreamLane};
    use crate::io::pool::Pool;

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(future)
    }

    fn name(text: &str) -> Host {
        Host::Name(text.to_owned())
    }

    fn server() -> ServerTls {
        let certificate = Certificate::throw_away(&["vpn.example".to_owned()]);
        ServerTls::new(certificate.expect("generates")).expect("is of use")
    }

    async fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.expect("connects"), far.expect("accepts").0)
    }

    async fn handshake(
        verify: &Verify,
        host: &Host,
        server: &ServerTls,
    ) -> (io::Result<LaneStream>, io::Result<LaneStream>) {
        let client = ClientTls::new(verify).expect("the authorities are readable");
        let (near, far) = tcp_pair().await;
        tokio::join!(
            client.connect(host, LaneStream::Tcp(near)),
            server.accept(LaneStream::Tcp(far))
        )
    }

    fn tls(stream: LaneStream) -> Box<TlsStream<LaneStream>> {
        match stream {
            LaneStream::Tls(tls) => tls,
            LaneStream::Tcp(_) | LaneStream::WebSocket(_) => panic!("no TLS"),
        }
    }

    #[test]
    fn hybrid_group_alpn_and_tls13_are_negotiated() {
        block_on(async {
            let (near, far) = handshake(&Verify::Unchecked, &name("any.example"), &server()).await;
            let (near, far) = (near.expect("done"), tls(far.expect("done")));
            let near = tls(near);
            let (_, connection) = near.get_ref();
            assert_eq!(
                connection
                    .negotiated_key_exchange_group()
                    .expect("after the handshake")
                    .name(),
                NamedGroup::X25519MLKEM768
            );
            assert_eq!(
                connection.protocol_version(),
                Some(rustls::ProtocolVersion::TLSv1_3)
            );
            assert_eq!(connection.alpn_protocol(), Some(ALPN));
            let TlsStream::Server(far) = *far else {
                panic!("a server has the server's side");
            };
            assert_eq!(far.get_ref().1.server_name(), Some("any.example"));
        });
    }

    #[test]
    fn server_that_has_tls_1_2_alone_is_for_the_web() {
        block_on(async {
            let certificate = Certificate::throw_away(&["vpn.example".to_owned()]);
            let (chain, key) = certificate.expect("generates").into_parts();
            let config = rustls::ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&rustls::version::TLS12])
                .expect("the provider has it")
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .expect("is of use");
            let old = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            let client = ClientTls::new(&Verify::Unchecked).expect("needs nothing");
            let host = name("vpn.example");
            let (near, far) = tcp_pair().await;
            let connecting = client.connect_web(&host, LaneStream::Tcp(near));
            let (near, far) = tokio::join!(connecting, old.accept(far));
            far.expect("done");
            let version = tls(near.expect("done")).get_ref().1.protocol_version();
            assert_eq!(version, Some(rustls::ProtocolVersion::TLSv1_2));
            let (near, far) = tcp_pair().await;
            let connecting = client.connect(&host, LaneStream::Tcp(near));
            let (near, _) = tokio::join!(connecting, old.accept(far));
            assert!(near.is_err());
            // And what has both takes the newer.
            let (near, far) = tcp_pair().await;
            let server = server();
            let (near, _far) = tokio::join!(
                client.connect_web(&host, LaneStream::Tcp(near)),
                server.accept(LaneStream::Tcp(far))
            );
            let version = tls(near.expect("done")).get_ref().1.protocol_version();
            assert_eq!(version, Some(rustls::ProtocolVersion::TLSv1_3));
        });
    }

    #[test]
    fn address_is_not_sent_as_a_name() {
        block_on(async {
            let host = Host::Ip(Ipv4Addr::LOCALHOST.into());
            let (near, far) = handshake(&Verify::Unchecked, &host, &server()).await;
            near.expect("done");
            let TlsStream::Server(far) = *tls(far.expect("done")) else {
                panic!("a server has the server's side");
            };
            assert_eq!(far.get_ref().1.server_name(), None);
        });
    }

    #[test]
    fn right_pin_is_accepted_among_others() {
        block_on(async {
            let server = server();
            let verify = Verify::Pins(vec![self::server().pin(), server.pin()]);
            let (near, far) = handshake(&verify, &name("other.example"), &server).await;
            near.expect("the pin is right");
            far.expect("the pin is right");
        });
    }

    #[test]
    fn wrong_pin_is_refused() {
        block_on(async {
            let wanted = server().pin();
            let verify = Verify::Pins(vec![wanted]);
            let other = server();
            let (near, far) = handshake(&verify, &name("vpn.example"), &other).await;
            let error = near.err().expect("another key");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert_eq!(
                error.to_string(),
                format!(
                    "tls.pin is {wanted}, the server's certificate has {}",
                    other.pin()
                )
            );
            assert!(far.is_err());
        });
    }

    #[test]
    fn ca_file_accepts_its_own_and_the_right_name_alone() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str| directory.path().join(name);
        let ca_key = KeyPair::generate().expect("a key");
        let mut ca = CertificateParams::new(Vec::new()).expect("no names");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_cert = ca.self_signed(&ca_key).expect("signs");
        let issuer = Issuer::from_params(&ca, &ca_key);
        let key = KeyPair::generate().expect("a key");
        let leaf = CertificateParams::new(vec!["vpn.example".to_owned()])
            .expect("a name")
            .signed_by(&key, &issuer)
            .expect("signs");
        fs::write(file("ca.pem"), ca_cert.pem()).expect("writable");
        fs::write(file("leaf.pem"), leaf.pem()).expect("writable");
        fs::write(file("key.pem"), key.serialize_pem()).expect("writable");
        let certificate = Certificate::from_files(&file("leaf.pem"), &file("key.pem"));
        let signed = ServerTls::new(certificate.expect("readable")).expect("is of use");
        let verify = Verify::CaFile(file("ca.pem"));
        block_on(async {
            let (near, _far) = handshake(&verify, &name("vpn.example"), &signed).await;
            near.expect("signed for this name");
            let (near, _far) = handshake(&verify, &name("evil.example"), &signed).await;
            assert_eq!(
                near.err().expect("another name").to_string(),
                "the certificate is not made out to evil.example"
            );
            let (near, _far) = handshake(&verify, &name("vpn.example"), &server()).await;
            assert_eq!(
                near.err().expect("another authority").to_string(),
                "the certificate is not signed by an authority in tls.ca_file"
            );
        });
    }

    #[test]
    fn kept_certificate_serves_as_its_own_authority() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let names = ["vpn.example".to_owned()];
        let certificate = Certificate::kept(directory.path(), &names).expect("generates");
        let server = ServerTls::new(certificate).expect("is of use");
        let verify = Verify::CaFile(directory.path().join("tls.crt"));
        block_on(async {
            let (near, _far) = handshake(&verify, &name("vpn.example"), &server).await;
            near.expect("it is the authority");
        });
    }

    #[test]
    fn authorities_of_the_system_do_not_know_a_generated_certificate() {
        let names = ["localhost".to_owned()];
        match ClientTls::new(&Verify::System) {
            Ok(client) => block_on(async {
                let certificate = Certificate::throw_away(&names).expect("generates");
                let server = ServerTls::new(certificate).expect("is of use");
                let (near, far) = tcp_pair().await;
                let host = name("localhost");
                let (near, _far) = tokio::join!(
                    client.connect(&host, LaneStream::Tcp(near)),
                    server.accept(LaneStream::Tcp(far))
                );
                assert_eq!(
                    near.err().expect("nobody signed it").to_string(),
                    "the certificate is not signed by an authority of this host: use tls.pin or tls.ca_file"
                );
            }),
            Err(ClientTlsError::NoSystemRoots { reason }) => assert!(!reason.is_empty()),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn missing_ca_file_is_named() {
        let verify = Verify::CaFile("/nowhere/ca.pem".into());
        let error = ClientTls::new(&verify).expect_err("no such file");
        assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
    }

    #[test]
    fn ca_file_without_a_certificate_is_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("empty.pem");
        fs::write(&path, "# nothing yet\n").expect("writable");
        let error = ClientTls::new(&Verify::CaFile(path)).err();
        let error = error.expect("no certificate in it").to_string();
        assert!(error.contains("empty.pem"), "{error}");
    }

    #[test]
    fn foreign_key_does_not_serve_a_certificate() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let one = directory.path().join("one");
        let other = directory.path().join("other");
        Certificate::kept(&one, &[]).expect("generates");
        Certificate::kept(&other, &[]).expect("generates");
        let mixed = Certificate::from_files(&one.join("tls.crt"), &other.join("tls.key"));
        assert!(ServerTls::new(mixed.expect("readable")).is_err());
    }

    /// A ClientHello of TLS 1.2, as OpenSSL sent it before there was anything newer.
    fn tls12_client_hello() -> Vec<u8> {
        let mut hello = vec![0x03, 0x03];
        hello.extend([7; 32]);
        hello.push(0);
        hello.extend([0, 4, 0xc0, 0x2f, 0xc0, 0x2b]);
        hello.extend([1, 0]);
        // Supported groups, point formats, signature algorithms; no supported_versions.
        let extensions: &[u8] = &[
            0, 10, 0, 6, 0, 4, 0, 29, 0, 23, 0, 11, 0, 2, 1, 0, 0, 13, 0, 8, 0, 6, 4, 3, 8, 4, 4, 1,
        ];
        hello.extend((extensions.len() as u16).to_be_bytes());
        hello.extend(extensions);
        let mut handshake = vec![1, 0];
        handshake.extend((hello.len() as u16).to_be_bytes());
        handshake.extend(hello);
        let mut record = vec![22, 3, 1];
        record.extend((handshake.len() as u16).to_be_bytes());
        record.extend(handshake);
        record
    }

    #[test]
    fn tls12_is_refused_with_a_protocol_version_alert() {
        block_on(async {
            let (mut near, far) = tcp_pair().await;
            let server = server();
            let probe = async {
                near.write_all(&tls12_client_hello()).await.expect("open");
                let mut alert = [0; 7];
                near.read_exact(&mut alert).await.expect("an alert");
                alert
            };
            let (alert, accepted) = tokio::join!(probe, server.accept(LaneStream::Tcp(far)));
            assert!(accepted.is_err());
            assert_eq!((alert[0], alert[5], alert[6]), (21, 2, 70));
        });
    }

    #[test]
    fn frames_cross_a_tls_lane_both_ways() {
        block_on(async {
            let (near, far) = handshake(&Verify::Unchecked, &name("vpn.example"), &server()).await;
            let pool = Pool::new("test", 8, 8);
            let mut near = StreamLane::new(near.expect("done"), Arc::clone(&pool));
            let mut far = StreamLane::new(far.expect("done"), pool);
            for lane in [&mut near, &mut far] {
                let memory = ReadMemory::of(lane.pool().reads());
                lane.set_frame_limit(66_000, memory);
            }
            for round in 0..20_usize {
                let (from, to) = if round % 2 == 0 {
                    (&mut near, &mut far)
                } else {
                    (&mut far, &mut near)
                };
                let frames: Vec<Vec<u8>> = [1, 1_426, 66_000, 30, 65_577]
                    .iter()
                    .map(|len: &usize| {
                        let mut frame = u32::try_from(*len).expect("small").to_be_bytes().to_vec();
                        frame.resize(4 + len, round as u8);
                        frame
                    })
                    .collect();
                for frame in &frames {
                    let room = from.reserve(frame.len()).expect("below the mark");
                    room.copy_from_slice(frame);
                    from.commit(frame.len());
                }
                let mut got = Vec::new();
                while got.len() < frames.len() {
                    let read = poll_fn(|cx| {
                        let _ = from.poll_flush(cx).map(|done| done.expect("open"));
                        to.poll_read(cx)
                    });
                    assert!(read.await.expect("open") > 0);
                    while let Some(frame) = to.next_frame().expect("legal") {
                        got.push(frame.to_vec());
                    }
                }
                assert!(got == frames);
            }
            poll_fn(|cx| near.poll_shutdown(cx)).await.expect("open");
            assert_eq!(poll_fn(|cx| far.poll_read(cx)).await.expect("clean"), 0);
        });
    }
}
