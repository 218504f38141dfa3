//! A capture of several batches of which the disk has kept later ones and not the first: a crash while it was written must not pass for
//! damage, and damage not for a crash.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::super::batch::MAX_BATCH_PAYLOAD;
use super::super::{Anchor, History, Opened, Options};
use crate::Epoch;
use crate::storage::directory;

const SIZE: usize = 2 * MAX_BATCH_PAYLOAD as usize + 5000;

fn open(dir: &Path, applied: u64, committed: u64) -> (Arc<History>, Opened) {
    let anchor = Anchor {
        log_id: [7; 16],
        applied: Epoch(applied),
        committed: Epoch(committed),
    };
    History::open(directory(dir), anchor, Options::default(), 0).unwrap()
}

/// Saves that the whole disk held `byte` below `epoch`.
fn save(history: &History, epoch: u64, byte: u8) {
    let mut capture = history.capture().unwrap();
    let old = |_: u64, buffer: &mut [u8]| {
        buffer.fill(byte);
        Ok(())
    };
    capture.save(0, 0, SIZE as u64, old).unwrap();
    capture.boundary(Epoch(epoch), epoch, true).unwrap();
    capture.finish(Epoch(epoch)).unwrap();
}

/// The head of what was written at `offset` of the run is gone.
fn forget(dir: &Path, offset: u64) {
    let run = dir.join("0000000000000001.run");
    let file = File::options().write(true).open(run).unwrap();
    file.write_all_at(&[0; 4096], offset).unwrap();
}

fn reads(history: &Arc<History>, epoch: u64, byte: u8) {
    let view = history.view(Epoch(epoch)).unwrap();
    let mut buffer = vec![0; SIZE];
    let image = |_: u64, buffer: &mut [u8]| {
        buffer.fill(2);
        Ok(())
    };
    view.read(0, 0, &mut buffer, image).unwrap();
    assert!(buffer.iter().all(|found| *found == byte), "epoch {epoch}");
}

#[test]
fn the_rest_of_a_capture_that_was_cut_short_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (history, _) = open(dir.path(), 0, 0);
    save(&history, 1, 0xaa);
    history.applied(Epoch(1));
    save(&history, 2, 1);
    history.applied(Epoch(2));
    let end = history.status().bytes;
    save(&history, 3, 2);
    assert!(history.status().bytes > end + 2 * MAX_BATCH_PAYLOAD);
    drop(history);
    // The power went before it was synced, and so before the images were changed.
    forget(dir.path(), end);
    let (history, opened) = open(dir.path(), 2, 3);
    assert_eq!(opened.lost, [""; 0]);
    assert_eq!(history.newest().epoch, Epoch(2));
    save(&history, 3, 2);
    for (epoch, byte) in [(0, 0xaa), (1, 1), (2, 2)] {
        reads(&history, epoch, byte);
    }
}

#[test]
fn a_capture_behind_a_damaged_one_tells_the_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (history, _) = open(dir.path(), 0, 0);
    save(&history, 1, 0xaa);
    let damaged = history.status().bytes;
    save(&history, 2, 1);
    save(&history, 3, 2);
    drop(history);
    forget(dir.path(), damaged);
    let (_, opened) = open(dir.path(), 2, 3);
    assert_eq!(opened.lost.len(), 1, "{:?}", opened.lost);
}

#[test]
fn a_seal_behind_a_damaged_capture_tells_the_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (history, _) = open(dir.path(), 0, 0);
    let damaged = history.status().bytes;
    save(&history, 1, 0xaa);
    history.applied(Epoch(1));
    drop(history);
    forget(dir.path(), damaged);
    let (_, opened) = open(dir.path(), 1, 1);
    assert_eq!(opened.lost.len(), 1, "{:?}", opened.lost);
}
