//! The image of one disk: a raw file or a block device. Knows bytes and nothing of epochs.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use epoch_log::{Content, Extent, apply};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, ReadWriteFlags};

/// Why an image can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is no such file.
    #[error(
        "the image {path} does not exist; create it with `truncate -s 10G {path}` or `qemu-img create -f raw {path} 10G`",
        path = .path.display()
    )]
    Missing {
        /// The image.
        path: PathBuf,
    },
    /// The file is empty.
    #[error("the image {path} has no bytes; give it its size with `truncate -s 10G {path}`", path = .path.display())]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// Somebody else has it.
    #[error("the image {path} is in use by another server; two writers would destroy it", path = .path.display())]
    Locked {
        /// The image.
        path: PathBuf,
    },
    /// Neither a file nor a block device.
    #[error("the image {path} is neither a regular file nor a block device", path = .path.display())]
    Kind {
        /// The image.
        path: PathBuf,
    },
    /// The system refused.
    #[error("the image {path} can't be opened", path = .path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// An open image.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
    size: u64,
    identity: (u64, u64),
}

impl Image {
    /// Opens the image at `path`. It keeps the size that it has now.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, ImageError> {
        let failed = |source: io::Error| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::NotFound => ImageError::Missing { path },
                _ => ImageError::Open { path, source },
            }
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let kind = metadata.file_type();
        let (size, identity) = if kind.is_file() {
            (metadata.len(), (metadata.dev(), metadata.ino()))
        } else if kind.is_block_device() {
            (
                file.seek(SeekFrom::End(0)).map_err(failed)?,
                (0, metadata.rdev()),
            )
        } else {
            return Err(ImageError::Kind {
                path: path.to_owned(),
            });
        };
        if size == 0 {
            return Err(ImageError::Empty {
                path: path.to_owned(),
            });
        }
        let lock = if read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match flock(&file, lock) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(ImageError::Locked {
                    path: path.to_owned(),
                });
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the image can't be locked; see that no one else uses it");
            }
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
            identity,
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

    /// Fills `buf` from `offset`.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    /// Applies one extent: data, zeros or a trim.
    pub fn apply(&self, extent: &Extent<'_>) -> io::Result<()> {
        apply::apply_extent(&self.file, extent)
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

    /// Zeros or trims a range.
    pub fn clear(&self, offset: u64, len: u64, trim: bool) -> io::Result<()> {
        let content = if trim { Content::Trim } else { Content::Zero };
        self.apply(&Extent {
            disk: 0,
            offset,
            len,
            content,
        })
    }

    /// Makes everything written durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
