//! The epoch log on a disk that has gone bad: a whole log, made by the log itself, is altered as the input says, and opened.
//!
//! What must be true then:
//! - nothing panics or hangs, whatever is there, also where somebody who knows the checksums has written it;
//! - a log that opens shows a state that it once had, with exactly the epochs that it had then; and it is the newest, or no whole
//!   record, copy or segment header is left that speaks of a newer one (`epoch-log/src/lib.rs` says which losses can't be noticed);
//! - one that does not open names the damage, as `verify` does, and nothing of it was changed;
//! - where at least one copy of everything that counts is left, it opens.
//!
//! Input: a byte that chooses the log, then alterations, see `alter.rs`.
//!
//! To look at a log in all ways takes several times as long as to open it, so [`run`] does that with one input in `THOROUGH`. Which one
//! is up to a hash: with a bit of the input a fuzzer, which keeps what reaches the most, soon has it set in all.

mod alter;
pub(crate) mod memory;
mod records;
mod sample;

use std::collections::BTreeMap;
use std::sync::Arc;

use epoch_log::storage::{self, Storage};
use epoch_log::{
    Content, Damage, DamageKind, Epoch, EpochLog, Extent, LogError, LogOptions, LogState, Mode,
    inspect,
};
use xxhash_rust::xxh3::xxh3_64;

use alter::Altered;
use memory::Memory;
use sample::{Durable, Sample, disks, durable, samples};

/// Files by name. Copies share what nobody has changed.
pub(crate) type Files = BTreeMap<String, Arc<Vec<u8>>>;

/// Tiny, so that a short history crosses several segments.
const SEGMENT_BYTES: u64 = 24 << 10;
/// What a log gives out as random after it was altered is other than what it gave out before.
const SEED: u64 = 1000;
/// Of so many inputs one is looked at in all ways.
const THOROUGH: u64 = 16;

fn open(storage: &Arc<dyn Storage>) -> Result<EpochLog, LogError> {
    let options = LogOptions {
        segment_bytes: SEGMENT_BYTES,
        spare_segments: 1,
    };
    let storage = Arc::clone(storage);
    EpochLog::open_or_create_on(storage, "vm", &disks(), options).map(|(log, _)| log)
}

/// Runs one input in memory.
pub fn run(data: &[u8]) {
    judge(data, in_memory, xxh3_64(data).is_multiple_of(THOROUGH));
}

/// Runs one input in memory, and looks at what comes of it in all ways.
pub fn run_thoroughly(data: &[u8]) {
    judge(data, in_memory, true);
}

fn in_memory(files: &Files) -> Arc<dyn Storage> {
    Arc::new(Memory::holding(files, SEED))
}

/// Runs one input on real files, which takes many times longer.
pub fn run_with_files(data: &[u8]) {
    let dir = scratch();
    let on_disk = |files: &Files| {
        for (name, bytes) in files {
            std::fs::write(dir.path().join(name), &**bytes).expect("room for a log");
        }
        storage::directory(dir.path())
    };
    judge(data, on_disk, true);
}

/// A directory of our own, in memory where the system has that: what is tried here is no matter of disks.
fn scratch() -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("epochgate-fuzz-");
    let in_memory = builder.tempdir_in("/dev/shm");
    in_memory
        .or_else(|_| builder.tempdir())
        .expect("a directory")
}

/// What a file holds.
pub(crate) fn content(storage: &dyn Storage, name: &str) -> Vec<u8> {
    let file = storage.open(name, false).expect("a file that is there");
    let len = file.size().expect("a length");
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    let got = file.read_at(&mut bytes, 0).expect("a file can be read");
    assert_eq!(got, bytes.len(), "less than its length");
    bytes
}

/// Alters a log as the input says, puts it where `place` has it, and checks what becomes of it.
fn judge(data: &[u8], place: impl FnOnce(&Files) -> Arc<dyn Storage>, thorough: bool) {
    let Some((&what, script)) = data.split_first() else {
        return;
    };
    let samples = samples();
    let sample = &samples[usize::from(what & 15) % samples.len()];
    let altered = alter::alter(sample, script);
    let storage = place(&altered.files);
    let opened = open(&storage);
    if altered.forged {
        forged(opened, &storage, thorough);
    } else {
        honest(sample, &altered, opened, &storage, thorough);
    }
}

/// Nobody knew of checksums.
fn honest(
    sample: &Sample,
    altered: &Altered,
    opened: Result<EpochLog, LogError>,
    storage: &Arc<dyn Storage>,
    thorough: bool,
) {
    let left = sample.left(&altered.files);
    match opened {
        Ok(log) => {
            let found = durable(&log).expect("what was opened can be read");
            assert!(
                sample.was_true_at(&found, left.newest),
                "silent loss: something speaks of change {}, but the log shows {found:?}",
                left.newest
            );
            if left.whole {
                assert_eq!(&found, sample.now(), "nothing that counts was lost");
            }
            drop(log);
            if thorough {
                opens_again(&found, storage);
            }
        }
        Err(LogError::Damaged(damage)) => {
            assert!(!left.whole, "refused for nothing: {damage}");
            if thorough {
                is_named(&damage, altered, storage);
            }
        }
        Err(other) => panic!("{other}"),
    }
}

/// What recovery has made of a log is the end of it.
fn opens_again(found: &Durable, storage: &Arc<dyn Storage>) {
    let verdict = inspect::verify_on(Arc::clone(storage)).expect("a log that was opened");
    assert!(verdict.is_whole(), "{verdict:?}");
    assert!(verdict.repairable.is_empty(), "not healed: {verdict:?}");
    let report = inspect::inspect_on(Arc::clone(storage)).expect("a log that was opened");
    assert_eq!(report.state, found.state);
    let log = open(storage).expect("a second time");
    assert_eq!(&durable(&log).expect("a second time"), found);
    goes_on(log).expect("it can be used");
}

/// The next epoch commits.
fn goes_on(mut log: EpochLog) -> Result<(), LogError> {
    log.set_mode(Mode::Sync)?;
    let generation = log.raise_generation(Some("next"), "the log goes on")?;
    let epoch = log.state().committed.next();
    let extent = Extent {
        disk: 1,
        offset: 512,
        len: 5,
        content: Content::Data(b"after"),
    };
    log.append(generation, epoch, &[extent])?;
    log.commit(generation, epoch, None)?;
    log.mark_applied(epoch)?;
    log.close_clean()
}

fn is_named(damage: &Damage, altered: &Altered, storage: &Arc<dyn Storage>) {
    let verdict = inspect::verify_on(Arc::clone(storage)).expect("it is still a log");
    assert_eq!(verdict.damages.first(), Some(damage));
    assert!(matches!(
        inspect::inspect_on(Arc::clone(storage)),
        Err(LogError::Damaged(_))
    ));
    assert!(damage.what != DamageKind::Unreadable, "memory can be read");
    for (name, bytes) in &altered.files {
        let now = content(storage.as_ref(), name);
        assert_eq!(&now, &**bytes, "{name} of a damaged log was changed");
    }
}

/// Somebody has made up records that are valid: what the log makes of them is up to it, as long as it stands.
fn forged(opened: Result<EpochLog, LogError>, storage: &Arc<dyn Storage>, thorough: bool) {
    match opened {
        Ok(log) => {
            let _ = durable(&log);
            let _ = goes_on(log);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if !thorough {
        return;
    }
    if let Ok(verdict) = inspect::verify_on(Arc::clone(storage)) {
        assert!(verdict.damages.len() < 10_000);
    }
    let _ = inspect::inspect_on(Arc::clone(storage));
}

/// A state in a few words, for messages.
fn said(state: &LogState) -> (u64, Epoch, Epoch) {
    (state.generation.0, state.committed, state.applied)
}
