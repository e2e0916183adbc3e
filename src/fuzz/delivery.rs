//! Datagram lanes: reports, and what a sender makes of any of them.

use std::time::{Duration, Instant};

use super::input::Input;
use crate::proto::congestion::Bbr;
use crate::proto::delivery::{Class, Fate, Flight, Permit, Received};
use crate::wire::{MAX_REPORT_LEN, RepairCounts, Report};

/// Parses the body of a report.
///
/// # Panics
///
/// What was parsed is not what would be written.
pub fn wire_report(body: &[u8]) {
    let Ok(report) = Report::parse(body) else {
        return;
    };
    let mut again = [0; MAX_REPORT_LEN];
    let len = report.write(&mut again).expect("room for the longest");
    assert_eq!(&again[..len], body);
    for number in report.missing.below(u64::from(u32::MAX)) {
        assert!(number < u64::from(u32::MAX));
    }
}

/// Runs a lane by a script: datagrams leave, arrive or are lost, reports come back, honest or any bytes.
///
/// # Panics
///
/// A content has no fate or two, more flies than was sent, or the controller's answers are none.
pub fn delivery(script: &[u8]) {
    let mut input = Input::new(script);
    let start = Instant::now();
    let round_trip = Duration::from_millis(u64::from(input.number() % 1000));
    let mut now = start;
    let congestion = Bbr::new(now, 1400, round_trip, 1);
    let mut flight = Flight::new(now, round_trip, Box::new(congestion));
    let mut received = Received::new(now, round_trip);
    let mut fates: Vec<Option<Fate>> = Vec::new();
    let mut number = 0;
    let note = |fates: &mut Vec<Option<Fate>>, index: usize, fate: Fate| {
        let slot = fates.get_mut(index).expect("it was sent");
        let expected = match fate {
            Fate::Delivered | Fate::Lost => None,
            Fate::Late => Some(Fate::Lost),
        };
        assert_eq!(*slot, expected);
        *slot = Some(fate);
    };
    for _ in 0..2000 {
        if input.is_empty() {
            break;
        }
        match input.byte() % 8 {
            0 => now += Duration::from_micros(u64::from(input.number()) * 16),
            1..=3 => {
                let bytes = usize::from(input.number() % 1400) + 1;
                if flight.permit(now, bytes) == Permit::Now {
                    let sent = flight.handle_sent(now, number, bytes, Class::Data, fates.len());
                    sent.expect("numbers ascend and there is room");
                    fates.push(None);
                    if !input.byte().is_multiple_of(4) {
                        received.handle_datagram(now, number, bytes, false, Class::Data);
                    }
                    number += 1;
                } else {
                    flight.handle_application_limited();
                }
            }
            4 => {
                if let Some(report) =
                    received.poll_report(now, RepairCounts::default(), [number], false)
                {
                    flight.handle_report(now, &report, |index, fate| {
                        note(&mut fates, index, fate);
                    });
                }
            }
            5 => {
                if let Ok(report) = Report::parse(input.piece()) {
                    flight.handle_report(now, &report, |index, fate| {
                        note(&mut fates, index, fate);
                    });
                }
            }
            6 => {
                let _ = flight.handle_timeout(now, |index, fate| note(&mut fates, index, fate));
            }
            // The next epoch.
            _ => number = ((number >> 32) + 1) << 32,
        }
        assert!(flight.congestion().window() >= 4 * 1400);
        assert!(flight.congestion().pacing_rate() > 0);
        assert!(flight.sent().in_flight() <= fates.len() as u64 * 1400);
    }
    flight.abandon(|index, fate| note(&mut fates, index, fate));
    assert!(fates.iter().all(Option::is_some));
}
