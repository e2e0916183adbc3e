//! The way of a packet from the tunnel to the part of the stack that it is for.

use std::net::SocketAddr;
use std::time::Instant;

use super::{Outcome, Stack};
use crate::checksum;
use crate::config::Accept;
use crate::event::Cause;
use crate::flow::{State, Tuple};
use crate::fragments::Fragmented;
use crate::icmp::{self, ICMP_HEADER, Message, Quoted, Unreachable};
use crate::offload::{Checksum, Gso, Offload};
use crate::packet::{Packet, is_unicast, protocol};
use crate::stats::Dropped;

impl Stack {
    /// Takes a packet as it came.
    pub(super) fn ingress(
        &mut self,
        now: Instant,
        bytes: &mut [u8],
        offload: Offload,
    ) -> Result<Outcome, Dropped> {
        let packet = Packet::parse(bytes)?;
        packet.check_offload(bytes, offload, self.config.mtu)?;
        self.check_addresses(&packet)?;
        if let Some(fragment) = packet.fragment {
            return match self
                .fragments
                .add(now, &packet, fragment, bytes, &mut self.reassembled)
            {
                Fragmented::Whole => {
                    self.stats.reassembled += 1;
                    Ok(Outcome::Reassembled)
                }
                Fragmented::Kept => Ok(Outcome::Absorbed),
                Fragmented::Dropped => Err(Dropped::Fragment),
            };
        }
        self.stats.super_packets_in += u64::from(offload.gso != Gso::None);
        self.ingress_checked(now, bytes, &packet, offload)
    }

    /// Takes a datagram that was put together from fragments.
    pub(super) fn ingress_whole(
        &mut self,
        now: Instant,
        bytes: &mut [u8],
    ) -> Result<Outcome, Dropped> {
        let packet = Packet::parse(bytes)?;
        if packet.fragment.is_some() {
            // A fragment within a fragment is nobody's honest packet.
            return Err(Dropped::Fragment);
        }
        self.ingress_checked(now, bytes, &packet, Offload::default())
    }

    fn ingress_checked(
        &mut self,
        now: Instant,
        bytes: &mut [u8],
        packet: &Packet,
        offload: Offload,
    ) -> Result<Outcome, Dropped> {
        if offload.checksum == Checksum::Full
            && matches!(
                packet.protocol,
                protocol::TCP | protocol::UDP | protocol::ICMP | protocol::ICMPV6
            )
        {
            checksum::verify_parsed(bytes, packet)?;
        }
        match (packet.protocol, packet.source.is_ipv4()) {
            (protocol::TCP, _) => self.ingress_tcp(now, bytes, packet),
            (protocol::UDP, _) => self.ingress_udp(bytes, packet, offload),
            (protocol::ICMP, true) | (protocol::ICMPV6, false) => self.ingress_icmp(bytes, packet),
            (other, _) => {
                self.send_unreachable(bytes, Unreachable::Protocol);
                Err(Dropped::Protocol(other))
            }
        }
    }

    fn check_addresses(&self, packet: &Packet) -> Result<(), Dropped> {
        if !is_unicast(packet.source) || !is_unicast(packet.destination) {
            return Err(Dropped::NotUnicast);
        }
        match self.config.accept {
            Accept::Any => Ok(()),
            Accept::Own if self.is_own(packet.destination) => Ok(()),
            Accept::Own => Err(Dropped::NotOurs),
        }
    }

    pub(super) fn is_own(&self, address: std::net::IpAddr) -> bool {
        self.config.addresses.contains(&address)
    }

    fn ingress_icmp(&mut self, bytes: &mut [u8], packet: &Packet) -> Result<Outcome, Dropped> {
        match icmp::parse(bytes, packet).ok_or(Dropped::Transport)? {
            Message::Echo {
                request,
                ident,
                sequence,
            } => {
                let payload = packet.header_len + ICMP_HEADER..bytes.len();
                if request && self.is_own(packet.destination) {
                    self.answer_echo(
                        packet,
                        ident,
                        sequence,
                        bytes.get(payload).unwrap_or_default(),
                    );
                    return Ok(Outcome::Absorbed);
                }
                let (local, remote) = (packet.destination, packet.source);
                Ok(Outcome::Echo {
                    request,
                    local,
                    remote,
                    ident,
                    sequence,
                    payload,
                })
            }
            Message::Unreachable { why, quoted } => self.ingress_unreachable(why, quoted),
            // The inner MTU is a constant and lanes cut what does not fit, so an honest one never comes; one that
            // asks for smaller segments is a known attack (RFC 5927 §7).
            Message::TooBig { quoted } if self.matches(&quoted) => Err(Dropped::IcmpIgnored),
            Message::TooBig { .. } => Err(Dropped::IcmpUnmatched),
            Message::Other => Err(Dropped::IcmpIgnored),
        }
    }

    fn ingress_unreachable(
        &mut self,
        why: Unreachable,
        quoted: Quoted,
    ) -> Result<Outcome, Dropped> {
        if !self.matches(&quoted) {
            return Err(Dropped::IcmpUnmatched);
        }
        let (local, remote) = (quoted.ports.0, quoted.ports.1);
        match quoted.protocol {
            protocol::UDP => Ok(Outcome::UdpFailed {
                local: SocketAddr::new(quoted.source, local),
                remote: SocketAddr::new(quoted.destination, remote),
                why,
            }),
            protocol::TCP => {
                let tuple = Tuple {
                    local: (quoted.source, local),
                    remote: (quoted.destination, remote),
                };
                let slot = self
                    .table
                    .get(&tuple)
                    .map(|slot| *slot as usize)
                    .ok_or(Dropped::IcmpUnmatched)?;
                match &self.flows[slot].state {
                    // RFC 5927 §5: an open flow is not ended by such a message; its own time-outs decide.
                    State::Open(conn) if conn.is_established() => Err(Dropped::IcmpIgnored),
                    State::Open(_) => {
                        self.fail(slot, Cause::Unreachable(why));
                        Ok(Outcome::Absorbed)
                    }
                    State::Waiting(_) | State::Failed(_) => Err(Dropped::IcmpIgnored),
                }
            }
            _ => Err(Dropped::IcmpIgnored),
        }
    }

    /// Says whether an ICMP error quotes something we have sent.
    fn matches(&self, quoted: &Quoted) -> bool {
        match quoted.protocol {
            protocol::TCP => {
                let tuple = Tuple {
                    local: (quoted.source, quoted.ports.0),
                    remote: (quoted.destination, quoted.ports.1),
                };
                self.table
                    .get(&tuple)
                    .and_then(|slot| self.flows.get(*slot as usize))
                    .is_some_and(|flow| match &flow.state {
                        State::Open(conn) => conn.in_flight(quoted.sequence),
                        State::Waiting(_) | State::Failed(_) => false,
                    })
            }
            protocol::UDP => match self.config.accept {
                Accept::Any => true,
                Accept::Own => self.is_own(quoted.source) && self.ports.contains(&quoted.ports.0),
            },
            _ => self.config.accept == Accept::Any || self.is_own(quoted.source),
        }
    }
}
