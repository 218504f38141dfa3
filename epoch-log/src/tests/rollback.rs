//! Taking a damaged log back: what was whole is kept to the byte, the rest is named and set aside, nobody of before goes on, and an
//! interruption at any point leaves a log that either refuses to open or was taken back.

use std::path::Path;

use rand::{SeedableRng, rngs::StdRng};

use super::damage::{Files, records, sample};
use super::forgetful::{Disk, selections};
use super::model::{Durable, durable, open, restore, snapshot};
use crate::{
    Epoch, Generation, LogError, Mode, faults, inspect,
    rollback::{Rollback, RollbackError, plan, recover},
    segment,
};

/// The sample with a byte of the last data record of `epoch` flipped.
fn damaged(epoch: u64) -> (Files, Durable) {
    let (mut files, expected) = sample();
    let dir = restore(&files);
    let report = inspect::inspect(dir.path()).unwrap();
    let commit = report
        .history
        .iter()
        .find(|entry| entry.kind == "commit" && entry.committed == Epoch(epoch))
        .unwrap();
    // What lies before a commit record in its segment, or at the end of the one before, is data; those of other epochs lie between.
    let mut places = records(dir.path());
    places.retain(|at| (at.segment, at.offset) < (commit.segment, commit.offset));
    for at in places.into_iter().rev() {
        let file = files.get_mut(&segment::file_name(at.segment)).unwrap();
        let start = usize::try_from(at.offset).unwrap();
        let of_epoch = file[start + 16] == 1 && file[start + 72] == u8::try_from(epoch).unwrap();
        if of_epoch {
            file[start + 600] ^= 1;
            return (files, expected);
        }
    }
    panic!("no data of epoch {epoch}");
}

/// What must be there after going back to `to`.
fn check(dir: &Path, expected: &Durable, done: &Rollback) {
    let (log, recovered) = open(dir).unwrap();
    let found = durable(&log);
    assert_eq!(found.state.committed, done.to);
    assert_eq!(found.state.applied, expected.state.applied);
    assert_eq!(found.state.mode, Mode::Sync, "no memory is held");
    assert_eq!(found.state.owner, None);
    assert_eq!(found.state.generation, done.generation);
    assert!(found.state.generation > expected.state.generation);
    let mut kept = expected.epochs.clone();
    kept.retain(|epoch, _| *epoch <= done.to);
    assert_eq!(found.epochs, kept);
    assert!(!recovered.clean);
    drop(log);
    assert!(inspect::verify(dir).unwrap().is_whole());
}

#[test]
fn a_log_goes_back_to_the_last_epoch_before_the_damage() {
    for bad in 2..=5 {
        let (files, expected) = damaged(bad);
        let dir = restore(&files);
        assert!(matches!(open(dir.path()), Err(LogError::Damaged(_))));
        let verdict = inspect::verify(dir.path()).unwrap();
        let salvage = verdict.salvage.clone().unwrap();
        assert_eq!(salvage.last, Epoch(bad - 1));
        assert_eq!((salvage.committed, salvage.applied), (Epoch(6), Epoch(1)));
        assert!(!salvage.may_hide_more, "{verdict:?}");
        let planned = plan(dir.path(), salvage.last).unwrap();
        assert_eq!(inspect::verify(dir.path()).unwrap(), verdict, "a plan");
        let done = recover(dir.path(), salvage.last).unwrap();
        assert_eq!(done, planned);
        assert_eq!(done.lost, 6 - (bad - 1));
        check(dir.path(), &expected, &done);
        let after = snapshot(dir.path());
        let segments = files.keys().filter(|name| name.ends_with(".seg"));
        for (name, aside) in segments.zip(&done.set_aside) {
            assert_eq!(after[aside], files[name], "{name} is kept as it was");
        }
    }
}

#[test]
fn what_is_lost_is_said_by_epoch_and_disk() {
    let (files, _) = damaged(4);
    let dir = restore(&files);
    let salvage = inspect::verify(dir.path()).unwrap().salvage.unwrap();
    let whole: Vec<(u64, bool)> = salvage
        .epochs
        .iter()
        .map(|left| (left.epoch.0, left.whole))
        .collect();
    let expected = [(2, true), (3, true), (4, false), (5, true), (6, true)];
    assert_eq!(whole, expected);
    let disks: Vec<_> = salvage.epochs[2]
        .disks
        .iter()
        .map(|change| (change.disk.as_str(), change.written, change.cleared))
        .collect();
    // Two records: 5000 bytes and 900, and 600 and 900 that came ahead of it.
    let names = super::model::disks();
    assert_eq!(
        disks,
        [
            (names[0].name.as_str(), 5600, 0),
            (names[1].name.as_str(), 1800, 16384)
        ]
    );
    assert!(salvage.written_at.is_some());
}

#[test]
fn an_earlier_epoch_can_be_chosen_but_none_that_is_not_there() {
    let (files, expected) = damaged(4);
    let dir = restore(&files);
    assert!(matches!(
        recover(dir.path(), Epoch(4)),
        Err(RollbackError::NotThere { last: Epoch(3), .. })
    ));
    assert!(matches!(
        recover(dir.path(), Epoch(0)),
        Err(RollbackError::Applied {
            applied: Epoch(1),
            ..
        })
    ));
    let mut unchanged = snapshot(dir.path());
    unchanged.retain(|name, _| files.contains_key(name));
    assert_eq!(unchanged, files);
    let done = recover(dir.path(), Epoch(2)).unwrap();
    check(dir.path(), &expected, &done);
    assert!(matches!(
        recover(dir.path(), Epoch(2)),
        Err(RollbackError::Whole)
    ));
}

#[test]
fn what_is_applied_is_enough_to_go_on() {
    // Nothing is left but the newest segment's header and what follows it.
    let (mut files, expected) = sample();
    let names: Vec<String> = files
        .keys()
        .filter(|name| name.ends_with(".seg"))
        .cloned()
        .collect();
    let (last, others) = names.split_last().unwrap();
    for name in others {
        files.get_mut(name).unwrap().fill(0xee);
    }
    let dir = restore(&files);
    let salvage = inspect::verify(dir.path()).unwrap().salvage.unwrap();
    assert_eq!(
        (salvage.last, salvage.applied),
        (Epoch(1), Epoch(1)),
        "{last}"
    );
    assert!(salvage.may_hide_more);
    let done = recover(dir.path(), Epoch(1)).unwrap();
    check(dir.path(), &expected, &done);
}

#[test]
fn a_lost_newest_segment_costs_what_was_in_it() {
    let (mut files, expected) = sample();
    let name = files
        .keys()
        .rfind(|name| name.ends_with(".seg"))
        .unwrap()
        .clone();
    files.get_mut(&name).unwrap()[..8192].fill(0);
    let dir = restore(&files);
    let salvage = inspect::verify(dir.path()).unwrap().salvage.unwrap();
    assert!(salvage.may_hide_more && salvage.last > Epoch(1));
    let done = recover(dir.path(), salvage.last).unwrap();
    let (log, _) = open(dir.path()).unwrap();
    assert_eq!(log.state().committed, salvage.last);
    // A takeover may have been recorded where nothing can be read.
    assert!(done.generation > Generation(expected.state.generation.0 + 1));
}

#[test]
fn a_log_without_a_readable_header_is_none() {
    let (mut files, _) = sample();
    files.values_mut().for_each(|file| file.fill(7));
    let dir = restore(&files);
    let verdict = inspect::verify(dir.path()).unwrap();
    assert!(!verdict.is_whole() && verdict.salvage.is_none());
    assert!(matches!(
        recover(dir.path(), Epoch(1)),
        Err(RollbackError::Log(LogError::NotALog { .. }))
    ));
}

#[test]
fn nobody_goes_back_while_a_gateway_has_the_log() {
    let (files, _) = sample();
    let dir = restore(&files);
    let (_log, _) = open(dir.path()).unwrap();
    assert!(matches!(
        recover(dir.path(), Epoch(1)),
        Err(RollbackError::Log(LogError::InUse { .. }))
    ));
}

/// After an interruption: the log refuses to open, or it was taken back; and the same command brings it there.
fn check_interrupted(files: &Files, expected: &Durable, to: Epoch, what: &str) {
    let dir = restore(files);
    match open(dir.path()) {
        Ok((log, _)) => {
            assert_eq!(log.state().committed, to, "{what}");
            assert_eq!(log.state().mode, Mode::Sync, "{what}");
            let mut kept = expected.epochs.clone();
            kept.retain(|epoch, _| *epoch <= to);
            assert_eq!(durable(&log).epochs, kept, "{what}");
        }
        Err(LogError::Damaged(_)) => {
            let done = recover(dir.path(), to).unwrap_or_else(|error| panic!("{what}: {error}"));
            check(dir.path(), expected, &done);
        }
        Err(other) => panic!("{what}: {other}"),
    }
}

#[test]
fn a_crash_at_any_point_leaves_a_log_that_refuses_or_was_taken_back() {
    let mut random = StdRng::seed_from_u64(5);
    let mut states = 0;
    for bad in [2, 4] {
        let (files, expected) = damaged(bad);
        let to = Epoch(bad - 1);
        let dir = restore(&files);
        faults::start(None);
        let done = recover(dir.path(), to);
        let changes = faults::stop();
        done.unwrap();
        let mut disk = Disk::holding(&files);
        for (number, op) in changes.iter().map(Some).chain([None]).enumerate() {
            for kept in selections(disk.parts(), 64, &mut random) {
                let left = disk.after_crash(&kept);
                let what = format!("damage in {bad}, crash before change {number}, kept {kept:?}");
                check_interrupted(&left, &expected, to, &what);
                states += 1;
            }
            if let Some(op) = op {
                disk.act(op);
            }
        }
    }
    assert!(states > 100, "only {states}");
}

#[test]
fn an_error_at_any_point_leaves_a_log_that_refuses_or_was_taken_back() {
    let (files, expected) = damaged(4);
    for errno in [libc::EIO, libc::ENOSPC] {
        for number in 0.. {
            let dir = restore(&files);
            faults::start(Some((number, errno)));
            let done = recover(dir.path(), Epoch(3));
            let changes = faults::stop();
            let what = format!("error {errno} at change {number}");
            check_interrupted(&snapshot(dir.path()), &expected, Epoch(3), &what);
            if changes.len() <= number {
                done.unwrap();
                break;
            }
            assert!(done.is_err(), "{what}");
        }
    }
}
