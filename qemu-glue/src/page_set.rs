//! Pages copied out of a guest's RAM: the memory part of a checkpoint, as plain values. Knows no QEMU.

use crate::error::Result;
use crate::guest_ram::GuestRam;

/// Size of a guest page in bytes. Offsets and lengths of all ranges are multiples of it.
pub const PAGE_SIZE: u64 = 4096;

/// [`PAGE_SIZE`] for lengths of buffers.
pub(crate) const PAGE: usize = 4096;

/// A range of whole pages; offset and length in bytes, the offset counted in the RAM file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageRange {
    /// Offset of the first byte in the RAM file.
    pub offset: u64,
    /// Length in bytes, never 0.
    pub len: u64,
}

impl PageRange {
    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// Ranges of pages with their content. Made to be reused from epoch to epoch, so that buffers are allocated once.
///
/// Apply the ranges in order: a later one may repeat pages of an earlier one and then holds the newer content.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct PageSet {
    /// The ranges, in the order of their content in `data`.
    pub ranges: Vec<PageRange>,
    /// The content of all ranges, one after the other.
    pub data: Vec<u8>,
}

impl PageSet {
    /// Forgets the content and keeps the buffers.
    pub fn clear(&mut self) {
        self.ranges.clear();
        self.data.clear();
    }

    /// Whether it holds no page.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Number of pages, counting repeated ones again.
    pub fn pages(&self) -> u64 {
        self.ranges.iter().map(|r| r.len / PAGE_SIZE).sum()
    }

    /// Each range with its content.
    pub fn iter(&self) -> impl Iterator<Item = (PageRange, &[u8])> {
        let mut rest = self.data.as_slice();
        self.ranges.iter().map(move |range| {
            let len = usize::try_from(range.len)
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let (content, tail) = rest.split_at(len);
            rest = tail;
            (*range, content)
        })
    }

    /// Appends one range with the content that it has in `ram` now.
    ///
    /// # Errors
    /// The range lies outside of `ram`.
    pub fn push_from(&mut self, ram: &GuestRam, range: PageRange) -> Result<()> {
        ram.append_to(range, &mut self.data)?;
        self.ranges.push(range);
        Ok(())
    }
}
