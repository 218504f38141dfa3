//! Random merges, points, crashes and restarts against a model: every point that is kept is written out exactly as memory was.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use epoch_log::history::Retention;
use nbd_server::{Epoch, Generation};
use proptest::prelude::*;
use qemu_glue::{Fingerprint, GuestRam, PAGE_SIZE, Role};
use xxhash_rust::xxh3::xxh3_64;

use super::config::MemoryHistoryConfig;
use super::head::{Head, MemoryPoint};
use super::store::{Devices, Store, StoreError};
use super::tracked::{GivenUp, Tracked, Watch};

/// Memory of the guest: more than some pieces.
const PAGES: u64 = 300;

/// What happens to a point on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It is kept.
    Kept,
    /// The process dies when it is in the log.
    DiesWritten,
    /// It dies when what it changes is saved.
    DiesSaved,
    /// It dies when so many extents are in the images.
    DiesApplying(usize),
    /// The source is lost after so many pieces.
    SourceLost(usize),
}

#[derive(Clone, Debug)]
enum Step {
    /// So many pages from one on take this byte; 0: zeros.
    Merge(u64, u64, u8),
    /// A point begins; meanwhile this is merged, one write before each piece.
    Point(Way, Vec<(u64, u8)>),
    /// The standby starts anew and gets the memory from its source.
    Restart,
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![
        6 => Just(Way::Kept),
        1 => Just(Way::DiesWritten),
        1 => Just(Way::DiesSaved),
        1 => (0usize..6).prop_map(Way::DiesApplying),
        1 => (0usize..4).prop_map(Way::SourceLost),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..PAGES, 1u64..40, 0u8..4).prop_map(|(page, count, byte)| Step::Merge(page, count, byte)),
        4 => (way(), prop::collection::vec((0..PAGES, 0u8..4), 0..8)).prop_map(|(way, more)| Step::Point(way, more)),
        1 => Just(Step::Restart),
    ]
}

fn open(dir: &Path) -> Store {
    Store::open(dir, Some(PAGES * PAGE_SIZE), Retention::unlimited(), 1000).unwrap()
}

fn watch(ram: &Arc<GuestRam>) -> Watch {
    Watch(Arc::new(Tracked::new(Arc::clone(ram))))
}

fn merge(ram: &GuestRam, memory: &Tracked, page: u64, count: u64, byte: u8) {
    for page in page..(page + count).min(PAGES) {
        memory.before_write(page * PAGE_SIZE, PAGE_SIZE);
        // Pages differ from each other.
        let mut content = vec![byte; PAGE_SIZE as usize];
        if byte != 0 {
            content[0] = page as u8;
        }
        ram.write(page * PAGE_SIZE, &content).unwrap();
    }
}

fn all_of(ram: &GuestRam) -> Vec<u8> {
    let mut all = vec![0; ram.len() as usize];
    ram.read(0, &mut all).unwrap();
    all
}

fn head(epoch: u64, devices: &[u8]) -> Head {
    Head {
        point: MemoryPoint {
            epoch: Epoch(epoch),
            generation: Generation(3),
            time_ms: epoch * 10,
            ram_bytes: PAGES * PAGE_SIZE,
            device_bytes: devices.len() as u64,
            pin: format!("memory-0-{epoch}"),
        },
        device_sum: xxh3_64(devices),
        machine: Fingerprint::default(),
    }
}

type Model = BTreeMap<u64, (Vec<u8>, Vec<u8>)>;

fn check(store: &Store, model: &Model, dir: &Path) {
    let epochs: Vec<u64> = store.shelf().points().iter().map(|p| p.epoch.0).collect();
    assert_eq!(epochs, model.keys().copied().collect::<Vec<_>>());
    for (epoch, (memory, devices)) in model {
        let to = dir.join(format!("out-{epoch}"));
        store.shelf().export(Epoch(*epoch), &to).unwrap();
        assert!(
            fs::read(to.join("ram")).unwrap() == *memory,
            "the memory of {epoch}"
        );
        assert!(
            fs::read(to.join("device")).unwrap() == *devices,
            "the devices of {epoch}"
        );
        fs::remove_dir_all(to).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_point_is_what_memory_was(steps in prop::collection::vec(step(), 1..25)) {
        let dir = tempfile::tempdir().unwrap();
        let points = dir.path().join("points");
        let ram = GuestRam::create(dir.path(), "vm", Role::Standby, PAGES * PAGE_SIZE).unwrap();
        let ram = Arc::new(ram);
        let mut model = Model::new();
        let mut store = Some(open(&points));
        let mut memory = watch(&ram);
        for (number, step) in (1u64..).zip(&steps) {
            let mut restart = false;
            match step {
                Step::Merge(page, count, byte) => merge(&ram, &memory, *page, *count, *byte),
                Step::Restart => restart = true,
                Step::Point(way, meanwhile) => {
                    let kept = store.as_mut().unwrap();
                    let devices = vec![number as u8; 100 + number as usize * 7];
                    let head = head(number * 5, &devices);
                    let compare = memory.0.begin();
                    let was = all_of(&ram);
                    let mut meanwhile = meanwhile.iter();
                    let mut pieces = 0;
                    let written = kept.write(&Devices { head: &head, state: &devices }, compare, |piece| {
                        if let Some((page, byte)) = meanwhile.next() {
                            merge(&ram, &memory, *page, 3, *byte);
                        }
                        if *way == Way::SourceLost(pieces) {
                            return Err(GivenUp::Over);
                        }
                        pieces += 1;
                        memory.0.next(piece)
                    });
                    let own = match written {
                        Ok((own, _)) => own,
                        Err(StoreError::GivenUp(_)) => {
                            memory.0.not_kept(compare, false);
                            continue;
                        }
                        Err(other) => panic!("{other}"),
                    };
                    // In the log: it is kept, whatever happens.
                    model.insert(number * 5, (was, devices));
                    match way {
                        Way::DiesWritten => restart = true,
                        Way::DiesSaved => {
                            kept.save(own).unwrap();
                            restart = true;
                        }
                        Way::DiesApplying(extents) => {
                            kept.save(own).unwrap();
                            kept.apply_a_part(own, *extents).unwrap();
                            restart = true;
                        }
                        Way::Kept | Way::SourceLost(_) => {
                            kept.finish(own, &head).unwrap();
                            memory.0.kept();
                        }
                    }
                }
            }
            if restart {
                drop(store.take());
                store = Some(open(&points));
                memory = watch(&ram);
                check(store.as_ref().unwrap(), &model, dir.path());
            }
        }
        check(store.as_ref().unwrap(), &model, dir.path());
    }
}

/// A store with some points, each with another memory.
fn some_points(dir: &Path, epochs: &[u64], retention: Retention) -> Store {
    let ram = GuestRam::create(dir, "vm", Role::Standby, PAGES * PAGE_SIZE).unwrap();
    let ram = Arc::new(ram);
    let points = dir.join("points");
    let mut store = Store::open(&points, Some(PAGES * PAGE_SIZE), retention, 1000).unwrap();
    let memory = watch(&ram);
    for epoch in epochs {
        merge(&ram, &memory, *epoch, 5, *epoch as u8);
        let head = head(*epoch, b"devices");
        let state = b"devices";
        let devices = Devices { head: &head, state };
        let compare = memory.0.begin();
        let next = |piece: &mut Vec<u8>| memory.0.next(piece);
        store.keep(&devices, compare, next).unwrap();
        memory.0.kept();
    }
    store
}

#[test]
fn what_is_too_old_goes_and_the_newest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention {
        age_ms: 60_000,
        ..Retention::unlimited()
    };
    let mut store = some_points(dir.path(), &[1, 2, 3], retention);
    assert_eq!(store.trim(2000).unwrap(), Vec::new());
    let later = nbd_server::group::history::now_ms() + 3_600_000;
    let gone: Vec<Epoch> = store.trim(later).unwrap().iter().map(|p| p.epoch).collect();
    assert_eq!(gone, [Epoch(1), Epoch(2)]);
    let refused = store.shelf().export(Epoch(2), &dir.path().join("two"));
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("from epoch 3 to 3"), "{refused}");
    let out = dir.path().join("three");
    store.shelf().export(Epoch(3), &out).unwrap();
    assert_eq!(fs::read(out.join("ram")).unwrap()[3 * 4096 + 1], 3);
}

/// On a disk that can't have as much free as is asked for, the newest point alone stays; whoever asks for nothing keeps all.
#[test]
fn points_give_way_when_too_little_is_free() {
    for (min_free, left) in [("8388607TiB", vec![3]), ("0B", vec![1, 2, 3])] {
        let dir = tempfile::tempdir().unwrap();
        let config = serde_json::json!({ "dir": "unused", "min_free": min_free });
        let config: MemoryHistoryConfig = serde_json::from_value(config).unwrap();
        let mut store = some_points(dir.path(), &[1, 2, 3], config.retention());
        store.trim(nbd_server::group::history::now_ms()).unwrap();
        let points = store.shelf().points();
        let kept: Vec<u64> = points.iter().map(|point| point.epoch.0).collect();
        assert_eq!(kept, left, "{min_free}");
    }
}

#[test]
fn a_directory_without_points_and_one_of_another_vm_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let nothing = super::list(&dir.path().join("points")).unwrap_err();
    assert!(nothing.to_string().contains("no memory history"));
    drop(some_points(dir.path(), &[1, 7], Retention::unlimited()));
    // Nobody has it: it is read as it is.
    let listed = super::list(&dir.path().join("points")).unwrap();
    let epochs: Vec<u64> = listed.iter().map(|point| point.epoch.0).collect();
    assert_eq!(epochs, [1, 7]);
    let points = dir.path().join("points");
    let other = Store::open(
        &points,
        Some(2 * PAGES * PAGE_SIZE),
        Retention::unlimited(),
        1,
    );
    assert!(matches!(other, Err(StoreError::OtherSize { .. })));
}

#[test]
fn a_point_that_costs_too_much_memory_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    // So many pages that a quarter of them is more than what is always allowed.
    let pages = 20_000;
    let ram = GuestRam::create(dir.path(), "vm", Role::Standby, pages * PAGE_SIZE).unwrap();
    let memory = Tracked::new(Arc::new(ram));
    assert!(memory.begin());
    let mut piece = Vec::new();
    assert_eq!(memory.next(&mut piece), Ok(Some(0)));
    memory.before_write(0, 6000 * PAGE_SIZE);
    assert_eq!(memory.next(&mut piece), Err(GivenUp::TooFast));
    memory.not_kept(true, false);
    // All of it belongs to the next one.
    assert!(memory.begin());
    assert_eq!(memory.next(&mut piece), Ok(Some(0)));
}
