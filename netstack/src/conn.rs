//! One TCP connection: a smoltcp interface and socket with rings, and what smoltcp does not tell or do.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config as InterfaceConfig, Interface};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration as SmolDuration, Instant as SmolInstant};
use smoltcp::wire::{HardwareAddress, IpCidr, IpEndpoint};

use crate::clock::Clock;
use crate::config::Config;
use crate::device::{Arrival, Departure, Limits, Shape, Told, Written};
use crate::event::Cause;
use crate::extent::wrapped;
use crate::flow::Tuple;
use crate::memory::Account;
use crate::offload::MAX_SEGMENTS;
use crate::packet::{V4_HEADER, V6_HEADER};
use crate::replies::Replies;
use crate::rings::{BoundSocket, Ring};
use crate::segment::{self, ACK, SYN, Segment, TCP_HEADER};
use crate::sink::PacketSink;

mod echo;
mod growth;
mod hold;
mod track;
mod window;

pub(crate) use echo::Echo;
pub(crate) use window::Window;

/// A connection that smoltcp runs.
pub(crate) struct Conn {
    interface: Interface,
    socket: BoundSocket,
    tuple: Tuple,
    shape: Shape,
    mtu: u16,
    super_packets: bool,
    keepalive: Duration,
    /// Our highest sequence number sent, plus one; none before our SYN.
    sent_next: Option<u32>,
    /// The highest acknowledgement received, or our first sequence number.
    sent_una: u32,
    /// The last acknowledgement sent.
    ack_sent: Option<u32>,
    /// The end of the furthest bytes that wait in the ring behind a gap.
    seen_end: Option<u32>,
    window: Window,
    echo: Echo,
    /// Where in the receive ring the next byte to be read lies, and in the send ring the next to be acknowledged.
    read_at: usize,
    send_at: usize,
    /// When the last segment arrived.
    heard: Instant,
    /// Since when something of ours is unacknowledged.
    unacked_since: Option<Instant>,
    /// When the handshake must be done.
    handshake_until: Instant,
    established: bool,
    /// When smoltcp went to TIME-WAIT.
    time_wait_since: Option<Instant>,
    probing: bool,
    /// Nothing but the SYN was acknowledged yet.
    first_flight: bool,
    /// Why the flow has failed, while there may be data left to read.
    pub(crate) failed: Option<Cause>,
    /// `send` said that there is no room.
    pub(crate) want_send: bool,
    /// `send` took nothing since there is no memory, and nothing on its way will free any.
    starved: bool,
    finished: bool,
}

/// When a connection wants to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Now,
    At(Instant),
    Never,
}

/// What an arriving segment has changed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Change {
    pub(crate) established: bool,
    pub(crate) progress: bool,
    pub(crate) failed: Option<Cause>,
    pub(crate) reply_lost: bool,
    /// What came reaches beyond the window that was told, so that the peer needs to hear of it.
    pub(crate) beyond_window: bool,
    /// What came was not kept, since there is no memory for it.
    pub(crate) no_memory: bool,
}

/// smoltcp has panicked; the connection must not be used any more.
#[derive(Debug)]
pub(crate) struct Failed;

impl Conn {
    /// Makes a connection that will send a SYN.
    pub(crate) fn connect(
        socket: BoundSocket,
        config: &Config,
        tuple: Tuple,
        seed: u64,
        now: Instant,
        clock: &Clock,
    ) -> Option<Conn> {
        let most = most_mss(config.mtu, &tuple);
        let mut conn = Conn::new(socket, config, tuple, most, seed, now, clock);
        let Conn {
            socket, interface, ..
        } = &mut conn;
        let local = IpEndpoint::from(tuple.local());
        socket
            .tcp_mut()
            .connect(interface.context(), IpEndpoint::from(tuple.remote()), local)
            .ok()?;
        Some(conn)
    }

    /// Makes a connection that answers this SYN, a whole packet.
    pub(crate) fn accept(
        socket: BoundSocket,
        config: &Config,
        tuple: Tuple,
        syn: &mut [u8],
        seed: u64,
        now: Instant,
        clock: &Clock,
    ) -> Option<Conn> {
        let at = ip_header(&tuple);
        let mss = segment::clamp_mss(syn.get_mut(at..)?, most_mss(config.mtu, &tuple));
        let mut conn = Conn::new(socket, config, tuple, mss, seed, now, clock);
        conn.socket
            .tcp_mut()
            .listen(IpEndpoint::from(tuple.local()))
            .ok()?;
        let parsed = Segment::parse(syn.get(at..)?)?;
        conn.feed(clock.to_smoltcp(now), syn, 0, None).ok()?;
        conn.window.begin(syn.get(at..)?, parsed.sequence);
        conn.echo.begin(parsed);
        (conn.state() == tcp::State::SynReceived).then_some(conn)
    }

    fn new(
        mut socket: BoundSocket,
        config: &Config,
        tuple: Tuple,
        mss: u16,
        seed: u64,
        now: Instant,
        clock: &Clock,
    ) -> Conn {
        let window = Window::new(socket.tcp().recv_capacity());
        let tcp = socket.tcp_mut();
        // The first flight is bounded by `send`; CUBIC comes with its first acknowledgement.
        tcp.set_congestion_control(tcp::CongestionControl::None);
        // Whoever writes into the ring has gathered what there is; waiting for more only delays an echo.
        tcp.set_nagle_enabled(false);
        tcp.set_keep_alive(Some(smoltcp_duration(config.keepalive)));
        let interface = interface(
            config.mtu,
            config.super_packets,
            &tuple,
            mss,
            seed,
            clock.to_smoltcp(now),
        );
        Conn {
            interface,
            socket,
            tuple,
            shape: Shape {
                ip_header: ip_header(&tuple),
                own_mss: most_mss(config.mtu, &tuple),
                mss,
            },
            mtu: config.mtu,
            super_packets: config.super_packets,
            keepalive: config.keepalive,
            sent_next: None,
            sent_una: 0,
            ack_sent: None,
            seen_end: None,
            window,
            echo: Echo::default(),
            read_at: 0,
            send_at: 0,
            heard: now,
            unacked_since: Some(now),
            handshake_until: now + config.connect_timeout,
            established: false,
            time_wait_since: None,
            probing: false,
            first_flight: true,
            failed: None,
            want_send: false,
            starved: false,
            finished: false,
        }
    }

    /// Takes an arriving segment: a whole packet without options, the checksum of which was checked.
    pub(crate) fn ingress(
        &mut self,
        now: Instant,
        clock: &Clock,
        packet: &mut [u8],
        parsed: Segment,
        replies: &mut Replies,
        account: &mut Account,
    ) -> Result<Change, Failed> {
        let smol_now = clock.to_smoltcp(now);
        let before_state = self.state();
        let (before_read, before_queue) = (
            self.socket.tcp().recv_queue(),
            self.socket.tcp().send_queue(),
        );
        self.heard = now;
        if self.probing {
            self.probing = false;
            self.socket
                .tcp_mut()
                .set_keep_alive(Some(smoltcp_duration(self.keepalive)));
        }
        if parsed.has(SYN) {
            self.learn_mss(packet, smol_now);
        }
        if self.window.accepts(parsed, before_read) {
            self.echo.note(packet, parsed);
        }
        self.divide_ack(smol_now, packet, parsed)?;
        // A super-packet is worth an acknowledgement of its own; smaller ones wait for company or for an answer.
        let delay = if parsed.payload >= 2 * usize::from(self.shape.own_mss) {
            Duration::ZERO
        } else {
            ACK_DELAY
        };
        self.socket
            .tcp_mut()
            .set_ack_delay(Some(smoltcp_duration(delay)));
        if let Some(sequence) = self.believes_at(parsed) {
            self.feed_bare(smol_now, packet, sequence, parsed.ack)?;
        }
        let mut change = Change {
            beyond_window: self.window.is_exceeded_by(parsed),
            ..Change::default()
        };
        let kept = match change.beyond_window {
            true => 0,
            false => self.make_room(parsed, account),
        };
        change.no_memory = kept < parsed.payload && !change.beyond_window;
        let most = self.allowed(Ring::Receive, account);
        if kept == parsed.payload {
            change.reply_lost = self.feed(smol_now, packet, most, Some(replies))?;
            self.note_arrival(parsed);
        } else {
            self.feed_part(smol_now, packet, parsed, kept)?;
        }

        let after = self.state();
        if before_state == tcp::State::SynSent && after != tcp::State::SynSent {
            // Only now is it known that this SYN was the peer's.
            let syn = packet.get(self.shape.ip_header..).unwrap_or_default();
            self.window.begin(syn, parsed.sequence);
            self.echo.begin(parsed);
        }
        let tcp = self.socket.tcp();
        let acked = before_queue.saturating_sub(tcp.send_queue());
        self.send_at = wrapped(self.send_at + acked, tcp.send_capacity());
        change.progress = tcp.recv_queue() > before_read || ended(after) && !ended(before_state);
        if acked > 0 {
            self.unacked_since = Some(now);
        }
        if (acked > 0 || !self.established) && self.stops_waiting(account) {
            change.progress = true;
        }
        let tcp = self.socket.tcp();
        if tcp.send_queue() == 0
            && !matches!(
                after,
                tcp::State::FinWait1 | tcp::State::Closing | tcp::State::LastAck
            )
        {
            self.unacked_since = None;
        }
        if !self.established && is_established(after) {
            self.established = true;
            change.established = true;
        }
        if after == tcp::State::TimeWait && self.time_wait_since.is_none() {
            self.time_wait_since = Some(now);
        }
        let orderly = matches!(before_state, tcp::State::LastAck | tcp::State::TimeWait);
        if gone(after) && !gone(before_state) && !orderly {
            let cause = if before_state == tcp::State::SynSent {
                Cause::Refused
            } else {
                Cause::Reset
            };
            self.failed = Some(cause);
            change.failed = Some(cause);
        }
        Ok(change)
    }

    /// Writes at most one packet; says what was written.
    pub(crate) fn egress<S: PacketSink>(
        &mut self,
        now: Instant,
        clock: &Clock,
        sink: &mut S,
        account: &Account,
    ) -> Result<Written, Failed> {
        let mut written = Written::default();
        let idle = now.saturating_duration_since(self.heard);
        if !self.probing && self.established && idle >= self.keepalive {
            // Before the first probe leaves: smoltcp sets the time of the next one when it sends.
            self.probing = true;
            self.socket
                .tcp_mut()
                .set_keep_alive(Some(smoltcp_duration(PROBE_INTERVAL)));
        }
        let bound = self.bound();
        let most = self.allowed(Ring::Receive, account);
        let Conn {
            interface,
            socket,
            shape,
            window,
            echo,
            ..
        } = self;
        let mut device = Departure {
            sink,
            bound,
            shape: *shape,
            told: Told { window, most, echo },
            written: &mut written,
        };
        let smol_now = clock.to_smoltcp(now);
        guard(|| {
            interface.poll_egress(smol_now, &mut device, socket.set());
        })?;
        if let Some((_, _, parsed)) = written.packet {
            self.note_departure(parsed);
        }
        Ok(written)
    }

    /// Says how long the next packet can be at most.
    pub(crate) fn bound(&self) -> usize {
        let headers = self.shape.ip_header + MAX_TCP_HEADER;
        let most = if self.super_packets {
            usize::from(u16::MAX)
        } else {
            usize::from(self.mtu)
        };
        (headers + self.socket.tcp().send_queue()).min(most)
    }

    /// Says when smoltcp wants to send or to be called.
    pub(crate) fn due(&mut self, now: Instant, clock: &Clock) -> Due {
        if let Some(since) = self.time_wait_since
            && now.saturating_duration_since(since) >= TIME_WAIT_CARE
        {
            // Calling smoltcp at the end of its TIME-WAIT would empty a ring that may not be read yet.
            return Due::Never;
        }
        let smol_now = clock.to_smoltcp(now);
        let Conn {
            interface, socket, ..
        } = self;
        match interface.poll_at(smol_now, socket.set()) {
            None => Due::Never,
            Some(at) if at <= smol_now => Due::Now,
            Some(_) if self.time_wait_since.is_some() => Due::Never,
            Some(at) => Due::At(clock.to_std(at)),
        }
    }

    /// Says when one of the stack's own time-outs strikes.
    pub(crate) fn expires(&self, config: &Config, released: Option<Instant>) -> Option<Instant> {
        if gone(self.state()) {
            // Only a reset is left, for which there may be no room in the sink.
            return released.map(|released| released + config.close_timeout);
        }
        if self.time_wait_since.is_some() && released.is_none() {
            return None;
        }
        let mut at = match (self.established, self.unacked_since) {
            (false, _) => self.handshake_until,
            (true, Some(since)) => self.heard.max(since) + config.user_timeout,
            (true, None) => self.heard + config.keepalive + PROBE_INTERVAL * PROBES,
        };
        if let Some(released) = released {
            at = at.min(self.heard.max(released) + config.close_timeout);
            at = at.min(released + config.close_timeout * CLOSE_LIMIT);
        }
        Some(at)
    }

    /// Ends the connection with a reset, which leaves by `egress`.
    pub(crate) fn abort(&mut self, cause: Cause) {
        if self.failed.is_none() {
            self.failed = Some(cause);
        }
        if self.time_wait_since.is_none() {
            self.socket.tcp_mut().abort();
        }
    }

    /// Ends our stream after what is queued.
    pub(crate) fn finish(&mut self, now: Instant) {
        if !self.finished {
            self.finished = true;
            self.socket.tcp_mut().close();
            self.unacked_since = self.unacked_since.or(Some(now));
        }
    }

    /// Lends what has arrived to `f`; none if nothing has.
    pub(crate) fn recv<R>(
        &mut self,
        now: Instant,
        account: &mut Account,
        f: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> Option<R> {
        let tcp = self.socket.tcp_mut();
        if !tcp.can_recv() {
            return None;
        }
        let mut taken = 0;
        let result = tcp
            .recv(|bytes| {
                let most = bytes.len();
                let (count, result) = f(bytes);
                taken = count.min(most);
                (taken, result)
            })
            .ok()?;
        self.note_read(now, taken, account);
        Some(result)
    }

    /// The flags of an acknowledgement that is not smoltcp's.
    pub(crate) fn ack_flags(&self) -> u8 {
        ACK | self.echo.flag()
    }

    /// Says what to tell the peer at once of a window that has opened: sequence number, acknowledgement and window.
    pub(crate) fn window_update(&mut self, account: &Account) -> Option<(u32, u32, u16)> {
        let may_come = match self.state() {
            tcp::State::Established | tcp::State::FinWait1 | tcp::State::FinWait2 => true,
            tcp::State::Closed
            | tcp::State::Listen
            | tcp::State::SynSent
            | tcp::State::SynReceived
            | tcp::State::CloseWait
            | tcp::State::Closing
            | tcp::State::LastAck
            | tcp::State::TimeWait => false,
        };
        let sequence = self.sent_next.filter(|_| may_come)?;
        let most = self.allowed(Ring::Receive, account);
        let queue = self.socket.tcp().recv_queue();
        let (ack, window) = self.window.update(queue, most)?;
        Some((sequence, ack, window))
    }

    /// Says the window as it was told: sequence number, acknowledgement and window.
    pub(crate) fn window_told(&self) -> Option<(u32, u32, u16)> {
        let (ack, window) = self.window.told(self.socket.tcp().recv_queue())?;
        Some((self.sent_next?, ack, window))
    }

    /// Says whether the peer has ended its stream; what it sent before may still be unread.
    pub(crate) fn peer_finished(&mut self) -> bool {
        if self.socket.tcp().can_recv() {
            return false;
        }
        matches!(
            self.socket.tcp_mut().recv(|_| (0, ())),
            Err(tcp::RecvError::Finished)
        )
    }

    /// Lends free room of the send ring to `f`; none if there is none now.
    pub(crate) fn send<R>(
        &mut self,
        now: Instant,
        account: &mut Account,
        f: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> Option<R> {
        let space = self.send_space(account);
        if self.send_queue() == 0 {
            // smoltcp begins anew with an empty ring.
            self.begin_send_ring(account);
        }
        let (at, space) = self.place_to_send(space, account);
        if space == 0 {
            self.want_send = true;
            self.starved = self.established && self.send_queue() == 0;
            return None;
        }
        let tcp = self.socket.tcp_mut();
        let was_empty = tcp.send_queue() == 0;
        let mut written = 0;
        let result = tcp.send(|room| {
            let most = room.len().min(space);
            let (count, result) = f(&mut room[..most]);
            written = count.min(most);
            (written, result)
        });
        let result = result.ok()?;
        self.socket.grow(Ring::Send, at, written, account);
        if was_empty && written > 0 {
            self.unacked_since = Some(now);
        }
        Some(result)
    }

    /// Says whether `finish` was called.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Says whether the handshake is done.
    pub(crate) fn is_established(&self) -> bool {
        self.established
    }

    pub(crate) fn recv_len(&self) -> usize {
        self.socket.tcp().recv_queue()
    }

    pub(crate) fn send_space(&self, account: &Account) -> usize {
        let tcp = self.socket.tcp();
        let limit = match (tcp.may_send(), self.first_flight) {
            (false, _) => 0,
            (true, true) => self
                .allowed(Ring::Send, account)
                .min(self.first_flight_len()),
            (true, false) => self.allowed(Ring::Send, account),
        };
        limit.saturating_sub(tcp.send_queue())
    }

    pub(crate) fn send_queue(&self) -> usize {
        self.socket.tcp().send_queue()
    }

    /// Says whether the connection is over; a reset may be left to send.
    pub(crate) fn is_gone(&self) -> bool {
        gone(self.state())
    }

    /// Says whether the connection is over and nothing is left to send, not even a reset.
    pub(crate) fn is_over(&self) -> bool {
        self.is_gone()
            && (self.state() == tcp::State::Listen || self.socket.tcp().local_endpoint().is_none())
    }

    /// Gives the numbers for a TIME-WAIT entry, if the connection is in that state.
    pub(crate) fn time_wait(&self) -> Option<(u32, u32)> {
        match (self.time_wait_since, self.sent_next, self.ack_sent) {
            (Some(_), Some(sequence), Some(ack)) => Some((sequence, ack)),
            (_, _, _) => None,
        }
    }

    pub(crate) fn state(&self) -> tcp::State {
        self.socket.tcp().state()
    }

    pub(crate) fn into_socket(self) -> BoundSocket {
        self.socket
    }

    /// Shows smoltcp the first bytes of a segment, and what it acknowledges: that is what frees memory. What it would
    /// answer is not sent.
    fn feed_part(
        &mut self,
        now: SmolInstant,
        packet: &mut [u8],
        parsed: Segment,
        payload: usize,
    ) -> Result<(), Failed> {
        if payload > 0 {
            let packet = segment::shorten(packet, self.shape.ip_header, parsed, payload);
            self.feed(now, packet, 0, None)?;
        } else if parsed.has(ACK) {
            self.feed_bare(now, packet, parsed.sequence, parsed.ack)?;
        }
        self.note_arrival(Segment { payload, ..parsed });
        Ok(())
    }

    fn feed(
        &mut self,
        now: SmolInstant,
        packet: &[u8],
        most: usize,
        replies: Option<&mut Replies>,
    ) -> Result<bool, Failed> {
        let mut written = Written::default();
        let Conn {
            interface,
            socket,
            shape,
            window,
            echo,
            ..
        } = self;
        let mut device = Arrival {
            frame: Some(packet),
            replies,
            shape: *shape,
            told: Told { window, most, echo },
            written: &mut written,
        };
        guard(|| {
            interface.poll_ingress_single(now, &mut device, socket.set());
        })?;
        if let Some((_, _, parsed)) = written.packet {
            self.note_departure(parsed);
        }
        Ok(written.lost)
    }

    /// Takes the segment size of a SYN-ACK, and makes the interface anew if it rules out what was planned.
    fn learn_mss(&mut self, packet: &mut [u8], now: SmolInstant) {
        let Some(bytes) = packet.get_mut(self.shape.ip_header..) else {
            return;
        };
        let mss = segment::clamp_mss(bytes, self.shape.own_mss);
        if self.established || mss == self.shape.mss {
            return;
        }
        self.shape.mss = mss;
        // All state of TCP is in the socket; an interface is only limits and addresses.
        self.interface = interface(self.mtu, self.super_packets, &self.tuple, mss, 0, now);
    }
}

fn interface(
    mtu: u16,
    super_packets: bool,
    tuple: &Tuple,
    mss: u16,
    seed: u64,
    now: SmolInstant,
) -> Interface {
    let headers = ip_header(tuple) + TCP_HEADER;
    // What leaves must pass the receiver's check: no more segments than a super-packet may have, and whole ones.
    let most = (super_packets && mss > 0).then(|| {
        let mss = usize::from(mss);
        headers + MAX_SEGMENTS.min((MAX_SUPER_PACKET - headers) / mss) * mss
    });
    let mut config = InterfaceConfig::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut interface = Interface::new(config, &mut Limits::new(mtu, most), now);
    let prefix = if tuple.local.0.is_ipv4() { 32 } else { 128 };
    interface.update_ip_addrs(|addresses| {
        // The list is empty and has room for two.
        let _ = addresses.push(IpCidr::new(tuple.local.0.into(), prefix));
    });
    interface
}

fn ip_header(tuple: &Tuple) -> usize {
    if tuple.local.0.is_ipv4() {
        V4_HEADER
    } else {
        V6_HEADER
    }
}

/// The longest super-packet. Linux cuts one in software that is 65,536 bytes or more with its link header, which is 14
/// bytes on Ethernet and some 60 in a network of containers.
const MAX_SUPER_PACKET: usize = 65_535 - 64;

/// Says what a segment may carry at most within the inner MTU.
fn most_mss(mtu: u16, tuple: &Tuple) -> u16 {
    // The MTU is at least 1,280.
    mtu - (ip_header(tuple) + TCP_HEADER) as u16
}

fn smoltcp_duration(duration: Duration) -> SmolDuration {
    SmolDuration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX >> 1))
}

/// Says whether the connection is over; LISTEN is where smoltcp returns to when a SYN-ACK is answered by a reset.
fn gone(state: tcp::State) -> bool {
    matches!(state, tcp::State::Closed | tcp::State::Listen)
}

fn ended(state: tcp::State) -> bool {
    matches!(
        state,
        tcp::State::CloseWait | tcp::State::Closing | tcp::State::LastAck | tcp::State::TimeWait
    )
}

fn is_established(state: tcp::State) -> bool {
    match state {
        tcp::State::Closed | tcp::State::Listen | tcp::State::SynSent | tcp::State::SynReceived => {
            false
        }
        tcp::State::Established
        | tcp::State::FinWait1
        | tcp::State::FinWait2
        | tcp::State::CloseWait
        | tcp::State::Closing
        | tcp::State::LastAck
        | tcp::State::TimeWait => true,
    }
}

/// Runs smoltcp so that a panic in it ends one flow and not the program.
///
/// Its sequence numbers panic when they are subtracted the wrong way round, and what they are comes from the network.
fn guard(f: impl FnOnce()) -> Result<(), Failed> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|_| Failed)
}

/// Long enough to gather two segments or an answer, short against what a user notices and against Nagle at the peer.
const ACK_DELAY: Duration = Duration::from_millis(4);
/// Linux asks nine times at 75 s before it gives an idle flow up.
const PROBE_INTERVAL: Duration = Duration::from_secs(75);
const PROBES: u32 = 9;
/// smoltcp leaves TIME-WAIT after 10 s; before that it is called to acknowledge a repeated FIN.
const TIME_WAIT_CARE: Duration = Duration::from_secs(9);
/// A released flow whose peer keeps answering may take this many times the close time-out.
const CLOSE_LIMIT: u32 = 10;
const MAX_TCP_HEADER: usize = 60;
