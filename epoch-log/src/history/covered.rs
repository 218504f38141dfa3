//! What of the disks a step has saved. Knows ranges and no files.
//!
//! Nearly always saves come in the order of the disk: then a list that grows at its end is enough. The first that does not makes a map of
//! it, until the step ends.

use super::first::FirstMap;

/// Ranges that a list keeps room for when it is emptied.
const KEPT_ROOM: usize = 1 << 14;

/// What a step has saved.
#[derive(Clone, Debug, Default)]
pub struct Covered {
    /// By disk: from the first byte to the byte after the last, in order; no two touch. Empty once `map` has them.
    lists: Vec<Vec<(u64, u64)>>,
    map: FirstMap,
}

impl Covered {
    /// Adds a range; appends to `new` what of it was not there yet, in order.
    pub fn fill(&mut self, disk: u16, start: u64, end: u64, new: &mut Vec<(u64, u64)>) {
        if self.map.len() == 0 {
            if let Some(from) = self.append(disk, start, end) {
                if from < end {
                    new.push((from, end));
                }
                return;
            }
            for (disk, list) in (0..).zip(&mut self.lists) {
                for (start, end) in list.drain(..) {
                    self.map.fill(disk, start, end, 0, |_, _| {});
                }
            }
        }
        self.map
            .fill(disk, start, end, 0, |from, to| new.push((from, to)));
    }

    /// Adds a range that begins in the last of its list, or behind it: from where on it is new. None: it begins before.
    fn append(&mut self, disk: u16, start: u64, end: u64) -> Option<u64> {
        let index = usize::from(disk);
        if self.lists.len() <= index {
            self.lists.resize_with(index + 1, Vec::new);
        }
        let list = self.lists.get_mut(index)?;
        match list.last_mut() {
            Some((first, _)) if start < *first => None,
            Some((_, last)) if start <= *last => {
                let from = *last;
                *last = from.max(end);
                Some(from)
            }
            _ => {
                list.push((start, end));
                Some(start)
            }
        }
    }

    /// Nothing was saved.
    pub fn is_empty(&self) -> bool {
        self.map.len() == 0 && self.lists.iter().all(Vec::is_empty)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        for list in &mut self.lists {
            list.clear();
            list.shrink_to(KEPT_ROOM);
        }
        self.map.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Disk, first byte, length; whether it comes behind what came before.
    fn range() -> impl Strategy<Value = (u16, u64, u64, bool)> {
        let behind = prop_oneof![6 => Just(true), 1 => Just(false)];
        (0_u16..3, 0_u64..60, 1_u64..40, behind)
    }

    proptest! {
        #[test]
        fn only_what_was_not_there_is_new(
            steps in prop::collection::vec(prop::collection::vec(range(), 0..30), 1..4),
        ) {
            let mut covered = Covered::default();
            for ranges in steps {
                let mut model = [const { std::collections::BTreeSet::<u64>::new() }; 3];
                let mut ahead = [0; 3];
                prop_assert!(covered.is_empty());
                for (disk, start, len, behind) in ranges {
                    let index = usize::from(disk);
                    // Some overlap with the one before.
                    let start = if behind { (ahead[index] + start).saturating_sub(8) } else { start };
                    let end = start + len;
                    ahead[index] = ahead[index].max(end);
                    let mut new = Vec::new();
                    covered.fill(disk, start, end, &mut new);
                    let bytes: Vec<u64> = new.iter().flat_map(|(from, to)| *from..*to).collect();
                    let expected: Vec<u64> = (start..end).filter(|byte| model[index].insert(*byte)).collect();
                    prop_assert_eq!(bytes, expected);
                    prop_assert!(new.iter().all(|(from, to)| from < to));
                    prop_assert!(!covered.is_empty());
                }
                covered.clear();
            }
        }
    }

    #[test]
    fn a_range_of_terabytes_is_one() {
        let mut covered = Covered::default();
        let mut new = Vec::new();
        covered.fill(0, 4096, 8 << 40, &mut new);
        covered.fill(0, 1 << 40, 2 << 40, &mut new);
        covered.fill(0, 0, 9 << 40, &mut new);
        assert_eq!(new, [(4096, 8 << 40), (0, 4096), (8 << 40, 9 << 40)]);
    }
}
