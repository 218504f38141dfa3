//! Files on an NFS server without a mount (NFS version 3, RFC 1813): an image, the directory of a log. What is lost when the server restarts
//! between a write and a commit is told by its write verifier; to write that again is the business of [`super::volume`].

mod dir;
mod file;
mod lock;
mod rpc;
mod server;

use std::io;
use std::sync::Arc;

use epoch_log::storage::Storage;

use super::image::RemoteImage;
use super::place::NfsPlace;
use crate::group::RawImage;
use dir::NfsDir;
use file::NfsFile;
use lock::{LockError, NfsLock};
use server::Server;

/// An image on a server.
pub(super) struct Opened {
    pub image: Arc<dyn RawImage>,
    /// In bytes.
    pub size: u64,
    /// File system and file, as the server numbers them.
    pub file: (u64, u64),
}

/// The lock file of an image.
fn lock_of(name: &str) -> String {
    format!("{name}.epochgate-lock")
}

/// Opens an image, and locks it if it may be written.
///
/// # Errors
/// When the server can't be reached, the file is not there or is no file, or somebody else has it.
pub(super) fn open_image(place: &NfsPlace, read_only: bool) -> io::Result<Opened> {
    let server = Server::open(place, false)?;
    let (dir, name) = place.path.rsplit_once('/').unwrap_or(("", &place.path));
    let dir = if dir.is_empty() { "/" } else { dir };
    let file = NfsFile::find(&server, &place.path)?;
    file.check_access(read_only)?;
    let lock = match read_only {
        true => None,
        false => {
            let lock = NfsLock::take(&server, dir, &lock_of(name), place.break_lock.as_deref());
            Some(lock.map_err(LockError::into_io)?)
        }
    };
    let (size, ids) = (file.first_size(), file.ids());
    Ok(Opened {
        image: Arc::new(RemoteImage::new(file.with_lock(lock), read_only)),
        size,
        file: ids,
    })
}

/// The directory of a log.
///
/// # Errors
/// When the server can't be reached, or exports nothing on the way to the directory.
pub(super) fn open_dir(place: &NfsPlace) -> io::Result<Arc<dyn Storage>> {
    let server = Server::open(place, true)?;
    Ok(Arc::new(NfsDir::new(server, place)))
}
