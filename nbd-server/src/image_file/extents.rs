//! Where a file has data and where it has holes, by SEEK_DATA and SEEK_HOLE. It knows nothing of exports but [`BlockExtent`].

use std::fs::File;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::export::BlockExtent;

/// Holes are no smaller.
const PAGE: u64 = 4096;

/// Looks up the extents of one file.
#[derive(Debug, Default)]
pub(crate) struct Extents {
    /// The stretch of data that was found last. SEEK_HOLE walks over all of it, which in a large image takes longer than to read a part of
    /// it. That it is out of date does no harm: to call a new hole data is always right.
    known_data: Mutex<Range<u64>>,
}

impl Extents {
    /// Extents of `file` that cover `range`, or its beginning if there are more than `max`. What can't be told is data.
    ///
    /// # Errors
    /// When the storage failed.
    pub fn find(
        &self,
        file: &File,
        range: Range<u64>,
        max: usize,
    ) -> Result<Vec<BlockExtent>, Errno> {
        let mut extents = Vec::new();
        let mut at = range.start;
        while at < range.end && extents.len() < max {
            let data_end = match self.known_end(at) {
                Some(end) => end,
                None => match seek(file, SeekFrom::Data(at)) {
                    Ok(data) if data > at => {
                        let end = data.min(range.end);
                        extents.push(BlockExtent::hole(end - at));
                        at = end;
                        continue;
                    }
                    // A hole up to the end of the file; behind that there is nothing, and no zeros either.
                    Err(Errno::NXIO) => {
                        if seek(file, SeekFrom::End(0))? < range.end {
                            return Err(Errno::IO);
                        }
                        extents.push(BlockExtent::hole(range.end - at));
                        break;
                    }
                    Ok(_) => self.data_end(file, at)?,
                    // Block devices and some file systems don't know.
                    Err(Errno::INVAL | Errno::OPNOTSUPP) => range.end,
                    Err(error) => return Err(error),
                },
            };
            let end = data_end.min(range.end);
            extents.push(BlockExtent::data(end - at));
            at = end;
        }
        Ok(extents)
    }

    /// Forgets what was found: the file gets holes.
    pub fn forget(&self) {
        *self.lock() = 0..0;
    }

    fn known_end(&self, at: u64) -> Option<u64> {
        let known = self.lock();
        known.contains(&at).then_some(known.end)
    }

    fn data_end(&self, file: &File, at: u64) -> Result<u64, Errno> {
        let end = seek(file, SeekFrom::Hole(at))?;
        if end <= at {
            // The hole was made just now: the next look finds it.
            return Ok(at.saturating_add(PAGE));
        }
        *self.lock() = at..end;
        Ok(end)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Range<u64>> {
        self.known_data
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
