//! Ranges of whole regions that read as zeros, below whatever the regions hold. Few and large: a client that trims a terabyte makes one
//! entry.

use std::collections::BTreeMap;

use super::Clear;

#[derive(Debug, Clone, Copy)]
struct Range {
    end: u64,
    clear: Clear,
}

/// Ranges of region numbers that don't overlap, by the first number.
#[derive(Debug, Default)]
pub struct Clears {
    ranges: BTreeMap<u64, Range>,
}

impl Clears {
    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Clears the regions `start..end`, over what was cleared before.
    pub fn insert(&mut self, start: u64, end: u64, clear: Clear) {
        // What begins before and reaches inside is cut in two first, so that the rest begins inside.
        if let Some((_, before)) = self.ranges.range_mut(..start).next_back()
            && before.end > start
        {
            let whole = *before;
            before.end = start;
            self.ranges.insert(start, whole);
        }
        while let Some((&at, &range)) = self.ranges.range(start..end).next() {
            self.ranges.remove(&at);
            if range.end > end {
                self.ranges.insert(end, range);
            }
        }
        self.ranges.insert(start, Range { end, clear });
    }

    /// How the region of this number was cleared, if it was.
    pub fn get(&self, region: u64) -> Option<Clear> {
        let (_, range) = self.ranges.range(..=region).next_back()?;
        (range.end > region).then_some(range.clear)
    }

    /// The ranges that begin at `from` or later: first region, the one after the last, how.
    pub fn iter_from(&self, from: u64) -> impl Iterator<Item = (u64, u64, Clear)> {
        self.ranges
            .range(from..)
            .map(|(&start, range)| (start, range.end, range.clear))
    }
}
