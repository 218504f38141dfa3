//! A raw image file or block device as an export in sync mode: writes go through to the image, FLUSH and FUA are fdatasync(2). It knows
//! no epochs, no groups and no wire.

mod nowait;
mod resize;

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};

use crate::export::{BlockExtent, BlockSize, Export, ExportInfo, IoError};
use crate::image_file::{Access, Device, Direct, Extents, ImageFile, LockedFile};
use crate::page_cache;
use nowait::Nowait;

pub use crate::image_file::ImageError;
pub use resize::ResizeError;

/// A write of whole pages need not read what is around it, so that it only copies into the page cache.
const PAGE: u64 = 4096;
/// Zeros per write where the storage can't make them by itself.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// A raw image. All its connections share one: each attachment is a clone of the `Arc` around it.
#[derive(Debug)]
pub struct RawExport {
    file: LockedFile,
    path: PathBuf,
    /// In bytes: what clients that attach now are told, and the end that no request may pass.
    size: AtomicU64,
    /// The file was cut while requests may have been under way.
    shrunk: AtomicBool,
    read_only: bool,
    /// Set for a block device.
    device: Option<Device>,
    client_resize: bool,
    /// One change of size at a time, or `size` and the file might differ in the end.
    resizing: Mutex<()>,
    extents: Extents,
    /// Past the page cache.
    direct: Option<Direct>,
    nowait_reads: Nowait,
    nowait_writes: Nowait,
    /// An fdatasync has failed: the kernel may have dropped written pages, and a later success would be a lie.
    sync_failed: AtomicBool,
}

impl RawExport {
    /// Opens an image and locks it, against other servers, as long as this lives: alone if it may be written, else shared.
    ///
    /// # Errors
    /// When the image is missing, empty, in use, no image, or can't be opened.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, ImageError> {
        Self::open_with(path, read_only, false)
    }

    /// The same past the page cache (`O_DIRECT`): clients are told to ask for whole blocks of the storage.
    ///
    /// # Errors
    /// As [`RawExport::open`], and when the file system has no `O_DIRECT` or the image does not end with a block.
    pub fn open_direct(path: &Path, read_only: bool) -> Result<Self, ImageError> {
        Self::open_with(path, read_only, true)
    }

    fn open_with(path: &Path, read_only: bool, direct: bool) -> Result<Self, ImageError> {
        let image = ImageFile::open(path, Access { read_only, direct })?;
        Ok(Self {
            file: image.file,
            path: image.path,
            size: AtomicU64::new(image.size),
            shrunk: AtomicBool::new(false),
            read_only,
            device: image.device,
            client_resize: false,
            resizing: Mutex::default(),
            extents: Extents::default(),
            direct: image.direct,
            nowait_reads: Nowait::default(),
            nowait_writes: Nowait::default(),
            sync_failed: AtomicBool::new(false),
        })
    }

    /// Lets clients change the size of the image (NBD_CMD_RESIZE). Block devices keep theirs all the same.
    #[must_use]
    pub fn with_client_resize(mut self, allowed: bool) -> Self {
        self.client_resize = allowed;
        self
    }

    /// Its size in bytes, as clients are told that attach now.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Where the image is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A client may have been told of a size from before a shrink: nothing beyond the end is read, or makes the file grow again.
    fn check_end(&self, offset: u64, len: usize, beyond: IoError) -> Result<(), IoError> {
        self.check_range(offset, len as u64, beyond)
    }

    fn check_range(&self, offset: u64, len: u64, beyond: IoError) -> Result<(), IoError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size.load(Ordering::Acquire) => Ok(()),
            _ => Err(beyond),
        }
    }

    fn report(&self, what: &str, error: io::Error) -> IoError {
        tracing::error!(path = %self.path.display(), %error, "cannot {what} the image");
        error.into()
    }

    fn sync(&self) -> Result<(), IoError> {
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(IoError::Io);
        }
        match retry(|| fdatasync(&self.file)) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.sync_failed.store(true, Ordering::Release);
                Err(self.report("sync", error))
            }
        }
    }

    fn write_all(&self, offset: u64, data: &[u8]) -> Result<(), IoError> {
        match self.direct {
            Some(direct) => direct.write(&self.file, offset, data),
            None => self.file.write_all_at(data, offset),
        }
        .map_err(|error| self.report("write", error))
    }

    fn write_zeros(&self, range: Range<u64>) -> Result<(), IoError> {
        let mut at = range.start;
        while at < range.end {
            let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
            let zeros = ZEROS.get(..left).unwrap_or(&ZEROS);
            self.write_all(at, zeros)?;
            at += zeros.len() as u64;
        }
        Ok(())
    }

    /// True: the storage has made zeros of the range by itself. False: it can't.
    fn zero(&self, range: &Range<u64>, may_trim: bool, fast: bool) -> Result<bool, IoError> {
        if range.is_empty() {
            return Ok(true);
        }
        let (offset, len) = (range.start, range.end - range.start);
        let keep = FallocateFlags::KEEP_SIZE;
        // ZERO_RANGE keeps the space: what NO_HOLE asks for. A block device that can't do it by itself is written by the kernel, which is
        // not fast; a punch there fails instead.
        let may_zero_range = !(fast && self.device.is_some());
        Ok(
            (may_trim && self.allocate(FallocateFlags::PUNCH_HOLE | keep, offset, len)?)
                || (may_zero_range
                    && self.allocate(FallocateFlags::ZERO_RANGE | keep, offset, len)?),
        )
    }

    fn sync_if(&self, fua: bool) -> Result<(), IoError> {
        if fua { self.sync() } else { Ok(()) }
    }

    /// True: done. False: this storage or this range can't do it.
    fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> Result<bool, IoError> {
        match retry(|| fallocate(&self.file, flags, offset, len)) {
            Ok(()) => Ok(true),
            // Block devices refuse ranges that are not whole sectors as invalid; the range itself has been checked.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                Ok(false)
            }
            Err(error) => Err(self.report("allocate in", error)),
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

impl Drop for RawExport {
    fn drop(&mut self) {
        self.end();
    }
}

impl Export for RawExport {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            read_only: self.read_only,
            description: "raw image, sync mode".into(),
            can_resize: self.client_resize && self.device.is_none() && !self.read_only,
            block_size: self
                .direct
                .map_or_else(BlockSize::default, |direct| BlockSize {
                    minimum: direct.block(),
                    ..BlockSize::default()
                }),
            ..ExportInfo::full(self.size.load(Ordering::Acquire))
        }
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, IoError> {
        if self.direct.is_some() {
            return Ok(false);
        }
        let wanted = buf.len();
        let read = self.nowait_reads.attempt(|| {
            preadv2(
                &self.file,
                &mut [IoSliceMut::new(buf)],
                offset,
                ReadWriteFlags::NOWAIT,
            )
        });
        // A part, or an error, is left to the read that may wait: it knows what to make of them.
        Ok(matches!(read, Some(Ok(count)) if count == wanted))
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoError> {
        self.check_end(offset, buf.len(), IoError::Inval)?;
        match self.direct {
            Some(direct) => direct.read(&self.file, offset, buf),
            None => self.file.read_exact_at(buf, offset),
        }
        .map_err(|error| self.report("read", error))
    }

    fn cached_in(&self, offset: u64, len: u64) -> Option<&File> {
        self.check_range(offset, len, IoError::Inval).ok()?;
        let cached = self.direct.is_none() && page_cache::holds(&self.file, offset, len);
        cached.then_some(&self.file)
    }

    fn try_write(&self, offset: u64, data: &[u8], fua: bool) -> Result<bool, IoError> {
        if fua || self.direct.is_some() {
            return Ok(false);
        }
        self.check_end(offset, data.len(), IoError::NoSpace)?;
        let wanted = data.len();
        let written = self.nowait_writes.attempt(|| {
            pwritev2(
                &self.file,
                &[IoSlice::new(data)],
                offset,
                ReadWriteFlags::NOWAIT,
            )
        });
        match written {
            // A part is written once more by the write that may wait.
            Some(written) => Ok(written.is_ok_and(|count| count == wanted)),
            None if offset.is_multiple_of(PAGE) && (wanted as u64).is_multiple_of(PAGE) => {
                // Where the kernel can't tell, whole pages are written here all the same: they go to the page cache, and when it is
                // full the client is better slowed down than given a longer queue.
                self.write_all(offset, data).map(|()| true)
            }
            None => Ok(false),
        }
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), IoError> {
        self.check_end(offset, data.len(), IoError::NoSpace)?;
        self.write_all(offset, &data)?;
        self.sync_if(fua)
    }

    fn flush(&self) -> Result<(), IoError> {
        self.sync()
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError> {
        self.check_range(offset, len, IoError::Inval)?;
        self.extents.forget();
        match self.device {
            Some(device) => device
                .discard(&self.file, offset, len)
                .map_err(|error| self.report("discard in", error))?,
            // Trim is advice: storage that can't give space back has done all it can.
            None => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                self.allocate(flags, offset, len)?;
            }
        }
        self.sync_if(fua)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        may_trim: bool,
        fast: bool,
        fua: bool,
    ) -> Result<(), IoError> {
        self.check_range(offset, len, IoError::NoSpace)?;
        self.extents.forget();
        // A block device zeroes whole sectors by itself; what is left at both ends is less than one each.
        let [before, whole, behind] = match self.device {
            Some(device) => device.split(offset, len),
            None => [offset..offset, offset..offset + len, 0..0],
        };
        if !self.zero(&whole, may_trim, fast)? {
            if fast {
                return Err(IoError::NotSup);
            }
            self.write_zeros(whole)?;
        }
        self.write_zeros(before)?;
        self.write_zeros(behind)?;
        self.sync_if(fua)
    }

    fn block_status(
        &self,
        offset: u64,
        len: u64,
        max_extents: usize,
    ) -> Result<Vec<BlockExtent>, IoError> {
        self.check_range(offset, len, IoError::Inval)?;
        self.extents
            .find(&self.file, offset..offset + len, max_extents)
            .map_err(|error| self.report("find the holes of", error.into()))
    }

    fn cache(&self, offset: u64, len: u64) -> Result<(), IoError> {
        page_cache::prefetch(&self.file, offset, len)
            .map_err(|error| self.report("read ahead in", error))
    }

    fn resize(&self, new_size: u64) -> Result<(), IoError> {
        self.resize_to(new_size, true).map_err(|error| match error {
            ResizeError::System { source, .. } => self.report("resize", source),
            ResizeError::Zero | ResizeError::Unaligned { .. } => IoError::Inval,
            ResizeError::Shrinks { .. }
            | ResizeError::ReadOnly { .. }
            | ResizeError::Device { .. } => IoError::Perm,
        })
    }
}

#[cfg(test)]
mod tests;
