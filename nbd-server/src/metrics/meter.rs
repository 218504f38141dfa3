//! The counters of one export: atomics that many connections add to and a scrape reads. They only grow, and are read without
//! stopping anybody, so that two of them may be one batch apart.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::histogram::{Histogram, Reading};
use crate::export::IoError;
use crate::protocol::command;

/// Upper bounds of the buckets for times, in nanoseconds: 1, 2, 5 from 10 µs to 10 s.
pub(crate) const TIME_BOUNDS: [u64; 19] = [
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
    10_000_000_000,
];
/// One for what takes longer than all of them.
pub(crate) const BUCKETS: usize = TIME_BOUNDS.len() + 1;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// NBD_CMD_READ.
    Read,
    /// NBD_CMD_WRITE.
    Write,
    /// NBD_CMD_FLUSH.
    Flush,
    /// NBD_CMD_TRIM.
    Trim,
    /// NBD_CMD_WRITE_ZEROES.
    WriteZeroes,
    /// NBD_CMD_CACHE.
    Cache,
    /// NBD_CMD_BLOCK_STATUS.
    BlockStatus,
    /// NBD_CMD_RESIZE.
    Resize,
    /// Anything else; it is refused.
    Other,
}

/// Kinds there are.
pub(super) const KINDS: usize = 9;
/// Errors there are.
pub(super) const ERRORS: usize = 8;

impl Kind {
    /// All of them, in their order.
    pub const ALL: [Self; KINDS] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Trim,
        Self::WriteZeroes,
        Self::Cache,
        Self::BlockStatus,
        Self::Resize,
        Self::Other,
    ];

    /// The kind of an NBD request type.
    pub fn of(request_type: u16) -> Self {
        match request_type {
            command::READ => Self::Read,
            command::WRITE => Self::Write,
            command::FLUSH => Self::Flush,
            command::TRIM => Self::Trim,
            command::WRITE_ZEROES => Self::WriteZeroes,
            command::CACHE => Self::Cache,
            command::BLOCK_STATUS => Self::BlockStatus,
            command::RESIZE => Self::Resize,
            _ => Self::Other,
        }
    }

    /// Its name as a label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::WriteZeroes => "write_zeroes",
            Self::Cache => "cache",
            Self::BlockStatus => "block_status",
            Self::Resize => "resize",
            Self::Other => "other",
        }
    }

    /// Its length is a part of the disk that it works on.
    pub fn has_range(self) -> bool {
        match self {
            Self::Read | Self::Write | Self::Trim | Self::WriteZeroes | Self::Cache => true,
            Self::Flush | Self::BlockStatus | Self::Resize | Self::Other => false,
        }
    }
}

/// Errors by the name of the value that NBD carries, each where [`error_index`] says.
pub(super) const ERROR_LABELS: [&str; ERRORS] = [
    "eperm",
    "eio",
    "enomem",
    "einval",
    "enospc",
    "eoverflow",
    "enotsup",
    "eshutdown",
];

pub(super) fn error_index(error: IoError) -> usize {
    match error {
        IoError::Perm => 0,
        IoError::Io => 1,
        IoError::NoMem => 2,
        IoError::Inval => 3,
        IoError::NoSpace => 4,
        IoError::Overflow => 5,
        IoError::NotSup => 6,
        IoError::Shutdown => 7,
    }
}

/// The counters of one export.
#[derive(Debug, Default)]
pub struct Meter {
    kinds: [KindMeter; KINDS],
    errors: [AtomicU64; ERRORS],
    in_flight: AtomicU64,
    connections: AtomicU64,
}

#[derive(Debug)]
struct KindMeter {
    nanos: Histogram<BUCKETS>,
    bytes: AtomicU64,
}

impl Default for KindMeter {
    fn default() -> Self {
        Self {
            nanos: Histogram::new(&TIME_BOUNDS),
            bytes: AtomicU64::default(),
        }
    }
}

impl Meter {
    /// Requests of this kind that were answered, in whatever way.
    pub fn requests(&self, kind: Kind) -> u64 {
        self.kind(kind).nanos.count()
    }

    /// Bytes of the disk that requests of this kind have dealt with; failed ones not counted.
    pub fn bytes(&self, kind: Kind) -> u64 {
        self.kind(kind).bytes.load(Ordering::Relaxed)
    }

    /// Microseconds from the receipt of requests of this kind to their answers, summed.
    pub fn micros(&self, kind: Kind) -> u64 {
        self.latencies(kind).sum / 1_000
    }

    /// Requests that workers have and that are not answered.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Connections that are attached.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Latencies, in nanoseconds.
    pub(crate) fn latencies(&self, kind: Kind) -> Reading<BUCKETS> {
        self.kind(kind).nanos.read()
    }

    pub(crate) fn errors(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self
            .errors
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        ERROR_LABELS.into_iter().zip(counts)
    }

    fn kind(&self, kind: Kind) -> &KindMeter {
        // The array has a place for each.
        &self.kinds[kind as usize]
    }

    /// `count` requests of one kind were answered, each after `took`, with `bytes` in all.
    pub(super) fn add(&self, kind: Kind, count: u64, bytes: u64, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let meter = self.kind(kind);
        meter.nanos.add(nanos, count);
        if bytes > 0 {
            meter.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    pub(super) fn add_errors(&self, index: usize, count: u64) {
        if let Some(errors) = self.errors.get(index) {
            errors.fetch_add(count, Ordering::Relaxed);
        }
    }

    pub(super) fn enter(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn leave(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_a_batch_have_its_time() {
        let meter = Meter::default();
        meter.add(Kind::Flush, 3, 0, Duration::from_nanos(10_001));
        let latencies = meter.latencies(Kind::Flush);
        assert_eq!((latencies.buckets[1], latencies.sum), (3, 30_003));
        assert_eq!(meter.requests(Kind::Flush), 3);
        assert_eq!(meter.requests(Kind::Read), 0);
    }

    #[test]
    fn kinds_and_errors_have_their_own_places() {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
        assert_eq!(Kind::of(command::WRITE_ZEROES), Kind::WriteZeroes);
        assert_eq!(Kind::of(77), Kind::Other);
        assert_eq!(ERROR_LABELS[error_index(IoError::Shutdown)], "eshutdown");
        assert_eq!(ERROR_LABELS[error_index(IoError::NoSpace)], "enospc");
    }
}
