//! The file of an image with its lock, which ends when this does.

use std::fs::File;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// udev holds the lock of a block device for a moment when something has changed about it: so often it is asked for again.
const LOCK_TRIES: u32 = 20;
/// Time between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// An open file that is locked, if its file system can do that.
#[derive(Debug)]
pub(crate) struct LockedFile(File);

impl LockedFile {
    /// Locks `file`: shared with other readers, or alone. Tries for a second if it is a device.
    ///
    /// # Errors
    /// [`Errno::WOULDBLOCK`] if another has it. What else the system says only means that there are no locks here: it comes with the file.
    pub fn new(file: File, shared: bool, is_device: bool) -> Result<(Self, Option<Errno>), Errno> {
        let operation = if shared {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        let tries = if is_device { LOCK_TRIES } else { 1 };
        let mut outcome = flock(&file, operation);
        for _ in 1..tries {
            if outcome != Err(Errno::WOULDBLOCK) {
                break;
            }
            std::thread::sleep(LOCK_PAUSE);
            outcome = flock(&file, operation);
        }
        match outcome {
            Ok(()) => Ok((Self(file), None)),
            Err(Errno::WOULDBLOCK) => Err(Errno::WOULDBLOCK),
            Err(error) => Ok((Self(file), Some(error))),
        }
    }
}

impl Deref for LockedFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl AsFd for LockedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for LockedFile {
    /// To close the file would not do: a child process that this one has just forked has it, too, until it runs its program.
    fn drop(&mut self) {
        if let Err(error) = flock(&self.0, FlockOperation::Unlock) {
            tracing::debug!(%error, "an image can't be unlocked");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_lock_ends_although_a_forked_child_has_the_file_still() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, b"image").unwrap();
        let open = || LockedFile::new(File::open(&path).unwrap(), false, false);
        let (first, _) = open().unwrap();
        // What fork(2) leaves a child with: another descriptor of the same open file.
        let of_child = first.try_clone().unwrap();
        assert_eq!(open().unwrap_err(), Errno::WOULDBLOCK);
        drop(first);
        open().unwrap();
        drop(of_child);
    }
}
