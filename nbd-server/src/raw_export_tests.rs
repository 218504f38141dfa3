//! The raw export against real files.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;

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
}

#[test]
fn what_cannot_be_served_says_why() {
    let (dir, path) = image(0);
    assert!(matches!(
        RawExport::open(&path, false),
        Err(RawExportError::Empty { .. })
    ));
    assert!(matches!(
        RawExport::open(dir.path(), true),
        Err(RawExportError::NotAnImage { .. })
    ));
    assert!(matches!(
        RawExport::open(dir.path(), false),
        Err(RawExportError::NotAnImage { .. })
    ));
    let device = RawExport::open(Path::new("/dev/null"), true);
    assert!(matches!(device, Err(RawExportError::NotAnImage { .. })));
    let missing = RawExport::open(&dir.path().join("none"), false).unwrap_err();
    assert!(missing.to_string().contains("qemu-img create"), "{missing}");
}

#[test]
fn two_writers_are_refused_and_two_readers_are_not() {
    let (_dir, path) = image(512);
    let writer = RawExport::open(&path, false).unwrap();
    assert!(matches!(
        RawExport::open(&path, false),
        Err(RawExportError::Locked { .. })
    ));
    assert!(matches!(
        RawExport::open(&path, true),
        Err(RawExportError::Locked { .. })
    ));
    drop(writer);
    let _reader = RawExport::open(&path, true).unwrap();
    RawExport::open(&path, true).unwrap();
}
