//! Every side effect: clock, buffer pools, sockets, TLS, TUN and netlink.

pub mod carrier;
pub mod child;
pub mod clock;
pub mod control;
pub mod dial;
mod http;
pub mod journal;
pub mod lane;
pub mod limits;
pub mod listen;
pub mod memory;
pub mod namespace;
pub mod netlink;
pub mod network;
pub mod nft;
pub mod pool;
pub mod ready;
pub mod relay;
pub mod state;
pub mod sysctl;
pub mod tls;
pub mod tun;
pub mod turns;
pub mod udp;
pub mod unix;
pub mod via;
pub mod websocket;
