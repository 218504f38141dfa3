//! The file that is a guest's memory: made here, mapped by QEMU (`share=on`) and by us. Knows no QEMU.
//!
//! The file is locked (`flock`) as long as its owner lives. A file without a lock is left over from a process that was
//! killed, and [`GuestRam::remove_stale`] removes it: forgotten RAM files would fill the memory of the host.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek, statvfs};

use crate::description::Role;
use crate::error::{Error, Result};
use crate::page_set::{PAGE_SIZE, PageRange, PageSet};
use crate::sys::shared_memory::SharedMemory;

/// RAM files of one VM, role and process. Two are usual for a moment: a VM that was taken over, and its next standby.
const MAX_SAME_NAME: u32 = 64;

/// Memory of a guest as a shared file. Unlinked when dropped, unless [`GuestRam::keep`] was called.
#[derive(Debug)]
pub struct GuestRam {
    path: PathBuf,
    file: File,
    memory: SharedMemory,
    keep: bool,
}

impl GuestRam {
    /// Makes the file `{dir}/epochgate-{vm}-{role}-{pid}.ram` of `bytes` zero bytes and maps it. (With a number before
    /// `.ram` if the name is taken.)
    ///
    /// # Errors
    /// Too little space in `dir`, or the system's reason.
    pub fn create(dir: &Path, vm: &str, role: Role, bytes: u64) -> Result<Self> {
        check_space(dir, bytes)?;
        let stem = dir.join(format!("epochgate-{vm}-{role}-{}", std::process::id()));
        let (path, file) =
            create_locked(&stem).map_err(Error::file("create the RAM file", &stem))?;
        Self::map(path, file, bytes)
    }

    fn map(path: PathBuf, file: File, bytes: u64) -> Result<Self> {
        let mapped = (|| {
            file.set_len(bytes)?;
            let len =
                usize::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
            SharedMemory::map(&file, len)
        })();
        match mapped {
            Ok(memory) => Ok(GuestRam {
                path,
                file,
                memory,
                keep: false,
            }),
            Err(source) => {
                // Nobody else knows this file yet.
                let _ = std::fs::remove_file(&path);
                Err(Error::File {
                    action: "map the RAM file",
                    path,
                    source,
                })
            }
        }
    }

    /// Removes the RAM files in `dir` whose owners are gone, and returns their paths.
    ///
    /// # Errors
    /// `dir` can't be read. A file that can't be removed is skipped.
    pub fn remove_stale(dir: &Path) -> Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for entry in std::fs::read_dir(dir)
            .map_err(Error::file("list", dir))?
            .flatten()
        {
            let name = entry.file_name();
            let ours = name
                .to_str()
                .is_some_and(|n| n.starts_with("epochgate-") && n.ends_with(".ram"));
            if ours && remove_if_stale(&entry.path()) {
                removed.push(entry.path());
            }
        }
        Ok(removed)
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size in bytes.
    pub fn len(&self) -> u64 {
        self.memory.len() as u64
    }

    /// Whether it has no byte. It never has: a guest has at least 1 MiB.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Leaves the file in place when this is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Device and inode number, by which the file is recognised among another process' mappings.
    pub(crate) fn identity(&self) -> io::Result<(u64, u64)> {
        self.file.metadata().map(|m| (m.dev(), m.ino()))
    }

    /// Size in bytes of the pages that the file system gives: more than 4096 on a hugetlbfs.
    pub(crate) fn block_size(&self) -> io::Result<u64> {
        self.file.metadata().map(|m| m.blksize())
    }

    /// Copies `out.len()` bytes from `offset` on. A copy of memory that the guest writes meanwhile may be torn.
    ///
    /// # Errors
    /// Outside of the memory.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let done = usize::try_from(offset).is_ok_and(|at| self.memory.read(at, out));
        if done {
            Ok(())
        } else {
            Err(self.outside(offset, out.len() as u64))
        }
    }

    /// Copies the page with this number (offset / 4096).
    ///
    /// # Errors
    /// Outside of the memory.
    pub fn page(&self, number: u64) -> Result<[u8; crate::page_set::PAGE]> {
        let mut page = [0; crate::page_set::PAGE];
        self.read(number.saturating_mul(PAGE_SIZE), &mut page)?;
        Ok(page)
    }

    pub(crate) fn append_to(&self, range: PageRange, out: &mut Vec<u8>) -> Result<()> {
        let done = match (usize::try_from(range.offset), usize::try_from(range.len)) {
            (Ok(at), Ok(len)) => self.memory.append_to(at, len, out),
            _ => false,
        };
        if done {
            Ok(())
        } else {
            Err(self.outside(range.offset, range.len))
        }
    }

    /// Writes `data` from `offset` on.
    ///
    /// # Errors
    /// Outside of the memory.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let done = usize::try_from(offset).is_ok_and(|at| self.memory.write(at, data));
        if done {
            Ok(())
        } else {
            Err(self.outside(offset, data.len() as u64))
        }
    }

    /// Merges pages, in their order.
    ///
    /// # Errors
    /// A range lies outside of the memory or its content is cut off; ranges before it are already merged.
    pub fn write_pages(&self, pages: &PageSet) -> Result<()> {
        for (range, content) in pages.iter() {
            if content.len() as u64 != range.len {
                return Err(self.outside(range.offset, range.len));
            }
            self.write(range.offset, content)?;
        }
        Ok(())
    }

    /// Makes all of it zero and gives its memory back to the host: the start of a full resync.
    ///
    /// # Errors
    /// The file system can't punch holes.
    pub fn clear(&self) -> Result<()> {
        fallocate(
            &self.file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            0,
            self.len(),
        )
        .map_err(|e| Error::File {
            action: "clear the RAM file",
            path: self.path.clone(),
            source: e.into(),
        })
    }

    /// The next range at or after `from` that has memory behind it; None if the rest is a hole, which reads as zero.
    pub(crate) fn next_allocated(&self, from: u64) -> Result<Option<PageRange>> {
        if from >= self.len() {
            return Ok(None);
        }
        let whole = PageRange {
            offset: from,
            len: self.len() - from,
        };
        let start = match seek(&self.file, SeekFrom::Data(from)) {
            Ok(at) => at / PAGE_SIZE * PAGE_SIZE,
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            // A file system that can't tell (hugetlbfs): everything counts as allocated.
            Err(_) => return Ok(Some(whole)),
        };
        let end = seek(&self.file, SeekFrom::Hole(start)).unwrap_or_else(|_| self.len());
        let end = end.next_multiple_of(PAGE_SIZE).min(self.len());
        Ok((end > start).then(|| PageRange {
            offset: start,
            len: end - start,
        }))
    }

    fn outside(&self, offset: u64, len: u64) -> Error {
        Error::OutOfRam {
            offset,
            len,
            ram: self.len(),
        }
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "can't remove a RAM file");
        }
    }
}

fn check_space(dir: &Path, bytes: u64) -> Result<()> {
    let stat = statvfs(dir).map_err(|e| Error::File {
        action: "use the RAM directory",
        path: dir.into(),
        source: e.into(),
    })?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < bytes {
        return Err(Error::RamSpace {
            dir: dir.into(),
            need_mib: bytes >> 20,
            free_mib: free >> 20,
        });
    }
    Ok(())
}

/// Makes a new file named after `stem` and locks it. A name that is taken gets a number.
fn create_locked(stem: &Path) -> io::Result<(PathBuf, File)> {
    for number in 0..MAX_SAME_NAME {
        let suffix = if number == 0 {
            "ram".into()
        } else {
            format!("{number}.ram")
        };
        let path = stem.with_extension(suffix);
        match OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
        {
            Ok(file) => {
                file.lock()?;
                // Between open and lock someone who clears away stale files may have unlinked it.
                if file.metadata()?.nlink() > 0 {
                    return Ok((path, file));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Removes the file if nobody holds its lock. The lock is held meanwhile, so that its maker notices.
fn remove_if_stale(path: &Path) -> bool {
    let Ok(file) = OpenOptions::new().read(true).open(path) else {
        return false;
    };
    file.try_lock().is_ok() && std::fs::remove_file(path).is_ok()
}
