//! The epoch buffer of one disk for one epoch: what the guest wrote in it, newest write on top. Knows byte ranges and
//! nothing else: no epochs, no locks, no files.
//!
//! ```text
//!   regions: hash of 128 KiB pieces of the disk ─▶ extents in order ─▶ slabs
//!   clears:  whole regions that read as zeros, below the regions, so that a trim of a terabyte is one entry
//! ```
//!
//! A look-up is a hash and a short search, so it stays flat as the epoch grows. Writes are copied into slabs one behind another:
//! neighbours become one extent, and a block that is written again is overwritten in place. The slabs also say what is in them, so that
//! the map can be made anew from what a process has left.

mod buffers;
mod clears;
mod region;
mod revive;
mod sequence;
mod stack;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use foldhash::fast::RandomState;

use super::arena::Home;
use super::budget::{Budget, Charge};
use buffers::Buffers;
use clears::Clears;
use region::{Extent, REGION_BITS, Region, What};

pub use revive::NotRevived;
pub use sequence::Cursor;
pub use stack::Stack;

/// Bytes of disk in one region.
const REGION: u64 = 1 << REGION_BITS;
/// What one region costs beside its extents, in bytes: its place in the hash table and an allocation.
const REGION_BYTES: u64 = 96;
/// What one extent costs beside its data, in bytes.
const EXTENT_BYTES: u64 = 24;
/// The charge for the map follows its size in steps of this many bytes.
const CHARGE_STEP: u64 = 4096;

/// How a range is cleared. It reads as zeros in any case, as long as it is in an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clear {
    /// To zeros that keep their space.
    Zero,
    /// To zeros that may give their space back.
    Hole,
    /// The guest no longer needs it.
    Trim,
}

/// What a part of an overlay holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// Guest data.
    Data(&'a [u8]),
    /// No data.
    Cleared(Clear),
}

/// A part of a disk: the range of bytes `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
}

/// What was written in one epoch.
#[derive(Debug)]
pub struct Overlay {
    regions: HashMap<u64, Region, RandomState>,
    clears: Clears,
    buffers: Buffers,
    extents: usize,
    data_bytes: u64,
    /// Pays for the map; the buffers pay for themselves.
    charge: Charge,
    /// Numbers of the regions in order, once somebody has asked for them; from then on nothing is written.
    order: OnceLock<Vec<u64>>,
}

impl Overlay {
    /// An empty overlay for the writes of `home` that charges what it holds to `budget`.
    pub fn new(budget: &Arc<Budget>, home: Home) -> Self {
        Self {
            regions: HashMap::default(),
            clears: Clears::default(),
            buffers: Buffers::new(budget, home),
            extents: 0,
            data_bytes: 0,
            charge: budget.charge(0),
            order: OnceLock::new(),
        }
    }

    /// Nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty() && self.clears.is_empty()
    }

    /// Bytes of guest data that can still be read, which is what goes to the log.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Puts a copy of `data` at `offset`, over what is there.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let mut at = offset;
        for piece in pieces(offset, data.len() as u64) {
            let from = index(at - offset);
            at += u64::from(piece.len);
            let Some(bytes) = data.get(from..index(at - offset)) else {
                return;
            };
            let region = self.regions.entry(piece.region).or_default();
            let end = piece.start + piece.len;
            if let Some(place) = region.place_of(piece.start, end)
                && self.buffers.overwrite(place, bytes)
            {
                continue;
            }
            let place = self.buffers.copy(piece.offset(), bytes);
            self.put(piece, What::Data(place));
        }
        self.update_charge();
    }

    /// Clears a range.
    pub fn clear(&mut self, offset: u64, len: u64, clear: Clear) {
        // Noted first: what it takes the place of is given back at once, and must not be missed if this process dies then.
        self.buffers.note_clear(offset, len, clear);
        self.put_clear(offset, len, clear);
        self.update_charge();
    }

    fn put_clear(&mut self, offset: u64, len: u64, clear: Clear) {
        let what = What::Cleared(clear);
        let end = offset.saturating_add(len);
        let first_whole = offset.div_ceil(REGION);
        let last_whole = end / REGION;
        if first_whole >= last_whole {
            for piece in pieces(offset, end - offset) {
                self.put(piece, what);
            }
        } else {
            for piece in pieces(offset, first_whole * REGION - offset)
                .chain(pieces(last_whole * REGION, end - last_whole * REGION))
            {
                self.put(piece, what);
            }
            self.drop_regions(first_whole, last_whole);
            self.clears.insert(first_whole, last_whole, clear);
        }
    }

    fn put(&mut self, piece: Piece, what: What) {
        let region = self.regions.entry(piece.region).or_default();
        let before = region.extents().len();
        let extent = Extent {
            start: piece.start,
            len: piece.len,
            what,
        };
        let replaced = region.put(extent, &mut self.buffers);
        self.extents = self.extents + region.extents().len() - before;
        self.data_bytes -= u64::from(replaced);
        if let What::Data(_) = what {
            self.data_bytes += u64::from(piece.len);
        }
    }

    fn drop_regions(&mut self, first: u64, end: u64) {
        let mut forget = |region: Option<Region>| {
            if let Some(region) = region {
                self.extents -= region.extents().len();
                self.data_bytes -= region.give_back(&mut self.buffers);
            }
        };
        if end - first < self.regions.len() as u64 {
            (first..end).for_each(|number| forget(self.regions.remove(&number)));
        } else {
            let covered: Vec<u64> = self
                .regions
                .keys()
                .copied()
                .filter(|number| (first..end).contains(number))
                .collect();
            for number in covered {
                forget(self.regions.remove(&number));
            }
        }
    }

    fn update_charge(&mut self) {
        let maps = (self.regions.len() + self.clears.len()) as u64;
        let bytes = REGION_BYTES * maps + EXTENT_BYTES * self.extents as u64;
        if bytes.abs_diff(self.charge.bytes()) >= CHARGE_STEP {
            self.charge.resize(bytes);
        }
    }

    /// Fills the `gaps` of `buf`, which begins at byte `base` of the disk, as far as this overlay covers them, and leaves
    /// in `gaps` what it doesn't. Gaps are in order and inside `buf`.
    pub fn read(&self, base: u64, buf: &mut [u8], gaps: &mut Vec<Span>) {
        self.cover(gaps, |span, content| {
            let target = part_of(buf, span.start - base, span.end - base);
            match content {
                Content::Data(data) if data.len() == target.len() => target.copy_from_slice(data),
                _ => target.fill(0),
            }
        });
    }

    /// Tells `found` what this overlay holds of the `gaps`, in order, and leaves in `gaps` what it doesn't.
    pub fn cover<'a>(&'a self, gaps: &mut Vec<Span>, mut found: impl FnMut(Span, Content<'a>)) {
        if self.is_empty() {
            return;
        }
        if let [only] = gaps.as_slice()
            && self.clears.is_empty()
            && only.start / REGION == (only.end - 1) / REGION
            && !self.regions.contains_key(&(only.start / REGION))
        {
            return;
        }
        let mut left = Vec::new();
        for gap in gaps.iter() {
            for piece in pieces(gap.start, gap.end - gap.start) {
                self.cover_piece(piece, &mut left, &mut found);
            }
        }
        *gaps = left;
    }

    fn cover_piece<'a>(
        &'a self,
        piece: Piece,
        left: &mut Vec<Span>,
        found: &mut impl FnMut(Span, Content<'a>),
    ) {
        let base = piece.region * REGION;
        let below = self.clears.get(piece.region);
        let mut bare = |from: u32, to: u32, found: &mut dyn FnMut(Span, Content<'a>)| {
            if from == to {
                return;
            }
            let span = Span {
                start: base + u64::from(from),
                end: base + u64::from(to),
            };
            match below {
                Some(clear) => found(span, Content::Cleared(clear)),
                None => match left.last_mut() {
                    Some(last) if last.end == span.start => last.end = span.end,
                    _ => left.push(span),
                },
            }
        };
        let (mut position, end) = (piece.start, piece.start + piece.len);
        if let Some(region) = self.regions.get(&piece.region) {
            for extent in region.touching(position, end) {
                let (from, to) = (extent.start.max(position), extent.end().min(end));
                bare(position, from, found);
                let span = Span {
                    start: base + u64::from(from),
                    end: base + u64::from(to),
                };
                found(span, self.content(&extent.part(from, to)));
                position = to;
            }
        }
        bare(position, end, found);
    }

    fn content(&self, extent: &Extent) -> Content<'_> {
        match extent.what {
            What::Data(place) => Content::Data(self.buffers.get(place, extent.len)),
            What::Cleared(clear) => Content::Cleared(clear),
        }
    }
}

/// The part of a range that lies in one region.
#[derive(Debug, Clone, Copy)]
struct Piece {
    region: u64,
    start: u32,
    len: u32,
}

impl Piece {
    /// Its first byte on the disk.
    fn offset(&self) -> u64 {
        self.region * REGION + u64::from(self.start)
    }
}

/// Cuts a range at the borders of regions.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = Piece> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        let region = at / REGION;
        let next = end.min((region + 1) * REGION);
        if at >= end {
            return None;
        }
        let piece = Piece {
            region,
            start: short(at % REGION),
            len: short(next - at),
        };
        at = next;
        Some(piece)
    })
}

/// The part `from..to` of `buf`; empty if it isn't inside, which the callers' arithmetic rules out.
pub fn part_of(buf: &mut [u8], from: u64, to: u64) -> &mut [u8] {
    let range = index(from)..index(to);
    debug_assert!(range.end <= buf.len(), "a gap lies outside of its buffer");
    buf.get_mut(range).unwrap_or_default()
}

/// A distance inside a buffer that is in memory, so it fits.
#[allow(clippy::cast_possible_truncation)]
fn index(distance: u64) -> usize {
    distance as usize
}

/// A distance inside a region.
#[allow(clippy::cast_possible_truncation)]
fn short(distance: u64) -> u32 {
    distance as u32
}

#[cfg(test)]
mod tests;
