//! Applies one committed extent to an image: regular files and block devices.
//! Knows nothing of epochs; the caller keeps the order and makes the image durable before it marks an epoch applied.

use std::{fs::File, io, os::unix::fs::FileExt};

use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};

use crate::{Content, Extent};

/// How much is zeroed per write where the system can't zero a range by itself.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Applies `extent` to `image`. Applying the same extent again changes nothing, so a replay after a crash is harmless.
///
/// Zeros are made with `fallocate(ZERO_RANGE)`, else `PUNCH_HOLE`, else written. A trim punches a hole; where that is not
/// possible it does nothing, as the content of a trimmed range is undefined (NBD protocol, `NBD_CMD_TRIM`).
///
/// # Errors
/// Whatever the system says about the write, such as `ENOSPC`. The image may then hold a part of the extent: apply it again.
pub fn apply_extent(image: &File, extent: &Extent<'_>) -> io::Result<()> {
    match extent.content {
        Content::Data(data) => image.write_all_at(data, extent.offset),
        Content::Zero => zero(image, extent.offset, extent.len),
        Content::Trim => {
            deallocate(image, FallocateFlags::PUNCH_HOLE, extent.offset, extent.len).map(|_done| ())
        }
    }
}

fn zero(image: &File, offset: u64, len: u64) -> io::Result<()> {
    if deallocate(image, FallocateFlags::ZERO_RANGE, offset, len)?
        || deallocate(image, FallocateFlags::PUNCH_HOLE, offset, len)?
    {
        return Ok(());
    }
    let mut done = 0;
    while done < len {
        let step = usize::try_from(len - done)
            .unwrap_or(usize::MAX)
            .min(ZEROS.len());
        image.write_all_at(ZEROS.get(..step).unwrap_or(&ZEROS), offset + done)?;
        done += step as u64;
    }
    Ok(())
}

/// Asks for one way of `fallocate`; false when this file or device has no such way for this range.
fn deallocate(image: &File, how: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
    loop {
        match fallocate(image, how | FallocateFlags::KEEP_SIZE, offset, len) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            // EINVAL is what a block device says to a range that is not a multiple of its sectors.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => return Ok(false),
            Err(other) => return Err(other.into()),
        }
    }
}
