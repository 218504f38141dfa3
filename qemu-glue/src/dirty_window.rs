//! What the guest wrote within a second or so: how many different pages, how they lie over its memory, and how many of them it wrote
//! in the second before. Pure values: no tracker, no clock of its own.
//!
//! A tracker tells what was written since its last look, and the looks of different users lie 25 ms or 10 s apart. Different pages per
//! look can't be compared then: a page that is written all the time counts once in a look, however long that is. So looks are put
//! together to windows of about the same length, whoever looks how often.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::page_set::{PAGE_SIZE, PageRange};

/// Pages of one word of the map.
const WORD: u64 = 64;
/// Words of one region of 2 MiB.
const REGION_WORDS: usize = 8;
/// Parts of RAM over which the entropy is taken.
const PARTS: usize = 64;

/// Collects looks.
#[derive(Debug)]
pub struct DirtyWindow {
    began: Instant,
    number: u64,
    /// A bit for each page.
    now: Vec<u64>,
    /// Those of the window before; None at the beginning.
    before: Option<Vec<u64>>,
}

/// A window that is over.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DirtySummary {
    /// Its number, from 1: another one is another window.
    pub number: u64,
    /// Its length in milliseconds, never 0.
    pub window_ms: u64,
    /// Different pages that were written.
    pub pages: u64,
    /// Pages of the guest's RAM.
    pub ram_pages: u64,
    /// Regions of 2 MiB with a written page.
    pub regions: u64,
    /// Regions of the guest's RAM.
    pub ram_regions: u64,
    /// Runs of neighbouring written pages.
    pub runs: u64,
    /// Written pages that were written in the window before as well; None if there was none.
    pub repeated: Option<u64>,
    /// How evenly they lie over 64 equal parts of RAM: 0 all in one, 1 the same number in each. 0 if there are none.
    pub entropy: f64,
}

impl DirtyWindow {
    /// The length of a window: it ends with the first look after that.
    pub const LENGTH: Duration = Duration::from_secs(1);

    /// For a guest with so many bytes of RAM. The first window begins now.
    pub fn new(ram_bytes: u64, now: Instant) -> Self {
        let words = ram_bytes.div_ceil(PAGE_SIZE * WORD);
        DirtyWindow {
            began: now,
            number: 0,
            now: vec![0; usize::try_from(words).unwrap_or(0)],
            before: None,
        }
    }

    /// A look has found these pages. What lies outside of RAM is left out.
    pub fn add(&mut self, ranges: &[PageRange]) {
        for range in ranges {
            let (mut page, end) = (range.offset / PAGE_SIZE, range.end().div_ceil(PAGE_SIZE));
            while page < end {
                let bit = page % WORD;
                let count = (WORD - bit).min(end - page);
                let Some(word) = usize::try_from(page / WORD)
                    .ok()
                    .and_then(|at| self.now.get_mut(at))
                else {
                    break;
                };
                *word |= (u64::MAX >> (WORD - count)) << bit;
                page += count;
            }
        }
    }

    /// Ends the window if it is long enough: to be called after each look.
    pub fn end(&mut self, now: Instant) -> Option<DirtySummary> {
        let length = now.saturating_duration_since(self.began);
        if length < Self::LENGTH {
            return None;
        }
        self.began = now;
        self.number += 1;
        let summary = self.summary(length);
        let mut next = self
            .before
            .take()
            .unwrap_or_else(|| vec![0; self.now.len()]);
        next.fill(0);
        self.before = Some(std::mem::replace(&mut self.now, next));
        Some(summary)
    }

    fn summary(&self, length: Duration) -> DirtySummary {
        let words = self.now.len();
        let count = |words: &[u64]| {
            words
                .iter()
                .map(|word| u64::from(word.count_ones()))
                .sum::<u64>()
        };
        let repeated = self.before.as_ref().map(|before| {
            let both = self.now.iter().zip(before);
            both.map(|(now, before)| u64::from((now & before).count_ones()))
                .sum()
        });
        let mut last = 0;
        let runs = self.now.iter().map(|word| {
            let begins = word & !((word << 1) | (last >> 63));
            last = *word;
            u64::from(begins.count_ones())
        });
        let regions = self.now.chunks(REGION_WORDS);
        let parts = self.now.chunks(words.div_ceil(PARTS).max(1));
        DirtySummary {
            number: self.number,
            window_ms: u64::try_from(length.as_millis()).unwrap_or(u64::MAX).max(1),
            pages: count(&self.now),
            ram_pages: words as u64 * WORD,
            ram_regions: regions.len() as u64,
            regions: regions
                .filter(|region| region.iter().any(|word| *word != 0))
                .count() as u64,
            runs: runs.sum(),
            repeated,
            entropy: entropy(parts.map(count)),
        }
    }
}

/// The entropy of a distribution in relation to that of 64 equal parts.
fn entropy(parts: impl Iterator<Item = u64>) -> f64 {
    let parts: Vec<f64> = parts.map(|pages| pages as f64).collect();
    let whole: f64 = parts.iter().sum();
    if whole == 0.0 {
        return 0.0;
    }
    let shares = parts
        .iter()
        .map(|pages| pages / whole)
        .filter(|share| *share > 0.0);
    let bits: f64 = shares.map(|share| -share * share.log2()).sum();
    (bits / (PARTS as f64).log2()).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const RAM: u64 = 128 << 20;

    fn range(page: u64, pages: u64) -> PageRange {
        PageRange {
            offset: page * PAGE_SIZE,
            len: pages * PAGE_SIZE,
        }
    }

    #[test]
    fn a_page_counts_once_in_a_window_however_often_one_looks() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let mut window = DirtyWindow::new(RAM, began);
        window.add(&[range(60, 10)]);
        assert_eq!(window.end(at(500)), None);
        window.add(&[range(65, 10), range(600, 1)]);
        let first = window.end(at(1_250)).unwrap();
        assert_eq!((first.pages, first.runs, first.regions), (16, 2, 2));
        assert_eq!((first.ram_pages, first.ram_regions), (32_768, 64));
        assert_eq!(
            (first.number, first.window_ms, first.repeated),
            (1, 1_250, None)
        );
        window.add(&[range(70, 10)]);
        assert_eq!(window.end(at(2_249)), None);
        let second = window.end(at(2_250)).unwrap();
        assert_eq!(
            (second.number, second.pages, second.repeated),
            (2, 10, Some(5))
        );
        let third = window.end(at(3_250)).unwrap();
        assert_eq!((third.pages, third.runs, third.repeated), (0, 0, Some(0)));
        assert_eq!(third.entropy, 0.0);
    }

    #[test]
    fn entropy_says_how_evenly_pages_lie() {
        let of = |ranges: &[PageRange]| {
            let began = Instant::now();
            let mut window = DirtyWindow::new(RAM, began);
            window.add(ranges);
            window.end(began + DirtyWindow::LENGTH).unwrap().entropy
        };
        let each: Vec<_> = (0..64).map(|part| range(part * 512 + 7, 3)).collect();
        assert!((of(&each) - 1.0).abs() < 1e-9);
        assert!((of(&each[..8]) - 0.5).abs() < 1e-9);
        assert_eq!(of(&[range(0, 512)]), 0.0);
    }

    #[test]
    fn what_lies_outside_of_memory_is_left_out() {
        let began = Instant::now();
        let mut window = DirtyWindow::new(RAM, began);
        window.add(&[range(32_760, 100), range(u64::MAX / PAGE_SIZE, 1)]);
        assert_eq!(window.end(began + DirtyWindow::LENGTH).unwrap().pages, 8);
    }
}
