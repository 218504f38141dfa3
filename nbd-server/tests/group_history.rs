//! A group that keeps its past: every epoch reads as it was, over NBD names, while the guest writes on; across restarts and crashes;
//! with what images have as holes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

mod group_common;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use group_common::{SIZE, Site, attach, attach_source, checkpoint, until};
use nbd_server::Epoch;
use nbd_server::export::{Cutter, Export};
use nbd_server::group::barriers::Input;
use nbd_server::group::history::HistoryConfig;
use nbd_server::group::{Group, GroupMode, OpenError};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const DISKS: [&str; 2] = ["root", "data"];

/// Contents of both disks.
type State = Vec<Vec<u8>>;

fn site() -> Site {
    let mut site = Site::new(GroupMode::Async, &DISKS);
    site.config.epoch_interval_ms = 3_600_000;
    site.config.history = Some(HistoryConfig::default());
    site
}

fn past(group: &Group, disk: &str, point: &str) -> Arc<dyn Export> {
    let attached = group.attach_any(disk, Some(point), Cutter::inert());
    attached
        .expect("the disk exists")
        .unwrap_or_else(|refusal| panic!("{point}: {refusal}"))
}

fn read(export: &dyn Export) -> Vec<u8> {
    let mut all = vec![0xee; SIZE as usize];
    export.read(0, &mut all).unwrap();
    all
}

/// Changes something at random, on both disks, and has it committed. Returns the epoch.
fn change(group: &Group, state: &mut State, random: &mut StdRng) -> u64 {
    for (number, disk) in DISKS.iter().enumerate() {
        let export = attach(group, disk, None).export;
        for _ in 0..random.random_range(0..5) {
            let offset = random.random_range(0..SIZE - 1);
            let len = random.random_range(1..=(SIZE - offset).min(200_000));
            let range = offset as usize..(offset + len) as usize;
            match random.random_range(0..6) {
                0 => {
                    export.trim(offset, len, false).unwrap();
                    state[number][range].fill(0);
                }
                1 => {
                    export
                        .write_zeroes(offset, len, false, false, false)
                        .unwrap();
                    state[number][range].fill(0);
                }
                _ => {
                    let byte = random.random();
                    let data = Bytes::from(vec![byte; len as usize]);
                    export.write(offset, data, false).unwrap();
                    state[number][range].fill(byte);
                }
            }
        }
        export.flush().unwrap();
    }
    group.status().committed.0
}

/// Every epoch, read by its name.
fn check(group: &Group, epochs: &BTreeMap<u64, State>) {
    for (epoch, state) in epochs {
        for (disk, expected) in DISKS.iter().zip(state) {
            let export = past(group, disk, &format!("epoch={epoch}"));
            assert!(
                read(export.as_ref()) == *expected,
                "disk {disk} at epoch {epoch}"
            );
            check_layout(export.as_ref(), expected);
        }
    }
}

/// What BLOCK_STATUS calls zero is zero, and nothing is left out.
fn check_layout(export: &dyn Export, content: &[u8]) {
    let mut at = 0;
    while at < SIZE {
        for extent in export.block_status(at, SIZE - at, 5).unwrap() {
            let end = (at + extent.len).min(SIZE);
            let range = at as usize..end as usize;
            assert!(
                !extent.zero || content[range].iter().all(|byte| *byte == 0),
                "at {at}"
            );
            at = end;
        }
    }
}

#[test]
fn every_epoch_reads_as_it_was_whatever_came_after() {
    let site = site();
    let mut random = StdRng::seed_from_u64(5);
    let mut state = vec![vec![0; SIZE as usize]; DISKS.len()];
    let mut epochs = BTreeMap::from([(0, state.clone())]);
    let mut group = site.open();
    for round in 0..60 {
        let epoch = change(&group, &mut state, &mut random);
        epochs.insert(epoch, state.clone());
        match round % 20 {
            // A crash: what is committed and not applied is saved and applied at the next start.
            7 => {
                drop(group);
                group = site.open();
            }
            15 => {
                group.stop();
                drop(group);
                group = site.open();
            }
            // Several epochs are applied as one, and some one by one.
            n if n % 3 == 0 => until(|| {
                let status = group.status();
                status.applied == status.committed
            }),
            _ => {}
        }
        if round % 10 == 9 {
            check(&group, &epochs);
        }
    }
    assert!(group.history().unwrap().past.status().points > 60);
}

#[test]
fn an_open_view_stays_what_it_is_while_the_disk_is_written() {
    let site = site();
    let mut random = StdRng::seed_from_u64(6);
    let mut state = vec![vec![0; SIZE as usize]; DISKS.len()];
    let group = site.open();
    change(&group, &mut state, &mut random);
    let epoch = change(&group, &mut state, &mut random);
    let then = state.clone();
    let view = past(&group, "data", &format!("epoch={epoch}"));
    std::thread::scope(|scope| {
        let (group, then) = (&group, &then);
        let reader = scope.spawn(move || {
            for _ in 0..300 {
                assert!(read(view.as_ref()) == then[1]);
            }
        });
        while !reader.is_finished() {
            change(group, &mut state, &mut random);
        }
        reader.join().unwrap();
    });
}

#[test]
fn times_and_pins_name_points_too() {
    let site = site();
    let mut random = StdRng::seed_from_u64(7);
    let mut state = vec![vec![0; SIZE as usize]; DISKS.len()];
    let group = site.open();
    let epoch = change(&group, &mut state, &mut random);
    let then = state.clone();
    group
        .view(&format!("epoch={epoch}").parse().unwrap())
        .unwrap();
    let history = &group.history().unwrap().past;
    history.pin("before", Epoch(epoch)).unwrap();
    let time = nbd_server::group::history::rfc3339(nbd_server::group::history::now_ms());
    std::thread::sleep(std::time::Duration::from_millis(5));
    let next = change(&group, &mut state, &mut random);
    group
        .view(&format!("epoch={next}").parse().unwrap())
        .unwrap();
    for point in ["pin=before", &format!("time={time}")] {
        assert!(
            read(past(&group, "root", point).as_ref()) == then[0],
            "{point}"
        );
    }
    for (point, message) in [
        ("epoch=99999", "is not kept"),
        ("time=1999-01-01T00:00:00Z", "not kept"),
        ("pin=after", "there are: before"),
        ("moment=1", "epoch=NUMBER"),
    ] {
        let refusal = group
            .attach_any("root", Some(point), Cutter::inert())
            .unwrap();
        let said = refusal.err().expect(point).to_string();
        assert!(said.contains(message), "{point}: {said}");
    }
    let export = past(&group, "root", "pin=before");
    assert!(export.info().read_only);
    assert!(export.write(0, Bytes::from_static(b"x"), false).is_err());
}

#[test]
fn a_frozen_history_keeps_all_through_a_restart() {
    let site = site();
    let mut random = StdRng::seed_from_u64(17);
    let mut state = vec![vec![0; SIZE as usize]; DISKS.len()];
    let mut epochs = BTreeMap::from([(0, state.clone())]);
    let mut group = site.open();
    for _ in 0..6 {
        let epoch = change(&group, &mut state, &mut random);
        epochs.insert(epoch, state.clone());
    }
    group.settle();
    let now = nbd_server::group::history::now_ms();
    let past = |group: &Group| Arc::clone(&group.history().unwrap().past);
    past(&group).freeze(now, None).unwrap();
    assert!(group.figures().history_frozen);
    group.stop();
    drop(group);
    group = site.open();
    let nothing = HistoryConfig {
        age: "1s".parse().unwrap(),
        ..HistoryConfig::default()
    };
    let trim = |group: &Group| {
        let retention = nothing.retention();
        let mut trimmed = 0;
        loop {
            let done = past(group).maintain(now + 3_600_000, &retention).unwrap();
            if done.is_nothing() {
                return trimmed;
            }
            trimmed += done.trimmed;
        }
    };
    assert_eq!(trim(&group), 0);
    check(&group, &epochs);
    assert!(past(&group).thaw().unwrap().is_some());
    assert!(trim(&group) > 0);
    assert!(!group.figures().history_frozen);
}

#[test]
fn a_history_that_is_there_is_kept_on_or_moved_away() {
    let mut site = site();
    site.open().stop();
    site.config.history = None;
    let error = Group::open(&site.config, &mut |_| {}).unwrap_err();
    assert!(matches!(error, OpenError::HistoryLeft { .. }), "{error}");
    let dir = site.config.log.join("history");
    std::fs::rename(&dir, site.dir.path().join("moved")).unwrap();
    site.open().stop();
}

/// A VM from its boot to its end, with a takeover in between: sync mode, protected, without its standby, protected again.
#[test]
fn the_past_goes_on_through_protection_and_takeover() {
    let mut site = site();
    site.config.mode = GroupMode::Sync;
    let mut random = StdRng::seed_from_u64(10);
    let mut state = vec![vec![0; SIZE as usize]; DISKS.len()];
    let mut epochs = BTreeMap::from([(0, state.clone())]);
    let mut group = site.open();
    let (mut owner, mut generation) = ("source:0".to_owned(), attach_source(&group, "source:0"));
    let write =
        |group: &Group, owner: &str, state: &mut State, random: &mut StdRng, flush: bool| {
            for (number, disk) in DISKS.iter().enumerate() {
                let export = attach(group, disk, Some(owner)).export;
                let (at, byte) = (random.random_range(0..SIZE - 9000), random.random());
                export
                    .write(at, Bytes::from(vec![byte; 9000]), false)
                    .unwrap();
                state[number][at as usize..at as usize + 9000].fill(byte);
                if flush {
                    export.flush().unwrap();
                }
            }
        };
    for round in 0..4 {
        // Not protected: every FLUSH is a point.
        for _ in 0..4 {
            write(&group, &owner, &mut state, &mut random, true);
            epochs.insert(group.status().committed.0, state.clone());
        }
        let standby = format!("standby:{round}");
        group.park(&standby).unwrap();
        for _ in 0..6 {
            let sealed = checkpoint(&group, generation, &standby);
            epochs.insert(sealed.epoch.0, state.clone());
            write(&group, &owner, &mut state, &mut random, false);
        }
        match round {
            // What the source wrote since its last checkpoint is gone with it.
            0 | 2 => {
                let taken = group
                    .request_blocking(Input::Takeover {
                        standby: standby.clone(),
                    })
                    .unwrap();
                generation = taken.generation;
                state.clone_from(&epochs[&taken.committed.0]);
                owner = standby;
            }
            _ => {
                let drained = group.request_blocking(Input::DrainToSync {
                    generation,
                    protection: None,
                });
                epochs.insert(drained.unwrap().committed.0, state.clone());
            }
        }
        check(&group, &epochs);
    }
    group
        .request_blocking(Input::Detach { generation })
        .unwrap();
    epochs.insert(group.status().committed.0, state.clone());
    group.stop();
    drop(group);
    group = site.open();
    check(&group, &epochs);
    assert!(live(&group) == state);
}

fn live(group: &Group) -> State {
    DISKS
        .iter()
        .map(|disk| read(&attach(group, disk, None).export))
        .collect()
}

#[test]
fn a_rewound_group_is_as_it_was_and_what_was_undone_stays() {
    let site = site();
    let mut random = StdRng::seed_from_u64(8);
    let mut state = vec![vec![0; SIZE as usize]; DISKS.len()];
    let mut epochs = BTreeMap::from([(0, state.clone())]);
    let mut group = site.open();
    for round in 0..6 {
        for _ in 0..8 {
            let epoch = change(&group, &mut state, &mut random);
            epochs.insert(epoch, state.clone());
        }
        let to = *epochs
            .keys()
            .nth(random.random_range(0..epochs.len()))
            .unwrap();
        group.stop();
        drop(group);
        let before = *epochs.keys().next_back().unwrap();
        let rewound = site.config.rewind(Epoch(to)).unwrap();
        assert_eq!(
            (rewound.to, rewound.epoch),
            (Epoch(to), Epoch(before + 1)),
            "round {round}"
        );
        group = site.open();
        state.clone_from(&epochs[&to]);
        epochs.insert(rewound.epoch.0, state.clone());
        assert!(live(&group) == state, "round {round}");
        check(&group, &epochs);
    }
    let error = site.config.rewind(Epoch(1)).unwrap_err();
    assert!(error.to_string().contains("vm"), "in use: {error}");
    group.stop();
    drop(group);
    let error = site.config.rewind(Epoch(99_999)).unwrap_err();
    assert!(matches!(error, OpenError::History { .. }), "{error}");
    assert!(live(&site.open()) == state);
}

#[test]
fn a_rewind_that_is_cut_short_goes_on_at_the_next_start() {
    for done in [0, 1, 2] {
        let site = site();
        let mut random = StdRng::seed_from_u64(9);
        let mut state = vec![vec![0; SIZE as usize]; DISKS.len()];
        let mut epochs = BTreeMap::from([(0, state.clone())]);
        let group = site.open();
        for _ in 0..12 {
            let epoch = change(&group, &mut state, &mut random);
            epochs.insert(epoch, state.clone());
        }
        until(|| {
            let status = group.status();
            status.applied == status.committed
        });
        let committed = group.status().committed;
        let past = Arc::clone(&group.history().unwrap().past);
        past.begin_rewind(Epoch(5)).unwrap();
        for (number, old) in epochs[&5].iter().enumerate().take(done) {
            // What the first pieces of it come to: saved, and the second half of it put back.
            let image = std::fs::OpenOptions::new()
                .write(true)
                .open(site.image(number))
                .unwrap();
            let mut capture = past.capture().unwrap();
            capture
                .save(number as u16, 0, SIZE / 2, |at, buffer| {
                    use std::os::unix::fs::FileExt;
                    std::fs::File::open(site.image(number))?.read_exact_at(buffer, at)
                })
                .unwrap();
            capture.finish(committed).unwrap();
            let half = SIZE as usize / 4..SIZE as usize / 2;
            std::os::unix::fs::FileExt::write_all_at(&image, &old[half.clone()], half.start as u64)
                .unwrap();
        }
        drop(past);
        // The power goes.
        drop(group);
        let group = site.open();
        assert!(live(&group) == epochs[&5], "after {done} pieces");
        assert_eq!(group.status().committed.0, committed.0 + 1);
        epochs.insert(committed.0 + 1, epochs[&5].clone());
        check(&group, &epochs);
    }
}
