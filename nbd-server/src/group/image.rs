//! The image of one disk: a raw file or a block device. Knows bytes and nothing of epochs.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::applier::log_clear;
use super::overlay::{Clear, Span};
use crate::export::BlockExtent;
use crate::image_file::{Access, Device, Extents, ImageFile};
use crate::page_cache;
use epoch_log::{Content, Extent, apply};
use rustix::io::{Errno, ReadWriteFlags, pwritev};

pub use crate::image_file::ImageError;

/// An open image.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
    size: u64,
    /// Set for a block device.
    device: Option<Device>,
    extents: Extents,
    identity: (u64, u64),
}

impl Image {
    /// Opens the image at `path`. It keeps the size that it has now.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn open(path: &Path, read_only: bool) -> Result<Self, ImageError> {
        let access = Access {
            read_only,
            direct: false,
        };
        let image = ImageFile::open(path, access)?;
        Ok(Self {
            path: image.path,
            file: image.file,
            size: image.size,
            device: image.device,
            extents: Extents::default(),
            identity: image.identity,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What tells this image from all others on the machine: device and inode; for a block device its number.
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Fills `buf` from `offset` if all of it is in the page cache; otherwise false, and `buf` holds anything.
    pub fn try_read(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        let want = buf.len();
        match rustix::io::preadv2(
            &self.file,
            &mut [IoSliceMut::new(buf)],
            offset,
            ReadWriteFlags::NOWAIT,
        ) {
            Ok(got) => Ok(got == want),
            // Not every file system can say whether it would block.
            Err(Errno::AGAIN | Errno::INTR | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                Ok(false)
            }
            Err(other) => Err(other.into()),
        }
    }

    /// The file, if all of this range is in the page cache.
    pub fn cached(&self, offset: u64, len: u64) -> Option<&File> {
        page_cache::holds(&self.file, offset, len).then_some(&self.file)
    }

    /// Begins to read a range into the page cache.
    pub fn cache(&self, offset: u64, len: u64) -> io::Result<()> {
        page_cache::prefetch(&self.file, offset, len)
    }

    /// Fills `buf` from `offset`.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    /// Applies one extent: data, zeros or a trim.
    pub fn apply(&self, extent: &Extent<'_>) -> io::Result<()> {
        let Some(device) = self.device else {
            return apply::apply_extent(&self.file, extent);
        };
        match extent.content {
            Content::Data(_) => apply::apply_extent(&self.file, extent),
            Content::Trim => device.discard(&self.file, extent.offset, extent.len),
            // The device zeroes whole sectors by itself, and would refuse all for the sake of the ends.
            Content::Zero | Content::Hole => {
                let parts = device.split(extent.offset, extent.len);
                parts
                    .into_iter()
                    .filter(|part| !part.is_empty())
                    .try_for_each(|part| {
                        let part = Extent {
                            offset: part.start,
                            len: part.end - part.start,
                            ..*extent
                        };
                        apply::apply_extent(&self.file, &part)
                    })
            }
        }
    }

    /// Writes `data` at `offset`.
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.apply(&Extent {
            disk: 0,
            offset,
            len: data.len() as u64,
            content: Content::Data(data),
        })
    }

    /// Writes `parts`, at most 1024, one behind the other from `offset` on. They are used up.
    pub fn write_vectored(&self, mut offset: u64, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        while !parts.is_empty() {
            match pwritev(&self.file, parts, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut parts, written);
                }
                Err(Errno::INTR) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Ok(())
    }

    /// Begins to bring what was written to a range to the storage, so that [`Image::sync`] has less to wait for.
    pub fn begin_writeback(&self, offset: u64, len: u64) {
        page_cache::begin_writeback(&self.file, offset, len);
    }

    /// Clears a range.
    pub fn clear(&self, offset: u64, len: u64, clear: Clear) -> io::Result<()> {
        self.extents.forget();
        self.apply(&Extent {
            disk: 0,
            offset,
            len,
            content: log_clear(clear),
        })
    }

    /// Where a range has data and where it has holes, as far as the file system can tell: at most `max` extents.
    pub fn extents(&self, span: Span, max: usize) -> io::Result<Vec<BlockExtent>> {
        Ok(self.extents.find(&self.file, span.start..span.end, max)?)
    }

    /// Makes everything written durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
