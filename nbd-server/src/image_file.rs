//! Opens a raw image, a regular file or a block device, for one server alone: what makes no sense is refused, and the image is locked. It
//! knows no exports, no groups and no epochs.

mod device;
mod direct;
mod extents;
mod locked;

use std::fs::{FileType, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::storage::Place;

pub(crate) use device::Device;
pub(crate) use direct::Direct;
pub(crate) use extents::Extents;
pub(crate) use locked::LockedFile;

/// Why an image can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is nothing at the path.
    #[error(
        "the image {path} does not exist; create it with: qemu-img create -f raw {path} 10G  (or: truncate -s 10G {path})"
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
    /// It lies on a server, and can't be had from there.
    #[error("cannot use the image {url}")]
    Server {
        /// Its URL.
        url: PathBuf,
        /// What the server or the system said.
        #[source]
        source: io::Error,
    },
    /// It lies on a server, where only groups have their images.
    #[error(
        "the image {url} lies on a server: such images are served in groups only; make it the disk of a [[group]] in sync mode"
    )]
    GroupsOnly {
        /// Its URL.
        url: PathBuf,
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
    /// It can't be read past the page cache.
    #[error(
        "the image {path} can't be opened with direct = true: its file system has no O_DIRECT; put it elsewhere, or serve it without"
    )]
    NoDirect {
        /// The image's path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// With O_DIRECT its last bytes could not be reached.
    #[error(
        "the image {path} has {size} bytes, which is no multiple of the {block} that direct = true needs; \
         make it longer (qemu-img resize, truncate), or serve it without"
    )]
    Unaligned {
        /// The image's path.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// Bytes of a block of its storage.
        block: u32,
    },
    /// Another process (or another export) has it.
    #[error("the image {path} is in use by another server; two writers would destroy it")]
    Locked {
        /// The image's path.
        path: PathBuf,
    },
    /// The system itself uses the block device, or another writer has it.
    #[error(
        "the block device {path} is in use: it is mounted, swap, part of a volume or an array, or served already; two writers would \
         destroy it, so release it first, or serve it read-only"
    )]
    DeviceInUse {
        /// The device's path.
        path: PathBuf,
    },
}

/// How an image is opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Access {
    /// It will not be written.
    pub read_only: bool,
    /// Past the page cache (`O_DIRECT`).
    pub direct: bool,
}

/// An open image, locked as long as its file is open: alone if it may be written, else shared.
#[derive(Debug)]
pub(crate) struct ImageFile {
    pub file: LockedFile,
    pub path: PathBuf,
    /// In bytes, when it was opened.
    pub size: u64,
    /// What tells it from all other images on the machine.
    pub identity: (u64, u64),
    /// Set for a block device.
    pub device: Option<Device>,
    /// Set for an access past the page cache.
    pub direct: Option<Direct>,
}

impl ImageFile {
    /// Opens the image at `path`. May wait for a second for a block device that is just being looked at.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn open(path: &Path, access: Access) -> Result<Self, ImageError> {
        let path = path.to_owned();
        if Place::is_url(&path) {
            return Err(ImageError::GroupsOnly { url: path });
        }
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => ImageError::Missing { path: path.clone() },
            _ => ImageError::Open {
                path: path.clone(),
                access: access.name(),
                source,
            },
        };
        // Before it is opened: to open a pipe would wait for its other end.
        let kind = std::fs::metadata(&path).map_err(failed)?.file_type();
        if !is_image(kind) {
            return Err(ImageError::NotAnImage { path });
        }
        let mut file = match access.options(kind).open(&path) {
            Ok(file) => file,
            Err(error) if kind.is_block_device() && error.raw_os_error() == Some(libc::EBUSY) => {
                return Err(ImageError::DeviceInUse { path });
            }
            Err(source) if access.direct && source.raw_os_error() == Some(libc::EINVAL) => {
                return Err(ImageError::NoDirect { path, source });
            }
            Err(error) => return Err(failed(error)),
        };
        let metadata = file.metadata().map_err(failed)?;
        let kind = metadata.file_type();
        // Somebody may have put another thing there meanwhile.
        if !is_image(kind) {
            return Err(ImageError::NotAnImage { path });
        }
        // The end of a block device is its size, which its metadata doesn't say.
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if size == 0 {
            return Err(ImageError::Empty { path });
        }
        let device = kind.is_block_device().then(|| Device::of(&file));
        let device = device.transpose().map_err(failed)?;
        let direct = match (access.direct, device) {
            (false, _) => None,
            (true, Some(device)) => Some(Direct::with_block(device.sector())),
            (true, None) => match Direct::probe(&file) {
                Ok(direct) => Some(direct),
                Err(source) => return Err(ImageError::NoDirect { path, source }),
            },
        };
        if let Some(block) = direct.map(Direct::block)
            && !size.is_multiple_of(block.into())
        {
            return Err(ImageError::Unaligned { path, size, block });
        }
        let Ok((file, unlocked)) = LockedFile::new(file, access.read_only, device.is_some()) else {
            return Err(ImageError::Locked { path });
        };
        if let Some(error) = unlocked {
            tracing::warn!(path = %path.display(), %error, "the image can't be locked here; see that no other server uses it");
        }
        Ok(Self {
            file,
            path,
            size,
            identity: identity(&metadata),
            device,
            direct,
        })
    }
}

impl Access {
    fn name(self) -> &'static str {
        if self.read_only {
            "reading"
        } else {
            "reading and writing"
        }
    }

    fn options(self, kind: FileType) -> OpenOptions {
        let mut flags = 0;
        if self.direct {
            flags |= libc::O_DIRECT;
        }
        // A claim on the device: it fails while the system uses it, and keeps the system from using it afterwards (open(2)).
        if kind.is_block_device() && !self.read_only {
            flags |= libc::O_EXCL;
        }
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(!self.read_only)
            .custom_flags(flags);
        options
    }
}

fn is_image(kind: FileType) -> bool {
    kind.is_file() || kind.is_block_device()
}

/// What tells a file from all others on the machine: device and inode; for a block device its number.
pub(crate) fn identity(metadata: &Metadata) -> (u64, u64) {
    if metadata.file_type().is_block_device() {
        (0, metadata.rdev())
    } else {
        (metadata.dev(), metadata.ino())
    }
}
