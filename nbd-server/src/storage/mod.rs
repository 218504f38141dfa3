//! Storage below that is not this machine's: images and logs on an NFS server without a mount, images behind another NBD server. It yields an
//! [`Image`] or a [`Storage`], and nobody else knows where they lie. Files and block devices are opened
//! elsewhere ([`Image::open`], [`epoch_log::storage::directory`]) and never pass through here.
//!
//! ```text
//!   image, nfs::dir ─▶ volume (what is not flushed is kept) ─▶ remote (nfs::file, nbd) ─▶ link (one connection, made again) ─▶ stream
//! ```
//!
//! Beside that, [`objects`] is storage for whole objects, a directory or a bucket: backups lie there.
//!
//! A server that stalls, restarts or loses an export: requests wait and are sent again, see `docs/storage.md`.

mod image;
mod kept;
mod link;
mod nbd;
mod nfs;
pub mod objects;
mod place;
mod remote;
mod stream;
mod volume;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;
use std::sync::Arc;

use epoch_log::LogError;
use epoch_log::storage::Storage;

use crate::group::{Image, ImageError};
pub use place::{NbdAddress, NbdPlace, NfsPlace, Place, PlaceError};

/// Opens the image that a configuration names: a path, or the URL of a server.
///
/// # Errors
/// [`ImageError`]
pub fn open_image(text: &Path, read_only: bool) -> Result<Image, ImageError> {
    let failed = |source: io::Error| ImageError::Server {
        url: text.to_owned(),
        source,
    };
    let place = Place::parse(text).map_err(|error| failed(io::Error::other(error)))?;
    // The log keeps the second number, so it must be the same each time.
    let named = place.server().unwrap_or_default();
    match place {
        Place::Path(path) => Image::open(&path, read_only),
        Place::Nfs(place) => {
            let opened = nfs::open_image(&place, read_only).map_err(failed)?;
            if opened.size == 0 {
                return Err(failed(io::Error::other("the image is empty")));
            }
            let mut server = DefaultHasher::new();
            (&place.host, place.port, opened.file.0).hash(&mut server);
            let identity = (server.finish(), opened.file.1);
            Ok(Image::remote(text, identity, opened.size, opened.image))
        }
        Place::Nbd(place) => {
            let export = nbd::NbdExport::open(&place, read_only).map_err(failed)?;
            let size = export.size();
            let image = Arc::new(image::RemoteImage::new(export, read_only));
            Ok(Image::remote(text, named, size, image))
        }
    }
}

/// The directory of the log that a configuration names: a path, or a URL of an NFS server.
///
/// # Errors
/// [`LogError`]
pub fn open_log(text: &Path) -> Result<Arc<dyn Storage>, LogError> {
    let failed = |source: io::Error| LogError::Io {
        action: "open",
        path: text.to_owned(),
        source,
    };
    match Place::parse(text).map_err(|error| failed(io::Error::other(error)))? {
        Place::Path(path) => Ok(epoch_log::storage::directory(&path)),
        Place::Nfs(place) => nfs::open_dir(&place).map_err(failed),
        Place::Nbd(_) => Err(failed(io::Error::other(
            "a log is a directory of files, which an NBD server has not; put it on a disk of this machine or on nfs://",
        ))),
    }
}
