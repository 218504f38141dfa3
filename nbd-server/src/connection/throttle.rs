//! The pace of one export's requests: a bucket for their number and one for their bytes, shared by all of its connections. It
//! says how long to wait; the connection's own thread does.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::Rate;

/// A client that was idle may be ahead of the rate by this much.
const BURST: Duration = Duration::from_secs(1);

/// The buckets of one export. Empty time is kept instead of tokens: when the bucket would be full again.
#[derive(Debug)]
pub(crate) struct Throttle {
    rate: Rate,
    full_at: Mutex<FullAt>,
}

#[derive(Clone, Copy, Debug)]
struct FullAt {
    requests: Instant,
    bytes: Instant,
}

impl Throttle {
    pub(crate) fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            full_at: Mutex::new(FullAt {
                requests: now,
                bytes: now,
            }),
        }
    }

    /// Takes one request with so many bytes out of the buckets, and returns how long it has to wait from `now`. Waits add up over
    /// connections, so that each gets its turn in the order of its asking.
    pub(crate) fn take(&self, bytes: u64, now: Instant) -> Duration {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let requests = take(&mut full_at.requests, self.rate.requests, 1, now);
        let bytes = take(&mut full_at.bytes, self.rate.bytes, bytes, now);
        requests.max(bytes)
    }
}

fn take(full_at: &mut Instant, per_second: Option<u64>, amount: u64, now: Instant) -> Duration {
    let Some(per_second) = per_second else {
        return Duration::ZERO;
    };
    let nanos = u128::from(amount) * 1_000_000_000 / u128::from(per_second.max(1));
    let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
    let full = (*full_at).max(now);
    // A sum beyond what the clock can say would be a wait of centuries: it stays where it was.
    *full_at = full.checked_add(cost).unwrap_or(full);
    full_at.duration_since(now).saturating_sub(BURST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_free_and_the_rest_is_paced() {
        let start = Instant::now();
        let rate = Rate {
            requests: Some(10),
            bytes: Some(1000),
        };
        let throttle = Throttle::new(rate, start);
        for _ in 0..10 {
            assert_eq!(throttle.take(0, start), Duration::ZERO);
        }
        assert_eq!(throttle.take(0, start), Duration::from_millis(100));
        assert_eq!(throttle.take(0, start), Duration::from_millis(200));
        // Ten seconds later both buckets are full, and no fuller than that.
        let later = start + Duration::from_secs(10);
        assert_eq!(throttle.take(1000, later), Duration::ZERO);
        assert_eq!(throttle.take(500, later), Duration::from_millis(500));
        // The greatest request passes in its time.
        assert_eq!(throttle.take(2000, later), Duration::from_millis(2500));
    }

    #[test]
    fn what_is_not_limited_never_waits() {
        let now = Instant::now();
        let throttle = Throttle::new(Rate::default(), now);
        assert_eq!(throttle.take(u64::MAX, now), Duration::ZERO);
    }
}
