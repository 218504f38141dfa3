//! The system calls of asynchronous write protection: userfaultfd (`UFFDIO_API`, `UFFDIO_REGISTER`) and `PAGEMAP_SCAN`.
//! Numbers and layouts from the kernel's `linux/userfaultfd.h` and `linux/fs.h` (Linux 6.7). Knows no QEMU.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IOWR(0xAA, 0x3F, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong = 0xC018_AA3F;
/// `_IOWR(0xAA, 0x00, struct uffdio_register)`.
const UFFDIO_REGISTER: libc::c_ulong = 0xC020_AA00;
/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xC060_6610;

const UFFD_API: u64 = 0xAA;
const UFFD_FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;

const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// One range that `PAGEMAP_SCAN` found: addresses in the scanned process.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WrittenRegion {
    pub(crate) start: u64,
    pub(crate) end: u64,
    categories: u64,
}

/// Asks for write protection that the kernel lifts by itself at a write, also for shared memory and absent pages.
pub(crate) fn enable_async_protection(uffd: BorrowedFd<'_>) -> io::Result<()> {
    let mut api = UffdioApi {
        api: UFFD_API,
        features: UFFD_FEATURE_WP_ASYNC
            | UFFD_FEATURE_WP_UNPOPULATED
            | UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
        ioctls: 0,
    };
    // SAFETY: UFFDIO_API reads and writes one struct uffdio_api, whose layout UffdioApi has.
    check(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, &raw mut api) }).map(drop)
}

/// Registers `len` bytes at `start` in the address space that `uffd` belongs to.
pub(crate) fn register(uffd: BorrowedFd<'_>, start: u64, len: u64) -> io::Result<()> {
    let mut area = UffdioRegister {
        start,
        len,
        mode: UFFDIO_REGISTER_MODE_WP,
        ioctls: 0,
    };
    // SAFETY: UFFDIO_REGISTER reads and writes one struct uffdio_register, whose layout UffdioRegister has. The addresses
    // in it belong to the other process; nothing of ours is touched.
    check(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_REGISTER, &raw mut area) }).map(drop)
}

/// Finds what was written between `start` and `end` and protects it again, in one step per page table. Returns how many
/// entries of `found` were filled and the address up to which it came; it stops early when `found` is full.
pub(crate) fn scan_written(
    pagemap: &File,
    start: u64,
    end: u64,
    found: &mut [WrittenRegion],
) -> io::Result<(usize, u64)> {
    let mut arg = PmScanArg {
        size: size_of::<PmScanArg>() as u64,
        flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
        start,
        end,
        walk_end: 0,
        vec: found.as_mut_ptr() as u64,
        vec_len: found.len() as u64,
        max_pages: 0,
        category_inverted: 0,
        category_mask: PAGE_IS_WRITTEN,
        category_anyof_mask: 0,
        return_mask: PAGE_IS_WRITTEN,
    };
    // SAFETY: PAGEMAP_SCAN reads and writes one struct pm_scan_arg, whose layout and size PmScanArg has, and writes at most
    // vec_len entries of struct page_region, whose layout WrittenRegion has, to `found`, which is borrowed mutably.
    let count = check(unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) })?;
    let count = usize::try_from(count).unwrap_or(0).min(found.len());
    Ok((count, arg.walk_end))
}

/// A userfaultfd of this process.
#[cfg(test)]
pub(crate) fn own_userfaultfd() -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: userfaultfd(2) takes flags and touches no memory.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let fd = check(libc::c_int::try_from(fd).unwrap_or(-1))?;
    // SAFETY: the system has just made it, for nobody else.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
