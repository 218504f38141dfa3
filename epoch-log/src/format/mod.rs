//! The on-disk format, drawn and versioned here; encoding and decoding are pure. Knows no files.
//!
//! A log is a directory. `LOCK` is locked by the process that has the log open, `RESERVE` holds back a little space, and
//! `0000000000000001.seg`, `0000000000000002.seg`, ... are the segments. A segment gets its header under the name
//! `*.seg.new` and its real name only when the header is durable, so a torn header can't come from a crash. `*.seg.spare` are
//! segments that were freed; the next ones are written over them, so what follows the last record of a segment is remains.
//!
//! ```text
//! segment    0         C         2C                                          C: header length, rounded up to 4096
//!            ┌─────────┬─────────┬────────┬────────┬───────────┬────────┐
//!            │ header  │ header  │ data   │ data   │ state     │ data   │ ...  each starts at a multiple of 512
//!            │ copy 1  │ copy 2  │ record │ record │ record    │ record │
//!            └─────────┴─────────┴────────┴────────┴───────────┴────────┘
//!
//! data       ┌──────────────────────┬──────────────┬─────┬─────────────────────────┬─────┐
//! record     │ record header (104)  │ extent table │ 0…  │ payload of all extents  │ 0…  │
//!            └──────────────────────┴──────────────┴─────┴─────────────────────────┴─────┘
//!            ◀──────── header length, n × 512 ───────────▶◀──────── n × 512 ──────────────▶
//!
//! state      ┌───────────────┬──────────────────────┬───────────────┐
//! record     │ copy 1 (512)  │ 0… (3584)            │ copy 2 (512)  │     the copies never share a physical sector
//!            └───────────────┴──────────────────────┴───────────────┘
//!
//! record     0        8          16     17     20      24       32        40       48       64           72
//! header     │ magic  │ checksum │ kind │ copy │ count │ length │ segment │ offset │ log id │ generation │ epoch …
//!            80               88             96         104
//!          … │ payload length │ payload sum  │ sequence │ extent table, or state
//! ```
//!
//! All numbers are little-endian. Checksums are xxh3 (64 bits). Those of records are seeded with the *salt* of their segment, a
//! random number in its header; together with log id, segment and offset it makes sure that neither remains of an earlier
//! file nor guest data that looks like a record is ever taken for one.
//!
//! `sequence` counts state records. A data record carries the number of the last state record before it, a segment header
//! that of the last one before the segment, and each state record carries the whole state. So a lost state record is
//! noticed by whatever comes after it.
//!
//! A commit record also carries a *chain* over the data records of its epoch: their number, their payload bytes, and
//! a running xxh3 of their header checksums (which cover their payload checksums).
//!
//! Version rule: a reader refuses versions it does not know. Whatever changes the meaning of a byte raises [`VERSION`];
//! bytes shown as 0 are written as zero and must not be given a meaning without that.

mod bytes;
mod record;
mod segment_header;

pub(crate) use bytes::Take;
pub(crate) use record::{
    Chain, DataFields, DataRecord, ExtentEntry, FIRST_BYTES, Record, STATE_RECORD_BYTES, StateKind,
    StateRecord, data_header_len, encode_data, encode_state, peek_header_len,
};
pub(crate) use segment_header::{HeaderError, MAX_HEADER_BYTES, SegmentHeader};

use crate::limits::SECTOR;

/// Version of the format.
pub(crate) const VERSION: u32 = 1;

/// Random id of a log: all its segments and records carry it.
pub(crate) type LogId = [u8; 16];

/// What makes a record belong to its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentKey {
    pub log_id: LogId,
    pub salt: u64,
    pub segment: u64,
}

/// A byte in a segment. Ordered as the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub segment: u64,
    pub offset: u64,
}

/// `len` rounded up to whole sectors.
pub(crate) const fn round_to_sector(len: u64) -> u64 {
    len.next_multiple_of(SECTOR)
}

#[cfg(test)]
mod tests;
