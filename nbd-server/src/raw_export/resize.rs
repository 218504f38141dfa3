//! Another size for a raw image that is being served.

use std::io::{self, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::RawExport;
use crate::image_file::Direct;

/// Why an image does not get another size. It has the size that it had.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// What lies beyond the new end would be lost, and that was not asked for.
    #[error(
        "the image {path} has {size} bytes: {asked} are less, and what lies beyond would be lost; \
         if that is meant, ask for it with --shrink",
        path = .path.display()
    )]
    Shrinks {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The size asked for.
        asked: u64,
    },
    /// A disk without a byte can't be served.
    #[error("an image can't have the size 0")]
    Zero,
    /// With O_DIRECT its last bytes could not be reached.
    #[error("{asked} bytes are no multiple of {block}, which direct = true needs for the image {path}", path = .path.display())]
    Unaligned {
        /// The image.
        path: PathBuf,
        /// The size asked for.
        asked: u64,
        /// Bytes of a block of its storage.
        block: u32,
    },
    /// The export may not be written.
    #[error("the image {path} is served read-only; serve it writable to resize it", path = .path.display())]
    ReadOnly {
        /// The image.
        path: PathBuf,
    },
    /// A block device has the size that it has.
    #[error(
        "the block device {path} has {size} bytes, not {asked}; resize the device itself first (lvextend, say), then ask for its size",
        path = .path.display()
    )]
    Device {
        /// The device.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The size asked for.
        asked: u64,
    },
    /// The system refused.
    #[error("the image {path} can't be given {asked} bytes; see that its file system has room for such a file", path = .path.display())]
    System {
        /// The image.
        path: PathBuf,
        /// The size asked for.
        asked: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl ResizeError {
    /// The storage failed, rather than the request being wrong.
    pub fn is_system(&self) -> bool {
        matches!(self, Self::System { .. })
    }
}

impl RawExport {
    /// Gives a regular file another size, durably; less than it has only if `shrink`. For a block device it takes notice of the
    /// size that the device has been given, which must be `asked`. Requests beyond the end fail from then on, also those of clients that
    /// were told more. May block.
    ///
    /// # Errors
    /// [`ResizeError`].
    pub fn resize_to(&self, asked: u64, shrink: bool) -> Result<(), ResizeError> {
        let _one_at_a_time = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let path = || self.path.clone();
        let size = self.size.load(Ordering::Acquire);
        if asked == 0 {
            return Err(ResizeError::Zero);
        }
        if asked == size {
            return Ok(());
        }
        if self.read_only {
            return Err(ResizeError::ReadOnly { path: path() });
        }
        if let Some(block) = self.direct.map(Direct::block)
            && !asked.is_multiple_of(block.into())
        {
            let path = path();
            return Err(ResizeError::Unaligned { path, asked, block });
        }
        if asked < size && !shrink {
            return Err(ResizeError::Shrinks {
                path: path(),
                size,
                asked,
            });
        }
        let system = |source| ResizeError::System {
            path: path(),
            asked,
            source,
        };
        if self.device.is_some() {
            // A shared file position is no one's: all other input and output names its offset.
            let size = (&*self.file).seek(SeekFrom::End(0)).map_err(system)?;
            if size != asked {
                return Err(ResizeError::Device {
                    path: path(),
                    size,
                    asked,
                });
            }
            self.size.store(asked, Ordering::Release);
            return Ok(());
        }
        self.extents.forget();
        if asked < size {
            // No further request may write beyond the new end while the file is cut.
            self.size.store(asked, Ordering::Release);
            self.shrunk.store(true, Ordering::Release);
        }
        let resized = self
            .cut_tail(size.min(asked))
            .and_then(|()| self.file.set_len(asked))
            .and_then(|()| self.file.sync_all());
        if let Err(error) = resized {
            self.size.store(size, Ordering::Release);
            return Err(system(error));
        }
        self.size.store(asked, Ordering::Release);
        Ok(())
    }

    /// Cuts off what a write that was under way while the file shrank has put beyond its end, so that nobody reads it later.
    fn cut_tail(&self, size: u64) -> io::Result<()> {
        if self.file.metadata()?.len() > size {
            self.file.set_len(size)?;
        }
        Ok(())
    }

    /// The image as the next one shall find it.
    pub(super) fn end(&self) {
        if self.shrunk.load(Ordering::Acquire)
            && let Err(error) = self.cut_tail(self.size.load(Ordering::Acquire))
        {
            tracing::warn!(path = %self.path.display(), %error, "the image may be longer than it should");
        }
    }
}
