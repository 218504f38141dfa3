//! The rules of commit, one by one.

use super::model::{SEGMENT_BYTES, disks, durable, open, pattern, snapshot};
use crate::{
    Content, DiskIdentity, Epoch, EpochLog, Extent, Generation, Holder, LogError, LogOptions, Mode,
    limits::{MAX_EXTENTS, MAX_PAYLOAD},
};

fn data(bytes: &[u8]) -> Extent<'_> {
    Extent {
        disk: 0,
        offset: 0,
        len: bytes.len() as u64,
        content: Content::Data(bytes),
    }
}

fn standby(log: &EpochLog) -> Option<(&str, u64)> {
    log.state()
        .mode
        .holder()
        .map(|holder| (holder.standby.as_str(), holder.since.0))
}

#[test]
fn an_older_generation_is_fenced() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    let old = log.state().generation;
    log.append(old, Epoch(1), &[data(b"of the old owner")])
        .unwrap();
    let new = log.raise_generation(Some("standby"), "takeover").unwrap();
    assert!(new > old);
    for refused in [
        log.append(old, Epoch(1), &[data(b"late")]),
        log.commit(old, Epoch(1), None),
    ] {
        assert!(
            matches!(refused, Err(LogError::Fenced { given, current }) if given == old && current == new)
        );
    }
    log.commit(new, Epoch(1), None).unwrap();
    assert!(
        durable(&log).epochs[&Epoch(1)].is_empty(),
        "data of the fenced owner was committed"
    );
}

#[test]
fn a_generation_that_never_was_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    let refused = log.commit(Generation(7), Epoch(1), None);
    assert!(matches!(refused, Err(LogError::Fenced { .. })));
}

#[test]
fn epochs_are_committed_in_order_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    let generation = log.state().generation;
    assert!(matches!(
        log.commit(generation, Epoch(2), None),
        Err(LogError::OutOfOrder { .. })
    ));
    log.commit(generation, Epoch(1), None).unwrap();
    assert!(matches!(
        log.commit(generation, Epoch(1), None),
        Err(LogError::OutOfOrder { .. })
    ));
    assert!(matches!(
        log.append(generation, Epoch(1), &[data(b"x")]),
        Err(LogError::OutOfOrder { .. })
    ));
    assert!(matches!(
        log.mark_applied(Epoch(2)),
        Err(LogError::NotCommitted { .. })
    ));
}

#[test]
fn a_holder_is_kept_until_sync_mode_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    let generation = log.state().generation;
    log.commit(generation, Epoch(1), None).unwrap();
    assert_eq!(log.state().mode, Mode::Sync);
    log.commit(generation, Epoch(2), Some("a")).unwrap();
    log.commit(generation, Epoch(3), Some("a")).unwrap();
    assert_eq!(standby(&log), Some(("a", 2)));
    assert!(
        matches!(log.commit(generation, Epoch(4), None), Err(LogError::HolderPresent { standby }) if standby == "a")
    );
    log.commit(generation, Epoch(4), Some("b")).unwrap();
    assert_eq!(standby(&log), Some(("b", 4)));
    drop(log);
    let (mut log, _) = open(dir.path()).unwrap();
    assert_eq!(standby(&log), Some(("b", 4)));
    let generation = log.raise_generation(None, "gateway restarted").unwrap();
    assert_eq!(
        standby(&log),
        Some(("b", 4)),
        "only the mode record ends what a standby holds"
    );
    log.set_mode(Mode::Sync).unwrap();
    log.commit(generation, Epoch(5), None).unwrap();
    assert_eq!(log.state().mode, Mode::Sync);
}

#[test]
fn unusable_ids_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    let generation = log.state().generation;
    let long = "x".repeat(129);
    for id in ["", long.as_str()] {
        assert!(matches!(
            log.commit(generation, Epoch(1), Some(id)),
            Err(LogError::BadName { .. })
        ));
        assert!(matches!(
            log.raise_generation(Some(id), ""),
            Err(LogError::BadName { .. })
        ));
        let mode = Mode::Async {
            holder: Some(Holder {
                standby: id.to_owned(),
                since: Epoch(1),
            }),
        };
        assert!(matches!(log.set_mode(mode), Err(LogError::BadName { .. })));
    }
    let longest = "y".repeat(128);
    log.raise_generation(Some(&longest), &"ü".repeat(100))
        .unwrap();
    log.commit(log.state().generation, Epoch(1), Some(&longest))
        .unwrap();
    let state = log.state().clone();
    drop(log);
    assert_eq!(open(dir.path()).unwrap().0.state(), &state);
}

#[test]
fn extents_outside_a_disk_are_refused_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    let generation = log.state().generation;
    let size = disks()[0].size;
    let zero = |disk, offset, len| Extent {
        disk,
        offset,
        len,
        content: Content::Zero,
    };
    let lying = Extent {
        disk: 0,
        offset: 0,
        len: 5,
        content: Content::Data(b"four"),
    };
    for bad in [
        zero(2, 0, 1),
        zero(0, 0, 0),
        zero(0, size, 1),
        zero(0, 1, size),
        zero(0, u64::MAX, 2),
        lying,
    ] {
        let refused = log.append(generation, Epoch(1), &[data(b"good"), bad]);
        assert!(
            matches!(refused, Err(LogError::BadExtent { .. })),
            "{bad:?}"
        );
    }
    log.append(generation, Epoch(1), &[zero(0, 0, size)])
        .unwrap();
    log.commit(generation, Epoch(1), None).unwrap();
    assert_eq!(durable(&log).epochs[&Epoch(1)].len(), 1);
}

#[test]
fn large_epochs_take_several_records_and_come_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let disks = [DiskIdentity {
        name: "big".to_owned(),
        size: 1 << 30,
        file_id: 1,
    }];
    let open =
        || EpochLog::open_or_create(dir.path(), "vm", &disks, LogOptions::default()).unwrap();
    let big = pattern(usize::try_from(MAX_PAYLOAD * 2 + 4321).unwrap(), 3);
    let mut extents = vec![Extent {
        disk: 0,
        offset: 1000,
        len: big.len() as u64,
        content: Content::Data(&big),
    }];
    let small = |number: u64| Extent {
        disk: 0,
        offset: (100 << 20) + number * 512,
        len: 512,
        content: Content::Zero,
    };
    extents.extend((0..MAX_EXTENTS as u64 + 10).map(small));
    let (mut log, _) = open();
    log.append(Generation(0), Epoch(1), &extents).unwrap();
    log.commit(Generation(0), Epoch(1), None).unwrap();
    drop(log);
    let (log, recovered) = open();
    assert_eq!(recovered.unapplied, [Epoch(1)]);
    let (mut bytes, mut zeros) = (vec![0; big.len()], 0);
    log.replay(|_, extent| -> Result<(), LogError> {
        match extent.content {
            Content::Data(piece) => {
                let at = usize::try_from(extent.offset - 1000).unwrap();
                bytes[at..at + piece.len()].copy_from_slice(piece);
            }
            _ => zeros += 1,
        }
        Ok(())
    })
    .unwrap();
    assert!(bytes == big, "the pieces don't make up the extent");
    assert_eq!(zeros, MAX_EXTENTS + 10);
}

#[test]
fn applied_epochs_free_their_segments_but_never_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    let bytes = pattern(usize::try_from(SEGMENT_BYTES / 2).unwrap(), 1);
    for epoch in 1..=8 {
        log.append(Generation(0), Epoch(epoch), &[data(&bytes)])
            .unwrap();
        log.commit(Generation(0), Epoch(epoch), None).unwrap();
    }
    let segments = || {
        snapshot(dir.path())
            .keys()
            .filter(|name| name.ends_with(".seg"))
            .count()
    };
    let before = segments();
    assert!(before >= 8);
    log.mark_applied(Epoch(4)).unwrap();
    let between = segments();
    assert!(between < before && between >= 4);
    log.mark_applied(Epoch(8)).unwrap();
    assert_eq!(segments(), 1);
    let state = log.state().clone();
    drop(log);
    assert_eq!(open(dir.path()).unwrap().0.state(), &state);
}

#[test]
fn freed_segments_are_written_again_and_what_they_held_is_gone() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let files = |suffix: &str| -> std::collections::BTreeSet<u64> {
        let entries = std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap);
        entries
            .filter(|entry| entry.file_name().to_str().unwrap().ends_with(suffix))
            .map(|entry| entry.metadata().unwrap().ino())
            .collect()
    };
    let (mut log, _) = open(dir.path()).unwrap();
    let large = pattern(usize::try_from(SEGMENT_BYTES / 2).unwrap(), 1);
    for epoch in 1..=6 {
        log.append(Generation(0), Epoch(epoch), &[data(&large)])
            .unwrap();
        log.commit(Generation(0), Epoch(epoch), None).unwrap();
    }
    log.mark_applied(Epoch(6)).unwrap();
    let spares = files(".seg.spare");
    assert_eq!(spares.len(), 2, "as many as the options say");
    drop(log);

    // They are found again, and the next segments are made from them.
    let (mut log, _) = open(dir.path()).unwrap();
    log.append(Generation(0), Epoch(7), &[data(&large), data(&large)])
        .unwrap();
    log.append(Generation(0), Epoch(8), &[data(b"short")])
        .unwrap();
    log.commit(Generation(0), Epoch(7), None).unwrap();
    assert!(files(".seg").intersection(&spares).count() > 0);
    let held = durable(&log);
    drop(log);
    let verdict = crate::inspect::verify(dir.path()).unwrap();
    assert!(verdict.is_whole() && verdict.repairable.is_empty());
    let (log, recovered) = open(dir.path()).unwrap();
    assert_eq!(recovered.dropped_epochs, [Epoch(8)]);
    assert_eq!(durable(&log), held);
}

#[test]
fn an_abort_gives_the_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    let bytes = pattern(usize::try_from(SEGMENT_BYTES).unwrap(), 1);
    log.commit(Generation(0), Epoch(1), None).unwrap();
    let before = snapshot(dir.path());
    for _ in 0..3 {
        log.append(Generation(0), Epoch(2), &[data(&bytes)])
            .unwrap();
    }
    assert_ne!(snapshot(dir.path()), before);
    log.abort().unwrap();
    assert_eq!(snapshot(dir.path()), before);
    log.commit(Generation(0), Epoch(2), None).unwrap();
    assert!(durable(&log).epochs[&Epoch(2)].is_empty());
}

#[test]
fn a_clean_stop_is_clean_once() {
    let dir = tempfile::tempdir().unwrap();
    let (log, recovered) = open(dir.path()).unwrap();
    assert!(recovered.created && recovered.clean);
    log.close_clean().unwrap();
    let (log, recovered) = open(dir.path()).unwrap();
    assert!(!recovered.created && recovered.clean);
    drop(log);
    let (mut log, recovered) = open(dir.path()).unwrap();
    assert!(!recovered.clean, "an open epoch may have been lost since");
    log.append(Generation(0), Epoch(1), &[data(b"open")])
        .unwrap();
    assert!(matches!(
        log.close_clean(),
        Err(LogError::Uncommitted { epoch: Epoch(1) })
    ));
    assert!(!open(dir.path()).unwrap().1.clean);
}
