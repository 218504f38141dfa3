//! Reading every byte of a history and checking it, without changing or locking anything. It may be in use: what is being written just then
//! is left out.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::HistoryError;
use super::format::Entry;
use super::open::{read_batch, start_of};
use super::run::{ClosedRun, RunFile, file_name, number_of};
use crate::disk::LogDir;

/// What a history is worth.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryVerdict {
    /// Files that were read.
    pub runs: u64,
    /// Ranges whose old content was read.
    pub ranges: u64,
    /// Bytes of old content.
    pub bytes: u64,
    /// What does not match its checksum, each in one sentence.
    pub damages: Vec<String>,
}

/// Reads all of the history in `dir`. None: there is none.
///
/// # Errors
/// [`HistoryError::Io`].
pub fn verify(dir: &Path) -> Result<Option<HistoryVerdict>, HistoryError> {
    let Ok(log_dir) = LogDir::open(dir) else {
        return Ok(None);
    };
    let names = log_dir
        .names()
        .map_err(|e| super::run::failed("list", dir.to_owned(), e))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name)).collect();
    numbers.sort_unstable();
    let mut verdict = HistoryVerdict::default();
    let (mut newest, mut open) = (0, Vec::new());
    for number in numbers {
        match look(&log_dir, number, &mut verdict) {
            Ok(found) => {
                verdict.runs += 1;
                match found {
                    Found::Nothing => {}
                    Found::Closed { to } => newest = newest.max(to),
                    Found::Open { from } => {
                        newest = newest.max(from);
                        open.push((from, number));
                    }
                }
            }
            Err(error @ HistoryError::Damaged { .. }) => verdict.damages.push(error.to_string()),
            // It was trimmed meanwhile.
            Err(HistoryError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(other) => return Err(other),
        }
    }
    for (_, number) in open.iter().filter(|(from, _)| *from < newest) {
        verdict
            .damages
            .push(format!("{} has no readable end", file_name(*number)));
    }
    Ok(Some(verdict))
}

/// What a file is, by the numbers of its boundaries.
enum Found {
    Nothing,
    Closed {
        to: u64,
    },
    /// Only the newest may be.
    Open {
        from: u64,
    },
}

fn look(dir: &LogDir, number: u64, verdict: &mut HistoryVerdict) -> Result<Found, HistoryError> {
    let Some((file, header)) = RunFile::open(dir, number, false)? else {
        verdict
            .damages
            .push(format!("{} has no readable beginning", file_name(number)));
        return Ok(Found::Nothing);
    };
    let file = Arc::new(file);
    let Some(run) = ClosedRun::of(&file, &header)? else {
        let (mut at, mut previous) = start_of(&file);
        while let Some((batch, len, sum)) = read_batch(&file, at, previous)? {
            // Reading it has checked all that it holds.
            count(&batch.entries, verdict);
            (at, previous) = (at + len, sum);
        }
        return Ok(Found::Open {
            from: header.from.seq,
        });
    };
    run.steps()?;
    run.check_index()?;
    let entries = run.entries(0, run.entries_count())?;
    let mut payload = Vec::new();
    for entry in entries.iter().filter(|entry| !entry.is_zero()) {
        if let Err(error) = file.payload(entry, &mut payload) {
            match error {
                HistoryError::Damaged { .. } => verdict.damages.push(error.to_string()),
                other => return Err(other),
            }
        }
    }
    count(&entries, verdict);
    Ok(Found::Closed { to: run.to().seq })
}

fn count(entries: &[Entry], verdict: &mut HistoryVerdict) {
    verdict.ranges += entries.len() as u64;
    let data = entries.iter().filter(|entry| !entry.is_zero());
    verdict.bytes += data.map(|entry| u64::from(entry.len)).sum::<u64>();
}
