//! A set of page numbers, one bit for each page of a guest. Plain values.

/// Bits of a word.
const BITS: u64 = u64::BITS as u64;

/// A set of page numbers below a bound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pages {
    words: Vec<u64>,
}

impl Pages {
    /// The empty set, for numbers below `pages`.
    pub(super) fn none(pages: u64) -> Self {
        let words = usize::try_from(pages.div_ceil(BITS)).unwrap_or(0);
        Self {
            words: vec![0; words],
        }
    }

    /// All numbers below `pages`.
    pub(super) fn all(pages: u64) -> Self {
        let mut all = Self::none(pages);
        all.words.fill(u64::MAX);
        if let Some(last) = all.words.last_mut().filter(|_| !pages.is_multiple_of(BITS)) {
            *last = (1 << (pages % BITS)) - 1;
        }
        all
    }

    /// Adds a number. One beyond the bound is left out.
    pub(super) fn add(&mut self, page: u64) {
        if let Some(word) = self.word(page) {
            *word |= 1 << (page % BITS);
        }
    }

    /// Removes a number. Says whether it was there.
    pub(super) fn remove(&mut self, page: u64) -> bool {
        let bit = 1 << (page % BITS);
        match self.word(page) {
            Some(word) if *word & bit != 0 => {
                *word &= !bit;
                true
            }
            _ => false,
        }
    }

    /// Adds all of `other`.
    pub(super) fn add_all(&mut self, other: &Self) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// Removes all.
    pub(super) fn clear(&mut self) {
        self.words.fill(0);
    }

    /// The smallest number from `page` on.
    pub(super) fn next(&self, page: u64) -> Option<u64> {
        let first = usize::try_from(page / BITS).ok()?;
        let mut mask = u64::MAX << (page % BITS);
        for (index, word) in self.words.iter().enumerate().skip(first) {
            let word = word & mask;
            if word != 0 {
                return Some(index as u64 * BITS + u64::from(word.trailing_zeros()));
            }
            mask = u64::MAX;
        }
        None
    }

    fn word(&mut self, page: u64) -> Option<&mut u64> {
        self.words.get_mut(usize::try_from(page / BITS).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set(size in 1u64..300, steps in prop::collection::vec((0u64..300, any::<bool>()), 0..200)) {
            let (mut pages, mut model) = (Pages::none(size), BTreeSet::new());
            for (page, add) in steps.into_iter().filter(|(page, _)| *page < size) {
                if add {
                    pages.add(page);
                    model.insert(page);
                } else {
                    prop_assert_eq!(pages.remove(page), model.remove(&page));
                }
            }
            let found: Vec<u64> = std::iter::successors(pages.next(0), |page| pages.next(page + 1)).collect();
            prop_assert_eq!(found, model.into_iter().collect::<Vec<_>>());
            let all = Pages::all(size);
            prop_assert_eq!(std::iter::successors(all.next(0), |page| all.next(page + 1)).count() as u64, size);
        }
    }
}
