//! A token bucket.

use std::time::Instant;

/// Allows `rate` events per second, and `burst` at once.
#[derive(Debug)]
pub(crate) struct Limiter {
    rate: u32,
    burst: u32,
    tokens: f64,
    last: Option<Instant>,
}

impl Limiter {
    pub(crate) fn new(rate: u32, burst: u32) -> Limiter {
        Limiter {
            rate,
            burst,
            tokens: f64::from(burst),
            last: None,
        }
    }

    /// Takes a token if there is one; without a time none are added.
    pub(crate) fn allow(&mut self, now: Option<Instant>) -> bool {
        if let Some(now) = now {
            let passed = self.last.map_or(0.0, |last| {
                now.saturating_duration_since(last).as_secs_f64()
            });
            self.tokens = (self.tokens + passed * f64::from(self.rate)).min(f64::from(self.burst));
            self.last = Some(self.last.map_or(now, |last| last.max(now)));
        }
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn burst_then_rate() {
        let start = Instant::now();
        let mut limiter = Limiter::new(10, 3);
        let allowed = (0..10).filter(|_| limiter.allow(Some(start))).count();
        assert_eq!(allowed, 3);
        assert!(limiter.allow(Some(start + Duration::from_millis(100))));
        assert!(!limiter.allow(Some(start + Duration::from_millis(150))));
    }
}
