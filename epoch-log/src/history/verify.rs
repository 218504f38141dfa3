//! Reading every byte of a history and checking it, without changing or locking anything. It may be in use: what is being written just then
//! is left out. What is cold is read as well if it is said where.

use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::HistoryError;
use super::cold::{self, Cold, ColdStore, Objects, State, Stub};
use super::format::Entry;
use super::open::{read_batch, start_of};
use super::run::{Away, ClosedRun, RunFile, failed, file_name, number_of};
use crate::disk::LogDir;
use crate::storage::Storage;

/// Missing objects of one run that are told of one by one.
const LISTED: usize = 100;

/// What a history is worth.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryVerdict {
    /// Files that were read.
    pub runs: u64,
    /// Ranges whose old content was read.
    pub ranges: u64,
    /// Bytes of old content.
    pub bytes: u64,
    /// Of these files, those whose old content is in cold storage.
    #[serde(default)]
    pub cold_runs: u64,
    /// That was read, too.
    #[serde(default)]
    pub cold_read: bool,
    /// What does not match its checksum, each in one sentence.
    pub damages: Vec<String>,
}

/// Reads all of the history in `dir`, and with `cold` what lies there. None: there is none.
///
/// # Errors
/// [`HistoryError::Io`]; [`HistoryError::Cold`] if the store does not answer.
pub fn verify(
    dir: &Path,
    cold: Option<Arc<dyn ColdStore>>,
) -> Result<Option<HistoryVerdict>, HistoryError> {
    match LogDir::open(dir) {
        Ok(dir) => look_at_all(&dir, cold).map(Some),
        Err(_) => Ok(None),
    }
}

/// The same of a history wherever it is.
///
/// # Errors
/// As [`verify`].
pub fn verify_on(
    storage: Arc<dyn Storage>,
    cold: Option<Arc<dyn ColdStore>>,
) -> Result<HistoryVerdict, HistoryError> {
    look_at_all(&LogDir::on(storage), cold)
}

fn look_at_all(
    log_dir: &LogDir,
    cold: Option<Arc<dyn ColdStore>>,
) -> Result<HistoryVerdict, HistoryError> {
    let names = log_dir
        .names()
        .map_err(|e| failed("list", log_dir.path().to_owned(), e))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name)).collect();
    numbers.sort_unstable();
    let mut verdict = HistoryVerdict {
        cold_read: cold.is_some(),
        ..HistoryVerdict::default()
    };
    let (mut newest, mut open) = (0, Vec::new());
    for (number, state) in names.iter().filter_map(|name| cold::number_of(name)) {
        if state != State::Whole {
            continue;
        }
        match look_at_stub(log_dir, number, cold.as_ref(), &mut verdict) {
            Ok(to) => {
                verdict.runs += 1;
                verdict.cold_runs += 1;
                newest = newest.max(to.unwrap_or(0));
            }
            Err(error @ HistoryError::Damaged { .. }) => verdict.damages.push(error.to_string()),
            Err(error) if is_gone(&error) => {}
            Err(other) => return Err(other),
        }
    }
    for number in numbers {
        match look(log_dir, number, &mut verdict) {
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
            Err(error) if is_gone(&error) => {}
            Err(other) => return Err(other),
        }
    }
    for (_, number) in open.iter().filter(|(from, _)| *from < newest) {
        verdict
            .damages
            .push(format!("{} has no readable end", file_name(*number)));
    }
    Ok(verdict)
}

/// It was trimmed, or moved, meanwhile.
fn is_gone(error: &HistoryError) -> bool {
    matches!(error, HistoryError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
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
    let entries = look_at_tables(&run)?;
    look_at_payload(&file, &entries, |_| true, verdict)?;
    count(&entries, verdict);
    Ok(Found::Closed { to: run.to().seq })
}

fn look_at_tables(run: &ClosedRun) -> Result<Vec<Entry>, HistoryError> {
    run.steps()?;
    run.check_index()?;
    run.entries(0, run.entries_count())
}

/// Reads what entries hold that are `wanted`.
fn look_at_payload(
    file: &RunFile,
    entries: &[Entry],
    wanted: impl Fn(&Entry) -> bool,
    verdict: &mut HistoryVerdict,
) -> Result<(), HistoryError> {
    let mut payload = Vec::new();
    let with_data = entries.iter().filter(|entry| !entry.is_zero());
    for entry in with_data.filter(|entry| wanted(entry)) {
        match file.payload(entry, &mut payload) {
            Ok(()) => {}
            Err(error @ HistoryError::Damaged { .. }) => verdict.damages.push(error.to_string()),
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

/// Looks at the stub of a cold run, and at what it stands for if it is said where that is. Returns the boundary at which it ends.
fn look_at_stub(
    dir: &LogDir,
    number: u64,
    store: Option<&Arc<dyn ColdStore>>,
    verdict: &mut HistoryVerdict,
) -> Result<Option<u64>, HistoryError> {
    let mut damaged = || {
        let name = cold::file_name(number, State::Whole);
        verdict.damages.push(format!("{name} is damaged"));
    };
    let Some(stub) = Stub::open(dir, number, State::Whole)? else {
        damaged();
        return Ok(None);
    };
    let header = stub.header;
    let way = Arc::new(Cold::new(header.log_id));
    let file = Arc::new(RunFile::cold(dir, stub, &way));
    let Some(run) = ClosedRun::of(&file, &header)? else {
        damaged();
        return Ok(None);
    };
    let entries = look_at_tables(&run)?;
    if let (Some(store), Some(Away { objects, .. })) = (store, &file.away) {
        way.connect(Arc::clone(store));
        let missing = missing(&way, objects)?;
        // It may have been trimmed since its name was read.
        if missing.is_empty() || Stub::open(dir, number, State::Whole)?.is_some() {
            let there = |entry: &Entry| {
                let last = entry.place.saturating_add(u64::from(entry.len) - 1);
                let mut parts = objects.part_at(entry.place).0..=objects.part_at(last).0;
                !parts.any(|part| missing.iter().any(|(other, _)| *other == part))
            };
            look_at_payload(&file, &entries, there, verdict)?;
            let more = missing.len().saturating_sub(LISTED);
            let listed = missing.into_iter().take(LISTED).map(|(_, what)| what);
            verdict.damages.extend(listed);
            if more > 0 {
                verdict.damages.push(format!(
                    "{more} more objects of the cold run {number} are missing or have another length"
                ));
            }
        }
    }
    count(&entries, verdict);
    Ok(Some(run.to().seq))
}

/// Which objects are not there, or not as long as they have to be, the first of them in one sentence each.
fn missing(way: &Cold, objects: &Objects) -> Result<Vec<(u64, String)>, HistoryError> {
    let mut missing = Vec::new();
    for part in 0..objects.parts() {
        match way.check(objects, part) {
            Ok(()) => {}
            Err(HistoryError::Cold {
                object,
                place,
                source,
                ..
            }) if matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::InvalidData
            ) =>
            {
                let what = match source.kind() {
                    io::ErrorKind::NotFound => "is missing",
                    _ => "has another length than what was put",
                };
                let sentence = match missing.len() < LISTED {
                    true => format!("the object {object}{place} {what}"),
                    false => String::new(),
                };
                missing.push((part, sentence));
            }
            Err(other) => return Err(other),
        }
    }
    Ok(missing)
}

fn count(entries: &[Entry], verdict: &mut HistoryVerdict) {
    verdict.ranges += entries.len() as u64;
    let data = entries.iter().filter(|entry| !entry.is_zero());
    verdict.bytes += data.map(|entry| u64::from(entry.len)).sum::<u64>();
}
