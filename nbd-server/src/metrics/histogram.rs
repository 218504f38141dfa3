//! A histogram that many threads add to and a scrape reads: relaxed atomics that only grow. It knows no units.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of values in `B` buckets: one for each bound, with all values up to it that are above the bound before, and one for the rest.
#[derive(Debug)]
pub(crate) struct Histogram<const B: usize> {
    bounds: &'static [u64],
    buckets: [AtomicU64; B],
    sum: AtomicU64,
}

/// What a [`Histogram`] holds at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading<const B: usize> {
    /// The upper bounds of all buckets but the last, which has none.
    pub bounds: &'static [u64],
    /// Values by bucket, each value in one.
    pub buckets: [u64; B],
    /// Sum of all values.
    pub sum: u64,
}

impl<const B: usize> Histogram<B> {
    /// An empty histogram. `bounds` rise, and are one fewer than the buckets.
    pub fn new(bounds: &'static [u64]) -> Self {
        Self {
            bounds,
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            sum: AtomicU64::new(0),
        }
    }

    /// Adds `value`, `count` times.
    pub fn add(&self, value: u64, count: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(count, Ordering::Relaxed);
        }
        self.sum
            .fetch_add(value.saturating_mul(count), Ordering::Relaxed);
    }

    /// Values that were added.
    pub fn count(&self) -> u64 {
        let buckets = self.buckets.iter();
        buckets.map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// All of it. A value that is just being added may be in the buckets and not in the sum yet.
    pub fn read(&self) -> Reading<B> {
        let mut buckets = [0; B];
        for (bucket, count) in buckets.iter_mut().zip(&self.buckets) {
            *bucket = count.load(Ordering::Relaxed);
        }
        Reading {
            bounds: self.bounds,
            buckets,
            sum: self.sum.load(Ordering::Relaxed),
        }
    }
}

impl<const B: usize> Reading<B> {
    /// Values in it.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::<4>::new(&[10, 20, 50]);
        for (value, bucket) in [(0, 0), (10, 0), (11, 1), (50, 2), (51, 3), (u64::MAX, 3)] {
            let before = histogram.read().buckets;
            histogram.add(value, 3);
            let after = histogram.read().buckets;
            let grown: Vec<_> = (0..4).filter(|i| before[*i] != after[*i]).collect();
            assert_eq!(grown, [bucket], "{value}");
            assert_eq!(after[bucket], before[bucket] + 3);
        }
        assert_eq!((histogram.count(), histogram.read().count()), (18, 18));
    }
}
