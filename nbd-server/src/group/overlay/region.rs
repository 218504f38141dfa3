//! The extents of one small part of a disk, in order, none overlapping another. Knows where bytes lie, not what they are.

use super::Clear;
use super::buffers::{Buffers, Place};

/// Bytes of disk in one region, as a power of two: 128 KiB, so that a search looks at a few cache lines however large the epoch grows.
pub const REGION_BITS: u32 = 17;

/// What a range holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Guest data.
    Data(Place),
    /// No data.
    Cleared(Clear),
}

/// A range inside of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte, counted from the region's start.
    pub start: u32,
    /// Bytes.
    pub len: u32,
    /// What it holds.
    pub what: What,
}

impl Extent {
    /// The byte after the last.
    pub fn end(&self) -> u32 {
        self.start + self.len
    }

    /// The part of it between `from` and `to`, which lie inside.
    pub fn part(&self, from: u32, to: u32) -> Self {
        let what = match self.what {
            What::Data(place) => What::Data(place.later(from - self.start)),
            other => other,
        };
        Self {
            start: from,
            len: to - from,
            what,
        }
    }

    /// Whether `next` goes on where this one ends, on the disk and in memory.
    pub fn continues_with(&self, next: &Self) -> bool {
        self.end() == next.start
            && match (self.what, next.what) {
                (What::Data(place), What::Data(other)) => place.later(self.len) == other,
                (mine, theirs) => mine == theirs,
            }
    }
}

/// One region.
#[derive(Debug, Default)]
pub struct Region {
    extents: Vec<Extent>,
}

impl Region {
    /// Its extents, in order.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// The extents that touch `start..end`.
    pub fn touching(&self, start: u32, end: u32) -> &[Extent] {
        let from = self.extents.partition_point(|extent| extent.end() <= start);
        let rest = self.extents.get(from..).unwrap_or_default();
        let count = rest.iter().take_while(|extent| extent.start < end).count();
        rest.get(..count).unwrap_or_default()
    }

    /// Where the bytes `start..end` lie, if one extent has them all.
    pub fn place_of(&self, start: u32, end: u32) -> Option<Place> {
        let from = self.extents.partition_point(|extent| extent.end() <= start);
        let extent = self.extents.get(from)?;
        match extent.what {
            What::Data(place) if extent.start <= start && end <= extent.end() => {
                Some(place.later(start - extent.start))
            }
            _ => None,
        }
    }

    /// Puts `new` over what is there. Returns how many bytes of data could be read before in its range.
    pub fn put(&mut self, new: Extent, buffers: &mut Buffers) -> u32 {
        let (start, end) = (new.start, new.end());
        let from = self.extents.partition_point(|extent| extent.end() <= start);
        let mut replaced = 0;
        let mut covered = 0;
        let mut head = None;
        let mut tail = None;
        for extent in self.extents.get(from..).unwrap_or_default() {
            if extent.start >= end {
                break;
            }
            covered += 1;
            let (first, last) = (extent.start.max(start), extent.end().min(end));
            if let What::Data(place) = extent.what {
                replaced += last - first;
                buffers.release(place, last - first);
            }
            if extent.start < start {
                head = Some(extent.part(extent.start, start));
            }
            if extent.end() > end {
                tail = Some(extent.part(end, extent.end()));
            }
        }
        if covered == 0
            && let Some(before) = from.checked_sub(1).and_then(|at| self.extents.get_mut(at))
            && before.continues_with(&new)
        {
            before.len += new.len;
            return 0;
        }
        let pieces = head.into_iter().chain([new]).chain(tail);
        self.extents.splice(from..from + covered, pieces);
        replaced
    }

    /// Gives all its data back. Returns how many bytes that were.
    pub fn give_back(&self, buffers: &mut Buffers) -> u64 {
        let mut bytes = 0;
        for extent in &self.extents {
            if let What::Data(place) = extent.what {
                buffers.release(place, extent.len);
                bytes += u64::from(extent.len);
            }
        }
        bytes
    }
}
