//! The ends of flows: an application over a TCP connection or over UDP.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    packet::{IP_HEADER, Inner, MAX_FLOWS, Message, Packet, Segment, Side, Transport, UDP_HEADER},
    scenario::{FlowSpec, Traffic, Via},
    talk::{Asker, MESSAGE, Pulse},
    tcp::{Connection, ControlKind, TcpCounters, TcpSettings},
};
use crate::link::Random;

/// One end of a flow.
#[derive(Debug)]
pub(super) struct End {
    flow: usize,
    side: Side,
    ident: u16,
    stack: Stack,
    /// Bytes that the application has read.
    pub(super) read: u64,
    /// When it had read all there was to come.
    pub(super) completed: Option<Instant>,
    expects: Option<u64>,
}

#[derive(Debug)]
enum Stack {
    Tcp(Box<Connection>, Talk),
    Udp(Words),
}

/// What an application does on a connection.
#[derive(Debug)]
enum Talk {
    /// Reads, and has written what it writes at the beginning.
    Bulk,
    /// Sends back what it reads.
    Echo,
    Ask(Asker),
}

/// What an application does with datagrams.
#[derive(Debug)]
enum Words {
    Ask(Asker),
    /// Sends messages back.
    Echo(VecDeque<u64>),
    Pulse(Pulse, usize),
    Listen,
}

/// What both ends of a flow have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    pub(super) flow: usize,
    pub(super) epoch: Instant,
    /// From when on it is measured, and until when messages are.
    pub(super) from: Instant,
    pub(super) until: Instant,
    pub(super) mtu: u16,
    pub(super) super_packets: bool,
}

impl End {
    /// Makes both ends of a flow, the client's first, that begins `now`.
    pub(super) fn pair(
        spec: &FlowSpec,
        setting: &Setting,
        now: Instant,
        random: &mut Random,
    ) -> [Self; 2] {
        let tcp = |control| TcpSettings {
            control,
            mtu: match spec.via {
                Via::Tunnel => setting.mtu,
                Via::Beside => BESIDE_MTU,
            },
            super_packets: spec.via == Via::Tunnel && setting.super_packets,
        };
        let seeds = [random.next_u64(), random.next_u64()];
        let connections = |control| {
            let settings = tcp(control);
            let client = Box::new(Connection::connect(setting.epoch, now, settings, seeds[0]));
            let server = Box::new(Connection::listen(setting.epoch, now, settings, seeds[1]));
            [client, server]
        };
        let asker = || Asker::new(now, setting.from, setting.until);
        let stacks = match spec.traffic {
            Traffic::Download { control, bytes } => {
                let [client, mut server] = connections(control);
                server.write(bytes.unwrap_or(ENDLESS));
                [
                    Stack::Tcp(client, Talk::Bulk),
                    Stack::Tcp(server, Talk::Bulk),
                ]
            }
            Traffic::Upload { control, bytes } => {
                let [mut client, server] = connections(control);
                client.write(bytes.unwrap_or(ENDLESS));
                [
                    Stack::Tcp(client, Talk::Bulk),
                    Stack::Tcp(server, Talk::Bulk),
                ]
            }
            Traffic::TcpMessages => {
                let [client, server] = connections(ControlKind::Cubic);
                [
                    Stack::Tcp(client, Talk::Ask(asker())),
                    Stack::Tcp(server, Talk::Echo),
                ]
            }
            Traffic::UdpMessages => [
                Stack::Udp(Words::Ask(asker())),
                Stack::Udp(Words::Echo(VecDeque::new())),
            ],
            Traffic::Constant { from, rate, size } => {
                let pulse = Pulse::new(now, interval(rate, size), None, random.next_u64());
                speak(from, pulse, size)
            }
            Traffic::OnOff {
                from,
                rate,
                size,
                on,
                off,
            } => {
                let pulse = Pulse::new(
                    now,
                    interval(rate, size),
                    Some((on, off)),
                    random.next_u64(),
                );
                speak(from, pulse, size)
            }
        };
        let expected = |side| match spec.traffic {
            Traffic::Download { bytes, .. } if side == Side::Client => bytes,
            Traffic::Upload { bytes, .. } if side == Side::Server => bytes,
            Traffic::Download { .. }
            | Traffic::Upload { .. }
            | Traffic::TcpMessages
            | Traffic::UdpMessages
            | Traffic::Constant { .. }
            | Traffic::OnOff { .. } => None,
        };
        let [client, server] = stacks;
        [(Side::Client, client), (Side::Server, server)].map(|(side, stack)| Self {
            flow: setting.flow % MAX_FLOWS,
            side,
            ident: 0,
            stack,
            read: 0,
            completed: None,
            expects: expected(side),
        })
    }

    /// Takes what a packet carries.
    pub(super) fn handle(&mut self, now: Instant, transport: &Transport) {
        let read = match (&mut self.stack, transport) {
            (Stack::Tcp(connection, talk), Transport::Tcp(segment)) => {
                let bytes = connection.handle_segment(now, segment);
                match talk {
                    Talk::Bulk => {}
                    Talk::Echo => connection.write(bytes),
                    Talk::Ask(asker) => asker.handle_bytes(now, bytes),
                }
                bytes
            }
            (Stack::Udp(words), Transport::Udp(message)) => {
                match words {
                    Words::Ask(asker) => asker.handle_message(now, message.number),
                    Words::Echo(numbers) => numbers.push_back(message.number),
                    Words::Pulse(..) | Words::Listen => {}
                }
                message.payload as u64
            }
            (Stack::Tcp(..), Transport::Udp(_)) | (Stack::Udp(_), Transport::Tcp(_)) => 0,
        };
        self.read += read;
        if self.completed.is_none() && self.expects.is_some_and(|expected| self.read >= expected) {
            self.completed = Some(now);
        }
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        match &mut self.stack {
            Stack::Tcp(connection, talk) => {
                connection.handle_timeout(now);
                match talk {
                    Talk::Bulk | Talk::Echo => {}
                    Talk::Ask(asker) => {
                        while asker.poll(now).is_some() {
                            connection.write(MESSAGE as u64);
                        }
                    }
                }
            }
            // asked for when transmitting
            Stack::Udp(_) => {}
        }
    }

    /// Says when there is something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match &self.stack {
            Stack::Tcp(connection, talk) => {
                let asking = match talk {
                    Talk::Bulk | Talk::Echo => None,
                    Talk::Ask(asker) => Some(asker.poll_timeout()),
                };
                [connection.poll_timeout(), asking]
                    .into_iter()
                    .flatten()
                    .min()
            }
            Stack::Udp(Words::Ask(asker)) => Some(asker.poll_timeout()),
            Stack::Udp(Words::Pulse(pulse, _)) => Some(pulse.poll_timeout()),
            Stack::Udp(Words::Echo(_) | Words::Listen) => None,
        }
    }

    /// Gives the next packet that leaves now, its number, and how many segments it holds.
    pub(super) fn poll_transmit(&mut self, now: Instant) -> Option<(Packet, u16, u16)> {
        let (transport, size) = match &mut self.stack {
            Stack::Tcp(connection, _) => {
                let outgoing = connection.poll_transmit(now)?;
                (Transport::Tcp(outgoing.segment), outgoing.size)
            }
            Stack::Udp(words) => (Transport::Udp(words.next(now)?), None),
        };
        let count = match (&transport, size) {
            (Transport::Tcp(Segment { payload, .. }), Some(size)) => {
                payload.div_ceil(usize::from(size).max(1)) as u16
            }
            (Transport::Tcp(_) | Transport::Udp(_), Some(_) | None) => 1,
        };
        let ident = self.ident;
        self.ident = self.ident.wrapping_add(count);
        let inner = Inner {
            flow: self.flow,
            from: self.side,
            ident,
            transport,
        };
        let packet = Packet {
            bytes: inner.write(),
            segment: size,
        };
        Some((packet, ident, count))
    }

    pub(super) fn tcp(&self) -> Option<TcpCounters> {
        match &self.stack {
            Stack::Tcp(connection, _) => Some(connection.counters()),
            Stack::Udp(_) => None,
        }
    }

    /// The sender of messages, if this end is one.
    pub(super) fn asker(&mut self) -> Option<&mut Asker> {
        match &mut self.stack {
            Stack::Tcp(_, Talk::Ask(asker)) | Stack::Udp(Words::Ask(asker)) => Some(asker),
            Stack::Tcp(_, Talk::Bulk | Talk::Echo) => None,
            Stack::Udp(Words::Echo(_) | Words::Pulse(..) | Words::Listen) => None,
        }
    }
}

impl Words {
    fn next(&mut self, now: Instant) -> Option<Message> {
        let (number, payload) = match self {
            Self::Ask(asker) => (asker.poll(now)?, MESSAGE),
            Self::Echo(numbers) => (numbers.pop_front()?, MESSAGE),
            Self::Pulse(pulse, size) => (pulse.poll(now)?, *size),
            Self::Listen => return None,
        };
        Some(Message { number, payload })
    }
}

fn speak(from: Side, pulse: Pulse, size: usize) -> [Stack; 2] {
    let speaker = Stack::Udp(Words::Pulse(pulse, size));
    let listener = Stack::Udp(Words::Listen);
    match from {
        Side::Client => [speaker, listener],
        Side::Server => [listener, speaker],
    }
}

/// The time between datagrams of this size at this rate.
fn interval(rate: u64, size: usize) -> Duration {
    let bits = (size + IP_HEADER + UDP_HEADER) as f64 * 8.0;
    Duration::from_secs_f64(bits / (rate.max(1) as f64))
}

/// More than any run carries.
const ENDLESS: u64 = 1 << 50;
/// Of Ethernet.
const BESIDE_MTU: u16 = 1500;
