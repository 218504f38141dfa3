//! The raw export against real files.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;

use std::fs::OpenOptions;

use super::*;

fn image(size: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    File::create(&path).unwrap().set_len(size).unwrap();
    (dir, path)
}

#[test]
fn what_is_written_by_any_way_is_read_by_any_way() {
    let (_dir, path) = image(1 << 20);
    let export = RawExport::open(&path, false).unwrap();
    let mut model = vec![0u8; 1 << 20];
    for (offset, len, fua) in [
        (0usize, 4096usize, false),
        (4095, 3, true),
        (8192, 65536, false),
        ((1 << 20) - 5, 5, false),
    ] {
        let data = Bytes::from(
            (0..len)
                .map(|i| u8::try_from(i % 251).unwrap() + 1)
                .collect::<Vec<u8>>(),
        );
        if !export.try_write(offset as u64, &data, fua).unwrap() {
            export.write(offset as u64, data.clone(), fua).unwrap();
        }
        model[offset..offset + len].copy_from_slice(&data);
    }
    export.write_zeroes(8200, 5000, true, false, true).unwrap();
    model[8200..13200].fill(0);
    export
        .write_zeroes(20000, 300, false, false, false)
        .unwrap();
    model[20000..20300].fill(0);
    export.flush().unwrap();
    let mut read = vec![0xff; 1 << 20];
    export.read(0, &mut read).unwrap();
    assert!(read == model);
    let mut read = vec![0xff; 70000];
    if export.try_read(4000, &mut read).unwrap() {
        assert!(read == model[4000..74000]);
    }
    assert!(fs::read(&path).unwrap() == model);
}

#[test]
fn a_cached_read_is_answered_in_place_also_after_a_write() {
    let (_dir, path) = image(1 << 20);
    let data = Bytes::from(vec![7; 4096]);
    let mut read = vec![0; 4096];
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let export = RawExport::open(&path, false).unwrap();
    let before = export.try_read(0, &mut read).unwrap();
    // Where the file system can't say of a write whether it would block, it may still say so of a read.
    if !export.try_write(0, &data, false).unwrap() {
        export.write(0, data.clone(), false).unwrap();
    }
    assert_eq!(export.try_read(0, &mut read).unwrap(), before);
    assert!(!before || read == data);
}

#[test]
fn trim_gives_space_back_and_keeps_the_size() {
    let (_dir, path) = image(1 << 20);
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let export = RawExport::open(&path, false).unwrap();
    let before = fs::metadata(&path).unwrap();
    export.trim(0, 1 << 19, true).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!(after.len(), before.len());
    assert!(after.blocks() <= before.blocks());
}

#[test]
fn an_image_that_shrinks_is_an_error_and_no_zeros() {
    let (_dir, path) = image(8192);
    let export = RawExport::open(&path, true).unwrap();
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(4096)
        .unwrap();
    let mut buf = [0; 4096];
    assert!(!export.try_read(2048, &mut buf).unwrap());
    assert_eq!(export.read(2048, &mut buf), Err(IoError::Io));
    assert_eq!(export.block_status(0, 8192, 9), Err(IoError::Io));
}

/// Unwritten space can't be told from a hole by SEEK_DATA, but by the blocks that the file has.
#[test]
fn zeroes_leave_holes_or_keep_the_space_as_asked() {
    const MIB: u64 = 1 << 20;
    let (_dir, path) = image(4 * MIB);
    let export = RawExport::open(&path, false).unwrap();
    let blocks = || fs::metadata(&path).unwrap().blocks();
    let data = Bytes::from(vec![7; 1 << 20]);
    export.write(MIB, data, false).unwrap();
    export.flush().unwrap();
    let extents = export.block_status(0, 4 * MIB, 9).unwrap();
    let (data, hole) = (BlockExtent::data(MIB), BlockExtent::hole(MIB));
    assert_eq!(extents, [hole, data, BlockExtent::hole(2 * MIB)]);
    assert_eq!(export.block_status(0, 4 * MIB, 1).unwrap(), [hole]);
    let within = export.block_status(MIB + 5, 10, 9).unwrap();
    assert_eq!(within, [BlockExtent::data(10)]);

    let before = blocks();
    export.write_zeroes(MIB, MIB, false, true, false).unwrap();
    assert!(blocks() >= before, "NO_HOLE keeps the space");
    export.write_zeroes(MIB, MIB, true, true, false).unwrap();
    assert!(blocks() < before, "a hole gives it back");
    let mut read = vec![1; 4 << 20];
    export.read(0, &mut read).unwrap();
    assert!(read.iter().all(|&byte| byte == 0));
    let all = export.block_status(0, 4 * MIB, 9).unwrap();
    assert!(all.iter().all(|extent| extent.zero));
}

#[test]
fn a_new_size_is_zeros_and_an_old_end_is_gone() {
    let (_dir, path) = image(8192);
    let export = RawExport::open(&path, false).unwrap();
    assert!(!export.info().can_resize);
    export.write(0, Bytes::from(vec![7; 8192]), false).unwrap();
    export.resize(4096).unwrap();
    assert_eq!(export.info().size, 4096);
    let mut buf = [0; 512];
    let data = Bytes::from_static(&[1; 512]);
    assert_eq!(export.read(4096, &mut buf), Err(IoError::Inval));
    let beyond = Err(IoError::NoSpace);
    assert_eq!(export.try_write(4000, &data, false), Err(IoError::NoSpace));
    assert_eq!(export.write(4000, data, true), beyond);
    assert_eq!(export.write_zeroes(4096, 1, true, false, false), beyond);
    assert_eq!(export.trim(4096, 1, false), Err(IoError::Inval));
    assert_eq!(fs::metadata(&path).unwrap().len(), 4096);
    export.resize(1 << 20).unwrap();
    export.read(4096, &mut buf).unwrap();
    assert_eq!(buf, [0; 512], "what was cut off does not come back");
    drop(export);
    let reader = RawExport::open(&path, true).unwrap();
    assert_eq!(reader.resize(1), Err(IoError::Perm));
    assert_eq!(reader.info().size, 1 << 20);
}

#[test]
fn a_range_of_any_length_can_be_read_ahead() {
    let (_dir, path) = image(1 << 40);
    let export = RawExport::open(&path, true).unwrap();
    export.cache(0, 1 << 40).unwrap();
    export.cache((1 << 40) - 1, 1).unwrap();
}

#[test]
fn what_cannot_be_served_says_why() {
    let (dir, path) = image(0);
    assert!(matches!(
        RawExport::open(&path, false),
        Err(ImageError::Empty { .. })
    ));
    assert!(matches!(
        RawExport::open(dir.path(), true),
        Err(ImageError::NotAnImage { .. })
    ));
    assert!(matches!(
        RawExport::open(dir.path(), false),
        Err(ImageError::NotAnImage { .. })
    ));
    let device = RawExport::open(Path::new("/dev/null"), true);
    assert!(matches!(device, Err(ImageError::NotAnImage { .. })));
    let missing = RawExport::open(&dir.path().join("none"), false).unwrap_err();
    assert!(missing.to_string().contains("qemu-img create"), "{missing}");
}

#[test]
fn two_writers_are_refused_and_two_readers_are_not() {
    let (_dir, path) = image(512);
    let writer = RawExport::open(&path, false).unwrap();
    assert!(matches!(
        RawExport::open(&path, false),
        Err(ImageError::Locked { .. })
    ));
    assert!(matches!(
        RawExport::open(&path, true),
        Err(ImageError::Locked { .. })
    ));
    drop(writer);
    let _reader = RawExport::open(&path, true).unwrap();
    RawExport::open(&path, true).unwrap();
}

/// A directory whose file system has O_DIRECT: that of the build, where the temporary one is in memory.
fn direct_image(len: usize) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = dir.path().join("disk.raw");
    fs::write(&path, vec![7; len]).unwrap();
    (dir, path)
}

#[test]
fn past_the_page_cache_the_data_is_the_same() {
    let (_dir, path) = direct_image(4 << 20);
    let export = RawExport::open_direct(&path, false).unwrap();
    let block = export.info().block_size.minimum;
    assert!((512..=4096).contains(&block) && block.is_power_of_two());
    let data: Vec<u8> = (0..(3 << 20)).map(|i: u32| i.to_le_bytes()[1]).collect();
    // Memory that is surely not aligned.
    let shifted = Bytes::from([&[0], data.as_slice()].concat()).slice(1..);
    assert_eq!(export.try_write(4096, &shifted, false), Ok(false));
    export.write(4096, shifted, true).unwrap();
    let mut read = vec![0; data.len() + 1];
    assert_eq!(export.try_read(4096, &mut read[1..]), Ok(false));
    export.read(4096, &mut read[1..]).unwrap();
    assert!(read[1..] == data);
    export.write_zeroes(8192, 4096, false, false, true).unwrap();
    export.trim(16384, 4096, false).unwrap();
    export.flush().unwrap();
    let file = fs::read(&path).unwrap();
    assert!(file[..4096].iter().all(|byte| *byte == 7));
    assert!(file[4096..8192] == data[..4096]);
    assert!(file[8192..12288].iter().all(|byte| *byte == 0));
    assert!(export.resize(1000).is_err(), "no whole blocks");
    export.resize(8192).unwrap();
}

#[test]
fn an_image_that_ends_within_a_block_is_refused_past_the_page_cache() {
    let (_dir, path) = direct_image(4096 + 100);
    let error = RawExport::open_direct(&path, true).unwrap_err();
    assert!(error.to_string().contains("no multiple of"), "{error}");
    RawExport::open(&path, true).unwrap();
}
