//! The devices that a flow's smoltcp interface reads from and writes to: one packet in, or a sink out.

use smoltcp::phy::{self, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use crate::conn::{Echo, Window};
use crate::offload::{Checksum, Gso, Offload};
use crate::replies::Replies;
use crate::segment::{self, SYN, Segment};
use crate::sink::PacketSink;

/// What the peer of a flow is told with each packet beside what smoltcp says: the window, within what memory allows
/// it to be, and marks.
pub(crate) struct Told<'a> {
    pub(crate) window: &'a mut Window,
    pub(crate) most: usize,
    pub(crate) echo: &'a mut Echo,
}

impl Told<'_> {
    fn reborrow(&mut self) -> Told<'_> {
        Told {
            window: self.window,
            most: self.most,
            echo: self.echo,
        }
    }
}

/// The sizes that rule how a flow's packets are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Bytes of the IP header.
    pub(crate) ip_header: usize,
    /// The size our own SYN names.
    pub(crate) own_mss: u16,
    /// What a segment to the peer may carry.
    pub(crate) mss: u16,
}

/// What the stack learns about packets that smoltcp wrote.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Written {
    /// The last one: its length, what was said of it, and its header.
    pub(crate) packet: Option<(usize, Offload, Segment)>,
    /// It had nowhere to go.
    pub(crate) lost: bool,
}

impl Shape {
    /// Finishes a packet that smoltcp wrote.
    ///
    /// smoltcp 0.14 neither marks IPv6 super-packets nor lets an interface name another segment size than its MTU
    /// gives, and an interface that may write super-packets of IPv6 needs an MTU of that size. So the option of a SYN
    /// and the segment size are ours. So is the window, since smoltcp tells the whole ring, and what is said of marks.
    fn finish(&self, packet: &mut [u8], told: &mut Told<'_>) -> Option<(usize, Offload, Segment)> {
        let len = packet.len();
        let bytes = packet.get_mut(self.ip_header..)?;
        let parsed = Segment::parse(bytes)?;
        if parsed.has(SYN)
            && let Some(option) = segment::mss_option(bytes)
        {
            *option = self.own_mss.to_be_bytes();
        }
        told.window.write(bytes, parsed, told.most);
        told.echo.write(bytes, parsed);
        let gso = if parsed.payload > usize::from(self.mss) {
            Gso::Tcp { size: self.mss }
        } else {
            Gso::None
        };
        Some((
            len,
            Offload {
                gso,
                checksum: Checksum::Partial,
            },
            parsed,
        ))
    }
}

/// Hands one packet to an interface; what it answers at once goes to the replies.
pub(crate) struct Arrival<'a> {
    pub(crate) frame: Option<&'a [u8]>,
    /// None discards the answer.
    pub(crate) replies: Option<&'a mut Replies>,
    pub(crate) shape: Shape,
    pub(crate) told: Told<'a>,
    pub(crate) written: &'a mut Written,
}

impl Device for Arrival<'_> {
    type RxToken<'b>
        = Frame<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Answer<'b>
    where
        Self: 'b;

    fn receive(&mut self, _now: Instant) -> Option<(Frame<'_>, Answer<'_>)> {
        let frame = Frame(self.frame.take()?);
        Some((
            frame,
            Answer {
                replies: self.replies.as_deref_mut(),
                shape: self.shape,
                told: self.told.reborrow(),
                written: self.written,
            },
        ))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Answer<'_>> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        DeviceCapabilities::default()
    }
}

/// A packet on its way in.
pub(crate) struct Frame<'a>(&'a [u8]);

impl phy::RxToken for Frame<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Room for the answer to a packet.
pub(crate) struct Answer<'a> {
    replies: Option<&'a mut Replies>,
    shape: Shape,
    told: Told<'a>,
    written: &'a mut Written,
}

impl phy::TxToken for Answer<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, len: usize, f: F) -> R {
        let Some(replies) = self.replies else {
            return f(&mut vec![0; len]);
        };
        let mut buffer = replies.buffer();
        buffer.resize(len, 0);
        let result = f(&mut buffer);
        match self.shape.finish(&mut buffer, &mut self.told) {
            Some((len, offload, parsed)) => {
                self.written.packet = Some((len, offload, parsed));
                self.written.lost = !replies.push(buffer, offload);
            }
            None => {
                self.written.lost = true;
                replies.recycle(buffer);
            }
        }
        result
    }
}

/// Lets an interface write one packet to a sink.
pub(crate) struct Departure<'a, S> {
    pub(crate) sink: &'a mut S,
    /// The most bytes the packet can have.
    pub(crate) bound: usize,
    pub(crate) shape: Shape,
    pub(crate) told: Told<'a>,
    pub(crate) written: &'a mut Written,
}

impl<S: PacketSink> Device for Departure<'_, S> {
    type RxToken<'b>
        = Frame<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Slot<'b, S>
    where
        Self: 'b;

    fn receive(&mut self, _now: Instant) -> Option<(Frame<'_>, Slot<'_, S>)> {
        None
    }

    fn transmit(&mut self, _now: Instant) -> Option<Slot<'_, S>> {
        self.sink.reserve(self.bound)?;
        Some(Slot {
            sink: self.sink,
            shape: self.shape,
            told: self.told.reborrow(),
            written: self.written,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        DeviceCapabilities::default()
    }
}

/// Room for one packet in a sink.
pub(crate) struct Slot<'a, S> {
    sink: &'a mut S,
    shape: Shape,
    told: Told<'a>,
    written: &'a mut Written,
}

impl<S: PacketSink> phy::TxToken for Slot<'_, S> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, len: usize, f: F) -> R {
        let Some(buffer) = self.sink.reserve(len) else {
            // A sink that lends more and then refuses less is broken; smoltcp must have its buffer all the same.
            self.written.lost = true;
            return f(&mut vec![0; len]);
        };
        let result = f(buffer);
        match self.shape.finish(buffer, &mut self.told) {
            Some((len, offload, parsed)) => {
                self.written.packet = Some((len, offload, parsed));
                self.sink.commit(len, offload);
            }
            None => self.written.lost = true,
        }
        result
    }
}

/// Tells an interface its limits when it is made; smoltcp asks for them only then.
pub(crate) struct Limits(DeviceCapabilities);

impl Limits {
    /// Makes the limits of a flow: ordinary packets up to `mtu`, or super-packets up to `most` bytes.
    pub(crate) fn new(mtu: u16, most: Option<usize>) -> Limits {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ip;
        // Checksums of what arrives are verified before smoltcp sees it, and those of what leaves are owed.
        caps.checksum = ChecksumCapabilities::ignored();
        caps.checksum.ipv4 = phy::Checksum::Tx;
        caps.max_transmission_unit = usize::from(mtu);
        if let Some(most) = most.and_then(std::num::NonZeroUsize::new) {
            caps.max_transmission_unit = usize::from(u16::MAX);
            caps.segmentation.tcpv4 = Some(most);
            caps.segmentation.tcpv6 = Some(most);
        }
        Limits(caps)
    }
}

impl Device for Limits {
    type RxToken<'b> = Frame<'b>;
    type TxToken<'b> = Nowhere;

    fn receive(&mut self, _now: Instant) -> Option<(Frame<'_>, Nowhere)> {
        None
    }

    fn transmit(&mut self, _now: Instant) -> Option<Nowhere> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.0.clone()
    }
}

/// A token that is never made.
pub(crate) enum Nowhere {}

impl phy::TxToken for Nowhere {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, _len: usize, _f: F) -> R {
        match self {}
    }
}
