//! What COMMIT 2 takes in one group: time and size of every epoch that became durable.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::histogram::{Histogram, Reading};
use super::meter::{BUCKETS, TIME_BOUNDS};

/// Upper bounds of the buckets for bytes: powers of 4 from 4 KiB to 1 GiB.
const SIZE_BOUNDS: [u64; 10] = [
    4 << 10,
    16 << 10,
    64 << 10,
    256 << 10,
    1 << 20,
    4 << 20,
    16 << 20,
    64 << 20,
    256 << 20,
    1 << 30,
];
/// One for what is larger than all of them.
const SIZES: usize = SIZE_BOUNDS.len() + 1;

/// The commits of one group since it was opened.
#[derive(Debug)]
pub struct CommitMeter {
    nanos: Histogram<BUCKETS>,
    bytes: Histogram<SIZES>,
    blocks: AtomicU64,
}

impl Default for CommitMeter {
    fn default() -> Self {
        Self {
            nanos: Histogram::new(&TIME_BOUNDS),
            bytes: Histogram::new(&SIZE_BOUNDS),
            blocks: AtomicU64::default(),
        }
    }
}

impl CommitMeter {
    /// An epoch with so many bytes of guest data, in so many blocks, is durable, `took` after its commit was asked for.
    pub(crate) fn committed(&self, took: Duration, bytes: u64, blocks: u64) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.add(nanos, 1);
        self.bytes.add(bytes, 1);
        self.blocks.fetch_add(blocks, Ordering::Relaxed);
    }

    /// Epochs that became durable.
    pub fn count(&self) -> u64 {
        self.nanos.count()
    }

    /// Bytes of guest data in all of them.
    pub fn bytes(&self) -> u64 {
        self.bytes.read().sum
    }

    /// Blocks of 4 KiB that they changed: one that was written twice in an epoch counts once, one of two epochs twice.
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    /// Times, in nanoseconds.
    pub(super) fn durations(&self) -> Reading<BUCKETS> {
        self.nanos.read()
    }

    /// Sizes, in bytes.
    pub(super) fn sizes(&self) -> Reading<SIZES> {
        self.bytes.read()
    }
}
