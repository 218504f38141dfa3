//! A load generator that speaks NBD over a unix socket: many requests in flight on several connections, sent in batches,
//! with what it reads checked against what it knows must be there. Knows nothing of the servers it loads.
//!
//! One thread drives all connections with `poll`: on a machine where client and server share the cores, a thread per
//! connection would cost the server more in context switches than it brings.

mod connection;
mod content;
mod driver;
mod handshake;
mod histogram;
mod pick;
mod replies;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use content::{Content, fill as fill_content};
pub(crate) use driver::{Outcome, flush, run};
pub(crate) use histogram::Latency;

/// Where an export is.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// The unix socket.
    pub socket: PathBuf,
    /// Name of the export; may be empty.
    pub export: String,
}

/// Where the next request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Anywhere, aligned to the block size.
    Random,
    /// Every block once, in random order; then again.
    Shuffled,
    /// One block after the other; each connection has its own share of the area.
    Sequential,
}

/// When a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// No request is sent after this time.
    After(Duration),
    /// After so many requests.
    Requests(u64),
}

/// One run of the load generator.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// Connections.
    pub connections: usize,
    /// Requests in flight on each connection.
    pub depth: usize,
    /// Bytes of a request; a multiple of 4096.
    pub block: usize,
    /// How many of a hundred requests are reads; the others are writes.
    pub read_percent: u32,
    /// Where they go, within the area.
    pub order: Order,
    /// The bytes of the disk that are used; its ends are multiples of the block size.
    pub area: Range<u64>,
    /// A FLUSH after so many writes of a connection, as a database does; none if 0.
    pub flush_every: u32,
    /// When it ends.
    pub stop: Stop,
    /// Seed of the offsets.
    pub seed: u64,
    /// Ask for structured replies.
    pub structured: bool,
    /// Check what is read. Only a server that stores nothing is not checked.
    pub verify: bool,
}

impl Load {
    /// Random reads of 4 KiB over a whole disk, 64 in flight on one connection, for two seconds.
    pub(crate) fn new(size: u64) -> Self {
        Self {
            connections: 1,
            depth: 64,
            block: 4096,
            read_percent: 100,
            order: Order::Random,
            area: 0..size,
            flush_every: 0,
            stop: Stop::After(Duration::from_secs(2)),
            seed: 1,
            structured: false,
            verify: true,
        }
    }
}

/// The server gave back something else than what was written last.
#[derive(Debug, thiserror::Error)]
#[error(
    "WRONG DATA: the sector at byte {offset} is not what was written there last (version {version}); the server lost, \
     misplaced or damaged a write"
)]
pub(crate) struct Mismatch {
    /// Where on the disk, in bytes.
    pub offset: u64,
    /// What should be there.
    pub version: u32,
}
