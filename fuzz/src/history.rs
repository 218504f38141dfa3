//! The history of a group on a disk that has gone bad: files that a history has made are altered as the input says, verified, opened, and
//! read at every point.
//!
//! What must be true then:
//! - nothing panics, hangs or takes memory without bound, whatever is there, also where somebody who knows the checksums has written it;
//! - where nobody does, and the run that grows is whole, a point that can be read shows the disks as they were then;
//! - if `verify` finds nothing wrong as well, every point that is left can be read;
//! - what opening has made of it is the end of it: opened again nothing more is lost.
//!
//! That the newest run, or the end of it, is gone can't be noticed if it looks like a write that a crash has cut short: the log knows what was
//! committed, but not what of it was saved. So nothing is said of what is read then.
//!
//! Input: a byte that chooses the history (two bits) and whether checksums are made to fit (bit 2), then alterations, see `alter.rs`.

mod alter;
mod sample;

use std::sync::Arc;

use epoch_log::history::{
    Anchor, ColdStore, History, HistoryError, Opened, Options, Retention, Tier, verify_on,
};
use epoch_log::storage::Storage;
use epoch_log::{Epoch, LogError};

use crate::log::memory::Memory;
use sample::{DISKS, SIZE, Sample, Store, samples};

/// Tiny, so that a short history has several runs, and a run several objects.
const OPTIONS: Options = Options {
    run_bytes: 24 << 10,
    run_entries: 24,
    object_bytes: 6000,
};
const LOG_ID: [u8; 16] = [7; 16];
/// What is random after the files were altered is other than before.
const SEED: u64 = 1000;
/// Points that are read of one history.
const MOST_POINTS: usize = 40;

fn open(
    storage: &Arc<dyn Storage>,
    epoch: u64,
    now_ms: u64,
) -> Result<(Arc<History>, Opened), HistoryError> {
    let anchor = Anchor {
        log_id: LOG_ID,
        applied: Epoch(epoch),
        committed: Epoch(epoch),
    };
    History::open(Arc::clone(storage), anchor, OPTIONS, now_ms)
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Some((&how, script)) = data.split_first() else {
        return;
    };
    let samples = samples();
    let sample = &samples[usize::from(how & 3) % samples.len()];
    let altered = alter::alter(sample, script, how & 4 != 0);
    let storage: Arc<dyn Storage> = Arc::new(Memory::holding(&altered.files, SEED));
    let store: Arc<dyn ColdStore> = Arc::new(Store::holding(&sample.objects));
    let verified = verify_on(Arc::clone(&storage), Some(Arc::clone(&store)));
    let whole = match &verified {
        Ok(verdict) => {
            assert!(verdict.damages.len() < 10_000, "{}", verdict.damages.len());
            altered.trusted && verdict.damages.is_empty()
        }
        // A stub may name what the store can't have.
        Err(error) => {
            assert!(!altered.trusted, "{error}");
            false
        }
    };
    let (history, opened) = match open(&storage, sample.epoch, sample.time_ms) {
        Ok(opened) => opened,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            let another = matches!(error, HistoryError::Log(LogError::InUse { .. }));
            return assert!(!another, "nobody else has it");
        }
    };
    history.use_cold(Arc::clone(&store));
    read_all(&history, sample, altered.trusted, whole);
    drop(history);
    let Ok((history, again)) = open(&storage, sample.epoch, sample.time_ms) else {
        // Only what somebody has forged may be refused once it was taken.
        return assert!(!altered.trusted, "it opened once: {opened:?}");
    };
    assert!(!altered.trusted || again.lost.is_empty(), "{again:?}");
    history.use_cold(store);
    goes_on(&history, sample);
}

/// Reads the disks at each point.
fn read_all(history: &Arc<History>, sample: &Sample, trusted: bool, whole: bool) {
    let mut points = Vec::new();
    let visited = history.visit_points(Epoch(0), |point| {
        if points.len() < MOST_POINTS {
            points.push(point);
        }
    });
    assert!(visited.is_ok() || !whole, "{visited:?}");
    for point in points {
        let read = read(history, sample, point.epoch);
        match read {
            Ok(disks) if trusted => {
                for epoch in [point.epoch, point.until] {
                    let then = sample.epochs.get(&epoch.0);
                    assert_eq!(then, Some(&disks), "another content at {point:?}");
                }
            }
            Ok(_) => {}
            Err(error) => assert!(!whole, "{point:?}: {error}"),
        }
    }
}

/// The disks at an epoch, as a checksum.
fn read(history: &Arc<History>, sample: &Sample, epoch: Epoch) -> Result<u64, HistoryError> {
    let view = history.view(epoch)?;
    let mut disks = vec![vec![0; SIZE]; DISKS];
    for ((disk, number), image) in disks.iter_mut().zip(0..).zip(&sample.images) {
        view.read(number, 0, disk, |at, part| {
            let at = at as usize;
            part.copy_from_slice(&image[at..at + part.len()]);
            Ok(())
        })?;
    }
    Ok(sample::sum(&disks))
}

/// It can be used: the next epoch, pins, and all that keeps it in bounds. Errors are up to it.
fn goes_on(history: &Arc<History>, sample: &Sample) {
    let epoch = Epoch(sample.epoch + 1);
    let saved = history.capture().and_then(|mut capture| {
        capture.save_zeros(0, 0, 512)?;
        capture.boundary(epoch, sample.time_ms, true)?;
        capture.finish(epoch)
    });
    if saved.is_ok() {
        history.applied(epoch);
        let _ = history.pin("next", epoch);
    }
    let _ = history.unpin("before");
    let tight = Retention {
        age_ms: 400,
        bytes: 30_000,
        min_free: 0,
        tiers: vec![Tier {
            older_than_ms: 50,
            one_in_ms: 100,
        }],
    };
    for later in [0, 100, 600] {
        let _ = history.maintain(sample.time_ms.saturating_add(later), &tight);
    }
    let _ = history.changes(Epoch(0), epoch);
    assert!(history.status().runs > 0);
}
