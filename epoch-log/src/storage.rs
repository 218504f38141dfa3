//! What a log needs of a directory of files. The log itself never asks what is behind it: real files, or the disk of a simulator that
//! forgets what was not synced. Knows nothing of what the bytes mean.

use std::{
    fmt,
    fs::{File, TryLockError},
    io::{self, IoSlice, Read, Seek, Write},
    num::NonZeroU64,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use rustix::{
    fs::{Advice, FallocateFlags, fadvise, fallocate, fstatvfs},
    io::{Errno, pwritev},
};

use crate::LogError;

/// Most slices in one `pwritev` (Linux: `UIO_MAXIOV`).
const MAX_SLICES: usize = 1024;

/// Name of the lock file.
const LOCK: &str = "LOCK";

/// A directory of files.
pub trait Storage: fmt::Debug + Send + Sync {
    /// Where it is, for messages.
    fn path(&self) -> &Path;

    /// Makes the directory, durably, if it is not there.
    ///
    /// # Errors
    /// What the system says.
    fn prepare(&self) -> io::Result<()>;

    /// Takes the directory for one log alone, until the lock is dropped or the process ends.
    ///
    /// # Errors
    /// [`LogError::InUse`], [`LogError::Io`].
    fn lock(&self) -> Result<Box<dyn StorageLock>, LogError>;

    /// Creates an empty file, in place of one that may be there.
    ///
    /// # Errors
    /// What the system says.
    fn create(&self, name: &str) -> io::Result<Box<dyn StorageFile>>;

    /// Opens a file.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self, name: &str, writable: bool) -> io::Result<Box<dyn StorageFile>>;

    /// Gives a file another name.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the system says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes names durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&self) -> io::Result<()>;

    /// Names of all files, in no order.
    ///
    /// # Errors
    /// What the system says.
    fn names(&self) -> io::Result<Vec<String>>;

    /// When a file was last written. It only informs people: where nobody knows, it is an error and no more.
    ///
    /// # Errors
    /// What the system says.
    fn modified(&self, name: &str) -> io::Result<SystemTime> {
        let _ = name;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// How many bytes can still be written.
    ///
    /// # Errors
    /// What the system says, or that nobody knows.
    fn free_space(&self) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The directory `name` in this one, which need not be there yet.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where there are no directories in directories; what the system says.
    fn directory(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        let _ = name;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// What is wrong with what is below now, for people: it does not answer, and everything waits.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Bytes that were never given out before: they tell the segments of one log from those of another.
    fn random(&self) -> [u8; 16] {
        *uuid::Uuid::new_v4().as_bytes()
    }
}

/// An open file.
pub trait StorageFile: fmt::Debug + Send + Sync {
    /// Length in bytes.
    ///
    /// # Errors
    /// What the system says.
    fn size(&self) -> io::Result<u64>;

    /// Reads at `offset`; returns how much, 0 at the end.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all slices one after another from `offset` on. They are used up.
    ///
    /// # Errors
    /// What the system says; a part may be written then.
    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()>;

    /// Begins to bring a range that was written to the disk. A hint.
    fn begin_writeback(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// Makes the content durable, with what is needed to find it.
    ///
    /// # Errors
    /// What the system says; what of the content is durable is not known then.
    fn sync(&self) -> io::Result<()>;

    /// Cuts the file to `len` bytes. Not durable yet.
    ///
    /// # Errors
    /// What the system says.
    fn truncate(&self, len: u64) -> io::Result<()>;

    /// Makes the file hold `len` bytes of disk space, where that can be promised.
    ///
    /// # Errors
    /// What the system says, most of all that there is no room.
    fn allocate(&self, len: u64) -> io::Result<()>;
}

/// The lock of a directory; dropping it lifts it.
pub trait StorageLock: fmt::Debug + Send + Sync {}

/// The directory of real files at `path`.
#[must_use]
pub fn directory(path: &Path) -> Arc<dyn Storage> {
    Arc::new(Directory::at(path))
}

/// A directory of the file system.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// Opened when it is there.
    handle: OnceLock<File>,
}

impl Directory {
    /// The directory at `path`, which need not be there yet.
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            handle: OnceLock::new(),
        }
    }

    /// Opens it.
    pub fn handle(&self) -> io::Result<&File> {
        if let Some(handle) = self.handle.get() {
            return Ok(handle);
        }
        let opened = File::open(&self.path)?;
        Ok(self.handle.get_or_init(|| opened))
    }
}

/// Makes a directory durable if it is not there, with all that leads to it.
fn create_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_directory(parent)?;
    }
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Err(_) | Ok(()) => {}
    }
    File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

impl Storage for Directory {
    fn path(&self) -> &Path {
        &self.path
    }

    fn prepare(&self) -> io::Result<()> {
        create_directory(&self.path)
    }

    fn lock(&self) -> Result<Box<dyn StorageLock>, LogError> {
        let path = self.path.join(LOCK);
        let fail = |action| {
            let path = path.clone();
            move |source| LogError::io(action, path, source)
        };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(fail("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let read = file.read_to_string(&mut pid);
                let pid = read.ok().and_then(|_| pid.trim().parse().ok());
                return Err(LogError::InUse {
                    dir: self.path.clone(),
                    pid,
                });
            }
            Err(TryLockError::Error(source)) => return Err(fail("lock")(source)),
        }
        // The id only informs: on a full disk the lock holds without it.
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(error) = written {
            tracing::debug!(%error, path = %path.display(), "can't leave the process id in the lock file");
        }
        Ok(Box::new(LockFile { file }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn StorageFile>> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.path.join(name))?;
        Ok(Box::new(file))
    }

    fn open(&self, name: &str, writable: bool) -> io::Result<Box<dyn StorageFile>> {
        let mut options = File::options();
        let file = options
            .read(true)
            .write(writable)
            .open(self.path.join(name))?;
        Ok(Box::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        self.handle()?.sync_all()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            // Names that are not UTF-8 are none of ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn modified(&self, name: &str) -> io::Result<SystemTime> {
        self.path.join(name).metadata()?.modified()
    }

    fn free_space(&self) -> io::Result<u64> {
        let space = fstatvfs(self.handle()?)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        Ok(directory(&self.path.join(name)))
    }
}

/// The lock file. The system lifts the lock when a process dies.
#[derive(Debug)]
struct LockFile {
    file: File,
}

impl StorageLock for LockFile {}

impl Drop for LockFile {
    /// To close the file would not do: a child process that this one has just forked has it, too, until it runs its program.
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            tracing::debug!(%error, "the lock file can't be unlocked");
        }
    }
}

impl StorageFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    fn write_at(&self, mut slices: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            let batch = slices
                .get(..slices.len().min(MAX_SLICES))
                .unwrap_or_default();
            let written = match pwritev(self, batch, offset) {
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

    fn begin_writeback(&self, offset: u64, len: u64) {
        // Where it does not work, the sync does it all. Nobody reads the range soon: the page cache need not keep it.
        let _ = fadvise(self, offset, NonZeroU64::new(len), Advice::DontNeed);
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match fallocate(self, FallocateFlags::empty(), 0, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
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
        let path = dir.path().join(LOCK);
        let file = File::create(&path).unwrap();
        file.lock().unwrap();
        // What fork(2) leaves a child with: another descriptor of the same open file.
        let of_child = file.try_clone().unwrap();
        let lock = LockFile { file };
        let storage = Directory::at(dir.path());
        assert!(matches!(storage.lock(), Err(LogError::InUse { .. })));
        drop(lock);
        storage.lock().unwrap();
        drop(of_child);
    }
}
