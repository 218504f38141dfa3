//! The file into which QEMU writes its devices: memory without a name, which QEMU gets as an inherited descriptor
//! (`-add-fd`) and opens as `/dev/fdset/N`. Nothing of it is left when both processes are gone, and no directory has to be
//! on a tmpfs for it.
//!
//! QEMU truncates it at each save. It does not move the offset of the descriptor, which it shares with us: that is done
//! here, before each save.
//!
//! It is read by one call into a buffer and not mapped: a mapping of a file that another process truncates can end this
//! process by a SIGBUS, and to copy 13 to 60 KB takes about 10 µs.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};

use super::STREAM_LIMIT;

/// Number of the descriptor set in QEMU. High, so that it is not one of the user's own.
const SET: u32 = 1_395_000_001;

/// What QEMU is told to open.
pub(super) fn path_in_qemu() -> String {
    format!("/dev/fdset/{SET}")
}

/// The value of `-add-fd` for a descriptor that QEMU inherits under the number `fd`.
pub(crate) fn add_fd(fd: i32) -> String {
    format!("fd={fd},set={SET}")
}

/// The file, as this process sees it.
#[derive(Debug)]
pub(crate) struct SaveFile {
    content: File,
    /// Write-only, as QEMU asks for. Shares its offset with QEMU's.
    writer: File,
}

impl SaveFile {
    /// Makes the file, empty.
    pub(crate) fn create() -> io::Result<Self> {
        let content = File::from(memfd_create("epochgate-device-state", MemfdFlags::CLOEXEC)?);
        // QEMU takes a descriptor from a set only if it has the very access mode that is asked for.
        let again = format!("/proc/self/fd/{}", content.as_raw_fd());
        let writer = OpenOptions::new().write(true).open(again)?;
        Ok(SaveFile { content, writer })
    }

    /// A descriptor for QEMU to inherit.
    pub(crate) fn for_qemu(&self) -> io::Result<OwnedFd> {
        self.writer.try_clone().map(OwnedFd::from)
    }

    /// To be called before each save, when no other is under way.
    pub(super) fn rewind(&self) -> io::Result<()> {
        (&self.writer).seek(SeekFrom::Start(0)).map(drop)
    }

    /// All that QEMU has written.
    pub(super) fn read(&self) -> io::Result<Vec<u8>> {
        let length = self.content.metadata()?.len();
        if length >= STREAM_LIMIT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let length =
            usize::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let mut content = vec![0; length];
        self.content.read_exact_at(&mut content, 0)?;
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::io::Write;

    #[test]
    fn each_save_replaces_the_one_before() {
        let file = SaveFile::create().unwrap();
        let mut qemu = File::from(file.for_qemu().unwrap());
        for content in [&b"the first"[..], b"2nd", b""] {
            file.rewind().unwrap();
            qemu.set_len(0).unwrap();
            qemu.write_all(content).unwrap();
            assert_eq!(file.read().unwrap(), content);
        }
    }
}
