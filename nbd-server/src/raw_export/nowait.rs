//! Whether a file system can say that a read or a write would block. Reads and writes each have their own answer: ext4 can
//! say it of reads from the page cache, and not of writes into it.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

/// What is known of one direction.
#[derive(Debug, Default)]
pub(super) struct Nowait {
    unsupported: AtomicBool,
}

impl Nowait {
    /// Runs a call with `RWF_NOWAIT`. `None`: the file system can't tell, and is not asked again.
    pub(super) fn attempt(
        &self,
        call: impl FnOnce() -> Result<usize, Errno>,
    ) -> Option<Result<usize, Errno>> {
        if self.unsupported.load(Ordering::Relaxed) {
            return None;
        }
        match call() {
            Err(Errno::OPNOTSUPP) => {
                self.unsupported.store(true, Ordering::Relaxed);
                None
            }
            other => Some(other),
        }
    }
}
