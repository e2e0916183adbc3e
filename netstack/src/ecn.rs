//! Explicit congestion notification in IP headers (RFC 3168 §5): who understands it, and the mark.

use crate::checksum;

/// Says whether the ends of a packet's transport understand marks: ECT(0) or ECT(1), or CE already.
///
/// `bytes` begin with an IP header; anything else does not understand.
#[must_use]
pub fn is_ecn_capable(bytes: &[u8]) -> bool {
    codepoint(bytes).is_some_and(|codepoint| codepoint != 0)
}

/// Says whether a packet has met congestion (CE).
pub(crate) fn is_marked(bytes: &[u8]) -> bool {
    codepoint(bytes) == Some(CE)
}

/// Marks a packet as having met congestion (CE), and mends the checksum of an IPv4 header.
///
/// Returns whether the packet carries the mark now. One whose transport does not understand it is left alone:
/// dropping it is what tells its sender. Transport checksums do not cover the field.
pub fn mark_congestion(bytes: &mut [u8]) -> bool {
    match codepoint(bytes) {
        None | Some(0) => false,
        Some(CE) => true,
        Some(_) => {
            match bytes {
                [first, fields, ..] if *first >> 4 == 6 => *fields |= CE << 4,
                [_, fields, ..] => {
                    *fields |= CE;
                    rewrite_v4_checksum(bytes);
                }
                [_] | [] => return false,
            }
            true
        }
    }
}

/// Computes the checksum of an IPv4 header anew; does nothing to what has none.
pub(crate) fn rewrite_v4_checksum(bytes: &mut [u8]) {
    let len = bytes
        .first()
        .map_or(0, |first| usize::from(first & 0x0f) * 4);
    let Some(header) = bytes.get_mut(..len) else {
        return;
    };
    if let Some(field) = header.get_mut(10..12) {
        field.fill(0);
    }
    let sum = !checksum::fold(checksum::sum(header));
    if let Some(field) = header.get_mut(10..12) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

fn codepoint(bytes: &[u8]) -> Option<u8> {
    match bytes {
        [first, fields, ..] if first >> 4 == 4 => Some(fields & CE),
        // The traffic class lies across the first two bytes, its low four bits in the second (RFC 8200 §3).
        [first, fields, ..] if first >> 4 == 6 => Some(fields >> 4 & CE),
        _ => None,
    }
}

/// Congestion experienced; as a mask, the two bits of the field.
const CE: u8 = 0b11;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Packet;

    fn v4(tos: u8) -> Vec<u8> {
        let mut packet = vec![
            0x45, tos, 0, 20, 1, 2, 0x40, 0, 64, 59, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        rewrite_v4_checksum(&mut packet);
        packet
    }

    fn v6(class: u8) -> Vec<u8> {
        let mut packet = vec![0x5a; 40];
        packet[..8].copy_from_slice(&[0x60 | class >> 4, class << 4 | 0x0f, 1, 2, 0, 0, 59, 64]);
        packet
    }

    #[test]
    fn ect_becomes_ce_and_the_header_stays_right() {
        for class in [0xb9, 0xba, 0xbb] {
            let mut packet = v4(class);
            assert!(is_ecn_capable(&packet));
            assert!(mark_congestion(&mut packet));
            assert_eq!(packet, v4(0xbb));
            Packet::parse(&packet).unwrap();
            let mut packet = v6(class);
            assert!(is_ecn_capable(&packet));
            assert!(mark_congestion(&mut packet));
            assert_eq!(packet, v6(0xbb));
        }
    }

    #[test]
    fn what_does_not_understand_marks_is_left_alone() {
        for mut packet in [v4(0xb8), v6(0xb8), Vec::new(), vec![0x45], vec![0x75; 40]] {
            let before = packet.clone();
            assert!(!is_ecn_capable(&packet));
            assert!(!mark_congestion(&mut packet));
            assert_eq!(packet, before);
        }
    }
}
