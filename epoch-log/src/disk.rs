//! The only place that changes files of a log: create, write, sync, truncate, rename, remove.
//! Knows nothing of what the bytes mean. Tests watch and fail these calls to try every crash and every error.

use std::{
    io::{self, IoSlice},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use rustix::io::Errno;

use crate::LogError;
#[cfg(test)]
use crate::faults::{self, Op};
use crate::storage::{Directory, Storage, StorageFile, StorageLock};

/// What a bad sector makes unreadable: the page cache reads no less than this.
const READ_BLOCK: u64 = 4096;

/// The directory of a log.
#[derive(Debug)]
pub(crate) struct LogDir {
    storage: Arc<dyn Storage>,
}

impl LogDir {
    /// Opens the directory at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let directory = Directory::at(path);
        directory.handle()?;
        Ok(Self::on(Arc::new(directory)))
    }

    /// The directory `storage`.
    pub fn on(storage: Arc<dyn Storage>) -> Self {
        Self { storage }
    }

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        self.storage.path()
    }

    /// Takes it for one log alone, until the lock is dropped.
    pub fn lock(&self) -> Result<Box<dyn StorageLock>, LogError> {
        self.storage.lock()
    }

    /// Bytes that were never given out before.
    pub fn random(&self) -> [u8; 16] {
        self.storage.random()
    }

    /// Creates an empty file, in place of one that may be there.
    pub fn create_file(&self, name: &str) -> io::Result<LogFile> {
        #[cfg(test)]
        faults::observe(|| Op::Create {
            name: name.to_owned(),
        })?;
        Ok(LogFile::new(name, self.storage.create(name)?))
    }

    /// Opens a file for reading and writing.
    pub fn open_file(&self, name: &str) -> io::Result<LogFile> {
        Ok(LogFile::new(name, self.storage.open(name, true)?))
    }

    /// Opens a file for reading only.
    pub fn open_file_read_only(&self, name: &str) -> io::Result<LogFile> {
        Ok(LogFile::new(name, self.storage.open(name, false)?))
    }

    /// Gives `file` another name.
    pub fn rename(&self, file: &mut LogFile, to: &str) -> io::Result<()> {
        #[cfg(test)]
        faults::observe(|| Op::Rename {
            from: file.name.clone(),
            to: to.to_owned(),
        })?;
        self.storage.rename(&file.name, to)?;
        to.clone_into(&mut file.name);
        Ok(())
    }

    /// Makes `text` all that a small file holds, durably: it is written under another name first, so that there never is half of it.
    pub fn replace(&self, name: &str, text: &str) -> io::Result<()> {
        let mut file = self.create_file(&format!("{name}.new"))?;
        file.write_at(&mut [IoSlice::new(text.as_bytes())], 0)?;
        file.sync()?;
        self.rename(&mut file, name)?;
        self.sync()
    }

    /// What a small file holds, up to `most` bytes of it. None: it is not there.
    pub fn read_text(&self, name: &str, most: usize) -> io::Result<Option<String>> {
        let file = match self.open_file_read_only(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let len = usize::try_from(file.len()?).unwrap_or(most).min(most);
        let mut bytes = vec![0; len];
        let got = file.read_at(&mut bytes, 0)?;
        bytes.truncate(got);
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        #[cfg(test)]
        faults::observe(|| Op::Remove {
            name: name.to_owned(),
        })?;
        self.storage.remove(name)
    }

    /// Makes names durable.
    pub fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        faults::observe(|| Op::SyncDir)?;
        self.storage.sync()
    }

    /// Names of all files, in no order.
    pub fn names(&self) -> io::Result<Vec<String>> {
        self.storage.names()
    }

    /// Length of a file in bytes.
    pub fn file_len(&self, name: &str) -> io::Result<u64> {
        self.open_file_read_only(name)?.len()
    }

    /// When a file was last written, where that is known.
    pub fn modified(&self, name: &str) -> io::Result<SystemTime> {
        self.storage.modified(name)
    }
}

/// An open file of a log.
#[derive(Debug)]
pub(crate) struct LogFile {
    name: String,
    file: Box<dyn StorageFile>,
    /// Where the last block ends that could not be read; 0 if all could.
    unreadable_end: AtomicU64,
}

impl LogFile {
    fn new(name: &str, file: Box<dyn StorageFile>) -> Self {
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
        self.file.size()
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
    pub fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        faults::observe_write(self.file.as_ref(), &self.name, offset, slices)?;
        self.file.write_at(slices, offset)
    }

    /// Begins to bring a range that was written to the disk, without waiting, so that a sync has less to wait for. Nobody reads it
    /// soon: the page cache need not keep it.
    pub fn begin_writeback(&self, offset: u64, len: u64) {
        self.file.begin_writeback(offset, len);
    }

    /// Makes the content durable, with what is needed to find it.
    pub fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        faults::observe(|| Op::Sync {
            name: self.name.clone(),
        })?;
        self.file.sync()
    }

    /// Cuts the file to `len` bytes, durably.
    pub fn truncate(&self, len: u64) -> io::Result<()> {
        #[cfg(test)]
        faults::observe(|| Op::Truncate {
            name: self.name.clone(),
            len,
        })?;
        self.file.truncate(len)?;
        self.sync()
    }

    /// Makes the file hold `len` bytes of disk space, where the file system can promise that.
    pub fn allocate(&self, len: u64) -> io::Result<()> {
        self.file.allocate(len)
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
