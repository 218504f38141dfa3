//! A history that is frozen: nothing goes until its time is over, but for room on the disk; restarts change nothing about that.

use super::super::{Retention, Tier};
use super::model::{Group, SIZE};

/// Keeps half a second, and after a third one point in a tenth.
fn little() -> Retention {
    Retention {
        age_ms: 500,
        bytes: u64::MAX,
        min_free: 0,
        tiers: vec![Tier {
            older_than_ms: 300,
            one_in_ms: 100,
        }],
    }
}

/// More than a second of history.
fn filled(dir: &std::path::Path) -> Group {
    let mut group = Group::new(dir);
    for round in 0..120_usize {
        let at = round * 1531 % (SIZE - 900);
        let byte = u8::try_from(round).unwrap();
        group.run(&[vec![(0, at, 300, byte)], vec![(1, at, 700, byte)]]);
    }
    group
}

fn maintain(group: &Group, retention: &Retention) {
    while !group.maintain(retention).is_nothing() {}
}

#[test]
fn what_is_frozen_stays_until_its_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut group = filled(dir.path());
    let points = group.check();
    let until = group.time + 1000;
    let frozen = group.history().freeze(group.time, Some(until)).unwrap();
    assert_eq!(group.history().status().frozen, Some(frozen));
    maintain(&group, &little());
    group.open().unwrap();
    group.time = until - 1;
    maintain(&group, &little());
    assert_eq!(group.check(), points);
    assert_eq!(group.history().frozen(), Some(frozen));
    group.time = until;
    assert!(group.maintain(&little()).thawed);
    maintain(&group, &little());
    assert!(group.check().len() < points.len() / 2);
    group.open().unwrap();
    assert_eq!(group.history().status().frozen, None);
}

#[test]
fn somebody_may_end_it_and_begin_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut group = filled(dir.path());
    let points = group.check().len();
    let first = group.history().freeze(5, None).unwrap();
    // It is the same one with another end.
    let longer = group.history().freeze(8, Some(u64::MAX)).unwrap();
    assert_eq!((first.since_ms, longer.since_ms), (5, 5));
    group.open().unwrap();
    assert_eq!(group.history().thaw().unwrap(), Some(longer));
    assert_eq!(group.history().thaw().unwrap(), None);
    group.open().unwrap();
    assert_eq!(group.history().frozen(), None);
    maintain(&group, &little());
    assert!(group.check().len() < points / 2);
    // One whose time was over is another one.
    group.history().freeze(10, Some(20)).unwrap();
    let next = group.history().freeze(30, None).unwrap();
    assert_eq!(next.since_ms, 30);
}

#[test]
fn a_disk_that_is_full_goes_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let group = filled(dir.path());
    group.history().freeze(group.time, None).unwrap();
    let full = Retention {
        min_free: u64::MAX,
        ..Retention::unlimited()
    };
    let done = group.maintain(&full);
    assert!(done.for_space && done.trimmed > 0, "{done:?}");
    assert!(group.history().frozen().is_some());
    group.check();
}

#[test]
fn a_mark_that_was_begun_is_none_and_one_that_is_damaged_holds() {
    let dir = tempfile::tempdir().unwrap();
    let mut group = filled(dir.path());
    std::fs::write(dir.path().join("FROZEN.new"), "epochgate fro").unwrap();
    group.open().unwrap();
    assert_eq!(group.history().frozen(), None);
    std::fs::write(dir.path().join("FROZEN"), "epochgate frozen 1 x -").unwrap();
    group.open().unwrap();
    let points = group.check();
    maintain(&group, &little());
    assert_eq!(group.check(), points);
    assert!(group.history().thaw().unwrap().is_some());
    group.open().unwrap();
    assert_eq!(group.history().frozen(), None);
}
