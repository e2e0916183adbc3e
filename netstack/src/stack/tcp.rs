//! TCP: which flow a segment is for, and what a segment without a flow gets.

use std::time::Instant;

use super::{Outcome, Stack};
use crate::config::Accept;
use crate::event::Cause;
use crate::flow::{State, Syn, Tuple};
use crate::header;
use crate::offload::{Checksum, Gso, Offload};
use crate::packet::{Packet, V6_HEADER};
use crate::segment::{self, ACK, FIN, RST, SYN, Segment};
use crate::stats::Dropped;
use crate::waits::Wait;

impl Stack {
    /// Takes a TCP segment.
    pub(super) fn ingress_tcp(
        &mut self,
        now: Instant,
        bytes: &mut [u8],
        packet: &Packet,
    ) -> Result<Outcome, Dropped> {
        let parsed = bytes
            .get(packet.header_len..)
            .and_then(Segment::parse)
            .ok_or(Dropped::Transport)?;
        let (source, destination) = packet.ports.ok_or(Dropped::Transport)?;
        if source == 0 || destination == 0 {
            return Err(Dropped::Transport);
        }
        let tuple = Tuple {
            local: (packet.destination, destination),
            remote: (packet.source, source),
        };
        let bytes = plain(bytes, packet);
        match self.table.get(&tuple) {
            Some(&slot) => self.ingress_flow(now, slot as usize, bytes, parsed),
            None => self.ingress_unknown(now, tuple, bytes, parsed),
        }
    }

    fn ingress_flow(
        &mut self,
        now: Instant,
        slot: usize,
        bytes: &mut [u8],
        parsed: Segment,
    ) -> Result<Outcome, Dropped> {
        let clock = self.clock(now);
        let Some(flow) = self.flows.get_mut(slot) else {
            return Err(Dropped::NoFlow);
        };
        let released = flow.released.is_some();
        let conn = match &mut flow.state {
            State::Open(conn) => conn,
            State::Waiting(_) => return self.ingress_waiting(now, slot, bytes, parsed),
            // The driver has yet to hear of the failure and to release it.
            State::Failed(_) => return Err(Dropped::NoFlow),
        };
        if conn.is_over() {
            // smoltcp would answer for a socket it has forgotten.
            return Err(Dropped::NoFlow);
        }
        let ingress = conn.ingress(
            now,
            &clock,
            bytes,
            parsed,
            &mut self.replies,
            &mut self.account,
        );
        let change = match ingress {
            Ok(change) => change,
            Err(_) => {
                self.stats.internal_failures += 1;
                self.fail(slot, Cause::Internal);
                return Ok(Outcome::Absorbed);
            }
        };
        if released && conn.recv_len() > 0 {
            conn.abort(Cause::Aborted);
        }
        self.stats.replies_dropped += u64::from(change.reply_lost);
        self.stats.established += u64::from(change.established);
        if change.failed.is_some() {
            self.stats.resets_received += 1;
        }
        if change.established || change.progress || change.failed.is_some() {
            self.owe(slot, |owed| {
                owed.established |= change.established;
                owed.progress |= change.progress;
                owed.closed = owed.closed.or(change.failed);
            });
        }
        if change.beyond_window {
            self.answer_window(slot);
        }
        self.touch(slot, now);
        if change.no_memory {
            return Err(Dropped::Memory);
        }
        Ok(Outcome::Absorbed)
    }

    /// Says the window again to a peer that has sent more.
    fn answer_window(&mut self, slot: usize) {
        let flow = &self.flows[slot];
        if let State::Open(conn) = &flow.state
            && let Some((sequence, ack, window)) = conn.window_told()
        {
            let (tuple, flags) = (flow.tuple, conn.ack_flags());
            self.reply_bare(&tuple, (sequence, ack), flags, window, 0);
        }
    }

    /// Tells the peer at once of a window that has opened.
    pub(super) fn update_window(&mut self, slot: usize) {
        let flow = &mut self.flows[slot];
        if let State::Open(conn) = &mut flow.state
            && let Some((sequence, ack, window)) = conn.window_update(&self.account)
        {
            let (tuple, flags) = (flow.tuple, conn.ack_flags());
            self.reply_bare(&tuple, (sequence, ack), flags, window, 0);
        }
    }

    /// Takes a segment for a flow that the driver has not accepted yet.
    fn ingress_waiting(
        &mut self,
        now: Instant,
        slot: usize,
        bytes: &mut [u8],
        parsed: Segment,
    ) -> Result<Outcome, Dropped> {
        let State::Waiting(syn) = &mut self.flows[slot].state else {
            return Err(Dropped::NoFlow);
        };
        let first = transport(&syn.packet)
            .and_then(Segment::parse)
            .ok_or(Dropped::NoFlow)?;
        if parsed.has(RST) {
            // Only the one who sent the SYN knows what follows it.
            if parsed.sequence != first.sequence.wrapping_add(1)
                && parsed.sequence != first.sequence
            {
                return Err(Dropped::NoFlow);
            }
            self.stats.half_open_now -= 1;
            self.stats.resets_received += 1;
            self.end_waiting(slot, now, Cause::Reset);
            return Ok(Outcome::Absorbed);
        }
        if parsed.has(SYN) && !parsed.has(ACK) {
            if parsed.sequence != first.sequence {
                // The peer has begun anew with the same port: the newest SYN counts.
                syn.packet = without_payload(bytes, parsed).ok_or(Dropped::Transport)?;
            }
            return Ok(Outcome::Absorbed);
        }
        Err(Dropped::NoFlow)
    }

    fn ingress_unknown(
        &mut self,
        now: Instant,
        tuple: Tuple,
        bytes: &mut [u8],
        parsed: Segment,
    ) -> Result<Outcome, Dropped> {
        let opening = parsed.has(SYN) && parsed.flags & (ACK | RST | FIN) == 0;
        if let Some(Wait::TimeWait { sequence, ack }) = self.waits.find(&tuple) {
            // A SYN begins a new flow, whatever its sequence number. RFC 1122 §4.2.2.13 asks for one beyond what was
            // received, against old duplicates; those do not pass the session's replay protection, while a peer
            // that chooses its first number at random would be refused every other time.
            if !opening {
                if parsed.has(RST) {
                    // RFC 1337: a reset does not end TIME-WAIT.
                    return Err(Dropped::NoFlow);
                }
                if parsed.payload > 0 || parsed.flags & (SYN | FIN) != 0 {
                    self.reply_bare(&tuple, (sequence, ack), ACK, 0, 0);
                }
                return Ok(Outcome::Absorbed);
            }
        }
        if !opening {
            return Err(self.answer_stray(&tuple, parsed));
        }
        let wanted = match self.config.accept {
            Accept::Any => true,
            Accept::Own => self.config.incoming || self.listening.contains(&tuple.local.1),
        };
        if !wanted {
            self.answer_stray(&tuple, parsed);
            return Err(Dropped::IncomingRefused);
        }
        if self.flows.len() >= self.config.max_flows {
            return Err(Dropped::FlowsFull);
        }
        if self.stats.half_open_now >= self.config.max_half_open as u64 {
            return Err(Dropped::HalfOpenFull);
        }
        if self.account.is_short() {
            self.stats.refused_for_memory += 1;
            self.answer_stray(&tuple, parsed);
            return Err(Dropped::Memory);
        }
        let packet = without_payload(bytes, parsed).ok_or(Dropped::Transport)?;
        let expires = now + self.config.connect_timeout;
        let slot = self.insert(tuple, State::Waiting(Syn { packet, expires }), false);
        self.stats.half_open_now += 1;
        self.stats.incoming += 1;
        self.owe(slot, |owed| owed.incoming = true);
        self.touch(slot, now);
        Ok(Outcome::Absorbed)
    }

    /// Answers a segment that belongs to no flow with a reset, but never a reset (RFC 9293 §3.10.7.1).
    fn answer_stray(&mut self, tuple: &Tuple, parsed: Segment) -> Dropped {
        if !parsed.has(RST) {
            if parsed.has(ACK) {
                self.reply_bare(tuple, (parsed.ack, 0), RST, 0, 0);
            } else {
                self.reply_bare(tuple, (0, parsed.end()), RST | ACK, 0, 0);
            }
            self.stats.resets_sent += 1;
        }
        Dropped::NoFlow
    }

    /// Answers a kept SYN with a reset.
    pub(super) fn answer_syn_with_reset(&mut self, packet: &[u8]) {
        let Ok(parsed) = Packet::parse(packet) else {
            return;
        };
        let (Some((source, destination)), Some(syn)) =
            (parsed.ports, transport(packet).and_then(Segment::parse))
        else {
            return;
        };
        let tuple = Tuple {
            local: (parsed.destination, destination),
            remote: (parsed.source, source),
        };
        self.answer_stray(&tuple, syn);
    }

    /// Queues the next few probes that [`Stack::probe`] asked for.
    pub(super) fn queue_probes(&mut self) {
        let Some(from) = self.probe_from.take() else {
            return;
        };
        let probes: Vec<_> = self
            .flows
            .iter()
            .filter(|(slot, _)| *slot >= from)
            .filter_map(|(slot, flow)| match &flow.state {
                State::Open(conn) => Some((slot, flow.tuple, conn.probe()?)),
                State::Waiting(_) | State::Failed(_) => None,
            })
            .take(PROBES_AT_ONCE)
            .collect();
        if probes.len() == PROBES_AT_ONCE {
            self.probe_from = probes.last().map(|(slot, ..)| slot + 1);
        }
        for (_, tuple, (sequence, ack)) in probes {
            // With the byte, a NAT that has forgotten the flow as well learns how far it has come, and takes the
            // answer for one: Linux resets the peer otherwise, for an acknowledgement of what was never sent.
            self.reply_bare(&tuple, (sequence, ack), ACK, 0, 1);
        }
    }

    fn reply_bare(
        &mut self,
        tuple: &Tuple,
        numbers: (u32, u32),
        flags: u8,
        window: u16,
        zeros: usize,
    ) {
        let mut buffer = self.replies.buffer();
        let header = segment::answer(tuple.local.0, tuple.remote.0);
        segment::write_bare(
            &mut buffer,
            &header,
            (tuple.local.1, tuple.remote.1),
            numbers,
            flags,
            window,
            zeros,
        );
        let offload = Offload {
            gso: Gso::None,
            checksum: Checksum::Partial,
        };
        self.stats.replies_dropped += u64::from(!self.replies.push(buffer, offload));
    }
}

/// Probes queued at a time: the queue of replies has room for others' all the while.
const PROBES_AT_ONCE: usize = 64;

/// Finds the transport header of a packet without options.
fn transport(packet: &[u8]) -> Option<&[u8]> {
    let parsed = Packet::parse(packet).ok()?;
    packet.get(parsed.header_len..)
}

/// Strips IPv6 extension headers, which smoltcp would answer with errors, by writing a plain header over the last.
///
/// IPv4 options stay: smoltcp reads over them. The packet keeps its addresses and its payload.
fn plain<'a>(bytes: &'a mut [u8], packet: &Packet) -> &'a mut [u8] {
    if !packet.has_options {
        return bytes;
    }
    if packet.source.is_ipv4() {
        return plain_v4(bytes, packet);
    }
    let Some(start) = packet.header_len.checked_sub(V6_HEADER) else {
        return bytes;
    };
    let Some(bytes) = bytes.get_mut(start..) else {
        return &mut [];
    };
    let payload = bytes.len().saturating_sub(V6_HEADER);
    let (source, destination) = (
        header::octets(packet.source),
        header::octets(packet.destination),
    );
    header::write_v6(bytes, source, destination, packet.protocol, payload);
    bytes
}

fn plain_v4<'a>(bytes: &'a mut [u8], packet: &Packet) -> &'a mut [u8] {
    let start = packet.header_len.saturating_sub(crate::packet::V4_HEADER);
    let Some(bytes) = bytes.get_mut(start..) else {
        return &mut [];
    };
    let header = header::Header {
        source: packet.source,
        destination: packet.destination,
        protocol: packet.protocol,
        ident: 0,
    };
    header.write(bytes);
    bytes
}

/// Copies a SYN without its data, which is not kept (no TCP Fast Open): the peer sends it again.
fn without_payload(bytes: &[u8], parsed: Segment) -> Option<Box<[u8]>> {
    let headers = bytes.len().checked_sub(parsed.payload)?;
    let mut packet: Box<[u8]> = bytes.get(..headers)?.into();
    header::set_length(&mut packet);
    Some(packet)
}
