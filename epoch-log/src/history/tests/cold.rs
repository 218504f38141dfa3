//! Old runs in a cold store: what needs it and what does not, what goes first, and what a store that has lost something costs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::{ColdStore, Cooled, Cooling, HistoryError, Retention, verify};
use super::model::{DISKS, Group, SIZE, Write};
use super::store::{Objects, Store};
use crate::Epoch;

const ALL: Cooling = Cooling {
    after_ms: 0,
    above: u64::MAX,
};

/// Three epochs, each with a write of its own to both disks.
fn epochs(round: usize) -> Vec<Vec<Write>> {
    let write = |disk: u16, i: usize| {
        let at = (i * 1531 + usize::from(disk) * 700) % (SIZE - 900);
        (disk, at, 300 + i % 500, u8::try_from(1 + i % 255).unwrap())
    };
    let epoch = |i: usize| vec![write(0, round * 3 + i), write(1, round * 5 + i)];
    (0..3).map(epoch).collect()
}

fn filled(dir: &std::path::Path) -> (Group, Arc<Store>) {
    let mut group = Group::new(dir);
    let store = Arc::new(Store::holding(Objects::new()));
    group.store = Some(Arc::clone(&store));
    group.open().unwrap();
    for round in 0..120 {
        group.run(&epochs(round));
    }
    (group, store)
}

fn keep_all() -> Retention {
    Retention::unlimited()
}

fn cool(group: &Group, cooling: &Cooling) -> Result<Cooled, HistoryError> {
    group
        .history()
        .cool(group.time, cooling, &keep_all(), &|| true)
}

fn try_read(group: &Group, epoch: u64) -> Result<u64, HistoryError> {
    let view = group.history().view(Epoch(epoch))?;
    let mut all = Vec::new();
    for (disk, image) in group.images.iter().enumerate() {
        let mut buffer = vec![0; SIZE];
        view.read(disk as u16, 0, &mut buffer, |at, part| {
            part.copy_from_slice(&image[at as usize..at as usize + part.len()]);
            Ok(())
        })?;
        all.push(buffer);
    }
    Ok(super::model::sum(&all))
}

#[test]
fn only_payload_needs_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let (mut group, store) = filled(dir.path());
    let before = group.history().status();
    group.cool(0, &keep_all());
    let status = group.history().status();
    assert!(status.cold_runs > 5 && status.cold_runs + 1 == status.runs);
    assert!(status.bytes < before.bytes && status.cold_bytes > 0);
    assert_eq!((status.points, status.oldest), (before.points, Epoch(0)));
    let held: usize = store.objects.lock().unwrap().values().map(Vec::len).sum();
    assert_eq!(status.cold_bytes, held as u64);
    assert!(
        store.names().len() as u64 > status.cold_runs,
        "of several objects each"
    );

    // From here on it does not answer.
    store.answers(0);
    group.open().unwrap();
    store.calls.store(0, Ordering::Relaxed);
    let changes = group.history().changes(Epoch(0), Epoch(90)).unwrap();
    for disk in 0..DISKS {
        assert!(
            !changes
                .changed(disk as u16, 0, SIZE as u64)
                .unwrap()
                .is_empty()
        );
    }
    let view = group.history().view(Epoch(10)).unwrap();
    assert!(!view.changed(0, 0, SIZE as u64).unwrap().is_empty());
    view.layout(0, 0, SIZE as u64).unwrap();
    group.history().pin("ten", Epoch(10)).unwrap();
    group.run(&epochs(121));
    group.maintain(&keep_all());
    assert_eq!(store.calls.load(Ordering::Relaxed), 0);
    let away = try_read(&group, 10).unwrap_err();
    assert!(matches!(away, HistoryError::Cold { .. }), "{away}");
    assert!(view.check_cold(&[SIZE as u64; DISKS]).is_err());
    assert!(try_read(&group, group.applied).is_ok());

    store.answers(u64::MAX);
    view.check_cold(&[SIZE as u64; DISKS]).unwrap();
    group.check();

    // Nobody says where it is.
    group.store = None;
    drop((view, changes));
    group.open().unwrap();
    let nowhere = try_read(&group, 10).unwrap_err();
    let source = std::error::Error::source(&nowhere).unwrap().to_string();
    assert!(source.contains("[group.history.cold]"), "{source}");
    let nothing = cool(&group, &ALL).unwrap();
    assert!(nothing.is_nothing());
}

#[test]
fn what_is_near_is_asked_for_once() {
    let dir = tempfile::tempdir().unwrap();
    let (group, store) = filled(dir.path());
    group.cool(0, &keep_all());
    store.calls.store(0, Ordering::Relaxed);
    for _ in 0..5 {
        group.check();
    }
    let names = store.names().len() as u64;
    let calls = store.calls.load(Ordering::Relaxed);
    assert!(calls <= names, "{calls} calls for {names} objects");
}

#[test]
fn the_oldest_goes_first_and_as_much_as_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let (group, _) = filled(dir.path());
    let local = group.history().status().bytes;
    let half = Cooling {
        after_ms: u64::MAX,
        above: local / 2,
    };
    while !cool(&group, &half).unwrap().is_nothing() {}
    let status = group.history().status();
    assert!(status.cold_runs > 0 && status.cold_runs + 1 < status.runs);
    assert!(status.bytes <= local / 2, "{status:?}");
    let live = group.history().live();
    let cold: Vec<bool> = live.runs.iter().map(|run| run.is_cold()).collect();
    assert!(cold.windows(2).all(|pair| pair[0] >= pair[1]), "{cold:?}");
    drop(live);
    // One that is not old enough stays.
    let young = Cooling {
        after_ms: group.time,
        above: u64::MAX,
    };
    assert!(cool(&group, &young).unwrap().is_nothing());
    group.check();
}

#[test]
fn what_waits_to_be_thinned_goes_later() {
    let dir = tempfile::tempdir().unwrap();
    let (mut group, _) = filled(dir.path());
    let tiers = vec![super::super::Tier {
        older_than_ms: 1_000,
        one_in_ms: 500,
    }];
    let retention = Retention {
        tiers,
        ..keep_all()
    };
    let cooling = Cooling {
        after_ms: 3_000,
        above: u64::MAX,
    };
    let cool = |group: &Group| {
        let history = group.history();
        history.cool(group.time, &cooling, &retention, &|| true)
    };
    group.time += 800;
    assert!(
        cool(&group).unwrap().is_nothing(),
        "it is due to be thinned"
    );
    while !group.maintain(&retention).is_nothing() {}
    group.time += 3_000;
    while !group.maintain(&retention).is_nothing() {}
    assert!(!cool(&group).unwrap().is_nothing());
    group.check();
}

#[test]
fn bounds_of_space_are_for_what_is_here_and_age_is_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let (mut group, store) = filled(dir.path());
    group.cool(0, &keep_all());
    let status = group.history().status();
    let little = Retention {
        bytes: 1,
        min_free: u64::MAX,
        ..keep_all()
    };
    assert!(group.maintain(&little).is_nothing());
    // A pin keeps what is cold, too.
    group.history().pin("old", Epoch(0)).unwrap();
    group.time += 10_000;
    let short = Retention {
        age_ms: 5_000,
        ..keep_all()
    };
    while !group.maintain(&short).is_nothing() {}
    assert_eq!(group.history().status().cold_runs, status.cold_runs);
    group.check();
    group.history().unpin("old").unwrap();
    // The store is away: what is trimmed is trimmed all the same, and goes from there later.
    store.answers(0);
    while !group.maintain(&short).is_nothing() {}
    assert_eq!(group.history().status().cold_runs, 0);
    assert!(cool(&group, &ALL).is_err());
    group.open().unwrap();
    assert!(!store.names().is_empty());
    store.answers(u64::MAX);
    while !cool(&group, &ALL).unwrap().is_nothing() {}
    assert_eq!(store.names(), Vec::<String>::new());
    group.check();
}

#[test]
fn a_full_disk_takes_cold_history_only_when_it_must() {
    let dir = tempfile::tempdir().unwrap();
    let (group, store) = filled(dir.path());
    group.cool(0, &keep_all());
    let before = group.history().status();
    assert!(group.history().trim_for_space().unwrap());
    let after = group.history().status();
    assert_eq!(after.cold_runs + 1, before.cold_runs);
    assert!(after.oldest > before.oldest);
    let names = store.names().len();
    group.cool(0, &keep_all());
    assert!(store.names().len() < names);
    group.check();
}

#[test]
fn a_move_that_is_cut_short_goes_on_with_the_same_objects() {
    let dir = tempfile::tempdir().unwrap();
    let (mut group, store) = filled(dir.path());
    store.answers(1);
    assert!(cool(&group, &ALL).is_err());
    let begun = store.names();
    assert_eq!(begun.len(), 1);
    group.open().unwrap();
    // To be told to stop is no error.
    store.answers(u64::MAX);
    let history = Arc::clone(group.history());
    let stopped = history.cool(group.time, &ALL, &keep_all(), &|| false);
    assert!(stopped.unwrap().is_nothing());
    assert_eq!(store.names(), begun);
    assert!(cool(&group, &ALL).unwrap().moved > 0);
    assert!(store.names().contains(&begun[0]));
    // What is trimmed while it is on its way is removed.
    store.answers(1);
    assert!(cool(&group, &ALL).is_err());
    store.answers(u64::MAX);
    let oldest = group
        .history()
        .live()
        .runs
        .iter()
        .find(|run| !run.is_cold())
        .unwrap()
        .from
        .seq;
    while group.history().live().oldest().seq <= oldest {
        assert!(group.history().trim_for_space().unwrap());
    }
    while !cool(&group, &ALL).unwrap().is_nothing() {}
    assert!(store.names().iter().all(|name| !begun.contains(name)));
    group.check();
}

#[test]
fn what_the_store_has_lost_costs_the_epochs_that_need_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut group, store) = filled(dir.path());
    group.cool(0, &keep_all());
    let cold = || Some(Arc::clone(&store) as Arc<dyn ColdStore>);
    let whole = verify(dir.path(), cold()).unwrap().unwrap();
    assert!(
        whole.damages.is_empty() && whole.cold_read && whole.cold_runs > 5,
        "{whole:?}"
    );
    let kept: Vec<u64> = (0..=group.applied).step_by(7).collect();
    for name in store.names() {
        let held = store.objects.lock().unwrap()[&name].clone();
        let mut damaged = held.clone();
        for byte in damaged.iter_mut().step_by(100) {
            *byte ^= 0x40;
        }
        for instead in [Some(damaged), Some(held[..held.len() - 1].to_vec()), None] {
            let missing = instead.is_none();
            match instead {
                Some(bytes) => store.objects.lock().unwrap().insert(name.clone(), bytes),
                None => store.objects.lock().unwrap().remove(&name),
            };
            group.open().unwrap();
            let mut failed = 0;
            for epoch in &kept {
                match try_read(&group, *epoch) {
                    Ok(sum) => assert_eq!(sum, group.epochs[epoch], "epoch {epoch}"),
                    Err(error @ (HistoryError::Damaged { .. } | HistoryError::Cold { .. })) => {
                        assert!(error.to_string().contains(&name), "{error}");
                        failed += 1;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(failed < kept.len(), "{name}: all of it");
            let verdict = verify(dir.path(), cold()).unwrap().unwrap();
            let named = verdict.damages.iter().any(|damage| damage.contains(&name));
            assert!(named || failed == 0, "{name}: {failed} {verdict:?}");
            assert!(named || !missing, "{name}: {verdict:?}");
            // What is here is whole all the same.
            assert_eq!(
                verify(dir.path(), None).unwrap().unwrap().damages,
                Vec::<String>::new()
            );
        }
        store.objects.lock().unwrap().insert(name, held);
    }
    group.open().unwrap();
    group.check();
    store.answers(0);
    assert!(matches!(
        verify(dir.path(), cold()),
        Err(HistoryError::Cold { .. })
    ));
}
