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
/// Zeros are made with `fallocate(ZERO_RANGE)`, else `PUNCH_HOLE`, else written; holes with these two the other way round. A trim punches a hole; where that is not
/// possible it does nothing, as the content of a trimmed range is undefined (NBD protocol, `NBD_CMD_TRIM`).
///
/// # Errors
/// Whatever the system says about the write, such as `ENOSPC`. The image may then hold a part of the extent: apply it again.
pub fn apply_extent(image: &File, extent: &Extent<'_>) -> io::Result<()> {
    match extent.content {
        Content::Data(data) => image.write_all_at(data, extent.offset),
        Content::Zero => {
            let ways = [FallocateFlags::ZERO_RANGE, FallocateFlags::PUNCH_HOLE];
            zero(image, extent.offset, extent.len, ways)
        }
        Content::Hole => {
            let ways = [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE];
            zero(image, extent.offset, extent.len, ways)
        }
        Content::Trim => {
            deallocate(image, FallocateFlags::PUNCH_HOLE, extent.offset, extent.len).map(|_done| ())
        }
    }
}

fn zero(image: &File, offset: u64, len: u64, ways: [FallocateFlags; 2]) -> io::Result<()> {
    for way in ways {
        if deallocate(image, way, offset, len)? {
            return Ok(());
        }
    }
    write_zeros(image, offset, len)
}

fn write_zeros(image: &File, offset: u64, len: u64) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::os::unix::fs::MetadataExt;

    use super::*;

    const LEN: u64 = 1 << 20;

    fn image() -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![0xaa; usize::try_from(LEN).unwrap()], 0)
            .unwrap();
        file
    }

    fn content(image: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(image.metadata().unwrap().len()).unwrap()];
        image.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Applies an extent twice, as a replay may; everything outside it must stay.
    fn apply(offset: u64, len: u64, content_of: Content<'_>) -> (File, Vec<u8>) {
        let image = image();
        let extent = Extent {
            disk: 0,
            offset,
            len,
            content: content_of,
        };
        apply_extent(&image, &extent).unwrap();
        let once = content(&image);
        apply_extent(&image, &extent).unwrap();
        assert_eq!(once, content(&image));
        assert_eq!(once.len() as u64, LEN);
        let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
        assert!(
            once[..range.start]
                .iter()
                .chain(&once[range.end..])
                .all(|byte| *byte == 0xaa)
        );
        (image, once[range].to_vec())
    }

    #[test]
    fn data_is_written_where_it_belongs() {
        let (_, inside) = apply(4097, 5, Content::Data(b"hello"));
        assert_eq!(inside, b"hello");
    }

    #[test]
    fn zeros_cover_exactly_their_range() {
        for (offset, len) in [
            (0, LEN),
            (1, 1),
            (4095, 4098),
            (5000, 200_000),
            (LEN - 1, 1),
        ] {
            for content in [Content::Zero, Content::Hole] {
                let (_, inside) = apply(offset, len, content);
                assert!(inside.iter().all(|byte| *byte == 0), "{len} at {offset}");
            }
        }
    }

    #[test]
    fn a_trim_and_a_hole_give_space_back_and_zeros_keep_it() {
        let before = image().metadata().unwrap().blocks();
        for (content, gives) in [
            (Content::Trim, true),
            (Content::Hole, true),
            (Content::Zero, false),
        ] {
            let (image, inside) = apply(0, LEN / 2, content);
            let after = image.metadata().unwrap().blocks();
            assert_eq!(after < before, gives, "{content:?}");
            assert!(inside.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn zeros_are_written_where_nothing_else_works() {
        let image = image();
        write_zeros(&image, 3, 150_000).unwrap();
        let bytes = content(&image);
        assert!(bytes[3..150_003].iter().all(|byte| *byte == 0));
        assert_eq!((bytes[2], bytes[150_003]), (0xaa, 0xaa));
    }

    #[test]
    fn an_error_is_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, b"read only").unwrap();
        let image = File::open(path).unwrap();
        for content in [Content::Data(b"x"), Content::Zero, Content::Trim] {
            assert!(
                apply_extent(
                    &image,
                    &Extent {
                        disk: 0,
                        offset: 0,
                        len: 1,
                        content
                    }
                )
                .is_err()
            );
        }
    }
}
