//! A log serves one process, one group and one set of images.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{error::Error, path::Path};

use epoch_log::{
    Content, DiskIdentity, DiskMismatch, Epoch, EpochLog, Extent, Generation, LogError, LogOptions,
    Mode, Recovered, inspect,
};

fn disk(name: &str, size: u64, file_id: u64) -> DiskIdentity {
    DiskIdentity {
        name: name.to_owned(),
        size,
        file_id,
    }
}

fn disks() -> Vec<DiskIdentity> {
    vec![disk("root", 64 << 20, 1), disk("data", 1 << 20, 2)]
}

fn open(
    dir: &Path,
    group: &str,
    disks: &[DiskIdentity],
) -> Result<(EpochLog, Recovered), LogError> {
    EpochLog::open_or_create(dir, group, disks, LogOptions::default())
}

#[test]
fn a_second_process_is_refused_and_told_who_has_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), "vm", &disks()).unwrap();
    let error = open(dir.path(), "vm", &disks()).unwrap_err();
    assert!(matches!(error, LogError::InUse { pid: Some(pid), .. } if pid == std::process::id()));
    assert!(
        error.to_string().contains(&std::process::id().to_string()),
        "{error}"
    );
    assert!(matches!(
        EpochLog::rebind(dir.path(), "vm", &disks()),
        Err(LogError::InUse { .. })
    ));
    // Looking needs no lock.
    assert_eq!(inspect::inspect(dir.path()).unwrap().group, "vm");
    drop(log);
    open(dir.path(), "vm", &disks()).unwrap();
}

#[test]
fn another_group_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), "vm", &disks()).unwrap();
    let error = open(dir.path(), "other", &disks()).unwrap_err();
    assert!(
        matches!(&error, LogError::OtherGroup { found, .. } if found == "vm"),
        "{error}"
    );
}

#[test]
fn other_disks_are_refused_with_the_difference() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), "vm", &disks()).unwrap();
    let cases = [
        (vec![disk("root", 64 << 20, 1)], "disk 'data' is in the log"),
        (
            [disks(), vec![disk("new", 1, 3)]].concat(),
            "disk 'new' is in the configuration",
        ),
        (
            vec![disk("root", 128 << 20, 1), disk("data", 1 << 20, 2)],
            "an image of 64 MiB, this one has 128 MiB",
        ),
        (
            vec![disk("root", 64 << 20, 9), disk("data", 1 << 20, 2)],
            "disk 'root': the log belongs to another image",
        ),
        (disks().into_iter().rev().collect(), "another order"),
    ];
    for (given, message) in cases {
        let error = open(dir.path(), "vm", &given).unwrap_err();
        let difference = error.source().unwrap().to_string();
        assert!(difference.contains(message), "{difference}");
        assert!(difference.contains("epochgate log rebind"), "{difference}");
    }
    open(dir.path(), "vm", &disks()).unwrap();
}

#[test]
fn unusable_names_are_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    assert!(matches!(
        open(&log, "", &disks()),
        Err(LogError::BadName { .. })
    ));
    assert!(matches!(
        open(&log, "vm", &[disk(&"x".repeat(65), 1, 1)]),
        Err(LogError::BadName { .. })
    ));
    assert!(matches!(
        open(&log, "vm", &[disk("a", 1, 1), disk("a", 1, 2)]),
        Err(LogError::BadDisks { .. })
    ));
    assert!(matches!(
        open(&log, "vm", &[]),
        Err(LogError::BadDisks { .. })
    ));
    assert!(!log.exists());
}

#[test]
fn many_disks_with_long_names_survive_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let many: Vec<DiskIdentity> = (0..256)
        .map(|number| disk(&format!("{number:064}"), 1 << 40, number))
        .collect();
    let (mut log, _) = open(dir.path(), "vm", &many).unwrap();
    let last = Extent {
        disk: 255,
        offset: 5,
        len: 4,
        content: Content::Data(b"last"),
    };
    log.append(Generation(0), Epoch(1), &[last]).unwrap();
    log.commit(Generation(0), Epoch(1), None).unwrap();
    drop(log);
    let (log, _) = open(dir.path(), "vm", &many).unwrap();
    let mut seen = 0;
    log.replay(|epoch, extent| -> Result<(), LogError> {
        assert_eq!((epoch, extent), (Epoch(1), last));
        seen += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(seen, 1);
    assert_eq!(inspect::inspect(dir.path()).unwrap().disks, many);
}

#[test]
fn rebinding_takes_other_images_once_nothing_waits_for_the_old_ones() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        EpochLog::rebind(dir.path(), "vm", &disks()),
        Err(LogError::NotALog { .. })
    ));
    let (mut log, _) = open(dir.path(), "vm", &disks()).unwrap();
    let extent = Extent {
        disk: 1,
        offset: 0,
        len: 3,
        content: Content::Data(b"abc"),
    };
    log.append(Generation(0), Epoch(1), &[extent]).unwrap();
    log.commit(Generation(0), Epoch(1), Some("standby"))
        .unwrap();
    drop(log);
    let new = vec![disk("root", 128 << 20, 7), disk("data", 1 << 20, 8)];
    assert!(matches!(
        EpochLog::rebind(dir.path(), "vm", &new),
        Err(LogError::Unapplied { count: 1 })
    ));
    let (mut log, _) = open(dir.path(), "vm", &disks()).unwrap();
    log.mark_applied(Epoch(1)).unwrap();
    drop(log);
    assert!(matches!(
        EpochLog::rebind(dir.path(), "other", &new),
        Err(LogError::OtherGroup { .. })
    ));
    EpochLog::rebind(dir.path(), "vm", &new).unwrap();
    let error = open(dir.path(), "vm", &disks()).unwrap_err();
    assert!(matches!(
        error,
        LogError::OtherDisks {
            difference: DiskMismatch::Size { .. },
            ..
        }
    ));
    let (log, recovered) = open(dir.path(), "vm", &new).unwrap();
    assert_eq!(
        (log.state().committed, log.state().applied),
        (Epoch(1), Epoch(1))
    );
    assert_eq!(
        (log.state().generation, &log.state().mode),
        (Generation(1), &Mode::Sync)
    );
    assert!(recovered.unapplied.is_empty());
}

#[test]
fn looking_at_what_is_no_log_says_so() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        inspect::inspect(dir.path()),
        Err(LogError::NotALog { .. })
    ));
    assert!(matches!(
        inspect::verify(dir.path()),
        Err(LogError::NotALog { .. })
    ));
}

#[test]
fn reports_name_the_facts_and_survive_json() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), "vm", &disks()).unwrap();
    let generation = log
        .raise_generation(Some("source-1"), "cold start")
        .unwrap();
    let extent = Extent {
        disk: 0,
        offset: 0,
        len: 5,
        content: Content::Data(b"hello"),
    };
    log.append(generation, Epoch(1), &[extent]).unwrap();
    log.commit(generation, Epoch(1), Some("standby-1")).unwrap();
    log.append(generation, Epoch(2), &[extent]).unwrap();
    let report = inspect::inspect(dir.path()).unwrap();
    assert_eq!(report.state, *log.state());
    assert_eq!(
        (report.unapplied[0].epoch, report.unapplied[0].bytes),
        (Epoch(1), 5)
    );
    assert_eq!(report.uncommitted[0].epoch, Epoch(2));
    let kinds: Vec<&str> = report
        .history
        .iter()
        .map(|entry| entry.kind.as_str())
        .collect();
    assert_eq!(kinds, ["generation", "commit"]);
    assert_eq!(report.history[0].reason, "cold start");
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(
        serde_json::from_str::<inspect::Report>(&json).unwrap(),
        report
    );
    let verdict = inspect::verify(dir.path()).unwrap();
    assert!(verdict.is_whole() && verdict.uncommitted_bytes > 0);
}
