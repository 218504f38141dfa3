//! A shared mapping of a file that another process writes at the same time. Knows no QEMU.
//!
//! No slice into the mapping is ever handed out: its bytes may change at any time, which a `&[u8]` must not. All access
//! copies, and a copy of memory that is being written may be torn; callers copy again whatever changed.

use std::fs::File;
use std::io;

use memmap2::{MmapOptions, MmapRaw};

/// The mapping.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    map: MmapRaw,
}

impl SharedMemory {
    /// Maps `len` bytes of `file`, which must be that long.
    pub(crate) fn map(file: &File, len: usize) -> io::Result<Self> {
        Ok(SharedMemory {
            map: MmapOptions::new().len(len).map_raw(file)?,
        })
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    fn holds(&self, offset: usize, len: usize) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.len())
    }

    /// Copies out; false, and nothing done, if that lies outside.
    #[must_use]
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> bool {
        if !self.holds(offset, out.len()) {
            return false;
        }
        // SAFETY: source and length were checked against the mapping, which lives as long as `self`; `out` is ours alone
        // and can't overlap a mapping that never hands out references.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.map.as_ptr().add(offset),
                out.as_mut_ptr(),
                out.len(),
            );
        }
        true
    }

    /// Appends a copy to `out`; false, and nothing done, if that lies outside.
    #[must_use]
    pub(crate) fn append_to(&self, offset: usize, len: usize, out: &mut Vec<u8>) -> bool {
        if !self.holds(offset, len) {
            return false;
        }
        out.reserve(len);
        let old = out.len();
        // SAFETY: source and length were checked as in `read`; `reserve` made room for `len` bytes behind `old`, and they
        // are initialised by the copy before set_len.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.map.as_ptr().add(offset),
                out.as_mut_ptr().add(old),
                len,
            );
            out.set_len(old + len);
        }
        true
    }

    /// Copies in; false, and nothing done, if that lies outside.
    #[must_use]
    pub(crate) fn write(&self, offset: usize, data: &[u8]) -> bool {
        if !self.holds(offset, data.len()) {
            return false;
        }
        // SAFETY: target and length were checked against the mapping, which was mapped writable; `data` can't overlap it.
        unsafe {
            std::ptr::copy_nonoverlapping(
                data.as_ptr(),
                self.map.as_mut_ptr().add(offset),
                data.len(),
            );
        }
        true
    }
}
