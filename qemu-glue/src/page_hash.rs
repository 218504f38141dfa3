//! Finds dirty pages by comparing hashes: reads all memory at each scan, but needs nothing from kernel or QEMU, and sees
//! what other processes (vhost-user) write.
//!
//! The table always describes what the other side holds: a zero page before the base copy, then what the base copy took
//! ([`DirtyTracker::copied`]), then what the scans found. Hashing the memory when tracking starts would not do: a page
//! that changes before it is copied and changes back afterwards would look clean and be wrong on the other side.
//!
//! Two contents with the same 64-bit hash would be missed: at a million changed pages per second, once in 600,000 years.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::dirty_pages::{DirtyTracker, TrackerKind};
use crate::error::Result;
use crate::guest_ram::GuestRam;
use crate::page_set::{PAGE, PAGE_SIZE, PageRange};

/// The tracker.
#[derive(Debug)]
pub(crate) struct PageHashTracker {
    ram: Arc<GuestRam>,
    hashes: Vec<u64>,
}

impl PageHashTracker {
    pub(crate) fn new(ram: Arc<GuestRam>) -> Self {
        PageHashTracker {
            ram,
            hashes: Vec::new(),
        }
    }
}

impl DirtyTracker for PageHashTracker {
    fn kind(&self) -> TrackerKind {
        TrackerKind::Hash
    }

    fn start(&mut self) -> Result<()> {
        let pages = usize::try_from(self.ram.len() / PAGE_SIZE).unwrap_or(usize::MAX);
        self.hashes.clear();
        self.hashes.resize(pages, xxh3_64(&[0; PAGE]));
        Ok(())
    }

    fn scan(&mut self, out: &mut Vec<PageRange>) -> Result<()> {
        let mut page = [0; PAGE];
        let mut open: Option<PageRange> = None;
        for (offset, known) in (0..).step_by(PAGE).zip(&mut self.hashes) {
            self.ram.read(offset, &mut page)?;
            let hash = xxh3_64(&page);
            if hash == *known {
                out.extend(open.take());
                continue;
            }
            *known = hash;
            open.get_or_insert(PageRange { offset, len: 0 }).len += PAGE_SIZE;
        }
        out.extend(open);
        Ok(())
    }

    fn copied(&mut self, range: PageRange, content: &[u8]) {
        let first = usize::try_from(range.offset / PAGE_SIZE).unwrap_or(usize::MAX);
        for (known, page) in self
            .hashes
            .iter_mut()
            .skip(first)
            .zip(content.chunks_exact(PAGE))
        {
            *known = xxh3_64(page);
        }
    }

    fn rescan_is_cheap(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::description::Role;

    fn tracked() -> (tempfile::TempDir, Arc<GuestRam>, PageHashTracker) {
        let dir = tempfile::tempdir().unwrap();
        let ram = Arc::new(GuestRam::create(dir.path(), "hash", Role::Source, 1 << 20).unwrap());
        let tracker = PageHashTracker::new(Arc::clone(&ram));
        (dir, ram, tracker)
    }

    fn scan(tracker: &mut PageHashTracker) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        tracker.scan(&mut found).unwrap();
        found
            .iter()
            .map(|range| (range.offset / PAGE_SIZE, range.len / PAGE_SIZE))
            .collect()
    }

    #[test]
    fn neighbours_join_and_are_reported_once() {
        let (_dir, ram, mut tracker) = tracked();
        tracker.start().unwrap();
        ram.write(PAGE_SIZE, &[1; 2 * PAGE]).unwrap();
        ram.write(255 * PAGE_SIZE + 4095, &[1]).unwrap();
        assert_eq!(scan(&mut tracker), [(1, 2), (255, 1)]);
        assert_eq!(scan(&mut tracker), []);
    }

    #[test]
    fn a_page_that_changed_around_its_base_copy_and_back_is_dirty() {
        let (_dir, ram, mut tracker) = tracked();
        ram.write(0, &[1; PAGE]).unwrap();
        tracker.start().unwrap();
        // The base copy sees the page while it is 2.
        let range = PageRange {
            offset: 0,
            len: PAGE_SIZE,
        };
        tracker.copied(range, &[2; PAGE]);
        assert_eq!(scan(&mut tracker), [(0, 1)]);
        // And what it took as it still is, is clean.
        tracker.copied(range, &[1; PAGE]);
        assert_eq!(scan(&mut tracker), []);
    }
}
