//! What a stack is told when it is made.

use std::net::IpAddr;
use std::time::Duration;

/// Says whose packets the stack takes for its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accept {
    /// Only those to its own addresses: the client's stack.
    #[default]
    Own,
    /// Those to any unicast address: the stack stands for the whole network behind it, as the `user` egress does.
    Any,
}

/// Configures a [`Stack`](crate::Stack); the default serves a client.
#[derive(Clone, Debug)]
pub struct Config {
    /// The inner MTU in bytes, 1,280 to 9,000; other values are brought into these bounds.
    pub mtu: u16,
    /// The stack's own addresses.
    pub addresses: Vec<IpAddr>,
    /// Whose packets it takes.
    pub accept: Accept,
    /// Whether a SYN for any port of its own addresses is reported as [`Event::Incoming`](crate::Event::Incoming) under
    /// [`Accept::Own`]; if not, those for ports that are not [listened](crate::Stack::listen) on are answered with a
    /// reset. [`Accept::Any`] reports all.
    pub incoming: bool,
    /// Whether it sends super-packets.
    pub super_packets: bool,
    /// The most flows, half-open and closing ones included.
    pub max_flows: usize,
    /// The most flows that wait to be accepted or rejected.
    pub max_half_open: usize,
    /// Bytes of a flow's receive ring: address space, memory only when used.
    pub receive_ring: usize,
    /// Bytes of a flow's send ring. smoltcp sends badly with much more than a bandwidth-delay product in it.
    pub send_ring: usize,
    /// How long `connect` tries, how long a handshake may last, and how long an incoming flow waits to be accepted.
    pub connect_timeout: Duration,
    /// How long a flow may be idle before the peer is asked whether it is there.
    pub keepalive: Duration,
    /// How long data may stay without any answer before the flow is given up. It must outlive an outage of the tunnel.
    pub user_timeout: Duration,
    /// How long a released flow may close in the background without hearing from its peer.
    pub close_timeout: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            mtu: 1400,
            addresses: Vec::new(),
            accept: Accept::Own,
            incoming: false,
            super_packets: true,
            max_flows: 20_000,
            max_half_open: 1_024,
            receive_ring: 1 << 20,
            send_ring: 1 << 20,
            // Six SYNs at smoltcp's pace of 1, 2, 4, 8 and 16 s.
            connect_timeout: Duration::from_secs(32),
            // What hosts do (RFC 9293 §3.8.4 asks for no less).
            keepalive: Duration::from_secs(2 * 60 * 60),
            // RFC 9293 §3.8.3 asks for at least 100 s; minutes, since a tunnel may be away that long.
            user_timeout: Duration::from_secs(5 * 60),
            close_timeout: Duration::from_secs(60),
        }
    }
}

impl Config {
    /// Brings every value into its bounds.
    pub(crate) fn bounded(mut self) -> Config {
        self.mtu = self.mtu.clamp(1280, 9000);
        // A slot number is 32 bits; a flow costs a mapping, of which Linux grants a process 65,530.
        self.max_flows = self.max_flows.min(1 << 20);
        self.max_half_open = self.max_half_open.min(self.max_flows);
        self
    }
}
