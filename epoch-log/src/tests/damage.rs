//! Damage at rest: a flipped bit, a lost sector, a lost file. Each is healed from a second copy, touches nothing that counts, or is
//! named; it is never silent loss.

use std::{collections::BTreeMap, path::Path};

use super::model::{
    Call, Durable, Owned, OwnedContent, disks, durable, open, pattern, restore, run, snapshot,
};
use crate::{
    Damage, DamageKind, EpochLog, LogError, LogOptions, disk::LogDir, faults, format::Position,
    inspect, scan::scan, segment,
};

pub type Files = BTreeMap<String, Vec<u8>>;

/// A log of several segments with applied, unapplied and uncommitted epochs.
pub fn sample() -> (Files, Durable) {
    let dir = tempfile::tempdir().unwrap();
    let mut slot = Some(open(dir.path()).unwrap().0);
    let mut call = |call: Call| run(&mut slot, dir.path(), &call).unwrap();
    let extents = |len: usize, fill: u8| {
        let data = |disk, offset, len, fill| Owned {
            disk,
            offset,
            len: len as u64,
            content: OwnedContent::Data(pattern(len, fill)),
        };
        let zero = Owned {
            disk: 1,
            offset: 4096,
            len: 8192,
            content: OwnedContent::Zero,
        };
        vec![data(0, 100, len, fill), zero, data(1, 700, 900, fill)]
    };
    call(Call::Raise { owner: Some(1) });
    for (number, len) in [(1, 1000), (2, 6000), (3, 300), (4, 5000), (5, 2500)] {
        call(Call::Append {
            ahead: 0,
            extents: extents(len, number),
        });
        call(Call::Append {
            ahead: 1,
            extents: extents(600, number + 100),
        });
        call(Call::Commit { standby: Some(1) });
        if number == 2 {
            call(Call::Applied { behind: 1 });
        }
    }
    call(Call::Commit { standby: Some(1) });
    drop(slot);
    let (log, _) = open(dir.path()).unwrap();
    let expected = durable(&log);
    drop(log);
    assert_eq!(expected.epochs.len(), 5);
    (snapshot(dir.path()), expected)
}

/// Start of every record and header of a log.
pub fn records(dir: &Path) -> Vec<Position> {
    let log_dir = LogDir::open(dir).unwrap();
    let listing = segment::list(&log_dir).unwrap();
    let mut starts: Vec<Position> = listing
        .segments
        .iter()
        .map(|segment| Position {
            segment: *segment,
            offset: 0,
        })
        .collect();
    scan(&log_dir, &listing.segments, false, &mut |at, _| {
        starts.push(at)
    })
    .unwrap();
    starts.sort_unstable();
    starts
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Harmless,
    Healed,
    Damaged(Damage),
}

/// Opens a log with something wrong; checks that nothing is lost silently.
fn examine(files: &Files, expected: &Durable, what: &str) -> Found {
    let dir = restore(files);
    let verdict = inspect::verify(dir.path()).unwrap();
    match open(dir.path()) {
        Ok((log, recovered)) => {
            assert!(verdict.is_whole(), "{what}: {verdict:?}");
            assert_eq!(&durable(&log), expected, "{what}: silent loss");
            drop(log);
            assert!(
                inspect::verify(dir.path()).unwrap().repairable.is_empty(),
                "{what}: not healed"
            );
            if recovered.repaired_sectors > 0 {
                Found::Healed
            } else {
                Found::Harmless
            }
        }
        Err(LogError::Damaged(damage)) => {
            assert_eq!(verdict.damages.first(), Some(&damage), "{what}");
            let mut after = snapshot(dir.path());
            after.retain(|name, _| files.contains_key(name));
            assert_eq!(&after, files, "{what}: a damaged log was changed");
            Found::Damaged(damage)
        }
        Err(other) => panic!("{what}: {other}"),
    }
}

fn segments(files: &Files) -> Vec<(u64, String)> {
    let names = files.keys().filter(|name| name.ends_with(".seg"));
    names
        .map(|name| (name.trim_end_matches(".seg").parse().unwrap(), name.clone()))
        .collect()
}

#[test]
fn a_flipped_bit_is_never_silent_loss() {
    let (files, expected) = sample();
    let starts = records(restore(&files).path());
    let (mut healed, mut damaged) = (0, 0);
    for (number, name) in segments(&files) {
        let len = files[&name].len();
        // Other fields of the first bytes in each sector, and then some: together they hit all.
        let offsets = (0..len)
            .step_by(512)
            .enumerate()
            .flat_map(|(number, sector)| {
                let fields = [
                    0, 9, 16, 17, 20, 25, 33, 41, 50, 64, 73, 80, 90, 97, 104, 130, 300, 505,
                ];
                let some = fields.into_iter().skip(number % 6).step_by(6);
                some.chain([511]).map(move |byte| sector + byte)
            });
        for offset in offsets.filter(|offset| *offset < len) {
            let mut files = files.clone();
            files.get_mut(&name).unwrap()[offset] ^= 1 << (offset % 8);
            let at = Position {
                segment: number,
                offset: offset as u64,
            };
            match examine(&files, &expected, &format!("bit flipped at {at:?}")) {
                Found::Harmless => {}
                Found::Healed => healed += 1,
                Found::Damaged(damage) => {
                    damaged += 1;
                    let record = starts.iter().rev().find(|start| **start <= at).unwrap();
                    assert_eq!(
                        (damage.segment, damage.offset),
                        (record.segment, record.offset),
                        "{at:?}"
                    );
                    assert!(
                        damage
                            .epoch
                            .is_some_and(|epoch| expected.epochs.contains_key(&epoch)),
                        "{damage}"
                    );
                }
            }
        }
    }
    assert!(
        healed > 100 && damaged > 100,
        "{healed} healed, {damaged} damaged: the log was too small"
    );
}

#[test]
fn a_lost_physical_sector_is_never_silent_loss() {
    let (files, expected) = sample();
    for (_, name) in segments(&files) {
        for start in (0..files[&name].len()).step_by(4096) {
            for fill in [0, 0xff] {
                let mut files = files.clone();
                files.get_mut(&name).unwrap()[start..]
                    .iter_mut()
                    .take(4096)
                    .for_each(|byte| *byte = fill);
                examine(
                    &files,
                    &expected,
                    &format!("{fill} over the sector at {start} of {name}"),
                );
            }
        }
    }
}

#[test]
fn a_lost_segment_is_named() {
    let (files, expected) = sample();
    let segments = segments(&files);
    let (newest, others) = segments.split_last().unwrap();
    assert!(others.len() > 1 && newest.0 > 2);
    for (number, name) in others {
        let mut files = files.clone();
        files.remove(name);
        match examine(&files, &expected, &format!("{name} is missing")) {
            // Without the oldest, the next one is to blame: that there was one before can't be known.
            Found::Damaged(damage) => assert!(
                damage.segment == *number || damage.segment == number + 1,
                "{damage}"
            ),
            Found::Harmless => assert_eq!(
                *number, segments[0].0,
                "only what is applied may be missing"
            ),
            Found::Healed => panic!("a segment has no second copy"),
        }
    }
}

#[test]
fn a_segment_of_another_log_is_refused() {
    let (mut files, expected) = sample();
    let (other, _) = sample();
    let (number, name) = segments(&files)[1].clone();
    files.insert(name.clone(), other[&name].clone());
    let Found::Damaged(damage) = examine(&files, &expected, "foreign segment") else {
        panic!("not noticed")
    };
    assert_eq!(
        (damage.segment, damage.what),
        (number, DamageKind::SegmentForeign)
    );
}

#[test]
fn losing_both_copies_of_a_commit_record_is_noticed_when_data_follows() {
    let dir = tempfile::tempdir().unwrap();
    let mut slot = Some(open(dir.path()).unwrap().0);
    let extent = Owned {
        disk: 0,
        offset: 0,
        len: 512,
        content: OwnedContent::Data(pattern(512, 1)),
    };
    let mut call = |call: Call| run(&mut slot, dir.path(), &call).unwrap();
    call(Call::Append {
        ahead: 0,
        extents: vec![extent.clone()],
    });
    call(Call::Commit { standby: None });
    call(Call::Append {
        ahead: 0,
        extents: vec![extent],
    });
    drop(slot);
    let found = records(dir.path());
    let (commit, data) = (found[2], found[3]);
    let mut files = snapshot(dir.path());
    let bytes = files.get_mut(&segment::file_name(1)).unwrap();
    let at = usize::try_from(commit.offset).unwrap();
    bytes[at..at + 4608].fill(0);
    let whole = bytes.len();
    // Data without its end speaks of the commit as well.
    for len in [whole, usize::try_from(data.offset).unwrap() + 700] {
        let bytes = files.get_mut(&segment::file_name(1)).unwrap();
        bytes.truncate(len);
        let dir = restore(&files);
        let Err(LogError::Damaged(damage)) = open(dir.path()) else {
            panic!("not noticed in {len} of {whole} bytes")
        };
        assert_eq!(
            (damage.segment, damage.offset, damage.what),
            (1, commit.offset, DamageKind::StateMissing)
        );
    }
}

#[test]
fn an_unreadable_sector_is_healed_or_named() {
    let (files, expected) = sample();
    let longest = files.values().map(Vec::len).max().unwrap();
    let (mut whole, mut damaged) = (0, 0);
    for block in (0..longest as u64).step_by(4096) {
        let dir = restore(&files);
        faults::make_unreadable(Some(block));
        let opened = open(dir.path());
        // Writing a bad sector makes the disk put a good one in its place.
        faults::make_unreadable(None);
        match opened {
            Ok((log, recovered)) => {
                whole += usize::from(recovered.repaired_sectors > 0);
                assert_eq!(durable(&log), expected, "block at {block}: silent loss");
            }
            Err(LogError::Damaged(_)) => damaged += 1,
            Err(other) => panic!("block at {block}: {other}"),
        }
    }
    assert!(
        whole > 0 && damaged > 0,
        "{whole} healed, {damaged} damaged"
    );
}

#[test]
fn an_unreadable_end_is_not_taken_for_an_unfinished_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut slot = Some(open(dir.path()).unwrap().0);
    let extent = Owned {
        disk: 0,
        offset: 0,
        len: 512,
        content: OwnedContent::Data(pattern(512, 1)),
    };
    for call in [
        Call::Append {
            ahead: 0,
            extents: vec![extent.clone()],
        },
        Call::Commit { standby: None },
        Call::Append {
            ahead: 0,
            extents: vec![extent],
        },
    ] {
        run(&mut slot, dir.path(), &call).unwrap();
    }
    drop(slot);
    let before = snapshot(dir.path());
    // Header copies and records: the first commit record begins at 9216, the last data record at 13824.
    faults::make_unreadable(Some(12288));
    let opened = open(dir.path());
    faults::make_unreadable(None);
    let Err(LogError::Damaged(damage)) = opened else {
        panic!("not noticed")
    };
    assert_eq!(
        (damage.offset, damage.what),
        (13824, DamageKind::Unreadable)
    );
    assert_eq!(snapshot(dir.path()), before);
    assert_eq!(
        open(dir.path()).unwrap().0.state().committed,
        crate::Epoch(1)
    );
}

#[test]
fn losing_both_copies_of_any_state_record_is_noticed_when_another_follows() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) =
        EpochLog::open_or_create(dir.path(), "vm", &disks(), LogOptions::default()).unwrap();
    let mut slot = Some(log);
    let calls = [
        Call::Raise { owner: Some(1) },
        Call::SetMode { asynchronous: true },
        Call::Commit { standby: None },
        Call::Applied { behind: 0 },
        Call::Raise { owner: None },
    ];
    for call in &calls {
        run(&mut slot, dir.path(), call).unwrap();
    }
    drop(slot);
    let files = snapshot(dir.path());
    let starts = records(dir.path());
    let (_, but_the_last) = starts[1..].split_last().unwrap();
    assert_eq!(but_the_last.len(), 4);
    for start in but_the_last {
        let mut files = files.clone();
        let at = usize::try_from(start.offset).unwrap();
        files.get_mut(&segment::file_name(1)).unwrap()[at..at + 4608].fill(0);
        let Err(LogError::Damaged(damage)) = open(restore(&files).path()) else {
            panic!("{start:?} was not missed")
        };
        assert_eq!(
            (damage.offset, damage.what),
            (start.offset, DamageKind::StateMissing)
        );
    }
}
