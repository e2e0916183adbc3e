//! The texts of resolv.conf and nsswitch.conf for a command.

use std::fmt::Write as _;
use std::net::IpAddr;

/// The text of a resolv.conf(5) with these name servers: the first three, since the C library knows no more.
pub fn resolv_conf(servers: &[IpAddr]) -> String {
    let mut text = String::from("# the tunnel's name servers, by adit run\n");
    for server in servers.iter().take(MAX_SERVERS) {
        // A String takes everything.
        let _ = writeln!(text, "nameserver {server}");
    }
    text
}

/// The text of an nsswitch.conf(5) in which names of hosts come from /etc/hosts and the name servers, and nowhere else;
/// users and all the rest as they were.
pub fn with_hosts_by_dns(text: &str) -> String {
    let is_hosts = |line: &str| {
        let line = line.trim_start();
        let rest = line.strip_prefix("hosts");
        rest.is_some_and(|rest| rest.trim_start().starts_with(':'))
    };
    let mut new = String::with_capacity(text.len() + HOSTS.len());
    let mut continued = false;
    for line in text.lines() {
        // A line may go on in the next.
        let dropped = is_hosts(line) || continued;
        continued = dropped && line.ends_with('\\');
        if !dropped {
            new.push_str(line);
            new.push('\n');
        }
    }
    new.push_str(HOSTS);
    new
}

/// MAXNS of <resolv.h>.
const MAX_SERVERS: usize = 3;

const HOSTS: &str = "hosts: files dns\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_names_up_to_three_servers() {
        let servers: Vec<IpAddr> = ["10.86.0.1", "fd86::1", "10.0.0.1", "10.0.0.2"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        assert_eq!(
            resolv_conf(&servers),
            "# the tunnel's name servers, by adit run\nnameserver 10.86.0.1\nnameserver fd86::1\nnameserver 10.0.0.1\n"
        );
        assert!(!resolv_conf(&[]).contains("nameserver"));
    }

    #[test]
    fn hosts_come_from_files_and_dns_whatever_stood_there() {
        let text = "passwd: files systemd\n hosts : mymachines \\\n resolve [!UNAVAIL=return] dns\n# hosts: none\nhosts: mdns4\nnetworks: files";
        assert_eq!(
            with_hosts_by_dns(text),
            "passwd: files systemd\n# hosts: none\nnetworks: files\nhosts: files dns\n"
        );
        assert_eq!(with_hosts_by_dns(""), "hosts: files dns\n");
    }
}
