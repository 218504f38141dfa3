//! The power goes before any change of a file, in many of the ways in which it can, and nothing that is kept reads otherwise. Damage is
//! noticed, and costs no more than it has to.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rand::{SeedableRng, rngs::StdRng};

use super::super::cold::{State, Stub, number_of};
use super::super::{HistoryError, Options, Retention, Tier, verify};
use super::model::{Group, TINY, Write};
use super::store::{Event, Objects, Store};
use crate::Epoch;
use crate::disk::LogDir;
use crate::faults;
use crate::tests::forgetful::{Disk, selections};
use crate::tests::model::{restore, scratch};

/// Ways to crash that are tried at each change.
const STATES: usize = 16;
/// Runs this old, in milliseconds, go to the cold store.
const AFTER_MS: u64 = 150;

fn epochs(seed: usize) -> Vec<Vec<Write>> {
    let write = |i: usize| {
        let at = (i * 977 + seed * 131) % 5000;
        let byte = u8::try_from((i * 7 + seed) % 256).unwrap();
        ((i % 2) as u16, at, 1 + i * 37 % 900, byte)
    };
    (0..3)
        .map(|i| vec![write(i * 3 + seed), write(i * 5 + 1)])
        .collect()
}

/// What a crash must find: images, and what is to be applied to them.
struct Moment {
    changes: usize,
    images: Vec<Vec<u8>>,
    applied: u64,
    committed: u64,
    waiting: Vec<Vec<Write>>,
    pins: usize,
}

fn moment(group: &Group, applied: u64, waiting: &[Vec<Write>]) -> Moment {
    Moment {
        changes: faults::count(),
        images: group.images.clone(),
        applied,
        committed: group.committed,
        waiting: waiting.to_vec(),
        pins: group.history().pins().len(),
    }
}

#[test]
fn no_crash_changes_what_is_kept() {
    crash_everywhere(None, STATES);
}

/// Also what is on its way to the cold store, or there; and nothing stays there that nobody knows of.
#[test]
fn no_crash_changes_what_is_kept_in_cold_storage() {
    crash_everywhere(Some(Arc::new(Store::holding(Objects::new()))), STATES / 4);
}

/// What the store may hold when the power goes before change `number` of a file: what was done until then, and of what was done since the
/// change before, each first part.
fn stores_at(events: &[Event], number: usize) -> Vec<Objects> {
    let mut objects = Objects::new();
    let mut stores = Vec::new();
    for (changes, name, content) in events.iter().take_while(|event| event.0 <= number) {
        if *changes == number {
            stores.push(objects.clone());
        }
        match content {
            Some(content) => objects.insert(name.clone(), content.clone()),
            None => objects.remove(name),
        };
    }
    stores.push(objects);
    stores
}

/// The store holds what the stubs name and nothing else.
fn check_store(group: &Group, what: &str) {
    let Some(store) = &group.store else { return };
    let dir = LogDir::open(&group.dir).unwrap();
    let mut named = BTreeSet::new();
    for (number, state) in dir
        .names()
        .unwrap()
        .iter()
        .filter_map(|name| number_of(name))
    {
        assert_eq!(state, State::Whole, "{number}: {what}");
        let objects = Stub::open(&dir, number, state).unwrap().unwrap().objects;
        named.extend((0..objects.parts()).map(|part| objects.name([7; 16], part)));
    }
    let held: BTreeSet<String> = store.names().into_iter().collect();
    assert_eq!(held, named, "{what}");
}

/// A life of a group, and every crash in it; with a store, old runs go there.
fn crash_everywhere(store: Option<Arc<Store>>, states: usize) {
    let retention = Retention {
        age_ms: if store.is_some() { 800 } else { 2000 },
        bytes: u64::MAX,
        min_free: 0,
        tiers: vec![Tier {
            older_than_ms: 300,
            one_in_ms: 100,
        }],
    };
    let dir = scratch();
    faults::start(None);
    let mut group = Group::new(dir.path());
    group.store = store.clone();
    // Small ones, so that many of them move.
    let run_entries = if store.is_some() {
        20
    } else {
        TINY.run_entries
    };
    let options = Options {
        run_entries,
        object_bytes: 6_000,
        ..TINY
    };
    group.options = options;
    group.open().unwrap();
    let mut moments = Vec::new();
    for round in 0..40 {
        let waiting = epochs(round);
        let applied = group.applied;
        group.committed += waiting.len() as u64;
        // From here on the log has them.
        moments.push(moment(&group, applied, &waiting));
        group.save(&waiting).unwrap();
        moments.push(moment(&group, applied, &waiting));
        group.apply(&waiting, round % 7);
        moments.push(moment(&group, applied, &waiting));
        group.apply(&waiting, usize::MAX);
        group.applied();
        moments.push(moment(&group, group.applied, &[]));
        if round == 9 {
            group.history().pin("ten", Epoch(group.applied)).unwrap();
            moments.push(moment(&group, group.applied, &[]));
        }
        if round % 3 == 0 {
            group.time += 100;
            while !group.maintain(&retention).is_nothing() {}
            moments.push(moment(&group, group.applied, &[]));
            if store.is_some() {
                group.cool(AFTER_MS, &retention);
                moments.push(moment(&group, group.applied, &[]));
            }
        }
    }
    let changes = faults::stop();
    check_store(&group, "without a crash");
    let events = store.map(|store| std::mem::take(&mut *store.events.lock().unwrap()));
    let removed = |event: &Event| event.2.is_none();
    assert!(
        events
            .iter()
            .all(|all| all.len() > 30 && all.iter().any(removed))
    );
    let (epochs, time) = (group.epochs, group.time);
    let mut disk = Disk::default();
    let mut random = StdRng::seed_from_u64(11);
    let mut tried = 0;
    let first = moments.first().unwrap().changes;
    for (number, change) in changes.iter().enumerate() {
        if number >= first {
            // What had been reached by then: all that came between the change before and this one, or what this one belongs to.
            let at = moments.partition_point(|moment| moment.changes <= number);
            let mut reached: Vec<&Moment> = moments[..at]
                .iter()
                .filter(|moment| moment.changes == number)
                .collect();
            if reached.is_empty() {
                reached.extend(moments[..at].last());
            }
            let stores = match &events {
                Some(events) => stores_at(events, number).into_iter().map(Some).collect(),
                None => vec![None],
            };
            for (at, kept) in selections(disk.parts(), states, &mut random)
                .iter()
                .enumerate()
            {
                let files = disk.after_crash(kept);
                for moment in &reached {
                    let left = restore(&files);
                    let store = stores[at % stores.len()].clone();
                    let mut group = Group {
                        dir: left.path().to_owned(),
                        history: None,
                        options,
                        store: store.map(|objects| Arc::new(Store::holding(objects))),
                        images: moment.images.clone(),
                        committed: moment.committed,
                        applied: moment.applied,
                        time,
                        epochs: epochs.clone(),
                    };
                    let opened = group.open().unwrap();
                    let what = format!("before change {number} of {}: {opened:?}", changes.len());
                    assert!(opened.lost.is_empty(), "{what}");
                    if !moment.waiting.is_empty() {
                        group.run(&moment.waiting);
                    }
                    let points = group.check();
                    assert!(!opened.created && points.contains(&group.applied), "{what}");
                    assert!(group.history().pins().len() >= moment.pins, "{what}");
                    group.epochs.split_off(&(group.applied + 1));
                    group.run(&self::epochs(99));
                    if group.store.is_some() {
                        group.cool(AFTER_MS, &retention);
                        check_store(&group, &what);
                    }
                    group.check();
                    tried += 1;
                }
            }
        }
        disk.act(change);
    }
    let least = if events.is_some() { 900 } else { 2000 };
    assert!(tried > least, "only {tried} crashes were tried");
}

fn filled(dir: &std::path::Path) -> Group {
    let mut group = Group::new(dir);
    for round in 0..30 {
        group.run(&epochs(round));
    }
    group
}

fn flip(path: &std::path::Path, at: u64) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn damage_is_never_taken_for_content() {
    let dir = scratch();
    let group = filled(dir.path());
    let (epochs, images, applied, time) = (
        group.epochs.clone(),
        group.images.clone(),
        group.applied,
        group.time,
    );
    drop(group);
    let files = crate::tests::model::snapshot(dir.path());
    let whole = verify(dir.path(), None).unwrap().unwrap();
    assert!(whole.damages.is_empty() && whole.ranges > 100, "{whole:?}");
    let mut noticed = 0;
    for (name, bytes) in files.iter().filter(|(name, _)| name.ends_with(".run")) {
        for at in (0..bytes.len() as u64).step_by(1237) {
            let left = restore(&files);
            flip(&left.path().join(name), at);
            let verdict = verify(left.path(), None).unwrap().unwrap();
            let mut group = Group {
                dir: left.path().to_owned(),
                history: None,
                options: TINY,
                store: None,
                images: images.clone(),
                committed: applied,
                applied,
                time,
                epochs: epochs.clone(),
            };
            let lost = match group.open() {
                Ok(opened) => !opened.lost.is_empty(),
                // Not even the pins could be trusted.
                Err(HistoryError::Damaged { .. } | HistoryError::OtherLog { .. }) => {
                    noticed += 1;
                    continue;
                }
                Err(error) => panic!("byte {at} of {name}: {error}"),
            };
            let mut points = Vec::new();
            let visited = group
                .history()
                .visit_points(Epoch(0), |point| points.push(point));
            let mut damaged = lost || visited.is_err();
            for point in points {
                let read = group.history().view(point.epoch).and_then(|view| {
                    let mut all = Vec::new();
                    for (disk, image) in images.iter().enumerate() {
                        let mut buffer = vec![0; image.len()];
                        view.read(disk as u16, 0, &mut buffer, |at, part| {
                            part.copy_from_slice(&image[at as usize..at as usize + part.len()]);
                            Ok(())
                        })?;
                        all.push(buffer);
                    }
                    Ok(super::model::sum(&all))
                });
                match read {
                    Ok(sum) => assert_eq!(
                        sum, epochs[&point.epoch.0],
                        "byte {at} of {name}, {point:?}"
                    ),
                    Err(HistoryError::Damaged { .. }) => damaged = true,
                    Err(error) => panic!("byte {at} of {name}: {error}"),
                }
            }
            noticed += usize::from(damaged);
            let said = !verdict.damages.is_empty() || verdict.ranges < whole.ranges;
            assert!(said || !damaged, "byte {at} of {name}: {verdict:?}");
            // And life goes on.
            group.run(&self::epochs(50));
            let newest = group.history().view(Epoch(group.applied)).unwrap();
            assert_eq!(
                super::model::sum(&group.read(&newest)),
                group.epochs[&group.applied]
            );
        }
    }
    assert!(noticed > 20, "only {noticed} of them were noticed");
}

#[test]
fn a_history_of_another_log_or_time_is_refused() {
    let dir = scratch();
    let mut group = filled(dir.path());
    group.committed -= 5;
    group.applied -= 5;
    assert!(matches!(group.open(), Err(HistoryError::OtherTime { .. })));
}
