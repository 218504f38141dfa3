//! Where records lie in the files of a log, read from the bytes once more by what `epoch-log/src/format/mod.rs` says.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub const SECTOR: usize = 512;
const COPY_DISTANCE: usize = 4096;
const RECORD: &[u8] = b"EPGRECO1";
const HEADER: &[u8] = b"EPGSEGM1";
const DATA: u8 = 1;

/// One thing that a segment holds.
#[derive(Clone, Debug)]
pub enum Item {
    /// Both copies of the header: where they begin, and how long each is.
    Header { copies: [usize; 2], len: usize },
    /// A data record: its header, and all of it without what fills up the last sector.
    Data {
        at: usize,
        header_len: usize,
        end: usize,
        epoch: u64,
    },
    /// Both copies of a state record.
    State { copies: [usize; 2] },
}

/// An item with the number of the last change of the state that it speaks of.
#[derive(Clone, Debug)]
pub struct Placed {
    pub item: Item,
    pub sequence: u64,
}

impl Item {
    /// Where its parts lie that are there for the same: any of them is enough. From, to.
    pub fn copies(&self) -> Vec<(usize, usize)> {
        match self {
            Self::Header { copies, len } => copies.iter().map(|at| (*at, at + len)).collect(),
            Self::Data { at, header_len, .. } => vec![(*at, at + header_len)],
            Self::State { copies } => copies.iter().map(|at| (*at, at + SECTOR)).collect(),
        }
    }
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .map_or(0, |word| u64::from_le_bytes(word.try_into().unwrap()))
}

pub fn u32_at(bytes: &[u8], at: usize) -> usize {
    bytes.get(at..at + 4).map_or(0, |word| {
        u32::from_le_bytes(word.try_into().unwrap()) as usize
    })
}

pub fn salt(segment: &[u8]) -> u64 {
    u64_at(segment, 40)
}

/// Computes the checksum of the segment header at `at` again.
pub fn sign_header(segment: &mut [u8], at: usize) {
    let len = u32_at(segment, at + 20).clamp(24, 32 << 10);
    let Some(summed) = segment.get(at + 16..at + len) else {
        return;
    };
    let sum = xxh3_64(summed);
    segment[at + 8..at + 16].copy_from_slice(&sum.to_le_bytes());
}

/// Computes the checksum of the record at `at` again.
pub fn sign_record(segment: &mut [u8], at: usize) {
    let len = u32_at(segment, at + 24).max(24);
    let salt = salt(segment);
    let Some(summed) = segment.get(at + 16..at.saturating_add(len)) else {
        return;
    };
    let sum = xxh3_64_with_seed(summed, salt);
    segment[at + 8..at + 16].copy_from_slice(&sum.to_le_bytes());
}

/// All that a whole segment holds, in order.
pub fn items(segment: &[u8]) -> Vec<Placed> {
    assert_eq!(segment.get(..8), Some(HEADER), "no segment");
    let len = u32_at(segment, 20);
    let second = len.next_multiple_of(COPY_DISTANCE);
    let mut items = vec![Placed {
        item: Item::Header {
            copies: [0, second],
            len,
        },
        sequence: u64_at(segment, 64),
    }];
    let mut at = second * 2;
    while at < segment.len() {
        match record(segment, at) {
            Some((placed, next)) => {
                items.push(placed);
                at = next;
            }
            None => at += SECTOR,
        }
    }
    items
}

/// The record at `at`, if its first copy is valid, and where it ends.
fn record(segment: &[u8], at: usize) -> Option<(Placed, usize)> {
    let record = segment.get(at..)?;
    let header_len = u32_at(record, 24);
    let whole = record.get(16..header_len)?;
    let valid = record.get(..8)? == RECORD
        && u64_at(record, 40) == at as u64
        && xxh3_64_with_seed(whole, salt(segment)) == u64_at(record, 8);
    if !valid {
        return None;
    }
    let (kind, epoch, payload) = (record[16], u64_at(record, 72), u64_at(record, 80) as usize);
    let sequence = u64_at(record, 96);
    let (item, end) = if kind == DATA {
        let end = at + header_len + payload;
        let item = Item::Data {
            at,
            header_len,
            end,
            epoch,
        };
        (item, end.next_multiple_of(SECTOR))
    } else {
        let item = Item::State {
            copies: [at, at + COPY_DISTANCE],
        };
        (item, at + COPY_DISTANCE + SECTOR)
    };
    Some((Placed { item, sequence }, end))
}
