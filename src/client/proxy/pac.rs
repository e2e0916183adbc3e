//! The proxy auto-configuration file that names this proxy.

use std::net::SocketAddr;

/// Paths under which browsers are served the file.
pub(super) const PATHS: [&str; 2] = ["/proxy.pac", "/wpad.dat"];

/// The file's media type.
pub(super) const MEDIA_TYPE: &str = "application/x-ns-proxy-autoconfig";

/// Writes the file: everything but the machine itself goes through `proxy`.
///
/// SOCKS5 comes first, as it needs no parsing of plain HTTP; but browsers cannot present
/// a password to a SOCKS proxy.
pub(super) fn file(proxy: SocketAddr, with_password: bool) -> String {
    let proxy = SocketAddr::new(proxy.ip().to_canonical(), proxy.port());
    let chain = if with_password {
        format!("PROXY {proxy}")
    } else {
        format!("SOCKS5 {proxy}; PROXY {proxy}")
    };
    format!(
        "function FindProxyForURL(url, host) {{\n\
         \x20 if (host === \"localhost\" || shExpMatch(host, \"*.localhost\") ||\n\
         \x20     shExpMatch(host, \"127.*\") || host === \"::1\" || host === \"[::1]\") {{\n\
         \x20   return \"DIRECT\";\n\
         \x20 }}\n\
         \x20 return \"{chain}\";\n\
         }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_the_listener_in_the_ways_browsers_can_use() {
        let proxy = "127.0.0.1:1080".parse().unwrap();
        assert!(
            file(proxy, false).contains("return \"SOCKS5 127.0.0.1:1080; PROXY 127.0.0.1:1080\";")
        );
        assert!(file(proxy, true).contains("return \"PROXY 127.0.0.1:1080\";"));
        let mapped = "[::ffff:192.0.2.1]:1080".parse().unwrap();
        assert!(file(mapped, true).contains("\"PROXY 192.0.2.1:1080\""));
        let v6 = "[::1]:1080".parse().unwrap();
        assert!(file(v6, true).contains("\"PROXY [::1]:1080\""));
    }
}
