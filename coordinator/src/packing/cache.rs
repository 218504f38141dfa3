//! The pages that both ends of a channel know: what was sent of them last. The two caches go through the same steps in the same order, so
//! that they hold the same at every frame.

use std::collections::HashMap;

/// Size of a page in bytes.
pub(super) const PAGE: usize = 4096;

/// Pages by their number in the guest's RAM. When it is full, the one that came first makes room.
#[derive(Debug, Default)]
pub(super) struct PageCache {
    capacity: usize,
    bytes: Vec<u8>,
    slots: HashMap<u64, usize>,
    /// Which page a slot has.
    pages: Vec<u64>,
    next: usize,
}

impl PageCache {
    /// A cache for `capacity` pages. Its memory is taken as it fills up.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            ..Self::default()
        }
    }

    /// What was sent last of a page.
    pub(super) fn get(&mut self, page: u64) -> Option<&mut [u8]> {
        let slot = *self.slots.get(&page)?;
        self.bytes.get_mut(slot * PAGE..(slot + 1) * PAGE)
    }

    /// Notes what is sent of a page. `bytes` is a whole page.
    pub(super) fn put(&mut self, page: u64, bytes: &[u8]) {
        if let Some(known) = self.get(page) {
            known.copy_from_slice(bytes);
        } else if self.pages.len() < self.capacity {
            self.slots.insert(page, self.pages.len());
            self.pages.push(page);
            self.bytes.extend_from_slice(bytes);
        } else if let Some(evicted) = self.pages.get_mut(self.next) {
            self.slots.remove(evicted);
            *evicted = page;
            self.slots.insert(page, self.next);
            self.bytes[self.next * PAGE..(self.next + 1) * PAGE].copy_from_slice(bytes);
            self.next = (self.next + 1) % self.capacity;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_page_makes_room() {
        let mut cache = PageCache::new(2);
        for page in 1..=3_u8 {
            cache.put(page.into(), &[page; PAGE]);
        }
        assert_eq!(cache.get(1), None);
        assert_eq!(cache.get(2), Some(&mut [2; PAGE][..]));
        cache.put(2, &[9; PAGE]);
        cache.put(4, &[4; PAGE]);
        assert_eq!(cache.get(2), None);
        assert_eq!(cache.get(3), Some(&mut [3; PAGE][..]));
        assert_eq!(cache.get(4), Some(&mut [4; PAGE][..]));
    }

    #[test]
    fn without_capacity_nothing_is_kept() {
        let mut cache = PageCache::new(0);
        cache.put(1, &[1; PAGE]);
        assert_eq!(cache.get(1), None);
    }
}
