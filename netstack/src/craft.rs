//! Builds packets for the tests of what cuts and joins them.

use crate::ecn::rewrite_v4_checksum;
use crate::packet::protocol;

/// What a crafted TCP segment or UDP datagram says.
#[derive(Clone, Debug)]
pub(crate) struct Craft {
    pub(crate) v6: bool,
    pub(crate) protocol: u8,
    pub(crate) ports: (u16, u16),
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) ident: u16,
    pub(crate) dont_fragment: bool,
    pub(crate) sequence: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    /// TCP options, a multiple of four bytes.
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Default for Craft {
    fn default() -> Craft {
        Craft {
            v6: false,
            protocol: protocol::TCP,
            ports: (443, 50_000),
            tos: 0,
            ttl: 64,
            ident: 7,
            dont_fragment: true,
            sequence: 1_000,
            ack: 2_000,
            flags: 0x10,
            window: 512,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }
}

impl Craft {
    /// Builds the packet; its transport checksum field is zero.
    pub(crate) fn build(&self) -> Vec<u8> {
        let transport = match self.protocol {
            protocol::UDP => 8,
            _ => 20 + self.options.len(),
        };
        let header = if self.v6 { 40 } else { 20 };
        let len = header + transport + self.payload.len();
        let mut packet = Vec::with_capacity(len);
        if self.v6 {
            let class = self.tos;
            packet.extend([0x60 | class >> 4, class << 4, 0, 9]);
            packet.extend(((len - 40) as u16).to_be_bytes());
            packet.extend([self.protocol, self.ttl]);
            packet.extend([0xfd; 16]);
            packet.extend([0x20; 16]);
        } else {
            packet.extend([0x45, self.tos]);
            packet.extend((len as u16).to_be_bytes());
            packet.extend(self.ident.to_be_bytes());
            packet.extend([u8::from(self.dont_fragment) << 6, 0]);
            packet.extend([self.ttl, self.protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            rewrite_v4_checksum(&mut packet);
        }
        packet.extend(self.ports.0.to_be_bytes());
        packet.extend(self.ports.1.to_be_bytes());
        if self.protocol == protocol::UDP {
            packet.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            packet.extend([0, 0]);
        } else {
            packet.extend(self.sequence.to_be_bytes());
            packet.extend(self.ack.to_be_bytes());
            packet.extend([(transport as u8 / 4) << 4, self.flags]);
            packet.extend(self.window.to_be_bytes());
            packet.extend([0; 4]);
            packet.extend(&self.options);
        }
        packet.extend(&self.payload);
        packet
    }
}

/// Makes bytes of which no two neighbours or 1,000-byte pages are alike.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}
