//! The epoch log on a disk that has gone bad: a whole log, made by the log itself, is altered as the input says, and opened.
//!
//! What must be true then:
//! - nothing panics or hangs, whatever is there, also where somebody who knows the checksums has written it;
//! - a log that opens shows a state that it once had, with exactly the epochs that it had then; and it is the newest, or no whole
//!   record, copy or segment header is left that speaks of a newer one (`epoch-log/src/lib.rs` says which losses can't be noticed);
//! - one that does not open names the damage, as `verify` does, and nothing of it was changed;
//! - where at least one copy of everything that counts is left, it opens.
//!
//! Input: a byte that chooses the log and how thoroughly it is looked at, then alterations, see `alter.rs`.

mod alter;
mod place;
mod records;
mod sample;

use std::collections::BTreeMap;
use std::path::Path;

use epoch_log::{
    Content, Damage, DamageKind, Epoch, EpochLog, Extent, LogError, LogOptions, LogState, Mode,
    inspect,
};

use alter::Altered;
use place::Place;
use sample::{Durable, Sample, disks, durable, samples};

/// The files of a log, by name.
type Files = BTreeMap<String, Vec<u8>>;

/// Tiny, so that a short history crosses several segments.
const SEGMENT_BYTES: u64 = 24 << 10;

fn open(dir: &Path) -> Result<EpochLog, LogError> {
    let options = LogOptions {
        segment_bytes: SEGMENT_BYTES,
        spare_segments: 1,
    };
    EpochLog::open_or_create(dir, "vm", &disks(), options).map(|(log, _)| log)
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Some((&what, script)) = data.split_first() else {
        return;
    };
    let samples = samples();
    let sample = &samples[usize::from(what & 15) % samples.len()];
    let altered = alter::alter(sample, script);
    let thorough = what & 0x10 != 0;
    Place::with(|place| {
        place.set(&sample.files, &altered.files);
        let opened = open(place.dir());
        if opened.is_ok() {
            place.changed();
        }
        if altered.forged {
            forged(opened, place.dir());
        } else {
            judge(sample, &altered, opened, place, thorough);
        }
    });
}

/// Checks what became of a log that was altered without knowledge of the checksums.
fn judge(
    sample: &Sample,
    altered: &Altered,
    opened: Result<EpochLog, LogError>,
    place: &Place,
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
                opens_again(&found, place.dir());
            }
        }
        Err(LogError::Damaged(damage)) => {
            assert!(!left.whole, "refused for nothing: {damage}");
            if thorough {
                is_named(&damage, altered, place);
            }
        }
        Err(other) => panic!("{other}"),
    }
}

/// What recovery has made of a log is the end of it.
fn opens_again(found: &Durable, dir: &Path) {
    let verdict = inspect::verify(dir).expect("a log that was opened");
    assert!(verdict.is_whole(), "{verdict:?}");
    assert!(verdict.repairable.is_empty(), "not healed: {verdict:?}");
    let report = inspect::inspect(dir).expect("a log that was opened");
    assert_eq!(report.state, found.state);
    let log = open(dir).expect("a second time");
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

fn is_named(damage: &Damage, altered: &Altered, place: &Place) {
    let verdict = inspect::verify(place.dir()).expect("it is still a log");
    assert_eq!(verdict.damages.first(), Some(damage));
    assert!(matches!(
        inspect::inspect(place.dir()),
        Err(LogError::Damaged(_))
    ));
    assert!(damage.what != DamageKind::Unreadable, "memory can be read");
    for (name, bytes) in &altered.files {
        let now = std::fs::read(place.dir().join(name)).expect("a file that was there");
        assert_eq!(&now, bytes, "{name} of a damaged log was changed");
    }
}

/// Somebody has made up records that are valid: what the log makes of them is up to it, as long as it stands.
fn forged(opened: Result<EpochLog, LogError>, dir: &Path) {
    match opened {
        Ok(log) => {
            let _ = durable(&log);
            let _ = goes_on(log);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(verdict) = inspect::verify(dir) {
        assert!(verdict.damages.len() < 10_000);
    }
    let _ = inspect::inspect(dir);
}

/// A state in a few words, for messages.
fn said(state: &LogState) -> (u64, Epoch, Epoch) {
    (state.generation.0, state.committed, state.applied)
}
