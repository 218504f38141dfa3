//! A gateway process that dies and comes again: what it held lies in memory that outlives it, so nothing that was answered is missing,
//! nobody is fenced, and what was sealed can still be committed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

mod group_common;

use std::path::PathBuf;

use bytes::Bytes;
use group_common::{
    BLOCK, SIZE, Site, attach, attach_source, checkpoint, commit, try_attach, until,
};
use nbd_server::export::{Export, IoError};
use nbd_server::group::barriers::Input;
use nbd_server::group::{Group, GroupError, GroupMode, Refusal};
use nbd_server::{Epoch, Generation};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A group that `source:1` owns and `standby:1` protects, with its first epoch committed.
fn protected(site: &Site) -> (Group, Generation) {
    let group = site.open();
    let generation = attach_source(&group, "source:1");
    group.park("standby:1").unwrap();
    checkpoint(&group, generation, "standby:1");
    (group, generation)
}

/// Where the group's memory lies.
fn held_file(site: &Site) -> PathBuf {
    let entries = std::fs::read_dir(site.dir.path()).unwrap();
    let mut paths = entries.map(|entry| entry.unwrap().path());
    paths
        .find(|path| {
            path.extension()
                .is_some_and(|extension| extension == "held")
        })
        .expect("there is held memory")
}

fn held_files(site: &Site) -> usize {
    let names = std::fs::read_dir(site.dir.path()).unwrap();
    names
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().ends_with(".held")
        })
        .count()
}

#[test]
fn what_was_answered_and_not_flushed_is_there_again() {
    let mut site = Site::with_memory(GroupMode::Async, &["root", "data"]);
    site.config.epoch_interval_ms = 3_600_000;
    let group = site.open();
    let generation = group.status().generation;
    let (root, data) = (attach(&group, "root", None), attach(&group, "data", None));
    root.write(1, 1);
    root.export.flush().unwrap();
    root.write(1, 2);
    root.write(2, 3);
    data.write(0, 4);
    let offset = 5 * BLOCK as u64;
    root.export
        .write_zeroes(offset, 9000, true, true, false)
        .unwrap();
    drop((root, data, group));

    let group = site.open();
    assert_eq!(
        group.status().generation,
        generation,
        "nobody lost anything"
    );
    let (root, data) = (attach(&group, "root", None), attach(&group, "data", None));
    assert_eq!((root.read(1), root.read(2), data.read(0)), (2, 3, 4));
    assert_eq!(
        site.image_block(0, 1),
        vec![1; BLOCK],
        "only what was flushed is in the image"
    );
    root.export.flush().unwrap();
    drop((root, data));
    assert_eq!(held_files(&site), 1);
    group.stop();
    assert_eq!(
        held_files(&site),
        0,
        "an orderly stop leaves no memory behind"
    );
    assert_eq!(site.image_block(0, 2), vec![3; BLOCK]);
}

#[test]
fn a_source_goes_on_with_its_open_and_sealed_epochs() {
    let site = Site::with_memory(GroupMode::Sync, &["root", "data"]);
    let group = site.open();
    let generation = attach_source(&group, "source:1");
    group.park("standby:1").unwrap();
    group.park("standby:2").unwrap();
    checkpoint(&group, generation, "standby:1");
    let root = attach(&group, "root", Some("source:1"));
    let data = attach(&group, "data", Some("source:1"));
    root.write(1, 1);
    data.write(1, 2);
    let sealed = group.seal(generation).unwrap().epoch;
    root.write(1, 3);
    drop((root, data, group));

    let group = site.open();
    assert_eq!(group.status().generation, generation);
    let root = attach(&group, "root", Some("source:1"));
    let data = attach(&group, "data", Some("source:1"));
    assert_eq!((root.read(1), data.read(1)), (3, 2));
    // A standby sees what is committed, now as before; neither has to park again.
    let parked = attach(&group, "root", Some("standby:1"));
    assert_eq!(parked.read(1), 0);
    attach(&group, "root", Some("standby:2"));
    assert_eq!(
        commit(&group, generation, sealed, "standby:1").unwrap(),
        sealed
    );
    assert_eq!(parked.read(1), 1);
    assert_eq!(root.read(1), 3);
    let next = checkpoint(&group, generation, "standby:1").epoch;
    assert_eq!(next, sealed.next(), "epochs go on where they were");
    until(|| group.status().applied == next);
    assert_eq!(site.image_block(0, 1), vec![3; BLOCK]);
}

#[test]
fn what_the_source_had_not_committed_is_gone_after_a_takeover_and_a_restart() {
    let site = Site::with_memory(GroupMode::Sync, &["root"]);
    let group = site.open();
    let generation = attach_source(&group, "source:1");
    group.park("standby:1").unwrap();
    let root = attach(&group, "root", Some("source:1"));
    root.write(1, 1);
    checkpoint(&group, generation, "standby:1");
    root.write(1, 2);
    drop((root, group));
    // The source dies while the gateway is down.
    let group = site.open();
    let taken = group
        .request_blocking(Input::Takeover {
            standby: "standby:1".into(),
        })
        .unwrap();
    assert_eq!(
        (taken.generation, taken.committed),
        (generation.next(), Epoch(1))
    );
    assert!(matches!(
        try_attach(&group, "root", Some("source:1")).map(drop),
        Err(Refusal::UsedId { .. })
    ));
    drop(group);
    // The answer was lost with the gateway: the same one again, and nothing of the old source's.
    let group = site.open();
    let again = group
        .request_blocking(Input::Takeover {
            standby: "standby:1".into(),
        })
        .unwrap();
    assert_eq!(again, taken);
    let root = attach(&group, "root", Some("standby:1"));
    assert_eq!(root.read(1), 1);
    let refused = group.seal(generation).map(drop);
    assert!(matches!(
        refused,
        Err(GroupError::Refused(Refusal::Fenced { .. }))
    ));
}

#[test]
fn memory_of_another_start_of_the_machine_is_not_used() {
    use std::os::unix::fs::FileExt;
    let site = Site::with_memory(GroupMode::Sync, &["root"]);
    let (group, generation) = protected(&site);
    let root = attach(&group, "root", Some("source:1"));
    root.write(1, 9);
    drop((root, group));
    let file = held_file(&site);
    let held = std::fs::File::options().write(true).open(&file).unwrap();
    held.write_all_at(&[0xAA; 16], 4 * 8).unwrap();

    let group = site.open();
    assert_eq!(
        group.status().generation,
        generation.next(),
        "its source is fenced"
    );
    let plain = attach(&group, "root", None);
    assert_eq!(plain.read(1), 0);
}

#[test]
fn the_memory_of_somebody_else_is_refused() {
    let site = Site::with_memory(GroupMode::Async, &["root"]);
    let group = site.open();
    drop(group);
    let file = held_file(&site);
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
    let error = Group::open(&site.config, &mut |_| {}).unwrap_err();
    let said = std::error::Error::source(&error).unwrap().to_string();
    assert!(said.contains("epoch_memory"), "{said}");
}

#[test]
fn a_drain_that_the_crash_cut_short_is_asked_again() {
    let site = Site::with_memory(GroupMode::Sync, &["root"]);
    let (group, generation) = protected(&site);
    let root = attach(&group, "root", Some("source:1"));
    root.write(1, 1);
    group.seal(generation).unwrap();
    root.write(2, 2);
    drop((root, group));
    let group = site.open();
    let root = attach(&group, "root", Some("source:1"));
    root.write(3, 3);
    group
        .request_blocking(Input::DrainToSync {
            generation,
            protection: None,
        })
        .unwrap();
    root.write(4, 4);
    for block in 1..5 {
        assert_eq!(site.image_block(0, block), vec![block as u8; BLOCK]);
    }
    root.export.flush().unwrap();
}

/// Random writes, seals, commits and crashes of the gateway: the disk is always what was answered last.
#[test]
fn no_answered_write_is_ever_missing() {
    for seed in 0..6 {
        let mut rng = StdRng::seed_from_u64(seed);
        let source = seed % 2 == 0;
        let mode = if source {
            GroupMode::Sync
        } else {
            GroupMode::Async
        };
        let site = Site::with_memory(mode, &["root", "data"]);
        let mut group = site.open();
        let generation = if source {
            let generation = attach_source(&group, "source:1");
            group.park("standby:1").unwrap();
            checkpoint(&group, generation, "standby:1");
            generation
        } else {
            group.status().generation
        };
        let instance = source.then_some("source:1");
        let mut model = [vec![0_u8; SIZE as usize], vec![0_u8; SIZE as usize]];
        let mut next = group.status().committed.next();
        for round in 0..12 {
            let disks = ["root", "data"].map(|name| attach(&group, name, instance));
            for _ in 0..rng.random_range(1..60) {
                let number = rng.random_range(0..2);
                let disk = &disks[number].export;
                let at = rng.random_range(0..SIZE - 1);
                let longest = if rng.random_bool(0.1) { SIZE / 2 } else { 9000 };
                let len = rng.random_range(1..=longest.min(SIZE - at));
                let range = at as usize..(at + len) as usize;
                match rng.random_range(0..8) {
                    0 => {
                        let mut read = vec![0; len as usize];
                        disk.read(at, &mut read).unwrap();
                        assert!(read == model[number][range], "seed {seed}, round {round}");
                    }
                    1 => {
                        disk.write_zeroes(at, len, true, false, false).unwrap();
                        model[number][range].fill(0);
                    }
                    2 if source && rng.random_bool(0.3) => {
                        group.seal(generation).unwrap();
                    }
                    3 if source && group.status().sealed > 0 => {
                        commit(&group, generation, next, "standby:1").unwrap();
                        next = next.next();
                    }
                    4 if rng.random_bool(0.1) => disk.flush().unwrap(),
                    _ => {
                        let byte = rng.random();
                        let data = Bytes::from(vec![byte; len as usize]);
                        assert_eq!(disk.write(at, data, false), Ok::<(), IoError>(()));
                        model[number][range].fill(byte);
                    }
                }
            }
            drop(disks);
            drop(group);
            group = site.open();
            assert_eq!(group.status().generation, generation, "seed {seed}");
            let disks = ["root", "data"].map(|name| attach(&group, name, instance));
            for (disk, model) in disks.iter().zip(&model) {
                let mut read = vec![0; SIZE as usize];
                disk.export.read(0, &mut read).unwrap();
                assert!(read == *model, "seed {seed}, round {round}");
            }
        }
    }
}
