//! A raw image file or block device as an export in sync mode: writes go through to the image, FLUSH and FUA are fdatasync(2). It knows
//! no epochs, no groups and no wire.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, fdatasync, flock};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};

use crate::export::{Export, ExportInfo, IoError};

/// A write of whole pages need not read what is around it, so that it only copies into the page cache.
const PAGE: u64 = 4096;
/// Zeros per write where the storage can't make them by itself.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// Why an image can't be served.
#[derive(Debug, thiserror::Error)]
pub enum RawExportError {
    /// There is nothing at the path.
    #[error(
        "there is no image at {path}; create one with: qemu-img create -f raw {path} 10G  (or: truncate -s 10G {path})"
    )]
    Missing {
        /// The image's path.
        path: PathBuf,
    },
    /// It can't be opened.
    #[error("cannot open the image {path} for {access}")]
    Open {
        /// The image's path.
        path: PathBuf,
        /// "reading" or "reading and writing".
        access: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A directory, a pipe or the like.
    #[error("{path} is neither a regular file nor a block device")]
    NotAnImage {
        /// The image's path.
        path: PathBuf,
    },
    /// A disk without a byte can't be served.
    #[error("the image {path} is empty; give it a size with: truncate -s 10G {path}")]
    Empty {
        /// The image's path.
        path: PathBuf,
    },
    /// Another process (or another export) has it.
    #[error("the image {path} is in use by another server; two writers would destroy it")]
    Locked {
        /// The image's path.
        path: PathBuf,
    },
}

/// A raw image. All its connections share one: each attachment is a clone of the `Arc` around it.
#[derive(Debug)]
pub struct RawExport {
    file: File,
    path: PathBuf,
    size: u64,
    read_only: bool,
    /// The file system can't say whether a read or a write would block.
    nowait_unsupported: AtomicBool,
    /// An fdatasync has failed: the kernel may have dropped written pages, and a later success would be a lie.
    sync_failed: AtomicBool,
}

impl RawExport {
    /// Opens an image and locks it, against other servers, as long as this lives: alone if it may be written, else shared.
    ///
    /// # Errors
    /// When the image is missing, empty, in use, no image, or can't be opened.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, RawExportError> {
        let path = path.to_owned();
        let access = if read_only {
            "reading"
        } else {
            "reading and writing"
        };
        let mut file = match OpenOptions::new().read(true).write(!read_only).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RawExportError::Missing { path });
            }
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                return Err(RawExportError::NotAnImage { path });
            }
            Err(source) => {
                return Err(RawExportError::Open {
                    path,
                    access,
                    source,
                });
            }
        };
        let kind = file.metadata().map(|metadata| metadata.file_type());
        // The end of a block device is its size, which its metadata doesn't say.
        let found = kind.and_then(|kind| {
            let image = kind.is_file() || kind.is_block_device();
            if image {
                file.seek(SeekFrom::End(0)).map(Some)
            } else {
                Ok(None)
            }
        });
        let size = match found {
            Ok(Some(0)) => return Err(RawExportError::Empty { path }),
            Ok(Some(size)) => size,
            Ok(None) => return Err(RawExportError::NotAnImage { path }),
            Err(source) => {
                return Err(RawExportError::Open {
                    path,
                    access,
                    source,
                });
            }
        };
        let lock = if read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match flock(&file, lock) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(RawExportError::Locked { path }),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the image can't be locked here; see that no other server uses it");
            }
        }
        Ok(Self {
            file,
            path,
            size,
            read_only,
            nowait_unsupported: AtomicBool::new(false),
            sync_failed: AtomicBool::new(false),
        })
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

    /// `None`: this file system can't tell.
    fn unless_waiting(
        &self,
        io: impl FnOnce() -> Result<usize, Errno>,
    ) -> Option<Result<usize, Errno>> {
        if self.nowait_unsupported.load(Ordering::Relaxed) {
            return None;
        }
        match io() {
            Err(Errno::OPNOTSUPP) => {
                self.nowait_unsupported.store(true, Ordering::Relaxed);
                None
            }
            other => Some(other),
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

impl Export for RawExport {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            read_only: self.read_only,
            description: "raw image, sync mode".into(),
            ..ExportInfo::full(self.size)
        }
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, IoError> {
        let wanted = buf.len();
        let read = self.unless_waiting(|| {
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
        self.file
            .read_exact_at(buf, offset)
            .map_err(|error| self.report("read", error))
    }

    fn try_write(&self, offset: u64, data: &Bytes, fua: bool) -> Result<bool, IoError> {
        if fua {
            return Ok(false);
        }
        let wanted = data.len();
        let written = self.unless_waiting(|| {
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
                self.write(offset, data.clone(), false).map(|()| true)
            }
            None => Ok(false),
        }
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), IoError> {
        self.file
            .write_all_at(&data, offset)
            .map_err(|error| self.report("write", error))?;
        self.sync_if(fua)
    }

    fn flush(&self) -> Result<(), IoError> {
        self.sync()
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError> {
        // Trim is advice: storage that can't give space back has done all it can.
        self.allocate(
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            offset,
            len,
        )?;
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
        let keep = FallocateFlags::KEEP_SIZE;
        let done = (may_trim && self.allocate(FallocateFlags::PUNCH_HOLE | keep, offset, len)?)
            || self.allocate(FallocateFlags::ZERO_RANGE | keep, offset, len)?;
        if !done {
            if fast {
                return Err(IoError::NotSup);
            }
            let mut at = offset;
            while at < offset + len {
                let left = usize::try_from(offset + len - at).unwrap_or(usize::MAX);
                let zeros = ZEROS.get(..left).unwrap_or(&ZEROS);
                self.file
                    .write_all_at(zeros, at)
                    .map_err(|error| self.report("write", error))?;
                at += zeros.len() as u64;
            }
        }
        self.sync_if(fua)
    }
}

#[cfg(test)]
#[path = "raw_export_tests.rs"]
mod tests;
