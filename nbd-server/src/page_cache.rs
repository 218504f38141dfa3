//! A file and the page cache: whether a range lies there (cachestat(2), Linux 6.5), bringing it there, and beginning
//! to bring it to storage (sync_file_range(2)). For two of these no library has a safe call: hence the `unsafe` ones here. It knows nothing of exports.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;

use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;

/// The same number on all architectures (linux/include/uapi/asm-generic/unistd.h).
const SYS_CACHESTAT: libc::c_long = 451;
const PAGE: u64 = 4096;

/// `struct cachestat_range` (linux/include/uapi/linux/mman.h).
#[repr(C)]
struct Range {
    offset: u64,
    len: u64,
}

/// `struct cachestat`, in pages.
#[repr(C)]
#[derive(Default)]
struct Stat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Whether all of `offset..offset + len` is in the page cache. False also where the kernel or the file system can't tell.
pub(crate) fn holds(file: &File, offset: u64, len: u64) -> bool {
    let first = offset / PAGE;
    let pages = (offset + len).div_ceil(PAGE) - first;
    let range = Range { offset, len };
    let mut stat = Stat::default();
    // SAFETY: both structures live through the call and are laid out as the kernel expects them; the kernel reads the first and writes
    // the second. An old kernel answers ENOSYS.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            &raw const range,
            &raw mut stat,
            0_u32,
        )
    };
    // A page counts once and a large folio for all its pages, so that more than was asked for may be counted.
    result == 0 && stat.cached >= pages
}

/// Begins to bring what was written to a range to the storage, without waiting for it, so that a later sync has less to do. A hint: where
/// it does not work, the sync does it all.
pub(crate) fn begin_writeback(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
        return;
    };
    // SAFETY: the call takes an open file and numbers, and touches no memory of this process.
    let _ = unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE)
    };
}

/// What one NBD_CMD_CACHE reads ahead at most: the kernel does it before the call returns, and more would push out what others need.
const MAX_CACHE: u64 = 64 << 20;

/// Begins to read a range into the page cache, without waiting for it.
///
/// # Errors
/// As posix_fadvise(2); storage without a page cache has nothing to prepare, which is none.
pub(crate) fn prefetch(file: &File, offset: u64, len: u64) -> io::Result<()> {
    match fadvise(
        file,
        offset,
        NonZeroU64::new(len.min(MAX_CACHE)),
        Advice::WillNeed,
    ) {
        Ok(()) | Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_hole_is_not_cached_and_what_was_written_is() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        assert!(!holds(&file, 0, 1 << 20));
        file.write_all_at(&[1; 64 << 10], 128 << 10).unwrap();
        let kernel_can_tell = holds(&file, 128 << 10, 64 << 10);
        let (major, minor) = kernel();
        assert_eq!(kernel_can_tell, (major, minor) >= (6, 5));
        assert!(!holds(&file, 128 << 10, 65 << 10));
    }

    fn kernel() -> (u32, u32) {
        let name = rustix::system::uname();
        let release = name.release().to_str().unwrap().to_owned();
        let mut numbers = release
            .split(|c: char| !c.is_ascii_digit())
            .map(|number| number.parse().unwrap_or(0));
        (numbers.next().unwrap(), numbers.next().unwrap())
    }
}
