//! A checksummed table in memory: it grows page by page to its bound, then its oldest pages are written anew, and
//! it is verified without end. It shows whether the memory image itself came through a failover whole.

use crate::block::{self, BLOCK_SIZE, Image, Observed, Place};

/// A page of the table that is not what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadPage {
    /// Index of the page.
    pub page: usize,
    /// The version it must have.
    pub version: u64,
}

/// The table of one worker.
#[derive(Debug)]
pub struct Table {
    run: u64,
    bound: usize,
    pages: Vec<Box<[u8]>>,
    versions: Vec<u64>,
    write_at: usize,
    verify_at: usize,
}

impl Table {
    /// An empty table that may grow to `bound` pages of [`BLOCK_SIZE`] bytes.
    pub fn new(run: u64, bound: usize) -> Self {
        Self {
            run,
            bound,
            pages: Vec::new(),
            versions: Vec::new(),
            write_at: 0,
            verify_at: 0,
        }
    }

    /// Pages in use.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Adds a page, or writes the oldest one anew when the table is full.
    pub fn write_next(&mut self) {
        if self.bound == 0 {
            return;
        }
        if self.pages.len() < self.bound && self.write_at == self.pages.len() {
            self.pages.push(vec![0; BLOCK_SIZE].into_boxed_slice());
            self.versions.push(0);
        }
        self.versions[self.write_at] += 1;
        let image = self.expected(self.write_at);
        block::encode(&mut self.pages[self.write_at], &image);
        self.write_at = (self.write_at + 1) % self.bound;
    }

    /// Verifies the next page in turn.
    ///
    /// # Errors
    /// [`BadPage`] if it does not hold what was last written to it.
    pub fn verify_next(&mut self) -> Result<(), BadPage> {
        let Some(bytes) = self.pages.get(self.verify_at) else {
            return Ok(());
        };
        let page = self.verify_at;
        self.verify_at = (page + 1) % self.pages.len();
        if block::decode(bytes) == Observed::Image(self.expected(page)) {
            Ok(())
        } else {
            Err(BadPage {
                page,
                version: self.versions[page],
            })
        }
    }

    fn expected(&self, page: usize) -> Image {
        let place = Place {
            disk: Place::MEMORY,
            block: u32::try_from(page).unwrap_or(u32::MAX),
        };
        Image {
            run: self.run,
            place,
            version: self.versions[page],
            stamp: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> Table {
        let mut table = Table::new(1, 4);
        for _ in 0..11 {
            table.write_next();
        }
        table
    }

    #[test]
    fn grows_to_its_bound_then_cycles_and_verifies() {
        let mut table = filled();
        assert_eq!((table.len(), table.versions.clone()), (4, vec![3, 3, 3, 2]));
        for _ in 0..8 {
            assert_eq!(table.verify_next(), Ok(()));
        }
        let mut none = Table::new(1, 0);
        none.write_next();
        assert_eq!((none.len(), none.verify_next()), (0, Ok(())));
    }

    #[test]
    fn a_damaged_page_and_a_stale_page_are_found() {
        let mut table = filled();
        let stale = table.pages[1].clone();
        table.pages[3][100] ^= 1;
        for _ in 0..3 {
            table.write_next();
        }
        table.pages[1] = stale;
        let found: Vec<_> = (0..4)
            .filter_map(|_| table.verify_next().err())
            .map(|bad| bad.page)
            .collect();
        assert_eq!(found, [1], "page 3 was written anew, page 1 put back");
        table.pages[3][100] ^= 1;
        let found: Vec<_> = (0..4)
            .filter_map(|_| table.verify_next().err())
            .map(|bad| bad.page)
            .collect();
        assert_eq!(found, [1, 3]);
    }
}
