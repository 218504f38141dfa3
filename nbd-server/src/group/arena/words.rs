//! Memory that outlives the process, as 64-bit words that are read and written whole. A process that is killed between two stores leaves the
//! first and not the second, in this order: that is all that the format above relies on. Knows no meaning of any word.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

/// Bytes of a word.
pub(super) const WORD: usize = 8;

/// The first words of a file.
#[derive(Debug)]
pub(super) struct Words {
    map: MmapRaw,
    count: usize,
}

impl Words {
    /// Maps the first `count` words of `file`, which is that long.
    pub(super) fn map(file: &File, count: usize) -> io::Result<Self> {
        let map = MmapOptions::new().len(count * WORD).map_raw(file)?;
        Ok(Self { map, count })
    }

    /// The word of that number, which the callers' layout keeps inside.
    fn word(&self, number: usize) -> Option<&AtomicU64> {
        if number >= self.count {
            debug_assert!(false, "word {number} of {}", self.count);
            return None;
        }
        // SAFETY: the word lies inside of the mapping, which lives as long as `self`; a mapping begins at a page, so that
        // the word is aligned; and nobody takes another kind of reference to these bytes.
        Some(unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(number * WORD).cast()) })
    }

    /// Its value.
    pub(super) fn get(&self, number: usize) -> u64 {
        self.word(number)
            .map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Sets it, after everything that was stored before.
    pub(super) fn set(&self, number: usize, value: u64) {
        if let Some(word) = self.word(number) {
            word.store(value, Ordering::Release);
        }
    }

    /// Adds to it, modulo 2^64.
    pub(super) fn add(&self, number: usize, value: u64) {
        if let Some(word) = self.word(number) {
            word.fetch_add(value, Ordering::AcqRel);
        }
    }
}

/// Stores `value` in the 8 bytes of `memory` at `at`, after everything that was stored before; nothing if they don't lie inside or `at` is
/// no multiple of 8.
pub(super) fn publish(memory: &mut [u8], at: usize, value: u64) {
    let Some(bytes) = memory.get_mut(at..at + WORD) else {
        return;
    };
    if !bytes.as_ptr().cast::<u64>().is_aligned() {
        debug_assert!(false, "a record must begin at a word");
        return;
    }
    // SAFETY: the bytes are there, aligned, and borrowed for us alone until the store is done.
    let word = unsafe { AtomicU64::from_ptr(bytes.as_mut_ptr().cast()) };
    word.store(value, Ordering::Release);
}
