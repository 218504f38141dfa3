//! Every error: each change of a file of a history fails once, with a full disk or an I/O error. After a full disk the log goes on as
//! if nothing had been; after any other error it refuses to go on, and opening it again finds the state before or after the call.

use proptest::{prelude::*, test_runner::TestRunner};

use super::model::{
    Call, Model, Owned, OwnedContent, SEGMENT_BYTES, call, disks, durable, open, pattern, run,
};
use crate::{Content, EpochLog, Extent, LogError, LogOptions, faults};

const EIO: i32 = libc::EIO;
const ENOSPC: i32 = libc::ENOSPC;

/// Runs a history in which change number `at` fails. Returns how many changes there were, and whether any call failed.
fn run_with_fault(calls: &[Call], at: usize, errno: i32) -> (usize, bool) {
    let dir = tempfile::tempdir().unwrap();
    let mut model = Model::new();
    let mut failed = false;
    faults::start(Some((at, errno)));
    let mut slot = open(dir.path()).ok().map(|(log, _)| log);
    if slot.is_none() {
        failed = true;
        slot = Some(open(dir.path()).unwrap().0);
    }
    for call in calls {
        let before = model.clone();
        let expected = model.call(call);
        let result = run(&mut slot, dir.path(), call);
        let what = format!("{call:?} with error {errno} at change {at} gave {result:?}");
        match result {
            Ok(()) => assert!(expected, "{what}"),
            Err(LogError::HolderPresent { .. } | LogError::Uncommitted { .. }) => {
                assert!(!expected, "{what}")
            }
            Err(LogError::Full { .. }) if slot.is_some() && !matches!(call, Call::CleanStop) => {
                failed = true;
                assert_eq!(durable(slot.as_ref().unwrap()), before.durable, "{what}");
                run(&mut slot, dir.path(), call).unwrap();
            }
            Err(error) => {
                failed = true;
                // Segments that could not be removed are only in the way.
                if let (Some(log), LogError::Io { action, .. }) = (&slot, &error)
                    && *action != "free segments of"
                    && !matches!(call, Call::CleanStop)
                {
                    assert!(log.is_poisoned(), "{what}: {error:?}");
                }
                if slot.as_ref().is_some_and(crate::EpochLog::is_poisoned) {
                    let log = slot.as_mut().unwrap();
                    let refused =
                        log.commit(log.state().generation, log.state().committed.next(), None);
                    assert!(matches!(refused, Err(LogError::Poisoned { .. })), "{what}");
                }
                drop(slot.take());
                let (log, _) = open(dir.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
                let found = durable(&log);
                assert!(found == before.durable || found == model.durable, "{what}");
                model = Model {
                    durable: found,
                    pending: std::collections::BTreeMap::new(),
                };
                slot = Some(log);
            }
        }
        assert_eq!(durable(slot.as_ref().unwrap()), model.durable, "{what}");
    }
    let ops = faults::stop();
    drop(slot);
    assert_eq!(
        durable(&open(dir.path()).unwrap().0),
        model.durable,
        "error {errno} at change {at}"
    );
    (ops.len(), failed)
}

#[test]
fn a_segment_whose_retirement_is_not_durable_is_no_spare_yet() {
    let dir = super::model::scratch();
    let mut slot = Some(open(dir.path()).unwrap().0);
    let large = || Call::Append {
        ahead: 0,
        extents: vec![Owned {
            disk: 0,
            offset: 0,
            len: 20_000,
            content: OwnedContent::Data(super::model::pattern(20_000, 1)),
        }],
    };
    let commit = || Call::Commit { standby: None };
    for call in [large(), commit(), large(), commit()] {
        run(&mut slot, dir.path(), &call).unwrap();
    }
    // Marking writes and syncs its record, renames a segment, and then can't make the new name durable.
    faults::start(Some((3, EIO)));
    let refused = run(&mut slot, dir.path(), &Call::Applied { behind: 0 });
    let ops = faults::stop();
    assert!(refused.is_err());
    assert_eq!(ops.last(), Some(&faults::Op::SyncDir), "{ops:?}");
    // The next segment must not be made from it.
    faults::start(None);
    for call in [large(), large()] {
        run(&mut slot, dir.path(), &call).unwrap();
    }
    let reused =
        |op: &faults::Op| matches!(op, faults::Op::Rename { from, .. } if from.ends_with(".spare"));
    assert!(!faults::stop().iter().any(reused));
}

/// Found by the simulator (seed 498): the segment that was gone already could never be freed, nor any after it.
#[test]
fn a_segment_whose_removal_is_not_durable_is_freed_the_next_time() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions {
        segment_bytes: SEGMENT_BYTES,
        spare_segments: 0,
    };
    let open = |options| EpochLog::open_or_create(dir.path(), "vm", &disks(), options);
    let mut log = open(options).unwrap().0;
    let generation = log.state().generation;
    let commit_large = |log: &mut EpochLog| {
        let next = log.state().committed.next();
        let data = pattern(30_000, 1);
        let extent = Extent {
            disk: 0,
            offset: 0,
            len: data.len() as u64,
            content: Content::Data(&data),
        };
        log.append(generation, next, &[extent]).unwrap();
        log.commit(generation, next, None).unwrap();
        next
    };
    commit_large(&mut log);
    let applied = commit_large(&mut log);
    faults::start(None);
    let whole = log.state().clone();
    faults::stop();
    // The changes of `mark_applied`: the record, its sync, then for each segment its removal and a sync of the directory.
    faults::start(Some((3, EIO)));
    let failed = log.mark_applied(applied);
    let ops = faults::stop();
    assert!(matches!(ops.last(), Some(faults::Op::SyncDir)), "{ops:?}");
    assert!(failed.is_err() && !log.is_poisoned() && whole.applied < applied);
    let next = commit_large(&mut log);
    log.mark_applied(next).unwrap();
}

/// Found by the simulator (seed 96600): of the renames to one name that no sync was between, a crash may keep the wrong ones.
#[test]
fn a_segment_that_was_not_begun_is_durably_gone_before_its_name_is_used_again() {
    let large = || Call::Append {
        ahead: 0,
        extents: vec![Owned {
            disk: 0,
            offset: 0,
            len: 20_000,
            content: OwnedContent::Data(pattern(20_000, 1)),
        }],
    };
    let mut looked = 0;
    for at in 0..20 {
        let dir = super::model::scratch();
        let mut slot = Some(open(dir.path()).unwrap().0);
        let commit = || Call::Commit { standby: None };
        let applied = Call::Applied { behind: 0 };
        for call in [large(), commit(), large(), commit(), applied] {
            run(&mut slot, dir.path(), &call).unwrap();
        }
        faults::start(Some((at, ENOSPC)));
        let refused = run(&mut slot, dir.path(), &large());
        let mut ops = faults::stop();
        let unfinished = match ops.get(at) {
            Some(faults::Op::Write { name, .. }) if name.ends_with(".seg.new") => name.clone(),
            _ => continue,
        };
        faults::start(None);
        if refused.is_err() {
            run(&mut slot, dir.path(), &large()).unwrap();
        }
        ops.extend(faults::stop());
        let uses = |op: &faults::Op| match op {
            faults::Op::Create { name } => *name == unfinished,
            faults::Op::Rename { to, .. } => *to == unfinished,
            _ => false,
        };
        let after = ops.get(at..).unwrap();
        let again = after.iter().position(uses).expect("it is used again");
        let between = after.get(..again).unwrap();
        let removes =
            |op: &faults::Op| matches!(op, faults::Op::Remove { name } if *name == unfinished);
        let removed = between.iter().position(removes).expect("it is removed");
        let between = between.get(removed..).unwrap();
        assert!(between.contains(&faults::Op::SyncDir), "{after:?}");
        looked += 1;
    }
    assert!(looked > 0, "no segment was begun");
}

#[test]
fn every_failing_change_of_random_histories_is_survived() {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 6,
        ..ProptestConfig::default()
    });
    runner
        .run(&prop::collection::vec(call(), 8..16), |calls| {
            for errno in [EIO, ENOSPC] {
                let mut at = 0;
                let mut failures = 0_usize;
                loop {
                    let (ops, failed) = run_with_fault(&calls, at, errno);
                    failures += usize::from(failed);
                    at += 1;
                    if at >= ops {
                        break;
                    }
                }
                prop_assert!(failures > 0, "no change has failed");
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn an_append_of_several_records_is_taken_back_as_a_whole() {
    let count = crate::limits::MAX_EXTENTS as u64 * 2 + 5;
    let zero = |number| Owned {
        disk: 0,
        offset: number,
        len: 1,
        content: OwnedContent::Zero,
    };
    let append = Call::Append {
        ahead: 0,
        extents: (0..count).map(zero).collect(),
    };
    let mut full = 0;
    for at in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let mut slot = Some(open(dir.path()).unwrap().0);
        faults::start(Some((at, ENOSPC)));
        let refused = run(&mut slot, dir.path(), &append);
        faults::stop();
        if matches!(refused, Err(LogError::Full { .. })) {
            full += 1;
            run(&mut slot, dir.path(), &append).unwrap();
        } else {
            refused.unwrap();
        }
        run(&mut slot, dir.path(), &Call::Commit { standby: None }).unwrap();
        drop(slot);
        let held = durable(&open(dir.path()).unwrap().0).epochs;
        assert_eq!(
            held.values().map(Vec::len).sum::<usize>() as u64,
            count,
            "full disk at change {at}"
        );
    }
    assert!(
        full >= 3,
        "the append had only {full} changes that can find the disk full"
    );
}
