//! The image of one disk: a raw file, a block device, or what a server has. Knows bytes and nothing of epochs.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::applier::log_clear;
use super::overlay::{Clear, Span};
use crate::export::BlockExtent;
use crate::image_file::{Access, Device, Extents, ImageFile, LockedFile};
use crate::page_cache;
use epoch_log::{Content, Extent, apply};
use rustix::io::{Errno, ReadWriteFlags, pwritev};

pub use crate::image_file::ImageError;

/// What a group needs of an image that is no file: one on a server, a simulator's.
pub trait RawImage: std::fmt::Debug + Send + Sync {
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// What the storage says.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes `parts` one behind the other from `offset` on.
    ///
    /// # Errors
    /// What the storage says; a part may be written then.
    fn write(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()>;

    /// Makes a range zeros.
    ///
    /// # Errors
    /// What the storage says; a part may be cleared then.
    fn zero(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes everything written durable.
    ///
    /// # Errors
    /// What the storage says; what is durable is not known then.
    fn sync(&self) -> io::Result<()>;

    /// Begins to write, as [`RawImage::write`]. What goes wrong is told by the next [`RawImage::sync`] at the latest.
    ///
    /// # Errors
    /// What the storage says.
    fn write_behind(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.write(offset, parts)
    }

    /// Gives a range back: what is read there afterwards is anything.
    ///
    /// # Errors
    /// What the storage says.
    fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        self.zero(offset, len)
    }

    /// Reads may have to wait for somebody.
    fn may_wait(&self) -> bool {
        false
    }

    /// What is wrong with the storage now, for people.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// Where the bytes are.
#[derive(Debug)]
enum Bytes {
    File {
        file: LockedFile,
        /// Set for a block device.
        device: Option<Device>,
        extents: Extents,
    },
    Raw(Arc<dyn RawImage>),
}

/// An open image.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    bytes: Bytes,
    size: u64,
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
            bytes: Bytes::File {
                file: image.file,
                device: image.device,
                extents: Extents::default(),
            },
            size: image.size,
            identity: image.identity,
        })
    }

    /// An image of `size` bytes that is no file. `number` tells it from others.
    pub fn raw(name: &str, number: u64, size: u64, image: Arc<dyn RawImage>) -> Self {
        Self {
            path: name.into(),
            bytes: Bytes::Raw(image),
            size,
            identity: (0, number),
        }
    }

    /// An image of `size` bytes on a server.
    pub(crate) fn remote(
        url: &Path,
        identity: (u64, u64),
        size: u64,
        image: Arc<dyn RawImage>,
    ) -> Self {
        Self {
            path: url.to_owned(),
            bytes: Bytes::Raw(image),
            size,
            identity,
        }
    }

    /// What is wrong with its storage now, for people.
    pub fn trouble(&self) -> Option<String> {
        match &self.bytes {
            Bytes::File { .. } => None,
            Bytes::Raw(image) => image.trouble(),
        }
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
        let file = match &self.bytes {
            Bytes::File { file, .. } => file,
            Bytes::Raw(image) if image.may_wait() => return Ok(false),
            Bytes::Raw(image) => return image.read(offset, buf).map(|()| true),
        };
        let want = buf.len();
        match rustix::io::preadv2(
            file,
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
        match &self.bytes {
            Bytes::File { file, .. } => page_cache::holds(file, offset, len).then_some(file),
            Bytes::Raw(_) => None,
        }
    }

    /// Begins to read a range into the page cache.
    pub fn cache(&self, offset: u64, len: u64) -> io::Result<()> {
        match &self.bytes {
            Bytes::File { file, .. } => page_cache::prefetch(file, offset, len),
            Bytes::Raw(_) => Ok(()),
        }
    }

    /// Fills `buf` from `offset`.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match &self.bytes {
            Bytes::File { file, .. } => file.read_exact_at(buf, offset),
            Bytes::Raw(image) => image.read(offset, buf),
        }
    }

    /// Applies one extent: data, zeros or a trim.
    pub fn apply(&self, extent: &Extent<'_>) -> io::Result<()> {
        let (file, device) = match &self.bytes {
            Bytes::File { file, device, .. } => (file, device),
            Bytes::Raw(image) => {
                return match extent.content {
                    Content::Data(data) => image.write(extent.offset, &[data]),
                    Content::Trim => image.trim(extent.offset, extent.len),
                    Content::Zero | Content::Hole => image.zero(extent.offset, extent.len),
                };
            }
        };
        let Some(device) = device else {
            return apply::apply_extent(file, extent);
        };
        match extent.content {
            Content::Data(_) => apply::apply_extent(file, extent),
            Content::Trim => device.discard(file, extent.offset, extent.len),
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
                        apply::apply_extent(file, &part)
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

    /// Writes `parts`, at most 1024, one behind the other from `offset` on. They are used up. On a server errors may come from the next
    /// [`Image::sync`] only.
    pub fn write_vectored(&self, mut offset: u64, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let file = match &self.bytes {
            Bytes::File { file, .. } => file,
            Bytes::Raw(image) => {
                let parts: Vec<&[u8]> = parts.iter().map(|part| &**part).collect();
                return image.write_behind(offset, &parts);
            }
        };
        while !parts.is_empty() {
            match pwritev(file, parts, offset) {
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
        if let Bytes::File { file, .. } = &self.bytes {
            page_cache::begin_writeback(file, offset, len);
        }
    }

    /// Clears a range.
    pub fn clear(&self, offset: u64, len: u64, clear: Clear) -> io::Result<()> {
        if let Bytes::File { extents, .. } = &self.bytes {
            extents.forget();
        }
        self.apply(&Extent {
            disk: 0,
            offset,
            len,
            content: log_clear(clear),
        })
    }

    /// Where a range has data and where it has holes, as far as the file system can tell: at most `max` extents.
    pub fn extents(&self, span: Span, max: usize) -> io::Result<Vec<BlockExtent>> {
        match &self.bytes {
            Bytes::File { file, extents, .. } => {
                Ok(extents.find(file, span.start..span.end, max)?)
            }
            Bytes::Raw(_) => Ok(vec![BlockExtent {
                len: span.end - span.start,
                hole: false,
                zero: false,
            }]),
        }
    }

    /// Makes everything written durable.
    pub fn sync(&self) -> io::Result<()> {
        match &self.bytes {
            Bytes::File { file, .. } => file.sync_data(),
            Bytes::Raw(image) => image.sync(),
        }
    }
}
