//! The socket at which a QEMU takes one more QMP client: somebody who watches the VM, beside the connection that drives it.
//!
//! It is made here and handed to QEMU, so that its mode is right from the first moment and its name goes with its owner. QEMU serves
//! one client of it at a time; the next one waits until that has left.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The extension of these sockets.
const EXTENSION: &str = "qmp";

/// The name in the file system; removed when this is dropped.
#[derive(Debug)]
pub(crate) struct WatchSocket {
    path: PathBuf,
}

/// QEMU's end.
#[derive(Debug)]
pub(crate) struct WatchListener(OwnedFd);

impl WatchSocket {
    /// Makes the socket of a QEMU whose other sockets are called `stem`, for its owner only.
    pub(crate) fn create(stem: &Path) -> Result<(Self, WatchListener)> {
        let path = stem.with_extension(EXTENSION);
        remove_stale(&path);
        let made = UnixListener::bind(&path).and_then(|listener| {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        });
        let listener = made.map_err(Error::file("make the socket", &path))?;
        Ok((WatchSocket { path }, WatchListener(listener.into())))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WatchSocket {
    fn drop(&mut self) {
        // A runtime directory that was removed in the meantime is fine.
        let _ = fs::remove_file(&self.path);
    }
}

impl WatchListener {
    pub(crate) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<WatchListener> for OwnedFd {
    fn from(listener: WatchListener) -> Self {
        listener.0
    }
}

/// Removes what killed processes have left beside `path`: sockets at which nobody listens.
fn remove_stale(path: &Path) {
    let Some(dir) = path.parent() else { return };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let old = entry.path();
        let is_ours = old
            .extension()
            .is_some_and(|extension| extension == EXTENSION);
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        // A QEMU that listens gets a client that leaves at once.
        if is_ours && UnixStream::connect(&old).is_err_and(refused) {
            let _ = fs::remove_file(&old);
        }
    }
}
