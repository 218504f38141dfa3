//! The bytes of a run, drawn here; encoding and decoding are pure. Knows no files.
//!
//! ```text
//! run      0         4096                                              end
//!          ┌─────────┬─────────┬─────────┬ ─ ─ ┬───────┬─────────┬───────┬─────────┐
//!          │ header  │ batch   │ batch   │     │ steps │ entries │ index │ trailer │     each starts at a multiple of 4096
//!          └─────────┴─────────┴─────────┴ ─ ─ ┴───────┴─────────┴───────┴─────────┘
//!                     ◀── as they were saved ──▶ ◀─ when the run is closed, once ──▶
//!
//! batch    ┌─────────────┬─────────┬───────────┬────────────────────────────┬────┐
//!          │ header (64) │ steps   │ entries   │ payload of all its entries │ 0… │
//!          └─────────────┴─────────┴───────────┴────────────────────────────┴────┘
//! ```
//!
//! Behind the last batch of a run that grows stands a *seal* once the images were changed; the next batch takes its place.
//!
//! An *entry* is a range of a disk with what it held before it was changed. A *step* ends at a boundary; all entries since the boundary
//! before it are its own. A batch may end in the middle of a step. The *index* of a closed run says of each range that it changed what the
//! range held at the beginning of the run, in the order of the disks.
//!
//! All numbers are little-endian, checksums are xxh3 (64 bits) seeded with the random salt of the run. A batch names the checksum of the
//! batch before it, so remains of an earlier attempt are never taken for its continuation, and has its number in what was saved at once: what
//! lies before number 0 was durable when that was written. Steps, entries and index of a closed run are tables of pages with a checksum each,
//! so that one entry can be read and verified without the others.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::Epoch;
use crate::format::{LogId, Take};

/// Unit of all that a run consists of, in bytes.
pub const PAGE: u64 = 4096;
/// The same, as the length of a buffer.
pub const PAGE_LEN: usize = 4096;
/// Most payload of one entry, in bytes: what has to be read to verify a byte of it.
pub const MAX_ENTRY_DATA: u64 = 128 << 10;
/// Most bytes that an entry without data stands for.
pub const MAX_ENTRY_HOLE: u64 = 1 << 31;

const VERSION: u32 = 1;
const HEADER_MAGIC: [u8; 8] = *b"EGH1RUN\0";
const SEAL_MAGIC: [u8; 8] = *b"EGH1SEA\0";
const TRAILER_MAGIC: [u8; 8] = *b"EGH1END\0";

const KEPT: u32 = 1;
/// Numbers of boundaries and epochs from here on nobody ever reaches: who writes one is no history, and nothing that counts on may overflow.
pub(super) const NEVER: u64 = 1 << 62;
/// No more is allocated at once for records whose number was read.
const MANY: usize = 1 << 16;

/// A moment between two steps: what the images held then can be read if it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// Counts the boundaries of a history; gaps are those that were merged away.
    pub seq: u64,
    /// The images held this epoch.
    pub epoch: Epoch,
    /// When it was cut, in milliseconds since 1970.
    pub time_ms: u64,
    /// It is a point that people can go back to. Others only divide the work.
    pub kept: bool,
}

/// What changed between two boundaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where it ends.
    pub to: Boundary,
    /// Epochs up to this one were the same as the boundary where the step begins.
    pub from_until: Epoch,
    /// How many entries there are up to its end: in a batch those of the batch, in a closed run all.
    pub entries_end: u32,
}

/// What a range held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Index of the disk.
    pub disk: u16,
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes.
    pub len: u32,
    /// Where its payload lies in the run; 0 if it held zeros. (A run begins with its header, so no payload lies there.)
    pub place: u64,
    /// Checksum of the payload.
    pub sum: u64,
}

impl Entry {
    /// The byte after the last.
    pub fn end(&self) -> u64 {
        self.start + u64::from(self.len)
    }

    /// It held zeros.
    pub fn is_zero(&self) -> bool {
        self.place == 0
    }
}

/// A range that an entry speaks for: the first that covers it in its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Index of the disk.
    pub disk: u16,
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes.
    pub len: u32,
    /// Number of the entry.
    pub entry: u32,
}

/// Something of a fixed length.
pub trait Fixed: Sized {
    /// Length in bytes.
    const BYTES: usize;
    /// Appends it.
    fn put(&self, out: &mut Vec<u8>);
    /// Takes it from the front.
    fn take(from: &mut Take<'_>) -> Option<Self>;
}

impl Fixed for Boundary {
    const BYTES: usize = 32;

    fn put(&self, out: &mut Vec<u8>) {
        put_numbers(out, &[self.seq, self.epoch.0, self.time_ms]);
        out.extend_from_slice(&if self.kept { KEPT } else { 0 }.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
    }

    fn take(from: &mut Take<'_>) -> Option<Self> {
        let (seq, epoch, time_ms) = (from.u64()?, from.u64()?, from.u64()?);
        let flags = from.u32()?;
        from.u32()?;
        (seq < NEVER && epoch < NEVER).then_some(Self {
            seq,
            epoch: Epoch(epoch),
            time_ms,
            kept: flags & KEPT != 0,
        })
    }
}

impl Fixed for Step {
    const BYTES: usize = 48;

    fn put(&self, out: &mut Vec<u8>) {
        self.to.put(out);
        put_numbers(out, &[self.from_until.0, u64::from(self.entries_end)]);
    }

    fn take(from: &mut Take<'_>) -> Option<Self> {
        let to = Boundary::take(from)?;
        let from_until = Epoch(from.u64()?);
        let entries_end = u32::try_from(from.u64()?).ok()?;
        Some(Self {
            to,
            from_until,
            entries_end,
        })
    }
}

impl Fixed for Entry {
    const BYTES: usize = 32;

    fn put(&self, out: &mut Vec<u8>) {
        put_numbers(out, &[self.start, self.place, self.sum]);
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&self.disk.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
    }

    fn take(from: &mut Take<'_>) -> Option<Self> {
        let (start, place, sum) = (from.u64()?, from.u64()?, from.u64()?);
        let (len, disk) = (from.u32()?, from.u16()?);
        from.u16()?;
        let entry = Self {
            disk,
            start,
            len,
            place,
            sum,
        };
        let most = if place == 0 {
            MAX_ENTRY_HOLE
        } else {
            MAX_ENTRY_DATA
        };
        let sane = (1..=most).contains(&u64::from(len)) && start.checked_add(most).is_some();
        sane.then_some(entry)
    }
}

impl Fixed for Piece {
    const BYTES: usize = 24;

    fn put(&self, out: &mut Vec<u8>) {
        put_numbers(out, &[self.start]);
        for number in [self.len, self.entry, u32::from(self.disk), 0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn take(from: &mut Take<'_>) -> Option<Self> {
        let (start, len, entry, disk) = (from.u64()?, from.u32()?, from.u32()?, from.u32()?);
        from.u32()?;
        let piece = Self {
            disk: u16::try_from(disk).ok()?,
            start,
            len,
            entry,
        };
        (len > 0 && start.checked_add(u64::from(len)).is_some()).then_some(piece)
    }
}

/// What a run begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunHeader {
    /// The log that the history belongs to.
    pub log_id: LogId,
    /// Seed of all checksums but those of header and trailer.
    pub salt: u64,
    /// How thin it was made, see [`super::policy`].
    pub tier: u32,
    /// Where it begins.
    pub from: Boundary,
}

impl RunHeader {
    /// One page.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(PAGE_LEN);
        body.extend_from_slice(&VERSION.to_le_bytes());
        body.extend_from_slice(&self.tier.to_le_bytes());
        body.extend_from_slice(&self.log_id);
        put_numbers(&mut body, &[self.salt]);
        self.from.put(&mut body);
        sealed_page(HEADER_MAGIC, &body)
    }

    /// None: it is none, or is torn.
    pub fn decode(page: &[u8]) -> Option<Self> {
        let mut from = Take(open_page(HEADER_MAGIC, page)?);
        if from.u32()? != VERSION {
            return None;
        }
        let tier = from.u32()?;
        let log_id = from.array()?;
        let salt = from.u64()?;
        let from = Boundary::take(&mut from)?;
        Some(Self {
            log_id,
            salt,
            tier,
            from,
        })
    }
}

/// A table in a closed run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Where it begins in the file.
    pub offset: u64,
    /// How many records it has.
    pub count: u64,
}

/// What a closed run ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Where the run ends.
    pub to: Boundary,
    /// See [`Step`].
    pub steps: Table,
    /// See [`Entry`].
    pub entries: Table,
    /// See [`Piece`].
    pub index: Table,
}

impl Trailer {
    /// One page. `salt` is that of the run.
    pub fn encode(&self, salt: u64) -> Vec<u8> {
        let mut body = Vec::with_capacity(PAGE_LEN);
        put_numbers(&mut body, &[salt]);
        self.to.put(&mut body);
        for table in [self.steps, self.entries, self.index] {
            put_numbers(&mut body, &[table.offset, table.count]);
        }
        sealed_page(TRAILER_MAGIC, &body)
    }

    /// None: it is none, or that of another run.
    pub fn decode(page: &[u8], salt: u64) -> Option<Self> {
        let mut from = Take(open_page(TRAILER_MAGIC, page)?);
        if from.u64()? != salt {
            return None;
        }
        let to = Boundary::take(&mut from)?;
        let mut table = || {
            let (offset, count) = (from.u64()?, from.u64()?);
            Some(Table { offset, count })
        };
        Some(Self {
            to,
            steps: table()?,
            entries: table()?,
            index: table()?,
        })
    }
}

/// Stands behind the last batch once the images were changed, until the next batch takes its place: so a batch before it that can't be read
/// was not just being written, but is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Where it lies.
    pub offset: u64,
    /// Checksum of the batch before it.
    pub previous: u64,
}

impl Seal {
    /// One page. `salt` is that of the run.
    pub fn encode(&self, salt: u64) -> Vec<u8> {
        let mut body = Vec::with_capacity(PAGE_LEN);
        put_numbers(&mut body, &[salt, self.offset, self.previous]);
        sealed_page(SEAL_MAGIC, &body)
    }

    /// Whether the page at `offset` is a seal of the run with this salt.
    pub fn is_at(page: &[u8], salt: u64, offset: u64) -> bool {
        let Some(body) = open_page(SEAL_MAGIC, page) else {
            return false;
        };
        let mut from = Take(body);
        from.u64() == Some(salt) && from.u64() == Some(offset)
    }
}

/// How many records of a table one page holds.
pub fn per_page<T: Fixed>() -> u64 {
    ((PAGE_LEN - 8) / T::BYTES) as u64
}

/// The pages of a table that begins at `offset` of the file.
pub fn encode_table<T: Fixed>(records: &[T], salt: u64, offset: u64) -> Vec<u8> {
    let each = usize::try_from(per_page::<T>()).unwrap_or(1);
    let mut out = Vec::with_capacity(records.len().div_ceil(each) * PAGE_LEN);
    for chunk in records.chunks(each) {
        let begin = out.len();
        chunk.iter().for_each(|record| record.put(&mut out));
        out.resize(begin + PAGE_LEN - 8, 0);
        let sum = page_sum(
            out.get(begin..).unwrap_or_default(),
            salt,
            offset + begin as u64,
        );
        out.extend_from_slice(&sum.to_le_bytes());
    }
    out
}

/// The first `count` records of one page of a table that lies at `offset` of the file. None: it is damaged.
pub fn decode_page<T: Fixed>(page: &[u8], count: usize, salt: u64, offset: u64) -> Option<Vec<T>> {
    let (body, sum) = page.split_at_checked(PAGE_LEN - 8)?;
    if sum != page_sum(body, salt, offset).to_le_bytes() {
        return None;
    }
    take_many(&mut Take(body), count)
}

fn page_sum(body: &[u8], salt: u64, offset: u64) -> u64 {
    xxh3_64_with_seed(body, salt ^ offset)
}

/// Checksum of a payload.
pub fn payload_sum(payload: &[u8], salt: u64) -> u64 {
    xxh3_64_with_seed(payload, salt)
}

pub(super) fn take_many<T: Fixed>(from: &mut Take<'_>, count: usize) -> Option<Vec<T>> {
    let mut all = Vec::with_capacity(count.min(MANY));
    for _ in 0..count {
        all.push(T::take(from)?);
    }
    Some(all)
}

pub(super) fn put_numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

/// A page with `magic`, a checksum, and `body`.
pub(super) fn sealed_page(magic: [u8; 8], body: &[u8]) -> Vec<u8> {
    let mut page = Vec::with_capacity(PAGE_LEN);
    page.extend_from_slice(&magic);
    page.extend_from_slice(&[0; 8]);
    page.extend_from_slice(body);
    page.resize(PAGE_LEN, 0);
    let sum = xxh3_64_with_seed(page.get(16..).unwrap_or_default(), 0);
    if let Some(place) = page.get_mut(8..16) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
    page
}

/// The body of such a page. None: it is none, or is torn.
pub(super) fn open_page(magic: [u8; 8], page: &[u8]) -> Option<&[u8]> {
    let mut from = Take(page.get(..PAGE_LEN)?);
    let body = page.get(16..PAGE_LEN)?;
    let matches = from.array()? == magic && from.u64()? == xxh3_64_with_seed(body, 0);
    matches.then_some(body)
}
