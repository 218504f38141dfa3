//! Evaluation: how well models judge loads and kinds of fault that they have never seen, beside what they are compared with.
//!
//! ```text
//! Table ─▶ folds:   each load left out in turn; each kind of fault left out in turn, with a part of the healthy recordings
//!       ─▶ rivals:  whoever judges is trained on the rest: thresholds too are chosen there and nowhere else
//!       ─▶ outcome: windows, verdicts, false alarms and delays of what was left out
//!       ─▶ report:  means and spreads over the folds
//!          details: each kind of fault and each load for itself
//!          curve:   false alarms against hits, for pictures
//! ```
//!
//! Recordings are never cut, and those of one seed are never on both sides. Windows count for F1, AUC, precision and recall; the first five
//! seconds of a fault are in neither class. Verdicts (k of n windows) count for false alarms and delays: a false alarm is a verdict that is
//! passed while there is no fault; a fault is found when a verdict is passed after its begin, and one that stood already is not its finding.
//! A fault that is not found has an endless delay.

mod curve;
mod details;
mod fixed;
mod folds;
mod heartbeat;
mod outcome;
mod report;
mod rivals;
#[cfg(test)]
mod tests;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use curve::Curve;
pub use details::{KindDetails, LoadDetails, UnseenKind};
pub use folds::{Fold, Scheme};
pub use heartbeat::{Beats, load as load_heartbeats};
pub use outcome::{Outcome, TimeLine};
pub use report::{Delay, Figures, Report, Summary};
pub use rivals::Rival;

use crate::learn::{LearnError, Options, Table};

/// Evaluates these; the model of `options` should be among them, as most figures are of it. `beats` are what heartbeats saw, for each recording of the table, if that is known. `progress` is called after each step with
/// the part that is done.
///
/// # Errors
/// Something can't be learnt.
pub fn evaluate(
    table: &Table,
    beats: &[Option<Beats>],
    options: Options,
    rivals: &[Rival],
    threads: usize,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Report, LearnError> {
    let mut work: Vec<(Rival, Scheme, Fold)> = Vec::new();
    for scheme in Scheme::ALL {
        for fold in folds::folds(table, scheme, options.seed) {
            work.extend(rivals.iter().map(|rival| (*rival, scheme, fold.clone())));
        }
    }
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some((rival, scheme, fold)) =
                    work.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let mut outcome = rivals::judge(*rival, table, beats, fold, options);
                    if let Ok(outcome) = &mut outcome
                        && (*rival, *scheme) != (Rival::Model(options.method), Scheme::Loads)
                    {
                        // Each has one for each window of the data set, and nobody looks at these.
                        outcome.lines = Vec::new();
                    }
                    let mut found = found.lock().unwrap_or_else(|e| e.into_inner());
                    found.push((*rival, *scheme, outcome));
                    progress(done.fetch_add(1, Ordering::Relaxed) + 1, work.len());
                }
            });
        }
    });
    let found = found.into_inner().unwrap_or_else(|e| e.into_inner());
    let mut outcomes = Vec::new();
    for (rival, scheme, outcome) in found {
        match outcome {
            Ok(outcome) => outcomes.push((rival, scheme, outcome)),
            // Without the load or the fault that was left out there is nothing to learn from: a data set that is too small.
            Err(error) => return Err(error),
        }
    }
    outcomes.sort_by(|a, b| a.2.fold.cmp(&b.2.fold));
    Ok(Report::of(table, options, &outcomes))
}
