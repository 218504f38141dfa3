//! Which entry speaks for which range: the first that covers a byte is the one that counts. Knows no files.

use std::collections::BTreeMap;

use super::format::Piece;

/// The ranges of a disk: from the first byte to the byte after the last, and the entry.
type Ranges = BTreeMap<u64, (u64, u32)>;

/// Ranges of disks, each with the number of the entry that speaks for it.
#[derive(Clone, Debug, Default)]
pub struct FirstMap {
    /// By disk.
    disks: Vec<Ranges>,
    len: usize,
}

impl FirstMap {
    /// Lets `entry` speak for what of the range nothing speaks for yet; tells `new` what that is, in order.
    pub fn fill(
        &mut self,
        disk: u16,
        start: u64,
        end: u64,
        entry: u32,
        mut new: impl FnMut(u64, u64),
    ) {
        let index = usize::from(disk);
        if self.disks.len() <= index {
            self.disks.resize_with(index + 1, BTreeMap::new);
        }
        let Some(map) = self.disks.get_mut(index) else {
            return;
        };
        // Nearly always nothing is there: one look is enough.
        let before = map.range(..end).next_back();
        if before.is_none_or(|(_, (to, _))| *to <= start) {
            if start < end {
                map.insert(start, (end, entry));
                self.len += 1;
                new(start, end);
            }
            return;
        }
        let mut gaps = Vec::new();
        let mut at = start;
        for (from, to, _) in touching(map, start, end) {
            if at < from {
                gaps.push((at, from));
            }
            at = to;
        }
        if at < end {
            gaps.push((at, end));
        }
        for (from, to) in gaps {
            map.insert(from, (to, entry));
            self.len += 1;
            new(from, to);
        }
    }

    /// What speaks for parts of the range, in order, each cut to the range.
    pub fn visit(&self, disk: u16, start: u64, end: u64, mut found: impl FnMut(Piece)) {
        let Some(map) = self.disks.get(usize::from(disk)) else {
            return;
        };
        for (from, to, entry) in touching(map, start, end) {
            found(piece(disk, from, to, entry));
        }
    }

    /// All pieces, in the order of the disks.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> {
        self.disks.iter().enumerate().flat_map(|(disk, map)| {
            let disk = u16::try_from(disk).unwrap_or(u16::MAX);
            map.iter()
                .map(move |(from, (to, entry))| piece(disk, *from, *to, *entry))
        })
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.disks.clear();
        self.len = 0;
    }

    /// How many pieces there are.
    pub fn len(&self) -> usize {
        self.len
    }
}

/// What is in the range, in order, each cut to it.
fn touching(map: &Ranges, start: u64, end: u64) -> impl Iterator<Item = (u64, u64, u32)> {
    let before = map
        .range(..start)
        .next_back()
        .filter(|(_, (to, _))| *to > start);
    before
        .into_iter()
        .chain(map.range(start..end))
        .map(move |(from, (to, entry))| ((*from).max(start), (*to).min(end), *entry))
}

/// Pieces are parts of entries, whose lengths fit.
fn piece(disk: u16, from: u64, to: u64, entry: u32) -> Piece {
    Piece {
        disk,
        start: from,
        len: u32::try_from(to - from).unwrap_or(u32::MAX),
        entry,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_that_covers_a_byte_speaks_for_it(
            ranges in prop::collection::vec((0_u16..3, 0_u64..200, 1_u64..60), 0..40),
            look in (0_u64..200, 1_u64..100),
        ) {
            let mut map = FirstMap::default();
            let mut model = vec![vec![None; 300]; 3];
            for (number, (disk, start, len)) in (0_u32..).zip(&ranges) {
                let mut new = Vec::new();
                map.fill(*disk, *start, start + len, number, |from, to| new.extend(from..to));
                let mut expected = Vec::new();
                for byte in *start..start + len {
                    let place: &mut Option<u32> = &mut model[usize::from(*disk)][usize::try_from(byte).unwrap_or(0)];
                    if place.is_none() {
                        *place = Some(number);
                        expected.push(byte);
                    }
                }
                prop_assert_eq!(new, expected);
            }
            for (disk, model) in (0_u16..).zip(&model) {
                let (start, end) = (look.0, look.0 + look.1);
                let mut seen = vec![None; 300];
                map.visit(disk, start, end, |piece| {
                    for byte in piece.start..piece.start + u64::from(piece.len) {
                        seen[usize::try_from(byte).unwrap_or(0)] = Some(piece.entry);
                    }
                });
                for (byte, (seen, model)) in (0_u64..).zip(seen.iter().zip(model)) {
                    let expected = model.filter(|_| (start..end).contains(&byte));
                    prop_assert_eq!(*seen, expected, "byte {} of disk {}", byte, disk);
                }
            }
            prop_assert_eq!(map.pieces().count(), map.len());
        }
    }
}
