//! A disk that is really full: the log lies on a tmpfs of a few hundred KiB, mounted in a mount namespace of its own, so that it
//! disappears with the process. Needs root, or a system that lets users make namespaces.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{path::Path, process::Command};

use epoch_log::{
    Content, DiskIdentity, Epoch, EpochLog, Extent, Generation, LogError, LogOptions, Mode,
    Recovered,
};

/// Set in the child that has the tmpfs.
const DIRECTORY: &str = "EPOCH_LOG_FULL_DISK";

/// Runs the test `name` again with a tmpfs; gives its directory in the child.
fn with_small_disk(name: &str) -> Option<String> {
    if let Ok(dir) = std::env::var(DIRECTORY) {
        return Some(dir);
    }
    let dir = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size=1m tmpfs "$EPOCH_LOG_FULL_DISK" && exec "$0" --exact "$1" --nocapture"#;
    let output = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .env(DIRECTORY, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    None
}

fn open(dir: &Path, segment_bytes: u64) -> (EpochLog, Recovered) {
    let disks = [DiskIdentity {
        name: "root".to_owned(),
        size: 1 << 30,
        file_id: 1,
    }];
    EpochLog::open_or_create(
        &dir.join("log"),
        "vm",
        &disks,
        LogOptions {
            segment_bytes,
            ..LogOptions::default()
        },
    )
    .unwrap()
}

fn extent(bytes: &[u8]) -> Extent<'_> {
    Extent {
        disk: 0,
        offset: 4096,
        len: bytes.len() as u64,
        content: Content::Data(bytes),
    }
}

/// Payloads of all unapplied epochs.
fn held(log: &EpochLog) -> Vec<(Epoch, Vec<u8>)> {
    let mut held = Vec::new();
    log.replay(|epoch, extent| -> Result<(), LogError> {
        let Content::Data(data) = extent.content else {
            panic!("only data was written")
        };
        held.push((epoch, data.to_vec()));
        Ok(())
    })
    .unwrap();
    held
}

/// Commits epochs until there is no room; returns the last one.
fn fill(log: &mut EpochLog, bytes: &[u8]) -> Epoch {
    loop {
        let (generation, next) = (log.state().generation, log.state().committed.next());
        let appended = log.append(generation, next, &[extent(bytes)]);
        match appended.and_then(|()| log.commit(generation, next, None)) {
            Ok(()) => {}
            Err(LogError::Full { .. }) => {
                // Where only the commit record had no room, the data would stay for another try.
                log.abort().unwrap();
                return log.state().committed;
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_full_log_goes_on_when_epochs_are_applied() {
    let Some(dir) = with_small_disk("a_full_log_goes_on_when_epochs_are_applied") else {
        return;
    };
    let dir = Path::new(&dir);
    let bytes = vec![7; 50_000];
    let (mut log, _) = open(dir, 128 << 10);
    for _ in 0..3 {
        let last = fill(&mut log, &bytes);
        assert!(
            last.0 > log.state().applied.0 + 2,
            "the disk was too small for the test"
        );
        // Again and again: nothing is left over from a refused attempt.
        assert_eq!(fill(&mut log, &bytes), last);
        assert_eq!(held(&log).len() as u64, last.0 - log.state().applied.0);
        log.mark_applied(last).unwrap();
    }
    let (state, before) = (log.state().clone(), fill(&mut log, &bytes));
    assert!(before > state.committed);
    let state = log.state().clone();
    drop(log);
    let (log, _) = open(dir, 128 << 10);
    assert_eq!(log.state(), &state);
    assert!(held(&log).iter().all(|(_, data)| *data == bytes));
}

#[test]
fn a_full_disk_does_not_hinder_fencing() {
    let Some(dir) = with_small_disk("a_full_disk_does_not_hinder_fencing") else {
        return;
    };
    let dir = Path::new(&dir);
    let (mut log, _) = open(dir, 128 << 10);
    fill(&mut log, &[1; 30_000]);
    // Take the last byte that another program could take as well.
    let mut filler = std::fs::File::create(dir.join("filler")).unwrap();
    while std::io::Write::write_all(&mut filler, &[0; 512]).is_ok() {}
    let committed = log.state().committed;
    assert_eq!(
        log.raise_generation(Some("standby"), "takeover").unwrap(),
        Generation(1)
    );
    log.set_mode(Mode::Async { holder: None }).unwrap();
    drop(log);
    let (mut log, _) = open(dir, 128 << 10);
    assert_eq!(
        (log.state().generation, log.state().committed),
        (Generation(1), committed)
    );
    assert_eq!(held(&log).len() as u64, committed.0);
    log.mark_applied(committed).unwrap();
}

#[test]
fn data_never_takes_the_reserve() {
    use std::os::unix::fs::MetadataExt;
    let Some(dir) = with_small_disk("data_never_takes_the_reserve") else {
        return;
    };
    let dir = Path::new(&dir);
    let reserved = || {
        let reserve = std::fs::metadata(dir.join("log/RESERVE")).unwrap();
        reserve.blocks() * 512
    };
    let (mut log, _) = open(dir, 128 << 10);
    let whole = reserved();
    log.append(Generation(0), Epoch(1), &[extent(&[1; 30_000])])
        .unwrap();
    log.commit(Generation(0), Epoch(1), None).unwrap();
    log.mark_applied(Epoch(1)).unwrap();
    let mut filler = std::fs::File::create(dir.join("filler")).unwrap();
    while std::io::Write::write_all(&mut filler, &[0; 512]).is_ok() {}
    // There is a dead segment to free, and it is much too small.
    for _ in 0..3 {
        let refused = log.append(Generation(0), Epoch(2), &[extent(&[2; 200_000])]);
        assert!(matches!(refused, Err(LogError::Full { .. })), "{refused:?}");
        assert_eq!(reserved(), whole);
    }
    log.raise_generation(Some("standby"), "takeover").unwrap();
}

#[test]
fn one_segment_as_large_as_the_disk_is_freed_once_it_is_applied() {
    let Some(dir) = with_small_disk("one_segment_as_large_as_the_disk_is_freed_once_it_is_applied")
    else {
        return;
    };
    let (mut log, _) = open(Path::new(&dir), 64 << 20);
    for _ in 0..3 {
        let before = log.state().applied;
        let last = fill(&mut log, &[5; 40_000]);
        assert!(last.0 > before.0 + 5, "nothing was freed");
        log.mark_applied(last).unwrap();
    }
}

#[test]
fn a_log_can_not_be_made_where_there_is_no_room() {
    let Some(dir) = with_small_disk("a_log_can_not_be_made_where_there_is_no_room") else {
        return;
    };
    let dir = Path::new(&dir);
    let mut filler = std::fs::File::create(dir.join("filler")).unwrap();
    while std::io::Write::write_all(&mut filler, &[0; 512]).is_ok() {}
    let disks = [DiskIdentity {
        name: "root".to_owned(),
        size: 1 << 30,
        file_id: 1,
    }];
    let options = LogOptions::default();
    let refused = EpochLog::open_or_create(&dir.join("log"), "vm", &disks, options.clone());
    assert!(matches!(refused, Err(LogError::Full { .. })), "{refused:?}");
    drop(filler);
    std::fs::remove_file(dir.join("filler")).unwrap();
    let (_, recovered) = EpochLog::open_or_create(&dir.join("log"), "vm", &disks, options).unwrap();
    assert!(recovered.created);
}
