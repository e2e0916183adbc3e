//! Turns the caller's instants into smoltcp's and back.

use std::time::{Duration, Instant};

use smoltcp::time::Instant as SmolInstant;

/// The origin of smoltcp's time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    epoch: Instant,
}

impl Clock {
    pub(crate) fn new(epoch: Instant) -> Clock {
        Clock { epoch }
    }

    pub(crate) fn to_smoltcp(self, at: Instant) -> SmolInstant {
        let micros = at.saturating_duration_since(self.epoch).as_micros();
        SmolInstant::from_micros(
            i64::try_from(micros)
                .unwrap_or(i64::MAX / 2)
                .saturating_add(OFFSET_MICROS),
        )
    }

    pub(crate) fn to_std(self, at: SmolInstant) -> Instant {
        let micros = at.total_micros().saturating_sub(OFFSET_MICROS);
        self.epoch + Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }
}

/// smoltcp uses time zero for "at once", so its time starts later.
const OFFSET_MICROS: i64 = 1_000_000;
