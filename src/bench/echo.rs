//! What is sent where a path is measured inside a session: an ICMP echo request to the inner gateway, and the answer.
//!
//! RFC 792 and RFC 4443, section 4; both checksums are the Internet's (RFC 1071).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use adit_netstack::{Packet, protocol};

use crate::wire::InnerConfig;

/// The ends of echoes, the client's own address and the gateway's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// Both of IPv4.
    V4(Ipv4Addr, Ipv4Addr),
    /// Both of IPv6.
    V6(Ipv6Addr, Ipv6Addr),
}

impl Ends {
    /// Reads them from what a server has given a session; `None` where it has no gateway.
    pub(crate) fn of(config: &InnerConfig) -> Option<Self> {
        let v4 = config.v4.zip(config.gateway4);
        let v6 = config.v6.zip(config.gateway6);
        v4.map(|((own, _), gateway)| Self::V4(own, gateway))
            .or_else(|| v6.map(|((own, _), gateway)| Self::V6(own, gateway)))
    }

    const fn header_len(self) -> usize {
        match self {
            Self::V4(..) => IPV4_HEADER,
            Self::V6(..) => IPV6_HEADER,
        }
    }
}

/// Echoes of one length between two ends, told from others by their identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Echo {
    ends: Ends,
    ident: u16,
    /// Bytes of the header of an echo and of what follows it.
    echo_len: usize,
}

impl Echo {
    /// Echoes as short as those of ping(8).
    pub(crate) const fn short(ends: Ends, ident: u16) -> Self {
        Self {
            ends,
            ident,
            echo_len: ECHO_HEADER + PING_PAYLOAD,
        }
    }

    /// Echoes of which each fills a packet of `len` bytes.
    pub(crate) fn filling(ends: Ends, ident: u16, len: u16) -> Self {
        let echo_len = usize::from(len).saturating_sub(ends.header_len());
        Self {
            ends,
            ident,
            echo_len: echo_len.max(ECHO_HEADER),
        }
    }

    /// Returns how long each packet is.
    pub(crate) const fn len(self) -> usize {
        self.ends.header_len() + self.echo_len
    }

    /// Writes the request of this number; `packet` is as long as [`Echo::len`] says.
    pub(crate) fn write_request(self, sequence: u16, packet: &mut [u8]) {
        let (header, echo) = packet.split_at_mut(self.ends.header_len());
        echo.fill(0);
        echo[4..6].copy_from_slice(&self.ident.to_be_bytes());
        echo[6..8].copy_from_slice(&sequence.to_be_bytes());
        header.fill(0);
        match self.ends {
            Ends::V4(own, gateway) => {
                (header[0], header[8], header[9]) = (0x45, HOPS, protocol::ICMP);
                header[2..4].copy_from_slice(&((IPV4_HEADER + self.echo_len) as u16).to_be_bytes());
                header[12..16].copy_from_slice(&own.octets());
                header[16..20].copy_from_slice(&gateway.octets());
                let sum = checksum(&[header]);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                echo[0] = REQUEST_4;
                let sum = checksum(&[echo]);
                echo[2..4].copy_from_slice(&sum.to_be_bytes());
            }
            Ends::V6(own, gateway) => {
                (header[0], header[6], header[7]) = (0x60, protocol::ICMPV6, HOPS);
                header[4..6].copy_from_slice(&(self.echo_len as u16).to_be_bytes());
                header[8..24].copy_from_slice(&own.octets());
                header[24..40].copy_from_slice(&gateway.octets());
                echo[0] = REQUEST_6;
                let length = (self.echo_len as u32).to_be_bytes();
                let next = [0, 0, 0, protocol::ICMPV6];
                let sum = checksum(&[&own.octets(), &gateway.octets(), &length, &next, echo]);
                echo[2..4].copy_from_slice(&sum.to_be_bytes());
            }
        }
    }

    /// Returns the number of the request that `packet` answers, if it is such an answer.
    pub(crate) fn read_reply(self, packet: &[u8]) -> Option<u16> {
        let parsed = Packet::parse(packet).ok()?;
        let (own, gateway, kind): (IpAddr, IpAddr, u8) = match self.ends {
            Ends::V4(own, gateway) => (own.into(), gateway.into(), REPLY_4),
            Ends::V6(own, gateway) => (own.into(), gateway.into(), REPLY_6),
        };
        let echo = packet.get(self.ends.header_len()..)?;
        let whose = u16::from_be_bytes(echo.get(4..6)?.try_into().ok()?);
        let sequence = u16::from_be_bytes(echo.get(6..8)?.try_into().ok()?);
        let ours = (parsed.source, parsed.destination) == (gateway, own)
            && echo.len() == self.echo_len
            && echo[0] == kind
            && whose == self.ident;
        ours.then_some(sequence)
    }
}

/// The checksum over `parts` in a row, each but the last of an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

const ECHO_HEADER: usize = 8;

/// As much as ping(8) sends by default.
const PING_PAYLOAD: usize = 56;

/// The usual hops to live (RFC 1700).
const HOPS: u8 = 64;

const REQUEST_4: u8 = 8;
const REPLY_4: u8 = 0;
const REQUEST_6: u8 = 128;
const REPLY_6: u8 = 129;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use adit_netstack::{Accept, Config, Offload, PacketSink, Stack};

    use super::*;

    const ENDS: [Ends; 2] = [
        Ends::V4(Ipv4Addr::new(10, 86, 3, 9), Ipv4Addr::new(10, 86, 0, 1)),
        Ends::V6(
            Ipv6Addr::new(0xfd86, 0, 0, 0, 0, 0, 3, 9),
            Ipv6Addr::new(0xfd86, 0, 0, 0, 0, 0, 0, 1),
        ),
    ];

    /// Keeps the one packet that a netstack answers.
    #[derive(Default)]
    struct Answer {
        room: Vec<u8>,
        packets: Vec<Vec<u8>>,
    }

    impl PacketSink for Answer {
        fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
            self.room.resize(len, 0);
            Some(&mut self.room)
        }

        fn commit(&mut self, len: usize, _offload: Offload) {
            self.packets.push(self.room[..len].to_vec());
        }
    }

    fn request(echo: Echo, sequence: u16) -> Vec<u8> {
        // Room that held something else before.
        let mut packet = vec![0xaa; echo.len()];
        echo.write_request(sequence, &mut packet);
        packet
    }

    #[test]
    fn gateway_of_a_server_answers_and_the_answer_is_known() {
        for ends in ENDS {
            let gateway: IpAddr = match ends {
                Ends::V4(_, gateway) => gateway.into(),
                Ends::V6(_, gateway) => gateway.into(),
            };
            let config = Config {
                addresses: vec![gateway],
                accept: Accept::Any,
                incoming: true,
                ..Config::default()
            };
            let (mut stack, now) = (Stack::new(config, 1), Instant::now());
            let mut answer = Answer::default();
            for echo in [Echo::short(ends, 5), Echo::filling(ends, 6, 1400)] {
                for sequence in [0, 7, u16::MAX] {
                    let mut packet = request(echo, sequence);
                    assert_eq!(echo.read_reply(&packet), None, "that is a request");
                    stack
                        .handle_packet(now, &mut packet, Offload::default())
                        .expect("a packet in order");
                    stack.poll_transmit(now, &mut answer);
                    let reply = answer.packets.pop().expect("an answer");
                    assert_eq!(echo.read_reply(&reply), Some(sequence));
                    assert_eq!(Echo { ident: 9, ..echo }.read_reply(&reply), None);
                }
            }
            assert_eq!(Echo::filling(ends, 6, 1400).len(), 1400);
        }
    }

    #[test]
    fn what_answers_somebody_else_is_nobodys_answer() {
        let echoes = ENDS.map(|ends| Echo::short(ends, 5));
        for (echo, other) in echoes.into_iter().zip(echoes.into_iter().rev()) {
            let mut reply = request(echo, 1);
            assert_eq!(other.read_reply(&reply), None, "another family");
            let header = echo.ends.header_len();
            reply[header] = if header == IPV4_HEADER {
                REPLY_4
            } else {
                REPLY_6
            };
            assert_eq!(echo.read_reply(&reply), None, "from us to the gateway");
            for len in 0..reply.len() {
                assert_eq!(echo.read_reply(&reply[..len]), None, "{len} bytes");
            }
        }
    }
}
