//! The only place that changes files of a log: create, write, sync, truncate, rename, remove.
//! Knows nothing of what the bytes mean. Tests watch and fail these calls to try every crash and every error.

use std::{
    fs::File,
    io::{self, IoSlice},
    num::NonZeroU64,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::{Advice, FallocateFlags, fadvise, fallocate},
    io::{Errno, pwritev},
};

#[cfg(test)]
use crate::faults::{self, Op};

/// Most slices in one `pwritev` (Linux: `UIO_MAXIOV`).
const MAX_SLICES: usize = 1024;

/// What a bad sector makes unreadable: the page cache reads no less than this.
const READ_BLOCK: u64 = 4096;

/// The directory of a log.
#[derive(Debug)]
pub(crate) struct LogDir {
    path: PathBuf,
    handle: File,
}

impl LogDir {
    /// Opens the directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            handle: File::open(path)?,
        })
    }

    /// Makes the directory durable if it is not there, with all that leads to it.
    pub fn create(path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            Self::create(parent)?;
        }
        match std::fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Err(_) | Ok(()) => {}
        }
        File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()
    }

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates an empty file, in place of one that may be there.
    pub fn create_file(&self, name: &str) -> io::Result<LogFile> {
        #[cfg(test)]
        faults::observe(|| Op::Create {
            name: name.to_owned(),
        })?;
        let path = self.path.join(name);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        Ok(LogFile::new(name, file))
    }

    /// Opens a file for reading and writing.
    pub fn open_file(&self, name: &str) -> io::Result<LogFile> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(self.path.join(name))?;
        Ok(LogFile::new(name, file))
    }

    /// Opens a file for reading only.
    pub fn open_file_read_only(&self, name: &str) -> io::Result<LogFile> {
        Ok(LogFile::new(name, File::open(self.path.join(name))?))
    }

    /// Gives `file` another name.
    pub fn rename(&self, file: &mut LogFile, to: &str) -> io::Result<()> {
        #[cfg(test)]
        faults::observe(|| Op::Rename {
            from: file.name.clone(),
            to: to.to_owned(),
        })?;
        std::fs::rename(self.path.join(&file.name), self.path.join(to))?;
        to.clone_into(&mut file.name);
        Ok(())
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        #[cfg(test)]
        faults::observe(|| Op::Remove {
            name: name.to_owned(),
        })?;
        std::fs::remove_file(self.path.join(name))
    }

    /// Makes names durable.
    pub fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        faults::observe(|| Op::SyncDir)?;
        self.handle.sync_all()
    }

    /// Names of all files, in no order.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            // Names that are not UTF-8 are none of ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }
}

/// An open file of a log.
#[derive(Debug)]
pub(crate) struct LogFile {
    name: String,
    file: File,
    /// Where the last block ends that could not be read; 0 if all could.
    unreadable_end: AtomicU64,
}

impl LogFile {
    fn new(name: &str, file: File) -> Self {
        Self {
            name: name.to_owned(),
            file,
            unreadable_end: AtomicU64::new(0),
        }
    }

    /// Name in the directory.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the last block ends that could not be read so far.
    pub fn unreadable_end(&self) -> Option<u64> {
        Some(self.unreadable_end.load(Ordering::Relaxed)).filter(|end| *end > 0)
    }

    /// Length in bytes.
    pub fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Fills `buffer` as far as the file goes; returns how much that is. Blocks that the disk can't read come as zeros: their
    /// checksums don't match then, and what has a second copy is read from that.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.read_plain(buffer, offset) {
            Err(error) if is_unreadable(&error) => {}
            other => return other,
        }
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let to_boundary = READ_BLOCK - at % READ_BLOCK;
            let end = done.saturating_add(usize::try_from(to_boundary).unwrap_or(usize::MAX));
            let end = end.min(buffer.len());
            let Some(block) = buffer.get_mut(done..end) else {
                break;
            };
            match self.read_plain(block, at) {
                Ok(got) if got < block.len() => return Ok(done + got),
                Ok(_) => {}
                Err(error) if is_unreadable(&error) => {
                    tracing::warn!(
                        file = self.name,
                        offset = at,
                        "the disk can't read a block of the epoch log"
                    );
                    block.fill(0);
                    let end = at + block.len() as u64;
                    self.unreadable_end.fetch_max(end, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
            done = end;
        }
        Ok(done)
    }

    fn read_plain(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        #[cfg(test)]
        faults::check_readable(offset, buffer.len())?;
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Writes all slices one after another from `offset` on.
    pub fn write_at(&self, mut slices: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        #[cfg(test)]
        faults::observe_write(&self.file, &self.name, offset, slices)?;
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            let batch = slices
                .get(..slices.len().min(MAX_SLICES))
                .unwrap_or_default();
            let written = match pwritev(&self.file, batch, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            offset += written as u64;
            IoSlice::advance_slices(&mut slices, written);
        }
        Ok(())
    }

    /// Begins to bring a range that was written to the disk, without waiting, so that a sync has less to wait for. Nobody reads it
    /// soon: the page cache need not keep it.
    pub fn begin_writeback(&self, offset: u64, len: u64) {
        // A hint: where it does not work, the sync does it all.
        let _ = fadvise(&self.file, offset, NonZeroU64::new(len), Advice::DontNeed);
    }

    /// Makes the content durable, with what is needed to find it.
    pub fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        faults::observe(|| Op::Sync {
            name: self.name.clone(),
        })?;
        self.file.sync_data()
    }

    /// Cuts the file to `len` bytes, durably.
    pub fn truncate(&self, len: u64) -> io::Result<()> {
        #[cfg(test)]
        faults::observe(|| Op::Truncate {
            name: self.name.clone(),
            len,
        })?;
        self.file.set_len(len)?;
        self.sync()
    }

    /// Makes the file hold `len` bytes of disk space, where the file system can promise that.
    pub fn allocate(&self, len: u64) -> io::Result<()> {
        match fallocate(&self.file, FallocateFlags::empty(), 0, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether an error only says that there is no room; all others leave the file in doubt.
pub(crate) fn means_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::IO.raw_os_error())
}
