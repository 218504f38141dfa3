//! The discard request of a block device. A module of its own, since it needs an `ioctl` and so `unsafe`.

use std::fs::File;
use std::io;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

/// `BLKDISCARD` of `linux/fs.h`: two 64-bit numbers, offset and length in bytes.
const BLKDISCARD: Opcode = opcode::none(0x12, 119);

/// Tells the device that `len` bytes at `offset` are not needed; afterwards they read as zeros or as before.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] if `device` is no block device or has no discard.
pub fn discard(device: &File, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: BLKDISCARD reads two u64 from its argument, which the setter passes by reference, and nothing more.
    let result = unsafe { ioctl(device, Setter::<BLKDISCARD, [u64; 2]>::new([offset, len])) };
    result.map_err(|error| match error {
        // What a plain file answers to a request that only block devices know.
        Errno::NOTTY => io::Error::from(io::ErrorKind::Unsupported),
        error => io::Error::from(error),
    })
}
