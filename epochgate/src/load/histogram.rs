//! A histogram of latencies in buckets that grow with the value: exact to 1/64 of it, of fixed size, cheap to add to.

use std::time::Duration;

/// Buckets per power of two.
const SUB: usize = 64;
/// log2 of [`SUB`].
const SUB_BITS: u32 = SUB.trailing_zeros();
/// Enough for every number of nanoseconds.
const BUCKETS: usize = (64 - SUB_BITS as usize + 1) * SUB;

/// Latencies of one run.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    sum_ns: u128,
}

/// What is told of a histogram, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub(crate) struct Latency {
    /// Arithmetic mean.
    pub mean: f64,
    /// Half of the requests took no longer.
    pub p50: f64,
    /// 99 of 100 requests took no longer.
    pub p99: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            total: 0,
            sum_ns: 0,
        }
    }
}

impl Histogram {
    /// Adds `count` requests that took `latency` each.
    pub(crate) fn add(&mut self, latency: Duration, count: u64) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.counts.get_mut(bucket(ns)) {
            *bucket += count;
        }
        self.total += count;
        self.sum_ns += u128::from(ns) * u128::from(count);
    }

    /// Adds what another histogram holds.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.sum_ns += other.sum_ns;
    }

    /// Mean and percentiles.
    #[allow(clippy::cast_precision_loss, reason = "shown with a few digits")]
    pub(crate) fn latency(&self) -> Latency {
        Latency {
            mean: self.sum_ns as f64 / self.total.max(1) as f64 / 1000.0,
            p50: self.percentile(50) / 1000.0,
            p99: self.percentile(99) / 1000.0,
        }
    }

    /// Nanoseconds that `p` of a hundred requests did not exceed.
    #[allow(clippy::cast_precision_loss, reason = "shown with a few digits")]
    fn percentile(&self, p: u64) -> f64 {
        let rank = (self.total * p).div_ceil(100).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return middle(index) as f64;
            }
        }
        0.0
    }
}

/// The bucket of a value: itself below [`SUB`], then its highest bits.
fn bucket(ns: u64) -> usize {
    let exponent = (63 - (ns | 1).leading_zeros()).saturating_sub(SUB_BITS);
    let mantissa = usize::try_from(ns >> exponent).unwrap_or(0);
    exponent as usize * SUB + mantissa
}

/// The value in the middle of a bucket.
fn middle(bucket: usize) -> u64 {
    if bucket < 2 * SUB {
        return bucket as u64;
    }
    let exponent = bucket / SUB - 1;
    let mantissa = (bucket - exponent * SUB) as u64;
    (mantissa << exponent) + (1 << exponent >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lands_near_itself() {
        for shift in 0..60 {
            for value in [
                1u64 << shift,
                (1 << shift) + (1 << shift >> 1),
                (2 << shift) - 1,
            ] {
                let middle = middle(bucket(value));
                assert!(
                    middle.abs_diff(value) <= value / SUB as u64,
                    "{value} became {middle}"
                );
            }
        }
    }

    #[test]
    fn percentiles_and_mean() {
        let mut histogram = Histogram::default();
        for us in 1..=100 {
            histogram.add(Duration::from_micros(us), 1);
        }
        let latency = histogram.latency();
        assert!((latency.mean - 50.5).abs() < 0.01);
        assert!((latency.p50 - 50.0).abs() < 1.0);
        assert!((latency.p99 - 99.0).abs() < 2.0);
        assert_eq!(Histogram::default().latency(), Latency::default());
    }
}
