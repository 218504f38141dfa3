//! An overlay's content in the order in which it goes to the log and to the image: clears first, as data lies over them, then the data by
//! offset, what is neighbours on the disk and in memory as one.

use super::region::{Extent, What};
use super::{Content, Overlay, REGION};

/// How far somebody has come in an overlay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Clears that begin before this region are done.
    clears: u64,
    /// So many regions, in their order, are done.
    region: usize,
    /// Extents of the next region that are done.
    extent: usize,
}

/// A part of the disk that is written at once: offset, length in bytes, content.
pub type Part<'a> = (u64, u64, Content<'a>);

impl Overlay {
    /// The next part at `cursor`, which moves behind it. None: that was all.
    ///
    /// For overlays that are no longer written to: the order is settled with the first call.
    pub fn next_part(&self, cursor: &mut Cursor) -> Option<Part<'_>> {
        if let Some((start, end, clear)) = self.clears.iter_from(cursor.clears).next() {
            cursor.clears = end;
            return Some((
                start * REGION,
                (end - start) * REGION,
                Content::Cleared(clear),
            ));
        }
        let (offset, mut whole, mut after) = self.extent_at(*cursor)?;
        while let Some((next_offset, next, later)) = self.extent_at(after) {
            let continues = next_offset == offset + u64::from(whole.len)
                && match (whole.what, next.what) {
                    (What::Data(place), What::Data(other)) => place.later(whole.len) == other,
                    _ => false,
                };
            if !continues {
                break;
            }
            whole.len += next.len;
            after = later;
        }
        *cursor = after;
        Some((offset, u64::from(whole.len), self.content(&whole)))
    }

    /// All parts, in order.
    pub fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let mut cursor = Cursor::default();
        std::iter::from_fn(move || self.next_part(&mut cursor))
    }

    /// Numbers of the regions, in order.
    ///
    /// For overlays that are no longer written to: the order is settled with the first call.
    pub(super) fn order(&self) -> &[u64] {
        self.order.get_or_init(|| {
            let mut numbers: Vec<u64> = self.regions.keys().copied().collect();
            numbers.sort_unstable();
            numbers
        })
    }

    /// The first extent that is not done: where it begins on the disk, itself, and the cursor behind it.
    fn extent_at(&self, mut cursor: Cursor) -> Option<(u64, Extent, Cursor)> {
        let order = self.order();
        loop {
            let number = order.get(cursor.region)?;
            let extents = self.regions.get(number)?.extents();
            if let Some(extent) = extents.get(cursor.extent) {
                cursor.extent += 1;
                return Some((number * REGION + u64::from(extent.start), *extent, cursor));
            }
            cursor.region += 1;
            cursor.extent = 0;
        }
    }
}
