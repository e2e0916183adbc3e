//! Packets and control frames that were too long for a datagram, put together again.

use std::collections::VecDeque;

use adit_netstack::Offload;

use crate::wire::{DatagramPacketHeader, Piece};

/// Packets of which one half has come, and those that are whole.
///
/// Bounded by number, and by what two datagrams hold: at most [`MAX_WAITING`] halves wait, and the
/// oldest makes room. Memory is kept for the next.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    waiting: VecDeque<Half>,
    whole: VecDeque<Half>,
    spare: Vec<Vec<u8>>,
    delivered: Option<Half>,
}

#[derive(Debug)]
struct Half {
    number: u64,
    offload: Offload,
    piece: Piece,
    bytes: Vec<u8>,
}

/// What became of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pieced {
    /// Its other half is to come; this many others were given up for it.
    Waits { dropped: u64 },
    /// This half came before.
    Duplicate,
    /// With it a packet of `len` bytes is whole: see [`Pieces::poll`]. This many others that nobody fetched were given
    /// up for it.
    Whole { len: usize, dropped: u64 },
}

impl Pieces {
    /// Takes one half of packet `number`.
    pub(super) fn take(
        &mut self,
        number: u64,
        header: &DatagramPacketHeader,
        bytes: &[u8],
    ) -> Pieced {
        let known = self.waiting.iter().position(|half| half.number == number);
        let Some((index, mut half)) =
            known.and_then(|index| Some((index, self.waiting.remove(index)?)))
        else {
            return self.keep(number, header, bytes);
        };
        match (half.piece, header.piece) {
            (Piece::First, Piece::Last) => half.bytes.extend_from_slice(bytes),
            (Piece::Last, Piece::First) => {
                half.bytes.extend_from_slice(bytes);
                let front = bytes.len();
                half.bytes.rotate_right(front);
                half.offload = header.offload();
            }
            (Piece::First | Piece::Last | Piece::Whole, _) => {
                self.waiting.insert(index, half);
                return Pieced::Duplicate;
            }
        }
        half.piece = Piece::Whole;
        let len = half.bytes.len();
        let mut dropped = 0;
        if self.whole.len() >= MAX_WHOLE
            && let Some(lost) = self.whole.pop_front()
        {
            self.recycle(lost);
            dropped = 1;
        }
        self.whole.push_back(half);
        Pieced::Whole { len, dropped }
    }

    /// The next whole packet.
    pub(super) fn poll(&mut self) -> Option<(u64, &[u8], Offload)> {
        if let Some(done) = self.delivered.take() {
            self.recycle(done);
        }
        let half = self.delivered.insert(self.whole.pop_front()?);
        Some((half.number, &half.bytes, half.offload))
    }

    fn keep(&mut self, number: u64, header: &DatagramPacketHeader, bytes: &[u8]) -> Pieced {
        let mut dropped = 0;
        if self.waiting.len() >= MAX_WAITING
            && let Some(oldest) = self.waiting.pop_front()
        {
            self.recycle(oldest);
            dropped = 1;
        }
        let mut memory = self.spare.pop().unwrap_or_default();
        memory.extend_from_slice(bytes);
        self.waiting.push_back(Half {
            number,
            offload: header.offload(),
            piece: header.piece,
            bytes: memory,
        });
        Pieced::Waits { dropped }
    }

    fn recycle(&mut self, half: Half) {
        let mut bytes = half.bytes;
        bytes.clear();
        self.spare.push(bytes);
    }
}

/// A control frame of which one half has come. Only the newest is kept: a sender that sends another
/// has given up on the one before.
#[derive(Debug, Default)]
pub(super) struct Parts {
    serial: u8,
    halves: [Option<Vec<u8>>; 2],
}

impl Parts {
    /// Takes one half; the frame, type and body, if it is whole now.
    pub(super) fn take(&mut self, serial: u8, last: bool, bytes: &[u8]) -> Option<Vec<u8>> {
        if self.serial != serial {
            *self = Self {
                serial,
                halves: [None, None],
            };
        }
        self.halves[usize::from(last)] = Some(bytes.to_vec());
        let [Some(first), Some(_)] = &mut self.halves else {
            return None;
        };
        let mut whole = std::mem::take(first);
        let [_, rest] = std::mem::take(&mut self.halves);
        whole.extend_from_slice(&rest.unwrap_or_default());
        Some(whole)
    }
}

/// Halves that wait for their other one. They left together, so the other is lost or close behind.
const MAX_WAITING: usize = 32;

/// Whole packets that wait to be fetched, which is after every datagram.
const MAX_WHOLE: usize = 4;

#[cfg(test)]
mod tests {
    use adit_netstack::Checksum;

    use super::*;

    fn header(piece: Piece) -> DatagramPacketHeader {
        DatagramPacketHeader {
            source: 0,
            checksum: Checksum::Full,
            kept: false,
            piece,
        }
    }

    fn whole(len: usize) -> Pieced {
        Pieced::Whole { len, dropped: 0 }
    }

    #[test]
    fn halves_make_a_packet_in_either_order() {
        let mut pieces = Pieces::default();
        for (number, order) in [
            (1, [Piece::First, Piece::Last]),
            (2, [Piece::Last, Piece::First]),
        ] {
            let bytes = |piece| {
                if piece == Piece::First {
                    b"front "
                } else {
                    b"behind"
                }
            };
            let took = order.map(|piece| pieces.take(number, &header(piece), bytes(piece)));
            assert_eq!(took, [Pieced::Waits { dropped: 0 }, whole(12)]);
            assert_eq!(pieces.poll().unwrap().1, b"front behind");
            assert!(pieces.poll().is_none());
        }
    }

    #[test]
    fn the_same_half_twice_makes_nothing() {
        let mut pieces = Pieces::default();
        pieces.take(1, &header(Piece::First), b"front ");
        assert_eq!(
            pieces.take(1, &header(Piece::First), b"front "),
            Pieced::Duplicate
        );
        assert_eq!(pieces.take(1, &header(Piece::Last), b"behind"), whole(12));
    }

    #[test]
    fn the_oldest_of_too_many_halves_is_given_up() {
        let mut pieces = Pieces::default();
        let dropped = (0..1000u64).filter(|number| {
            pieces.take(*number, &header(Piece::First), b"x") == Pieced::Waits { dropped: 1 }
        });
        assert_eq!(dropped.count(), 1000 - MAX_WAITING);
        assert!(pieces.spare.len() <= 1, "memory is used again");
        assert_eq!(pieces.take(999, &header(Piece::Last), b"y"), whole(2));
    }

    #[test]
    fn the_oldest_of_too_many_whole_packets_that_nobody_fetches_is_given_up_and_told() {
        let mut pieces = Pieces::default();
        let mut told = 0;
        for number in 0..10 {
            pieces.take(number, &header(Piece::First), b"x");
            if let Pieced::Whole { dropped, .. } = pieces.take(number, &header(Piece::Last), b"y") {
                told += dropped;
            }
        }
        let fetched = std::iter::from_fn(|| pieces.poll().map(|(number, ..)| number));
        assert_eq!(fetched.collect::<Vec<_>>(), [6, 7, 8, 9]);
        assert_eq!(told, 6);
    }

    #[test]
    fn who_is_oldest_stays_so_when_another_is_whole_or_comes_again() {
        let mut pieces = Pieces::default();
        for number in 0..MAX_WAITING as u64 {
            pieces.take(number, &header(Piece::First), b"x");
        }
        pieces.take(0, &header(Piece::Last), b"y");
        pieces.take(1, &header(Piece::First), b"x");
        for number in 100..102 {
            pieces.take(number, &header(Piece::First), b"x");
        }
        // Number 1 was the oldest, and is the only one that has gone.
        for number in 2..MAX_WAITING as u64 {
            assert_eq!(
                pieces.take(number, &header(Piece::Last), b"y"),
                whole(2),
                "{number}"
            );
            assert!(pieces.poll().is_some());
        }
    }

    #[test]
    fn a_control_frame_is_whole_with_both_parts_of_one_serial() {
        let mut parts = Parts::default();
        assert_eq!(parts.take(1, true, b"behind"), None);
        assert_eq!(parts.take(2, false, b"other "), None);
        assert_eq!(parts.take(1, true, b"behind"), None);
        assert_eq!(
            parts.take(1, false, b"front "),
            Some(b"front behind".to_vec())
        );
        assert_eq!(parts.take(1, false, b"front "), None);
    }
}
