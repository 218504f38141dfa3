//! Which blocks of a clone's disk are its own. A set that only grows; it knows numbers of blocks and nothing of bytes or files.

use std::collections::BTreeMap;
use std::ops::Range;

/// Blocks of one word.
const WORD: u64 = 64;
/// Words that are allocated together: 128 MiB of disk in blocks of 4 KiB.
const WORDS: usize = 512;
/// Blocks of one such part.
const PART: u64 = WORDS as u64 * WORD;

/// A set of blocks. What was never written costs nothing.
#[derive(Debug, Default)]
pub struct Blocks {
    parts: BTreeMap<u64, Box<[u64; WORDS]>>,
    len: u64,
}

impl Blocks {
    /// How many there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether `block` is one of them.
    pub fn contains(&self, block: u64) -> bool {
        self.word(block) & bit(block) != 0
    }

    /// Adds all blocks of a range.
    pub fn insert(&mut self, range: Range<u64>) {
        let mut at = range.start;
        while at < range.end {
            let end = word_end(at).min(range.end);
            let part = self
                .parts
                .entry(at / PART)
                .or_insert_with(|| Box::new([0; WORDS]));
            if let Some(word) = part.get_mut(place(at)) {
                let new = mask(at..end) & !*word;
                *word |= new;
                self.len += u64::from(new.count_ones());
            }
            at = end;
        }
    }

    /// Where the stretch that begins with `at` ends, at `end` at the latest, and whether its blocks are in the set.
    pub fn stretch(&self, at: u64, end: u64) -> (bool, u64) {
        let inside = self.contains(at);
        let mut next = at;
        while next < end {
            if !inside && !self.parts.contains_key(&(next / PART)) {
                next = (next / PART + 1) * PART;
                continue;
            }
            let word = if inside {
                !self.word(next)
            } else {
                self.word(next)
            };
            let other = word & (u64::MAX << (next % WORD));
            if other != 0 {
                next = next / WORD * WORD + u64::from(other.trailing_zeros());
                break;
            }
            next = word_end(next);
        }
        (inside, next.min(end))
    }

    /// The parts of a range that are not in the set, in order.
    pub fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (inside, end) = self.stretch(at, range.end);
            if !inside {
                missing.push(at..end);
            }
            at = end;
        }
        missing
    }

    fn word(&self, block: u64) -> u64 {
        let part = self.parts.get(&(block / PART));
        part.and_then(|part| part.get(place(block)))
            .copied()
            .unwrap_or(0)
    }
}

/// Index of the word of a block in its part.
fn place(block: u64) -> usize {
    usize::try_from(block % PART / WORD).unwrap_or(usize::MAX)
}

fn bit(block: u64) -> u64 {
    1 << (block % WORD)
}

/// First block of the next word.
fn word_end(block: u64) -> u64 {
    (block / WORD + 1) * WORD
}

/// The bits of a range that lies in one word.
fn mask(range: Range<u64>) -> u64 {
    let len = range.end - range.start;
    let ones = if len >= WORD {
        u64::MAX
    } else {
        (1 << len) - 1
    };
    ones << (range.start % WORD)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_of_blocks_is_a_set(
            ranges in prop::collection::vec((0..3 * PART, 0..300u64), 0..20),
            start in 0..3 * PART,
            len in 1..2 * PART,
        ) {
            let mut blocks = Blocks::default();
            let mut model = BTreeSet::new();
            for (start, len) in ranges {
                blocks.insert(start..start + len);
                model.extend(start..start + len);
            }
            prop_assert_eq!(blocks.len(), model.len() as u64);
            let range = start..start + len;
            let missing: Vec<u64> = blocks.missing(range.clone()).into_iter().flatten().collect();
            let expected: Vec<u64> = range.filter(|block| !model.contains(block)).collect();
            prop_assert_eq!(missing, expected);
            for block in model {
                prop_assert!(blocks.contains(block));
            }
        }
    }
}
