//! Packets from a peer that may send anything: their checks, and the stack behind them.

use std::time::{Duration, Instant};

use adit_netstack::{
    Accept, Checksum, Config, Event, FlowId, Gso, Offload, Packet, PacketSink, Rejection, Stack,
    Unreachable, complete_checksum, too_big, unreachable, verify_checksum, virtio_fields,
};

use super::input::Input;

/// Parses `mtu (2) ‖ offload (3) ‖ packet`, checks it as a peer's and rebuilds what a TUN device must be told.
///
/// # Panics
///
/// A promise of the packet code is broken.
pub fn netstack_packet(data: &[u8]) {
    let mut input = Input::new(data);
    let mtu = input.number();
    let offload = offload(&mut input);
    let bytes = input.rest();
    let Ok(packet) = Packet::parse(bytes) else {
        return;
    };
    assert!(packet.header_len <= bytes.len());
    let accepted = packet.check_offload(bytes, offload, mtu).is_ok();
    let fields = virtio_fields(&mut bytes.to_vec(), &packet, offload);
    if accepted {
        let fields = fields.expect("an accepted packet can be rebuilt");
        let end = usize::from(fields.csum_start) + usize::from(fields.csum_offset);
        assert!(end <= bytes.len());
        assert!(usize::from(fields.hdr_len) <= bytes.len());
    }
    let mut completed = bytes.to_vec();
    if complete_checksum(&mut completed).is_ok() {
        assert_eq!(verify_checksum(&completed), Ok(()));
    }
    let mut out = Vec::new();
    if unreachable(bytes, packet.destination, Unreachable::Port, &mut out) {
        assert_eq!(verify_checksum(&out), Ok(()));
    }
    let mut out = Vec::new();
    if too_big(bytes, packet.destination, mtu, &mut out) {
        assert_eq!(verify_checksum(&out), Ok(()));
    }
}

/// Feeds `what to do (1) ‖ offload (3) ‖ length (2) ‖ packet`, over and over, to a stack that takes every flow.
///
/// # Panics
///
/// The stack contradicts itself or exceeds a bound.
pub fn netstack_stack(data: &[u8]) {
    let mut input = Input::new(data);
    let addresses = vec![[10, 86, 0, 1].into(), [0xfd86, 0, 0, 0, 0, 0, 0, 1].into()];
    let config = Config {
        addresses,
        accept: Accept::Any,
        max_flows: MAX_FLOWS,
        max_half_open: MAX_FLOWS / 2,
        receive_ring: RING,
        send_ring: RING,
        ..Config::default()
    };
    let mut stack = Stack::new(config, 1);
    let mut now = Instant::now();
    let mut sink = Sink::default();
    let mut newest = None;
    while !input.is_empty() {
        let action = input.byte();
        let offload = offload(&mut input);
        let mut packet = input.piece().to_vec();
        let _ = stack.handle_packet(now, &mut packet, offload);
        while let Some(event) = stack.poll_event() {
            handle(&mut stack, now, event, &mut newest);
        }
        if let Some(flow) = newest {
            act(&mut stack, now, flow, action);
        }
        stack.poll_transmit(now, &mut sink);
        // Most steps are short, so that a flow lives through many; some reach its timers.
        let step = if action & 0x80 == 0 { 3 } else { 2_000 };
        now += Duration::from_millis(step);
        if stack.poll_timeout().is_some_and(|at| at <= now) {
            stack.handle_timeout(now);
        }
        assert!(stack.len() <= MAX_FLOWS);
    }
    assert_eq!(stack.stats().internal_failures, 0);
}

fn offload(input: &mut Input<'_>) -> Offload {
    let kind = input.byte();
    let size = input.number();
    Offload {
        gso: match kind & 3 {
            1 => Gso::Tcp { size },
            2 => Gso::Udp { size },
            _ => Gso::None,
        },
        checksum: if kind & 4 == 0 {
            Checksum::Full
        } else {
            Checksum::Partial
        },
    }
}

fn handle(stack: &mut Stack, now: Instant, event: Event, newest: &mut Option<FlowId>) {
    match event {
        Event::Incoming { flow, remote, .. } => match remote.port() % 4 {
            0 => stack.reject(now, flow, Rejection::Reset),
            1 => stack.reject(now, flow, Rejection::Unreachable(Unreachable::Host)),
            _ => {
                stack.accept(now, flow);
                *newest = Some(flow);
            }
        },
        Event::Established { flow } | Event::Progress { flow } => {
            let _ = stack.recv(now, flow, |bytes| (bytes.len(), ()));
        }
        Event::Closed { flow, .. } => stack.release(now, flow),
    }
}

/// What an owner may do with a flow at any moment; a stale flow must be harmless.
fn act(stack: &mut Stack, now: Instant, flow: FlowId, action: u8) {
    match action & 7 {
        0 | 1 => {
            let _ = stack.send(now, flow, |room| (room.len().min(5_000), ()));
        }
        2 => {
            let _ = stack.recv(now, flow, |bytes| (bytes.len() / 2, ()));
        }
        3 => stack.finish(now, flow),
        4 => stack.abort(now, flow),
        5 => stack.release(now, flow),
        _ => {}
    }
}

/// Checks what the stack sends and forgets it; is full now and then.
#[derive(Default)]
struct Sink {
    room: Vec<u8>,
    reserved: u32,
}

impl PacketSink for Sink {
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        self.reserved = self.reserved.wrapping_add(1);
        if self.reserved.is_multiple_of(7) {
            return None;
        }
        self.room.clear();
        self.room.resize(len, 0);
        Some(&mut self.room)
    }

    fn commit(&mut self, len: usize, offload: Offload) {
        let bytes = self.room.get(..len).expect("no more than was reserved");
        let packet = Packet::parse(bytes).expect("a stack sends packets");
        let checked = packet.check_offload(bytes, offload, 1400);
        assert_eq!(checked, Ok(()), "{offload:?}");
    }
}

const MAX_FLOWS: usize = 16;
const RING: usize = 64 * 1024;
